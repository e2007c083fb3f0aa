"""The dashboard: sends simulated traffic, and shows what the router recorded.

It knows the router by its REST API alone.
"""
