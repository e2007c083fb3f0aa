"""The `runoff` command where it meets what it did not expect: other boards, others' records, odd texts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from router import experiment
from runoff.prototype import Prototype
from runoff.releases import Releases
from runoff.store import ModelVersion, Store
from tests.house import running
from tests.shell import runoff

ROOT = Path(__file__).resolve().parents[2]
X = pd.DataFrame({"age": [23, 45, 31, 60], "income": [1.5, 4.0, 2.2, 3.1]})
WHY = ("--reason", "so", "--by", "ada")


def stored(store: Store, name: str = "mine", record: dict[str, Any] | None = None) -> ModelVersion:
    model = LogisticRegression().fit(X, [1, 0, 1, 0])
    return store.write(name, model, prototype=Prototype.from_frame(X), record=record or {}, examples=X)


def says(*arguments: object, **environment: str) -> str:
    done = runoff(*arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def own(tmp_path: Path) -> Store:
    """A store of one's own, with nothing in it."""
    return Store.open(tmp_path / "board")


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"metrics": {"auc": 0.8125}, "importance": {"age": 0.5, "income": 0.25}, "rows": {"all": 4}},
        {"metrics": {"auc": {"value": 0.8125}}, "importance": {"age": {"mean": 0.5}}, "trained_at": "2026"},
        {"metrics": ["auc"], "importance": None, "parameters": "none", "rows": 4, "versions": "3.11"},
    ],
    ids=["none", "numbers", "no intervals", "other types"],
)
def test_whatever_a_record_holds_its_version_is_listed_compared_and_has_a_card(
    own: Store, record: dict[str, Any]
) -> None:
    before, after = stored(own, record={"metrics": {"auc": 0.5}}), stored(own, record=record)
    board = ("--board", own.place)
    listed, compared = says("versions", "mine", *board), says("diff", "mine", before.id, after.id, *board)
    cards = [says("card", "mine", after.id, *form, *board) for form in ((), ("--html",))]
    assert after.id in listed
    if isinstance(record.get("metrics"), dict):
        assert all("0.8125" in text for text in (listed, compared, *cards))
        assert all(text.index(">age<" if "<" in text else "| age |") > 0 for text in cards)


def test_a_board_is_named_before_the_command_after_it_or_by_the_environment(own: Store) -> None:
    stored(own)
    before = says("--board", own.place, "models")
    assert "mine" in before
    assert says("models", "--board", own.place) == before
    assert says("models", RUNOFF_BOARD=own.place) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("models", "--board", ROOT / "pyproject.toml"),
        ("models", "--board", "nowhere://at/all"),
        ("card", "mine", "newest", "-o", "/no/such/folder/card.md"),
        ("versions", "a/b"),
        ("versions", ".."),
        ("versions", "releases"),
    ],
    ids=[
        "a file for a board",
        "an unknown protocol",
        "no such folder",
        "a path",
        "above the board",
        "no model",
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(own: Store, arguments: tuple[object, ...]) -> None:
    stored(own)
    done = runoff(*arguments, RUNOFF_BOARD=own.place)
    assert done.returncode == 1
    assert re.fullmatch(r"Error: .+\n", done.stderr)


@pytest.mark.parametrize(
    ("option", "text"),
    [("--reason", ""), ("--by", "  "), ("--reason", "x" * 501)],
    ids=["empty", "blank", "too long"],
)
def test_nothing_is_released_without_a_reason_and_a_name(own: Store, option: str, text: str) -> None:
    stored(own)
    done = runoff("release", "mine", "newest", *WHY, option, text, "--board", own.place)
    assert done.returncode == 2
    assert f"'{option}'" in done.stderr
    assert Releases(own).all() == []


def test_who_has_no_name_is_asked_for_one(own: Store) -> None:
    stored(own)
    # As in a container that runs under any user id.
    nobody = "import os; os.getuid = lambda: 4_000_000_000; from runoff.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", nobody, "release", "mine", "newest", "--reason", "so"],
        env={"PATH": os.environ["PATH"], "RUNOFF_BOARD": own.place},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--by" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reason_is_shown_as_it_was_written_and_is_no_markup_anywhere(own: Store) -> None:
    version = stored(own, record={"algorithm": "<b>best</b>"})
    reason = "see [/etc/runoff] [bold] :smile: `x` <img src=x> | so"
    says("release", "mine", "newest", "--reason", reason, "--board", own.place)
    assert reason in says("history", "--board", own.place)
    markdown = says("card", "mine", version.id, "--board", own.place)
    assert r"see \[/etc/runoff\] \[bold\] :smile: \`x\` &lt;img src=x> \| so (release)" in markdown
    html = says("card", "mine", version.id, "--html", "--board", own.place)
    assert not {"<img", "<b>"} & set(re.findall(r"<\w+>?", markdown + html))


def test_a_rollback_passes_over_what_was_released_twice_in_a_row(own: Store) -> None:
    first, second = stored(own), stored(own)
    for version in (first, second, second):
        says("release", "mine", version.id, *WHY, "--board", own.place)
    assert first.id in says("rollback", "mine", *WHY, "--board", own.place)


@pytest.mark.parametrize("file", ["golden.json", "data.txt", "mine.joblib"])
def test_a_live_version_that_is_damaged_does_not_bar_what_is_to_replace_it(own: Store, file: str) -> None:
    first, second = stored(own), stored(own)
    for version in (first, second):
        says("release", "mine", version.id, *WHY, "--board", own.place)
    (Path(own.place) / "mine" / second.id / file).unlink()
    assert first.id in says("rollback", "mine", *WHY, "--board", own.place)


def test_one_can_go_back_to_a_version_that_takes_less_than_callers_send_by_now(
    own: Store, tmp_path: Path
) -> None:
    model = LogisticRegression().fit(X, [1, 0, 1, 0])
    by_half_years = X.assign(age=X["age"] + 0.5)
    first, second = (
        own.write("model-a", model, prototype=Prototype.from_frame(rows), record={}, examples=rows)
        for rows in (X, by_half_years)
    )
    for version in (first, second):
        says("release", "model-a", version.id, *WHY, "--board", own.place)
    with running(tmp_path / "var", Path(own.place), "model_a") as house:
        watched = ("--board", own.place, "--watch", house.model_a.url)
        says("rollback", "model-a", *WHY, *watched)
        assert house.model_a.gets("/metadata").json["version"] == first.id
        says("release", "model-a", second.id, *WHY, *watched)
    refused = runoff("release", "model-a", first.id, *WHY, "--board", own.place)
    assert refused.returncode == 1
    assert "refuses what" in refused.stderr


def test_a_release_in_another_form_is_named(own: Store) -> None:
    stored(own)
    says("release", "mine", "newest", *WHY, "--board", own.place)
    [record] = Path(own.place).glob("releases/*/releases.json")
    record.write_text('{"format": 2}')
    done = runoff("history", "--board", own.place)
    assert done.returncode == 1
    assert done.stderr == f"Error: release {record.parent.name} is in no form that is known here\n"


def test_a_swap_is_over_when_both_services_that_are_watched_have_switched(own: Store, tmp_path: Path) -> None:
    for name in ("model-a", "model-b"):
        stored(own, name)
        says("release", name, "newest", *WHY, "--board", own.place)
    with running(tmp_path / "var", Path(own.place), "model_a", "model_b") as house:
        urls = house.services.urls["model_a"], house.services.urls["model_b"]
        for service in [house.model_a, house.model_b] * 20:
            assert service.asks({"age": 30, "income": 2.0}).status == 200, "all workers are at work"
        said = says("swap", "model-a", "model-b", *WHY, "--watch", *urls, "--board", own.place)
        assert [f"{url} has switched" for url in urls] == said.splitlines()[-2:]
        answers = [(house.model_a, "model-b"), (house.model_b, "model-a")] * 20
        for service, model in answers:
            assert service.asks({"age": 30, "income": 2.0}).json["model"] == model, "whichever worker answers"


def test_the_share_that_is_proposed_to_a_new_model_is_a_tenth_or_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "runoff.cli", "new-model", "model-c"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout
    proposed = said[said.index("[[variants]]") :]
    document = (ROOT / "experiment.toml").read_text(encoding="utf-8") + f"\n{proposed}"
    (tmp_path / "experiment.toml").write_text(document, encoding="utf-8")
    shares = experiment.load(tmp_path / "experiment.toml").shares
    assert 0.05 < shares["model-c"] < 0.15


def test_json_of_every_list_is_json_even_where_there_is_nothing(own: Store) -> None:
    for command in ("models", "history"):
        assert json.loads(says(command, "--json", "--board", own.place)) == []
