"""The experiment seen and changed over REST and from a shell: by whom, of which version, and why."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, request
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from router import database, phases_api
from router.controllers import Runner
from router.experiment import read
from router.experiment_api import blueprint
from router.experiments import Experiments, Following
from router.fold import Fold
from router.keys import Guard, Key, Keys, Scope
from router.once import Once
from runoff import web
from tests import databases
from tests.house import Reply, running_without_dashboard, served
from tests.shell import runoff

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT: dict[str, Any] = {
    "name": "credit",
    "variants": [
        {"name": "A", "role": "champion", "url": "http://a.example", "weight": 80},
        {"name": "B", "url": "http://b.example", "weight": 20},
    ],
}
OPERATOR = {"Authorization": "Bearer the operator's"}
WHY = {"reason": "so"}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return databases.ledger("sqlite", tmp_path)


@pytest.fixture
def app(url: str) -> Iterator[Flask]:
    engine = database.connect(url)
    experiments = Experiments(engine)
    experiments.take_in(read(DOCUMENT))
    following = Following(experiments)
    guard = Guard(Keys(engine), {"RUNOFF_OPERATOR_KEY": "the operator's"})
    guard.refresh()
    app = Flask(__name__)
    web.equip(app, checks={"experiment": following.check})

    def admit(scope: Scope) -> Key:
        return guard.admit(request.headers.get("Authorization"), scope)

    runner = Runner(experiments, following, lambda *_: {})
    addresses = blueprint(experiments, admit, following.look, judged=runner.judged)
    app.register_blueprint(Once(engine, admit).watch(addresses))
    history = phases_api.History(experiments, Fold(engine))
    app.register_blueprint(phases_api.blueprint(following, history, admit))
    app.extensions["runner"] = runner
    app.extensions["reader"] = Keys(engine).add("a reader", "read")
    app.extensions["following"] = following
    app.extensions["guard"] = guard
    app.extensions["engine"] = engine
    guard.refresh()
    yield app
    engine.dispose()


class Asking:
    """An operator at the REST API."""

    def __init__(self, client: FlaskClient) -> None:
        self.client = client

    def gets(self, path: str, **headers: str) -> TestResponse:
        return self.client.get(f"/v1/{path}", headers=OPERATOR | headers)

    def changes(self, path: str, body: Any, version: object = 1, method: str = "POST") -> TestResponse:
        headers = OPERATOR | {"If-Match": f'"{version}"'}
        return self.client.open(f"/v1/experiment{path}", method=method, json=body, headers=headers)

    def puts(self, document: Any, version: object = 1, query: str = "?reason=so") -> TestResponse:
        return self.changes(query, document, version, "PUT")


@pytest.fixture
def asking(app: Flask) -> Asking:
    return Asking(app.test_client())


def told(answer: TestResponse, status: int) -> Any:
    assert answer.status_code == status, answer.get_data(as_text=True)
    if status >= 400:
        assert answer.mimetype == "application/problem+json"
    return answer.get_json()


def test_what_is_got_can_be_changed_and_put_back(asking: Asking, app: Flask) -> None:
    got = asking.gets("experiment")
    assert got.headers["ETag"] == '"1"'
    document = told(got, 200)
    assert read(document) == read(DOCUMENT)
    assert asking.gets("experiment", **{"If-None-Match": '"1"'}).status_code == 304
    document["maturity"] = "30d"
    put = asking.puts(document, query="?reason=they mature in a month&by=ada")
    state = told(put, 200)
    assert put.headers["ETag"] == '"2"'
    assert (state["version"], state["by"]) == (2, "ada (RUNOFF_OPERATOR_KEY)")
    assert told(asking.gets("experiment"), 200)["maturity"] == "P30D"
    assert told(asking.gets("experiment/state"), 200) == state
    assert app.extensions["following"].now().version == 2, "who changed it sees it at once"


def test_a_change_names_the_version_that_it_is_a_change_of(asking: Asking) -> None:
    without = asking.client.put("/v1/experiment?reason=so", json=DOCUMENT, headers=OPERATOR)
    assert "If-Match" in told(without, 428)["detail"]
    told(asking.puts(DOCUMENT), 200)
    for stale in (
        asking.puts(DOCUMENT),
        asking.changes("/pause", WHY),
        asking.changes("/ramp", WHY | {"share": 0.5}),
        asking.changes("/promote", WHY | {"variant": "B"}),
    ):
        problem = told(stale, 412)
        assert problem["detail"] == 'version 2 is in force, not "1"'
        assert problem["version"] == 2
    told(asking.client.post("/v1/experiment/pause", json=WHY, headers=OPERATOR | {"If-Match": "*"}), 200)


@pytest.fixture(params=["sqlite", "postgresql"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return databases.ledger(request.param, tmp_path)


class TestOnEachDatabase:
    """What the database has to see to."""

    @pytest.fixture
    def url(self, anywhere: str) -> str:
        return anywhere

    def test_a_change_with_an_idempotency_key_is_made_once_however_often_it_is_asked_for(
        self, app: Flask
    ) -> None:
        answers: list[TestResponse] = []

        def ramps(share: float = 0.5, **headers: str) -> TestResponse:
            sent = OPERATOR | {"If-Match": '"1"', "Idempotency-Key": "mine"} | headers
            return app.test_client().post("/v1/experiment/ramp", json=WHY | {"share": share}, headers=sent)

        at_once = [threading.Thread(target=lambda: answers.append(ramps())) for _ in range(6)]
        for each in at_once:
            each.start()
        for each in at_once:
            each.join()
        answers.append(ramps())

        # Who comes while it is being made is told so, and later gets the first answer.
        assert {each.status_code for each in answers} <= {200, 409}
        done = [each for each in answers if each.status_code == 200]
        assert len({each.get_data() for each in done}) == 1
        assert {each.headers["ETag"] for each in done} == {'"1"'}
        assert sum("Idempotency-Replayed" in each.headers for each in done) == len(done) - 1
        audit = told(Asking(app.test_client()).gets("audit"), 200)["entries"]
        assert [each["action"] for each in audit] == ["configure", "ramp"]

        # A later version does not hinder who only asks again; with the key of another it is another change.
        told(Asking(app.test_client()).puts(DOCUMENT | {"maturity": "1d"}), 200)
        assert ramps().get_data() == done[0].get_data()
        assert "came with another change" in told(ramps(share=0.6), 409)["detail"]
        reader = Keys(app.extensions["engine"]).add("another operator", "operator")
        app.extensions["guard"].refresh()
        told(ramps(Authorization=f"Bearer {reader}"), 412)


def test_what_was_refused_may_be_asked_for_again_with_the_same_key(asking: Asking, app: Flask) -> None:
    def pauses(version: int, **headers: str) -> TestResponse:
        sent = OPERATOR | {"If-Match": f'"{version}"', "Idempotency-Key": "mine"} | headers
        return asking.client.post("/v1/experiment/pause", json=WHY, headers=sent)

    told(pauses(7), 412)
    told(pauses(1, Authorization=f"Bearer {app.extensions['reader']}"), 403)
    assert "Idempotency-Replayed" not in pauses(1).headers
    assert "Idempotency-Replayed" in pauses(1).headers
    assert "1 to 128 characters" in told(pauses(1, **{"Idempotency-Key": "k" * 129}), 400)["detail"]


def test_a_release_by_way_of_the_router_is_made_once_and_not_again_where_nobody_knows_if_it_was(
    board: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(board, tmp_path / "models")
    with running_without_dashboard(tmp_path, own, RUNOFF_OPERATOR_KEY="secret") as house:
        key = {"Authorization": "Bearer secret"}

        def releases(name: str, **headers: str) -> Reply:
            body = json.dumps(WHY | {"version": "newest"}).encode()
            sent = {"If_Match": '"none"', "Idempotency_Key": name} | key | headers
            return house.router.sends(body, "/v1/variants/B/releases", **sent)

        assert releases("nobody", If_Match="").status == 428

        first, again = releases("mine"), releases("mine")
        assert (first.status, again.status) == (200, 200), first.body
        assert again.body == first.body
        assert again.headers["Idempotency-Replayed"] == "true"
        made = house.router.sends(b"", "/v1/variants/B/releases", "GET", **key).json["releases"]
        assert [each["reason"] for each in made] == ["so"]
        # Who looked before that one is told so, and changes nothing.
        late = releases("late")
        assert (late.status, late.json["title"]) == (412, "Another version is in force")
        assert len(house.router.sends(b"", "/v1/variants/B/releases", "GET", **key).json["releases"]) == 1

        house.services.kill("model_b")
        assert releases("another").status >= 500
        told = releases("another")
        assert (told.status, told.json["title"]) == (409, "The request contradicts what is recorded")
        assert "its result is unknown" in told.json["detail"]


def test_of_operators_who_looked_at_the_same_version_one_is_first(app: Flask) -> None:
    done: list[int] = []

    def put(number: int) -> None:
        changed = DOCUMENT | {"maturity": f"{number}d"}
        done.append(Asking(app.test_client()).puts(changed).status_code)

    operators = [threading.Thread(target=put, args=(number,)) for number in range(1, 6)]
    for operator in operators:
        operator.start()
    for operator in operators:
        operator.join()
    assert sorted(done) == [200, 412, 412, 412, 412]


def test_who_may_look_may_not_change(asking: Asking, app: Flask) -> None:
    reader = {"Authorization": f"Bearer {app.extensions['reader']}", "If-Match": '"1"'}
    for path in ("experiment", "experiment/state", "audit"):
        assert asking.client.get(f"/v1/{path}", headers=reader).status_code == 200
        told(asking.client.get(f"/v1/{path}"), 401)
    told(asking.client.put("/v1/experiment?reason=so", json=DOCUMENT, headers=reader), 403)
    for action in ("pause", "hold", "resume", "ramp", "promote"):
        told(asking.client.post(f"/v1/experiment/{action}", json=WHY, headers=reader), 403)
        told(asking.client.post(f"/v1/experiment/{action}", json=WHY), 401)
    assert told(asking.gets("experiment/state"), 200)["version"] == 1


@pytest.mark.parametrize(
    ("path", "body", "pointer", "rule"),
    [
        ("/pause", {}, "/reason", "required"),
        ("/pause", {"reason": " "}, "/reason", "minLength"),
        ("/pause", {"reason": 7}, "/reason", "type"),
        ("/hold", {}, "/reason", "required"),
        ("/resume", WHY | {"colour": 1}, "/colour", "additionalProperties"),
        ("/ramp", WHY, "/share", "required"),
        ("/ramp", WHY | {"share": 30}, "/share", "maximum"),
        ("/promote", WHY, "/variant", "required"),
        ("/pause", [], "", "type"),
    ],
)
def test_a_wrong_request_is_told_with_field_rule_and_value(
    asking: Asking, path: str, body: Any, pointer: str, rule: str
) -> None:
    problem = told(asking.changes(path, body), 422)
    assert [(error["pointer"], error["rule"]) for error in problem["errors"]] == [(pointer, rule)]


def test_a_wrong_document_is_told_with_field_rule_and_value(asking: Asking) -> None:
    problem = told(asking.puts(DOCUMENT | {"mode": "bandit", "bandit": {"floor": 0.5}}), 422)
    assert [(e["pointer"], e["rule"], e["value"]) for e in problem["errors"]] == [
        ("/bandit/floor", "maximum", 0.5)
    ]
    assert "reason: " in told(asking.puts(DOCUMENT, query=""), 400)["detail"]


def test_what_the_state_does_not_allow_is_a_conflict(asking: Asking) -> None:
    assert "neither held nor paused" in told(asking.changes("/resume", WHY), 409)["detail"]
    assert "mode split nothing moves" in told(asking.changes("/hold", WHY), 409)["detail"]
    assert "no variant named C" in told(asking.changes("/promote", WHY | {"variant": "C"}), 409)["detail"]


def test_a_canary_is_held_and_resumed_and_the_audit_says_by_whom_and_why(asking: Asking) -> None:
    told(asking.puts(DOCUMENT | {"mode": "canary"}), 200)
    held = told(asking.changes("/hold", {"reason": "the month closes", "by": "ada"}, 2), 200)
    assert (held["held"], held["paused"], held["action"]) == (True, False, "hold")
    assert held["weights"] == {"A": 0.99, "B": 0.01}
    assert told(asking.gets("experiment/state"), 200)["held"]
    assert not told(asking.changes("/resume", WHY, 2), 200)["held"]
    entry, _ = told(asking.gets("audit?last=2"), 200)["entries"]
    assert (entry["action"], entry["reason"]) == ("hold", "the month closes")
    assert entry["by"] == "ada (RUNOFF_OPERATOR_KEY)"


def test_the_audit_is_paged_and_tells_all_of_it(asking: Asking) -> None:
    told(asking.changes("/ramp", WHY | {"share": 0.4}), 200)
    paused = told(asking.changes("/pause", WHY), 200)
    assert (paused["paused"], paused["weights"], paused["allocation"]) == (True, {"A": 1, "B": 0}, 2)
    told(asking.changes("/resume", WHY), 200)
    assert told(asking.changes("/promote", WHY | {"variant": "B"}), 200)["weights"] == {"A": 0, "B": 1}
    pages, since = [], "0.0"
    while True:
        page = told(asking.gets(f"audit?since={since}&limit=2"), 200)
        pages.append([entry["cursor"] for entry in page["entries"]])
        since = page["next"]
        if not page["more"]:
            break
    assert pages == [["1.0", "1.1"], ["1.2", "1.3"], ["2.0"]]
    last = told(asking.gets("audit?last=2"), 200)["entries"]
    assert [(entry["action"], entry["reason"]) for entry in last] == [("resume", "so"), ("promote", "so")]
    for query in ("since=x", "limit=0", "last=1001", "limit=x", "colour=1"):
        told(asking.gets(f"audit?{query}"), 400)


def test_a_database_that_is_away_is_said_to_be(asking: Asking, app: Flask, tmp_path: Path) -> None:
    app.extensions["engine"].dispose()
    path = tmp_path / "ledger.sqlite"
    for file in tmp_path.glob("ledger.sqlite*"):
        file.unlink()
    path.mkdir()
    for answer in (asking.gets("experiment"), asking.gets("audit"), asking.changes("/pause", WHY)):
        assert told(answer, 503)["detail"] == "the database cannot be reached"
        assert answer.headers["Retry-After"] == "1"


class Shell:
    """Somebody at a shell, who has the operator's key."""

    def __init__(self, url: str, folder: Path) -> None:
        # The entry points of this checkout, whatever is installed.
        points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
        lines = [f"{name} = {place}" for name, place in points["runoff.commands"].items()]
        metadata = folder / "own-0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 0\n")
        (metadata / "entry_points.txt").write_text("\n".join(["[runoff.commands]", *lines]))
        self.environment = {"RUNOFF_ROUTER_URL": url, "RUNOFF_OPERATOR_KEY": "the operator's"}

    def runs(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return runoff("experiment", *arguments, **(self.environment | environment))

    def says(self, *arguments: object) -> str:
        done = self.runs(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def shell(app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.syspath_prepend(str(tmp_path))
    with served(app) as url:
        yield Shell(url, tmp_path)


def test_the_same_can_be_done_from_a_shell(app: Flask, shell: Shell, tmp_path: Path) -> None:
    why = ("--reason", "so & so", "--by", "ada")
    assert "A        champion    80.0%" in shell.says("show")
    assert shell.says("ramp", "30%", *why) == "version 1 is in force: A 70.0%, B 30.0%\n"
    assert shell.says("pause", *why) == "version 1 is in force, paused: A 100.0%, B 0.0%\n"
    assert "version 1, paused" in shell.says("show")
    shell.says("resume", *why)
    file = tmp_path / "e.json"
    file.write_text(shell.says("show", "--document").replace('"PT0S"', '"30d"'))
    told = json.loads(shell.says("set", file, *why, "--version", 1, "--json"))
    assert (told["version"], told["action"], told["weights"]) == (2, "carry", {"A": 0.7, "B": 0.3})
    assert shell.says("promote", "B", *why) == "version 3 is in force: A 0.0%, B 100.0%\n"
    canary = tmp_path / "canary.json"
    canary.write_text(json.dumps(DOCUMENT | {"mode": "canary"}))
    shell.says("set", canary, *why)
    assert "its gates say" not in shell.says("show")
    app.extensions["runner"].look()
    assert "its gates say hold: there are too few answers yet" in shell.says("show")
    assert shell.says("hold", *why) == "version 4 is in force, held: A 99.0%, B 1.0%\n"
    assert "version 4, held" in shell.says("show")
    assert shell.says("resume", *why) == "version 4 is in force: A 99.0%, B 1.0%\n"
    shell.says("set", ROOT / "experiment.toml", *why)
    assert json.loads(shell.says("show", "--json"))["document"]["name"] == "credit-default"
    history = json.loads(shell.says("history", "--json"))
    assert [entry["action"] for entry in history] == [
        "configure", "ramp", "pause", "resume", "set", "carry", "promote", "set", "hold", "resume", "set",
    ]  # fmt: skip
    assert {(entry["reason"], entry["by"]) for entry in history[1:5]} == {
        ("so & so", "ada (RUNOFF_OPERATOR_KEY)")
    }
    assert "so & so" in shell.says("history", "--last", 3)


def test_what_goes_wrong_is_one_line(shell: Shell, tmp_path: Path) -> None:
    why = ("--reason", "so", "--by", "ada")
    broken = tmp_path / "broken.toml"
    broken.write_text('name = "x"\nvariants = []')
    for arguments, message in (
        (("ramp", "130%", *why), "takes a share such as 30% or 0.3"),
        (("pause", *why, "--version", "7"), 'version 1 is in force, not "7"'),
        (("promote", "C", *why), "the experiment has no variant named C"),
        (("set", broken, *why), "variants: Needs at least one item"),
        (("pause",), "Missing option '--reason'"),
    ):
        done = shell.runs(*arguments)
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert "send a key" in shell.runs("show", RUNOFF_OPERATOR_KEY="").stderr
    assert "does not answer" in shell.runs("show", RUNOFF_ROUTER_URL="http://127.0.0.1:9").stderr


def test_the_help_teaches(shell: Shell) -> None:
    text = shell.says("--help")
    for command in ("show", "set", "pause", "hold", "resume", "ramp", "promote", "history"):
        assert command in text
        assert f"runoff experiment {command}" in shell.says(command, "--help")
