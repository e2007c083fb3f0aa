"""What a prediction adds to the sums by what became of it: its outcome, and what others said of the same row.

A prediction has its adds once: whoever knows something new of it takes away what it added before
(`router/fold.py`). Here is only what one adds; and what those of a unit add together, since they are not
independent of each other.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa

from router.database import stamp
from router.experiment import Decision
from router.tables import gaps, joint_scores, labels, outcome_scores, pairs, repeat_decisions, repeats
from verdict.counted import CLIP, JOINT_BINS
from verdict.declared import LIVE
from verdict.evidence import GAP_BINS, SCORE_BINS
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
    """What is known of a prediction: its row, its outcome if it has one, what others said of it.

    It is `late` where another outcome was known, or none, when it matured.
    """

    row: Any
    outcome: float | None
    beside: tuple[Beside, ...]
    late: bool = False


def adds(known: Known, declared: Decision) -> Iterator[Add]:
    """What an answered prediction adds, by table and key.

    Args:
        known: what is known of it.
        declared: the thresholds and segments of the experiment's version that it was assigned by.
    """
    row, p, y = known.row, known.row.prediction, known.outcome
    if y not in (0, 1):
        return
    weights = (row.experiment, row.time[:13], row.experiment_version, row.allocation)
    tag = row.tag or ""
    segments = _segments(row.features, declared)

    def scored(name: str, kind: str, p: float, phase: int) -> Iterator[Add]:
        period = (*weights, phase, name, kind, tag)
        positive = p >= declared.threshold(name)
        decided = [float(each) for each in _decided(positive, y)]
        here, residual = _losses(p, y), y - p
        (brier, loss), swings = here, _swings(y, here, _losses(p, 1 - y))
        once = (row.first, row.first * int(y), known.late, known.late * int(y))
        values = (1, int(y), *decided, *once, brier, brier**2, loss, loss**2, residual, residual**2, *swings)
        for segment in segments:
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
        for segment in segments:
            yield (pairs, (*period, segment)), values
        yield (gaps, (*period, _bin(gap, GAP_BINS))), (1,)
        bins = (_bin(p, JOINT_BINS), _bin(other, JOINT_BINS))
        yield (joint_scores, (*period, int(y), *bins)), (1,)


@dataclass
class _Before:
    """The rows of a unit that came before: how many, Σw, Σx and Σwx of each score; and of each cell."""

    n: int = 0
    w: float = 0.0
    totals: tuple[float, ...] = (0.0, 0.0, 0.0)
    weighted: tuple[float, ...] = (0.0, 0.0, 0.0)
    cells: dict[int, tuple[int, float]] = field(default_factory=dict)

    def add(self, w: float, scores: tuple[float, ...], cell: int) -> None:
        self.n += 1
        self.w += w
        self.totals = tuple(t + x for t, x in zip(self.totals, scores, strict=True))
        self.weighted = tuple(t + w * x for t, x in zip(self.weighted, scores, strict=True))
        count, weight = self.cells.get(cell, (0, 0.0))
        self.cells[cell] = count + 1, weight + w


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
    maturity: timedelta | None


def adds_of_unit(rows: Sequence[Known], declared: Callable[[int, int], Rules]) -> Iterator[Add]:
    """What the predictions of one unit add together, beyond what each adds by itself.

    Args:
        rows: answered ones, in any order.
        declared: by version of the experiment, and allocation within it.
    """
    before: dict[Key, _Before] = defaultdict(_Before)
    for known in sorted(rows, key=lambda each: (each.row.time, each.row.cursor)):
        row, p, y = known.row, known.row.prediction, known.outcome
        if y not in (0, 1):
            continue
        decision, tilt, _ = declared(row.experiment_version, row.allocation)
        w, tag = tilt / row.propensity, row.tag or ""
        weights = (row.experiment, row.time[:13], row.experiment_version, row.allocation)
        one = p >= decision.threshold(row.variant)
        said = [(row.phase, LIVE, "", (*_losses(p, y), y - p), _decided(one, y).index(True))]
        for kind, name, other, phase in known.beside:
            cell = 4 * one + 2 * (other >= decision.threshold(name)) + int(y)
            said.append((phase, kind, name, (*_differences(p, other, y), other - p), cell))
        segments = _segments(row.features, decision)
        for phase, kind, beside, scores, cell in said:
            for segment in segments:
                mine = before[phase, tag, row.variant, kind, beside, segment]
                if mine.n:
                    key = (*weights, phase, row.variant, kind, tag, beside, segment)
                    yield (repeats, key), (1, mine.n, w * mine.w, *_together(mine, w, scores))
                    for earlier, (count, weight) in mine.cells.items():
                        yield (repeat_decisions, (*key, cell, earlier)), (count, w * weight)
                mine.add(w, scores, cell)


def _together(before: _Before, w: float, scores: tuple[float, ...]) -> Iterator[float]:
    """Of each score x of a row: x·n + t, x·t, and both with weights; of the residual, the last, without."""
    *told, residual = zip(scores, before.totals, before.weighted, strict=True)
    for x, t, t_w in told:
        yield from (x * before.n + t, x * t, w * (x * before.w + t_w), w * x * t_w)
    x, t, _ = residual
    yield from (x * before.n + t, x * t)


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


def _segments(features: str | None, decision: Decision) -> list[str]:
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
