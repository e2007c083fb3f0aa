"""The prediction app: one model version behind HTTP.

    from runoff.prediction import create_app
    app = create_app("model-a")

That is a whole service. What it takes is read from the prototype of the version; what it answers is the
probability of the outcome.
"""

from __future__ import annotations

import os
from functools import partial
from importlib.metadata import version
from typing import Any

from flask import Blueprint, Flask, Response, g, jsonify, request

from runoff import logs, metrics, web
from runoff.dialects import (
    DIALECTS,
    Said,
    asks_for_class,
    model_metadata,
    records_of_csv,
    refuse_kserve,
    spoken,
)
from runoff.front import Front
from runoff.live import Live, Ready
from runoff.problems import Malformed, NotFound, Unavailable
from runoff.records import RecordReader
from runoff.store import Store

DEFAULT_THRESHOLD = 0.5


def create_app(name: str, *, store: Store | None = None) -> Flask:
    """Make the service of a model.

    It answers from the version that was released to it last, or until there is a release from the newest in
    the store. RUNOFF_VERSION holds it to one version. Where none can be loaded the app starts all the same:
    `/readyz` is red and says why, predictions are refused with 503.

    Args:
        name: of the service, which is the model's in the store.
        store: where its versions are, by default `Store.open()`.
    """
    logs.configure()
    app = Flask(__name__)
    live = Live(name, store or Store.open(), os.environ.get("RUNOFF_VERSION"))
    web.equip(app, checks={"model": live.check})
    app.wsgi_app = Front(app.wsgi_app, live)  # type: ignore[method-assign]

    @app.get("/")
    def index() -> dict[str, Any]:
        return {
            "what": f"prediction service of {name}: POST a record to predict, get a probability",
            "model": name,
            "version": live.current.served.version if live.current else None,
            "try": {"predict": "POST predict", "input": "GET prototype", "about": "GET metadata"},
        }

    def predict(address: str, **named: str) -> Response:
        g.refuse = next(dialect.refuse for dialect in DIALECTS if address in dialect.addresses)
        ready = _asked(live, **named)
        body = _body(ready.reader)
        dialect = spoken(address, body)
        probabilities, headers = ready.predict(dialect.read(body, ready.reader))
        served = ready.served
        said = Said(probabilities, served.model, served.version, body, _threshold(ready, body))
        response = jsonify(dialect.answer(said))
        response.headers.extend(headers)
        return response

    for address in sorted({address for dialect in DIALECTS for address in dialect.addresses}):
        app.add_url_rule(address, address, partial(predict, address), methods=["POST"])

    @app.get("/prototype")
    def prototype() -> dict[str, Any]:
        return live.now().reader.prototype.to_json()

    @app.get("/metadata")
    def metadata() -> dict[str, Any]:
        """Answer in vetiver's form; what is ours stands under `user`, where vetiver keeps a user's own."""
        model = live.now().model
        version = model.version
        return {
            "user": {
                "model": version.name,
                "digest": model.digest,
                "created": version.created.isoformat().replace("+00:00", "Z"),
                "evaluator": {"name": model.evaluator.name, "reason": model.reason},
                "release": live.state(),
                "record": dict(version.record),
            },
            "version": version.id,
            "url": None,
            "required_pkgs": list(version.required_packages),
            "python_version": list(version.python_version),
        }

    app.add_url_rule("/metrics", view_func=metrics.exposition)
    app.register_blueprint(_as_others_ask(name, live))
    return app


def _asked(live: Live, model: str | None = None, version: str | None = None) -> Ready:
    """What a request is to be answered from: the live version, unless it names another.

    Raises:
        NotFound: it names a model that is not this service's, or a version that is not stored.
        Unavailable: there is nothing to answer from.
    """
    if version is not None:
        return live.version(model or live.name, version)
    if model not in (None, live.name):
        raise NotFound(f"this service has the model {live.name}, not {model}")
    return live.now()


def _threshold(ready: Ready, body: Any) -> float | None:
    """The threshold of the class, if the request asks for classes: `?class=true`, or a tensor of that name.

    Raises:
        Malformed: `class` is neither true nor false.
    """
    asked = request.args.get("class", "false")
    if asked not in ("true", "false"):
        raise Malformed(f"class takes true or false, not {asked[:40]!r}")
    if asked == "true" or asks_for_class(body):
        return float(ready.model.version.record.get("threshold", DEFAULT_THRESHOLD))
    return None


def _as_others_ask(name: str, live: Live) -> Blueprint:
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
        live.now()
        return {"status": "ready"}

    @others.get("/version")
    def runoff_version() -> Response:
        return Response(version("runoff"), mimetype="text/plain")

    @others.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"models": [name]}

    @others.get("/v1/models/<model>")
    def v1_model(model: str) -> dict[str, Any]:
        _asked(live, model)
        return {"name": name, "ready": True}

    @others.get("/v2")
    def server() -> dict[str, Any]:
        return {"name": "runoff", "version": version("runoff"), "extensions": []}

    @others.get("/v2/health/live")
    def is_live() -> dict[str, bool]:
        return {"live": True}

    @others.get("/v2/health/ready")
    def ready() -> tuple[dict[str, bool], int]:
        return {"ready": live.current is not None}, 200 if live.current else Unavailable.status

    @others.get("/v2/models/<model>")
    @others.get("/v2/models/<model>/versions/<version>")
    def v2_model(**named: str) -> dict[str, Any]:
        ready = _asked(live, **named)
        return model_metadata(named["model"], ready.served.version, ready.reader.prototype.features)

    @others.get("/v2/models/<model>/ready")
    @others.get("/v2/models/<model>/versions/<version>/ready")
    def v2_ready(**named: str) -> dict[str, Any]:
        _asked(live, **named)
        return {"name": named["model"], "ready": True}

    return others


def _body(reader: RecordReader) -> Any:
    """The request's body; CSV, which MLflow's clients may send, becomes one of its JSON forms."""
    if request.mimetype != "text/csv" or request.path != "/invocations":
        return web.json_body()
    features = {feature.name: feature for feature in reader.prototype.features}
    return {"dataframe_records": records_of_csv(web.text_body(), features)}
