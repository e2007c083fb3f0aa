"""What those who watch a router ask besides `/stats`: who they are, and how its answers are spread.

| address | what it tells |
| --- | --- |
| `GET /v1/key` | what the key may do that is sent along |
| `GET /v1/distributions` | scores and latencies of each variant in bins, and how busy the last hour was |

All of it is read from sums: it costs the same however many rows there are.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime

from flask import Blueprint, request
from typing_extensions import TypedDict

from router import query
from router.assignment import SHADOW
from router.experiments import Following
from router.fold import GROWTH, Fold
from router.keys import OPERATOR_KEY, SCOPES, Guard, Scope
from router.openapi import CALLERS
from runoff.operations import describe
from runoff.problems import Forbidden, TooManyRequests, Unauthorized, Unavailable
from verdict.declared import LIVE
from verdict.evidence import SCORE_BINS

# So many of the fold's bins of latencies, of one per cent each, make one here.
COARSER = 10


class KeyDetails(TypedDict):
    """A key by its name and scope; `needed` says whether this router asks for keys at all.

    `releases` says whether it has the key that the services take for releases; else nothing can be released
    by way of it.
    """

    name: str
    scope: Scope
    needed: bool
    releases: bool


class Spread(TypedDict):
    """Counts in bins: bin i holds what is from `edges[i]` up to `edges[i + 1]`."""

    edges: list[float]
    counts: list[int]


class AnswerSpread(TypedDict):
    """How some answers are spread: probabilities, and milliseconds."""

    scores: Spread
    latency_ms: Spread


class VariantSpread(AnswerSpread):
    """How the answers of a variant are spread; those that callers never saw, as its shadow, apart."""

    name: str
    shadow: AnswerSpread


class Distributions(TypedDict):
    """How the answers of each variant are spread, and how many requests came in the last hour, about."""

    experiment: str
    requests_last_hour: int
    variants: list[VariantSpread]


def blueprint(following: Following, fold: Fold, guard: Guard, admit: Callable[[Scope], object]) -> Blueprint:
    """The addresses above.

    Args:
        following: the experiment in force.
        fold: the sums over the ledger.
        guard: knows the keys.
        admit: raises where the caller's key does not open a scope.
    """
    api = Blueprint("inspection", __name__)

    @api.get("/v1/key")
    @describe(Unauthorized, TooManyRequests, tag="service")
    def key() -> KeyDetails:
        """What the key may do that is sent along."""
        for scope in SCOPES:
            with suppress(Forbidden):
                found = guard.admit(request.headers.get("Authorization"), scope)
                return {
                    "name": found.name,
                    "scope": found.scope,
                    "needed": not guard.is_open,
                    "releases": bool(os.environ.get(OPERATOR_KEY)),
                }
        raise AssertionError("a key has one of the scopes")

    @api.get("/v1/distributions")
    @describe(
        *(*CALLERS, Unavailable),
        tag="experiment",
        query={"tag": {"type": "string"}, "from": {"type": "string", "format": "date-time"}},
    )
    def distributions() -> Distributions:
        """How scores and latencies of each variant are spread.

        With `from` those of the whole hours from that time's on.
        """
        admit("read")
        tag, since = query.tag(), query.hour("from")
        document = following.now().document
        live, shadow = (
            _spreads(
                fold.scored(document.name, tag, since, kind), fold.latency(document.name, tag, since, kind)
            )
            for kind in (LIVE, SHADOW)
        )
        now = datetime.now(UTC)
        return {
            "experiment": document.name,
            "requests_last_hour": round(fold.last_hour(document.name, now, tag)),
            "variants": [
                {"name": each.name, **live(each.name), "shadow": shadow(each.name)}
                for each in document.variants
            ],
        }

    return api


def _spreads(
    scores: Mapping[str, Mapping[int, int]], latency: Mapping[str, Mapping[int, int]]
) -> Callable[[str], AnswerSpread]:
    """How answers are spread, by the name of a variant."""
    return lambda name: {
        "scores": _spread(scores.get(name, {}), lambda bin_: bin_ / SCORE_BINS),
        "latency_ms": _spread(_coarser(latency.get(name, {})), lambda bin_: _grown(bin_ * COARSER)),
    }


def _coarser(bins: Mapping[int, int]) -> dict[int, int]:
    found: dict[int, int] = {}
    for bin_, count in bins.items():
        found[bin_ // COARSER] = found.get(bin_ // COARSER, 0) + count
    return found


def _grown(bin_: int) -> float:
    """The least latency of a bin, in ms."""
    return float(f"{math.exp(bin_ * GROWTH):.4g}")


def _spread(bins: Mapping[int, int], edge: Callable[[int], float]) -> Spread:
    if not bins:
        return {"edges": [], "counts": []}
    numbers = range(min(bins), max(bins) + 1)
    return {
        "edges": [edge(number) for number in (*numbers, numbers.stop)],
        "counts": [bins.get(number, 0) for number in numbers],
    }
