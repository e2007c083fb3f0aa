"""Model B as a service of its own: `python -m runoff.server model_b.app:app --port …`."""
