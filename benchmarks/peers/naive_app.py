"""The style of 2020: Flask, and a data frame for each request. `gunicorn naive_app:app`."""

import os
from typing import Any

import joblib
import pandas as pd
from flask import Flask, request

app = Flask(__name__)
model = joblib.load(os.environ["MODEL"])


@app.post("/predict")
def predict() -> dict[str, Any]:
    """Take a list of records, answer a list of probabilities."""
    frame = pd.DataFrame(request.get_json())
    return {"predictions": model.predict_proba(frame)[:, 1].tolist()}
