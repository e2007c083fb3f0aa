"""Model A as a service of its own: `python -m runoff.server model_a.app:app --port …`."""
