"""Do counts follow the configured shares? One Bayes factor that may be looked at after every request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln, xlogy

from verdict.sequence import Floats

# The weight of the prior in requests: how many it takes until the test is at its sharpest.
# Lindon & Malek (NeurIPS 2022) write it c; it then finds a mismatch of a few per cent in some thousands.
PRIOR_REQUESTS = 1000.0


def log_marginal(counts: ArrayLike, prior: ArrayLike) -> Floats:
    """The logarithm of the probability of a sequence with these counts, its shares drawn from the prior.

    Args:
        counts: of shape (…, K).
        prior: the parameters of the Dirichlet distribution, of shape (…, K), greater than 0.

    Returns:
        Of shape (…).
    """
    counts, prior = np.asarray(counts, float), np.asarray(prior, float)
    # Lindon & Malek (NeurIPS 2022), of whose Bayes factor it is the numerator:
    # Γ(Σα) / Γ(Σα + n) · Π Γ(α_i + n_i) / Γ(α_i)
    return np.asarray(
        gammaln(prior.sum(-1))
        - gammaln(prior.sum(-1) + counts.sum(-1))
        + (gammaln(prior + counts) - gammaln(prior)).sum(-1)
    )


def log_bayes_factor(counts: ArrayLike, shares: ArrayLike) -> Floats:
    """The logarithm of the Bayes factor against the shares; a mismatch at ln(1/α) or above.

    Args:
        counts: of shape (…, K).
        shares: K, each above 0; they sum to 1. The prior is centred at them.
    """
    counts, shares = np.asarray(counts, float), np.asarray(shares, float)
    return np.asarray(log_marginal(counts, PRIOR_REQUESTS * shares) - xlogy(counts, shares).sum(-1))


def log_bayes_factor_of_periods(periods: Iterable[tuple[Mapping[str, float], Mapping[str, int]]]) -> float:
    """The same where shares change: the product over periods of constant ones.

    What is counted of a variant whose share is 0 is certainly a mismatch: infinity.

    Args:
        periods: shares and counts, by variant.
    """
    found = 0.0
    for shares, counts in periods:
        names = [name for name, share in shares.items() if share > 0]
        if any(count for name, count in counts.items() if name not in names):
            return np.inf
        if len(names) > 1:
            told = [counts.get(name, 0) for name in names]
            whole = sum(shares[name] for name in names)
            found += float(log_bayes_factor(told, [shares[name] / whole for name in names]))
    return found
