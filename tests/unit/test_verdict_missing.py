"""Missing answers and outcomes: short forms of what `make validate` simulates, and words of the checks."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from router.controllers import Evidence as Counted
from router.controllers import Judgement, Sums, errors_and_latency, next_step
from router.experiment import Canary, read
from router.experiments import Current
from tests.unit.test_verdict import clients, failing, shadowed
from verdict import guardrails, rates
from verdict.decision import judge
from verdict.evidence import TENTHS, Arm, Evidence, Guardrail, Pairs, Period, Rules
from verdict.harness import ALPHA
from verdict.missing import FOUND, NOT_FAILING, WRONG, Setting, Shadow, Split, found, wrong
from verdict.missing import failing as fails
from verdict.results import Check

# A short form has fewer streams, and as many looks: what comes late comes so many looks late.
STREAMS = 100


def named(setting: Setting) -> str:
    return setting.name


@pytest.mark.parametrize("setting", WRONG, ids=named)
def test_no_winner_is_named_by_what_is_missing(setting: Setting) -> None:
    assert setting.advantage == pytest.approx(0, abs=1e-12)
    before, now = wrong(setting, STREAMS)
    # So few streams only say that it is not clearly more; `make validate` runs 2,000.
    assert now.ends[0] <= ALPHA
    assert before.share > now.share


@pytest.mark.slow
@pytest.mark.parametrize("setting", FOUND, ids=named)
def test_what_is_missing_is_found(setting: Setting) -> None:
    told = found(setting, 30)
    assert told.before == np.inf
    assert told.now < 5000


@pytest.mark.slow
@pytest.mark.parametrize("setting", NOT_FAILING, ids=named)
def test_what_is_missing_alike_fails_no_check(setting: Setting) -> None:
    for rate in fails(setting, STREAMS):
        assert rate.ends[0] <= Rules().trust_alpha, rate


def checks(evidence: Evidence) -> dict[str, Check]:
    verdict = judge(evidence, Rules(maturity=3600.0))
    return {each.name: each for each in (*verdict.checks, *verdict.comparisons[0].checks)}


def of_pairs(world: Shadow, stream: int) -> Evidence:
    """The evidence of a simulated stream."""
    cells = {}
    late, late_ones = world.known_late[stream]
    for number, (all_, both) in enumerate(zip(world.all[stream], world.both[stream], strict=True)):
        n, ones = int(all_.sum()), int(all_[1])
        champion = Arm(n, mature=n, labelled=n, positives=ones, assigned_labels=n, assigned_positives=ones)
        pairs = Pairs(assigned=int(both.sum()), assigned_positives=int(both[1]))
        cells[float(number)] = Evidence("shadow", "A", ("B",), {"A": champion, "B": Arm(n)}, {"B": pairs})
    whole = sum([*cells.values()][1:], cells[0.0])
    more = Evidence(
        *("shadow", "A", ("B",)),
        {"A": Arm(late=int(late + late_ones), late_positives=int(late_ones))},
        {"B": Pairs(asked=int(world.asked[stream]), missed=int(world.missed[stream]))},
        history=cells,
    )
    return whole + more


def of_split(world: Split, stream: int) -> Evidence:
    """The same of a split."""
    names, share = ("A", "B"), world.setting.share

    def by(values: np.ndarray) -> dict[str, int]:
        return {name: int(values[stream, side].sum()) for side, name in enumerate(names)}

    def tenths(values: np.ndarray) -> dict[tuple[str, int], int]:
        places = [(side, tenth) for side in (0, 1) for tenth in range(TENTHS)]
        return {(names[side], tenth): int(values[stream, side, tenth]) for side, tenth in places}

    period = Period(
        {"A": 1 - share, "B": share},
        assigned=by(world.assigned),
        missed=by(world.missed),
        served=by(world.served),
        labels=by(world.labels),
        scores=tenths(world.served),
        score_labels=tenths(world.labels),
    )
    (zeros, ones), (late, late_ones) = world.labelled[stream], world.known_late[stream]
    told = Arm(
        *(int(zeros + ones),),
        mature=int(zeros + ones),
        labelled=int(zeros + ones),
        positives=int(ones),
        late=int(late + late_ones),
        late_positives=int(late_ones),
    )
    return Evidence("split", "A", ("B",), {"A": told}, periods=(period,))


@pytest.mark.parametrize("setting", [*FOUND, *WRONG[2:], *NOT_FAILING], ids=named)
def test_what_is_simulated_is_what_the_checks_say(setting: Setting) -> None:
    rng = np.random.default_rng(4)
    world = Shadow(setting, 3) if setting.design == "shadow" else Split(setting, 3)
    mix = np.array([part.share for part in setting.parts])
    for look in range(60):
        world.comes(rng, mix, look)
        if look % 10 == 9:
            now = world.seen().now
            for stream in range(3):
                told = checks(
                    of_pairs(world, stream) if isinstance(world, Shadow) else of_split(world, stream)
                )
                states = {name: told[name].state == "failed" for name in now}
                assert states == {name: bool(each[stream]) for name, each in now.items()}


def test_the_checks_say_in_numbers_what_is_missing() -> None:
    shares = {"A": 0.5, "B": 0.5}
    counts = {"A": 1000, "B": 1000}
    period = Period(shares, counts, counts, counts, counts, missed={"A": 2, "B": 40})
    told = checks(Evidence("split", "A", ("B",), {"A": failing(1000, 2)}, periods=(period,)))["answers"]
    assert (told.state, told.seen) == (
        "failed",
        "without an answer are A 2 of 1,000 (0.2 %) and B 40 of 1,000 (4 %): surely more of B than of A, and "
        "what it leaves is no random part",
    )
    # As many are lost of either, and of different scores.
    scores = {(name, tenth): 500 for name in "AB" for tenth in (0, 6)}
    labels = scores | {("A", 0): 470, ("B", 6): 470}
    known = {"A": 970, "B": 970}
    period = Period(shares, counts, counts, counts, known, scores=scores, score_labels=labels)
    told = checks(Evidence("split", "A", ("B",), {}, periods=(period,)))["label ratio"]
    assert told.state == "failed"
    assert "0 to 0.1: A 30 of 500, B 0 of 500" in told.seen
    assert "0.6 to 0.7: A 0 of 500, B 30 of 500" in told.seen
    late = Arm(400, mature=400, labelled=400, positives=100, late=12, late_positives=11)
    told = checks(Evidence("split", "A", ("B",), {"A": late}))["maturity"]
    assert told.state == "failed"
    assert "12 came or changed after the maturity (11 of 100 outcomes 1, 1 of 300 outcomes 0)" in told.seen


def test_a_win_in_pairs_holds_whatever_the_missing_answers_would_have_been() -> None:
    rows = clients()
    won = shadowed(rows)
    assert judge(won, Rules()).decision == "promote"
    owing = replace(won.pair("B"), asked=20_000, missed=1)
    assert judge(replace(won, pairs={"B": owing}), Rules()).decision == "promote"
    # That few pass the check, and might be all that it wins by.
    owing = replace(won.pair("B"), asked=20_000, missed=95)
    verdict = judge(replace(won, pairs={"B": owing}), Rules())
    assert verdict.decision == "keep collecting"
    assert "B did not give all answers that it was asked for" in verdict.sentence
    assert "could change the difference by 0.0047" in verdict.sentence


def test_odds_of_one_are_contradicted_as_seldom_as_promised_and_found_whatever_the_strata() -> None:
    rng = np.random.default_rng(3)
    shares = rng.random((4000, 20)) * np.array([0.02, 1.0] * 10)
    n = np.cumsum(rng.poisson(2.0, (30, 4000, 20)), axis=0)
    ever = {}
    for odds in (1.0, 3.0):
        its = odds * shares / (1 - shares + odds * shares)
        steps = np.diff(n, axis=0, prepend=0)
        k = np.cumsum(rng.binomial(steps, its), axis=0)
        log_e = np.stack([rates.log_e_value_of_odds(*each, shares) for each in zip(k, n, strict=True)])
        ever[odds] = float((log_e >= np.log(20)).any(0).mean())
    assert ever[1.0] <= 0.05
    assert ever[3.0] == 1


def test_a_challenger_that_refuses_everything_takes_no_step() -> None:
    canary = Canary(steps=(0.5, 1.0), min_requests=100)
    good = Sums(1000, 0, 1000, 1000, timed=1000, log_latency=2300.0, log_latency_squares=5400.0)
    refuses = Sums(1000, 1000, 1000, 1000, apart_failed=1000)
    told = errors_and_latency(Counted(canary, 0.5, good, refuses))
    assert (told.says, told.reason) == ("regress", "the challenger's error rate is worse than allowed")
    # Whatever a gate says, it takes answers.
    variants = [{"name": name, "url": "http://h"} for name in "AB"]
    variants[0]["role"] = "champion"
    document = read({"name": "x", "mode": "canary", "variants": variants, "canary": {"steps": [0.5, 1]}})
    current = Current(1, 1, datetime.now(UTC), "configure", "the file", "", document, None)
    later = current.since + timedelta(hours=1)
    assert next_step(current, {"A": good, "B": refuses}, later, lambda _: Judgement("advance", "so")) is None
    assert next_step(current, {"A": good, "B": good}, later, lambda _: Judgement("advance", "so"))


def test_no_guardrail_lets_a_step_on_without_answers() -> None:
    good, silent = failing(1000, 0), Arm(1000, errors=1000, apart=1000, apart_failed=0)
    counts = {"A": 1000, "B": 1000}
    shares = {"A": 0.5, "B": 0.5}
    evidence = Evidence(
        "split", "A", ("B",), {"A": good, "B": silent}, periods=(Period(shares, counts, counts),)
    )
    rules = Rules(guardrails=(Guardrail("errors", "error-rate", 0.01),))
    assert guardrails.at_step(evidence, "B", rules, 2, 0).says == "hold"
    answering = replace(evidence, arms={"A": good, "B": failing(1000, 0)})
    assert guardrails.at_step(answering, "B", rules, 2, 0).says == "advance"
