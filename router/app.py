"""The router's REST API.

| address | what it does |
| --- | --- |
| `POST /predict` | assigns a variant, forwards the request, records it, answers what the model answered |
| `GET /predictions` | pages through the record: `?since=<cursor>&limit=`, or the newest with `?last=` |
| `GET /stats` | counts by variant, shares with their always-valid intervals, latency quantiles |
| `GET /livez`, `/readyz` | health |

Each is found under `/v1` as well.
"""

from __future__ import annotations

import random
import re
import time
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Flask, Response, current_app, g, request

from router import experiment as experiments
from router.experiment import Experiment
from router.ledger import NOTHING, Counts, DuplicateRequest, Ledger, LedgerDown, Record
from router.upstream import Answer, Upstream, UpstreamProblem
from runoff import web
from runoff.problems import Conflict, FieldError, Invalid, Malformed, Unavailable
from verdict.split import share_interval

TAG = re.compile(r"[a-z0-9-]{1,40}")
MAX_PAGE = 1000
MAX_CURSOR = 2**63 - 1
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

api = Blueprint("api", __name__)


def create_app() -> Flask:
    """Make the router, from RUNOFF_EXPERIMENT and RUNOFF_LEDGER or their defaults.

    Raises:
        ExperimentError: the experiment's document cannot be used.
    """
    app = Flask(__name__)
    experiment = experiments.load()
    ledger = Ledger()
    app.extensions["router"] = Router(experiment, Upstream(experiment.timeout_seconds), ledger)
    web.equip(app, checks={"ledger": ledger.check})
    app.register_error_handler(LedgerDown, _answer_ledger_down)
    app.register_blueprint(api)
    app.register_blueprint(api, url_prefix="/v1", name="v1")
    return app


class Router:
    """Assigns, forwards, records."""

    def __init__(self, experiment: Experiment, upstream: Upstream, ledger: Ledger) -> None:
        self.experiment = experiment
        self.ledger = ledger
        self._upstream = upstream
        self._rng = random.SystemRandom()

    def route(self, body: bytes, rows: list[Any], batch: bool, tag: str | None) -> Response:
        """Route one request. Whatever came of it is on record before this returns.

        Args:
            body: the request's body, as it came.
            rows: the records in it, at least one.
            batch: whether it came as a list.
            tag: what kind of traffic this is; None for real traffic.
        """
        variant = self.experiment.assign(self._rng)
        headers = {"X-Request-ID": g.request_id}
        if traceparent := request.headers.get("traceparent"):
            headers["traceparent"] = traceparent
        time_asked = datetime.now(UTC)
        began = time.perf_counter()
        answer: Answer | None = None
        reason: str | None
        try:
            answer = self._upstream.ask(variant, body, rows=len(rows), headers=headers)
        except UpstreamProblem as problem:
            status = problem.status
            reason = problem.detail
            response = web.answer_problem(problem)
        else:
            status = answer.status
            reason = None if answer.predictions else f"the model answered {status}"
            response = Response(answer.body, status, answer.headers)
        model_ms = 1000 * (time.perf_counter() - began)
        refused = 400 <= status < 500  # noqa: PLR2004
        self.ledger.append(
            [
                Record(
                    id=f"{g.request_id}/{row}" if batch else g.request_id,
                    request_id=g.request_id,
                    row=row,
                    time=time_asked,
                    experiment=self.experiment.name,
                    variant=variant.name,
                    model=answer.model if answer else None,
                    version=answer.version if answer else None,
                    # What a model refused is not known to be a record at all.
                    features=None if refused else features,
                    prediction=answer.predictions[row] if answer and answer.predictions else None,
                    latency_ms=round(model_ms, 3),
                    status=status,
                    problem=reason,
                    tag=tag,
                )
                # A batch is refused as a whole, and so is one entry.
                for row, features in enumerate(rows[:1] if refused else rows)
            ]
        )
        response.headers["X-Variant"] = variant.name
        response.headers["X-Experiment"] = self.experiment.name
        response.headers["Cache-Control"] = "no-store"
        total_ms = 1000 * (time.perf_counter() - began)
        response.headers["Server-Timing"] = f"router;dur={total_ms - model_ms:.2f}, model;dur={model_ms:.2f}"
        return response


@api.get("/")
def index() -> dict[str, Any]:
    router = _router()
    return {
        "what": "router: POST a record to predict, one of the variants answers, and it is recorded",
        "experiment": router.experiment.name,
        "variants": router.experiment.shares,
        "try": {"predict": "POST predict", "record": "GET predictions", "counts": "GET stats"},
    }


@api.post("/predict")
def predict() -> Response:
    body = web.json_body()
    tag = _tag(request.headers.get("X-Traffic-Tag"), "the header X-Traffic-Tag")
    batch = isinstance(body, list)
    rows = body if batch else [body]
    if isinstance(body, dict) and body.keys() == {"records"} and isinstance(body["records"], list):
        batch, rows = True, body["records"]
    if not isinstance(body, dict | list) or not rows:
        detail = 'the body is neither a record {"column": value, …} nor a list of one or more records'
        raise Invalid(detail, errors=[FieldError("", "type", detail, body)])
    try:
        return _router().route(request.get_data(), rows, batch, tag)
    except DuplicateRequest:
        raise Conflict(
            f"request id {g.request_id} is on record already; each request needs one of its own"
        ) from None


@api.get("/predictions")
def predictions() -> dict[str, Any]:
    ledger = _router().ledger
    tag = _tag(request.args.get("tag"), "tag")
    since = _whole("since", 0, MAX_CURSOR, default=0)
    if "last" in request.args:
        found, more = ledger.last(_whole("last", 1, MAX_PAGE), tag), False
    else:
        limit = _whole("limit", 1, MAX_PAGE, default=100)
        found = ledger.page(since, limit + 1, tag)
        found, more = found[:limit], len(found) > limit
    return {"predictions": found, "next": found[-1]["cursor"] if found else since, "more": more}


@api.get("/stats")
def stats() -> tuple[dict[str, Any], dict[str, str]]:
    router = _router()
    tag = _tag(request.args.get("tag"), "tag")
    cursor = router.ledger.newest()
    counts = router.ledger.counts(cursor, tag)
    requests = sum(each.requests for each in counts.values())
    shares = router.experiment.shares
    answer = {
        "as_of": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "experiment": router.experiment.name,
        "requests": requests,
        "cursor": cursor,
        "variants": [
            {
                "name": variant.name,
                "role": variant.role,
                "url": variant.url,
                "weight": variant.weight,
                "configured_share": shares[variant.name],
                **_observed(router.ledger, variant.name, counts, shares[variant.name], tag),
            }
            for variant in router.experiment.variants
        ],
        "tags": router.ledger.tags(),
    }
    return answer, {"Cache-Control": "no-cache"}


def _observed(
    ledger: Ledger, variant: str, counts: dict[str, Counts], configured: float, tag: str | None
) -> dict[str, Any]:
    """What the ledger says of a variant, as `/stats` tells it."""
    total = sum(each.requests for each in counts.values())
    mine = counts.get(variant, NOTHING)
    lower, upper = share_interval(mine.requests, total, configured)
    model, version = ledger.served_by(variant)
    latency = {name: ledger.latency(variant, share, tag) for name, share in QUANTILES.items()}
    return {
        "model": model,
        "version": version,
        "requests": mine.requests,
        "share": mine.requests / total if total else None,
        "share_interval": [float(lower), float(upper)] if total else None,
        "answered": mine.answered,
        "refused": mine.refused,
        "failed": mine.failed,
        "failing": ledger.failing(variant),
        "mean_prediction": mine.mean_prediction,
        "latency_ms": latency if mine.answered else None,
    }


def _router() -> Router:
    router: Router = current_app.extensions["router"]
    return router


def _tag(value: str | None, where: str) -> str | None:
    if value is not None and not TAG.fullmatch(value):
        raise Malformed(f"{where} takes 1 to 40 lower-case letters, digits and dashes, not {value[:40]!r}")
    return value


def _whole(name: str, least: int, most: int, default: int = 0) -> int:
    """A whole number from the query string.

    Raises:
        Malformed: it is none, or not from least to most.
    """
    text = request.args.get(name, str(default))
    if (
        not text.isascii()
        or not text.isdigit()
        or len(text) > len(str(most))
        or not least <= int(text) <= most
    ):
        raise Malformed(f"{name} takes a whole number from {least} to {most}, not {text[:40]!r}")
    return int(text)


def _answer_ledger_down(_error: LedgerDown) -> Response:
    return web.answer_problem(
        Unavailable("the ledger cannot be reached, and nothing is answered that is not on record")
    )


app = create_app()
