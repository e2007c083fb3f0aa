"""A service under releases: never a wrong answer, never none, and what fails its test is never served."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import pytest
from sklearn.tree import DecisionTreeClassifier

from runoff.live import KEPT
from runoff.management import Management
from runoff.releases import Releases, Served
from runoff.store import ModelVersion, Store
from tests.conftest import House, Reply, Visitor, running, until

RELEASES = 50
CALLERS = 3
PATIENCE_SECONDS = 30.0
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
    text = visitor.gets("/metrics").body.decode()
    told = re.findall(r'^runoff_model_workers\{.*version="([^"]+)"\} (\S+)$', text, re.MULTILINE)
    return {version for version, workers in told if float(workers)}


def test_releases_and_rollbacks_under_load_fail_no_request_and_mix_up_no_answer(
    own: Store, house: House, clients: list[dict[str, int]]
) -> None:
    versions = own.versions("model-a")
    offline = {
        version.id: [
            float(own.load("model-a", version.id).probabilities(pd.DataFrame([client]))[0])
            for client in clients[:40]
        ]
        for version in versions
    }
    replies: list[tuple[int, Reply]] = []
    enough = threading.Event()

    def keep_asking() -> None:
        visitor = Visitor(house.model_a.url)
        for number in count():
            if enough.is_set():
                return
            replies.append((number % 40, visitor.asks(clients[number % 40])))

    callers = [threading.Thread(target=keep_asking) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    management = Management(own)
    try:
        for number in range(RELEASES):
            seen = len(replies)
            if number % 3 == 2:
                live = management.rollback("model-a", **WHY).changes["model-a"].version
            else:
                live = versions[number % 2].id
                management.release("model-a", versions[number % 2], **WHY)
            until(
                lambda live=live, seen=seen: any(  # type: ignore[misc]
                    reply.headers.get("X-Model-Version") == live for _, reply in replies[seen:]
                ),
                f"an answer from {live} after release {number}",
            )
    finally:
        enough.set()
        for caller in callers:
            caller.join()
    assert {reply.status for _, reply in replies} == {200}
    assert {reply.headers["X-Model-Version"] for _, reply in replies} == {each.id for each in versions}
    for number, reply in replies:
        assert reply.json["version"] == reply.headers["X-Model-Version"]
        assert reply.prediction == offline[reply.json["version"]][number], "to the last bit"
    assert len(management.history("model-a")) == RELEASES


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
    "damage", [damage_the_file, damage_the_golden_rows], ids=["the file", "what it says"]
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
    until(lambda: house.model_a.asks(client).json["version"] == first.id, "the first release is served")
    why = damage(own, second, tmp_path / "touched")
    # Past the command line, which would have refused it.
    Releases(own).record(
        {"model-a": Served("model-a", second.id, second.digest)}, by="x", reason="x", action="release"
    )

    def told() -> dict[str, Any]:
        state: dict[str, Any] = house.model_a.gets("/metadata").json["user"]["release"]
        return state

    until(lambda: bool(told()["failed"]), "the failure is in /metadata")
    state = told()
    assert why in state["failed"]
    assert (state["wanted"]["version"], state["serving"]["version"]) == (second.id, first.id)
    assert house.model_a.gets("/readyz").status == 200
    assert {house.model_a.asks(client).json["version"] for _ in range(20)} == {first.id}
    metrics = house.model_a.gets("/metrics").body.decode()
    assert re.search(rf'runoff_self_test_failures_total\{{.*version="{second.id}"\}} [1-9]', metrics)
    assert not (tmp_path / "touched").exists()

    third = another(own, depth=3)
    Management(own).release("model-a", third, **WHY)
    until(lambda: served_by_workers(house.model_a) == {third.id}, "every worker answers from the third")
    assert told()["failed"] is None
    assert house.model_a.asks(client).json["version"] == third.id


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


def test_any_stored_version_answers_by_its_address_as_it_does_offline(
    own: Store, house: House, clients: list[dict[str, int]]
) -> None:
    # More than are kept in memory, asked for in turn.
    versions = [*own.versions("model-a"), *(another(own, depth) for depth in range(6, 6 + KEPT))]
    for _ in range(2):
        for version, client in zip(versions, clients, strict=False):
            path = f"/v1/models/model-a/versions/{version.id}/predict"
            reply = house.model_a.sends(json.dumps(client).encode(), path)
            [offline] = own.load("model-a", version.id).probabilities(pd.DataFrame([client]))
            assert reply.prediction == offline
            assert reply.headers["X-Model-Version"] == reply.json["version"] == version.id
    unknown = house.model_a.sends(b"{}", "/v1/models/model-a/versions/20200101T000000Z-abcde/predict")
    assert unknown.status == 404
