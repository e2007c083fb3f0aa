"""Whether what is asked has drifted from training."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import chi2

# A bin that nobody is in would make the index infinite: half a row is taken to be there.
HALF = 0.5


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
    before, now = np.maximum(before[used], HALF), np.maximum(now[used], HALF)
    p, q = before / before.sum(), now / now.sum()
    return float(np.sum((q - p) * np.log(q / p)))


def psi_limit(bins: int, reference: int, live: int, alpha: float = 0.05) -> float:
    """Above which a PSI is more than chance: its upper quantile where nothing has drifted.

    Without drift PSI / (1/n + 1/m) is about χ² with bins − 1 degrees of freedom. So the limit knows how many
    rows there are, which the usual .10 and .25 do not.

    Args:
        bins: that are not empty.
        reference: rows in training, n.
        live: rows in the window, m.
        alpha: the probability that chance alone exceeds it.

    Source: Yurdakul & Naranjo, "Statistical properties of the population stability index", Journal of Risk
    Model Validation 14(4), 2020, theorem 1.
    """
    if bins < 2:  # noqa: PLR2004
        return 0.0
    return float(chi2.ppf(1 - alpha, bins - 1) * (1 / reference + 1 / live))
