"""Drift and calibration: what a variant is asked now, beside what its model was trained on.

`GET /v1/drift?variant=B` counts the newest rows of a variant in the bins that travel with its version, and
those whose outcome is known in bins of probability. It reads at most MAX_ROWS rows of the newest MAX_DEPTH,
whatever the ledger holds, and answers counts alone: what they mean is for whoever asks to say.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from flask import Blueprint, request
from typing_extensions import TypedDict

from router import query
from router.database import stamp
from router.experiment import Variant
from router.fold import Fold
from router.keys import Scope
from router.ledger import Ledger, tagged
from router.openapi import CALLERS, SERVICES
from router.routing import Router, limits_of
from router.tables import outcomes, predictions
from runoff import web
from runoff.operations import describe
from runoff.problems import NotFound, wrong_parameter

MAX_ROWS = 5000
USUAL_ROWS = 2000
# How far back the newest rows of a variant are looked for.
MAX_DEPTH = 50_000
CALIBRATION_BINS = 10
OK = 200


class Compared(TypedDict):
    """Counts of training and of now, by `values` or between `edges`, and how many were missing.

    What is now in none of the bins is `other`.
    """

    values: list[Any] | None
    edges: list[float] | None
    reference: list[int]
    live: list[int]
    missing: list[int]
    other: int


class CalibrationBin(TypedDict):
    """The answers from `lower` up to `upper` whose outcome is known: how many, Σp, how many came true."""

    lower: float
    upper: float
    count: int
    sum_p: float
    positives: int


class Drift(TypedDict):
    """What a variant was asked in the newest `rows` rows, beside `reference_rows` of training.

    Of the rows `distinct` are different records: who is asked about again tells nothing new of a spread.
    `tags` says how many are of which kind of traffic, "real" where they have no tag.
    """

    variant: str
    model: str
    version: str
    rows: int
    distinct: int
    tags: dict[str, int]
    reference_rows: int
    since: str | None
    until: str | None
    features: dict[str, Compared]
    prediction: Compared
    labelled: int
    calibration: list[CalibrationBin]


def blueprint(router: Router, ledger: Ledger, fold: Fold, admit: Callable[[Scope], object]) -> Blueprint:
    """The address above.

    Args:
        router: knows the services.
        ledger: has the rows.
        fold: knows which version answers for a variant.
        admit: raises where the caller's key does not open a scope.
    """
    api = Blueprint("drift", __name__)
    # What a version was trained on does not change.
    references: dict[tuple[str, str], dict[str, Any]] = {}

    @api.get("/v1/drift")
    @describe(
        *(*CALLERS, *SERVICES, NotFound),
        tag="experiment",
        query={
            "variant": {"type": "string"},
            "rows": {"type": "integer", "minimum": 1, "maximum": MAX_ROWS, "default": USUAL_ROWS},
            "tag": {"type": "string"},
            "from": {"type": "string", "format": "date-time"},
        },
        required=("variant",),
    )
    def drift() -> Drift:
        """Counts of what a variant is asked now and of what its model was trained on, in the same bins."""
        admit("read")
        variant = _variant()
        rows = query.whole("rows", 1, MAX_ROWS, default=USUAL_ROWS)
        since, tag = query.time("from"), query.tag()
        standing = fold.standings(router.following.now().document.name).get(variant.name)
        if standing is None or not standing["version"]:
            raise NotFound(f"variant {variant.name} has not answered yet, so nobody knows its version")
        reference = _reference(variant, standing["model"], standing["version"])
        where = (
            predictions.c.variant == variant.name,
            predictions.c.time >= (stamp(since) if since else ""),
            tagged(tag),
        )
        newest = ledger.newest()
        columns = [predictions.c[name] for name in ("time", "features", "prediction", "tag")]
        asked = sa.select(*columns).where(
            predictions.c.cursor > newest - MAX_DEPTH, predictions.c.prediction.is_not(None), *where
        )
        found = ledger.read(asked.order_by(predictions.c.cursor.desc()).limit(rows))
        told = ledger.read(_labelled(rows, where))
        features = [_features(row.features) for row in found]
        return {
            "variant": variant.name,
            "model": standing["model"],
            "version": standing["version"],
            "rows": len(found),
            "distinct": len({row.features for row in found}),
            "tags": dict(Counter(row.tag or "real" for row in found)),
            "reference_rows": reference["rows"],
            "since": found[-1].time if found else None,
            "until": found[0].time if found else None,
            "features": {
                name: compared(spread, [row.get(name) for row in features])
                for name, spread in reference["features"].items()
            },
            "prediction": compared(reference["prediction"], [row.prediction for row in found]),
            "labelled": len(told),
            "calibration": calibration((row.prediction, row.outcome) for row in told),
        }

    def _variant() -> Variant:
        name = request.args.get("variant")
        if not name:
            raise wrong_parameter("variant", "required", "the name of a variant", name)
        try:
            return router.following.now().document.variant(name)
        except KeyError:
            raise NotFound(f"the experiment has no variant named {name[:40]}") from None

    def _reference(variant: Variant, model: str, version: str) -> dict[str, Any]:
        if found := references.get((model, version)):
            return found
        address = f"/v1/models/{quote(model, safe='')}/versions/{quote(version, safe='')}/reference"
        limits = limits_of(router.following.now().document)
        answer = router.upstream(variant).ask(address, b"", {}, limits, method="GET")
        if answer.status != OK:
            raise NotFound(f"the service of variant {variant.name} tells no spread of what it was trained on")
        references[model, version] = told = web.from_json(answer.body)
        return told  # type: ignore[no-any-return]

    return api


def _labelled(rows: int, where: Iterable[sa.ColumnElement[bool]]) -> sa.Select[Any]:
    """The newest rows of which an outcome is known, each with what was reported last."""
    newest = sa.select(sa.func.max(outcomes.c.cursor)).scalar_subquery()
    last = (
        sa.select(sa.func.max(outcomes.c.cursor).label("cursor"))
        .where(outcomes.c.cursor > newest - MAX_DEPTH)
        .group_by(outcomes.c.prediction_id)
        .subquery()
    )
    return (
        sa.select(predictions.c.prediction, outcomes.c.outcome)
        .join(outcomes, outcomes.c.prediction_id == predictions.c.id)
        .join(last, last.c.cursor == outcomes.c.cursor)
        .where(predictions.c.prediction.is_not(None), *where)
        .order_by(outcomes.c.cursor.desc())
        .limit(rows)
    )


def _features(kept: str | None) -> dict[str, Any]:
    """A record by its columns; none where it came in another form."""
    told = json.loads(kept) if kept else None
    return told if isinstance(told, dict) else {}


def compared(spread: dict[str, Any], live: Sequence[Any]) -> Compared:
    """Count values in the bins of a reference, as `runoff.reference.histograms` makes them.

    Edges are widened to hold what training did not see: what is beyond them is in the first or last bin.
    """
    values: list[Any] | None = spread.get("values")
    edges: list[float] = spread.get("edges") or []
    counts = [0] * len(spread["counts"])
    missing = other = 0
    for value in live:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            missing += 1
        elif values is not None:
            if value in values:
                counts[values.index(value)] += 1
            else:
                other += 1
        elif isinstance(value, int | float):
            counts[min(max(bisect_right(edges, value) - 1, 0), len(counts) - 1)] += 1
        else:
            other += 1
    return {
        "values": values,
        "edges": edges or None,
        "reference": spread["counts"],
        "live": counts,
        "missing": [spread.get("missing", 0), missing],
        "other": other,
    }


def calibration(rows: Iterable[tuple[float, float]]) -> list[CalibrationBin]:
    """Predictions and outcomes, 0 or 1, counted in bins of probability of the same width."""
    bins: list[CalibrationBin] = [
        {
            "lower": number / CALIBRATION_BINS,
            "upper": (number + 1) / CALIBRATION_BINS,
            "count": 0,
            "sum_p": 0.0,
            "positives": 0,
        }
        for number in range(CALIBRATION_BINS)
    ]
    for prediction, outcome in rows:
        mine = bins[min(int(prediction * CALIBRATION_BINS), CALIBRATION_BINS - 1)]
        mine["count"] += 1
        mine["sum_p"] += prediction
        mine["positives"] += int(outcome == 1)
    return bins
