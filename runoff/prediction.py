"""The prediction app: one model version behind HTTP.

    from runoff.prediction import create_app
    app = create_app("model-a")

That is a whole service. What it takes is read from the prototype of the version; what it answers is the
probability of the outcome.
"""

from __future__ import annotations

import logging
import os
from functools import partial
from importlib.metadata import version
from typing import Any

from flask import Blueprint, Flask, Response, g, jsonify, request

from runoff import web
from runoff.dialects import DIALECTS, Said, model_metadata, records_of_csv, refuse_kserve, spoken
from runoff.problems import NotFound, Unavailable
from runoff.records import RecordReader
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

    def predict(address: str, **named: str) -> Response:
        g.refuse = next(dialect.refuse for dialect in DIALECTS if address in dialect.addresses)
        model, reader = served.loaded(**named)
        body = _body(reader)
        dialect = spoken(address, body)
        probabilities = model.probabilities(dialect.read(body, reader)).tolist()
        response = jsonify(dialect.answer(Said(probabilities, name, model.version.id, body)))
        response.headers["X-Model-Name"] = name
        response.headers["X-Model-Version"] = model.version.id
        response.headers["X-Model-Digest"] = model.digest
        response.headers["Cache-Control"] = "no-store"
        return response

    for address in sorted({address for dialect in DIALECTS for address in dialect.addresses}):
        app.add_url_rule(address, address, partial(predict, address), methods=["POST"])

    @app.get("/prototype")
    def prototype() -> dict[str, Any]:
        return served.loaded()[1].prototype.to_json()

    @app.get("/metadata")
    def metadata() -> dict[str, Any]:
        """Answer in vetiver's form; what is ours stands under `user`, where vetiver keeps a user's own."""
        model, _ = served.loaded()
        version = model.version
        return {
            "user": {
                "model": name,
                "digest": model.digest,
                "created": version.created.isoformat().replace("+00:00", "Z"),
                "record": dict(version.record),
            },
            "version": version.id,
            "url": None,
            "required_pkgs": list(version.required_packages),
            "python_version": list(version.python_version),
        }

    app.register_blueprint(_as_others_ask(name, served))
    return app


def _as_others_ask(name: str, served: _Served) -> Blueprint:
    """What clients of vetiver, MLflow and KServe ask of a service besides predictions."""
    others = Blueprint("others", __name__)

    @others.before_request
    def refuse_as_they_expect() -> None:
        g.refuse = refuse_kserve

    @others.get("/ping")
    def ping() -> dict[str, str]:
        return {"ping": "pong"}

    @others.get("/health")
    def health() -> dict[str, str]:
        served.loaded()
        return {"status": "ready"}

    @others.get("/version")
    def runoff_version() -> Response:
        return Response(version("runoff"), mimetype="text/plain")

    @others.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"models": [name]}

    @others.get("/v1/models/<model>")
    def v1_model(model: str) -> dict[str, Any]:
        served.loaded(model)
        return {"name": name, "ready": True}

    @others.get("/v2")
    def server() -> dict[str, Any]:
        return {"name": "runoff", "version": version("runoff"), "extensions": []}

    @others.get("/v2/health/live")
    def live() -> dict[str, bool]:
        return {"live": True}

    @others.get("/v2/health/ready")
    def ready() -> tuple[dict[str, bool], int]:
        return {"ready": served.model is not None}, 200 if served.model else Unavailable.status

    @others.get("/v2/models/<model>")
    @others.get("/v2/models/<model>/versions/<version>")
    def v2_model(**named: str) -> dict[str, Any]:
        model, reader = served.loaded(**named)
        return model_metadata(name, model.version.id, reader.prototype.features)

    @others.get("/v2/models/<model>/ready")
    @others.get("/v2/models/<model>/versions/<version>/ready")
    def v2_ready(**named: str) -> dict[str, Any]:
        served.loaded(**named)
        return {"name": name, "ready": True}

    return others


def _body(reader: RecordReader) -> Any:
    """The request's body; CSV, which MLflow's clients may send, becomes one of its JSON forms."""
    if request.mimetype != "text/csv" or request.path != "/invocations":
        return web.json_body()
    features = {feature.name: feature for feature in reader.prototype.features}
    return {"dataframe_records": records_of_csv(web.text_body(), features)}


class _Served:
    """The version that a service has in memory, or the reason for which it has none."""

    def __init__(self, name: str, store: Store, version_id: str | None) -> None:
        self._name = name
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

    def loaded(
        self, model: str | None = None, version: str | None = None
    ) -> tuple[LoadedModel, RecordReader]:
        """The model and its reader, where a request names them: only if it names those that are served.

        Raises:
            NotFound: it names others.
            Unavailable: nothing is served.
        """
        if model not in (None, self._name):
            raise NotFound(f"this service has the model {self._name}, not {model}")
        if self.model is None or self._reader is None:
            raise Unavailable(self._reason, headers={"Retry-After": "10"})
        if version not in (None, self.model.version.id):
            raise NotFound(f"this service has version {self.model.version.id} loaded, not {version}")
        return self.model, self._reader

    def check(self) -> None:
        if self._reason:
            raise StoreError(self._reason)
