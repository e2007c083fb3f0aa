"""How rows get into the ledger's tables: one transaction for all that is given, by the driver's own means.

SQLAlchemy would cost more than the database does. Each process has one connection for this, made when it is
needed first. Rows have their cursors in the order in which transactions end, since nobody else appends
meanwhile: a reader who pages by cursor misses none.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa
from pydantic_core import to_json

from router.database import WAIT_SECONDS

# Between two tries where another process writes: first, and at most. Each costs a switch of threads. SQLite's
# own waiting sleeps for up to 100 ms at a time; to queue for a lock on a file was no faster, and cannot be
# bounded.
TRY_AGAIN_SECONDS, MOST_SECONDS = 0.0005, 0.004
# Rows that one statement may add: SQLite remembers the plans of some statements, and takes 32,766 values.
ROWS_IN_ONE = 32
# Of PostgreSQL's advisory locks, that of those who append.
APPENDING = 7_461_001

Rows = Mapping[sa.Table, Sequence[Any]]


class Writer:
    """The connection of a process by which it appends. One thread at a time may use it."""

    def __init__(self, engine: sa.Engine) -> None:
        """Make it; no connection is opened before it is needed."""
        self._engine = engine
        # Held for good, or the pool would give it to others.
        self._held: Any = None
        # The driver, for the names of its errors.
        self.dbapi: Any = engine.dialect.loaded_dbapi
        # Whether the last connection was lost when something had been sent: it may have been committed.
        self.lost = False

    def write(self, rows: Rows) -> None:
        """Append rows to tables, all or none; their values are in the order of the columns.

        Raises:
            dbapi.IntegrityError: a row repeats another.
            dbapi.DataError, ValueError, OverflowError: the database knows no such value.
            dbapi.Error: the database did not take them now.
        """
        self.lost = False
        if not rows:
            return
        try:
            self._write(self._connection(), rows)
        except (self.dbapi.IntegrityError, self.dbapi.DataError, ValueError, OverflowError):
            raise
        except self.dbapi.Error:
            self.lost = self._is_lost()
            self.close()
            raise

    def _connection(self) -> Any:
        if self._held is None:
            self._held = self._engine.raw_connection()
            self._prepare(self._held.driver_connection)
        return self._held.driver_connection

    def close(self) -> None:
        """Give up the connection; the next rows get another."""
        if self._held is not None:
            with contextlib.suppress(self.dbapi.Error):
                self._held.invalidate()
        self._held = None

    def _is_lost(self) -> bool:
        return False

    def _prepare(self, connection: Any) -> None:
        raise NotImplementedError

    def _write(self, connection: Any, rows: Rows) -> None:
        raise NotImplementedError


class OnSqlite(Writer):
    """One transaction: it begins when nobody else writes, and ends when it is on disk."""

    def _prepare(self, connection: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA busy_timeout = 0")

    def _write(self, connection: Any, rows: Rows) -> None:
        [(table, added), *others] = rows.items()
        if not others and len(added) <= ROWS_IN_ONE:
            # The most usual: a transaction by itself, within which no thread has to wait for the interpreter.
            values = [value for row in added for value in row]
            self._in_turn(connection, _insert(table, len(added)), values)
            return
        self._in_turn(connection, "BEGIN IMMEDIATE")
        try:
            for table, added in rows.items():
                connection.executemany(_insert(table, 1), added)
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()
            raise

    def _in_turn(self, connection: Any, statement: str, values: Sequence[Any] = ()) -> None:
        """Execute a statement when nobody else writes."""
        deadline, wait = time.monotonic() + WAIT_SECONDS, TRY_AGAIN_SECONDS
        while True:
            try:
                connection.execute(statement, values)
            except self.dbapi.OperationalError as error:
                # The lowest byte says what, the others why.
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            else:
                return
            time.sleep(wait)
            wait = min(2 * wait, MOST_SECONDS)


class OnPostgresql(Writer):
    """One statement, which waits for its turn and takes all rows as JSON: one exchange with the server."""

    def _prepare(self, connection: Any) -> None:
        connection.autocommit = True

    def _write(self, connection: Any, rows: Rows) -> None:
        given = [
            to_json(
                [dict(zip(_columns(table), row, strict=True)) for row in added], bytes_mode="hex"
            ).decode()
            for table, added in rows.items()
        ]
        connection.execute(_insert_json(tuple(rows)), given, prepare=True)

    def _is_lost(self) -> bool:
        return self._held is not None and bool(self._held.driver_connection.closed)


def writer(engine: sa.Engine) -> Writer:
    """The writer for an engine's database."""
    return OnSqlite(engine) if engine.dialect.name == "sqlite" else OnPostgresql(engine)


@cache
def _columns(table: sa.Table) -> list[str]:
    """What is given of a row: all but the cursor, which the database counts."""
    # Plain strings: those of SQLAlchemy are slow as keys.
    return [str(column.name) for column in table.columns if column.name != "cursor"]


@cache
def _insert(table: sa.Table, rows: int) -> str:
    names = _columns(table)
    values = ", ".join([f"({', '.join('?' * len(names))})"] * rows)
    return f"INSERT INTO {table.name} ({', '.join(names)}) VALUES {values}"  # noqa: S608 (our own names)


@cache
def _insert_json(tables: tuple[sa.Table, ...]) -> str:
    """Rows get their cursors when the turn has come, since they are made from that."""
    inserts = [
        f"INSERT INTO {table.name} ({', '.join(_columns(table))})"  # noqa: S608 (our own names)
        f" SELECT {', '.join(_given(table.c[name]) for name in _columns(table))}"
        f" FROM turn, json_populate_recordset(NULL::{table.name}, %s::json) AS given"
        for table in tables
    ]
    turn = f"turn AS MATERIALIZED (SELECT pg_advisory_xact_lock({APPENDING}))"
    others = [f"also{number} AS ({insert})" for number, insert in enumerate(inserts[:-1])]
    return f"WITH {', '.join([turn, *others])} {inserts[-1]}"


def _given(column: sa.Column[Any]) -> str:
    # JSON has no bytes: they come as the letters of their hexadecimal form.
    binary = isinstance(column.type, sa.LargeBinary)
    return f"decode(convert_from(given.{column.name}, 'UTF8'), 'hex')" if binary else f"given.{column.name}"
