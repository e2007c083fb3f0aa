"""What a verdict is made from: frozen sums that add, and the rules that were declared before the start.

Evidence of parts of the traffic, in whatever buckets they were counted, adds to the evidence of all of it.
Of outcomes only those of matured requests are in here: requests older than the declared maturity.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeVar

from verdict.bandit import Weighting
from verdict.moments import NO_MOMENTS, ClusteredMoments, Moments, WeightedMoments

Design = Literal["shadow", "split", "bandit"]
# What is decided by. Of the losses less is better, of profit more.
Metric = Literal["brier", "log-loss", "profit"]

# Equal bins that scores are counted in, by outcome.
SCORE_BINS = 50
# The same of |p − p′|.
GAP_BINS = 100
# In so many the outcomes that are missing are compared.
TENTHS = 10

# Of a number of bins what may be lost to floating point.
ROUNDING = 1e-9

Key = TypeVar("Key")

# The cells of the grid of time on which the interval's history is kept: whole hours each.
CELLS = 60
HOUR = 3600.0


@dataclass(frozen=True)
class Decisions:
    """What a variant's threshold makes of its scores: positive where the score is at or above it.

    Over requests whose outcome is known: true and false positives, true and false negatives.
    """

    tp: int = 0
    fp: int = 0
    tn: int = 0
    fn: int = 0

    def __add__(self, other: Decisions) -> Decisions:
        return Decisions(
            self.tp + other.tp,
            self.fp + other.fp,
            self.tn + other.tn,
            self.fn + other.fn,
        )


@dataclass(frozen=True)
class Arm:
    """The sums of one variant.

    Attributes:
        requests: those that it was asked, in shadow mode unseen by the caller.
        errors: those that got no answer from it: it refused them (4xx), failed (5xx), or another answered.
        apart: the requests by which errors are judged: the first of batches, and of units in ten minutes.
        apart_failed: of these the errors.
        together: Σ over these errors of in how many ten minutes before, by the same weights, their unit got
            no answer.
        mature: its answered requests that are older than the maturity.
        labelled: of the mature ones those whose outcome is known, 0 or 1. All that follows is over them.
        positives: how many outcomes are 1.
        brier: of (p − y)².
        log_loss: of −ln(p if y else 1 − p), clipped.
        calibration: of y − p.
        profit: of the profit per decision; None without a cost matrix.
        decisions: what the threshold made of the scores; None without one.
        weighted: by metric ("brier", "log-loss", "profit"), the sums by the weights of the rows. Needed where
            shares changed: `Moments.weighted` makes them from the sums of each period. Periods in which a
            variant had no chance at all are left out, of all arms.
        by_unit: by metric, the same sums by unit. Needed where a unit is seen more than once.
        latencies: how many answered requests took about as long, matured or not: bin b holds those of
            [1.01^b, 1.01^(b+1)) ms.
        negative_scores: of rows with the outcome 0, how many by bin of the score, of SCORE_BINS.
        positive_scores: of rows with the outcome 1.
        assigned_labels: of the labelled those that chance assigned for themselves: the first ones of units,
            and of batches.
        assigned_positives: of these those whose outcome is 1.
        late: of the labelled those of which another outcome was known, or none, when they had matured.
        late_positives: of these those whose outcome is 1.
    """

    requests: int = 0
    errors: int = 0
    apart: int = 0
    apart_failed: int = 0
    together: int = 0
    mature: int = 0
    labelled: int = 0
    positives: int = 0
    brier: Moments = NO_MOMENTS
    log_loss: Moments = NO_MOMENTS
    calibration: Moments = NO_MOMENTS
    profit: Moments | None = None
    decisions: Decisions | None = None
    weighted: Mapping[str, WeightedMoments] = field(default_factory=dict)
    by_unit: Mapping[str, ClusteredMoments] = field(default_factory=dict)
    latencies: Mapping[int, int] = field(default_factory=dict)
    negative_scores: Mapping[int, int] = field(default_factory=dict)
    positive_scores: Mapping[int, int] = field(default_factory=dict)
    assigned_labels: int = 0
    assigned_positives: int = 0
    late: int = 0
    late_positives: int = 0

    def __add__(self, other: Arm) -> Arm:
        return Arm(
            self.requests + other.requests,
            self.errors + other.errors,
            self.apart + other.apart,
            self.apart_failed + other.apart_failed,
            self.together + other.together,
            self.mature + other.mature,
            self.labelled + other.labelled,
            self.positives + other.positives,
            self.brier + other.brier,
            self.log_loss + other.log_loss,
            self.calibration + other.calibration,
            _either(self.profit, other.profit),
            _either(self.decisions, other.decisions),
            _merged(self.weighted, other.weighted),
            _merged(self.by_unit, other.by_unit),
            _merged(self.latencies, other.latencies),
            _merged(self.negative_scores, other.negative_scores),
            _merged(self.positive_scores, other.positive_scores),
            self.assigned_labels + other.assigned_labels,
            self.assigned_positives + other.assigned_positives,
            self.late + other.late,
            self.late_positives + other.late_positives,
        )


@dataclass(frozen=True)
class Pairs:
    """The sums over requests that both the champion and one challenger scored.

    Attributes:
        mature: pairs that are older than the maturity.
        labelled: of these the ones whose outcome is known. All that follows is over them.
        brier: of the champion's Brier score less the challenger's: positive means the challenger is better.
        log_loss: the same for the log loss.
        profit: the champion's profit less the challenger's: positive means the champion is better.
        max_gap: the greatest |p − p′|, in [0, 1]; from the ledger's bins it is rounded up to 1 / GAP_BINS.
        by_unit: by metric, the same differences by unit. Needed where a unit is seen more than once.
        joint: how many by (bin of the champion's score, bin of the challenger's, outcome).
        asked: of what the champion answered, how often the challenger was asked as well, of units and batches
            the first row alone; matured or not.
        missed: of these those that it gave no answer to.
        assigned: of the labelled those that chance assigned for themselves.
        assigned_positives: of these those whose outcome is 1.
    """

    mature: int = 0
    labelled: int = 0
    brier: Moments = NO_MOMENTS
    log_loss: Moments = NO_MOMENTS
    profit: Moments | None = None
    max_gap: float = 0.0
    by_unit: Mapping[str, ClusteredMoments] = field(default_factory=dict)
    joint: Mapping[tuple[int, int, int], int] = field(default_factory=dict)
    asked: int = 0
    missed: int = 0
    assigned: int = 0
    assigned_positives: int = 0

    def __add__(self, other: Pairs) -> Pairs:
        return Pairs(
            self.mature + other.mature,
            self.labelled + other.labelled,
            self.brier + other.brier,
            self.log_loss + other.log_loss,
            _either(self.profit, other.profit),
            max(self.max_gap, other.max_gap),
            _merged(self.by_unit, other.by_unit),
            _merged(self.joint, other.joint),
            self.asked + other.asked,
            self.missed + other.missed,
            self.assigned + other.assigned,
            self.assigned_positives + other.assigned_positives,
        )


@dataclass(frozen=True)
class Period:
    """What was counted under constant weights, by variant.

    Attributes:
        weights: the shares in force; they sum to 1.
        requests: requests assigned.
        assigned: of these the ones that chance assigned for themselves: the first ones of units, and of
            batches.
        served: of the assigned ones those that are mature, and were answered by their variant.
        labels: of the served ones those with an outcome.
        apart, apart_failed, together: as those of an arm.
        missed: of the assigned ones those that their variant did not answer.
        scores: of the served ones how many by variant and tenth of its score: those of [b/10, (b+1)/10).
        score_labels: of these those with an outcome.
    """

    weights: Mapping[str, float]
    requests: Mapping[str, int] = field(default_factory=dict)
    assigned: Mapping[str, int] = field(default_factory=dict)
    served: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    apart: Mapping[str, int] = field(default_factory=dict)
    apart_failed: Mapping[str, int] = field(default_factory=dict)
    together: Mapping[str, int] = field(default_factory=dict)
    missed: Mapping[str, int] = field(default_factory=dict)
    scores: Mapping[tuple[str, int], int] = field(default_factory=dict)
    score_labels: Mapping[tuple[str, int], int] = field(default_factory=dict)

    def __add__(self, other: Period) -> Period:
        if self.weights != other.weights:
            raise ValueError("weights: two periods add only under the same weights")
        return Period(
            self.weights,
            _merged(self.requests, other.requests),
            _merged(self.assigned, other.assigned),
            _merged(self.served, other.served),
            _merged(self.labels, other.labels),
            _merged(self.apart, other.apart),
            _merged(self.apart_failed, other.apart_failed),
            _merged(self.together, other.together),
            _merged(self.missed, other.missed),
            _merged(self.scores, other.scores),
            _merged(self.score_labels, other.score_labels),
        )


@dataclass(frozen=True)
class Evidence:
    """All sums of one experiment.

    Attributes:
        design: "shadow" where challengers score the champion's requests, "split" where each unit sees one
            variant, "bandit" where shares follow the outcomes.
        champion: the variant that the others must beat.
        challengers: the names of the others.
        arms: by variant.
        pairs: by challenger; None in designs without pairs.
        periods: those of constant weights, one for each set of weights.
        first: when the first request was, in seconds since 1970; None without requests.
        last: when the last one was that is counted here.
        history: what each cell of a fixed grid of time adds, by the time at which the cell ends; cells are
            by the time of the request, and have no history of their own.
        segments: by (field, value), the evidence of a part of the requests. A group of a sensitive field
            is a segment, too.
    """

    design: Design
    champion: str
    challengers: tuple[str, ...]
    arms: Mapping[str, Arm] = field(default_factory=dict)
    pairs: Mapping[str, Pairs] | None = None
    periods: tuple[Period, ...] = ()
    first: float | None = None
    last: float | None = None
    history: Mapping[float, Evidence] = field(default_factory=dict)
    segments: Mapping[tuple[str, str], Evidence] = field(default_factory=dict)

    def __add__(self, other: Evidence) -> Evidence:
        mine, its = ((each.design, each.champion, frozenset(each.challengers)) for each in (self, other))
        if mine != its:
            raise ValueError("evidence adds only within one design, champion and set of challengers")
        return Evidence(
            self.design,
            self.champion,
            self.challengers,
            _merged(self.arms, other.arms),
            _either(self.pairs, other.pairs, _merged),
            _joined(self.periods + other.periods),
            min((each for each in (self.first, other.first) if each is not None), default=None),
            max((each for each in (self.last, other.last) if each is not None), default=None),
            _merged(self.history, other.history),
            _merged(self.segments, other.segments),
        )

    def arm(self, variant: str) -> Arm:
        """The sums of a variant; empty ones where it has none."""
        return self.arms.get(variant, Arm())

    def pair(self, challenger: str) -> Pairs:
        """The sums of the pairs with a challenger; empty ones where there are none."""
        return (self.pairs or {}).get(challenger, Pairs())


def gathered(empty: Evidence, cells: Mapping[float, Evidence]) -> Evidence:
    """The evidence of all cells of a grid of time, with these as its history.

    Args:
        empty: with the design and the names, and nothing counted.
        cells: by the time at which each ends.
    """
    total = empty
    for cell in cells.values():
        total = total + cell
    return total + Evidence(empty.design, empty.champion, empty.challengers, history=dict(cells))


class Grid(NamedTuple):
    """CELLS cells of time at most: when the first begins, and how long each is, 2^k hours.

    So what ends a cell has ended one as long as the experiment was younger.
    """

    begin: float
    width: float

    @classmethod
    def over(cls, hours: Collection[float]) -> Grid:
        """One that holds the hours that began at these moments, at least one."""
        begin = min(hours)
        cells = (max(hours) + HOUR - begin) / HOUR / CELLS
        return cls(begin, HOUR * 2 ** max(0, math.ceil(math.log2(cells))))

    def end(self, hour: float) -> float:
        """When the cell of an hour ends."""
        return self.begin + (math.floor((hour - self.begin) / self.width) + 1) * self.width


# When the first and the last hour of a stretch began, in seconds since 1970, and what was counted in it.
Part = tuple[float, float, Evidence]


def in_cells(empty: Evidence, parts: Sequence[Part], now: float) -> Evidence:
    """The evidence of some hours, with its history on a grid.

    Args:
        empty: with the design and the names, and nothing counted.
        parts: each within a cell of the grid over all of them, in any order.
        now: where the hour ends that is not over.
    """
    if not parts:
        return empty
    grid = Grid.over([hour for first, last, _ in parts for hour in (first, last)])
    cells: dict[float, list[Evidence]] = defaultdict(list)
    for first, last, part in parts:
        whole = replace(part, first=first, last=min(last + HOUR, now))
        cells[min(grid.end(first), max(now, first))].append(whole)
    return gathered(empty, {time: sum(each[1:], each[0]) for time, each in sorted(cells.items())})


@dataclass(frozen=True)
class Costs:
    """What a decision brings, by what becomes of it; the unit is the user's. A cost is negative."""

    tp: float
    fp: float
    tn: float
    fn: float


@dataclass(frozen=True)
class Guardrail:
    """What must not become worse, by more than a margin.

    Attributes:
        name: by which it is shown.
        metric: "error-rate" (the difference of rates), "latency-p50", "-p95", "-p99" … (the ratio of the
            quantiles less 1), "calibration" (the challenger's |mean of y − p|), "brier", "log-loss" or
            "profit" (the difference of means).
        margin: the harm that is accepted, in units of the metric.
    """

    name: str
    metric: str
    margin: float = 0.0


@dataclass(frozen=True)
class Rules:
    """What was declared before the start.

    Attributes:
        alpha: the probability that the verdict ever names a winner where there is none.
        attempt: the how many-th rules these are for the same split; what that costs is in alpha.
        replays: the replay sets that share the declared alpha, 0 where none is judged; as `attempt`.
        same: the challengers that are the same model as the champion: with those nothing is compared.
        metric: what is decided by.
        margin: differences below it do not matter, in units of the metric; 0: each does.
        n_star: the outcomes for which one plans; there intervals are at their tightest. They hold at any
            other number, too. In shadow mode pairs, else outcomes of all arms together.
        maturity: in seconds, how old a request must be for its outcome to count; 0: outcomes are known at
            once. None: it is not declared; they then count as with 0, and no verdict on them is trusted.
        costs: what decisions bring; None without the metric "profit".
        thresholds: by variant, the score from which on a decision is positive.
        guardrails: what must not become worse.
        segments: the fields by which the difference is shown for parts of the requests.
        sensitive: the fields between whose groups rates are compared.
        parts: of fields that are cut, into how many parts: alpha is shared by them, also before all of them
            are seen. Of other fields those count that were seen.
        weighting: where shares changed, by which weights rows count: `bandit.tilt`.
        selective: whether the served score decides who can ever have an outcome.
        max_gap: the greatest |p − p′| that is possible, declared; with it the interval of pairs by the Brier
            score is exact at any n, by `gap_bound`. None: it is asymptotic.
        spread: the standard deviation of the differences that one plans for, for the exact interval alone:
            there it is tightest. None: an eighth of their greatest possible size.
        guardrail_alpha: the probability that any guardrail ever trips without harm.
        trust_alpha: the probability that one trust check ever fails without cause.
        min_outcomes: no winner is named on fewer, of pairs or of each arm; asymptotic intervals need some.
        min_each: the same of outcomes of the rarer kind, by what hangs on them (`verdict/moments.py`).
    """

    alpha: float = 0.05
    attempt: int = 1
    replays: int = 0
    same: tuple[str, ...] = ()
    metric: Metric = "brier"
    margin: float = 0.0
    n_star: int = 10_000
    maturity: float | None = 0.0
    costs: Costs | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    guardrails: tuple[Guardrail, ...] = ()
    segments: tuple[str, ...] = ()
    sensitive: tuple[str, ...] = ()
    parts: Mapping[str, int] = field(default_factory=dict)
    weighting: Weighting = "overlap"
    selective: bool = False
    max_gap: float | None = None
    spread: float | None = None
    guardrail_alpha: float = 0.05
    trust_alpha: float = 0.01
    min_outcomes: int = 100
    min_each: int = 16

    @property
    def gap_bound(self) -> float | None:
        """What no |p − p′| exceeds as long as none is seen to exceed `max_gap`; None without one.

        Gaps are counted in bins, of which the one that `max_gap` is in also holds some that are greater. So
        the exact interval goes by the upper end of that bin, and nothing that cannot be seen breaks it.
        """
        if self.max_gap is None:
            return None
        # What is a multiple of the bins' width is one in spite of rounding.
        return min(math.floor(self.max_gap * GAP_BINS + ROUNDING) + 1, GAP_BINS) / GAP_BINS

    def parts_of(self, name: str, seen: int) -> int:
        """How many parts of a field there are, of which so many were seen."""
        return max(self.parts.get(name, 0), seen)


def _merged(one: Mapping[Key, Any], other: Mapping[Key, Any]) -> dict[Key, Any]:
    """Both, with what is under the same key added."""
    found = dict(one)
    for key, value in other.items():
        found[key] = found[key] + value if key in found else value
    return found


def _either(one: Any, other: Any, added: Any = lambda one, other: one + other) -> Any:
    """The sum of those that are there."""
    if one is None or other is None:
        return other if one is None else one
    return added(one, other)


def _joined(periods: tuple[Period, ...]) -> tuple[Period, ...]:
    """Those of the same weights as one."""
    found: dict[tuple[tuple[str, float], ...], Period] = {}
    for period in periods:
        key = tuple(sorted(period.weights.items()))
        found[key] = found[key] + period if key in found else period
    return tuple(found.values())
