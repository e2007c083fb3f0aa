"""The chance that a running z-score has crossed its bounds: peeking, group sequential tests, stopping."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from verdict.sequence import Floats

POINTS = 401


def crossing(times: ArrayLike, bounds: ArrayLike, drift: float = 0.0) -> tuple[Floats, Floats]:
    """The probability to cross first at each look: above the upper bound, and below the lower one.

    Args:
        times: the information at each look, increasing, of shape (K,): at time t the sum is N(drift·t, t).
        bounds: of z = sum/√t, of shape (K,); the lower bound is the negative one.
        drift: the mean for each unit of information.

    Returns:
        Two arrays of shape (K,).

    Source: Armitage, McPherson & Rowe (JRSS A 1969), equations 3.1 and 3.2, integrated as Jennison &
    Turnbull (2000), chapter 19, by the trapezium rule on a grid between the bounds.
    """
    times, bounds = np.asarray(times, float), np.asarray(bounds, float)
    upper, lower = np.zeros(len(times)), np.zeros(len(times))
    grid, mass, before = np.zeros(1), np.ones(1), 0.0
    for look, (t, bound) in enumerate(zip(times, bounds, strict=True)):
        step, edge = np.sqrt(t - before), bound * np.sqrt(t)
        middle = grid + drift * (t - before)
        upper[look] = mass @ ndtr((middle - edge) / step)
        lower[look] = mass @ ndtr((-edge - middle) / step)
        # Beyond eight standard deviations there is nothing; a finer grid serves shorter steps.
        low, high = max(-edge, drift * t - 8 * np.sqrt(t)), min(edge, drift * t + 8 * np.sqrt(t))
        if high <= low:
            break
        points = max(POINTS, int(4 * (high - low) / step) | 1)
        new = np.linspace(low, high, points)
        weight = np.full(points, new[1] - new[0])
        weight[[0, -1]] /= 2
        density = np.exp(-0.5 * ((new[:, None] - middle[None, :]) / step) ** 2) @ mass
        mass = density * weight / (step * np.sqrt(2 * np.pi))
        grid, before = new, t
    return upper, lower


def pocock(looks: int, alpha: float = 0.05) -> float:
    """The bound of z that is the same at each of some equally spaced looks (Pocock, Biometrika 1977)."""
    return _constant(looks, alpha, np.ones(looks))


def obrien_fleming(looks: int, alpha: float = 0.05) -> Floats:
    """The bounds of z that fall with the square root of the look (O'Brien & Fleming, Biometrics 1979)."""
    shape = np.sqrt(looks / np.arange(1, looks + 1))
    return np.asarray(_constant(looks, alpha, shape) * shape)


def _constant(looks: int, alpha: float, shape: Floats) -> float:
    def excess(c: float) -> float:
        return float(sum(side.sum() for side in crossing(np.arange(1, looks + 1), c * shape)) - alpha)

    # Imported where it is needed: a router need not wait for it to start.
    from scipy.optimize import brentq  # noqa: PLC0415

    return float(brentq(excess, 1.0, 6.0, xtol=1e-7))
