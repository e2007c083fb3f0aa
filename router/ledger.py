"""The ledger: what every routed request was assigned, and what came of it.

Life of a record: `append` writes it, before the caller gets the answer; `page`, `last` and `find` read it
back; the fold (`router/fold.py`) adds it to the sums, from which counts and quantiles are read.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa

from router.database import DatabaseDown
from router.group_commit import GroupCommit
from router.tables import outcomes, predictions, replies, side_answers

# How long a writer waits for its turn.
TURN_SECONDS = 5.0
# Between two tries where another process writes: first, and at most. Each costs a switch of threads.
TRY_AGAIN_SECONDS, MOST_SECONDS = 0.0005, 0.004
# Records in a page of an export.
PAGE = 500
# Of PostgreSQL's advisory locks, that of those who append.
APPENDING = 7_461_001


class DuplicateRequest(Exception):
    """The ledger holds a request of this id already."""


class Repeated(Exception):
    """A request with this Idempotency-Key was answered already; `reply` is how."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.idempotency_key)
        self.reply = reply


class Record(NamedTuple):
    """One routed row, in the order of the table's columns; they are described there."""

    id: str
    request_id: str
    row: int
    time: str
    experiment: str
    experiment_version: int
    allocation: int
    variant: str
    answered_by: str | None
    propensity: float | None
    unit: str | None
    model: str | None
    version: str | None
    digest: str | None
    features: str | None
    prediction: float | None
    latency_ms: float
    status: int
    problem: str | None
    tag: str | None


class SideAnswer(NamedTuple):
    """What another variant said of a row, in the order of the table's columns."""

    prediction_id: str
    kind: str
    name: str
    time: str
    model: str | None
    version: str | None
    digest: str | None
    prediction: float | None
    latency_ms: float | None
    status: int
    problem: str | None


class Reply(NamedTuple):
    """The whole answer to a request with an Idempotency-Key, in the order of the table's columns."""

    idempotency_key: str
    fingerprint: str
    request_id: str
    time: str
    status: int
    headers: str
    body: bytes


@dataclass(frozen=True)
class Entry:
    """What is written together or not at all."""

    records: Sequence[Record] = ()
    side_answers: Sequence[SideAnswer] = ()
    reply: Reply | None = None


@dataclass
class Writer:
    """The connection of a process by which it appends, and the statements in the form of its driver."""

    engine: sa.Engine
    connection: Any = field(default=None, init=False)
    _held: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        dialect = self.engine.dialect
        self.is_sqlite = dialect.name == "sqlite"
        self.dbapi: Any = dialect.loaded_dbapi
        # The driver is called directly: SQLAlchemy would cost more than the database does.
        self.inserts = {
            table: _insert(table, row._fields, "?" if self.is_sqlite else "%s")
            for table, row in ((predictions, Record), (side_answers, SideAnswer), (replies, Reply))
        }

    def begin(self) -> Any:
        """Wait for the turn to write, and return a cursor within a transaction.

        In the order in which transactions end, rows have their cursors: nobody else appends meanwhile.
        """
        if self.connection is None:
            # Held for good, or the pool would give it to others.
            self._held = self.engine.raw_connection()
            self.connection = self._held.driver_connection
            if self.is_sqlite:
                self.connection.isolation_level = None
                # SQLite's own waiting sleeps for up to 100 ms at a time.
                self.connection.execute("PRAGMA busy_timeout = 0")
            else:
                self.connection.autocommit = False
        cursor = self.connection.cursor()
        if not self.is_sqlite:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (APPENDING,))
            return cursor
        deadline, wait = time.monotonic() + TURN_SECONDS, TRY_AGAIN_SECONDS
        while True:
            try:
                return cursor.execute("BEGIN IMMEDIATE")
            except self.dbapi.OperationalError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(wait)
            wait = min(2 * wait, MOST_SECONDS)

    def insert(self, cursor: Any, entries: Sequence[Entry]) -> None:
        records = [record for entry in entries for record in entry.records]
        aside = [answer for entry in entries for answer in entry.side_answers]
        answered = [entry.reply for entry in entries if entry.reply]
        for table, rows in ((predictions, records), (side_answers, aside), (replies, answered)):
            if rows:
                cursor.executemany(self.inserts[table], rows)

    def commit(self) -> None:
        if self.is_sqlite:
            self.connection.execute("COMMIT")
        else:
            self.connection.commit()

    def rollback(self) -> None:
        """Undo what was not committed; a connection that cannot is given up."""
        try:
            self.connection.rollback()
        except self.dbapi.Error:
            self.drop()

    def drop(self) -> None:
        if self._held is not None:
            with contextlib.suppress(self.dbapi.Error):
                self._held.invalidate()
        self.connection = self._held = None


class Ledger:
    """The record of routed requests, in a SQL database."""

    def __init__(self, engine: sa.Engine) -> None:
        """Make it on an engine whose tables are there; no connection is opened before it is needed."""
        self.engine = engine
        self._writer = Writer(engine)
        self._commits: GroupCommit[Entry] = GroupCommit(self._write)

    def append(self, entry: Entry) -> None:
        """Write an entry, all of it or nothing. When this returns it is on disk.

        Raises:
            DuplicateRequest: one of its request ids is recorded already.
            Repeated: its Idempotency-Key is recorded already.
            DatabaseDown: the database did not take it.
        """
        self._commits.commit(entry)

    def _write(self, entries: Sequence[Entry]) -> Sequence[Exception | None]:
        writer = self._writer
        try:
            try:
                writer.insert(writer.begin(), entries)
                writer.commit()
            except writer.dbapi.IntegrityError:
                writer.rollback()
                # One of them repeats another: each by itself, so that it alone fails.
                return [self._write_one(entry) for entry in entries]
        except writer.dbapi.Error as error:
            lost = not writer.is_sqlite
            writer.drop()
            if lost:
                return self._write_again(entries)
            raise DatabaseDown(str(error)) from error
        return [None] * len(entries)

    def _write_one(self, entry: Entry) -> Exception | None:
        writer = self._writer
        try:
            writer.insert(writer.begin(), [entry])
            writer.commit()
        except writer.dbapi.IntegrityError:
            writer.rollback()
            return self._why_refused(entry)
        return None

    def _write_again(self, entries: Sequence[Entry]) -> Sequence[Exception | None]:
        """After a lost connection: nobody knows whether what was sent had been committed."""
        writer = self._writer
        outcomes: list[Exception | None] = []
        for entry in entries:
            try:
                outcomes.append(None if self._is_there(entry) else self._write_one(entry))
            except writer.dbapi.Error as error:
                writer.drop()
                down = DatabaseDown(str(error))
                return outcomes + [down] * (len(entries) - len(outcomes))
            except DatabaseDown as down:
                return outcomes + [down] * (len(entries) - len(outcomes))
        return outcomes

    def _is_there(self, entry: Entry) -> bool:
        if not entry.records:
            return False
        first = entry.records[0]
        query = sa.select(predictions.c.time).where(predictions.c.id == first.id)
        return [row.time for row in self.read(query)] == [first.time]

    def _why_refused(self, entry: Entry) -> Exception:
        """Why an entry repeats another: its Idempotency-Key, or a request id."""
        if entry.reply and (known := self.reply(entry.reply.idempotency_key)):
            return Repeated(known)
        return DuplicateRequest(entry.records[0].request_id if entry.records else "")

    def reply(self, idempotency_key: str) -> Reply | None:
        """The answer that a request with this key got, if there was one."""
        found = self.read(sa.select(replies).where(replies.c.idempotency_key == idempotency_key))
        return Reply._make(found[0]) if found else None

    def page(self, since: int, limit: int, *where: sa.ColumnElement[bool]) -> list[dict[str, Any]]:
        """The records after a cursor, oldest first, at most `limit`."""
        query = sa.select(predictions).where(predictions.c.cursor > since, *where)
        return self._records(query.order_by(predictions.c.cursor).limit(limit))

    def last(self, limit: int, *where: sa.ColumnElement[bool]) -> list[dict[str, Any]]:
        """The newest records, oldest of them first."""
        query = sa.select(predictions).where(*where)
        return self._records(query.order_by(predictions.c.cursor.desc()).limit(limit))[::-1]

    def find(self, id_: str) -> dict[str, Any] | None:
        """The record of a prediction, with what other variants said of it; None where there is none."""
        found = self._records(sa.select(predictions).where(predictions.c.id == id_))
        if not found:
            return None
        query = sa.select(side_answers).where(side_answers.c.prediction_id == id_)
        aside = [dict(row._mapping) for row in self.read(query.order_by(side_answers.c.cursor))]
        return found[0] | {"side_answers": aside}

    def newest(self) -> int:
        """The cursor of the newest record, 0 where there is none."""
        return int(self.read(sa.select(sa.func.max(predictions.c.cursor)))[0][0] or 0)

    def check(self) -> None:
        """Raise DatabaseDown where the database cannot be reached."""
        self.read(sa.select(1))

    def read(self, query: sa.Executable) -> Sequence[sa.Row[Any]]:
        """The rows of a query; raises DatabaseDown."""
        try:
            with self.engine.connect() as connection:
                return connection.execute(query).all()
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseDown(str(error)) from error

    def pages(self, since: int, *where: sa.ColumnElement[bool]) -> Iterator[list[dict[str, Any]]]:
        """All records after a cursor that are there by now, page by page."""
        upto = self.newest()
        while page := self.page(since, PAGE, predictions.c.cursor <= upto, *where):
            yield page
            since = page[-1]["cursor"]

    def _records(self, query: sa.Executable) -> list[dict[str, Any]]:
        rows = [_as_json(row._mapping) for row in self.read(query)]
        known: dict[str, float] = {}
        for start in range(0, len(rows), PAGE):
            ids = [row["id"] for row in rows[start : start + PAGE]]
            told = sa.select(outcomes.c.prediction_id, outcomes.c.outcome)
            mine = told.where(outcomes.c.prediction_id.in_(ids)).order_by(outcomes.c.cursor)
            known |= {row.prediction_id: row.outcome for row in self.read(mine)}
        return [row | {"outcome": known.get(row["id"])} for row in rows]


def reported(outcome: str) -> sa.ColumnElement[bool]:
    """The records whose outcome is "known" or "unknown", or is a number.

    Raises:
        ValueError: it is another text.
    """
    mine = sa.select(outcomes.c.outcome).where(outcomes.c.prediction_id == predictions.c.id)
    if outcome in ("known", "unknown"):
        return mine.exists() if outcome == "known" else ~mine.exists()
    last = mine.order_by(outcomes.c.cursor.desc()).limit(1).scalar_subquery()
    return last == float(outcome)


def tagged(tag: str | None) -> sa.ColumnElement[bool]:
    """The records of a tag; "real" is the traffic without one, None is all of it."""
    if tag is None:
        return sa.true()
    return predictions.c.tag.is_(None) if tag == "real" else predictions.c.tag == tag


def _insert(table: sa.Table, fields: Sequence[str], mark: str) -> str:
    marks = ", ".join([mark] * len(fields))
    return f"INSERT INTO {table.name} ({', '.join(fields)}) VALUES ({marks})"  # noqa: S608 (our own names)


def _as_json(row: Mapping[Any, Any]) -> dict[str, Any]:
    features = row["features"]
    return {**row, "features": None if features is None else json.loads(features)}
