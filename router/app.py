"""The router's REST API.

| address | what it does |
| --- | --- |
| `POST /predict`, and other dialects' | assigns a variant, forwards, records, answers |
| `GET /predictions` | pages through the record, `?since=<cursor>&limit=` or `?last=`, or all as a file |
| `GET /predictions/<id>` | one record, with what other variants said, and what became of it |
| `POST /outcomes` | takes what became of predictions: JSON, NDJSON or CSV |
| `GET /stats` | counts by variant, shares with their always-valid intervals, latency quantiles |
| `GET /livez`, `/readyz`, `/metrics` | health, and counts for Prometheus |
| `GET /openapi.json`, `/docs` | all of this as an OpenAPI document, and a page that shows it |

Those of the ledger are found under `/v1` as well. The others stand in pages of their own:

| page | what is asked there |
| --- | --- |
| `router/experiment_api.py` | the experiment: seen, changed, and who did so |
| `router/verdict_api.py`, `router/planning.py` | which variant stays, and how long it takes to know |
| `router/phases_api.py` | which models answered since when, and what a change would end |
| `router/inspection.py`, `router/drift.py` | what those ask who watch |
| `router/services_api.py` | what the services tell of their models, and releases |
| `router/about.py` | what clients ask of a model besides predictions |

Changes of the experiment and releases are made once for each `Idempotency-Key`: `router/once.py`.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import sqlalchemy as sa
from flask import Blueprint, Flask, Response, current_app, request
from pydantic_core import to_json
from werkzeug.wsgi import get_input_stream

from router import (
    about,
    answers,
    database,
    drift,
    experiment,
    experiment_api,
    exports,
    inspection,
    openapi,
    outcomes,
    phases_api,
    planning,
    privacy,
    query,
    services_api,
    verdict_api,
)
from router.assignment import SHADOW
from router.controllers import Runner, Sums
from router.database import NOT_RECORDED, DatabaseDown
from router.dialects import DIALECTS
from router.experiment import Variant
from router.experiments import Current, Experiments, Following
from router.fold import NOTHING, Counts, Fold, Histogram
from router.front import Front
from router.guarding import Guards
from router.keys import Guard, Key, Keys, Scope, must_have_keys
from router.ledger import Ledger, reported, tagged
from router.once import Once
from router.outcomes import Outcomes, Report
from router.periodic import Periodic
from router.routing import Router
from router.tables import predictions as recorded
from router.verdicts import NOTHING_YET, Verdicts
from runoff import logs, metrics, web
from runoff import openapi as documents
from runoff.operations import JSON, Schema, describe
from runoff.problems import (
    FieldError,
    Invalid,
    NotAcceptable,
    NotFound,
    TooLarge,
    Unavailable,
    UnsupportedMediaType,
    wrong_parameter,
)
from runoff.web import BOUND_TO
from verdict.split import share_interval

MAX_PAGE = 1000
MAX_CURSOR = 2**63 - 1
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
# How often keys are read anew, and what waits on disk is written.
LOOK_SECONDS = 1.0
# How often what was recorded is added up. Who reads the sums adds what is new: this keeps that little, and a
# fold costs much the same however few rows there are.
ADD_SECONDS = 5.0

# What came of the report of one outcome.
STATUSES = {"recorded": 201, "pending": 202, "repeated": 200, "contradicts": 409, "invalid": 422}
REPORT = Report.model_json_schema()
REPORTED = {"id": "019a3c5e8f2b41d7a6c0e95b7d13f842", "outcome": 1}
# By what records may be narrowed.
NARROWED: dict[str, Schema] = {name: {"type": "string"} for name in ("tag", "variant", "version", "unit")} | {
    "from": {"type": "string", "format": "date-time"},
    "to": {"type": "string", "format": "date-time"},
    "outcome": {"type": "string", "description": "known, unknown, or a number"},
}

log = logging.getLogger(__name__)

api = Blueprint("api", __name__)


class Parts:
    """What the router consists of, in one process."""

    def __init__(self) -> None:
        configured = experiment.load()
        self.engine = engine = database.connect()
        database.migrate(engine)
        self.keys = Keys(engine)
        self.guard = Guard(self.keys)
        self.ledger = Ledger(engine)
        self.fold = Fold(engine)
        self.verdicts = Verdicts(engine, self.fold)
        self.outcomes = Outcomes(engine)
        self.experiments = Experiments(engine)
        self.history = phases_api.History(self.experiments, self.fold)
        self.following = Following(self.experiments, configured)
        self.router = Router(self.following, self.ledger, privacy.secret(engine))
        self._looking = Periodic("keys", LOOK_SECONDS, self._look)
        self._adding = Periodic("sums", ADD_SECONDS, self._add)
        self.guards = Guards(self.verdicts)
        self.controllers = Runner(self.experiments, self.following, self._counted, self.guards.gate)

    def begin(self) -> None:
        """Do from now on, in this process, what is done beside the requests."""
        self._looking.begin()
        self._adding.begin()
        self.controllers.begin()

    def _counted(self, current: Current, versions: tuple[int, int], allocation: int) -> dict[str, Sums]:
        document = current.document
        matured = datetime.now(UTC) - document.matures_after
        phase = self.verdicts.in_force(current)
        number = phase.number if phase else NOTHING_YET
        return self.fold.counted(
            *(document.name, versions, allocation, matured, document.moving), phase=number
        )

    def _look(self) -> None:
        # A database that is away is told by whoever needs it.
        for look in (self.guard.refresh, self.ledger.settle):
            with contextlib.suppress(DatabaseDown):
                look()

    def _add(self) -> None:
        with contextlib.suppress(DatabaseDown):
            self.fold.catch_up()

    def check_ledger(self) -> None:
        """Raise DatabaseDown, as a check of readiness, where requests would be refused."""
        if self.following.now().document.on_ledger_down == "refuse":
            self.ledger.check()


def create_app() -> Flask:
    """Make the router, from RUNOFF_EXPERIMENT and RUNOFF_LEDGER or their defaults.

    Raises:
        ExperimentError: the experiment's document cannot be used.
        DatabaseDown: the tables cannot be made.
        NoSecret: the database is on another machine, and there is no RUNOFF_SECRET.
        SystemExit: others than this machine can reach it, and there are no keys.
    """
    logs.configure()
    app = Flask(__name__, static_folder=None)
    parts = Parts()
    _check_keys(parts)
    app.extensions["router"] = parts
    web.equip(app, checks={"ledger": parts.check_ledger, "experiment": parts.following.check})
    app.register_error_handler(DatabaseDown, lambda _: web.answer_problem(Unavailable(NOT_RECORDED)))
    app.before_request(parts.begin)
    for address in sorted({address for dialect in DIALECTS for address in dialect.addresses}):
        ask: Any = partial(_ask, address)
        ask.operation = openapi.prediction(address, parts.router)
        app.add_url_rule(address, f"ask {address}".replace(".", " "), ask, methods=["POST"])
    app.add_url_rule("/metrics", view_func=metrics.exposition)
    changes = experiment_api.blueprint(
        *(parts.experiments, _admit, parts.following.look),
        doubts=parts.guards.doubts,
        judged=parts.controllers.judged,
        foreseen=parts.history.foreseen,
    )
    services = services_api.blueprint(parts.following, parts.router.upstream, _admit)
    once = Once(parts.engine, _admit)
    for each in (changes, services):
        app.register_blueprint(once.watch(each))
    app.register_blueprint(about.blueprint(parts.router, _admit))
    app.register_blueprint(planning.blueprint(parts.following, parts.verdicts, _admit))
    app.register_blueprint(verdict_api.blueprint(parts.following, parts.verdicts, parts.fold.tags, _admit))
    app.register_blueprint(phases_api.blueprint(parts.following, parts.history, _admit))
    app.register_blueprint(documents.blueprint(openapi.service(parts.router)))
    app.register_blueprint(inspection.blueprint(parts.following, parts.fold, parts.guard, _admit))
    app.register_blueprint(drift.blueprint(parts.router, parts.ledger, parts.fold, _admit))
    app.register_blueprint(api)
    app.register_blueprint(api, url_prefix="/v1", name="v1")
    # A worker knows the experiment from the start, also where the database is away when it is asked first.
    parts.following.look()
    # Workers are forked from this process: none may inherit a connection.
    parts.engine.dispose()
    app.wsgi_app = Front(app.wsgi_app, parts.router, parts.guard, parts.begin)  # type: ignore[method-assign]
    return app


def _check_keys(parts: Parts) -> None:
    """See that nobody else can reach a router that everybody may do everything at."""
    host = os.environ.get(BOUND_TO, "127.0.0.1")
    parts.guard.refresh()
    if parts.guard.is_open:
        if must_have_keys(host):
            sys.exit(
                f"others can reach {host}, and there are no keys: add one by 'runoff keys add NAME --scope"
                " operator', or listen at 127.0.0.1"
            )
        log.warning("there are no keys: whoever reaches this router may do everything")


def _ask(_address: str, **_named: str) -> Response:
    """Predict: one of the variants answers, and it is recorded."""
    # Flask has these addresses for the methods that they take, and for the document.
    raise AssertionError("the front answers requests for predictions")


@api.get("/")
@describe(Unavailable)
def index() -> answers.Index:
    """Where to begin."""
    current = _parts().following.now()
    return {
        "what": "router: POST a record to predict, one of the variants answers, and it is recorded",
        "experiment": current.document.name,
        "variants": current.weights,
        "try": {"predict": "POST predict", "record": "GET predictions", "counts": "GET stats"},
    }


@api.get("/predictions")
@describe(
    *(*openapi.CALLERS, NotAcceptable, Unavailable),
    tag="ledger",
    answer=answers.Page,
    more={form: {"schema": {}} for form in exports.FORMS},
    query=NARROWED
    | {
        "since": {"type": "integer", "minimum": 0, "default": 0, "description": "a cursor"},
        "limit": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 100},
        "last": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE},
    },
)
def predictions() -> dict[str, Any] | Response:
    """Page through the record, or with another `Accept` than JSON's get all of it as a file.

    In a file each row has what other variants said of it, too: `side_answers`.

    It is narrowed by `tag`, `variant`, `version`, `unit`, `from` and `to` (times), and by `outcome`, which is
    known, unknown, or a number.
    """
    _admit("read")
    ledger = _parts().ledger
    where = _narrowed()
    since = query.whole("since", 0, MAX_CURSOR, default=0)
    wanted = request.accept_mimetypes.best_match([JSON, *exports.FORMS], JSON)
    if wanted != JSON:
        # With the phases of all rows that are there.
        _parts().fold.catch_up()
        return Response(exports.FORMS[wanted](ledger.pages(since, *where)), mimetype=wanted)
    if last := query.whole("last", 1, MAX_PAGE, default=0):
        found, more = ledger.last(last, *where), False
    else:
        limit = query.whole("limit", 1, MAX_PAGE, default=100)
        found = ledger.page(since, limit + 1, *where)
        found, more = found[:limit], len(found) > limit
    return {"predictions": found, "next": found[-1]["cursor"] if found else since, "more": more}


def _narrowed() -> list[sa.ColumnElement[bool]]:
    """What the query asks of records; raises Malformed."""
    given = request.args
    where = [tagged(query.tag())]
    for name in ("variant", "version"):
        if name in given:
            where.append(recorded.c[name] == given[name])
    if "unit" in given:
        where.append(recorded.c.unit == _parts().router.hashed(given["unit"]))
    if since := query.time("from"):
        where.append(recorded.c.time >= database.stamp(since))
    if until := query.time("to"):
        where.append(recorded.c.time < database.stamp(until))
    if "outcome" in given:
        try:
            where.append(reported(given["outcome"]))
        except ValueError:
            raise wrong_parameter(
                "outcome", "anyOf", "known, unknown or a number", given["outcome"]
            ) from None
    return where


@api.get("/predictions/<path:id_>")
@describe(*openapi.CALLERS, NotFound, Unavailable, tag="ledger", answer=answers.WholePrediction)
def prediction(id_: str) -> dict[str, Any]:
    """One record, with what other variants said of it, and what became of it."""
    _admit("read")
    parts = _parts()
    found = parts.ledger.find(id_)
    if found is None:
        raise NotFound(f"there is no prediction {id_[:150]}")
    return found | {"outcomes": parts.outcomes.of(id_)}


@api.post("/outcomes")
@describe(
    *(*openapi.CALLERS, TooLarge, UnsupportedMediaType, Invalid, Unavailable),
    tag="ledger",
    answer=answers.ToldOfOutcomes,
    statuses=(*sorted({200, *STATUSES.values()}),),
    more={"application/x-ndjson": {"schema": {"type": "string"}}},
    request=lambda: {
        JSON: {
            "schema": {"anyOf": [REPORT, {"type": "array", "items": REPORT}]},
            "examples": {"one": {"value": REPORTED}, "many": {"value": [REPORTED]}},
        },
        **{form: {"schema": {"type": "string"}} for form in ("application/x-ndjson", "text/csv")},
    },
)
def report() -> Response | tuple[dict[str, Any], int]:
    """Take outcomes: one, a list, or a stream of them as NDJSON or CSV; each is told what came of it."""
    _admit("outcome")
    takes = _parts().outcomes
    media_type = request.mimetype
    if media_type in ("application/x-ndjson", "application/jsonl", "text/csv"):
        # Not Flask's: that one ends where a JSON body would be too long.
        lines = outcomes.text_lines(get_input_stream(request.environ))
        reports = outcomes.of_csv(lines) if media_type == "text/csv" else outcomes.of_ndjson(lines)
        return Response(_told(takes, reports), mimetype="application/x-ndjson")
    body = web.json_body()
    if not isinstance(body, dict | list):
        detail = "the body takes a report or a list of reports"
        raise Invalid(detail, errors=[FieldError("", "type", detail, body)])
    one = isinstance(body, dict)
    told = [each for piece in takes.append([body] if one else body) for each in piece]
    answer: dict[str, Any] = {"outcomes": [each.to_json() for each in told]}
    # Of one alone the status says what came of it.
    return answer, STATUSES[told[0].status] if one else 200


def _told(takes: Outcomes, reports: Iterable[Any]) -> Iterator[bytes]:
    """What came of each report, a line of JSON for each, as soon as its piece is on disk."""
    try:
        for piece in takes.append(reports):
            yield b"".join(to_json(each.to_json()) + b"\n" for each in piece)
    # Of a stream the head is out already when something goes wrong.
    except DatabaseDown:
        yield to_json({"id": None, "status": "failed", "detail": NOT_RECORDED}) + b"\n"
    except (ValueError, csv.Error) as error:
        yield to_json({"id": None, "status": "invalid", "detail": str(error)}) + b"\n"


@api.get("/stats")
@describe(
    *(*openapi.CALLERS, Unavailable),
    tag="ledger",
    answer=answers.Stats,
    query={"tag": {"type": "string"}, "from": {"type": "string", "format": "date-time"}},
)
def stats() -> tuple[dict[str, Any], dict[str, str]]:
    """Counts by variant, shares with intervals that hold at any moment, quantiles of latency.

    With `from` they are of the whole hours from that time's on.
    """
    _admit("read")
    parts = _parts()
    tag, since = query.tag(), query.hour("from")
    current = parts.following.now()
    cursor = parts.fold.catch_up()
    name = current.document.name
    counts = parts.fold.counts(name, tag, since)
    latency = parts.fold.latency(name, tag, since)
    shadows = parts.fold.counts(name, tag, since, SHADOW)
    shadow_latency = parts.fold.latency(name, tag, since, SHADOW)
    standings = parts.fold.standings(name)
    labelled = parts.fold.labelled(name, tag, since)
    answer: dict[str, Any] = {
        "as_of": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "experiment": name,
        "version": current.version,
        "allocation": current.place.number,
        "mode": current.document.mode,
        "paused": current.paused,
        "held": current.held,
        "since": f"{since}:00:00Z" if since else None,
        "requests": sum(each.requests for each in counts.values()),
        "cursor": cursor,
        "variants": [
            _stands(variant, current, counts, latency.get(variant.name), standings.get(variant.name))
            | {
                "labelled": labelled.get(variant.name, 0),
                "shadow": _unseen(variant, shadows, shadow_latency.get(variant.name)),
            }
            for variant in current.document.variants
        ],
        "tags": parts.fold.tags(name),
    }
    for each in answer["variants"]:
        each["failing_request"] = parts.ledger.newest_failure(each["name"]) if each["failing"] else None
    return answer, {"Cache-Control": "no-cache"}


def _unseen(
    variant: Variant, shadows: dict[tuple[int, int, str], Counts], latency: Histogram | None
) -> dict[str, Any] | None:
    """What a variant answered in the shadow of another, as `/stats` tells it; None where it did not."""
    mine = sum((each for key, each in shadows.items() if key[2] == variant.name), NOTHING)
    return _came_of(mine, latency) if mine.requests else None


def _came_of(counts: Counts, latency: Histogram | None) -> dict[str, Any]:
    return {
        "requests": counts.requests,
        "answered": counts.answered,
        "refused": counts.refused,
        "failed": counts.failed,
        "mean_prediction": counts.mean_prediction,
        "latency_ms": (
            {name: latency.quantile(share) for name, share in QUANTILES.items()} if latency else None
        ),
    }


def _stands(
    variant: Variant,
    current: Current,
    counts: dict[tuple[int, int, str], Counts],
    latency: Histogram | None,
    standing: Any,
) -> dict[str, Any]:
    """What the ledger says of a variant, as `/stats` tells it.

    Its share, and whether that is as configured, can be told of what chance assigned by the weights in force
    alone: units and batches count once, as to the verdict.
    """
    mine = sum((each for key, each in counts.items() if key[2] == variant.name), NOTHING)
    period = {key[2]: each.assigned for key, each in counts.items() if key[:2] == tuple(current.place)}
    k, n = period.get(variant.name, 0), sum(period.values())
    # What its service failed at before it was another one says nothing of this one.
    asked = any(key[2] == variant.name and key[0] in current.versions for key in counts)
    configured = current.weights[variant.name]
    lower, upper = share_interval(k, n, configured)
    return {
        "name": variant.name,
        "role": variant.role,
        "url": variant.url,
        "weight": variant.weight,
        "configured_share": configured,
        "model": standing["model"] if standing else None,
        "version": standing["version"] if standing else None,
        "share": k / n if n else None,
        "share_interval": [float(lower), float(upper)] if n else None,
        "share_of": n,
        "failing": standing["problem"] if standing and asked else None,
        **_came_of(mine, latency),
    }


def _parts() -> Parts:
    parts: Parts = current_app.extensions["router"]
    return parts


def _admit(scope: Scope) -> Key:
    """The key of a caller who may do this; raises Unauthorized, Forbidden, TooManyRequests."""
    return _parts().guard.admit(request.headers.get("Authorization"), scope)


app = create_app()
