"""What every room of the house shares: the model store and the prediction app.

Nothing in here knows of credit, of the router or of the dashboard.
"""
