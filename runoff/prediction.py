"""The prediction app: one model version behind HTTP.

    from runoff.prediction import create_app
    app = create_app("model-a")

That is a whole service. What it takes is read from the prototype of the version; what it answers is the
probability of the outcome.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from flask import Flask, Response, jsonify

from runoff import web
from runoff.problems import Unavailable
from runoff.records import RecordReader, decode
from runoff.store import LoadedModel, Store, StoreError

log = logging.getLogger(__name__)


def create_app(name: str, *, store: Store | None = None) -> Flask:
    """Make the service of a model.

    It serves the version that RUNOFF_VERSION names, by default the newest in the store. Where that cannot
    be loaded the app starts all the same: `/readyz` is red and says why, predictions are refused with 503.

    Args:
        name: the model's name in the store.
        store: where its versions are, by default `Store.open()`.
    """
    app = Flask(__name__)
    served = _Served(name, store or Store.open(), os.environ.get("RUNOFF_VERSION"))
    web.equip(app, checks={"model": served.check})

    @app.get("/")
    def index() -> dict[str, Any]:
        return {
            "what": f"prediction service of {name}: POST a record to predict, get a probability",
            "model": name,
            "version": served.model.version.id if served.model else None,
            "try": {"predict": "POST predict", "input": "GET prototype", "about": "GET metadata"},
        }

    @app.post("/predict")
    def predict() -> Response:
        model, reader = served.loaded()
        rows, answer = decode(web.json_body(), reader)
        response = jsonify(answer(model.probabilities(rows).tolist(), name, model.version.id))
        response.headers["X-Model-Name"] = name
        response.headers["X-Model-Version"] = model.version.id
        response.headers["X-Model-Digest"] = model.digest
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.get("/prototype")
    def prototype() -> dict[str, Any]:
        return served.loaded()[0].version.prototype.to_json()

    @app.get("/metadata")
    def metadata() -> dict[str, Any]:
        """Answer in vetiver's form; what is ours stands under `user`, where vetiver keeps a user's own."""
        version = served.loaded()[0].version
        return {
            "user": {
                "model": name,
                "digest": served.loaded()[0].digest,
                "created": version.created.isoformat().replace("+00:00", "Z"),
                "record": dict(version.record),
            },
            "version": version.id,
            "url": None,
            "required_pkgs": list(version.required_packages),
            "python_version": list(version.python_version),
        }

    return app


class _Served:
    """The version that a service has in memory, or the reason for which it has none."""

    def __init__(self, name: str, store: Store, version_id: str | None) -> None:
        self.model: LoadedModel | None = None
        self._reader: RecordReader | None = None
        self._reason = ""
        try:
            self.model = store.load(name, version_id)
            self._reader = RecordReader(self.model.version.prototype)
            # The first prediction costs ten times the others: it is made before a client waits for it.
            self.model.probabilities(self._reader.read([self.model.version.prototype.example], at=""))
        except StoreError as error:
            self._reason = str(error)
            log.warning("%s serves nothing: %s", name, error)

    def loaded(self) -> tuple[LoadedModel, RecordReader]:
        if self.model is None or self._reader is None:
            raise Unavailable(self._reason, headers={"Retry-After": "10"})
        return self.model, self._reader

    def check(self) -> None:
        if self._reason:
            raise StoreError(self._reason)
