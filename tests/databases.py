"""Databases for tests: a file, or a cluster of Debian's PostgreSQL that is started for the session."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from router.database import MIGRATIONS
from tests.ports import free_port

CI = os.environ.get("CI") == "true"
NUMBERS = count()


class Cluster:
    """A PostgreSQL server of one's own, with nothing in it."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self.port = free_port()
        # PostgreSQL refuses to be run by root.
        self._as = (
            ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
        )
        if self._as:
            shutil.chown(folder, "postgres", "postgres")
        self._run("initdb", "--username=runoff", "--auth=trust", "--encoding=UTF8", "--no-sync")
        with (folder / "postgresql.conf").open("a", encoding="utf-8") as settings:
            settings.write(
                f"port = {self.port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\n"
            )
        self.start()

    def start(self) -> None:
        self._run("pg_ctl", "--wait", f"--log={self._folder / 'log'}", "start")

    def stop(self, how: str = "immediate") -> None:
        """Stop it as a crash would, or as told."""
        self._run("pg_ctl", "--wait", f"--mode={how}", "stop")

    def new(self) -> str:
        """The URL of a new database."""
        name = f"test{next(NUMBERS)}"
        server = sa.create_engine(
            sa.make_url(self.url("postgres")).set(drivername="postgresql+psycopg"),
            isolation_level="AUTOCOMMIT",
        )
        with server.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
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
    """A cluster; the test is skipped where PostgreSQL is not installed, which CI is not allowed to be."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        assert not CI, "PostgreSQL is not installed"
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    return Cluster(found[-1].parent, Path(tempfile.mkdtemp(prefix="runoff-postgresql-")))


@cache
def shared() -> Cluster:
    """A cluster for all tests that do not stop it."""
    cluster = made()
    atexit.register(cluster.stop)
    return cluster


@contextmanager
def fresh(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty database of a kind, "sqlite" or "postgresql"."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'ledger.sqlite'}"
        return
    yield shared().new()


def migrated(engine: sa.Engine, revision: str) -> None:
    """Bring a new database's tables to the form of an older release."""
    settings = Config()
    settings.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        settings.attributes["connection"] = connection
        command.upgrade(settings, revision)
