"""What two variants differ by where their shares changed: each row counts by its inverse propensity."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from verdict.moments import ROUNDING, WeightedMoments
from verdict.sequence import Floats


def mean(arm: WeightedMoments) -> float:
    """The variant's mean score over all requests, also over those that others got; 0 without rows."""
    # Hájek (1971): Σws / Σw
    return arm.ws / arm.w if arm.w > 0 else 0.0


def standard_error(arm: WeightedMoments) -> float:
    """Of that mean, by linearization; infinite with fewer than two rows, 0 where all scores are equal."""
    if arm.n < 2 or arm.w <= 0:  # noqa: PLR2004
        return math.inf
    m = mean(arm)
    # The pseudo-outcomes w (s − mean) of Waudby-Smith et al. (arXiv 2103.06476), section 3, around the mean.
    spread = arm.w2s2 - 2 * m * arm.w2s + m * m * arm.w2
    if spread <= ROUNDING * arm.w2s2:
        return 0.0
    return math.sqrt(spread * arm.n / (arm.n - 1)) / arm.w


def difference(one: WeightedMoments, other: WeightedMoments) -> tuple[float, float, int]:
    """The one's mean less the other's, its standard error, and from how many rows it is."""
    error = math.hypot(standard_error(one), standard_error(other))
    return mean(one) - mean(other), error, one.n + other.n


def thompson(ahead: ArrayLike, error: ArrayLike, floor: float) -> Floats:
    """The next share of the second of two arms: the chance that it is the better one, and at least the floor.

    That is Thompson sampling by a normal posterior. The router draws from those of both rates, which comes to
    the same from some dozens of outcomes on.

    Args:
        ahead: what it is better by, any shape.
        error: the standard error of that; infinite, or 0, where nothing is known.
        floor: the least share of each arm.
    """
    value, error = np.broadcast_arrays(np.asarray(ahead, float), np.asarray(error, float))
    known = np.isfinite(error) & (error > 0)
    z = np.divide(value, error, out=np.zeros(value.shape), where=known)
    # Liang & Bojinov (arXiv 2311.05794), section 3: floor + (1 − K·floor) · P(it is the best)
    return np.asarray(floor + (1 - 2 * floor) * ndtr(z))
