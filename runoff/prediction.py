"""The prediction app: one model version behind HTTP.

    from runoff.prediction import create_app
    app = create_app("model-a")

That is a whole service. What it takes is read from the prototype of the version; what it answers is the
probability of the outcome.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from flask import Blueprint, Flask, Response, g, request
from pydantic_core import to_json
from werkzeug.wsgi import get_input_stream

from runoff import (
    __version__,
    answers,
    batches,
    binary_tensors,
    logs,
    management_api,
    metrics,
    openapi,
    prediction_openapi,
    web,
)
from runoff.dialects import (
    DIALECTS,
    MLFLOW,
    PREDICT,
    V2,
    KServeError,
    ModelMetadata,
    Said,
    asks_for_class,
    model_metadata,
    records_of_csv,
    refuse_kserve,
    spoken,
)
from runoff.front import Front
from runoff.live import Live, Ready
from runoff.management import Management
from runoff.operations import JSON, describe
from runoff.problems import NotFound, Unavailable, wrong_parameter
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
    app = Flask(__name__, static_folder=None)
    live = Live(name, store or Store.open(), os.environ.get("RUNOFF_VERSION"))
    web.equip(app, checks={"model": live.check})
    app.wsgi_app = Front(app.wsgi_app, live)  # type: ignore[method-assign]

    @app.get("/")
    def index() -> answers.Index:
        """Where one stands."""
        return {
            "what": f"prediction service of {name}: POST a record to predict, get a probability",
            "model": name,
            "version": live.current.served.version if live.current else None,
            "try": {"predict": "POST predict", "input": "GET prototype", "about": "GET metadata"},
        }

    def predict(address: str, **named: str) -> Response:
        g.refuse = next(dialect.refuse for dialect in DIALECTS if address in dialect.addresses)
        ready = _asked(live, **named)
        if address in PREDICT and (form := batches.form_of(request.mimetype)):
            return _batch(ready, form)
        body = _body(address, ready.reader)
        dialect = spoken(address, body)
        probabilities, headers = ready.predict(dialect.read(body, ready.reader))
        served = ready.served
        said = Said(probabilities, served.model, served.version, body, _threshold(ready, body))
        response = _response(address, dialect.answer(said), body)
        response.headers.extend(headers)
        return response

    for address in sorted({address for dialect in DIALECTS for address in dialect.addresses}):
        view: Any = partial(predict, address)
        view.operation = prediction_openapi.operation(address, prediction_openapi.columns(live))
        app.add_url_rule(address, address, view, methods=["POST"])

    @app.get("/prototype")
    @describe(Unavailable, tag="model")
    def prototype() -> dict[str, Any]:
        """The JSON Schema of a record, with an example, the allowed values, and those that training saw."""
        return live.now().reader.prototype.to_json()

    @app.get("/metadata")
    @describe(Unavailable, tag="model")
    def metadata() -> answers.Metadata:
        """The version that answers, in vetiver's form: what is ours stands under `user`."""
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
    app.register_blueprint(management_api.blueprint(Management(live.store)))
    app.register_blueprint(openapi.blueprint(prediction_openapi.service(live)))
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


def _batch(ready: Ready, asked: batches.Form) -> Response:
    """Answer a file or a stream of rows, as a stream."""
    answered = batches.accepted(request.accept_mimetypes, asked)
    # Not Flask's: that one ends where a JSON body would be too long.
    body = get_input_stream(request.environ)
    rows = batches.answer(
        body, ready, asked, answered, request_id=g.request_id, threshold=_threshold(ready, None)
    )
    response = Response(rows, mimetype=answered.media_type)
    response.headers.extend(ready.names)
    return response


def _threshold(ready: Ready, body: Any) -> float | None:
    """The threshold of the class, if the request asks for classes: `?class=true`, or a tensor of that name.

    Raises:
        Malformed: `class` is neither true nor false.
    """
    asked = request.args.get("class", "false")
    if asked not in ("true", "false"):
        raise wrong_parameter("class", "enum", "true or false", asked)
    if asked == "true" or asks_for_class(body):
        return float(ready.model.version.record.get("threshold", DEFAULT_THRESHOLD))
    return None


def _as_others_ask(name: str, live: Live) -> Blueprint:
    """What clients of vetiver, MLflow and KServe ask of a service besides predictions."""
    others = Blueprint("others", __name__)
    told = partial(describe, tag="other clients", refusal=KServeError)

    @others.before_request
    def refuse_as_they_expect() -> None:
        g.refuse = refuse_kserve

    @others.get("/ping")
    @told()
    def ping() -> answers.Ping:
        """Whether the service is up, for clients of vetiver and MLflow."""
        return {"ping": "pong"}

    @others.get("/health")
    @told(Unavailable)
    def health() -> answers.Health:
        """Whether there is a version to answer from, for clients of MLflow."""
        live.now()
        return {"status": "ready"}

    @others.get("/version")
    @told(media_type="text/plain", answer=str)
    def runoff_version() -> Response:
        """The version of Runoff, for clients of MLflow."""
        return Response(__version__, mimetype="text/plain")

    @others.get("/v1/models")
    @told()
    def models() -> answers.ModelNames:
        """The models that this service answers for."""
        return {"models": [name]}

    @others.get("/v1/models/<model>")
    @told(NotFound, Unavailable)
    def v1_model(model: str) -> answers.ModelReadiness:
        """Whether a model is ready, for clients of KServe V1."""
        _asked(live, model)
        return {"name": name, "ready": True}

    @others.get("/v2")
    @told()
    def server() -> answers.Server:
        """The server and the extensions of the Open Inference Protocol that it speaks."""
        return {"name": "runoff", "version": __version__, "extensions": [binary_tensors.NAME]}

    @others.get("/v2/health/live")
    @told()
    def is_live() -> answers.ServerLiveness:
        """Whether the server is up."""
        return {"live": True}

    @others.get("/v2/health/ready")
    @told(statuses=(200, Unavailable.status))
    def ready() -> tuple[answers.ServerReadiness, int]:
        """Whether there is a version to answer from."""
        return {"ready": live.current is not None}, 200 if live.current else Unavailable.status

    @others.get("/v2/models/<model>")
    @others.get("/v2/models/<model>/versions/<version>")
    @told(NotFound, Unavailable)
    def v2_model(**named: str) -> ModelMetadata:
        """The tensors that a model takes and gives."""
        ready = _asked(live, **named)
        return model_metadata(named["model"], ready.served.version, ready.reader.prototype.features)

    @others.get("/v2/models/<model>/ready")
    @others.get("/v2/models/<model>/versions/<version>/ready")
    @told(NotFound, Unavailable)
    def v2_ready(**named: str) -> answers.ModelReadiness:
        """Whether a model, or one version of it, can answer."""
        _asked(live, **named)
        return {"name": named["model"], "ready": True}

    return others


def _body(address: str, reader: RecordReader) -> Any:
    """The request's body, decoded; CSV, which MLflow's clients may send, becomes one of its JSON forms."""
    if address in MLFLOW and request.mimetype == batches.CSV:
        features = {feature.name: feature for feature in reader.prototype.features}
        return {"dataframe_records": records_of_csv(web.text_body(), features)}
    if address in MLFLOW and request.mimetype == batches.PARQUET:
        return {"dataframe_records": batches.records_of_parquet(web.whole_body(), reader.prototype)}
    if address in V2 and (header := request.headers.get(binary_tensors.HEADER)) is not None:
        text, data = binary_tensors.split(web.whole_body(), header)
        body = web.from_json(text)
        binary_tensors.fill(body, data)
        return body
    return web.json_body()


def _response(address: str, answer: Any, body: Any) -> Response:
    """An answer as JSON, or with binary tensors after it where the request wants them."""
    if address in V2 and (packed := binary_tensors.pack(answer, body)):
        content, length = packed
        headers = {binary_tensors.HEADER: str(length)}
        return Response(content, headers=headers, mimetype=binary_tensors.MEDIA_TYPE)
    # It ends with the line, as Flask's own answers do, for those who curl.
    return Response(to_json(answer) + b"\n", mimetype=JSON)
