"""The configured experiment, simulated: what `runoff selftest` says before anybody trusts it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dashboard import verdict_words
from verdict import plan, report
from verdict.decision import judge
from verdict.evidence import Arm, Costs, Design, Evidence, Guardrail, Metric, Period, Rules
from verdict.selftest import BETTER, Experiment, scenarios, tried

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


def runoff(document: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "experiment.toml").write_text(document)
    command = [
        sys.executable,
        "-m",
        "router.selftest_cli",
        "--config",
        str(folder / "experiment.toml"),
        *words,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_much_better_challenger_is_promoted_a_broken_one_kept_out_and_nobody_else_wins(
    tmp_path: Path,
) -> None:
    done = runoff(DOCUMENT.format(mode="shadow"), tmp_path, "--streams", "4", "--better", "0.9", "--json")
    assert done.returncode == 0, done.stderr
    told = {each["scenario"]: each for each in json.loads(done.stdout)}
    assert len(told) == 5
    assert told["a better challenger"]["right"] == 4
    assert told["a better challenger"]["challenger"]["auc"] == 0.9
    assert told["a broken challenger"]["right"] == 4
    assert all(each["wrong"] <= 1 for each in told.values())
    assert told["the same quality"]["interval"] == pytest.approx([0, 1 - 0.025 ** (1 / 4)])


def test_it_tells_the_same_of_a_split_as_a_table(tmp_path: Path) -> None:
    done = runoff(DOCUMENT.format(mode="split"), tmp_path, "--streams", "2", "--outcomes", "800")
    assert done.returncode == 0, done.stderr
    assert "No maturity is declared" in done.stderr
    assert "a drifting base rate" in done.stdout
    assert "100.0% keep" in done.stdout


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
    assert done.returncode == 0, done.stderr
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
    *_, last = experiment.lives(scenarios(better.auc)[1], np.random.default_rng(1))
    seen = judge(last, rules).comparisons[0]
    # One look at 4,000 finds it at z = 1.96 + 0.84; among 100 times as many its error is a tenth.
    assert seen.advantage == pytest.approx(better.difference, abs=better.difference / 2.8 / 10 * 3)


@pytest.mark.parametrize(("multiple", "at_least", "at_most"), [(1, 0.25, 0.7), (4, 0.9, 1)])
def test_the_planned_difference_is_found_about_as_often_as_the_planner_says(
    multiple: int, at_least: float, at_most: float
) -> None:
    experiment = Experiment(Rules(n_star=2400), "shadow", 0.5, 2400 * multiple)
    better = experiment.planned()
    # Eight looks find a little less than looking all the time.
    assert experiment.expected(better) == pytest.approx(plan.stopping().chance(multiple), abs=0.1)
    [world] = [each for each in scenarios(better.auc) if each.name == BETTER]
    *_, last = tried(experiment, world, 30)
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
    decided = {steps: Experiment(rules, "split", 0.5, 1000, steps).decided(evidence) for steps in (1, 100)}
    assert decided == {1: "keep", 100: "don't trust"}


def test_a_small_figure_is_written_with_the_same_minus_everywhere() -> None:
    assert report.number(-1.5e-7) == "−1.50e−07"
    assert verdict_words.interval({"lower": -1.5e-7, "upper": 0.5}) == "−1.50e−07 to 0.5"
