"""By how much a challenger differs from the champion, by each design, and the interval of that."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from verdict import bernstein, rates, sequence
from verdict.evidence import Arm, Evidence, Pairs, Rules
from verdict.moments import NO_MOMENTS, ClusteredMoments, Moments, WeightedMoments
from verdict.sequence import Floats

FIELDS = {"brier": "brier", "log-loss": "log_loss", "profit": "profit"}
NO_WEIGHTED = WeightedMoments()
NO_CLUSTERS = ClusteredMoments()

Sums = Moments | WeightedMoments | ClusteredMoments


@dataclass(frozen=True)
class Basis:
    """The sums that a contrast is from: of the differences in pairs, or of both arms."""

    parts: tuple[Sums, ...]

    def __add__(self, other: Basis) -> Basis:
        added: Iterable[Any] = zip(self.parts, other.parts, strict=True)
        return Basis(tuple(one + its for one, its in added))


@dataclass(frozen=True)
class Contrast:
    """The champion's mean less the challenger's, its standard error, from how many observations.

    Of these the standard error is from so many `independent` ones, which tell as much as so many rarer
    outcomes (`effective`); of two arms from the less. `squares` is Σd² in pairs, for the exact interval; None
    elsewhere.
    """

    value: float
    error: float
    n: int
    independent: float
    effective: float
    squares: float | None = None


def errors(evidence: Evidence, challenger: str) -> tuple[rates.Count, rates.Count]:
    """How often, of how many, the champion gave no answer, and the challenger: arrays with a place a period.

    Errors that come and go with time are not taken for a variant's where shares moved meanwhile. What fails
    for a unit again and again is not taken for many independent errors.
    """
    names = (evidence.champion, challenger)
    periods = [each for each in evidence.periods if all(each.apart.get(name) for name in names)]
    if evidence.design == "shadow" or not periods:
        arms = [evidence.arm(name) for name in names]
        counts = [[(arm.apart_failed, arm.apart, arm.together)] for arm in arms]
    else:
        counts = [
            [
                (each.apart_failed.get(name, 0), each.apart[name], each.together.get(name, 0))
                for each in periods
            ]
            for name in names
        ]
    one, other = (rates.alike(*zip(*each, strict=True)) for each in counts)
    return one, other


def basis(evidence: Evidence, challenger: str, metric: str, like: Evidence | None = None) -> Basis:
    """The sums for a metric.

    Args:
        evidence: those of all, or of a cell of the grid of time.
        challenger: its name.
        metric: "brier", "log-loss" or "profit".
        like: the evidence that says which sums are used; by default this one.
    """
    whole = like or evidence
    if evidence.design == "shadow":
        pairs = evidence.pair(challenger)
        if whole.pair(challenger).by_unit.get(metric):
            return Basis((pairs.by_unit.get(metric, NO_CLUSTERS),))
        return Basis((_moments(pairs, metric),))
    names = (evidence.champion, challenger)
    arms, wholes = [evidence.arm(name) for name in names], [whole.arm(name) for name in names]
    if needs_weights(whole) and all(arm.weighted.get(metric) for arm in wholes):
        return Basis(tuple(arm.weighted.get(metric, NO_WEIGHTED) for arm in arms))
    if all(arm.by_unit.get(metric) for arm in wholes):
        return Basis(tuple(arm.by_unit.get(metric, NO_CLUSTERS) for arm in arms))
    return Basis(tuple(_moments(arm, metric) for arm in arms))


def contrast(of: Basis) -> Contrast:
    """The difference that some sums say."""
    value, *others = (part.mean for part in of.parts)
    return Contrast(
        value - sum(others),
        math.hypot(*(part.standard_error for part in of.parts)),
        sum(part.rows if isinstance(part, ClusteredMoments) else part.n for part in of.parts),
        min(part.independent for part in of.parts),
        min(part.effective for part in of.parts),
        of.parts[0].squares if isinstance(of.parts[0], Moments) and not others else None,
    )


def means(evidence: Evidence, challenger: str, metric: str) -> tuple[float | None, float | None]:
    """The champion's and the challenger's own means; None without outcomes.

    In pairs both are over the pairs: of whom all rows are in pairs has it, the other's is that and the
    difference. The champion has more rows where only a sample was scored besides, a replay where others than
    the champion were asked; where both have more, they are None.
    """
    found: list[float | None] = []
    for name in (evidence.champion, challenger):
        arm = evidence.arm(name)
        weighted = arm.weighted.get(metric)
        plain = _moments(arm, metric)
        if evidence.design != "shadow" and needs_weights(evidence) and weighted:
            found.append(weighted.mean if weighted.n else None)
        else:
            found.append(plain.mean if plain.n else None)
    one, other = found
    pairs = contrast(basis(evidence, challenger, metric))
    if evidence.design != "shadow" or not pairs.n or one is None or other is None:
        return one, other
    if evidence.arm(challenger).labelled == pairs.n:
        return other + pairs.value, other
    if evidence.arm(evidence.champion).labelled == pairs.n:
        return one, one - pairs.value
    return None, None


def of_history(evidence: Evidence, challenger: str, metric: str) -> dict[float, Contrast]:
    """The difference as it was at the end of each cell of the grid of time, in order."""
    times = sorted(evidence.history)
    cells = (basis(evidence.history[time], challenger, metric, evidence) for time in times)
    return {time: contrast(sums) for time, sums in zip(times, accumulate(cells), strict=True)}


@dataclass(frozen=True)
class Ruler:
    """How sure one is of contrasts: asymptotic where a standard error is believed, else exact if it can be.

    It is believed that is from `least` independent observations and `rare` rarer outcomes. Exact intervals of
    values that have a bound take its place before, from `least` of them on, and throughout where the bound is
    declared.
    """

    n_star: float
    alpha: float
    least: float
    rare: float
    # The bound of |d|, the mixture's parameter, and the bet beside it; None: there is no bound.
    exact: tuple[float, float, float] | None = None
    declared: bool = False

    def believes(self, contrast: Contrast) -> bool:
        """Whether a standard error is one, or nobody asks for it."""
        return self.declared or (contrast.independent >= self.least and contrast.effective >= self.rare)

    def knows(self, contrast: Contrast) -> bool:
        """Whether there is an interval."""
        bounded = self.exact is not None and contrast.independent >= self.least
        return bounded or self.believes(contrast)

    def exactly(self, contrast: Contrast) -> bool:
        """Whether that is exact."""
        return self.exact is not None and (self.declared or not self.believes(contrast))

    def radii(self, contrasts: Iterable[Contrast]) -> Floats:
        """The half-widths of the always-valid intervals; infinite where nothing is known."""
        value, error, n, squares, exactly, known = self._columns(contrasts)
        told = sequence.radius(_sure(value, error), n, self.n_star, self.alpha)
        if self.exact is not None and exactly.any():
            c, rho, bet = self.exact
            told = np.where(exactly, bernstein.radius(n, squares, rho, c, self.alpha, bet=bet), told)
        return np.where(known > 0, told, np.inf)

    def log_e_values(self, contrasts: Iterable[Contrast]) -> Floats:
        """Against no difference; 0 where nothing is known."""
        value, error, n, squares, exactly, known = self._columns(contrasts)
        told = sequence.log_e_value(value, error, n, self.n_star, self.alpha)
        if self.exact is not None and exactly.any():
            c, rho, bet = self.exact
            told = np.where(exactly, bernstein.log_e_value(value * n, squares, rho, c, bet), told)
        return np.where(known > 0, told, 0.0)

    def _columns(self, contrasts: Iterable[Contrast]) -> Floats:
        """Values, standard errors, observations, Σd²; which are measured exactly, and which at all."""
        rows = [
            (each.value, each.error, each.n, each.squares or 0.0, self.exactly(each), self.knows(each))
            for each in contrasts
        ]
        return np.array(rows, float).reshape(-1, 6).T


def ruler(evidence: Evidence, metric: str, rules: Rules, alpha: float, challenger: str) -> Ruler:
    """The one for a metric: pairs by the Brier score have a bound, declared by `max_gap`, or else 1."""
    by_unit = evidence.pair(challenger).by_unit.get(metric)
    asymptotic = Ruler(rules.n_star, alpha, rules.min_outcomes, rules.min_each)
    if evidence.design != "shadow" or metric != "brier" or by_unit:
        return asymptotic
    declared = rules.gap_bound is not None
    # |d| = |p − p′| · |p + p′ − 2y| ≤ 2 |p − p′|, and both scores are in [0, 1].
    c = 1.0 if rules.gap_bound is None else 2 * rules.gap_bound
    spread = c / 8 if rules.spread is None else rules.spread
    planned = rules.n_star * spread**2
    # Who bets on what nobody declared pays for it.
    bet = 0.0 if rules.spread is None else bernstein.best_bet(planned, c, alpha)
    return replace(asymptotic, exact=(c, bernstein.best_rho(planned, alpha), bet), declared=declared)


def needs_weights(evidence: Evidence) -> bool:
    """Whether rows had different chances to come to a variant."""
    return (
        evidence.design == "bandit"
        or len({tuple(sorted(each.weights.items())) for each in evidence.periods}) > 1
    )


def _moments(sums: Arm | Pairs, metric: str) -> Moments:
    found: Moments | None = getattr(sums, FIELDS[metric])
    return found or NO_MOMENTS


def _sure(value: Floats, error: Floats) -> Floats:
    """Equal differences that are not 0 say nothing of how sure they are."""
    return np.where((error == 0) & (value != 0), np.inf, error)
