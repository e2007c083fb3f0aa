"""Entries into the database: together where that goes, each by itself where one of them fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from router.database import DatabaseDown, read
from router.entries import Entry, Reply
from router.tables import predictions, replies, side_answers
from router.writers import Rows, writer


class DuplicateRequest(Exception):
    """The ledger holds a request of this id already."""


class Repeated(Exception):
    """A request with this Idempotency-Key was answered already; `reply` is how."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.idempotency_key)
        self.reply = reply


class Store:
    """Writes entries, over a connection of its own. One thread at a time may use it."""

    def __init__(self, engine: sa.Engine) -> None:
        """Make it; no connection is opened before it is needed."""
        self._engine = engine
        self._writer = writer(engine)

    def write(self, entries: Sequence[Entry]) -> Sequence[Exception | None]:
        """Write entries, in one transaction if that goes. When this returns they are on disk.

        Returns for each None, or why it is not there: DuplicateRequest, Repeated, DatabaseDown, or ValueError
        where the database cannot store what it holds.
        """
        dbapi = self._writer.dbapi
        try:
            self._writer.write(_rows(entries))
        except (dbapi.IntegrityError, dbapi.DataError, ValueError, OverflowError):
            # One of them fails; the others are not to.
            return self._write_each(entries)
        except dbapi.Error as error:
            # After a lost connection nobody knows whether what was sent was committed.
            return self._write_each(entries) if self._writer.lost else [DatabaseDown(error)] * len(entries)
        except sa.exc.SQLAlchemyError as error:
            return [DatabaseDown(error)] * len(entries)
        return [None] * len(entries)

    def close(self) -> None:
        """Give the connection back."""
        self._writer.close()

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
            told += [DatabaseDown(error)] * (len(entries) - len(told))
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
        return [bool(same) for (same,) in read(self._engine, query)] == [True]

    def _why_refused(self, entry: Entry) -> Exception:
        """Why an entry repeats another: its Idempotency-Key, or a request id. Raises DatabaseDown."""
        if entry.reply and (known := reply_of(self._engine, entry.reply.idempotency_key)):
            return Repeated(known)
        return DuplicateRequest(entry.records[0].request_id if entry.records else "")


def reply_of(engine: sa.Engine, idempotency_key: str) -> Reply | None:
    """The answer that a request with this key got, if there was one; raises DatabaseDown."""
    found = read(engine, sa.select(replies).where(replies.c.idempotency_key == idempotency_key))
    return Reply._make(found[0]) if found else None


def _rows(entries: Sequence[Entry]) -> Rows:
    """What is to be written into each table, if anything is."""
    rows: dict[sa.Table, list[Any]] = {
        predictions: [record for entry in entries for record in entry.records],
        side_answers: [answer for entry in entries for answer in entry.side_answers],
        replies: [entry.reply for entry in entries if entry.reply],
    }
    return {table: added for table, added in rows.items() if added}
