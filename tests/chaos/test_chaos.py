"""Whatever is killed, stopped or slowed under load: each answer that a caller got is in the ledger, once.

In CI for some seconds; `make chaos` does it for longer.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
import urllib3

from router import database, tables
from router.fold import Fold
from tests import databases
from tests.databases import Cluster, made
from tests.house import House, Visitor, running, until
from tests.integration.test_ledger import recounted, sums_of
from tests.integration.test_upstream import Line, Service, response

SECONDS = float(os.environ.get("RUNOFF_CHAOS_SECONDS", "8"))
CALLERS = 6
# Of one request, timeouts and a turn of the ledger included.
BOUND_SECONDS = 60.0
EXPERIMENT = """
name = "chaos"
timeout_seconds = 1.0
fallback = "A"
[[variants]]
name = "A"
role = "champion"
url = "${MODEL_A_URL:-}"
weight = 40
[[variants]]
name = "B"
url = "${MODEL_B_URL:-}"
weight = 40
"""
LIAR = """
[[variants]]
name = "C"
url = "{url}"
weight = 20
"""


class Callers:
    """Clients who keep asking, and remember what they were told."""

    def __init__(self, url: str, clients: list[dict[str, int]]) -> None:
        self.answered: dict[str, float] = {}
        self.statuses: Counter[int] = Counter()
        self.slowest = 0.0
        self._url = url
        self._clients = clients
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(CALLERS)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, caller: int) -> None:
        visitor = Visitor(self._url)
        for number in count():
            if self._enough.is_set():
                return
            id_ = f"c{caller}-{number}"
            began = time.monotonic()
            try:
                reply = visitor.asks(self._clients[number % 100], X_Request_ID=id_)
            except urllib3.exceptions.HTTPError:
                self.statuses[0] += 1
                continue
            finally:
                self.slowest = max(self.slowest, time.monotonic() - began)
            self.statuses[reply.status] += 1
            if reply.status == 200:
                self.answered[id_] = reply.prediction
            else:
                # An error is a problem that says so, and no half an answer.
                assert reply.json["status"] == reply.status
                time.sleep(0.01)


def disasters(house: House, rng: random.Random) -> Iterator[Callable[[], None]]:
    """What befalls the house, one after the other."""

    def workers_of(name: str) -> list[psutil.Process]:
        found: list[psutil.Process] = psutil.Process(house.services.pid(name)).children()
        return found

    def kill_a_worker(name: str) -> None:
        # One that is gone already is a zombie until its server looks.
        with suppress(psutil.Error, IndexError):
            rng.choice(workers_of(name)).send_signal(signal.SIGKILL)

    def stop_for_a_while(name: str) -> None:
        workers = workers_of(name)
        for change in (psutil.Process.suspend, psutil.Process.resume):
            for worker in workers:
                with suppress(psutil.Error):
                    change(worker)
            time.sleep(1)

    def restart(name: str) -> None:
        house.services.kill(name)
        time.sleep(0.5)
        house.services.start_one(name)

    while True:
        for befalls, name in (
            (kill_a_worker, "router"),
            (stop_for_a_while, "model_b"),
            (restart, "model_b"),
            (kill_a_worker, "router"),
            (kill_a_worker, "model_a"),
        ):
            yield lambda befalls=befalls, name=name: befalls(name)  # type: ignore[misc]


MOODS = count()


def lies(line: Line) -> None:
    """Answer, or not, in one of the ways in which a service can be broken."""
    said = response(b'{"prediction": 0.5}', "Content-Type: application/json")
    match next(MOODS) % 8:
        case 0:
            line.says(said)
        case 1:
            # Half-open: the connection is there, and nobody behind it.
            time.sleep(1.5)
        case 2:
            line.says(response(b'{"prediction": 0.5}', length=400))
            line.socket.shutdown(socket.SHUT_RDWR)
        case 3:
            line.says(response(b'{"prediction": 0.5}', length=4))
        case 4:
            line.says(b"\x16\x03\x01 no HTTP at all\r\n\r\n")
        case 5:
            line.says(said[: len(said) // 2])
            line.resets()
        case 6:
            line.says(*(said[n : n + 1] for n in range(len(said))), pause=0.02)
        case _:
            line.says(said, said)


@pytest.fixture
def liar() -> Iterator[Service]:
    made = Service()
    made.behaves = lies
    yield made
    made.closes()


def all_is_there(engine: sa.Engine, callers: Callers) -> None:
    """Each answer that somebody got is in the ledger once, with what they got, and the sums are its sums."""
    with engine.connect() as connection:
        chosen = sa.select(tables.predictions.c.id, tables.predictions.c.prediction)
        rows = connection.execute(chosen).all()
    there = {row.id: row.prediction for row in rows}
    assert len(there) == len(rows)
    assert {id_: there.get(id_) for id_ in callers.answered} == callers.answered
    assert callers.slowest < BOUND_SECONDS
    Fold(engine).catch_up()
    kept = sums_of(engine)
    assert kept == recounted(engine)


@pytest.fixture
def experiment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "experiment.toml").write_text(EXPERIMENT)
    return {"RUNOFF_EXPERIMENT": str(tmp_path / "experiment.toml"), "RUNOFF_SECRET": "a test's"}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_whatever_is_killed_no_answer_is_lost(
    board: Path,
    tmp_path: Path,
    clients: list[dict[str, int]],
    experiment: dict[str, str],
    liar: Service,
    kind: str,
) -> None:
    document = EXPERIMENT.replace("[[", "eject_after_failures = 50\n[[", 1)
    Path(experiment["RUNOFF_EXPERIMENT"]).write_text(document + LIAR.format(url=liar.url))
    url = databases.empty(kind, tmp_path)
    with running(tmp_path, board, "model_a", "model_b", "router", RUNOFF_LEDGER=url, **experiment) as house:
        until(lambda: house.router.asks(clients[0]).status == 200, "the router answers")
        befalling = disasters(house, random.Random(1))
        end = time.monotonic() + SECONDS
        with Callers(house.router_url, clients) as callers:
            while time.monotonic() < end:
                next(befalling)()
                time.sleep(0.5)
                # Our server gives up where a worker dies again and again: whoever started it starts it anew.
                for name in list(house.services.dead()):
                    house.services.start_one(name)
            for name in ("model_a", "model_b", "router"):
                house.services.wait_ready(name)
            until(lambda: house.router.asks(clients[0]).status == 200, "all is well again")
        assert callers.statuses[200] > 50, callers.statuses
        assert len(liar.requests) > 20, "it was asked in all its moods"
        engine = database.connect(url)
        all_is_there(engine, callers)
        engine.dispose()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a few megabytes."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", place], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only the superuser can mount a small disk")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("on_ledger_down", ["refuse", pytest.param("spool", marks=pytest.mark.slow)])
def test_a_full_disk_is_told_and_nothing_that_was_answered_is_lost(
    board: Path,
    tmp_path: Path,
    clients: list[dict[str, int]],
    experiment: dict[str, str],
    small_disk: Path,
    on_ledger_down: str,
) -> None:
    document = EXPERIMENT.replace("[[", f'on_ledger_down = "{on_ledger_down}"\n[[', 1)
    Path(experiment["RUNOFF_EXPERIMENT"]).write_text(document)
    url, ballast = f"sqlite:///{small_disk / 'ledger.sqlite'}", small_disk / "ballast"
    ballast.write_bytes(bytes(2_000_000))
    with running(tmp_path, board, "model_a", "model_b", "router", RUNOFF_LEDGER=url, **experiment) as house:
        until(lambda: house.router.asks(clients[0]).status == 200, "the router answers")
        with Callers(house.router_url, clients) as callers:
            until(lambda: callers.statuses[503] > 0, "the disk is full")
            assert house.router.gets("/livez").status == 200
            # Reading may take a little room, too: then that is told.
            assert house.router.gets("/v1/predictions?last=1").status in (200, 503)
            ballast.unlink()
            refused = callers.statuses[503]
            answered = callers.statuses[200]
            until(lambda: callers.statuses[200] > answered + 100, "it answers again")
        assert set(callers.statuses) <= {200, 503}, callers.statuses
        assert refused > 0
        engine = database.connect(url)
        until(lambda: not [*small_disk.rglob("*.ndjson")], "what waited is in the database")
        all_is_there(engine, callers)
        engine.dispose()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL server that this test may stop."""
    own = made()
    yield own
    own.stop()


@pytest.mark.slow
def test_a_database_that_is_stopped_and_comes_back_has_every_answer(
    board: Path,
    tmp_path: Path,
    clients: list[dict[str, int]],
    experiment: dict[str, str],
    cluster: Cluster,
) -> None:
    url = cluster.url("postgres")
    with running(tmp_path, board, "model_a", "model_b", "router", RUNOFF_LEDGER=url, **experiment) as house:
        until(lambda: house.router.asks(clients[0]).status == 200, "the router answers")
        with Callers(house.router_url, clients) as callers:
            for _ in range(2):
                time.sleep(2)
                cluster.stop()
                time.sleep(1)
                refused = house.router.asks(clients[0])
                assert refused.status == 503
                assert "nothing is answered that is not on record" in json.dumps(refused.json)
                cluster.start()
                until(lambda: house.router.asks(clients[0]).status == 200, "it answers again")
        assert callers.statuses[200] > 50, callers.statuses
        assert callers.statuses[503] > 0
        assert set(callers.statuses) <= {0, 200, 502, 503, 504}
        engine = database.connect(url)
        all_is_there(engine, callers)
        engine.dispose()


@pytest.mark.slow
def test_where_records_may_wait_no_caller_notices_that_the_database_is_away(
    board: Path,
    tmp_path: Path,
    clients: list[dict[str, int]],
    experiment: dict[str, str],
    cluster: Cluster,
) -> None:
    url, spool = cluster.url("postgres"), tmp_path / "spool"
    document = EXPERIMENT.replace('fallback = "A"', 'fallback = "A"\non_ledger_down = "spool"')
    Path(experiment["RUNOFF_EXPERIMENT"]).write_text(document)
    environment = {**experiment, "RUNOFF_LEDGER": url, "RUNOFF_SPOOL": str(spool)}
    with running(tmp_path, board, "model_a", "model_b", "router", **environment) as house:
        cluster.stop()
        # Whichever worker it is, and though none was asked before.
        assert {Visitor(house.router_url).asks(clients[0]).status for _ in range(20)} == {200}
        cluster.start()
        with Callers(house.router_url, clients) as callers:
            for _ in range(2):
                time.sleep(2)
                cluster.stop()
                time.sleep(2)
                assert [*spool.rglob("*.ndjson")]
                assert house.router.gets("/readyz").status == 200
                # Whether its key has come before nobody can tell now.
                assert house.router.asks(clients[0], Idempotency_Key="a key").status == 503
                cluster.start()
                until(lambda: not [*spool.rglob("*.ndjson")], "the spool is written to the database")
        assert set(callers.statuses) == {200}, callers.statuses
        engine = database.connect(url)
        all_is_there(engine, callers)
        engine.dispose()
