"""Is the traffic split as configured? An interval for a variant's share that holds at any moment."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from verdict.multinomial import PRIOR_REQUESTS, log_marginal

BISECTIONS = 50


def share_interval(
    k: ArrayLike, n: ArrayLike, configured: float, alpha: float = 0.05
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """An always-valid interval for a variant's share of the traffic.

    With probability 1 − alpha it covers the true share at every n at once, however often one looks. It
    excludes the configured share exactly when the sequential test for a sample ratio mismatch rejects.

    Args:
        k: requests that the variant got, any shape.
        n: requests in all, the same shape; 0 ≤ k ≤ n.
        configured: the share that it should get, in [0, 1]: the centre of the prior.
        alpha: the probability that the interval ever misses.

    Returns:
        Lower and upper ends, of the shape of k.

    Source: Lindon & Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022, whose
    Bayes factor for two cells is the Beta-binomial mixture martingale of Robbins (1970).
    """
    k, n = np.broadcast_arrays(np.asarray(k, float), np.asarray(n, float))
    if not 0 < configured < 1:
        # A variant that gets all or nothing: there is no split to be uncertain of.
        share = np.divide(k, n, out=np.full(k.shape, float(configured)), where=n > 0)
        return share, share
    a, b = PRIOR_REQUESTS * configured, PRIOR_REQUESTS * (1 - configured)
    # BF(θ) = B(a + k, b + n − k) / (B(a, b) θᵏ (1 − θ)ⁿ⁻ᵏ); the interval is {θ: BF(θ) < 1/α}.
    mixture = log_marginal(np.stack([k, n - k], axis=-1), [a, b])

    def covered(theta: NDArray[np.float64]) -> NDArray[np.bool_]:
        with np.errstate(divide="ignore", invalid="ignore"):
            likelihood = np.where(k > 0, k * np.log(theta), 0) + np.where(
                n > k, (n - k) * np.log1p(-theta), 0
            )
        inside: NDArray[np.bool_] = mixture - likelihood < -np.log(alpha)
        return inside

    # ln BF is convex in θ with its minimum at k/n, where it is below ln 1/α: one root on each side.
    peak = np.divide(k, n, out=np.full(k.shape, configured), where=n > 0)
    return _edge(covered, peak, np.zeros_like(peak)), _edge(covered, peak, np.ones_like(peak))


def _edge(
    covered: Callable[[NDArray[np.float64]], NDArray[np.bool_]],
    inside: NDArray[np.float64],
    outside: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The point between `inside` and `outside` at which the cover ends, or `outside` if it does not."""
    whole = covered(outside)
    near, far = inside.copy(), outside.copy()
    for _ in range(BISECTIONS):
        middle = (near + far) / 2
        good = covered(middle)
        near, far = np.where(good, middle, near), np.where(good, far, middle)
    return np.where(whole, outside, near)
