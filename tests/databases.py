"""Databases for tests: a file, or a cluster of Debian's PostgreSQL that is started for the session."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from router import database
from tests import sharing
from tests.ports import free_port

CI = os.environ.get("CI") == "true"
NUMBERS = count()
# What writes, locks, or migrates is tried on both in the short part, too.
BOTH = pytest.mark.parametrize("engine", ["sqlite", "postgresql"], indirect=True)
SHARED = "postgresql"
LEDGER = "ledger"
FILE = "ledger.sqlite"
# No test takes the power from a machine: what the system has, it writes.
SETTINGS = """
port = {port}
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 400
fsync = off
"""


class Cluster:
    """A PostgreSQL server of one's own."""

    def __init__(self, folder: Path) -> None:
        """Take up the server whose files lie in a folder; with none there, make them and start it.

        The test is skipped where PostgreSQL is not installed, which CI is not allowed to be.
        """
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not found:
            assert not CI, "PostgreSQL is not installed"
            pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
        self._programs = found[-1].parent
        self._folder = folder
        # PostgreSQL refuses to be run by root.
        self._as = (
            ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
        )
        port = folder / "port"
        if port.exists():
            self.port = int(port.read_text(encoding="utf-8"))
            return
        self.port = free_port()
        if self._as:
            shutil.chown(folder, "postgres", "postgres")
        self._run("initdb", "--username=runoff", "--auth=trust", "--encoding=UTF8", "--no-sync")
        with (folder / "postgresql.conf").open("a", encoding="utf-8") as settings:
            settings.write(SETTINGS.format(port=self.port))
        self.start()
        port.write_text(str(self.port), encoding="utf-8")

    def start(self) -> None:
        self._run("pg_ctl", "--wait", f"--log={self._folder / 'log'}", "start")

    def stop(self, how: str = "immediate") -> None:
        """Stop it as a crash would, or as told."""
        self._run("pg_ctl", "--wait", f"--mode={how}", "stop")

    def new(self, name: str = "", template: str = "template1") -> str:
        """Make a database as a copy of a template, by default with a name of its own, and return its URL."""
        name = name or f"{os.environ.get('PYTEST_XDIST_WORKER', 'test')}_{next(NUMBERS)}"
        server = sa.create_engine(
            sa.make_url(self.url("postgres")).set(drivername="postgresql+psycopg"),
            isolation_level="AUTOCOMMIT",
        )
        with server.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        server.dispose()
        return self.url(name)

    def url(self, name: str) -> str:
        return f"postgresql://runoff@127.0.0.1:{self.port}/{name}"

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [*self._as, self._programs / program, f"--pgdata={self._folder}", *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )


def made() -> Cluster:
    """A cluster that a test may stop."""
    return Cluster(Path(tempfile.mkdtemp(prefix="runoff-postgresql-")))


def shared() -> Cluster:
    """The cluster of all tests that do not stop it, of all workers."""
    return Cluster(sharing.once(SHARED, _made_open))


def end() -> None:
    """Stop the shared cluster, where this run has started it."""
    folder = sharing.folder() / SHARED
    if (folder / "port").exists():
        Cluster(folder).stop()


def _made_open(folder: Path) -> None:
    # The user postgres goes through the folder of the run.
    sharing.folder().chmod(0o755)
    Cluster(folder)


def empty(kind: str, folder: Path) -> str:
    """The URL of an empty database of a kind, "sqlite" or "postgresql"."""
    return shared().new() if kind == "postgresql" else in_file(folder)


def ledger(kind: str, folder: Path) -> str:
    """The URL of a new ledger of a kind; its tables are made once for all tests, and copied."""
    if kind == "postgresql":
        cluster = shared()
        sharing.once(f"{LEDGER}-postgresql", lambda _: _make_tables(cluster.new(LEDGER)))
        return cluster.new(template=LEDGER)
    made = sharing.once(f"{LEDGER}-sqlite", lambda place: _make_tables(in_file(place)))
    shutil.copy(made / FILE, folder)
    return in_file(folder)


def in_file(folder: Path) -> str:
    """The URL of SQLite's database in a folder."""
    return f"sqlite:///{folder / FILE}"


def _make_tables(url: str) -> None:
    engine = database.connect(url)
    database.migrate(engine)
    engine.dispose()


def migrated(engine: sa.Engine, revision: str) -> None:
    """Bring a new database's tables to the form of an older release."""
    settings = Config()
    settings.set_main_option("script_location", str(database.MIGRATIONS))
    with engine.begin() as connection:
        settings.attributes["connection"] = connection
        command.upgrade(settings, revision)
