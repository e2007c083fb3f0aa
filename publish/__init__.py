"""Publishing to Posit Connect: what goes there, and how. `python -m publish --help`."""
