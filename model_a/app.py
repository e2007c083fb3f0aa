"""The prediction service of model A."""

from runoff.prediction import create_app

app = create_app("model-a")
