"""The steps, one a file, in their order."""
