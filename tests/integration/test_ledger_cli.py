"""`runoff keys`, `prune`, `recount` and `replay`, and the ledger as a file, as they are at a shell."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pyarrow.parquet as pq
import pytest
import urllib3
from click.testing import CliRunner

from router.ledger_cli import keys, prune, recount, replay
from router.tables import metadata
from runoff.store import Store
from tests.house import House, Visitor, running, until


def says(command: click.Command, *arguments: object, ledger: Path) -> str:
    done = CliRunner().invoke(command, [*map(str, arguments), "--ledger", f"sqlite:///{ledger}"])
    assert done.exit_code == 0, done.output
    return done.output


def fetched(house: House, accept: str, query: str = "") -> bytes:
    reply = urllib3.request("GET", f"{house.router_url}/v1/predictions{query}", headers={"Accept": accept})
    assert reply.status == 200, reply.data
    return reply.data


def test_keys_are_added_listed_and_revoked_and_a_running_router_knows_at_once(
    own_router: House, client: dict[str, int]
) -> None:
    ledger = own_router.var / "ledger.sqlite"
    assert own_router.router.asks(client).status == 200
    key = says(keys, "add", "shop", "--scope", "predict", ledger=ledger).strip()
    # In both workers.
    until(
        lambda: all(Visitor(own_router.router_url).asks(client).status == 401 for _ in range(10)),
        "the router is closed",
    )
    assert own_router.router.asks(client, Authorization=f"Bearer {key}").status == 200
    assert own_router.router.asks(client, Authorization=f"Bearer {key}", X_Force_Variant="A").status == 403
    [listed] = json.loads(says(keys, "list", "--json", ledger=ledger))
    assert (listed["name"], listed["scope"], listed["revoked"]) == ("shop", "predict", None)
    assert key not in says(keys, "list", ledger=ledger)
    says(keys, "revoke", "shop", ledger=ledger)
    mine = f"Bearer {key}"
    until(lambda: own_router.router.asks(client, Authorization=mine).status == 401, "the key opens nothing")
    again = CliRunner().invoke(keys, ["revoke", "shop", "--ledger", f"sqlite:///{ledger}"])
    assert (again.exit_code, again.stderr) == (1, "Error: there is no key named shop that could be revoked\n")


def test_the_ledger_is_a_file_in_each_form_and_narrowed(
    own_router: House, clients: list[dict[str, int]]
) -> None:
    house = own_router
    ids = [
        house.router.asks(client, X_Unit_ID=f"u{n % 5}", X_Traffic_Tag="=danger"[1:]).headers["X-Request-ID"]
        for n, client in enumerate(clients[:30])
    ]
    report = [{"id": id_, "outcome": n % 2} for n, id_ in enumerate(ids[:10])]
    house.router.sends(json.dumps(report).encode(), "/v1/outcomes")
    lines = [json.loads(line) for line in fetched(house, "application/x-ndjson").splitlines()]
    # A page does not wait until the phase of its rows is known; an export does.
    paged = house.record()
    assert lines == [row | {"side_answers": []} for row in paged]
    table = list(csv.DictReader(io.StringIO(fetched(house, "text/csv").decode())))
    assert [row["id"] for row in table] == ids
    assert [json.loads(row["features"]) for row in table] == clients[:30]
    columns = pq.read_table(io.BytesIO(fetched(house, "application/vnd.apache.parquet"))).to_pylist()
    assert [row["prediction"] for row in columns] == [row["prediction"] for row in paged]
    assert [row["outcome"] for row in columns[:10]] == [n % 2 for n in range(10)]

    def narrowed(query: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in fetched(house, "application/x-ndjson", query).splitlines()]

    assert [row["id"] for row in narrowed("?outcome=1")] == ids[1:10:2]
    assert len(narrowed("?outcome=known")) == 10
    assert len(narrowed("?outcome=unknown")) == 20
    assert [row["id"] for row in narrowed("?unit=u3")] == ids[3::5]
    assert {row["variant"] for row in narrowed("?variant=B")} <= {"B"}
    assert narrowed(f"?to={paged[7]['time']}") == lines[:7]
    assert narrowed(f"?from={paged[7]['time']}&version={paged[7]['version']}")[0] == lines[7]
    assert house.router.gets("/v1/predictions?from=yesterday").status == 400


def test_what_is_pruned_is_gone_and_its_sums_stay(own_router: House, clients: list[dict[str, int]]) -> None:
    house, ledger = own_router, own_router.var / "ledger.sqlite"
    ids = [house.router.asks(client).headers["X-Request-ID"] for client in clients[:20]]
    reports = [{"id": id_, "outcome": 1} for id_ in ids]
    house.router.sends(json.dumps(reports).encode(), "/v1/outcomes")
    before = house.stats()
    with closing(sqlite3.connect(ledger)) as somebody, somebody:
        somebody.execute("UPDATE predictions SET time = '2020' || substr(time, 5) WHERE cursor <= 15")
    assert says(prune, "--older-than", "90d", ledger=ledger) == "15 predictions deleted\n"
    assert [row["id"] for row in house.record()] == ids[15:]
    after = house.stats()
    assert after["requests"] == before["requests"] == 20
    assert after["variants"]["A"]["labelled"] == before["variants"]["A"]["labelled"] > 0
    assert house.router.asks(clients[0]).status == 200
    assert house.stats()["requests"] == 21


def test_sums_that_are_wrong_are_right_after_a_recount(
    own_router: House, clients: list[dict[str, int]]
) -> None:
    house, ledger = own_router, own_router.var / "ledger.sqlite"
    for client in clients[:20]:
        house.router.asks(client)

    def requests() -> dict[str, int]:
        return {name: each["requests"] for name, each in house.stats()["variants"].items()}

    before = requests()
    assert says(recount, ledger=ledger) == "0 sums corrected\n"
    with closing(sqlite3.connect(ledger)) as somebody, somebody:
        wrong = somebody.execute("UPDATE sums SET requests = requests + 3").rowcount
    assert requests() != before
    assert says(recount, ledger=ledger) == f"{wrong} sums corrected\n"
    assert requests() == before


def test_a_replay_asks_another_version_and_keeps_what_it_says(
    board: Path, store: Store, tmp_path: Path, clients: list[dict[str, int]]
) -> None:
    with running(tmp_path, board, "model_a", "model_b", "router") as house:
        ledger = house.var / "ledger.sqlite"
        ids = [house.router.asks(client).headers["X-Request-ID"] for client in clients[:12]]
        version = store.version("model-b").id
        asked = ("--since", "1h", "--model", "model-b", "--version", version, "--set", "what if")
        said = says(replay, *asked, "--url", house.model_b.url, ledger=ledger)
        assert f"12 requests answered by model-b {version}" in said
        for id_, client in zip(ids, clients, strict=False):
            found = house.router.gets(f"/v1/predictions/{id_}").json
            [answer] = found["side_answers"]
            assert (answer["kind"], answer["name"], answer["version"]) == ("replay", "what if", version)
            assert answer["prediction"] == pytest.approx(house.model_b.asks(client).prediction, abs=1e-6)
        assert "0 requests" in says(replay, *asked, "--url", house.model_b.url, ledger=ledger)


def test_every_table_has_its_place_in_a_new_database(tmp_path: Path) -> None:
    says(keys, "list", ledger=tmp_path / "new.sqlite")
    with closing(sqlite3.connect(tmp_path / "new.sqlite")) as made:
        found = {name for (name,) in made.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert set(metadata.tables) <= found


@pytest.mark.parametrize(
    "command", [["keys", "list"], ["prune", "--older-than", "1d"]], ids=lambda each: each[0]
)
@pytest.mark.parametrize(
    ("ledger", "said"),
    [
        ("postgresql://nobody@127.0.0.1:1/none", "Error: the database cannot be reached: connection failed"),
        ("nonsense", "Invalid value for '--ledger': Could not parse SQLAlchemy URL"),
        ("mongo://127.0.0.1/none", "Invalid value for '--ledger': Can't load plugin"),
    ],
    ids=["down", "no-url", "unknown"],
)
def test_a_ledger_that_cannot_be_opened_is_said_in_one_line(
    command: list[str], ledger: str, said: str
) -> None:
    name, *arguments = command
    done = CliRunner().invoke({"keys": keys, "prune": prune}[name], [*arguments, "--ledger", ledger])
    assert isinstance(done.exception, SystemExit)
    [line] = [each for each in done.stderr.splitlines() if "Error" in each]
    assert said in line


@pytest.mark.parametrize("age", ["99999999d", "yesterday", "90 years"])
def test_an_age_that_is_none_is_refused(age: str, tmp_path: Path) -> None:
    ledger = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    done = CliRunner().invoke(prune, ["--older-than", age, "--ledger", ledger])
    assert done.exit_code == 2
    assert "takes 90d, 12h, or a time such as 2026-11-23T14:05" in done.stderr
