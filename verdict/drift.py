"""Whether what is asked has drifted from training."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

# A bin that nobody is in would make the index infinite: half a row is taken to be there.
HALF = 0.5
# How often rows are shuffled to see what chance does, at least; the data given are one more.
SHUFFLES = 2499


def psi(reference: ArrayLike, live: ArrayLike) -> float:
    """The population stability index of counts in bins: Σ (q − p) ln(q / p).

    p and q are the shares of the bins in both; an empty bin counts as half a row. Bins that are empty in both
    are left out.

    Args:
        reference: counts in training, shape (bins,).
        live: counts in the window, shape (bins,); both have rows.

    Source: Siddiqi, "Credit Risk Scorecards" (2006), chapter 9; it is the symmetric divergence of Jeffreys
    (1946).
    """
    before, now = np.asarray(reference, float), np.asarray(live, float)
    used = (before + now) > 0
    return float(_divergence(before[used], now[used]))


def psi_limit(reference: ArrayLike, live: ArrayLike, alpha: float = 0.05) -> float:
    """Above which a PSI is more than chance: at most with probability `alpha`, where nothing has drifted.

    Then each way to part all rows into those of training and those of the window is as likely as the one
    seen. Some are drawn, and the limit is so high that the PSI seen is above it no more often than any of
    them. So it knows how many rows there are, which the usual .10 and .25 do not, and holds for bins with few
    rows, too, where the χ² of theory does not.

    Args:
        reference: counts in training, shape (bins,), whole numbers.
        live: counts in the window, shape (bins,), whole numbers.
        alpha: the probability that chance alone exceeds it.

    Source: permutation tests with drawn permutations are exact if the data count as one of them: Phipson &
    Smyth, "Permutation p-values should never be zero", Statistical Applications in Genetics and Molecular
    Biology 9(1), 2010, section 3.
    """
    before, now = np.asarray(reference, int), np.asarray(live, int)
    pooled = before + now
    pooled = pooled[pooled > 0]
    if len(pooled) < 2:  # noqa: PLR2004
        return 0.0
    shuffles = max(SHUFFLES, math.ceil(1 / alpha) - 1)
    by_chance = _by_chance(tuple(pooled.tolist()), int(now.sum()), shuffles)
    return float(by_chance[-math.floor(alpha * (shuffles + 1) + 1e-9)])


@lru_cache(maxsize=512)
def _by_chance(pooled: tuple[int, ...], live: int, shuffles: int) -> NDArray[np.float64]:
    """PSIs of windows of so many rows, drawn from all rows; ascending, and the same whenever one asks."""
    drawn = np.random.default_rng(0).multivariate_hypergeometric(pooled, live, size=shuffles)
    return np.sort(_divergence(np.asarray(pooled) - drawn, drawn))


def _divergence(before: ArrayLike, now: ArrayLike) -> NDArray[np.float64]:
    """Σ (q − p) ln(q / p) over the last axis."""
    before, now = np.maximum(before, HALF), np.maximum(now, HALF)
    p, q = before / before.sum(-1, keepdims=True), now / now.sum(-1, keepdims=True)
    return np.asarray(np.sum((q - p) * np.log(q / p), axis=-1))
