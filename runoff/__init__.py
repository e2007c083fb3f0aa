"""What every room of the house shares: the model store and the prediction app.

Nothing in here knows of credit, of the router or of the dashboard.
"""

# The one place: the package takes it from here, and what is published is not installed as a package.
__version__ = "0.1.0"
