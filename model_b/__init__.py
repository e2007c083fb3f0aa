"""Model B as a service of its own: `gunicorn model_b.app:app`."""
