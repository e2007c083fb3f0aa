"""Shares that change: by which weights rows then count, and how Thompson sampling moves them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from verdict.sequence import Floats

Weighting = Literal["overlap", "inverse"]


def tilt(weighting: Weighting, shares: Iterable[float]) -> float:
    """The tilt h of the weights h/π by which rows count that were assigned by some shares, all above 0.

    "overlap" counts a time by how much both variants were asked in it, "inverse" by its requests. The weights
    of overlap are at most 1 however small a share is: of two variants each row counts by the other's share.

    Source: Li & Li (Annals of Applied Statistics 2019), equation 5; for two variants Li, Morgan & Zaslavsky
    (Journal of the American Statistical Association 2018), table 1.
    """
    inverse = sum(1 / share for share in shares)
    return 1 / inverse if weighting == "overlap" and inverse else 1.0


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
