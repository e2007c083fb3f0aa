"""Phases through a real router: released, rolled back and swapped in the middle of an experiment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pandas as pd
import pytest
from jsonschema import Draft202012Validator
from sklearn.tree import DecisionTreeClassifier

from runoff.releases import Action, Releases, Served
from runoff.store import Store
from tests import shell
from tests.house import House, until
from tests.integration.test_routing import a_house, a_router_by
from tests.integration.test_verdicts import reports


@pytest.fixture
def two_versions(board: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A board with a second version of model B, and the ids of both, older first."""
    own = tmp_path / "board"
    shutil.copytree(board, own)
    store = Store.open(own)
    first = store.version("model-b")
    golden = store.golden_rows(first)
    assert golden
    X = pd.DataFrame(golden.rows)
    store.write(
        "model-b",
        DecisionTreeClassifier(max_depth=5).fit(X, [n % 2 for n in range(len(X))]),
        prototype=first.prototype,
        record={**first.record, "algorithm": "a coin", "metrics": {}, "parameters": {"max_iter": 5}},
        examples=X,
    )
    return own, [each.id for each in store.versions("model-b")]


def release(board: Path, service: str, model: str, version: str, action: Action = "release") -> None:
    """Let a service serve a version of a model; its workers follow by themselves."""
    served = {service: Served(model, version, None)}
    Releases(Store.open(board)).record(served, by="a test", reason="so", action=action)


def phases(house: House) -> dict[int, dict[str, Any]]:
    told = house.router.gets("/v1/phases").json
    assert [each["phase"] for each in told["phases"] if each["in_force"]] == (
        [told["in_force"]] if told["in_force"] else []
    )
    return {each["phase"]: each for each in told["phases"]}


def verdict(house: House, phase: int | None = None) -> dict[str, Any]:
    told: dict[str, Any] = house.router.gets("/v1/verdict" + (f"?phase={phase}" if phase else "")).json
    return told


def served(house: House, variant: str, version: str, client: dict[str, int]) -> None:
    """Wait until a variant answers from a version; nothing of that counts."""

    def answers() -> bool:
        replies = [house.router.asks(client, X_Force_Variant=variant) for _ in range(4)]
        return {reply.json["version"] for reply in replies} == {version}

    until(answers, f"{variant} serves {version}")


def test_a_release_and_a_rollback_in_mid_experiment_are_phases_and_nothing_is_lost(
    two_versions: tuple[Path, list[str]], tmp_path: Path, clients: list[dict[str, int]]
) -> None:
    board, (older, newer) = two_versions
    release(board, "model-b", "model-b", older)
    # Two workers, who learn of it one after the other.
    with a_house(tmp_path, board, "", WEB_CONCURRENCY="2") as house:
        asked: dict[str, str] = {}

        def ask(times: int) -> None:
            ids = {}
            for number in range(times):
                reply = house.router.asks(clients[len(asked) % len(clients)])
                id_ = reply.headers["X-Request-ID"]
                asked[id_] = f"{reply.headers['X-Variant']} {reply.json['version']}"
                ids[id_] = number % 2
            reports(house, ids)

        ask(60)
        first = verdict(house)
        assert (first["phase"], first["labelled"]) == (1, 60)
        assert first["models"]["B"]["version"] == older
        digest = house.router.gets(f"/v1/variants/B/versions/{newer}").json["digest"]
        question = json.dumps({"models": {"B": {"version": newer, "digest": digest}}}).encode()
        told = house.router.sends(question, "/v1/phases/next").json
        assert told["says"] == "60 outcomes stay with phase 1, and a new phase begins."

        release(board, "model-b", "model-b", newer)
        served(house, "B", newer, clients[0])
        ask(50)
        second = verdict(house)
        assert (second["phase"], second["labelled"], second["models"]["B"]["version"]) == (2, 50, newer)
        assert second["models"]["B"]["digest"] == digest
        # What was before stays as it was said.
        past = verdict(house, 1)
        same = ("sentence", "labelled", "requests", "checks", "models")
        assert {name: past[name] for name in same} == {name: first[name] for name in same}
        assert past["comparisons"][0]["rows"] == first["comparisons"][0]["rows"]
        told = house.router.sends(
            json.dumps({"models": {"B": first["models"]["B"]}}).encode(), "/v1/phases/next"
        )
        assert told.json["says"] == (
            "50 outcomes stay with phase 2, and phase 1 goes on, with its 60 outcomes."
        )

        release(board, "model-b", "model-b", older, "rollback")
        served(house, "B", older, clients[0])
        ask(10)
        third = verdict(house)
        assert (third["phase"], third["labelled"]) == (1, 70)
        listed = phases(house)
        assert {number: each["outcomes"] for number, each in listed.items()} == {1: 70, 2: 50}
        assert listed[2]["because"] == [f"B serves {newer} instead of {older}"]

        # Each row of B is of the phase of the model that answered it.
        rows = {row["id"]: row for row in house.record() if row["propensity"] is not None}
        for id_, who in asked.items():
            if who.startswith("B"):
                assert rows[id_]["phase"] == {f"B {older}": 1, f"B {newer}": 2}[who]

        document = house.router.gets("/openapi.json").json
        for path, method, answer in (
            ("/v1/phases", "get", house.router.gets("/v1/phases").json),
            ("/v1/phases/next", "post", told.json),
        ):
            content = document["paths"][path][method]["responses"]["200"]["content"]
            schema = {**content["application/json"]["schema"], "components": document["components"]}
            Draft202012Validator(schema).validate(answer)
        assert house.router.gets("/v1/verdict?phase=9").status == 404
        assert house.router.gets("/v1/verdict?phase=x").status == 400


def test_what_a_change_ends_is_said_before_it_is_made_and_is_there_again_when_it_is_taken_back(
    board: Path, models: House, tmp_path: Path, clients: list[dict[str, int]]
) -> None:
    # One worker: another one would go by the document before for a moment.
    with a_router_by(tmp_path, board, models, "", WEB_CONCURRENCY="1") as house:

        def runoff(*words: object) -> CompletedProcess[str]:
            done = shell.runoff(*words, RUNOFF_ROUTER_URL=house.router_url)
            assert done.returncode == 0, done.stderr
            return done

        def ask(times: int) -> None:
            ids = [house.router.asks(client).headers["X-Request-ID"] for client in clients[:times]]
            reports(house, {id_: number % 2 for number, id_ in enumerate(ids)})

        ask(40)
        document = house.router.gets("/v1/experiment").json
        (tmp_path / "before.json").write_text(json.dumps(document))
        document["decision"]["metric"] = "log-loss"
        (tmp_path / "after.json").write_text(json.dumps(document))
        change = ("experiment", "set", tmp_path / "after.json", "--reason", "another metric")
        says = "40 outcomes stay with phase 1, and a new phase begins. It is judged at half"
        assert says in runoff(*change, "--dry-run").stdout
        assert house.router.gets("/v1/experiment").json["decision"]["metric"] == "brier"
        said = runoff(*change, "--json")
        assert says in said.stderr
        assert json.loads(said.stdout)["phases"]["leaves"] == 1
        ask(20)
        told = verdict(house)
        assert (told["phase"], told["metric"], told["alpha"], told["labelled"]) == (2, "log-loss", 0.025, 20)
        back = runoff("experiment", "set", tmp_path / "before.json", "--reason", "no")
        assert "20 outcomes stay with phase 2, and phase 1 goes on, with its 40 outcomes." in back.stderr
        ask(5)
        told = verdict(house)
        assert (told["phase"], told["metric"], told["alpha"], told["labelled"]) == (1, "brier", 0.05, 45)
        past = json.loads(runoff("verdict", "--phase", "2", "--json").stdout)
        assert (past["metric"], past["labelled"], past["declared"]["phase"]) == ("log-loss", 20, 2)
        table = runoff("experiment", "phases").stdout
        assert "1 (now)" in table
        assert "other rules" in table


@pytest.mark.slow
def test_variants_that_are_swapped_to_one_model_are_said_to_be_the_same(
    two_versions: tuple[Path, list[str]], tmp_path: Path, clients: list[dict[str, int]]
) -> None:
    own, _ = two_versions
    with a_house(tmp_path, own, "") as house:
        ids = [house.router.asks(client).headers["X-Request-ID"] for client in clients[:30]]
        reports(house, {id_: number % 2 for number, id_ in enumerate(ids)})
        assert verdict(house)["phase"] == 1
        version = house.model_a.asks(clients[0]).json["version"]
        release(own, "model-b", "model-a", version, "swap")
        served(house, "B", version, clients[0])
        ids = [house.router.asks(client).headers["X-Request-ID"] for client in clients[:60]]
        reports(house, {id_: number % 2 for number, id_ in enumerate(ids)})
        same = verdict(house)
        assert same["decision"] == "equivalent"
        assert same["sentence"] == "A and B are the same model, so nothing is compared."
        assert same["comparisons"][0]["rows"] == []
        assert verdict(house, 1)["labelled"] == 30
