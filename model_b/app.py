"""The prediction service of model B."""

from runoff.prediction import create_app

app = create_app("model-b")
