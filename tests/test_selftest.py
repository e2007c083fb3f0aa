"""The configured experiment, simulated: what `runoff selftest` says before anybody trusts it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from verdict.selftest import clopper_pearson

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
    assert told["a broken challenger"]["right"] == 4
    assert all(each["wrong"] <= 1 for each in told.values())
    assert told["the same quality"]["interval"] == pytest.approx(clopper_pearson(0, 4))


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


def test_the_interval_of_a_share_has_its_ends_where_the_binomial_says() -> None:
    # Of none in n, (1 − p)ⁿ = α/2; of n in n, pⁿ = α/2.
    assert list(clopper_pearson(0, 10)) == pytest.approx([0, 1 - 0.025**0.1])
    assert list(clopper_pearson(10, 10)) == pytest.approx([0.025**0.1, 1])
