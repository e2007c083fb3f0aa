"""What decisions bring: profit from a matrix of costs and a threshold for each variant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from verdict.evidence import Costs, Decisions
from verdict.moments import Moments, Swings
from verdict.sequence import Floats


def of(costs: Costs, decision: bool, outcome: int) -> float:
    """The profit of one decision: positive (the score reached the threshold) or not, and what came of it."""
    # Elkan, "The foundations of cost-sensitive learning" (IJCAI 2001), table 1.
    if decision:
        return costs.tp if outcome else costs.fp
    return costs.fn if outcome else costs.tn


def each(costs: Costs, decisions: NDArray[np.bool_], outcomes: Floats) -> Floats:
    """The profit of each of some decisions, arrays of one length; outcomes are 0 or 1."""
    known = np.where(decisions, costs.tp, costs.fn), np.where(decisions, costs.fp, costs.tn)
    return np.where(outcomes == 1, *known).astype(float)


def moments(costs: Costs, decisions: Decisions) -> Moments:
    """The sums of the profit over the decisions whose outcome is known."""
    cells = (
        (decisions.tp, costs.tp),
        (decisions.fp, costs.fp),
        (decisions.tn, costs.tn),
        (decisions.fn, costs.fn),
    )
    flagged = Swings.alike(decisions.fp, decisions.tp, abs(costs.tp - costs.fp))
    passed = Swings.alike(decisions.tn, decisions.fn, abs(costs.fn - costs.tn))
    return replace(_sums(cells), swings=flagged + passed)


def paired(costs: Costs, counts: Mapping[tuple[bool, bool, int], int]) -> Moments:
    """The sums of the champion's profit less the challenger's, on the same rows.

    Args:
        costs: what decisions bring.
        counts: how many rows by (the champion's decision, the challenger's, outcome).
    """
    sums = _sums(
        [(count, of(costs, one, y) - of(costs, other, y)) for (one, other, y), count in counts.items()]
    )
    # Where both decide alike nothing hangs on the outcome.
    negatives, positives = (
        sum(count for (one, other, y), count in counts.items() if one != other and y == outcome)
        for outcome in (0, 1)
    )
    c = abs(costs.tp - costs.fn - costs.fp + costs.tn)
    return replace(sums, swings=Swings.alike(negatives, positives, c))


def threshold(costs: Costs) -> float:
    """The score from which on a positive decision brings more, for calibrated scores.

    Raises:
        ValueError: the costs have no such score: being right must bring more than being wrong.
    """
    right, wrong = costs.tn - costs.fp, costs.tp - costs.fn
    if right <= 0 or wrong <= 0:
        raise ValueError("costs: tn must exceed fp, and tp must exceed fn")
    # Elkan (IJCAI 2001), equation 2.
    return right / (right + wrong)


def _sums(cells: Iterable[tuple[int, float]]) -> Moments:
    kept = list(cells)
    return Moments(
        sum(count for count, _ in kept),
        sum(count * value for count, value in kept),
        sum(count * value * value for count, value in kept),
    )
