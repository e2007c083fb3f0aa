"""The ledger: what every routed request was assigned, and what came of it.

Life of a record: `append` writes it, before the caller gets the answer; `page`, `last` and `find` read it
back; the fold (`router/fold.py`) adds it to the sums, from which counts and quantiles are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from router.database import DatabaseDown
from router.group_commit import GroupCommit
from router.tables import outcomes, predictions, replies, side_answers
from router.writers import Rows, writer

# Records that are read at once.
PAGE = 500


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


class Ledger:
    """The record of routed requests, in a SQL database."""

    def __init__(self, engine: sa.Engine) -> None:
        """Make it on an engine whose tables are there; no connection is opened before it is needed."""
        self.engine = engine
        self._writer = writer(engine)
        self._commits: GroupCommit[Entry] = GroupCommit(self._write)

    def append(self, entry: Entry) -> None:
        """Write an entry, all of it or nothing. When this returns it is on disk.

        Raises:
            DuplicateRequest: one of its request ids is recorded already.
            Repeated: its Idempotency-Key is recorded already.
            DatabaseDown: the database did not take it now.
            ValueError: it holds what the database cannot store.
        """
        try:
            self._commits.commit(entry)
        except TimeoutError as error:
            raise _down(error) from error

    def _write(self, entries: Sequence[Entry]) -> Sequence[Exception | None]:
        """Write entries in one transaction; tells for each why it is not there."""
        dbapi = self._writer.dbapi
        try:
            self._writer.write(_rows(entries))
        except (dbapi.IntegrityError, dbapi.DataError, ValueError, OverflowError):
            # One of them fails; the others are not to.
            return self._write_each(entries)
        except dbapi.Error as error:
            # After a lost connection nobody knows whether what was sent was committed.
            return self._write_each(entries) if self._writer.lost else [_down(error)] * len(entries)
        except sa.exc.SQLAlchemyError as error:
            return [_down(error)] * len(entries)
        return [None] * len(entries)

    def _write_each(self, entries: Sequence[Entry]) -> Sequence[Exception | None]:
        """Write each entry by itself, unless it is there already."""
        dbapi = self._writer.dbapi
        told: list[Exception | None] = []
        try:
            for entry in entries:
                try:
                    self._writer.write(_rows([entry]))
                    told.append(None)
                except dbapi.IntegrityError:
                    told.append(None if self._is_there(entry) else self._why_refused(entry))
                except (dbapi.DataError, OverflowError) as error:
                    told.append(ValueError(str(error)))
                except ValueError as error:
                    told.append(error)
        except (dbapi.Error, sa.exc.SQLAlchemyError, DatabaseDown) as error:
            told += [_down(error)] * (len(entries) - len(told))
        return told

    def _is_there(self, entry: Entry) -> bool:
        """Whether this very entry was written: all of it is there then. Raises DatabaseDown."""
        query: sa.Select[Any]
        if entry.records:
            record = entry.records[0]
            query = sa.select(predictions.c.time == record.time).where(predictions.c.id == record.id)
        else:
            columns, answer = side_answers.c, entry.side_answers[0]
            query = sa.select(columns.time == answer.time).where(
                columns.prediction_id == answer.prediction_id,
                columns.kind == answer.kind,
                columns.name == answer.name,
            )
        return [bool(same) for (same,) in self.read(query)] == [True]

    def _why_refused(self, entry: Entry) -> Exception:
        """Why an entry repeats another: its Idempotency-Key, or a request id. Raises DatabaseDown."""
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


def _rows(entries: Sequence[Entry]) -> Rows:
    """What is to be written into each table, if anything is."""
    rows: dict[sa.Table, list[Any]] = {
        predictions: [record for entry in entries for record in entry.records],
        side_answers: [answer for entry in entries for answer in entry.side_answers],
        replies: [entry.reply for entry in entries if entry.reply],
    }
    return {table: added for table, added in rows.items() if added}


def _down(error: Exception) -> DatabaseDown:
    return DatabaseDown(str(error))


def _as_json(row: Mapping[Any, Any]) -> dict[str, Any]:
    features = row["features"]
    return {**row, "features": None if features is None else json.loads(features)}
