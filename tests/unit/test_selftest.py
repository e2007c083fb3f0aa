"""The configured experiment, simulated: what `runoff selftest` says before anybody trusts it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from dashboard import verdict_words
from router.selftest_cli import selftest
from verdict import plan, report
from verdict.decision import judge
from verdict.evidence import Arm, Costs, Design, Evidence, Guardrail, Metric, Period, Rules
from verdict.plan import DAY
from verdict.selftest import BETTER, LATE, Decided, Experiment, Scenario, tried

DOCUMENT = """
name = "tried"
mode = "{mode}"
[decision]
planned_outcomes = 2400
[[guardrails]]
name = "errors"
metric = "error-rate"
margin = 0.01
[[variants]]
name = "A"
role = "champion"
url = "http://a"
weight = 50
[[variants]]
name = "B"
url = "http://b"
weight = 50
"""


def world(experiment: Experiment, name: str, better: float = 0.8) -> Scenario:
    """One of the worlds that are tried."""
    return next(each for each in experiment.scenarios(better) if each.name == name)


def runoff(document: str, folder: Path, *words: str) -> Result:
    (folder / "experiment.toml").write_text(document)
    return CliRunner().invoke(selftest, ["--config", str(folder / "experiment.toml"), *words])


@pytest.mark.slow
def test_a_much_better_challenger_is_promoted_a_broken_one_kept_out_and_nobody_else_wins(
    tmp_path: Path,
) -> None:
    done = runoff(DOCUMENT.format(mode="shadow"), tmp_path, "--streams", "4", "--better", "0.9", "--json")
    assert done.exit_code == 0, done.output
    told = {each["scenario"]: each for each in json.loads(done.stdout)}
    assert len(told) == 5
    assert told["a better challenger"]["right"] == 4
    assert told["a better challenger"]["challenger"]["auc"] == 0.9
    assert told["a broken challenger"]["right"] == sum(told["a broken challenger"]["hoped"].values()) == 4
    # No maturity is declared, and it would take one.
    assert told.pop("late outcomes")["wrong"] == 4
    assert all(each["wrong"] <= 1 for each in told.values())
    assert told["the same quality"]["interval"] == pytest.approx([0, 1 - 0.025 ** (1 / 4)])


def test_it_tells_the_same_of_a_split_as_a_table(tmp_path: Path) -> None:
    done = runoff(DOCUMENT.format(mode="split"), tmp_path, "--streams", "2", "--outcomes", "800")
    assert done.exit_code == 0, done.output
    assert "No maturity is declared" in done.stderr
    assert "a drifting base rate" in done.stdout
    # Neither a winner nor trusted, as long as outcomes are missing.
    right = "100.0% keep|100.0% don't trust|50.0% keep, 50.0% don't trust"
    assert re.search(f"a broken challenger.*({right})", done.stdout)


def test_what_cannot_be_simulated_is_told(tmp_path: Path) -> None:
    alone = DOCUMENT.partition('[[variants]]\nname = "B"')[0].format(mode="split")
    assert "there is no challenger" in runoff(alone, tmp_path).stderr
    assert "mode" in runoff(DOCUMENT.format(mode="nonsense"), tmp_path).stderr


def test_the_better_challenger_is_better_by_what_is_planned_for(tmp_path: Path) -> None:
    done = runoff(DOCUMENT.format(mode="shadow"), tmp_path, "--streams", "1", "--outcomes", "100", "--json")
    [better] = [each["challenger"] for each in json.loads(done.stdout) if "challenger" in each]
    assert better["outcomes"] == pytest.approx(2400, rel=0.01)
    assert 0.731 < better["auc"] < 0.8


def test_where_no_challenger_can_be_as_much_better_as_planned_that_is_said(tmp_path: Path) -> None:
    canary = DOCUMENT.format(mode="canary").replace("2400", "400")
    done = runoff(canary, tmp_path, "--streams", "1", "--outcomes", "100")
    assert done.exit_code == 0, done.output
    assert "No simulated one is better by as much as these would find." in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("design", "metric"),
    [("shadow", "profit"), ("shadow", "log-loss"), ("split", "brier"), ("bandit", "brier")],
)
def test_the_true_difference_is_the_one_that_many_simulated_outcomes_show(
    design: Design, metric: Metric
) -> None:
    costs = Costs(tp=0, fp=-1, tn=1, fn=-9)
    thresholds = {"champion": 0.2, "challenger": 0.2}
    rules = Rules(metric=metric, n_star=4000, costs=costs, thresholds=thresholds)
    experiment = Experiment(rules, design, 0.5, 400_000)
    better = experiment.planned()
    assert better.outcomes == pytest.approx(4000, rel=0.01)
    *_, last = experiment.lives(world(experiment, BETTER, better.auc), np.random.default_rng(1))
    seen = judge(last, rules).comparisons[0]
    # One look at 4,000 finds it at z = 1.96 + 0.84; among 100 times as many its error is a tenth.
    assert seen.advantage == pytest.approx(better.difference, abs=better.difference / 2.8 / 10 * 3)


@pytest.mark.slow
@pytest.mark.parametrize(("multiple", "at_least", "at_most"), [(1, 0.25, 0.7), (4, 0.9, 1)])
def test_the_planned_difference_is_found_about_as_often_as_the_planner_says(
    multiple: int, at_least: float, at_most: float
) -> None:
    experiment = Experiment(Rules(n_star=2400), "shadow", 0.5, 2400 * multiple)
    better = experiment.planned()
    # Eight looks find a little less than looking all the time.
    assert experiment.expected(better) == pytest.approx(plan.stopping().chance(multiple), abs=0.1)
    *_, last = tried(experiment, world(experiment, BETTER, better.auc), 30)
    assert at_least <= last.right / last.streams <= at_most
    assert last.wrong == 0


def test_a_canarys_guardrails_share_their_risk_over_its_steps() -> None:
    rules = Rules(guardrails=(Guardrail("errors", "error-rate", 0.01),))
    requests = {"champion": 900, "challenger": 500}
    arms = {
        "champion": Arm(requests=900, apart=900),
        "challenger": Arm(requests=500, errors=20, apart=500, apart_failed=20),
    }
    failed = {"champion": 0, "challenger": 20}
    halves = Period(
        {"champion": 0.5, "challenger": 0.5}, requests, requests, apart=requests, apart_failed=failed
    )
    evidence = Evidence("split", "champion", ("challenger",), arms, periods=(halves,))
    # More requests than their share came to the one: no verdict is trusted, but a canary goes back.
    said = {steps: Experiment(rules, "split", 0.5, 1000, steps).decided(evidence) for steps in (1, 100)}
    assert {steps: each.decision for steps, each in said.items()} == {1: "keep", 100: "don't trust"}


@pytest.mark.parametrize("design", ["shadow", "split", "bandit"])
def test_of_a_broken_challenger_it_is_told_what_the_verdict_says(design: Design) -> None:
    rules = Rules(guardrails=(Guardrail("errors", "error-rate", 0.01),), n_star=4000)
    experiment = Experiment(rules, design, 0.5, 4000)
    broken = world(experiment, "a broken challenger")
    *_, last = experiment.lives(broken, np.random.default_rng(1))
    decided = experiment.decided(last)
    assert decided.decision == judge(last, rules).decision
    assert broken.hopes(decided)
    # A canary goes back, whatever the verdict says.
    assert replace(experiment, steps=5).decided(last).decision == "keep"


def test_no_trust_is_hoped_for_only_where_a_broken_challengers_outcomes_are_missing() -> None:
    broken = world(Experiment(Rules(), "split", 0.5, 1000), "a broken challenger")
    assert broken.hopes(Decided("keep"))
    assert broken.hopes(Decided("don't trust", frozenset({"label ratio"})))
    assert not broken.hopes(Decided("don't trust", frozenset({"sample ratio"})))
    assert not broken.hopes(Decided("keep collecting"))
    assert not broken.hopes(Decided("promote"))


@pytest.mark.parametrize(
    ("design", "outcomes"),
    [
        ("shadow", 2400),
        pytest.param("split", 20_000, marks=pytest.mark.slow),
        pytest.param("bandit", 20_000, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_late_outcomes_name_a_winner_where_there_is_none_unless_the_maturity_waits_for_them(
    design: Design, outcomes: int
) -> None:
    wrong = {}
    for days in (0, 1, 90):
        # What the scores of these models would break is not what is asked here.
        told = (Guardrail("scores", "calibration"),)
        rules = Rules(n_star=outcomes, maturity=days * DAY, guardrails=told, max_gap=0.05)
        experiment = Experiment(rules, design, 0.5, outcomes)
        *_, last = tried(experiment, world(experiment, LATE), 8)
        wrong[days] = last.wrong
    assert wrong[0] >= 4
    assert wrong[1] >= 4
    assert wrong[90] <= 1


@pytest.mark.parametrize(("metric", "threshold"), [("brier", 0.5), ("log-loss", 0.5), ("profit", 0.2)])
def test_both_models_of_late_outcomes_are_equally_good(metric: Metric, threshold: float) -> None:
    rules = Rules(
        metric=metric,
        costs=Costs(tp=0, fp=-1, tn=1, fn=-9),
        thresholds={"champion": threshold, "challenger": threshold},
    )
    experiment = Experiment(rules, "shadow", 0.5, 400_000)
    late = world(experiment, LATE)
    assert late.credit.shift > 0 > late.credit.challenger_shift
    # The same models, whose outcomes are known at once.
    *_, last = experiment.lives(replace(late, late=False), np.random.default_rng(1))
    row = judge(last, rules).comparisons[0].rows[0]
    assert row.fixed.lower is not None
    assert row.fixed.upper is not None
    assert row.difference == pytest.approx(0, abs=(row.fixed.upper - row.fixed.lower))
    # By the first outcomes to come the champion is far ahead.
    early = replace(experiment, rules=replace(rules, maturity=0.0))
    first, *_ = early.lives(late, np.random.default_rng(1))
    assert first.arm("champion").positives == first.arm("champion").labelled
    ahead = first.pair("challenger").profit if metric == "profit" else -first.pair("challenger").brier
    assert ahead is not None
    assert ahead.mean > 5 * ahead.standard_error


@pytest.mark.parametrize(
    ("maturity", "settled", "told"),
    [
        ("1s", "90", "a winner where there is none in 1 of 1 runs. Declare one of 90 days."),
        ("30d", "20", "The maturity waits for all of them."),
    ],
)
def test_it_is_told_whether_the_maturity_is_enough_for_late_outcomes(
    tmp_path: Path, maturity: str, settled: str, told: str
) -> None:
    document = f'maturity = "{maturity}"\n{DOCUMENT.format(mode="shadow")}'
    done = runoff(document, tmp_path, "--streams", "1", "--settled", settled)
    assert done.exit_code == 0, done.output
    assert told in " ".join(done.stdout.split())
    assert f"one that is 0 after {settled}" in " ".join(done.stdout.split())


def test_a_bandits_shares_follow_the_outcomes_and_rows_count_by_them() -> None:
    experiment = Experiment(Rules(n_star=8000), "bandit", 0.5, 8000, floor=0.1)
    looks = list(experiment.lives(world(experiment, "the same quality"), np.random.default_rng(3)))
    shares = [each.weights["challenger"] for each in looks[-1].periods]
    assert len(set(shares)) > 3
    assert all(0.1 <= each <= 0.9 for each in shares)
    # The next share is the chance that the arm with more successes is the better one.
    first = [looks[0].arm(name) for name in ("champion", "challenger")]
    rates = [arm.positives / arm.labelled for arm in first]
    assert (shares[1] > 0.5) == (rates[1] > rates[0])
    # By overlap both have as much weight, whatever the shares were.
    one, other = (looks[-1].arm(name).weighted["brier"].w for name in ("champion", "challenger"))
    assert one == pytest.approx(other, rel=0.1)
    assert judge(looks[-1], experiment.rules).design == "bandit"


def test_what_of_the_document_is_not_simulated_is_told(tmp_path: Path) -> None:
    more = """
[[variants]]
name = "C"
url = "http://c"
[[guardrails]]
name = "slow"
metric = "latency-p99"
margin = 0.1
"""
    few = ("--streams", "1", "--outcomes", "100")
    told = runoff(DOCUMENT.format(mode="shadow") + more + "[shadow]\nsample = 0.2", tmp_path, *few).stderr
    assert "Only B is simulated beside A, and not C." in told
    assert "shadow.sample = 0.2 is not simulated" in told
    assert "Latencies are not simulated, nor guardrails of them: slow." in told
    told = runoff(DOCUMENT.format(mode="bandit"), tmp_path, *few).stderr
    assert "The shares of the bandit follow simulated outcomes" in told


def test_a_small_figure_is_written_with_the_same_minus_everywhere() -> None:
    assert report.number(-1.5e-7) == "−1.50e−07"
    assert verdict_words.interval({"lower": -1.5e-7, "upper": 0.5}) == "−1.50e−07 to 0.5"
