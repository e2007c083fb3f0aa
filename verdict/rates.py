"""Rates, exactly, at any number of requests: an e-value for one rate, and for the difference of two.

And, for one look, the interval of a proportion.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincc, betaincinv, betaln, logsumexp, xlog1py, xlogy

from verdict.sequence import Floats

# Jeffreys' prior: it costs least where rates are near 0.
PRIOR = 0.5

# The logarithm of an e-value that is as good as infinite: roots are sought among finite numbers.
UNBELIEVABLE = 1e6

# How many times as often something may be among others as it should: 2^±(1/16, 1/8, …, 4).
ODDS = 2.0 ** np.concatenate([sign * 2.0 ** np.arange(-4, 3) for sign in (-1, 1)])
# What the logarithm of that may change by from bin to bin, and how far it may go.
SLOPES, STEEPEST = (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0), 3.0

# Around its least value a convex function is flat: to know its place to a millionth of it changes the
# logarithm of an e-value by less than n · p · 10⁻¹². Where the place is 0 that needs a bound of its own.
CLOSE = 1e-6
HALVINGS = 40

# How often it happened, of how many.
Count = tuple[ArrayLike, ArrayLike]


def alike(k: ArrayLike, n: ArrayLike, together: ArrayLike) -> tuple[Floats, Floats]:
    """How often, of how many, where it happens to a unit again: as many independent ones say as much.

    Args:
        k: how often it happened, of n.
        n: of how many.
        together: Σ over the k of how many of the same unit there were before.

    Source: both are divided by the design effect (Rao & Scott, Biometrics 1992, section 2). Here that is
    Σe²/Σe, e being how often it happened to a unit: all of it where it happens seldom.
    """
    k, n, together = np.broadcast_arrays(*(np.asarray(each, float) for each in (k, n, together)))
    effect = 1 + 2 * together / np.maximum(k, 1)
    return np.asarray(k / effect), np.asarray(n / effect)


def log_e_value(k: ArrayLike, n: ArrayLike, rate: ArrayLike) -> Floats:
    """The logarithm of the e-value against a rate: convex in it, and smallest at k/n.

    Args:
        k: how often it happened, of n.
        n: of how many.
        rate: in [0, 1].
    """
    k, n, rate = np.broadcast_arrays(*(np.asarray(each, float) for each in (k, n, rate)))
    return np.asarray(_log_mixture(k, n) - _log_likelihood(k, n - k, rate))


def log_e_value_above(k: ArrayLike, n: ArrayLike, rate: ArrayLike) -> Floats:
    """The logarithm of the e-value against a rate of at most `rate`: the prior above it alone."""
    k, n, rate = np.broadcast_arrays(*(np.asarray(each, float) for each in (k, n, rate)))
    with np.errstate(divide="ignore"):
        share = np.log(betaincc(PRIOR + k, PRIOR + n - k, rate)) - np.log(betaincc(PRIOR, PRIOR, rate))
    return np.asarray(log_e_value(k, n, rate) + share)


def log_mean(*log_es: ArrayLike) -> Floats:
    """The logarithm of the mean of e-values, which is an e-value (Vovk & Wang, Annals of Statistics 2021).

    Args:
        log_es: the logarithms of each, of one shape.
    """
    return np.asarray(np.logaddexp.reduce(np.stack(log_es)) - np.log(len(log_es)))


def log_e_value_of_difference(
    one: Count, other: Count, difference: ArrayLike, independent: bool = True
) -> Floats:
    """The logarithm of the e-value against the other's rate being the one's plus a difference.

    Both e-values are combined at the pair of rates that they contradict least. Whatever the rates are, the
    combination at them is as great, so its chance ever to reach 1/α is at most α.

    Args:
        one: how often it happened, of how many.
        other: the same.
        difference: in [−1, 1].
        independent: False where both were counted on the same requests.

    Source: the product of independent e-values, and the mean of any, is one (Vovk & Wang, Annals of
    Statistics 2021, sections 3 and 4); of a composite hypothesis the infimum is (Wasserman, Ramdas &
    Balakrishnan, PNAS 2020, section 2).
    """
    k, n, m, total, d = np.broadcast_arrays(*(np.asarray(each, float) for each in (*one, *other, difference)))
    if independent:
        p = _most_likely(k, n, m, total, d)
        return np.asarray(log_e_value(k, n, p) + log_e_value(m, total, np.clip(p + d, 0, 1)))
    possible = np.maximum(0, -d), np.minimum(1, 1 - d)
    # The least is between the rates that contradict either least.
    ends = [np.clip(each, *possible) for each in (k / np.maximum(n, 1), m / np.maximum(total, 1) - d)]
    low, high = np.minimum(*ends), np.maximum(*ends)
    misses, its_misses = n - k, total - m
    mixture, its_mixture = _log_mixture(k, n), _log_mixture(m, total)

    def falls(p: Floats) -> NDArray[np.bool_]:
        """Whether the combination, which is convex, falls at p."""
        q = np.minimum(np.maximum(p + d, 0), 1)
        ahead = mixture - _log_likelihood(k, misses, p) - its_mixture + _log_likelihood(m, its_misses, q)
        mine = _slope(k, misses, p) * np.exp(np.minimum(ahead, 0))
        return np.asarray(mine + _slope(m, its_misses, q) * np.exp(np.minimum(-ahead, 0)) < 0)

    # Where no rates are possible both are infinite, and it does not matter where one looks.
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(HALVINGS):
            if (high - low <= CLOSE * high).all():
                break
            middle = (low + high) / 2
            left = falls(middle)
            low, high = np.where(left, middle, low), np.where(left, high, middle)
    p = (low + high) / 2
    both = log_e_value(k, n, p), log_e_value(m, total, np.clip(p + d, 0, 1))
    return np.asarray(np.logaddexp(*both) - np.log(2))


def log_e_value_of_excess(one: Count, other: Count, margin: ArrayLike, independent: bool = True) -> Floats:
    """The logarithm of the e-value against the other's rate being at most the one's plus a margin."""
    k, n, m, total, margin = np.broadcast_arrays(
        *(np.asarray(each, float) for each in (*one, *other, margin))
    )
    seen = m / np.maximum(total, 1) - k / np.maximum(n, 1)
    # Where what was seen is within the margin, it itself contradicts least.
    return log_e_value_of_difference((k, n), (m, total), np.where(seen > margin, margin, seen), independent)


def log_e_value_of_odds(k: ArrayLike, n: ArrayLike, shares: ArrayLike) -> Floats:
    """The logarithm of the e-value against each of n being one of some kind as often as it should.

    A mixture over how many times as often one of the kind is among them as it should. Strata in which other
    shares hold count together, since it is the same times in all of them.

    Args:
        k: how many are of the kind, of n, of shape (…, strata).
        n: of how many.
        shares: with which probability each of them is to be one, in [0, 1].

    Returns:
        Of shape (…).

    Source: a mixture of likelihood ratios (Robbins, Annals of Mathematical Statistics 1970).
    """
    k, n, shares = np.broadcast_arrays(*(np.asarray(each, float) for each in (k, n, shares)))
    told = [_log_ratio(k, n, shares, each).sum(-1) for each in np.log(ODDS).tolist()]
    return np.asarray(logsumexp(np.stack(told), axis=0) - np.log(len(ODDS)))


def log_e_value_of_trend(k: ArrayLike, n: ArrayLike, shares: ArrayLike, most: float) -> Floats:
    """The same where bins follow each other, and it may be more often in low ones, and less in high ones.

    Against its being, in each bin for itself, at most so many times as often as it should, or as seldom.

    Args:
        k: how many are of the kind, of n, of shape (…, bins, strata).
        n: of how many.
        shares: with which probability each of them is to be one, in [0, 1].
        most: how many times as often it may be.

    Returns:
        Of shape (…).

    Source: as above; of a composite hypothesis over the greatest likelihood in it (Wasserman, Ramdas &
    Balakrishnan, PNAS 2020, section 2).
    """
    k, n, shares = np.broadcast_arrays(*(np.asarray(each, float) for each in (k, n, shares)))
    bins = np.arange(k.shape[-2]) + 0.5
    trends = [
        slope * (bins - middle)[:, None] for slope in SLOPES for middle in np.arange(1, k.shape[-2]).tolist()
    ]
    told = [_log_ratio(k, n, shares, np.clip(each, -STEEPEST, STEEPEST)).sum((-2, -1)) for each in trends]
    allowed = [_log_ratio(k, n, shares, each).sum(-1) for each in np.log(most) * np.linspace(-1, 1, 17)]
    mixture = logsumexp(np.stack(told), axis=0) - np.log(len(trends))
    return np.asarray(mixture - np.stack(allowed).max(0).sum(-1))


def _log_ratio(k: Floats, n: Floats, shares: Floats, log_odds: ArrayLike) -> Floats:
    """By how much more likely k of n are, where each is so many times as often one as it should be."""
    log_odds = np.asarray(log_odds, float)
    return np.asarray(k * log_odds - n * np.log1p(shares * np.expm1(log_odds)))


def difference(one: Count, other: Count) -> float:
    """What the other's rate is above the one's, over all periods (Mantel & Haenszel's weights)."""
    k, n, m, total = (np.asarray(each, float) for each in (*one, *other))
    weights = n * total / np.maximum(n + total, 1)
    differences = m / np.maximum(total, 1) - k / np.maximum(n, 1)
    return float((weights * differences).sum() / max(weights.sum(), 1e-300))


def difference_interval(
    one: Count, other: Count, alpha: float, independent: bool = True
) -> tuple[float, float]:
    """What the other's rate is above the one's, at every moment at once with probability 1 − alpha.

    Args:
        one: how often it happened, of how many; of several periods arrays.
        other: the same.
        alpha: the probability that the interval ever misses.
        independent: False where both were counted on the same requests.

    Returns:
        Lower and upper end, in [−1, 1], where the e-values of all periods against a difference of at most,
        and of at least that come to 1/alpha together. Where periods differ in their difference, the greatest
        is above the lower end, and the least below the upper one.
    """
    # Imported where it is needed: a router need not wait for it to start.
    from scipy.optimize import brentq  # noqa: PLC0415

    def least(one: Count, other: Count) -> float:
        """What the other's rate is above the one's at least."""

        def excess(difference: float) -> float:
            log_e = log_e_value_of_excess(one, other, difference, independent).sum()
            return min(float(log_e), UNBELIEVABLE) + float(np.log(alpha))

        return -1.0 if excess(-1.0) < 0 else float(brentq(excess, -1.0, 1.0, xtol=1e-10))

    lower, upper = least(one, other), -least(other, one)
    return min(lower, upper), max(lower, upper)


def proportion_interval(k: ArrayLike, n: ArrayLike, alpha: float = 0.05) -> tuple[Floats, Floats]:
    """The exact interval of a proportion, for one look: k of n, any shape; [0, 1] where n is 0.

    It misses the proportion with a probability of alpha at most.

    Source: Clopper & Pearson, Biometrika 26 (1934).
    """
    hits, total = np.asarray(k, float), np.asarray(n, float)
    with np.errstate(invalid="ignore"):
        lower = np.where(hits > 0, betaincinv(hits, total - hits + 1, alpha / 2), 0.0)
        upper = np.where(hits < total, betaincinv(hits + 1, total - hits, 1 - alpha / 2), 1.0)
    return lower, upper


def _most_likely(k: Floats, n: Floats, m: Floats, total: Floats, d: Floats) -> Floats:
    """The rate p of the one at which p and p + d are most likely, and so are contradicted least."""
    # Miettinen & Nurminen (Statistics in Medicine 1985, appendix I): the root of a cubic.
    all_ = n + total
    third = ((total + 2 * n) * d - all_ - k - m) / (3 * all_)
    linear = ((n * d - all_ - 2 * k) * d + k + m) / (3 * all_)
    q = third**3 - 3 * third * linear / 2 + k * d * (1 - d) / (2 * all_)
    root = np.where(q < 0, -1, 1) * np.sqrt(np.maximum(third**2 - linear, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.where(root == 0, 1.0, q / root**3)
    p = 2 * root * np.cos((np.pi + np.arccos(np.clip(cosine, -1, 1))) / 3) - third
    return np.asarray(np.clip(p, np.maximum(0, -d), np.minimum(1, 1 - d)))


def _log_mixture(k: Floats, n: Floats) -> Floats:
    """The logarithm of the chance of k of n where the rate is drawn from the prior."""
    # Robbins (Annals of Mathematical Statistics 1970), the Beta-binomial mixture:
    # B(a + k, b + n − k) / (B(a, b) pᵏ (1 − p)ⁿ⁻ᵏ), whose denominator is `_log_likelihood`.
    return np.asarray(betaln(PRIOR + k, PRIOR + n - k) - betaln(PRIOR, PRIOR))


def _log_likelihood(k: Floats, misses: Floats, rate: Floats) -> Floats:
    """The logarithm of the chance that it happens k times, and otherwise does not, in a given order."""
    return np.asarray(xlogy(k, rate) + xlog1py(misses, -rate))


def _slope(k: Floats, misses: Floats, rate: Floats) -> Floats:
    """The slope of `log_e_value` in the rate."""
    return np.where(misses > 0, misses / (1 - rate), 0.0) - np.where(k > 0, k / rate, 0.0)
