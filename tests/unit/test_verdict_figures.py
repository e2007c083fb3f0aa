"""Published figures, each with its source: what follows the formulas meets them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from verdict import bernstein, multinomial, plan, rates, sequence, sequential
from verdict.discrimination import area, paired_areas
from verdict.evidence import Costs, Decisions
from verdict.harness import PAIR, PUBLISHED, PUBLISHED_INTERVAL, pairing, sample_ratio
from verdict.moments import Moments
from verdict.money import moments, threshold
from verdict.quantiles import GROWTH, estimate, interval, log_e_value_of_ratio, ratio_interval
from verdict.simulate import Running


def test_the_best_rho_is_that_of_howards_reference_implementation() -> None:
    # confseq, test/uniform_boundaries_unittest.cpp: best_rho(100, .05)
    assert bernstein.best_rho(100, 0.05) == pytest.approx(12.60056, abs=1e-5)


def test_the_core_is_howards_two_sided_normal_mixture() -> None:
    # The same file: s = 10, v = 100, optimal at v = 100 for α = .05. That is n = 100 of variance 1.
    assert float(sequence.log_e_value(10, 10, 100, 100, 0.05)) == pytest.approx(-0.6510052, abs=1e-6)
    assert float(sequence.radius(10, 100, 100, 0.05)) == pytest.approx(30.35209, abs=1e-5)


def test_one_side_of_the_core_is_howards_one_sided_normal_mixture() -> None:
    # The same file.
    assert float(sequence.log_e_value_above(10, 10, 100, 100, 0.05)) == pytest.approx(-0.06502391, abs=1e-6)
    assert float(sequence.radius_above(10, 100, 100, 0.05)) == pytest.approx(27.66071, abs=1e-5)


def test_the_exact_interval_is_howards_gamma_exponential_mixture() -> None:
    # The same file, c = 2; there α is of one side, and ρ the best for twice that.
    rho = bernstein.best_rho(100, 0.1)
    assert float(bernstein.log_mixture(10, 100, rho, 2)) == pytest.approx(-0.2490165, abs=1e-6)
    assert float(bernstein.radius(1, 100, rho, 2, 0.1)) == pytest.approx(33.02017, abs=1e-5)


@pytest.mark.parametrize("v", [1e2, 1e5, 1e9, 1e13])
def test_the_exact_interval_stays_a_number_however_much_was_seen(v: float) -> None:
    rho = bernstein.best_rho(v, 0.05)
    width = float(bernstein.radius(1, v, rho, 1, 0.05)) / math.sqrt(v)
    # At V = v_opt the bound nears the normal mixture's, √(−2 ln α + …) = 3.035 standard errors.
    assert width == pytest.approx(3.035, abs=15 / math.sqrt(v) + 1e-3)


def test_peeking_costs_three_standard_errors_at_the_planned_sample() -> None:
    # The design's figure, from equation 14 of Howard et al. (2021) at its optimum.
    assert float(sequence.radius(1, 5000, 5000, 0.05)) == pytest.approx(3.035, abs=5e-4)


def test_the_core_gives_the_interval_that_growthbook_prints_of_its_own_test() -> None:
    # gbstats, tests of the sequential two-sided test: sums, relative effect, N* = 1000.
    (n, s, q), (m, t, u), tuning = PUBLISHED
    one, other = Moments(n, s, q), Moments(m, t, u)
    effect = other.mean / one.mean - 1
    error = math.sqrt(other.variance / m / one.mean**2 + one.variance / n * other.mean**2 / one.mean**4)
    width = float(sequence.radius(error, n + m, tuning, 0.05))
    assert effect == pytest.approx(0.50336, abs=1e-5)
    assert (effect - width, effect + width) == pytest.approx(PUBLISHED_INTERVAL, abs=1e-5)


@pytest.mark.parametrize(("looks", "rate"), [(1, 0.05), (2, 0.0831), (5, 0.1417), (10, 0.1934), (20, 0.2479)])
def test_naive_peeking_rejects_as_often_as_armitage_computed(looks: int, rate: float) -> None:
    # Armitage, McPherson & Rowe (JRSS A 1969), table 2.
    bounds = np.full(looks, norm.ppf(0.975))
    sides = sequential.crossing(np.arange(1, looks + 1), bounds)
    assert float(sum(side.sum() for side in sides)) == pytest.approx(rate, abs=6e-5)


def test_the_group_sequential_bounds_are_the_published_ones() -> None:
    # Jennison & Turnbull (2000), tables 2.1 and 2.3: C_P = 2.413 and C_B = 2.040 for five looks at .05.
    assert sequential.pocock(5) == pytest.approx(2.413, abs=6e-4)
    assert sequential.obrien_fleming(5)[-1] == pytest.approx(2.040, abs=6e-4)


def test_one_has_stopped_by_the_multiples_of_the_fixed_sample_that_the_design_names() -> None:
    # The design's own figures, simulated there: .53, .75, .88, .997.
    stops = plan.stopping(0.05, 0.8)
    assert [stops.chance(each) for each in plan.MULTIPLES] == pytest.approx(
        [0.53, 0.75, 0.88, 0.997], abs=0.01
    )


def test_pairs_of_two_credit_models_take_as_few_outcomes_as_the_design_says() -> None:
    # The design's figures: 8 % defaults, AUC .731 against .744, scores that correlate .996; a fixed test then
    # needs about 5.7 thousand pairs, against 2.9 million unpaired. That S is the Brier score follows from
    # their ratio: 2(σ₁² + σ₂²)/σ_d², which for equal σ is 2/(1 − .996) = 500.
    assert (PAIR.rate, PAIR.champion, PAIR.challenger) == (0.08, 0.731, 0.744)
    [found] = [each for each in pairing() if each.correlation == PAIR.correlation]
    assert found.scores == pytest.approx(0.996, abs=5e-4)
    assert found.paired == pytest.approx(5700, rel=0.2)
    assert found.unpaired == pytest.approx(2.9e6, rel=0.2)
    assert found.unpaired / found.paired == pytest.approx(500, rel=0.05)


def test_a_split_of_52_to_48_is_found_as_soon_as_lindon_and_malek_say() -> None:
    # The design's figures for their test, c = 1000, a look every 100 requests, .05: 5,100 and .029.
    median, false = sample_ratio(1000)
    assert median == pytest.approx(5100, abs=400)
    assert false.ends[0] <= 0.029 <= false.ends[1]


def test_the_bayes_factor_is_lindon_and_maleks_for_three_variants() -> None:
    # Against the definition, as a product of predictive probabilities: Πₜ (α_i + n_i) / (Σα + n) / θ_i.
    shares, alpha = np.array([0.5, 0.3, 0.2]), 1000 * np.array([0.5, 0.3, 0.2])
    order = np.random.default_rng(1).permutation([0] * 30 + [1] * 10 + [2] * 25)
    log_e, seen = 0.0, np.zeros(3)
    for each in order:
        log_e += math.log((alpha[each] + seen[each]) / (alpha + seen).sum() / shares[each])
        seen[each] += 1
    assert float(multinomial.log_bayes_factor(seen, shares)) == pytest.approx(log_e, abs=1e-9)


def test_the_interval_of_a_proportion_is_that_of_clopper_and_pearson() -> None:
    # As R's binom.test(7, 20) prints it. Of none in n, (1 − p)ⁿ = α/2; of n in n, pⁿ = α/2.
    lower, upper = rates.proportion_interval([7, 0, 10, 0], [20, 10, 10, 0])
    assert lower == pytest.approx([0.1539092, 0, 0.025**0.1, 0])
    assert upper == pytest.approx([0.5921885, 1 - 0.025**0.1, 1, 1])


def test_a_fixed_sample_is_that_of_the_textbook() -> None:
    # (1.959964 + .841621)² = 7.8489 for σ = δ; Lachin (1981).
    assert plan.fixed_sample_size(1, 1, 0.05, 0.8) == pytest.approx(7.8489, abs=1e-4)


def test_the_threshold_is_elkans() -> None:
    # Elkan (IJCAI 2001), equation 2: a false positive costs 1, a false negative 4, being right nothing.
    assert threshold(Costs(tp=0, fp=-1, tn=0, fn=-4)) == pytest.approx(1 / 5)
    made = moments(Costs(tp=0, fp=-1, tn=0.5, fn=-4), Decisions(tp=3, fp=2, tn=10, fn=1))
    assert (made.n, made.total, made.squares) == (16, -2 + 5 - 4, 2 + 2.5 + 16)


def test_the_paired_areas_and_their_error_are_delongs() -> None:
    # By their definition, as means over all pairs of a positive and a negative: DeLong et al. (1988).
    rng = np.random.default_rng(4)
    y = (rng.random(300) < 0.3).astype(int)
    scores = [np.clip((20 + 6 * y + 5 * rng.standard_normal(300)).astype(int), 0, 49) for _ in range(2)]
    joint: dict[tuple[int, int, int], int] = {}
    for one, other, outcome in zip(*scores, y, strict=True):
        key = (int(one), int(other), int(outcome))
        joint[key] = joint.get(key, 0) + 1
    kernels = [
        (s[y == 1][:, None] > s[y == 0][None, :]) + 0.5 * (s[y == 1][:, None] == s[y == 0][None, :])
        for s in scores
    ]
    v10 = np.stack([k.mean(1) for k in kernels])
    v01 = np.stack([k.mean(0) for k in kernels])
    cover = np.cov(v10) / v10.shape[1] + np.cov(v01) / v01.shape[1]
    found = paired_areas(joint)
    assert found is not None
    assert (found.one, found.other) == pytest.approx([float(k.mean()) for k in kernels])
    assert found.error == pytest.approx(math.sqrt(cover[0, 0] + cover[1, 1] - 2 * cover[0, 1]))
    histograms = [
        dict(zip(*np.unique(scores[0][y == each], return_counts=True), strict=True)) for each in (0, 1)
    ]
    assert area(*histograms) == pytest.approx(found.one)


def test_the_e_value_of_a_rate_is_the_mixture_over_its_prior() -> None:
    # By quadrature over Jeffreys' prior.
    theta = (np.sin((np.arange(200_000) + 0.5) / 200_000 * np.pi / 2)) ** 2
    k, n, rate = 7, 40, 0.1
    mean = np.mean((theta / rate) ** k * ((1 - theta) / (1 - rate)) ** (n - k))
    assert float(rates.log_e_value(k, n, rate)) == pytest.approx(math.log(mean), abs=1e-6)
    above = theta > rate
    upper = np.mean((theta[above] / rate) ** k * ((1 - theta[above]) / (1 - rate)) ** (n - k))
    assert float(rates.log_e_value_above(k, n, rate)) == pytest.approx(math.log(upper), abs=1e-4)


def test_the_e_value_of_a_difference_is_the_least_over_all_pairs_of_rates() -> None:
    p = np.linspace(1e-4, 0.9, 20_000)
    product = rates.log_e_value(3, 100, p) + rates.log_e_value(20, 150, p + 0.02)
    found = rates.log_e_value_of_difference((3, 100), (20, 150), 0.02)
    assert float(found) == pytest.approx(float(product.min()), abs=1e-4)
    mean = np.logaddexp(rates.log_e_value(3, 100, p), rates.log_e_value(20, 150, p + 0.02)) - math.log(2)
    shared = rates.log_e_value_of_difference((3, 100), (20, 150), 0.02, independent=False)
    assert float(shared) == pytest.approx(float(mean.min()), abs=1e-4)


def binned(milliseconds: np.ndarray) -> dict[int, int]:
    bins, counts = np.unique(np.floor(np.log(milliseconds) / GROWTH).astype(int), return_counts=True)
    return dict(zip(bins.tolist(), counts.tolist(), strict=True))


def test_the_interval_of_a_quantile_holds_it_and_so_does_that_of_a_ratio() -> None:
    rng = np.random.default_rng(5)
    one, other = (binned(rng.lognormal(mean, 0.5, 5000)) for mean in (3.0, 3.3))
    truth = [math.exp(mean + 0.5 * norm.ppf(0.95)) for mean in (3.0, 3.3)]
    for histogram, quantile in zip((one, other), truth, strict=True):
        lower, upper = interval(histogram, 0.95, 0.05)
        seen = estimate(histogram, 0.95)
        assert lower is not None
        assert upper is not None
        assert seen is not None
        assert lower < quantile < upper
        assert lower < seen < upper < 1.3 * lower
    lower, upper = ratio_interval(one, other, 0.95, 0.05)
    assert lower is not None
    assert upper is not None
    assert 1 < lower < math.exp(0.3) < upper < 2
    assert log_e_value_of_ratio(one, other, 0.95, 1.0) > math.log(20)
    assert log_e_value_of_ratio(one, other, 0.95, 1.5) < math.log(20)
    assert log_e_value_of_ratio(one, one, 0.95, 1.0) < 0


def test_running_sums_of_many_streams_are_the_moments_of_each() -> None:
    values = np.random.default_rng(6).standard_normal((3, 50))
    running = Running(3)
    running.add(values[:, :20])
    running.add(values[:, 20:])
    for stream in range(3):
        one = Moments.of(values[stream])
        assert (running.mean[stream], running.error[stream]) == pytest.approx((one.mean, one.standard_error))
