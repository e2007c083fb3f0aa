"""The notebooks that train the models, and what executes them."""
