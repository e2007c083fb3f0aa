"""Versions seen, compared, released and rolled back, by the command line and over REST alike."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import pytest
import urllib3
from click.testing import CliRunner, Result
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from runoff.cli import main
from runoff.management import Management
from runoff.prototype import Prototype
from runoff.releases import Releases, Served
from runoff.store import Store
from tests.house import House, Reply, Visitor, free_ports, running, until

ROOT = Path(__file__).resolve().parents[2]
KEY = "a-key-for-tests"


@dataclass
class Shell:
    """Somebody at a shell, with a board of their own."""

    board: Path

    def runs(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["--board", str(self.board), *arguments], env={"USER": "ada"})

    def says(self, *arguments: str) -> str:
        done = self.runs(*arguments)
        assert done.exit_code == 0, done.stderr
        return done.stdout

    def told(self, *arguments: str) -> Any:
        return json.loads(self.says(*arguments, "--json"))


@pytest.fixture(scope="module")
def two_versions(board: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the trained models, with a second version of model A that says something else."""
    own = tmp_path_factory.mktemp("two") / "board"
    shutil.copytree(board, own)
    store = Store.open(own)
    first = store.version("model-a")
    golden = store.golden_rows(first)
    assert golden
    X = pd.DataFrame(golden.rows)
    store.write(
        "model-a",
        DecisionTreeClassifier(max_depth=5).fit(X, [n % 2 for n in range(len(X))]),
        prototype=first.prototype,
        record={**first.record, "algorithm": "a coin", "metrics": {}, "parameters": {"max_iter": 5}},
        examples=X,
    )
    return own


@pytest.fixture
def own_board(two_versions: Path, tmp_path: Path) -> Path:
    """A board for one test alone."""
    own = tmp_path / "board"
    shutil.copytree(two_versions, own)
    return own


@pytest.fixture
def shell(own_board: Path) -> Shell:
    return Shell(own_board)


@pytest.fixture
def ids(own_board: Path) -> list[str]:
    """The two versions of model A, older first."""
    return [version.id for version in Store.open(own_board).versions("model-a")]


def test_models_and_versions_are_listed_with_what_is_live(shell: Shell, ids: list[str]) -> None:
    shell.says("release", "model-a", ids[0], "--reason", "first")
    models = {each["model"]: each for each in shell.told("models")}
    assert set(models) == {"model-a", "model-b"}
    assert models["model-a"]["versions"] == 2
    assert models["model-a"]["newest"] == ids[1]
    assert models["model-a"]["live"]["version"] == ids[0]
    assert models["model-b"]["live"] is None
    assert [each["version"] for each in shell.told("versions", "model-a")] == ids
    table = shell.says("versions", "model-a")
    assert all(version in table for version in ids), "ids are there to be pasted"
    assert next(line for line in table.splitlines() if ids[0] in line).rstrip().endswith("live")


def test_a_diff_names_what_changed_and_nothing_else(shell: Shell, ids: list[str]) -> None:
    found = shell.told("diff", "model-a", *ids)
    assert {change["name"] for change in found["about"]} == {"algorithm"}
    changed = {change["name"]: change for change in found["parameters"]}
    assert changed["max_iter"] == {"name": "max_iter", "before": 150, "after": 5}
    assert {change["name"] for change in found["metrics"]} == {"roc_auc", "pr_auc", "brier", "log_loss"}
    assert found["schema"] == []
    assert found["importance"] == []
    assert "a coin" in shell.says("diff", "model-a", *ids)
    assert "differ in nothing" in shell.says("diff", "model-a", ids[0], ids[0])
    other = shell.told("diff", "model-a", ids[0], "newest", "--to-model", "model-b")
    assert {change["name"] for change in other["importance"]} >= {"PAY_0", "LIMIT_BAL"}


def test_a_release_says_who_when_why_and_what_and_is_found_by_its_time(shell: Shell, ids: list[str]) -> None:
    began = datetime.now(UTC)
    shell.says("release", "model-a", ids[0], "--reason", "to begin with", "--by", "grace")
    between = datetime.now(UTC)
    shell.says("release", "model-a", ids[1][:-3], "--reason", "it is newer")
    first, second = shell.told("history", "model-a")
    assert (first["by"], first["reason"], first["action"]) == ("grace", "to begin with", "release")
    assert second["by"] == "ada"
    assert began < datetime.fromisoformat(first["time"]) < between < datetime.fromisoformat(second["time"])
    assert first["changes"]["model-a"]["digest"] == Store.open(shell.board).version("model-a", ids[0]).digest
    assert ids[0] in shell.says("live", "model-a", "--at", between.isoformat())
    assert ids[1] in shell.says("live", "model-a")
    before = shell.runs("live", "model-a", "--at", began.isoformat())
    assert before.exit_code == 1
    assert before.stderr == "Error: nothing was released to model-a then\n"


def test_rollbacks_go_back_one_by_one_and_then_no_further(shell: Shell, ids: list[str]) -> None:
    for version in (ids[0], ids[1], ids[0]):
        shell.says("release", "model-a", version, "--reason", "so")
    assert ids[1] in shell.says("rollback", "model-a", "--reason", "back")
    assert ids[0] in shell.says("rollback", "model-a", "--reason", "further back")
    refused = shell.runs("rollback", "model-a", "--reason", "further still")
    assert refused.exit_code == 1
    assert "nothing was released to 'model-a' before" in refused.stderr
    assert [each["action"] for each in shell.told("history")] == ["release"] * 3 + ["rollback"] * 2


def test_a_swap_is_one_record_and_both_services_follow_it(
    shell: Shell, ids: list[str], client: dict[str, int], tmp_path: Path
) -> None:
    refused = shell.runs("swap", "model-a", "model-b", "--reason", "too early")
    assert refused.exit_code == 1
    assert "needs two services with a release" in refused.stderr
    shell.says("release", "model-a", ids[0], "--reason", "first")
    shell.says("release", "model-b", "newest", "--reason", "first")
    with running(tmp_path / "var", shell.board, "model_a", "model_b") as house:
        before = house.model_a.asks(client).prediction, house.model_b.asks(client).prediction
        shell.says("swap", "model-a", "model-b", "--reason", "B won")
        until(lambda: serves(house.model_a, "model-b"), "A answers from model-b")
        until(lambda: serves(house.model_b, "model-a"), "B answers from model-a")
        after = house.model_a.asks(client), house.model_b.asks(client)
        assert (after[1].prediction, after[0].prediction) == before
        assert after[0].headers["X-Model-Name"] == "model-b", "what answers is named as what it is"
        v1 = house.model_a.sends(json.dumps({"instances": [client]}).encode(), "/v1/models/model-a:predict")
        assert v1.json == {"predictions": [after[0].prediction]}, "its address stays"
    assert len(shell.told("history")) == 3


def serves(service: Visitor, model: str) -> bool:
    """Whether the service answers from the model; asked often, for each worker."""
    told = (service.gets("/metadata").json["user"]["release"]["serving"] for _ in range(20))
    return all(serving["model"] == model for serving in told)


@pytest.mark.parametrize("damage", ["another file", "another schema"])
def test_what_fails_its_test_is_not_released_and_the_exit_code_says_so(
    shell: Shell, ids: list[str], damage: str
) -> None:
    shell.says("release", "model-a", ids[0], "--reason", "first")
    if damage == "another file":
        joblib.dump(LogisticRegression(), shell.board / "model-a" / ids[1] / "model-a.joblib")
        wanted, why = ids[1], "does not match its recorded digest"
    else:
        X = pd.DataFrame({"AGE": [30, 40, 50, 60]})
        written = Store.open(shell.board).write(
            "model-a",
            LogisticRegression().fit(X, [0, 1, 0, 1]),
            prototype=Prototype.from_frame(X),
            record={},
            examples=X,
        )
        wanted, why = written.id, "refuses what"
    refused = shell.runs("release", "model-a", wanted, "--reason", "try")
    assert refused.exit_code == 1
    assert why in refused.stderr
    assert "Traceback" not in refused.stderr
    assert len(shell.told("history")) == 1


def test_watching_a_release_ends_when_the_service_has_switched(
    shell: Shell, ids: list[str], tmp_path: Path
) -> None:
    with running(tmp_path / "var", shell.board, "model_a") as house:
        said = shell.says(
            "release", "model-a", ids[0], "--reason", "older is better", "--watch", house.model_a.url
        )
        assert "has switched" in said
        assert house.model_a.gets("/metadata").json["version"] == ids[0]
    nobody = shell.runs("rollback", "model-a", "--reason", "x", "--watch", "http://127.0.0.1:9")
    assert nobody.exit_code == 1


def test_cards_are_made_in_markdown_and_html_and_html_is_escaped(shell: Shell, ids: list[str]) -> None:
    shell.says("release", "model-a", ids[0], "--reason", "<script>alert(1)</script> | so")
    text = shell.says("card", "model-a", ids[0])
    assert text.startswith(f"# model-a {ids[0]}\n")
    for heading in ("How good it is", "What it looks at", "What it takes", "Where it was served"):
        assert f"## {heading}" in text
    assert "gradient-boosted trees" in text
    assert r"\| so" in text
    page = shell.board.parent / "card.html"
    shell.says("card", "model-a", ids[0], "--html", "-o", str(page))
    html = page.read_text()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert html.count("<svg") == 23
    assert "http://" not in html, "it needs no network"


def test_the_installed_command_runs(own_board: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "runoff", "--board", own_board, "models"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "model-b" in done.stdout


def test_errors_are_a_line_and_misuse_is_told_from_failure(shell: Shell) -> None:
    unknown = shell.runs("versions", "model-x")
    assert (unknown.exit_code, unknown.stderr) == (1, "Error: the store holds no version of 'model-x'\n")
    assert shell.runs("release", "model-a", "newest").exit_code == 2, "a reason is missing"
    assert shell.runs("live", "model-a", "--at", "yesterday").exit_code == 2
    ambiguous = shell.runs("show", "model-a", "20")
    assert ambiguous.exit_code == 1
    assert "2 versions of 'model-a' begin with '20'" in ambiguous.stderr


def test_the_help_of_each_command_has_an_example() -> None:
    assert set(main.commands) >= {"models", "versions", "diff", "release", "rollback", "swap", "card", "live"}
    for name in main.commands:
        shown = CliRunner().invoke(main, [name, "--help"])
        assert shown.exit_code == 0
        assert re.search(rf"^ +runoff .*\b{name}\b", shown.output, re.MULTILINE), name


def test_any_model_of_a_store_is_served_without_code(shell: Shell, client: dict[str, int]) -> None:
    port = free_ports()["model_a"]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "runoff.cli", "--board", str(shell.board)),
            *("serve", "--pin", "model-b", "--port", str(port), "--workers", "1"),
        ],
        cwd=ROOT,
    )
    try:
        service = Visitor(f"http://127.0.0.1:{port}")
        for _ in range(200):
            try:
                if service.gets("/readyz").status == 200:
                    break
            except urllib3.exceptions.HTTPError:
                time.sleep(0.05)
        reply = service.asks(client)
        assert reply.json["model"] == "model-b"
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_a_new_model_is_a_service_in_a_few_lines(
    own_board: Path, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Procfile").write_text("model_a: x\n")
    said = shell.says("new-model", "model-c", "--port", "8123")
    assert 'url = "http://127.0.0.1:8123"' in said
    assert (tmp_path / "Procfile").read_text().splitlines()[1] == (
        "model_c: python -m runoff.server model_c.app:app --port 8123"
    )
    assert len((tmp_path / "model_c" / "app.py").read_text().splitlines()) == 5
    store = Store.open(own_board)
    b = store.version("model-b")
    store.write("model-c", store.estimator("model-b"), prototype=b.prototype, record={})
    code = "from model_c.app import app; print(app.test_client().get('/readyz').status_code)"
    ready = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "RUNOFF_BOARD": str(own_board), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ready.stdout == "200\n"
    assert shell.runs("new-model", "model-c").exit_code == 1
    assert shell.runs("new-model", "Model C").exit_code == 2


@pytest.fixture
def operated(own_board: Path, tmp_path: Path) -> Iterator[House]:
    with running(tmp_path / "var", own_board, "model_a", RUNOFF_OPERATOR_KEY=KEY) as house:
        yield house


def operates(
    house: House, path: str, body: dict[str, Any], looked: str | None = None, *, key: str | None = KEY
) -> Reply:
    """Ask for a change, by the look of a release, if one is named."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    if looked:
        headers["If_Match"] = looked
    return house.model_a.sends(json.dumps(body).encode(), path, **headers)


def test_rest_does_what_the_command_line_does(operated: House, shell: Shell, ids: list[str]) -> None:
    service = operated.model_a
    listed = service.gets("/v1/models/model-a/versions").json["versions"]
    assert listed == shell.told("versions", "model-a")
    one = service.gets(f"/v1/models/model-a/versions/{ids[0]}")
    assert one.json == shell.told("show", "model-a", ids[0])
    difference = service.gets(f"/v1/models/model-a/diff?from={ids[0]}&to={ids[1]}").json
    assert difference == shell.told("diff", "model-a", *ids)
    for version in ids:
        made = operates(
            operated, "/v1/models/model-a/releases", {"version": version, "reason": "so", "by": "ada"}
        )
        assert made.status == 200
        assert made.json == shell.told("history")[-1]
    looked = service.gets("/v1/models/model-a/releases").headers["ETag"]
    assert looked == f'"{made.json["id"]}"'
    body = {"reason": "no", "by": "ada"}
    late = operates(operated, "/v1/models/model-a/rollback", body, '"none"')
    assert late.status == 412
    back = operates(operated, "/v1/models/model-a/rollback", body, looked)
    assert back.json["changes"]["model-a"]["version"] == ids[0]
    told = service.gets("/v1/models/model-a/releases").json
    assert told["releases"] == shell.told("history")
    assert told["live"] == shell.told("live", "model-a")
    past = told["releases"][1]["time"]
    assert service.gets(f"/v1/models/model-a/releases?at={past}").json["live"]["version"] == ids[1]
    unescaped = datetime.fromisoformat(past).astimezone(timezone(timedelta(hours=1))).isoformat()
    assert "+01:00" in unescaped
    assert service.gets(f"/v1/models/model-a/releases?at={unescaped}").json["live"]["version"] == ids[1]
    card = service.gets(f"/v1/models/model-a/versions/{ids[0]}/card")
    assert card.headers["Content-Type"].startswith("text/html")
    assert card.status == 200


def test_nothing_changes_without_the_operators_key(operated: House, shell: Shell, ids: list[str]) -> None:
    body = {"version": ids[0], "reason": "so", "by": "mallory"}
    nobody = operates(operated, "/v1/models/model-a/releases", body, key=None)
    assert nobody.status == 401
    assert nobody.headers["WWW-Authenticate"] == "Bearer"
    assert operates(operated, "/v1/models/model-a/releases", body, key="guess").status == 403
    assert operates(operated, "/v1/models/model-a/rollback", {"reason": "x", "by": "m"}, key="").status == 401
    assert shell.told("history") == []


def test_without_a_configured_key_rest_only_shows(house: House, store: Store) -> None:
    body = {"version": "newest", "reason": "so", "by": "mallory"}
    refused = operates(house, "/v1/models/model-a/releases", body, key="")
    assert refused.status == 403
    assert "without RUNOFF_OPERATOR_KEY" in refused.json["detail"]
    assert Releases(store).all() == []


@pytest.mark.parametrize(
    ("path", "body", "status", "detail"),
    [
        ("/v1/models/model-a/releases", {"version": "1999", "reason": "x", "by": "m"}, 404, "'1999'"),
        ("/v1/models/model-a/releases", {"version": "newest", "by": "m"}, 422, "reason must be a text"),
        ("/v1/models/model-a/rollback", {"reason": "", "by": "m"}, 422, "reason must be a text"),
        ("/v1/models/model-a/rollback", {"reason": "x", "by": "m", "to": "y"}, 422, "to is not known"),
        ("/v1/models/model-a/rollback", {"reason": "x", "by": "m"}, 409, "nothing was released"),
        ("/v1/swap", {"one": "model-a", "other": "model-a", "reason": "x", "by": "m"}, 409, "a swap needs"),
    ],
)
def test_a_wrong_change_is_refused_with_its_reason(
    operated: House, path: str, body: dict[str, Any], status: int, detail: str
) -> None:
    refused = operates(operated, path, body)
    assert refused.status == status
    assert detail in refused.json["detail"]
    assert refused.headers["Content-Type"] == "application/problem+json"


def test_what_a_caller_has_already_is_not_sent_again(house: House, store: Store) -> None:
    path = f"/v1/models/model-a/versions/{store.version('model-a').id}"
    first = house.model_a.gets(path)
    again = urllib3.request("GET", house.model_a.url + path, headers={"If-None-Match": first.headers["ETag"]})
    assert again.status == 304
    assert again.data == b""


def test_releases_made_within_one_second_keep_their_order(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    made = [
        Releases(store).record({"m": Served("m", str(n), None)}, by="x", reason="x", action="release")
        for n in range(5)
    ]
    assert Releases(store).all("m") == made
    assert Management(store).live("m", made[2].time) == made[2].changes["m"]


def test_a_release_that_is_still_being_written_is_not_seen_and_then_is(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    releases = Releases(store)
    releases.record({"m": Served("m", "1", None)}, by="x", reason="x", action="release")
    before = releases.token()
    half = tmp_path / "releases" / "20991231T235959Z-abcde"
    half.mkdir()
    whole = (next((tmp_path / "releases").glob("*/releases.json"))).read_text()
    (half / "releases.json").write_text(whole[:40])
    assert releases.token() == before
    (half / "releases.json").write_text(whole.replace('"1"', '"2"'))
    assert releases.token() != before
    assert len(releases.all("m")) == 2
    assert store.names() == []
