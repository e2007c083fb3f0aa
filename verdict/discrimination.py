"""How well scores rank outcomes: areas under the curve, from histograms. They diagnose, and never decide."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from verdict.sequence import Floats

# An area is worth showing where ties within bins can move it by no more.
BLUR = 0.01

# Of rows with the outcome 0, and of those with 1, how many by bin of the score.
Histograms = tuple[Mapping[int, int], Mapping[int, int]]


class PairedAreas(NamedTuple):
    """The areas of two models on the same rows, and the standard error of their difference."""

    one: float
    other: float
    error: float


def area(negatives: Mapping[int, int], positives: Mapping[int, int]) -> float | None:
    """The area under the ROC curve, ties counted by half; None where an outcome is missing.

    Args:
        negatives: of rows with the outcome 0, how many by bin of the score.
        positives: of rows with the outcome 1.
    """
    n, m = sum(negatives.values()), sum(positives.values())
    if not n or not m:
        return None
    bins = sorted({*negatives, *positives})
    below, won = 0, 0.0
    for each in bins:
        won += positives.get(each, 0) * (below + negatives.get(each, 0) / 2)
        below += negatives.get(each, 0)
    return won / (n * m)


def blur(negatives: Mapping[int, int], positives: Mapping[int, int]) -> float:
    """By how much the area may exceed what `area` says, since scores of a bin are taken for ties.

    By half of the pairs of a negative and a positive that share a bin, where nothing else is known. Where
    higher scores mean more of the outcome, within bins as well, the ROC curve is concave (Egan, "Signal
    Detection Theory and ROC Analysis", 1975): in a bin it runs above its chord, and below the chords of the
    neighbours, drawn on until they meet.

    Args: as in `area`.
    """
    n, m = sum(negatives.values()), sum(positives.values())
    if not n or not m:
        return 0.0
    bins = [(negatives.get(each, 0), positives.get(each, 0)) for each in sorted({*negatives, *positives})]
    rises = [0.0, *(_odds_ratio(*neighbours) for neighbours in pairwise(bins)), 0.0]
    lost = sum(
        # The triangle above the chord, as a part of the bin's rectangle.
        mine * its * (1 - before) * (1 - after) / (1 - before * after) / 2
        for (mine, its), (before, after) in zip(bins, pairwise(rises), strict=True)
    )
    return lost / (n * m)


def _odds_ratio(lower: tuple[int, int], upper: tuple[int, int]) -> float:
    """The odds of the outcome in a bin over those in the next one; 0 where chance has them not rise."""
    (n, m), (its_n, its_m) = lower, upper
    ratio = m * its_n / (n * its_m) if n and its_m else 0.0
    return ratio if ratio < 1 else 0.0


def sides(joint: Mapping[tuple[int, int, int], int]) -> tuple[Histograms, Histograms]:
    """The histograms of each of two models, from those of both together."""
    found: tuple[tuple[Counter[int], Counter[int]], ...] = tuple((Counter(), Counter()) for _ in range(2))
    for (*scores, outcome), count in joint.items():
        for histograms, each in zip(found, scores, strict=True):
            histograms[outcome][each] += count
    return found[0], found[1]


def paired_areas(joint: Mapping[tuple[int, int, int], int]) -> PairedAreas | None:
    """Both areas on the same rows, with the error of their difference; None with under 2 of an outcome.

    Source: DeLong, DeLong & Clarke-Pearson (Biometrics 1988), equations 4 to 6, the placements found by
    ranks as in Sun & Xu (IEEE Signal Processing Letters 2014). Within a bin scores are ties.

    Args:
        joint: how many rows by (bin of the one's score, bin of the other's, outcome).
    """
    if not joint:
        return None
    keys = np.array(list(joint), int)
    counts = np.array(list(joint.values()), float)
    positive = keys[:, 2] == 1
    m, n = counts[positive].sum(), counts[~positive].sum()
    if min(m, n) < 2:  # noqa: PLR2004
        return None
    v10, v01 = zip(*(_placements(keys[:, model], counts, positive) for model in (0, 1)), strict=True)
    areas = [float((counts[positive] * v).sum() / m) for v in v10]
    spread = [
        float((weights * ((one - other) - (areas[0] - areas[1])) ** 2).sum() / (size - 1) / size)
        for (one, other), weights, size in (
            (v10, counts[positive], m),
            (v01, counts[~positive], n),
        )
    ]
    return PairedAreas(areas[0], areas[1], math.sqrt(sum(spread)))


def _placements(bins: np.ndarray, counts: Floats, positive: np.ndarray) -> tuple[Floats, Floats]:
    """For each positive the share of negatives it beats; for each negative that of positives that beat it."""
    order, at = np.unique(bins, return_inverse=True)
    mine = np.bincount(at[positive], counts[positive], len(order))
    its = np.bincount(at[~positive], counts[~positive], len(order))
    beaten = (np.cumsum(its) - its / 2) / its.sum()
    beating = 1 - (np.cumsum(mine) - mine / 2) / mine.sum()
    return beaten[at[positive]], beating[at[~positive]]
