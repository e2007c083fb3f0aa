"""The router of 2020: Flask, and a connection of its own for each request."""

import os
import random

import requests
from flask import Flask, Response, jsonify, request

app = Flask(__name__)


@app.post("/predict")
def predict() -> tuple[Response, int]:
    """Ask one of two models."""
    [name] = random.choices(("MODEL_A_URL", "MODEL_B_URL"), (80, 20))
    answer = requests.post(f"{os.environ[name]}/predict", json=request.get_json(), timeout=2)
    return jsonify(answer.json()), answer.status_code
