"""FastAPI by hand, as fast as it goes without leaving scikit-learn. `uvicorn fastapi_app:app`.

Coroutines rather than functions: FastAPI would send each of those to a pool of threads. Arrays rather than
data frames; and the model forgets the names of its columns, since scikit-learn would miss them in each array.
"""

import os
from typing import Any

import joblib
import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel, create_model

model = joblib.load(os.environ["MODEL"])
columns: dict[str, Any] = {str(name): (float, ...) for name in model.feature_names_in_}
del model.feature_names_in_

app = FastAPI()
Record = create_model("Record", **columns)


class Prediction(BaseModel):
    prediction: float


class Predictions(BaseModel):
    predictions: list[float]


@app.post("/predict")
async def predict(record: Record) -> Prediction:
    """A record, with its columns by name."""
    row = np.array([list(vars(record).values())])
    return Prediction(prediction=model.predict_proba(row)[0, 1])


@app.post("/records")
async def records(records: list[Record]) -> Predictions:
    """A list of records."""
    rows = np.array([list(vars(record).values()) for record in records])
    return Predictions(predictions=model.predict_proba(rows)[:, 1].tolist())


@app.post("/rows")
async def rows(rows: list[list[float]]) -> Predictions:
    """A list of lists, in the order of the columns."""
    return Predictions(predictions=model.predict_proba(np.array(rows))[:, 1].tolist())
