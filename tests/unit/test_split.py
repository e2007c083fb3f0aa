"""The interval of a variant's share: right at every moment, and no wider than that takes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import gammaln
from scipy.stats import binomtest

from verdict.split import share_interval

ALPHA = 0.05


def log_bayes_factor(counts: list[int], shares: list[float], c: float = 1000.0) -> float:
    """Lindon & Malek (NeurIPS 2022), for any number of cells, as they write it."""
    n, theta = np.array(counts), np.array(shares)
    prior = c * theta
    return float(
        gammaln(prior.sum())
        - gammaln(prior).sum()
        + gammaln(prior + n).sum()
        - gammaln(prior.sum() + n.sum())
        - (n * np.log(theta)).sum()
    )


@pytest.mark.parametrize(("k", "n"), [(82, 100), (380, 500), (440, 500), (7_900, 10_000), (81_000, 100_000)])
def test_it_excludes_the_configured_share_exactly_when_the_sequential_test_rejects(k: int, n: int) -> None:
    lower, upper = share_interval(k, n, 0.8, ALPHA)
    rejects = log_bayes_factor([k, n - k], [0.8, 0.2]) >= np.log(1 / ALPHA)
    assert rejects == (not lower <= 0.8 <= upper)


def test_its_ends_are_where_the_mixture_reaches_its_bound() -> None:
    k, n, configured = 410, 500, 0.8
    a, b = 1000 * configured, 1000 * (1 - configured)

    def excess(theta: float) -> float:
        mixture = gammaln(a + k) + gammaln(b + n - k) - gammaln(a + b + n)
        prior = gammaln(a) + gammaln(b) - gammaln(a + b)
        return float(mixture - prior - k * np.log(theta) - (n - k) * np.log1p(-theta) - np.log(1 / ALPHA))

    lower, upper = share_interval(k, n, configured, ALPHA)
    assert float(lower) == pytest.approx(brentq(excess, 1e-6, k / n), abs=1e-9)
    assert float(upper) == pytest.approx(brentq(excess, k / n, 1 - 1e-6), abs=1e-9)


def test_watched_at_every_request_it_rarely_misses_where_the_usual_interval_often_does() -> None:
    rng = np.random.default_rng(2022)
    streams, length = 400, 2000
    n = np.arange(1, length + 1)
    missed = missed_usual = 0
    for _ in range(streams):
        k = np.cumsum(rng.random(length) < 0.8)
        lower, upper = share_interval(k, n, 0.8, ALPHA)
        missed += bool(((lower > 0.8) | (upper < 0.8)).any())
        usual = 1.96 * np.sqrt(k / n * (1 - k / n) / n)
        missed_usual += bool((np.abs(k / n - 0.8) > usual)[50:].any())
    assert binomtest(missed, streams).proportion_ci(0.99).high <= ALPHA
    assert missed_usual / streams > 4 * ALPHA


def test_it_finds_a_router_that_splits_differently() -> None:
    rng = np.random.default_rng(7)
    k = np.cumsum(rng.random(20_000) < 0.75)
    lower, upper = share_interval(k, np.arange(1, 20_001), 0.8, ALPHA)
    assert ((lower > 0.8) | (upper < 0.8))[-1]


@pytest.mark.parametrize(("k", "n"), [(0, 0), (0, 1), (1, 1), (0, 10_000), (10_000, 10_000)])
def test_its_ends_stay_within_the_possible(k: int, n: int) -> None:
    lower, upper = share_interval(k, n, 0.8)
    assert 0 <= lower <= (k / n if n else 0.8) <= upper <= 1


def test_a_variant_that_gets_all_or_nothing_is_not_uncertain() -> None:
    assert [float(end) for end in share_interval(30, 30, 1.0)] == [1.0, 1.0]
    assert [float(end) for end in share_interval(0, 30, 0.0)] == [0.0, 0.0]
