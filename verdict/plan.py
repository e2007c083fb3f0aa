"""How many outcomes, and days, a decision takes: before the start, and from where one stands."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import ndtri

from verdict import sequence, sequential
from verdict.evidence import Design

DAY = 86_400.0
# Looks up to so many times the fixed sample size: by then nearly all have stopped.
FURTHEST, LOOKS = 6.0, 600
MULTIPLES = (1.0, 1.5, 2.0, 4.0)


@dataclass(frozen=True)
class Stopping:
    """When a test that is looked at all the time stops, in multiples of the fixed sample size.

    `chances` at the `multiples` between 0 and FURTHEST; `expected` is the mean, where none goes further.
    """

    multiples: tuple[float, ...]
    chances: tuple[float, ...]
    expected: float

    def chance(self, multiple: float) -> float:
        """The probability to have stopped by then."""
        return float(np.interp(multiple, (0.0, *self.multiples), (0.0, *self.chances)))

    def multiple(self, chance: float) -> float:
        """By when it has stopped with a probability."""
        return float(np.interp(chance, self.chances, self.multiples))


@dataclass(frozen=True)
class Plan:
    """What a decision takes under one design, if the difference is as great as the one worth having.

    Attributes:
        design: by which it is found out.
        fixed: outcomes for one look at the end: the n_star to declare.
        expected: outcomes on average until the verdict names the better one, looked at all the time.
        likely: outcomes within which it does so with the power asked for.
        days_fixed: until the last of them has matured; None where no outcomes come.
        days_expected: the same.
        days_likely: the same.
        chances: of having decided, by multiples of `fixed`.
    """

    design: Design
    fixed: int
    expected: int
    likely: int
    days_fixed: float | None
    days_expected: float | None
    days_likely: float | None
    chances: tuple[tuple[float, float], ...]


def fixed_sample_size(variance: float, effect: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """Observations for one look: n = (z_{1−α/2} + z_{1−β})² σ² / δ².

    Args:
        variance: σ² of one observation, such that the estimate's variance is σ²/n.
        effect: δ, the difference worth having; not 0.
        alpha: two-sided.
        power: the probability to find it.
    """
    # Lachin (Controlled Clinical Trials 1981), the basic equation relating sample size and power.
    return float((ndtri(1 - alpha / 2) + ndtri(power)) ** 2 * variance / effect**2)


@lru_cache
def stopping(alpha: float = 0.05, power: float = 0.8) -> Stopping:
    """When the always-valid interval first excludes 0, at the true difference of the plan.

    The declared sample size is the fixed one.

    Args:
        alpha: of the interval.
        power: for which the fixed sample size was found.
    """
    times = np.linspace(FURTHEST / LOOKS, FURTHEST, LOOKS)
    drift = ndtri(1 - alpha / 2) + ndtri(power)
    # In information, one fixed sample is 1. The interval's n is any number that is great.
    great = 1e9
    bounds = sequence.radius(1.0, times * great, great, alpha)
    upper, lower = sequential.crossing(times, bounds, float(drift))
    stops = upper + lower
    left = 1 - stops.sum()
    expected = float((times * stops).sum() + left * FURTHEST)
    return Stopping(tuple(times.tolist()), tuple(np.cumsum(stops).tolist()), expected)


def variance_of(design: Design, variances: tuple[float, float], share: float, floor: float = 0.05) -> float:
    """σ² for one outcome of all arms together.

    Args:
        design: of pairs the first variance alone counts, that of the differences.
        variances: the champion's and the challenger's; in shadow mode the differences' twice.
        share: of the outcomes that the challenger gets, in (0, 1).
        floor: the least share of a bandit: what it learns of the worse arm comes from there.
    """
    if design == "shadow":
        return variances[0]
    if design == "bandit":
        # Whichever arm is worse ends at the floor.
        return max(variances[0] / each + variances[1] / (1 - each) for each in (floor, 1 - floor))
    return variances[0] / (1 - share) + variances[1] / share


def plan(
    design: Design,
    effect: float,
    variances: tuple[float, float],
    *,
    outcomes_per_day: float,
    maturity_days: float = 0.0,
    share: float = 0.5,
    floor: float = 0.05,
    alpha: float = 0.05,
    power: float = 0.8,
) -> Plan:
    """What a decision takes.

    Args:
        design: "shadow", "split" or "bandit".
        effect: the difference worth having, in units of the metric; not 0.
        variances: as in `variance_of`.
        outcomes_per_day: requests a day times the share of them whose outcome becomes known; in shadow mode
            times the share that is sampled.
        maturity_days: how old a request must be.
        share: that of the challenger.
        floor: of a bandit.
        alpha: of the verdict.
        power: the probability to find the effect in `fixed` outcomes by one look, or in `likely` by many.

    Raises:
        ValueError: a figure is out of its range; the message names it.
    """
    for name, value, holds in (
        ("effect", effect, effect != 0 and math.isfinite(effect)),
        ("variances", variances, all(0 <= each < math.inf for each in variances)),
        ("outcomes_per_day", outcomes_per_day, outcomes_per_day >= 0),
        ("share", share, 0 < share < 1),
        ("floor", floor, 0 < floor <= 0.5),  # noqa: PLR2004
        ("alpha", alpha, 0 < alpha < 1),
        ("power", power, alpha < power < 1),
    ):
        if not holds:
            raise ValueError(f"{name}: {value} is out of its range")
    fixed = max(fixed_sample_size(variance_of(design, variances, share, floor), effect, alpha, power), 1.0)
    stops = stopping(alpha, power)
    sizes = [math.ceil(fixed * each) for each in (1.0, stops.expected, stops.multiple(power))]
    days = [size / outcomes_per_day + maturity_days if outcomes_per_day else None for size in sizes]
    chances = tuple((each, stops.chance(each)) for each in MULTIPLES)
    return Plan(design, sizes[0], sizes[1], sizes[2], days[0], days[1], days[2], chances)


def further(
    value: float, variance: float, n: int, *, n_star: float, alpha: float, margin: float
) -> int | None:
    """About how many more observations decide, if the estimate stays as it is; None where none would.

    It decides as soon as the half-width is below the estimate, or leaves it within the margin.

    Args:
        value: the estimate.
        variance: of one observation.
        n: observations so far.
        n_star: declared.
        alpha: of the interval.
        margin: of practical equivalence; 0 for none.
    """
    aim = max(abs(value), margin - abs(value))
    if aim <= 0 or not math.isfinite(variance):
        return None

    def wide(total: float) -> bool:
        return float(sequence.radius(math.sqrt(variance / total), total, n_star, alpha)) >= aim

    high = float(max(n, 1))
    while wide(high):
        high *= 2
        if high > 1e15:  # noqa: PLR2004
            return None
    low = float(max(n, 1))
    for _ in range(sequence.BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if wide(middle) else (low, middle)
    return max(math.ceil(high) - n, 0)
