"""The spool: what was acknowledged while the database was away is in the ledger afterwards, once."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa

from router import database, spool, tables
from router.database import DatabaseDown
from router.entries import Entry
from router.ledger import Ledger
from router.spool import Spool
from router.store import DuplicateRequest
from tests.databases import Cluster, made
from tests.house import until
from tests.integration.test_ledger import ROOT, aside, record


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL server that these tests may stop, and leave running."""
    own = made()
    yield own
    own.stop()


@pytest.fixture
def url(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty database of it, with a spool of its own."""
    monkeypatch.setenv("RUNOFF_SPOOL", str(tmp_path / "spool"))
    url = cluster.new()
    engine = database.connect(url)
    database.migrate(engine)
    return url


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    made = database.connect(url)
    yield made
    made.dispose()


def waiting(id_: str) -> Entry:
    return Entry([record(id_)], on_down="spool")


def there(engine: sa.Engine) -> list[str]:
    with engine.connect() as connection:
        return [*connection.scalars(sa.select(tables.predictions.c.id).order_by(tables.predictions.c.id))]


def files(engine: sa.Engine) -> list[Path]:
    return sorted(database.spool_folder(engine).glob("*.ndjson"))


def test_what_may_wait_waits_and_the_rest_is_refused(engine: sa.Engine, cluster: Cluster) -> None:
    ledger = Ledger(engine)
    ledger.append(waiting("before"))
    cluster.stop()
    try:
        ledger.append(waiting("during/0"))
        assert len(files(engine)) == 1
        ledger.append(Entry(side_answers=[aside("during/0")], on_down="spool"))
        with pytest.raises(DatabaseDown):
            ledger.append(Entry([record("refused")]))
        with pytest.raises(DatabaseDown):
            ledger.settle()
    finally:
        cluster.start()
    assert ledger.settle() == 2
    assert files(engine) == []
    ledger.append(waiting("after"))
    assert there(engine) == ["after", "before", "during/0"]
    found = ledger.find("during/0")
    assert found
    assert [answer["name"] for answer in found["side_answers"]] == ["B"]
    assert (files(engine), ledger.settle()) == ([], 0)


def test_a_database_that_comes_and_goes_under_load_has_all_that_was_acknowledged(
    engine: sa.Engine, cluster: Cluster
) -> None:
    ledger, enough = Ledger(engine), threading.Event()
    acknowledged: list[str] = []
    failed: list[Exception] = []

    def append(thread: int) -> None:
        for number in count():
            if enough.is_set():
                return
            try:
                ledger.append(waiting(f"{thread}-{number}"))
                acknowledged.append(f"{thread}-{number}")
            except Exception as error:
                failed.append(error)

    def settle() -> bool:
        try:
            ledger.settle()
        except DatabaseDown:
            return False
        return True

    threads = [threading.Thread(target=append, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for round_ in range(1, 3):
        until(lambda: len(acknowledged) > 300 * round_, "some are written")  # noqa: B023 (called at once)
        cluster.stop()
        until(lambda: bool(files(engine)), "the spool is used")
        cluster.start()
        until(settle, "the database is back")
    enough.set()
    for thread in threads:
        thread.join()
    until(settle, "the spool is empty")
    assert failed == []
    assert there(engine) == sorted(acknowledged)
    assert files(engine) == []


SPOOL = """
import sys
from router import database
from router.ledger import Ledger
from tests.integration.test_spool import waiting
ledger = Ledger(database.connect(sys.argv[1]))
for number in range(100_000):
    ledger.append(waiting(f"n{number:06}"))
    print(f"n{number:06}", flush=True)
"""


def test_what_a_killed_process_left_is_taken_by_another(
    engine: sa.Engine, url: str, cluster: Cluster
) -> None:
    ledger = Ledger(engine)
    cluster.stop()
    try:
        writer = subprocess.Popen(
            [sys.executable, "-c", SPOOL, url], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        until(lambda: any(path.stat().st_size > 20_000 for path in files(engine)), "some are spooled")
    finally:
        cluster.start()
    assert ledger.settle() == 0, "its owner lives"
    writer.send_signal(signal.SIGKILL)
    said = writer.communicate()[0].splitlines()
    acknowledged = [id_ for id_ in said if len(id_) == 7]
    assert len(acknowledged) > 20
    with files(engine)[0].open("ab") as file:
        file.write(b'[[["torn')
    ledger.settle()
    written = there(engine)
    assert written[: len(acknowledged)] == acknowledged
    # One more may be on disk that could not be told any more.
    assert len(written) <= len(acknowledged) + 1
    assert files(engine) == []


def test_an_id_that_was_taken_meanwhile_is_kept_under_another_once(engine: sa.Engine) -> None:
    ledger, files = Ledger(engine), Spool(database.spool_folder(engine))
    ledger.append(waiting("same"))
    files.append([spool.line(Entry([record("same"), record("other")], [aside("same")], on_down="spool"))])
    files.close()
    [path] = files.folder.iterdir()
    shutil.copy(path, path.with_stem("again"))
    # As if whoever took the first had been killed before it could delete it.
    assert ledger.settle() == 2
    assert there(engine) == ["other~2", "same", "same~2"]
    found = ledger.find("same~2")
    assert found
    assert len(found["side_answers"]) == 1


def test_what_cannot_be_stored_is_put_aside_and_holds_up_nobody(engine: sa.Engine) -> None:
    ledger, files = Ledger(engine), Spool(database.spool_folder(engine))
    lines = [
        b"no JSON\n",
        spool.line(Entry([record("long", version="v" * 1000)])),
        spool.line(Entry([record("good")])),
    ]
    files.append(lines)
    files.close()
    assert ledger.settle() == 3
    assert there(engine) == ["good"]
    assert (files.folder / "refused").read_bytes().splitlines(keepends=True) == lines[:2]


def test_where_nothing_can_be_spooled_either_the_caller_is_told(
    engine: sa.Engine, tmp_path: Path, cluster: Cluster
) -> None:
    (tmp_path / "spool").write_text("a file where the folder should be")
    cluster.stop()
    try:
        with pytest.raises(DatabaseDown):
            Ledger(engine).append(waiting("nowhere"))
    finally:
        cluster.start()


def test_sqlite_that_somebody_holds_is_spooled_beside(tmp_path: Path) -> None:
    engine = database.connect(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    database.migrate(engine)
    ledger = Ledger(engine)
    with engine.connect() as somebody:
        somebody.exec_driver_sql("BEGIN IMMEDIATE")
        ledger.append(waiting("spooled"))
        somebody.exec_driver_sql("ROLLBACK")
    assert [path.parent.name for path in files(engine)] == ["ledger.sqlite.spool"]
    assert oct(files(engine)[0].stat().st_mode)[-3:] == "600"
    ledger.settle()
    with pytest.raises(DuplicateRequest):
        ledger.append(waiting("spooled"))
