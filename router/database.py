"""The database of the router: SQLite beside the models by default, PostgreSQL by setting a URL."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event

VAR = Path(__file__).resolve().parent.parent / "var"
DEFAULT_URL = f"sqlite:///{VAR / 'ledger.sqlite'}"
DEFAULT_SPOOL = VAR / "spool"

MIGRATIONS = Path(__file__).parent / "migrations"

# How long who writes waits for its turn.
WAIT_SECONDS = 5
# Of PostgreSQL's advisory locks, that of those who migrate.
MIGRATING = 7_461_003

# Nobody waits for ever: not for a connection, for somebody's lock, for a statement, for a client that was
# stopped within a transaction, or for a server that is gone without a word. What a URL says itself stands.
BOUNDS = {
    "connect_timeout": "3",
    "tcp_user_timeout": "10000",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "options": f"-c lock_timeout={WAIT_SECONDS}s -c statement_timeout=60s"
    " -c idle_in_transaction_session_timeout=10s",
}

# What a caller is told then.
NOT_RECORDED = "the ledger cannot be reached, and nothing is answered that is not on record"


class DatabaseDown(Exception):
    """The database cannot be written or read now.

    Of SQLAlchemy's errors it tells what the driver said, on one line: a log has no use for the statement.
    """

    def __init__(self, why: str | Exception) -> None:
        super().__init__(" ".join(str(getattr(why, "orig", None) or why).split()))


def connect(url: str | None = None) -> sa.Engine:
    """An engine of the database, without a connection yet: workers may be forked from here.

    Args:
        url: a SQLAlchemy URL, by default what RUNOFF_LEDGER says, else SQLite in `var/ledger.sqlite`.
    """
    parsed = sa.make_url(url or os.environ.get("RUNOFF_LEDGER") or DEFAULT_URL)
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg", query={**BOUNDS, **parsed.query})
    engine = sa.create_engine(parsed, pool_pre_ping=True, pool_timeout=WAIT_SECONDS)
    if engine.dialect.name == "sqlite":
        if parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        event.listen(engine, "connect", _prepare_sqlite)
    return engine


def migrate(engine: sa.Engine) -> None:
    """Bring the tables to the form that this release knows; of several processes one does it.

    Raises:
        DatabaseDown: the database cannot be reached.
    """
    if _is_up_to_date(engine):
        return
    settings = Config()
    settings.set_main_option("script_location", str(MIGRATIONS))
    try:
        with engine.begin() as connection:
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN EXCLUSIVE")
            else:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATING)))
            settings.attributes["connection"] = connection
            command.upgrade(settings, "head")
    except sa.exc.SQLAlchemyError as error:
        raise DatabaseDown(error) from error
    finally:
        engine.dispose()


def read(engine: sa.Engine, query: sa.Executable) -> Sequence[sa.Row[Any]]:
    """The rows of a query; raises DatabaseDown."""
    try:
        with engine.connect() as connection:
            return connection.execute(query).all()
    except sa.exc.SQLAlchemyError as error:
        raise DatabaseDown(error) from error


def _is_up_to_date(engine: sa.Engine) -> bool:
    """Whether nothing is to be done: then nobody is waited for."""
    head = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision() == head
    except sa.exc.SQLAlchemyError:
        # What is wrong shows when it is migrated.
        return False
    finally:
        engine.dispose()


@contextmanager
def snapshot(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection that sees the database as it is at one moment."""
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            yield connection
    else:
        with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            yield connection


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection within a transaction that is to write; it is committed at the end."""
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            # A transaction that begins by reading could not write after somebody else has.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection


def spool_folder(engine: sa.Engine) -> Path:
    """Where on this machine waits what is to be written while the database is away.

    Beside SQLite; else a folder for each database in RUNOFF_SPOOL, by default in `var/spool`.
    """
    if engine.dialect.name == "sqlite" and engine.url.database:
        return Path(f"{engine.url.database}.spool")
    place = engine.url.set(query={}).render_as_string(hide_password=True)
    root = Path(os.environ.get("RUNOFF_SPOOL") or DEFAULT_SPOOL)
    return root / hashlib.sha256(place.encode()).hexdigest()[:16]


def stamp(time: datetime) -> str:
    """RFC 3339 in UTC with microseconds: sorts as text, reads the same in every database."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Not every SQLite was built with mathematics.
    connection.create_function("ln", 1, math.log, deterministic=True)
    connection.create_function("floor", 1, math.floor, deterministic=True)
    cursor = connection.cursor()
    # Readers do not wait for the writer, nor it for them.
    cursor.execute("PRAGMA journal_mode = WAL")
    # An answer that the caller got must outlive a power cut: each commit reaches the disk.
    cursor.execute("PRAGMA synchronous = FULL")
    # Writers of other workers wait for their turn.
    cursor.execute(f"PRAGMA busy_timeout = {1000 * WAIT_SECONDS}")
    cursor.close()
