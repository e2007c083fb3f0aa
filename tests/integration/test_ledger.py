"""The ledger: what was acknowledged is there once and in its order, and the sums are those of its rows."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from router import database, group_commit, tables
from router.database import DatabaseDown, stamp
from router.entries import Entry, Record, Reply, SideAnswer
from router.fold import SUMS, Counts, Fold
from router.group_commit import GroupCommit
from router.ledger import Ledger
from router.outcomes import Outcomes
from router.retention import prune
from router.store import DuplicateRequest, Repeated
from router.writers import APPENDING
from tests import databases
from tests.house import until

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = count()
# Tried on PostgreSQL in the long part.
SQLITE_FIRST = pytest.mark.parametrize(
    "url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True
)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new ledger of each kind, for one test alone."""
    return databases.ledger(request.param, tmp_path)


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    made = database.connect(url)
    yield made
    made.dispose()


def record(id_: str | None = None, **more: Any) -> Record:
    id_ = id_ or f"r{next(NUMBERS)}"
    return Record(
        id=id_,
        request_id=id_,
        row=0,
        time=stamp(datetime.now(UTC)),
        experiment="e",
        experiment_version=1,
        allocation=0,
        variant="A",
        answered_by=None,
        propensity=0.8,
        unit=None,
        model="model-a",
        version="v1",
        digest=None,
        features='{"AGE": 34}',
        prediction=0.25,
        latency_ms=1.5,
        status=200,
        problem=None,
        tag=None,
    )._replace(**more)


def aside(id_: str, name: str = "B", prediction: float = 0.5) -> SideAnswer:
    now = stamp(datetime.now(UTC))
    return SideAnswer(id_, "shadow", name, now, "model-b", "v1", None, prediction, 1.0, 200, None)


def sums_of(engine: sa.Engine) -> dict[str, list[tuple[Any, ...]]]:
    """All sums that are not 0, by table."""
    found = {}
    with engine.connect() as connection:
        for table in SUMS:
            keys = len(table.primary_key)
            rows = sorted(tuple(row) for row in connection.execute(sa.select(table)))
            found[table.name] = [
                tuple(pytest.approx(value, abs=1e-9) if isinstance(value, float) else value for value in row)
                for row in rows
                if any(abs(value) > 1e-9 for value in row[keys:])
            ]
    return found


def recounted(engine: sa.Engine) -> dict[str, list[tuple[Any, ...]]]:
    """All sums, made anew from the rows."""
    with engine.begin() as connection:
        for table in (*SUMS, tables.folds, tables.standings):
            connection.execute(table.delete())
    Fold(engine).catch_up()
    return sums_of(engine)


def test_what_is_appended_is_read_back_in_its_order(engine: sa.Engine) -> None:
    ledger = Ledger(engine)
    for number in range(5):
        ledger.append(Entry([record(f"n{number}", prediction=number / 10)]))
    page = ledger.page(0, 3)
    assert [row["id"] for row in page] == ["n0", "n1", "n2"]
    assert [row["id"] for row in ledger.page(page[-1]["cursor"], 3)] == ["n3", "n4"]
    assert [row["id"] for row in ledger.last(2)] == ["n3", "n4"]
    found = ledger.find("n4")
    assert found
    assert (found["prediction"], found["features"]) == (0.4, {"AGE": 34})
    assert ledger.find("n5") is None


def test_who_repeats_an_id_fails_alone(engine: sa.Engine) -> None:
    ledger = Ledger(engine)
    ledger.append(Entry([record("taken")]))
    errors: list[Exception] = []

    def append(id_: str) -> None:
        try:
            ledger.append(Entry([record(id_)]))
        except DuplicateRequest as error:
            errors.append(error)

    threads = [
        threading.Thread(target=append, args=("taken" if number == 7 else f"free{number}",))
        for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [str(error) for error in errors] == ["taken"]
    assert len(ledger.page(0, 100)) == 20


@pytest.mark.parametrize("version", ["\ud800", "x\0y"])
def test_who_brings_what_cannot_be_stored_fails_alone(engine: sa.Engine, version: str) -> None:
    ledger = Ledger(engine)
    told: dict[int, str] = {}

    def append(number: int) -> None:
        try:
            ledger.append(Entry([record(f"n{number}", version=version if number == 7 else "v1")]))
            told[number] = "taken"
        except ValueError:
            told[number] = "refused"

    threads = [threading.Thread(target=append, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    there = {row["id"] for row in ledger.page(0, 100)}
    assert [told[number] for number in range(20) if number != 7] == ["taken"] * 19
    assert (told[7] == "taken") == ("n7" in there)


def test_an_entry_is_all_there_or_not_at_all(engine: sa.Engine) -> None:
    ledger = Ledger(engine)
    reply = Reply("key", "f" * 64, "whole", stamp(datetime.now(UTC)), 200, "[]", bytes(range(256)))
    ledger.append(Entry([record("whole/0"), record("whole/1")], [aside("whole/0")], reply))
    assert ledger.reply("key") == reply
    with pytest.raises(DuplicateRequest):
        ledger.append(Entry([record("half/0"), record("whole/1")], [aside("half/0")]))
    assert [row["id"] for row in ledger.page(0, 9)] == ["whole/0", "whole/1"]
    found = ledger.find("whole/0")
    assert found
    assert [answer["name"] for answer in found["side_answers"]] == ["B"]


def test_an_idempotency_key_is_answered_as_the_first_time(engine: sa.Engine) -> None:
    ledger = Ledger(engine)
    reply = Reply("key", "f" * 64, "first", stamp(datetime.now(UTC)), 200, "[]", b"{}")
    ledger.append(Entry([record("first")], reply=reply))
    with pytest.raises(Repeated) as repeated:
        ledger.append(Entry([record("second")], reply=reply._replace(request_id="second")))
    assert repeated.value.reply == reply == ledger.reply("key")
    assert [row["id"] for row in ledger.page(0, 9)] == ["first"]


WRITE = """
import sys, threading
from router import database
from router.entries import Entry
from router.ledger import Ledger
from tests.integration.test_ledger import record
url, name, threads, each = sys.argv[1:]
ledger = Ledger(database.connect(url))
def append(thread):
    for number in range(int(each)):
        ledger.append(Entry([record(f"{name}-{thread}-{number}")]))
        print(f"{name}-{thread}-{number}", flush=True)
workers = [threading.Thread(target=append, args=(n,)) for n in range(int(threads))]
for worker in workers: worker.start()
for worker in workers: worker.join()
"""


def writers(url: str, count: int, threads: int, each: int) -> list[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WRITE, url]
    return [
        subprocess.Popen(
            [*command, f"w{n}", str(threads), str(each)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for n in range(count)
    ]


@SQLITE_FIRST
def test_a_reader_misses_nothing_while_many_write(engine: sa.Engine, url: str) -> None:
    working = writers(url, count=3, threads=4, each=50)
    ledger, cursor = Ledger(engine), 0
    seen: list[str] = []
    fold = Fold(engine)
    while len(seen) < 600:
        page = ledger.page(cursor, 50)
        seen += [row["id"] for row in page]
        cursor = page[-1]["cursor"] if page else cursor
        fold.catch_up()
        if not page and all(writer.poll() is not None for writer in working):
            break
    assert len(seen) == len(set(seen)) == 600
    for writer in working:
        assert writer.wait() == 0
        assert writer.stdout
        writer.stdout.close()
    fold.catch_up()
    assert fold.counts("e")[1, 0, "A"].requests == 600


def test_who_is_killed_loses_nothing_that_was_acknowledged(engine: sa.Engine, url: str) -> None:
    working = writers(url, count=3, threads=4, each=10_000)
    until(lambda: Ledger(engine).newest() > 300, "three hundred rows are written")
    for writer in working:
        writer.send_signal(signal.SIGKILL)
    said = [line.strip() for writer in working for line in (writer.communicate()[0] or "").splitlines()]
    # What was acknowledged last may have been cut off on its way to us.
    acknowledged = {id_ for id_ in said if id_.count("-") == 2 and not id_.endswith("-")}
    assert len(acknowledged) > 50
    with engine.connect() as connection:
        there = connection.scalars(sa.select(tables.predictions.c.id)).all()
    assert len(there) == len(set(there))
    assert len(acknowledged - set(there)) <= len(working), "at most one line of each was cut short"
    assert {id_ for id_ in acknowledged if not any(t.startswith(id_) for t in there)} == set()


def test_what_cannot_be_written_is_said_in_bounded_time(engine: sa.Engine) -> None:
    ledger = Ledger(engine)
    ledger.append(Entry([record()]))
    with engine.connect() as somebody:
        if engine.dialect.name == "sqlite":
            somebody.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            somebody.execute(sa.select(sa.func.pg_advisory_xact_lock(APPENDING)))
        with pytest.raises(DatabaseDown):
            ledger.append(Entry([record()]))
        somebody.rollback()
    ledger.append(Entry([record()]))
    assert len(ledger.page(0, 9)) == 2


def test_who_waits_for_one_who_is_stuck_is_told_and_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "PATIENCE_SECONDS", 0.2)
    stuck, go_on = threading.Event(), threading.Event()
    written: list[str] = []

    def write(items: Sequence[str]) -> list[None]:
        written.extend(items)
        if "first" in items:
            stuck.set()
            go_on.wait()
        return [None] * len(items)

    commits = GroupCommit(write)
    first = threading.Thread(target=commits.commit, args=("first",))
    first.start()
    stuck.wait()
    with pytest.raises(TimeoutError):
        commits.commit("second")
    go_on.set()
    first.join()
    commits.commit("third")
    assert written == ["first", "third"]


def test_sums_are_those_of_the_rows_in_whatever_order_they_came(engine: sa.Engine) -> None:
    rng = random.Random(7)
    ledger, reported, folds = Ledger(engine), Outcomes(engine), [Fold(engine), Fold(engine)]
    ids = [f"p{number}" for number in range(60)]
    steps: list[tuple[str, str]] = [("predict", id_) for id_ in ids]
    steps += [("shadow", id_) for id_ in rng.sample(ids, 40)]
    steps += [("report", id_) for id_ in rng.sample(ids, 45)]
    steps += [("correct", id_) for id_ in rng.sample(ids, 20)]
    rng.shuffle(steps)
    for what, id_ in steps:
        if what == "predict":
            status = rng.choice([200] * 8 + [422, 502])
            ledger.append(
                Entry(
                    [
                        record(
                            id_,
                            variant=(variant := rng.choice("AB")),
                            model=f"model-{variant.lower()}",
                            time=stamp(datetime.now(UTC) - timedelta(hours=rng.randrange(3))),
                            propensity=rng.choice([0.5] * 9 + [None]),
                            prediction=rng.random() if status == 200 else None,
                            status=status,
                            problem=None if status == 200 else "it failed",
                            tag=rng.choice([None, "simulation"]),
                            latency_ms=rng.lognormvariate(1, 1),
                        )
                    ]
                )
            )
        elif what == "shadow":
            ledger.append(Entry(side_answers=[aside(id_, rng.choice("BC"), rng.random())]))
        else:
            report = {"id": id_, "outcome": rng.randrange(2), "correction": what == "correct"}
            list(reported.append([report]))
        if rng.random() < 0.3:
            rng.choice(folds).catch_up()
    folds[0].catch_up()
    kept = sums_of(engine)
    assert kept["labels"]
    assert kept["pairs"]
    assert kept == recounted(engine)


def test_sums_that_are_wrong_are_made_anew_while_others_fold(engine: sa.Engine) -> None:
    ledger, reported, fold = Ledger(engine), Outcomes(engine), Fold(engine)
    for number in range(50):
        ledger.append(Entry([record(f"p{number}", prediction=number / 50)]))
    assert [told.status for told in next(reported.append([{"id": "p7", "outcome": 1}]))] == ["recorded"]
    fold.catch_up()
    right = sums_of(engine)
    assert fold.recount() == 0
    with engine.begin() as connection:
        connection.execute(tables.sums.update().values(requests=tables.sums.c.requests + 3))
        connection.execute(tables.scores.delete().where(tables.scores.c.bin == 7))
        connection.execute(tables.labels.delete())
    assert sums_of(engine) != right
    assert fold.recount() == 2 * 3, "by the hour, and over all hours"
    assert sums_of(engine) == right
    ledger.append(Entry([record()]))
    fold.catch_up()
    assert sums_of(engine) == recounted(engine)


@SQLITE_FIRST
def test_what_was_pruned_stays_in_the_sums_when_they_are_made_anew(engine: sa.Engine) -> None:
    ledger, reported, fold = Ledger(engine), Outcomes(engine), Fold(engine)
    now = datetime.now(UTC)
    for number in range(1200):
        time = stamp(now - timedelta(days=number % 2))
        ledger.append(Entry([record(f"p{number}", time=time)], [aside(f"p{number}")] if number < 9 else ()))
    told = reported.append([{"id": f"p{number}", "outcome": number % 2} for number in range(0, 1200, 3)])
    assert {each.status for piece in told for each in piece} == {"recorded"}
    list(reported.append([{"id": "never came", "outcome": 1}]))
    fold.catch_up()
    before = sums_of(engine)
    assert prune(engine, now - timedelta(hours=2)) == 600
    assert prune(engine, now - timedelta(hours=2)) == 0
    assert ledger.find("p1") is None
    assert reported.of("p3") == []
    assert len(reported.of("p0")) == 1
    assert len(reported.of("never came")) == 1, "it was reported just now, and may come yet"
    assert sums_of(engine) == before
    assert fold.recount() == 0
    assert sums_of(engine) == before


def test_folds_at_once_count_nothing_twice(engine: sa.Engine) -> None:
    ledger = Ledger(engine)
    enough = threading.Event()

    def keep_folding() -> None:
        fold = Fold(engine)
        while not enough.is_set():
            fold.catch_up()

    folding = [threading.Thread(target=keep_folding) for _ in range(3)]
    for thread in folding:
        thread.start()
    for _ in range(300):
        ledger.append(Entry([record()]))
    enough.set()
    for thread in folding:
        thread.join()
    Fold(engine).catch_up()
    assert sums_of(engine) == recounted(engine)


def test_an_outcome_is_taken_once_and_corrected_only_as_such(engine: sa.Engine) -> None:
    ledger, reported, fold = Ledger(engine), Outcomes(engine), Fold(engine)
    ledger.append(Entry([record("p")]))

    def says(**report: Any) -> str:
        [[told]] = reported.append([report])
        return told.status

    assert says(id="p", outcome=1) == "recorded"
    assert says(id="p", outcome=1) == "repeated"
    assert says(id="p", outcome=0) == "contradicts"
    assert says(id="later", outcome=1) == "pending"
    assert says(id="p", outcome=0, correction=True) == "recorded"
    assert [row["outcome"] for row in reported.of("p")] == [1, 0]
    fold.catch_up()
    assert fold.labelled("e") == {"A": 1}
    positives = list(tables.labels.columns).index(tables.labels.c.positives)
    assert sums_of(engine)["labels"][0][positives] == 0
    ledger.append(Entry([record("later")]))
    fold.catch_up()
    assert fold.labelled("e") == {"A": 2}


@pytest.mark.parametrize(
    ("report", "why"),
    [
        ("p", "report: "),
        ({"outcome": 1}, "id: "),
        ({"id": "", "outcome": 1}, "id: "),
        ({"id": "x" * 141, "outcome": 1}, "id: "),
        ({"id": "p"}, "outcome: "),
        ({"id": "p", "outcome": "yes"}, "outcome: "),
        ({"id": "p", "outcome": float("nan")}, "outcome: "),
        ({"id": "p", "outcome": 1, "time": "yesterday"}, "time: "),
        ({"id": "p", "outcome": 1, "colour": "red"}, "colour: "),
    ],
)
@SQLITE_FIRST
def test_a_report_that_breaks_a_rule_is_told_by_its_field(engine: sa.Engine, report: Any, why: str) -> None:
    [[told, good]] = Outcomes(engine).append([report, {"id": "good", "outcome": 1}])
    assert told.status == "invalid"
    assert str(told.detail).startswith(why)
    assert good.status == "pending", "the others are taken"


@pytest.mark.parametrize("kind", [pytest.param("sqlite", marks=pytest.mark.slow), "postgresql"])
def test_many_databases_of_one_place_are_opened_at_once(tmp_path: Path, kind: str) -> None:
    url = databases.empty(kind, tmp_path)
    script = "import sys; from router import database; database.migrate(database.connect(sys.argv[1]))"
    starting = [subprocess.Popen([sys.executable, "-c", script, url], cwd=ROOT) for _ in range(4)]
    assert [process.wait() for process in starting] == [0] * 4


def test_the_migrations_lead_to_the_tables_that_the_code_knows(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), tables.metadata)
    assert found == []


def test_the_rows_of_an_older_ledger_are_kept_and_count_for_no_experiment(tmp_path: Path) -> None:
    place = tmp_path / "ledger.sqlite"
    with closing(sqlite3.connect(place)) as older, older:
        older.executescript(OLDER)
    engine = database.connect(f"sqlite:///{place}")
    database.migrate(engine)
    ledger, fold = Ledger(engine), Fold(engine)
    ledger.append(Entry([record("new")]))
    fold.catch_up()
    assert [(row["cursor"], row["id"]) for row in ledger.page(0, 9)] == [(7, "old"), (8, "new")]
    assert fold.counts("e") == {(1, 0, "A"): Counts(1, 1, 0, 0, 1, 0.25)}


OLDER = """
CREATE TABLE predictions (
    cursor INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, id VARCHAR(140) NOT NULL UNIQUE,
    request_id VARCHAR(128) NOT NULL, row INTEGER NOT NULL, time VARCHAR(27) NOT NULL,
    experiment VARCHAR(40) NOT NULL, variant VARCHAR(40) NOT NULL, model VARCHAR(128), version VARCHAR(128),
    features TEXT, prediction FLOAT, latency_ms FLOAT NOT NULL, status INTEGER NOT NULL, problem TEXT,
    tag VARCHAR(40), UNIQUE (request_id, row)
);
CREATE INDEX predictions_by_outcome ON predictions (variant, status, latency_ms);
INSERT INTO predictions VALUES (7, 'old', 'old', 0, '2026-11-01T00:00:00.000000Z', 'e', 'A', 'm', 'v', '{}',
    0.5, 1.0, 200, NULL, NULL);
"""
