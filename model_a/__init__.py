"""Model A as a service of its own: `gunicorn model_a.app:app`."""
