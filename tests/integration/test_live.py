"""A service under releases: never a wrong answer, never none, and what fails its test is never served."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import pytest
import urllib3
from sklearn.tree import DecisionTreeClassifier

from runoff.live import KEPT
from runoff.management import Management
from runoff.releases import Releases, Served
from runoff.store import ModelVersion, Store
from tests.house import House, Reply, Visitor, running, until

CALLERS = 3
WHY = {"by": "a test", "reason": "so"}


@pytest.fixture
def own(board: Path, tmp_path: Path) -> Store:
    """A store of one's own, with two versions of model A."""
    shutil.copytree(board, tmp_path / "board")
    store = Store.open(tmp_path / "board")
    another(store, depth=5)
    return store


def another(store: Store, depth: int) -> ModelVersion:
    """One more version of model A, which says something else than the others."""
    first = store.versions("model-a")[0]
    golden = store.golden_rows(first)
    assert golden
    X = pd.DataFrame(golden.rows)
    tree = DecisionTreeClassifier(max_depth=depth).fit(X, [n % 2 for n in range(len(X))])
    return store.write("model-a", tree, prototype=first.prototype, record={}, examples=X)


@pytest.fixture
def house(own: Store, tmp_path: Path) -> Iterator[House]:
    with running(tmp_path / "var", Path(own.place), "model_a") as house:
        yield house


def served_by_workers(visitor: Visitor) -> set[str]:
    """The versions that workers answer from, as Prometheus is told."""
    return set(by_version(visitor, "runoff_model_workers"))


def by_version(visitor: Visitor, metric: str) -> dict[str, float]:
    """What a metric says of each version, over all workers, where it says anything."""
    text = visitor.gets("/metrics").body.decode()
    told = re.findall(rf'^{metric}\{{.*version="([^"]+)"\}} (\S+)$', text, re.MULTILINE)
    return {version: float(count) for version, count in told if float(count)}


def answers_of_both_workers(house: House, client: dict[str, int]) -> set[str]:
    """The versions that callers get who come anew, until both workers have answered one."""
    found: set[str] = set()

    def both_are_at_work() -> bool:
        replies = [Visitor(house.model_a.url).asks(client) for _ in range(10)]
        # One that has none yet says so.
        found.update(reply.json["version"] for reply in replies if reply.status != 503)
        return sum(by_version(house.model_a, "runoff_model_workers").values()) == 2

    until(both_are_at_work, "both workers have answered")
    return found


@dataclass(frozen=True)
class Asked:
    """What a caller got for a client, and when it asked and was answered."""

    number: int
    began: datetime
    ended: datetime
    reply: Reply


@pytest.mark.parametrize("releases", [9, pytest.param(50, marks=pytest.mark.slow)])
def test_releases_and_rollbacks_under_load_fail_no_request_and_mix_up_no_answer(
    own: Store, house: House, clients: list[dict[str, int]], releases: int
) -> None:
    versions = own.versions("model-a")
    offline = {
        version.id: [
            float(loaded.probabilities(pd.DataFrame([client]))[0])
            for loaded in [own.load("model-a", version.id)]
            for client in clients[:40]
        ]
        for version in versions
    }
    answered: list[Asked] = []
    torn: list[urllib3.exceptions.HTTPError] = []
    enough = threading.Event()

    def keep_asking() -> None:
        visitor = Visitor(house.model_a.url)
        for number in cycle(range(40)):
            if enough.is_set():
                return
            began = datetime.now(UTC)
            # A thread that fails fails no test: what went wrong is told below.
            try:
                reply = visitor.asks(clients[number])
            except urllib3.exceptions.HTTPError as error:
                torn.append(error)
            else:
                answered.append(Asked(number, began, datetime.now(UTC), reply))

    callers = [threading.Thread(target=keep_asking) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    management = Management(own)
    switched: list[datetime] = []
    try:
        for number in range(releases):
            if number % 3 == 2:
                management.rollback("model-a", **WHY)
            else:
                management.release("model-a", versions[number % 2], **WHY)
            live = management.live("model-a")
            assert live
            until(
                lambda live=live: served_by_workers(house.model_a) == {live.version},  # type: ignore[misc]
                f"all workers answer from {live.version} after release {number}",
            )
            switched.append(datetime.now(UTC))
    finally:
        enough.set()
        for caller in callers:
            caller.join()
    assert torn == []
    assert {each.reply.status for each in answered} == {200}
    assert {each.reply.headers["X-Model-Version"] for each in answered} == {each.id for each in versions}
    for each in answered:
        told = each.reply.json
        assert told["version"] == each.reply.headers["X-Model-Version"]
        assert told["prediction"] == offline[told["version"]][each.number], "to the last bit"
    # Once all workers tell of a release, and until the next one, nothing else answers.
    history = management.history("model-a")
    assert len(history) == releases
    between = [
        (each.reply.headers["X-Model-Version"], release.changes["model-a"].version)
        for release, after, following in zip(history, switched, history[1:], strict=False)
        for each in answered
        if after <= each.began and each.ended <= following.time
    ]
    assert len(between) > releases
    assert all(answers == live for answers, live in between)


def damage_the_file(store: Store, version: ModelVersion, mark: Path) -> str:
    """Put another model into the place of the one that was released."""
    joblib.dump(Touch(mark), folder_of(store, version) / "model-a.joblib")
    (folder_of(store, version) / "model.onnx").write_bytes(b"no graph")
    return "does not match its recorded digest"


def damage_the_golden_rows(store: Store, version: ModelVersion, _mark: Path) -> str:
    """Let the golden rows say something else, all digests being right."""
    path = folder_of(store, version) / "golden.json"
    golden = json.loads(path.read_bytes())
    golden["probabilities"] = [p / 2 + 0.1 for p in golden["probabilities"]]
    path.write_text(json.dumps(golden))
    pretend(store, version, "golden.json")
    return "off by"


def folder_of(store: Store, version: ModelVersion) -> Path:
    return Path(store.place) / version.name / version.id


def pretend(store: Store, version: ModelVersion, file: str) -> None:
    """Write the digest that a file has into the version's description."""
    folder = folder_of(store, version)
    text = (folder / "data.txt").read_text()
    is_now = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    (folder / "data.txt").write_text(text.replace(version.files[file], is_now))


class Touch:
    """What a malicious pickle does: something, when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(damage_the_file, id="the file", marks=pytest.mark.slow),
        pytest.param(damage_the_golden_rows, id="what it says"),
    ],
)
def test_a_release_that_fails_its_test_is_never_served_and_is_told(
    own: Store,
    house: House,
    client: dict[str, int],
    tmp_path: Path,
    damage: Callable[[Store, ModelVersion, Path], str],
) -> None:
    first, second = own.versions("model-a")
    Management(own).release("model-a", first, **WHY)
    until(lambda: answers_of_both_workers(house, client) == {first.id}, "both serve the first release")
    why = damage(own, second, tmp_path / "touched")
    # Past the command line, which would have refused it.
    Releases(own).record(
        {"model-a": Served("model-a", second.id, second.digest)}, by="x", reason="x", action="release"
    )

    def told() -> dict[str, Any]:
        state: dict[str, Any] = house.model_a.gets("/metadata").json["user"]["release"]
        return state

    failures = "runoff_self_test_failures_total"
    until(lambda: by_version(house.model_a, failures) == {second.id: 2}, "both workers have tried and failed")
    until(lambda: bool(told()["failed"]), "the failure is in /metadata")
    state = told()
    assert why in state["failed"]
    assert (state["wanted"]["version"], state["serving"]["version"]) == (second.id, first.id)
    assert house.model_a.gets("/readyz").status == 200
    assert answers_of_both_workers(house, client) == {first.id}
    assert not (tmp_path / "touched").exists()

    third = another(own, depth=3)
    Management(own).release("model-a", third, **WHY)
    until(lambda: served_by_workers(house.model_a) == {third.id}, "every worker answers from the third")
    assert told()["failed"] is None
    assert answers_of_both_workers(house, client) == {third.id}


@pytest.mark.parametrize("damage", ["truncated", "malicious"])
def test_a_service_that_finds_a_damaged_model_is_up_says_why_and_unpickles_nothing(
    own: Store, client: dict[str, int], tmp_path: Path, damage: str
) -> None:
    second = own.versions("model-a")[1]
    mark, path = tmp_path / "touched", folder_of(own, second) / "model-a.joblib"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        joblib.dump(Touch(mark), path)
    with running(tmp_path / "var", Path(own.place), "model_a", RUNOFF_VERSION=second.id) as house:
        refused = house.model_a.asks(client)
        assert refused.status == 503
        assert "does not match its recorded digest" in refused.json["detail"]
        assert house.model_a.gets("/livez").status == 200
        assert house.model_a.gets("/readyz").status == 503
    assert not mark.exists()


def test_a_service_that_finds_its_release_damaged_starts_from_the_one_before(
    own: Store, client: dict[str, int], tmp_path: Path
) -> None:
    first, second = own.versions("model-a")
    for version in (first, second):
        Management(own).release("model-a", version, **WHY)
    why = damage_the_file(own, second, tmp_path / "touched")
    with running(tmp_path / "var", Path(own.place), "model_a") as house:
        assert house.model_a.gets("/readyz").status == 200
        assert answers_of_both_workers(house, client) == {first.id}
        state = house.model_a.gets("/metadata").json["user"]["release"]
        assert (state["wanted"]["version"], state["serving"]["version"]) == (second.id, first.id)
        assert why in state["failed"]
    assert not (tmp_path / "touched").exists()


def test_a_service_that_starts_with_nothing_answers_as_soon_as_there_is_a_version(
    own: Store, client: dict[str, int], tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    with running(tmp_path / "var", empty, "model_a") as house:
        assert house.model_a.asks(client).status == 503
        version = own.version("model-a")
        shutil.copytree(folder_of(own, version), empty / "model-a" / version.id)
        until(lambda: house.model_a.gets("/readyz").status == 200, "it is ready")
        assert answers_of_both_workers(house, client) == {version.id}


@pytest.mark.slow
def test_any_stored_version_answers_by_its_address_as_offline_and_the_last_of_them_from_memory(
    own: Store, clients: list[dict[str, int]], tmp_path: Path
) -> None:
    oldest, live = own.versions("model-a")
    with running(tmp_path / "var", Path(own.place), "model_a", WEB_CONCURRENCY="1") as house:

        def asked_for(version: ModelVersion, client: dict[str, int]) -> Reply:
            path = f"/v1/models/model-a/versions/{version.id}/predict"
            return house.model_a.sends(json.dumps(client).encode(), path)

        # One more than are kept in memory, besides the live one.
        last = [another(own, depth) for depth in range(6, 6 + KEPT)]
        asked = list(zip([oldest, live, *last], clients, strict=False))
        offline = {
            version.id: own.load("model-a", version.id).probabilities(pd.DataFrame([client]))[0]
            for version, client in asked
        }
        for version, client in asked * 2:
            reply = asked_for(version, client)
            assert reply.prediction == offline[version.id]
            assert reply.headers["X-Model-Version"] == reply.json["version"] == version.id
        assert house.model_a.asks(clients[0]).json["version"] == live.id, "its own answers stay"
        unknown = house.model_a.sends(b"{}", "/v1/models/model-a/versions/20200101T000000Z-abcde/predict")
        assert unknown.status == 404
        # What is in memory and what is not shows where the files are gone.
        for version in [oldest, *last]:
            shutil.rmtree(folder_of(own, version))
        assert [asked_for(*each).status for each in asked] == [404] + [200] * (1 + KEPT)
