"""The interval that holds at every moment at once, and the e-value that belongs to it.

All that is asked of an estimate is its standard error and how many observations it is from: a mean of
differences in pairs, a difference of means, a weighted one. A parameter lies outside the interval exactly
when its e-value has reached 1/α.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_ndtr

Floats = NDArray[np.float64]

BISECTIONS = 60


def ratio(n: ArrayLike, n_star: float, alpha: float) -> Floats:
    """How much is still unknown, beside what is known: r = ρ/V of the mixture.

    Args:
        n: observations.
        n_star: how many there are where the interval is tightest.
        alpha: the level for which it is tightest.
    """
    # Howard et al. (Annals of Statistics 2021), section 3.5; Waudby-Smith et al. (arXiv 2103.06476) on ρ:
    # L = −2 ln α + ln(1 − 2 ln α), r = N* / (L n)
    told = -2 * np.log(alpha) + np.log1p(-2 * np.log(alpha))
    return np.asarray(n_star / (told * np.maximum(np.asarray(n, float), 1)))


def radius(error: ArrayLike, n: ArrayLike, n_star: float, alpha: float) -> Floats:
    """The half-width of the two-sided interval: any moment, with probability 1 − α all at once.

    Args:
        error: the standard error of the estimate, any shape; 0 gives 0, infinite gives infinite.
        n: observations, of the same shape.
        n_star: how many there are where the interval is tightest, declared before the start.
        alpha: the probability that it ever misses.
    """
    r = ratio(n, n_star, alpha)
    # Waudby-Smith et al. (arXiv 2103.06476), theorem 2.2: se √((1 + r) ln((1 + 1/r) / α²))
    return np.asarray(np.asarray(error, float) * np.sqrt((1 + r) * np.log((1 + 1 / r) / alpha**2)))


def log_e_value(excess: ArrayLike, error: ArrayLike, n: ArrayLike, n_star: float, alpha: float) -> Floats:
    """The logarithm of the e-value against the estimate being right by `excess` too high or too low.

    Args:
        excess: the estimate less what it is tested for.
        error: its standard error. Where that is 0 nothing contradicts an excess of 0, and no other is taken
            for certain.
        n: observations.
        n_star: as in `radius`.
        alpha: as in `radius`.
    """
    r = ratio(n, n_star, alpha)
    z = _standardized(excess, error)
    # Howard et al. (2021), equation 14, is where this reaches 1/α; Johari et al. (Operations Research 2022)
    # call it the mixture SPRT, with r = se²/τ²: √(r/(1+r)) exp(z² / (2(1+r)))
    return np.asarray(0.5 * np.log(r / (1 + r)) + z * z / (2 * (1 + r)))


def log_e_value_above(
    excess: ArrayLike, error: ArrayLike, n: ArrayLike, n_star: float, alpha: float
) -> Floats:
    """The logarithm of the e-value against the excess being 0 or below.

    Args: as in `log_e_value`; alpha is one-sided.
    """
    r = _ratio_above(n, n_star, alpha)
    z = _standardized(excess, error)
    # Howard et al. (2021), proposition 6: 2 √(r/(1+r)) exp(z² / (2(1+r))) Φ(z/√(1+r)) with r = ρ/V
    return np.asarray(
        np.log(2) + 0.5 * np.log(r / (1 + r)) + z * z / (2 * (1 + r)) + log_ndtr(z / np.sqrt(1 + r))
    )


def radius_above(error: ArrayLike, n: ArrayLike, n_star: float, alpha: float) -> Floats:
    """How far below the estimate the one-sided lower bound lies; above it, as far, the upper one.

    Args: as in `radius`; alpha is one-sided.
    """
    error, n = np.broadcast_arrays(np.asarray(error, float), np.asarray(n, float))
    r = _ratio_above(n, n_star, alpha)
    # The e-value grows with z. One side asks for no more than two sides do.
    low, high = np.zeros(n.shape), np.sqrt((1 + r) * np.log((1 + 1 / r) / alpha**2))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        inside = log_e_value_above(middle, 1.0, n, n_star, alpha) < -np.log(alpha)
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return np.asarray(error * high)


def _ratio_above(n: ArrayLike, n_star: float, alpha: float) -> Floats:
    """A one-sided α is a two-sided 2α; it says where one is tightest, so any number below 1 serves."""
    return ratio(n, n_star, min(2 * alpha, 0.5))


def _standardized(excess: ArrayLike, error: ArrayLike) -> Floats:
    excess, error = np.broadcast_arrays(np.asarray(excess, float), np.asarray(error, float))
    known = (error > 0) & np.isfinite(error)
    return np.asarray(np.divide(excess, error, out=np.zeros(error.shape), where=known))
