"""The notebooks that train the models and the one that decides between them, and what executes them."""
