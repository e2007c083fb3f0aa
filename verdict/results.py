"""What a verdict says: frozen values, one for each part of a page of results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Decision = Literal["keep", "promote", "equivalent", "keep collecting", "don't trust"]
CheckState = Literal["passed", "failed", "not yet"]
GuardrailState = Literal["clear", "watching", "breached"]


@dataclass(frozen=True)
class Interval:
    """Both ends; None where it has none."""

    lower: float | None
    upper: float | None


NO_INTERVAL = Interval(None, None)


@dataclass(frozen=True)
class Check:
    """A trust check: what was seen, in words, and the Bayes factor or e-value where there is one."""

    name: str
    state: CheckState
    seen: str
    e_value: float | None = None


@dataclass(frozen=True)
class Row:
    """One metric of the table.

    `difference` is the champion's less the challenger's. `interval` holds at every moment at once, `fixed`
    for one look alone. `e_value` is against no difference; `p` = 1 / (the greatest e-value on the grid).
    The variants' own figures have always-valid intervals where the metric has a scale of its own. What is
    not known, or does not exist, is None.
    """

    metric: str
    better: Literal["lower", "higher", "nearer to 0"]
    champion: float | None
    challenger: float | None
    difference: float | None
    interval: Interval
    fixed: Interval
    e_value: float | None = None
    p: float | None = None
    note: str = ""
    champion_interval: Interval = NO_INTERVAL
    challenger_interval: Interval = NO_INTERVAL


@dataclass(frozen=True)
class GuardrailResult:
    """`harm` is what the challenger is worse by; at least `at_least`, at most `at_most`, at every moment.

    "breached" where the e-value against harm ≤ margin reached its bound, "clear" where the harm surely is
    within the margin.
    """

    name: str
    metric: str
    margin: float
    state: GuardrailState
    harm: float | None
    at_least: float | None
    at_most: float | None
    e_value: float
    bound: float


@dataclass(frozen=True)
class Point:
    """The primary metric's interval on the grid of time: a point of the funnel."""

    time: float
    n: int
    difference: float | None
    interval: Interval
    e_value: float


@dataclass(frozen=True)
class ScoreBin:
    """The rows that a variant scored from `lower` up to `upper` and whose outcome counts.

    How many they are, the sum of their scores, of which each is known to half of 1 / SCORE_BINS, and how many
    outcomes are 1.
    """

    lower: float
    upper: float
    count: int
    sum_p: float
    positives: int


@dataclass(frozen=True)
class Reliability:
    """Whether a variant's scores mean what they say, in bins of which none is empty."""

    variant: str
    bins: tuple[ScoreBin, ...]


@dataclass(frozen=True)
class Traffic:
    """What came in one cell of the grid of time, in seconds since 1970; requests by variant.

    `shares` are the propensities in force, by variant: what each was to get of these requests, on average
    where they changed meanwhile. There are none in shadow mode, and where the experiment was paused.
    """

    begin: float
    end: float
    requests: Mapping[str, int]
    shares: Mapping[str, float]


@dataclass(frozen=True)
class SegmentRow:
    """The primary metric within a part of the requests; the intervals of all parts hold together."""

    field: str
    value: str
    n: int
    row: Row


@dataclass(frozen=True)
class Gap:
    """How far the rates of two groups of a sensitive field are apart, for one variant.

    `rate` is "positive decisions among known outcomes", "true positive rate" or "false positive rate";
    `group` is compared with `reference`, the greatest group. The rates are of `n` and `reference_n` outcomes.
    """

    variant: str
    field: str
    rate: str
    group: str
    reference: str
    gap: float | None
    interval: Interval
    n: int
    reference_n: int


@dataclass(frozen=True)
class Comparison:
    """One challenger against the champion.

    `n` outcomes are compared, pairs or those of both arms. `advantage` is what the challenger is better by
    (in profit higher, in losses lower). `more_outcomes` and `more_days` are about what a decision still
    takes, if the estimate stays as it is. `fewer` is how many times fewer outcomes the pairs take than a
    split in halves, by the variances that were seen; None without pairs, and with too few. `doubt` is why the
    challenger is not known to be as good as the champion, but for the margin; nothing where it is.
    """

    challenger: str
    decision: Decision
    sentence: str
    reasons: tuple[str, ...]
    doubt: str
    checks: tuple[Check, ...]
    rows: tuple[Row, ...]
    guardrails: tuple[GuardrailResult, ...]
    segments: tuple[SegmentRow, ...]
    history: tuple[Point, ...]
    n: int
    advantage: float
    more_outcomes: int | None
    more_days: float | None
    fewer: float | None


@dataclass(frozen=True)
class Verdict:
    """Everything that a page of results shows.

    `variant` is the one that stays: the promoted one, or the champion; None while that is open. `risk` says
    how often anything is decided without cause, and what shares that.
    """

    decision: Decision
    variant: str | None
    sentence: str
    reasons: tuple[str, ...]
    design: str
    champion: str
    metric: str
    alpha: float
    margin: float
    estimand: str
    risk: str
    checks: tuple[Check, ...]
    comparisons: tuple[Comparison, ...]
    gaps: tuple[Gap, ...]
    reliability: tuple[Reliability, ...]
    traffic: tuple[Traffic, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON takes it: no NaN, no infinity."""
        return asdict(self)


def finite(value: float) -> float | None:
    """The value, or None where it is no number."""
    return value if math.isfinite(value) else None


def finite_exp(log: float) -> float:
    """The exponential, at most the greatest number there is."""
    return math.exp(min(log, 709.0))
