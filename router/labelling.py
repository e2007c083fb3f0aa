"""What a prediction adds to the sums by what became of it: its outcome, and what others said of the same row.

A prediction has its adds once: whoever knows something new of it takes away what it added before
(`router/fold.py`). Here is only what one adds; and what those of a cluster add together, since they are not
independent of each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple

import sqlalchemy as sa

from router.database import stamp
from router.experiment import Decision
from router.tables import clusters, gaps, joint_scores, labels, outcome_scores, pairs, repeats
from verdict import money
from verdict.counted import CLIP, JOINT_BINS
from verdict.declared import LIVE
from verdict.evidence import GAP_BINS, SCORE_BINS, Costs
from verdict.segments import part

ALL = ""

Key = tuple[Any, ...]
Add = tuple[tuple[sa.Table, Key], Sequence[float]]


class Beside(NamedTuple):
    """What a shadow or a replay said of a row."""

    kind: str
    name: str
    prediction: float
    # Of the model that said it, and of the one that answered.
    phase: int


class Known(NamedTuple):
    """What is known of a prediction: its row, its outcome if it has one, and what others said of it.

    `segments` are all of the traffic, and the declared parts of it that the record is of. It is `late` where
    another outcome was known, or none, when it matured.
    """

    row: Any
    outcome: float | None
    beside: tuple[Beside, ...]
    segments: Sequence[str]
    late: bool = False


def adds(known: Known, declared: Decision) -> Iterator[Add]:
    """What an answered prediction adds, by table and key.

    Args:
        known: what is known of it.
        declared: the thresholds of the experiment's version that it was assigned by.
    """
    row, p, y = known.row, known.row.prediction, known.outcome
    if y not in (0, 1):
        return
    weights = (row.experiment, row.time[:13], row.experiment_version, row.allocation)
    tag = row.tag or ""

    def scored(name: str, kind: str, p: float, phase: int) -> Iterator[Add]:
        period = (*weights, phase, name, kind, tag)
        positive = p >= declared.threshold(name)
        decided = [float(each) for each in _decided(positive, y)]
        here, residual = _losses(p, y), y - p
        (brier, loss), swings = here, _swings(y, here, _losses(p, 1 - y))
        once = (row.first, row.first * int(y), known.late, known.late * int(y))
        values = (1, int(y), *decided, *once, brier, brier**2, loss, loss**2, residual, residual**2, *swings)
        for segment in known.segments:
            yield (labels, (*period, segment)), values
        yield (outcome_scores, (*period, int(y), _bin(p, SCORE_BINS))), (1, row.first)

    yield from scored(row.variant, LIVE, p, row.phase)
    for kind, name, other, phase in known.beside:
        yield from scored(name, kind, other, phase)
        period = (*weights, phase, row.variant, kind, tag, name)
        here = _differences(p, other, y)
        (d, e), swings = here, _swings(y, here, _differences(p, other, 1 - y))
        gap = abs(p - other)
        one, two = p >= declared.threshold(row.variant), other >= declared.threshold(name)
        only = [float(a and not b and y == c) for a, b in ((one, two), (two, one)) for c in (1, 0)]
        once = (row.first, row.first * int(y))
        values = (1, d, d**2, e, e**2, gap, gap**2, *only, *once, *swings)
        for segment in known.segments:
            yield (pairs, (*period, segment)), values
        yield (gaps, (*period, _bin(gap, GAP_BINS))), (1,)
        bins = (_bin(p, JOINT_BINS), _bin(other, JOINT_BINS))
        yield (joint_scores, (*period, int(y), *bins)), (1,)


def counts_from(hour: str, maturity: timedelta) -> str:
    """From when on outcomes of what was asked in an hour count: the hour is over, and has matured."""
    return stamp(datetime.fromisoformat(f"{hour}:00:00+00:00") + timedelta(hours=1) + maturity)


class Rules(NamedTuple):
    """What a version of the experiment declares of decisions.

    By its weighting and the shares in force rows count with the weight tilt / propensity. Without a maturity
    outcomes count as they come.
    """

    decision: Decision
    tilt: float
    costs: Costs | None
    maturity: timedelta | None


# So many sums are kept of a cluster, and of what its rows make together.
SUMS_OF_CLUSTER, SUMS_OF_REPEATS = (len(each.columns) - len(each.primary_key) for each in (clusters, repeats))
# A cluster within what is counted together: all of the key of its sums but these, the hour and the weights.
Cluster = tuple[str, str, int, str, str, str, str, str]
Cell = tuple[str, int, int]


def cluster_of(row: Any) -> str | None:
    """With which others a row is not independent: those of its unit, else of its batch."""
    if row.unit is not None:
        return str(row.unit)
    return str(row.request_id) if row.id != row.request_id else None


@dataclass(frozen=True)
class Addition:
    """What a prediction adds to its cluster's sums, in their order; with the sign -1 it takes that away."""

    cell: Cell
    values: Sequence[float]
    sign: int

    @cached_property
    def alone(self) -> Sequence[float]:
        """What it makes with itself: half of that is in what the cluster's sums say, and is taken away."""
        return [-self.sign * each for each in together(self.values, (0.0,) * SUMS_OF_CLUSTER)]


def adds_of_cluster(known: Known, rules: Rules, sign: int) -> Iterator[tuple[Sequence[Cluster], Addition]]:
    """What an answered prediction adds to the sums of its cluster, of each part that it is of.

    Args:
        known: what is known of it.
        rules: of the experiment's version and allocation that it was assigned by.
        sign: -1 where it is to be taken away.
    """
    row, p, y = known.row, known.row.prediction, known.outcome
    cluster = cluster_of(row) if y in (0, 1) else None
    if cluster is None or y is None:
        return
    w, tag = rules.tilt / row.propensity, row.tag or ""
    cell = (row.time[:13], row.experiment_version, row.allocation)

    def profit(p: float, name: str) -> float:
        return money.of(rules.costs, p >= rules.decision.threshold(name), int(y)) if rules.costs else 0.0

    mine = profit(p, row.variant)
    said = [(row.phase, LIVE, "", (*_losses(p, y), mine, y - p))]
    for kind, name, other, phase in known.beside:
        its = (*_differences(p, other, y), mine - profit(other, name), other - p)
        said.append((phase, kind, name, its))
    for phase, kind, beside, scores in said:
        values = (1.0, w, *scores, *(w * x for x in scores[:-1]))
        key = (cluster, row.experiment, phase, row.variant, kind, tag, beside)
        yield [(*key, segment) for segment in known.segments], Addition(cell, values, sign)


def together(sums: Sequence[float], before: Sequence[float]) -> list[float]:
    """What rows of a cluster make with each other and with those before, in the order of `repeats`.

    Of what a row makes with itself half is in it: `Addition.alone`.

    Args:
        sums: over the rows, in the order of `clusters`.
        before: over those before.
    """
    n, w, *scores = sums
    m, v, *others = before
    found = [n - (n > 0 and m == 0), n * (m + n / 2), w * (v + w / 2)]
    for score in range(3):
        t, s, wt, ws = scores[score], others[score], scores[4 + score], others[4 + score]
        found += [t * m + s * n + t * n, t * (s + t / 2), wt * v + ws * w + wt * w, wt * (ws + wt / 2)]
    t, s = scores[3], others[3]
    return [*found, t * m + s * n + t * n, t * (s + t / 2)]


def brier_score(p: float, y: float) -> float:
    """(p − y)²."""
    return (p - y) ** 2


def log_loss(p: float, y: float) -> float:
    """−ln of the probability that was given to what came."""
    return -math.log(min(max(p if y else 1 - p, CLIP), 1.0))


def _losses(p: float, y: float) -> tuple[float, float]:
    """The Brier score and the log loss."""
    return brier_score(p, y), log_loss(p, y)


def _differences(p: float, other: float, y: float) -> tuple[float, float]:
    """The live answer's losses less the other's."""
    (brier, loss), (its_brier, its_loss) = _losses(p, y), _losses(other, y)
    return brier - its_brier, loss - its_loss


def _swings(y: float, here: tuple[float, float], otherwise: tuple[float, float]) -> tuple[float, ...]:
    """By score c² and c³ at the outcome y, of c = what it would differ by with the other outcome."""
    found: tuple[float, ...] = ()
    for one, other in zip(here, otherwise, strict=True):
        c = abs(one - other)
        found += (0.0, 0.0, c * c, c**3) if y else (c * c, c**3, 0.0, 0.0)
    return found


def _decided(positive: bool, y: float) -> tuple[bool, bool, bool, bool]:
    """True and false positive, true and false negative."""
    right = positive == bool(y)
    return positive and right, positive and not right, not positive and right, not positive and not right


def _bin(value: float, bins: int) -> int:
    """The bin of a number in [0, 1], of which 1 is in the last one."""
    return min(int(value * bins), bins - 1)


def segments_of(features: str | None, decision: Decision) -> list[str]:
    """All of the traffic, and the declared parts of it that a record is of, each COLUMN=value."""
    declared = (*decision.segments, *decision.sensitive)
    if not declared:
        return [ALL]
    try:
        record = json.loads(features or "{}")
    except ValueError:
        record = {}
    if not isinstance(record, dict):
        record = {}
    # A column may be both a segment and sensitive.
    parts = (f"{each.column}={part(record.get(each.column), each.cuts)}" for each in declared)
    return list(dict.fromkeys((ALL, *parts)))
