"""Who answers, and what is recorded of it: every mode and dialect through a real router to real models."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests import databases
from tests.house import House, Reply, a_router, running, until

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = count()
TWO = """
[[variants]]
name = "A"
role = "champion"
url = "${MODEL_A_URL:-http://127.0.0.1:1}"
weight = 80
[[variants]]
name = "B"
url = "${MODEL_B_URL:-http://127.0.0.1:1}"
weight = 20
"""


@contextmanager
def a_house(
    folder: Path,
    board: Path,
    settings: str,
    *services: str,
    **environment: str,
) -> Iterator[House]:
    """A router by an experiment's settings, before both models or those that are named."""
    names = services or ("model_a", "model_b", "router")
    environment["RUNOFF_EXPERIMENT"] = written(folder, settings)
    with running(folder, board, *names, **environment) as house:
        yield house


@contextmanager
def a_router_by(
    folder: Path, board: Path, models: House, settings: str, **environment: str
) -> Iterator[House]:
    """A router by an experiment's settings, before the models of another house."""
    environment["RUNOFF_EXPERIMENT"] = written(folder, settings)
    with a_router(folder, board, models, **environment) as house:
        yield house


def written(folder: Path, settings: str) -> str:
    """The file of an experiment of two variants with some settings."""
    document = folder / "experiment.toml"
    document.write_text(f'name = "ours"\nmaturity = "0d"\n{settings}\n{TWO}')
    return str(document)


def prediction(house: House, id_: str) -> dict[str, Any]:
    found: dict[str, Any] = house.router.gets(f"/v1/predictions/{id_}").json
    return found


def test_a_unit_gets_one_variant_for_good_and_its_id_is_kept_as_a_hash(
    house: House, clients: list[dict[str, int]]
) -> None:
    ids: list[str] = []
    seen: dict[str, set[str]] = {}
    for number, client in enumerate(clients[:60]):
        unit = f"customer-{number % 20}"
        reply = house.router.asks(client, X_Unit_ID=unit)
        seen.setdefault(unit, set()).add(reply.headers["X-Variant"])
        ids.append(reply.headers["X-Request-ID"])
    assert {len(variants) for variants in seen.values()} == {1}
    assert set().union(*seen.values()) == {"A", "B"}
    rows = [prediction(house, id_) for id_ in ids]
    assert len({row["unit"] for row in rows}) == 20
    assert not any("customer" in json.dumps(row) for row in rows)
    for row in rows:
        assert row["propensity"] == {"A": 0.8, "B": 0.2}[row["variant"]]


def test_a_forced_variant_answers_and_never_counts(house: House, client: dict[str, int]) -> None:
    before = house.stats()
    for name in ("A", "B") * 3:
        reply = house.router.asks(client, X_Force_Variant=name)
        assert reply.headers["X-Variant"] == name
    row = prediction(house, reply.headers["X-Request-ID"])
    assert (row["variant"], row["propensity"]) == ("B", None)
    after = house.stats()
    assert after["requests"] == before["requests"]
    assert after["cursor"] == before["cursor"] + 6
    assert house.router.asks(client, X_Force_Variant="C").status == 422


def test_a_repeated_request_gets_the_first_answer_and_is_recorded_once(
    house: House, clients: list[dict[str, int]]
) -> None:
    key = f"key-{next(NUMBERS)}"
    before = house.stats()["cursor"]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: house.router.asks(clients[0], Idempotency_Key=key), range(8)))
    assert {reply.status for reply in replies} == {200}
    assert len({reply.body for reply in replies}) == 1
    assert len({reply.headers["X-Request-ID"] for reply in replies}) == 1
    assert sum("Idempotency-Replayed" in reply.headers for reply in replies) == 7
    assert len(house.record(before)) == 1
    other = house.router.asks(clients[1], Idempotency_Key=key)
    assert (other.status, other.json["type"]) == (409, "urn:runoff:problem:conflict")


def test_outcomes_are_taken_by_id_one_or_many_in_json_ndjson_and_csv(
    house: House, clients: list[dict[str, int]]
) -> None:
    ids = [house.router.asks(client).headers["X-Request-ID"] for client in clients[:9]]
    before = sum(each["labelled"] for each in house.stats()["variants"].values())

    def reports(body: str, media_type: str = "application/json") -> Reply:
        return house.router.sends(body.encode(), "/v1/outcomes", Content_Type=media_type)

    one = reports(json.dumps({"id": ids[0], "outcome": 1}))
    assert (one.status, one.json["outcomes"][0]["status"]) == (201, "recorded")
    assert reports(json.dumps({"id": ids[0], "outcome": 0})).status == 409
    assert reports(json.dumps({"id": ids[0], "outcome": 0, "correction": True})).status == 201
    assert reports(json.dumps({"id": "never-heard-of", "outcome": 1})).status == 202
    assert reports(json.dumps({"id": ids[0], "outcome": "no"})).status == 422
    many = reports(json.dumps([{"id": id_, "outcome": 0} for id_ in ids[1:4]]))
    assert [each["status"] for each in many.json["outcomes"]] == ["recorded"] * 3
    lines = "".join(json.dumps({"id": id_, "outcome": 1}) + "\n" for id_ in ids[4:6]) + "{broken\n"
    streamed = reports(lines, "application/x-ndjson").body.decode().splitlines()
    assert [json.loads(line)["status"] for line in streamed] == ["recorded", "recorded", "invalid"]
    table = "id,outcome,time\n" + "".join(f"{id_},1,2026-11-01T00:00:00Z\n" for id_ in ids[6:])
    told = reports(table, "text/csv").body.decode().splitlines()
    assert [json.loads(line)["status"] for line in told] == ["recorded"] * 3
    assert sum(each["labelled"] for each in house.stats()["variants"].values()) == before + 9
    row = prediction(house, ids[0])
    assert [(each["outcome"], each["correction"]) for each in row["outcomes"]] == [(1, False), (0, True)]


def asks_as(house: House, dialect: str, clients: list[dict[str, int]]) -> Reply:
    columns = list(clients[0])
    rows = [list(client.values()) for client in clients]
    tensors = [
        {"name": name, "shape": [len(rows)], "datatype": "INT64", "data": [row[at] for row in rows]}
        for at, name in enumerate(columns)
    ]
    path, body = {
        "MLflow split": ("/invocations", {"dataframe_split": {"columns": columns, "data": rows}}),
        "MLflow records": ("/invocations", {"dataframe_records": clients}),
        "KServe V1": ("/v1/models/credit-default:predict", {"instances": clients}),
        "KServe V1 by the model's name": ("/v1/models/model-a:predict", {"instances": clients}),
        "Open Inference": ("/v2/models/credit-default/infer", {"inputs": tensors}),
    }[dialect]
    return house.router.sends(json.dumps(body).encode(), path)


@pytest.mark.parametrize(
    "dialect",
    ["MLflow split", "MLflow records", "KServe V1", "KServe V1 by the model's name", "Open Inference"],
)
def test_each_dialect_passes_the_router_and_each_row_is_recorded(
    house: House, clients: list[dict[str, int]], dialect: str
) -> None:
    before = house.stats()["cursor"]
    reply = asks_as(house, dialect, clients[:5])
    assert reply.status == 200, reply.body
    said = reply.json["outputs"][0]["data"] if "outputs" in reply.json else reply.json["predictions"]
    rows = house.record(before)
    assert [row["prediction"] for row in rows] == said
    assert [row["id"] for row in rows] == [f"{reply.headers['X-Request-ID']}/{n}" for n in range(5)]
    assert [row["features"] for row in rows] == clients[:5]
    model = {"A": house.model_a, "B": house.model_b}[reply.headers["X-Variant"]]
    assert said == pytest.approx([model.asks(client).prediction for client in clients[:5]], abs=1e-6)


def test_what_is_refused_is_refused_in_its_dialect(house: House) -> None:
    mlflow = house.router.sends(b'{"neither": 1}', "/invocations")
    assert (mlflow.status, set(mlflow.json)) == (400, {"error_code", "message"})
    unknown = house.router.sends(b'{"instances": []}', "/v1/models/nobody:predict")
    assert (unknown.status, set(unknown.json)) == (404, {"error"})


def test_shadows_score_what_the_champion_answers_and_the_caller_sees_nothing_of_it(
    board: Path, models: House, tmp_path: Path, clients: list[dict[str, int]]
) -> None:
    with a_router_by(tmp_path, board, models, 'mode = "shadow"') as house:
        replies = [house.router.asks(client) for client in clients[:20]]
        assert {reply.headers["X-Variant"] for reply in replies} == {"A"}
        ids = [reply.headers["X-Request-ID"] for reply in replies]
        until(lambda: all(prediction(house, id_)["side_answers"] for id_ in ids), "every shadow has answered")
        for id_, client in zip(ids, clients, strict=False):
            [shadow] = prediction(house, id_)["side_answers"]
            assert (shadow["kind"], shadow["name"], shadow["status"]) == ("shadow", "B", 200)
            assert shadow["prediction"] == house.model_b.asks(client).prediction
            assert shadow["version"]


def test_a_broken_challenger_in_the_shadow_hurts_nobody(
    board: Path, tmp_path: Path, clients: list[dict[str, int]]
) -> None:
    with a_house(tmp_path, board, 'mode = "shadow"', "model_a", "router") as house:
        replies = [house.router.asks(client) for client in clients[:10]]
        assert {reply.status for reply in replies} == {200}
        id_ = replies[0].headers["X-Request-ID"]
        until(lambda: bool(prediction(house, id_)["side_answers"]), "that it failed is on record")
        [shadow] = prediction(house, id_)["side_answers"]
        assert (shadow["status"], shadow["prediction"]) == (502, None)


def test_where_one_fails_the_fallback_answers_and_both_are_on_record(
    board: Path, tmp_path: Path, clients: list[dict[str, int]]
) -> None:
    with a_house(tmp_path, board, 'fallback = "A"', "model_a", "router") as house:
        replies = [house.router.asks(client, X_Unit_ID=f"u{n}") for n, client in enumerate(clients[:40])]
        assert {reply.status for reply in replies} == {200}
        assert {reply.headers["X-Variant"] for reply in replies} == {"A"}
        rows = [prediction(house, reply.headers["X-Request-ID"]) for reply in replies]
        helped = [row for row in rows if row["variant"] == "B"]
        assert helped, "the assignment of units does not change"
        for row in helped:
            assert row["answered_by"] == "A"
            [failed] = row["side_answers"]
            assert (failed["kind"], failed["name"]) == ("failed", "B")
            assert failed["status"] in (502, 503)


@pytest.mark.slow
def test_a_service_that_fails_is_left_alone_for_a_while_and_taken_back(
    board: Path, tmp_path: Path, client: dict[str, int]
) -> None:
    with a_house(tmp_path, board, "eject_after_failures = 2", "router", WEB_CONCURRENCY="1") as house:

        def asks() -> Reply:
            return house.router.asks(client, X_Force_Variant="A")

        assert [asks().status for _ in range(3)] == [502, 502, 503]
        refused = asks()
        assert "left alone" in refused.json["detail"]
        assert int(refused.headers["Retry-After"]) >= 1
        house.services.start_one("model_a")
        until(lambda: asks().status == 200, "it is probed and taken back")


def test_columns_are_left_out_or_hashed_where_the_document_says_so(
    board: Path, models: House, tmp_path: Path, client: dict[str, int]
) -> None:
    privacy = 'privacy = { omitted = ["SEX"], hashed = ["AGE"] }'
    with a_router_by(tmp_path, board, models, privacy) as house:
        id_ = house.router.asks(client).headers["X-Request-ID"]
        kept = prediction(house, id_)["features"]
        assert kept.keys() == client.keys() - {"SEX"}
        assert len(kept["AGE"]) == 64
        assert all(kept[name] == value for name, value in client.items() if name not in ("SEX", "AGE"))


def test_with_keys_each_may_do_what_its_scope_says(
    board: Path, models: House, tmp_path: Path, client: dict[str, int]
) -> None:
    with a_router_by(tmp_path, board, models, "", RUNOFF_OPERATOR_KEY="secret") as house:
        key = {"Authorization": "Bearer secret"}
        assert house.router.asks(client).status == 401
        assert house.router.asks(client, **key).status == 200
        assert house.router.gets("/v1/stats").status == 401
        assert house.router.gets("/livez").status == 200


def test_a_router_that_others_can_reach_does_not_start_without_keys(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runoff.server", "router.app:app", "--host", "0.0.0.0", "--port", "0"],
        env={"RUNOFF_LEDGER": f"sqlite:///{tmp_path / 'ledger.sqlite'}", "PATH": "/usr/bin"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "there are no keys" in done.stderr


def changes(house: House, path: str, body: Mapping[str, Any], version: int = 1) -> Reply:
    content = json.dumps(body).encode()
    return house.router.sends(content, path, If_Match=f'"{version}"')


def test_a_ramp_is_live_in_every_worker_within_a_moment_and_moves_only_those_it_must(
    board: Path, models: House, tmp_path: Path, client: dict[str, int]
) -> None:
    with a_router_by(tmp_path, board, models, "") as house:
        units = [f"u{number}" for number in range(150)]

        def assigned() -> dict[str, str]:
            return {unit: house.router.asks(client, X_Unit_ID=unit).headers["X-Variant"] for unit in units}

        before = assigned()
        changed = changes(house, "/v1/experiment/ramp", {"share": 0.5, "reason": "so far so good"})
        assert changed.status == 200, changed.body
        # Each worker looks twice a second; a busy machine is given more.
        time.sleep(4)
        after = assigned()
        moved = {(before[unit], after[unit]) for unit in units if before[unit] != after[unit]}
        assert moved == {("A", "B")}
        assert Counter(after.values())["B"] > Counter(before.values())["B"]
        stats = house.stats()
        assert stats["variants"]["B"]["configured_share"] == 0.5
        # As to the verdict, who was there before was assigned by the weights of then, and a unit counts once.
        assert (stats["variants"]["B"]["share_of"], stats["variants"]["B"]["share"]) == (0, None)
        for number in range(40):
            house.router.asks(client, X_Unit_ID=f"new{number % 20}")
        assert house.stats()["variants"]["B"]["share_of"] == 20


@pytest.mark.slow
def test_two_routers_on_one_postgresql_assign_alike_and_tell_one_truth(
    board: Path, models: House, tmp_path: Path, clients: list[dict[str, int]]
) -> None:
    same = {"RUNOFF_SECRET": "of both", "RUNOFF_LEDGER": ""}
    url = databases.empty("postgresql", tmp_path)
    same["RUNOFF_LEDGER"] = url
    with a_router_by(tmp_path, board, models, "", **same) as one:
        # The other has no models of its own: it follows the document that is there.
        document = (tmp_path / "experiment.toml").read_text()
        for name in ("model_a", "model_b"):
            document = re.sub(rf"\$\{{{name.upper()}_URL[^}}]*\}}", one.services.urls[name], document)
        (tmp_path / "other.toml").write_text(document)
        same["RUNOFF_EXPERIMENT"] = str(tmp_path / "other.toml")
        with running(tmp_path / "other", board, "router", **same) as other:
            for number, client in enumerate(clients[:60]):
                unit = f"u{number}"
                replies = [each.router.asks(client, X_Unit_ID=unit) for each in (one, other)]
                assert [reply.status for reply in replies] == [200, 200]
                assert len({reply.headers["X-Variant"] for reply in replies}) == 1
            assert one.stats()["requests"] == other.stats()["requests"] == 120
            assert one.router.gets("/v1/experiment").headers["ETag"] == '"1"', "it is the same document"


@pytest.mark.parametrize("unit", ["", "Größe".encode().decode("latin-1"), "x" * 257])
def test_a_unit_that_would_be_taken_for_another_is_refused(
    house: House, client: dict[str, int], unit: str
) -> None:
    refused = house.router.asks(client, X_Unit_ID=unit)
    assert refused.status == 400
    assert "X-Unit-ID takes 1 to 256 characters of ASCII" in refused.json["detail"]
    assert house.router.asks(client, X_Unit_ID="Gr%C3%B6%C3%9Fe").status == 200
