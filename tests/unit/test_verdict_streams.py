"""The verdict on simulated streams, watched all the time: the short form of `make validate`."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np
import pytest

from router.controllers import Gate, Judgement, Sums, next_step
from router.experiment import read
from router.experiments import Current
from tests.unit.test_verdict import shadowed
from verdict import canary, guardrails, plan, rates, sequence
from verdict.bandit import thompson
from verdict.canary import HASTY, USUAL, Plan, State, sent_back
from verdict.decision import judge
from verdict.evidence import Arm, Evidence, Period, Rules
from verdict.harness import (
    COSTLIER,
    DESIGNS,
    FEWER,
    FLOOR,
    PAIR,
    STRESSES,
    Rate,
    Size,
    Stress,
    always_valid,
    armitage,
    arrivals,
    broken,
    canaries,
    delayed,
    delayed_type_one,
    distrust,
    log_e_value_of_propensities,
    naive,
    power,
    shadow,
    type_one,
)
from verdict.moments import ClusteredMoments, Moments, Swings, WeightedMoments
from verdict.results import Check
from verdict.simulate import Rows
from verdict.validate import held_out

ALPHA = 0.05
SHORT = Size(streams=500, looks=30, batch=200)


@pytest.mark.slow
def test_equal_models_hardly_ever_get_a_winner_in_any_design_under_any_stress() -> None:
    found = type_one(SHORT)
    assert len(found) == 17
    assert [each.name for each in found if each.ends[1] > ALPHA] == []


def test_the_usual_interval_names_one_often_and_so_do_units_that_count_twice() -> None:
    assert [each.name for each in naive(SHORT) if each.ends[0] <= ALPHA] == []
    for _, told, rate in armitage(5000):
        assert rate.ends[0] <= told <= rate.ends[1]


def test_all_outcomes_so_far_keep_the_worse_model_and_matured_ones_do_not() -> None:
    truth, (hasty, patient) = delayed(100)
    assert truth > 0
    assert (hasty.worse.share, hasty.better.share) == (1, 0)
    assert patient.worse.count == 0
    assert patient.better.share > 0.2
    assert hasty.seen[30] < -0.04
    assert patient.seen[120] == pytest.approx(truth, abs=0.0002)


@pytest.mark.slow
def test_with_late_outcomes_only_the_maturity_rule_keeps_alpha() -> None:
    for hasty, patient in delayed_type_one(100):
        assert hasty.ends[0] > 2 * ALPHA
        # So few streams only say that it is not clearly more; `make validate` runs 2,000.
        assert patient.share <= ALPHA


@pytest.mark.slow
def test_a_guardrail_hardly_ever_trips_without_harm_and_finds_what_is_broken() -> None:
    assert [each.name for each in canaries(300, 100) if each.ends[1] > ALPHA] == []
    found = {name: (median, share) for name, median, share in broken(200)}
    assert found["100% of errors"][0] <= 20
    median, share = found["5% of errors"]
    assert share == 1
    assert median < 500


def test_trust_checks_hardly_ever_fail_without_cause_also_of_a_small_share() -> None:
    found = distrust(5000)
    assert len(found) == 4
    assert [each.name for each in found if each.ends[1] > 0.01] == []


def weighed(k: int, n: int) -> Check:
    """What is said of propensities where k of n rows came to B, each with a probability of 1 %."""
    arms = {}
    for name, rows, chance in (("A", n - k, 0.99), ("B", k, 0.01)):
        sums = Moments(rows, 0.1 * rows, 0.02 * rows)
        weights = {"brier": sums.weighted(chance)}
        arms[name] = Arm(rows, mature=rows, labelled=rows, positives=rows // 10, brier=sums, weighted=weights)
    verdict = judge(Evidence("bandit", "A", ("B",), arms), Rules(n_star=1000))
    return next(each for each in verdict.checks if each.name == "propensities")


def test_propensities_are_doubted_from_a_hundred_rows_of_each_arm_on() -> None:
    # One row where five are expected is not that strange, but its standard error would say so.
    few = weighed(1, 500)
    assert few.state == "not yet"
    assert few.e_value is not None
    assert few.e_value > 100
    assert weighed(100, 10_000).state == "passed"
    assert weighed(200, 10_000).state == "failed"


def test_units_that_come_again_are_no_reason_to_doubt_propensities() -> None:
    """Of 400 units, by the toss of a coin, 225 came to A, and each of them twenty times."""

    def state(again: int) -> str:
        arms = {}
        for name, units in (("A", 225), ("B", 175)):
            rows = units * again
            sums = Moments(rows, 0.1 * rows, 0.02 * rows)
            twins = units * again * (again - 1) // 2
            weights = sums.weighted(0.5) + WeightedMoments.repeated(4 * twins, 0.0, 0.0)
            by_unit = ClusteredMoments.apart(sums) + ClusteredMoments.repeated(rows - units, twins, 0.0, 0.0)
            arms[name] = Arm(
                rows,
                mature=rows,
                labelled=rows,
                positives=rows // 10,
                brier=sums,
                weighted={"brier": weights},
                by_unit={"brier": by_unit} if again > 1 else {},
            )
        verdict = judge(Evidence("bandit", "A", ("B",), arms), Rules(n_star=1000))
        return next(each.state for each in verdict.checks if each.name == "propensities")

    assert state(1) == state(20) == "passed"


def test_what_is_simulated_of_propensities_is_what_their_check_says() -> None:
    told = log_e_value_of_propensities(np.array([130.0]), np.array([10_000.0]), 0.01, 1000)
    assert weighed(130, 10_000).e_value == pytest.approx(float(np.exp(told[0])))


@pytest.fixture(scope="module")
def clients() -> tuple[Rows, Rows]:
    """Real ones: scored twice by one model, and by it and one that learnt nothing."""
    return held_out()


@pytest.mark.slow
@pytest.mark.parametrize("rate", [None, 0.08, 0.01])
def test_a_challenger_that_is_the_same_is_hardly_ever_sent_back(
    clients: tuple[Rows, Rows], rate: float | None
) -> None:
    same, _ = clients
    for chosen in (replace(USUAL, rate=rate, looks=200), replace(HASTY, rate=rate, looks=200)):
        sent = sent_back(same, chosen, 300)
        assert Rate("", int(np.isfinite(sent.requests).sum()), 300).ends[1] <= ALPHA


@pytest.mark.slow
def test_a_challenger_that_learnt_nothing_is_sent_back_within_what_validation_states(
    clients: tuple[Rows, Rows],
) -> None:
    _, useless = clients
    sent = sent_back(useless, USUAL, 200)
    assert np.median(sent.requests) < 15_000
    assert np.quantile(sent.requests, 0.95) < 30_000
    assert np.quantile(sent.own, 0.95) < 1_500


def of_one(state: State, number: int, share: float) -> Evidence:
    """What was counted of one simulated canary."""
    arms = {
        name: Arm(
            requests=int(state.requests[side, number]),
            errors=int(state.errors[side, number]),
            apart=int(state.requests[side, number]),
            apart_failed=int(state.errors[side, number]),
            labelled=int(state.scores[side, 0, number]),
            brier=Moments(
                int(state.scores[side, 0, number]),
                float(state.scores[side, 1, number]),
                float(state.scores[side, 2, number]),
                Swings(*state.scores[side, 3:, number]),
            ),
        )
        for side, name in enumerate("AB")
    }
    counts = {name: arm.requests for name, arm in arms.items()}
    return Evidence("split", "A", ("B",), arms, periods=(Period({"A": 1 - share, "B": share}, counts),))


def saying(says: Literal["advance", "hold", "regress"]) -> Gate:
    """A gate that always says the same."""
    return lambda _: Judgement(says, "so")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "margin"), [((0.4, 0.5, 1.0), 0.0), ((0.4, 1.0), 0.02)], ids=["a step on", "to all"]
)
def test_a_simulated_canary_is_moved_as_the_router_moves_one(
    clients: tuple[Rows, Rows], steps: tuple[float, ...], margin: float
) -> None:
    # What is to be clear, before all of the traffic, takes a margin.
    guarded = tuple(replace(each, margin=margin) for each in canary.RULES.guardrails)
    rules = replace(canary.RULES, n_star=1000, guardrails=guarded)
    chosen = Plan(steps, min_requests=250, rules=rules, looks=60)
    variants = [{"name": name, "url": "http://h"} for name in "AB"]
    variants[0]["role"] = "champion"
    ramp = {"steps": steps, "min_requests": chosen.min_requests, "hold": "1s"}
    document = read({"name": "x", "mode": "canary", "canary": ramp, "variants": variants})
    current = Current(1, 1, datetime.now(UTC), "configure", "the file", "", document, None)
    later = current.since + timedelta(hours=1)
    seen = set()
    for scored in clients:
        going = {0, 1, 2}
        for state in canary.live(np.random.default_rng(2), scored, replace(chosen, batch=200), 3):
            for number in sorted(going):
                evidence = of_one(state, number, 0.4)
                told = guardrails.at_step(
                    *(evidence, "B", rules, len(steps), chosen.min_requests), last=steps[1] == 1
                )
                counted = {name: Sums(arm.requests, arm.errors) for name, arm in evidence.arms.items()}
                change = next_step(current, counted, later, saying(told.says))
                wanted = "regress" if state.back[number] else "step" if state.on[number] else None
                assert (change and change.action) == wanted
                seen.add(wanted)
                going -= {number} if wanted else set()
    assert seen == {"regress", "step", None}


@pytest.mark.slow
def test_pairs_take_a_fraction_of_the_outcomes_and_a_split_what_the_theory_says() -> None:
    found = {each.name: each for each in power(200, 0, None)}
    peers = [
        each.expected for name, each in found.items() if name.startswith("split") and "verdict" not in name
    ]
    mine, split = found["shadow, the verdict"], found["split, the verdict"]
    assert mine.expected * FEWER < min(peers)
    assert mine.right is not None
    assert mine.right.share > 0.98
    for each in (mine, split):
        assert each.theory is not None
        assert each.expected < COSTLIER * each.theory


def test_what_is_simulated_is_what_judge_decides() -> None:
    size = Size(streams=3, looks=12, batch=900)
    stress = Stress("", PAIR)
    drawn = [group.rows for [(group, _)] in arrivals(np.random.default_rng(8), stress, size)]
    n_star = 5400
    radius = always_valid(n_star)
    decided = set()
    for look, seen in enumerate(shadow(np.random.default_rng(8), stress, size)):
        for stream in range(3):
            rows = Rows(
                *(np.concatenate([each[field][stream] for each in drawn[: look + 1]]) for field in range(3))
            )
            decision = judge(shadowed(rows), Rules(n_star=n_star)).decision
            out = bool(abs(seen.value[stream]) > radius(seen)[stream] and seen.enough[stream])
            winner = ("promote" if seen.value[stream] > 0 else "keep") if out else "keep collecting"
            assert decision == winner
            decided.add(decision)
    assert decided == {"promote", "keep collecting"}


@pytest.mark.parametrize("design", ["shadow", "split", "bandit"])
def test_units_that_come_again_at_later_looks_are_summed_as_the_verdict_sums_them(design: str) -> None:
    size = Size(streams=2, looks=30, batch=100)
    [stress] = [each for each in STRESSES if each.looks_of_unit > 1]
    seen = list(DESIGNS[design](np.random.default_rng(3), stress, size))
    # Of each unit in an arm, told by its score: rows and their weights by look, and what each loses.
    units: dict[tuple[int, float], list[tuple[float, float, float]]] = {}
    share = 0.5
    for look, coming in enumerate(arrivals(np.random.default_rng(3), stress, size)):
        for group, count in coming:
            for unit in np.flatnonzero(count[0]):
                side = int(design != "shadow" and group.place[0, unit] < share)
                one, other, y = (each[0, unit] for each in group.rows)
                losses = (one - y) ** 2, (other - y) ** 2
                x = losses[0] - losses[1] if design == "shadow" else losses[side]
                weight = count[0, unit] * (1 - share if side else share)
                units.setdefault((side, one), []).append((count[0, unit], weight, x))
        if design == "bandit":
            share = float(thompson(seen[look].value[0], seen[look].error[0], FLOOR))
    assert max(map(len, units.values())) > 5
    means, errors = [], []
    for side in sorted({side for side, _ in units}):
        mine = [np.array(rows) for (its, _), rows in units.items() if its == side]
        n, w, x = np.array([(*rows[:, :2].sum(0), rows[0, 2]) for rows in mine]).T
        if design == "bandit":
            weighted = WeightedMoments(int(n.sum()), *(each.sum() for each in (w, w * w, w * x, w * w * x)))
            weighted = replace(weighted, w2s2=float((w * w * x * x).sum()))
            means.append(weighted.mean)
            errors.append(weighted.standard_error)
        else:
            sums = (each.sum() for each in (n * x, n * n, n * n * x, n * n * x * x))
            clusters = ClusteredMoments(len(n), int(n.sum()), *sums)
            means.append(clusters.mean)
            errors.append(clusters.standard_error)
    assert seen[-1].value[0] == pytest.approx(means[0] - sum(means[1:]))
    assert seen[-1].error[0] == pytest.approx(math.hypot(*errors))


def test_the_interval_of_a_count_is_clopper_and_pearsons() -> None:
    # Clopper & Pearson (Biometrika 1934): 10 of 100.
    assert Rate("", 10, 100).ends == pytest.approx((0.0490, 0.1762), abs=1e-4)
    assert Rate("", 0, 100).ends == pytest.approx((0, 0.0362), abs=1e-4)


def test_the_mean_time_to_a_decision_is_what_simulation_gives() -> None:
    rng = np.random.default_rng(9)
    drift = 2.801585 / np.sqrt(1000)
    sums = np.cumsum(drift + rng.standard_normal((1000, 6000)), axis=1)[:, 9::10]
    n = np.arange(10, 6001, 10)
    bound = np.array([float(sequence.radius(1, each, 1000, ALPHA)) for each in n]) * np.sqrt(n)
    out = np.abs(sums) > bound
    when = np.where(out.any(1), n[out.argmax(1)], 6000)
    assert when.mean() / 1000 == pytest.approx(plan.stopping().expected, rel=0.05)


def test_units_for_whom_everything_fails_send_no_canary_back_that_is_no_worse() -> None:
    """Of 60 units one in twenty fails always, whoever answers; each comes again and again."""
    rng = np.random.default_rng(1)
    streams, units = 400, 60
    arms = rng.random((streams, units)) < 0.5
    fails = np.where(rng.random((streams, units)) < 0.05, 1.0, 0.001)
    comes = np.minimum(rng.exponential(0.5, (streams, units)), 1)
    failed = np.zeros((streams, units))
    n, k, together = np.zeros((3, 2, streams))
    back, naive = np.zeros((2, streams), bool)
    for _ in range(60):
        seen = rng.random((streams, units)) < comes
        bad = seen & (rng.random((streams, units)) < fails)
        for side, mine in enumerate((~arms, arms)):
            n[side] += (seen & mine).sum(axis=1)
            k[side] += (bad & mine).sum(axis=1)
            together[side] += np.where(bad & mine, failed, 0).sum(axis=1)
        failed += bad
        enough = n[1] >= guardrails.LEAST_REQUESTS
        # Two steps of one guardrail.
        bound = np.log(2 / 0.05)
        one, other = (rates.alike(k[side], n[side], together[side]) for side in (0, 1))
        log_e = rates.log_e_value_of_excess(one, other, 0.01)
        back |= enough & (other[1] >= guardrails.LEAST_UNITS) & (log_e >= bound)
        naive |= enough & (rates.log_e_value_of_excess((k[0], n[0]), (k[1], n[1]), 0.01) >= bound)
    assert rates.proportion_interval(int(back.sum()), streams)[1] <= 0.025
    assert naive.mean() > 0.1, "requests taken for independent would"
