"""Quantiles of latencies, from histograms: which are possible, and whether one variant is too slow."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping

import numpy as np
from scipy.special import betainc, betaincc, betaln, xlog1py, xlogy

from verdict.rates import PRIOR
from verdict.sequence import Floats

# Neighbouring bins of latencies differ by one per cent, as the ledger keeps them.
GROWTH = math.log(1.01)


def _log_e_values(histogram: Mapping[int, int], q: float, bins: range) -> Floats:
    """For each bin the logarithm of the e-value against the q-quantile lying in it.

    The quantile lies in a bin if at most a share q is below it, and at least q below it or in it. Each of
    the two is tested with the prior on its other side, and the mean of both e-values is taken: this holds
    for whatever distribution, also one with ties.
    """
    counts = np.array([histogram.get(each, 0) for each in bins], float)
    n = counts.sum()
    upto = np.cumsum(counts)
    # Howard & Ramdas (Bernoulli 2022): the number of values ≤ x against q, by Beta-binomial mixtures.
    likelihood = betaln(PRIOR, PRIOR)

    def one_sided(k: Floats, above: bool) -> Floats:
        part = betaincc if above else betainc
        with np.errstate(divide="ignore"):
            share = np.log(part(PRIOR + k, PRIOR + n - k, q)) - np.log(part(PRIOR, PRIOR, q))
        mixture = betaln(PRIOR + k, PRIOR + n - k) - likelihood + share
        return np.asarray(mixture - xlogy(k, q) - xlog1py(n - k, -q))

    too_low, too_high = one_sided(upto, above=False), one_sided(upto - counts, above=True)
    return np.asarray(np.logaddexp(too_low, too_high) - math.log(2))


def estimate(histogram: Mapping[int, int], q: float) -> float | None:
    """The q-quantile in ms, at the middle of its bin; None without requests.

    The inverse of the empirical distribution function (Hyndman & Fan 1996, definition 1).
    """
    place = max(1, math.ceil(q * sum(histogram.values())))
    for each in sorted(histogram):
        place -= histogram[each]
        if place <= 0:
            return math.exp((each + 0.5) * GROWTH)
    return None


def interval(histogram: Mapping[int, int], q: float, alpha: float) -> tuple[float | None, float | None]:
    """The q-quantile in ms, at every moment at once; an end that lies beyond what was seen is None.

    Args:
        histogram: requests by bin; b holds those of [1.01^b, 1.01^(b+1)) ms.
        q: in (0, 1).
        alpha: the probability that the interval ever misses.
    """
    if not histogram:
        return None, None
    # One bin beyond each end stands for all that lies there.
    bins = range(min(histogram) - 1, max(histogram) + 2)
    kept = np.flatnonzero(_log_e_values(histogram, q, bins) < -math.log(alpha))
    first, last = int(kept[0]), int(kept[-1])
    return (
        None if first == 0 else math.exp(bins[first] * GROWTH),
        None if last == len(bins) - 1 else math.exp((bins[last] + 1) * GROWTH),
    )


def log_e_value_of_ratio(
    one: Mapping[int, int],
    other: Mapping[int, int],
    q: float,
    ratio: float,
    *,
    above: bool = True,
    independent: bool = True,
) -> float:
    """The logarithm of the e-value against the other's q-quantile being at most the one's times a ratio.

    The least combination of both variants' e-values (see `rates.log_e_value_of_difference`) over the pairs
    of quantiles that are as slow as allowed.

    Args:
        one: the one's requests by bin.
        other: the other's.
        q: in (0, 1).
        ratio: above 0. Within a bin nothing is told apart: up to 2 % more than it are allowed.
        above: False tests against its being at least the one's times the ratio.
        independent: False where both were measured on the same requests.
    """
    if not one or not other:
        return 0.0
    if not above:
        return log_e_value_of_ratio(other, one, q, 1 / ratio, independent=independent)
    shift = math.ceil(math.log(ratio) / GROWTH - 1e-9) + 1
    low = min(*one, min(other) - shift) - 1
    high = max(*one, max(other) - shift) + 2
    mine = _log_e_values(one, q, range(low, high))
    # The other's, at the one's bins times the ratio, or below.
    its = np.minimum.accumulate(_log_e_values(other, q, range(low + shift, high + shift)))
    return float((mine + its if independent else np.logaddexp(mine, its) - math.log(2)).min())


def ratio_interval(
    one: Mapping[int, int], other: Mapping[int, int], q: float, alpha: float, independent: bool = True
) -> tuple[float | None, float | None]:
    """The other's q-quantile over the one's, at every moment at once; None where an end is not known.

    Args: as in `log_e_value_of_ratio`; alpha is the probability that the interval ever misses.
    """
    if not one or not other:
        return None, None
    edges = sorted((*one, *other))
    furthest = edges[-1] - edges[0] + 3

    def possible(shift: int, above: bool) -> bool:
        ratio = math.exp(shift * GROWTH)
        e = log_e_value_of_ratio(one, other, q, ratio, above=above, independent=independent)
        return e < math.log(2 / alpha)

    # The e-value against "at most" falls as the ratio grows, and that against "at least" as it shrinks.
    shifts = range(-furthest, furthest + 1)
    lower = shifts[bisect_left(shifts, True, hi=len(shifts) - 1, key=lambda shift: possible(shift, True))]
    upper = -shifts[bisect_left(shifts, True, hi=len(shifts) - 1, key=lambda shift: possible(-shift, False))]
    return (
        None if lower == -furthest else math.exp(lower * GROWTH),
        None if upper == furthest else math.exp(upper * GROWTH),
    )
