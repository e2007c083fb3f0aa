"""The router: assigns each request to a variant, forwards it, and records what happened.

It speaks HTTP to any model service, and knows no model's insides.
"""
