"""BentoML's service of an array of rows. `bentoml serve bentoml_app:Model`."""

import os

import bentoml
import joblib
import numpy as np


@bentoml.service(workers=2, http={"cors": {"enabled": False}})
class Model:
    def __init__(self) -> None:
        """Load the model, and let it forget the names of its columns, which an array has not."""
        self.model = joblib.load(os.environ["MODEL"])
        del self.model.feature_names_in_

    @bentoml.api
    async def predict(self, rows: np.ndarray) -> np.ndarray:
        """Take an array of shape (n, columns), answer the probabilities, shape (n,)."""
        return self.model.predict_proba(rows)[:, 1]
