"""The ledger: what every routed request was assigned, and what came of it.

Life of a record: `append` writes it, before the caller gets the answer; `page` and `last` read the
records back; `counts` and `latency` sum them up.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.schema import CreateIndex, CreateTable

DEFAULT_URL = f"sqlite:///{Path(__file__).resolve().parent.parent / 'var' / 'ledger.sqlite'}"

metadata = sa.MetaData()

predictions = sa.Table(
    "predictions",
    metadata,
    # The order in which rows were committed, and so the cursor by which readers page.
    sa.Column("cursor", sa.Integer, primary_key=True, autoincrement=True),
    # What an outcome will name: the request id, or in a batch `<request id>/<row>`.
    sa.Column("id", sa.String(140), nullable=False, unique=True),
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("row", sa.Integer, nullable=False),
    sa.Column("time", sa.String(27), nullable=False),
    sa.Column("experiment", sa.String(40), nullable=False),
    sa.Column("variant", sa.String(40), nullable=False),
    sa.Column("model", sa.String(128)),
    sa.Column("version", sa.String(128)),
    sa.Column("features", sa.Text),
    sa.Column("prediction", sa.Float),
    sa.Column("latency_ms", sa.Float, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("problem", sa.Text),
    sa.Column("tag", sa.String(40)),
    sa.UniqueConstraint("request_id", "row"),
    sqlite_autoincrement=True,
)
indexes = (
    sa.Index("predictions_by_outcome", predictions.c.variant, predictions.c.status, predictions.c.latency_ms),
)


class DuplicateRequest(Exception):
    """The ledger holds a request of this id already."""


class LedgerDown(Exception):
    """The ledger cannot be written or read now."""


@dataclass(frozen=True)
class Record:
    """One routed row. `prediction` is None where the model refused it (4xx) or failed (5xx)."""

    id: str
    request_id: str
    row: int
    time: datetime
    experiment: str
    variant: str
    model: str | None
    version: str | None
    features: Any
    prediction: float | None
    latency_ms: float
    status: int
    problem: str | None
    tag: str | None


@dataclass(frozen=True)
class Counts:
    """What the ledger holds of one variant: requests = answered + refused (4xx) + failed (5xx)."""

    requests: int
    answered: int
    refused: int
    failed: int
    mean_prediction: float | None


NOTHING = Counts(0, 0, 0, 0, None)


class Ledger:
    """The record of routed requests, in a SQL database."""

    def __init__(self, url: str | None = None) -> None:
        """Open the ledger, and make its tables where they are not there yet.

        Args:
            url: a SQLAlchemy URL, by default what RUNOFF_LEDGER says, else SQLite in `var/ledger.sqlite`.
        """
        parsed = sa.make_url(url or os.environ.get("RUNOFF_LEDGER") or DEFAULT_URL)
        if parsed.get_backend_name() == "sqlite" and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        self._engine = sa.create_engine(parsed, pool_pre_ping=True)
        if parsed.get_backend_name() == "sqlite":
            event.listen(self._engine, "connect", _prepare_sqlite)
        # Several workers start at once: each statement is safe to run twice.
        with self._engine.begin() as connection:
            connection.execute(CreateTable(predictions, if_not_exists=True))
            for index in indexes:
                connection.execute(CreateIndex(index, if_not_exists=True))
        # Workers are forked from the process that made this object: none may inherit its connection.
        self._engine.dispose()

    def append(self, records: Sequence[Record]) -> None:
        """Write records, all or none. When this returns they are on disk.

        Raises:
            DuplicateRequest: one of their request ids is recorded already.
            LedgerDown: the database did not take them.
        """
        rows = [
            {
                **vars(record),
                "time": _stamp(record.time),
                "features": None if record.features is None else json.dumps(record.features),
            }
            for record in records
        ]
        try:
            with self._engine.begin() as connection:
                connection.execute(predictions.insert(), rows)
        except sa.exc.IntegrityError as error:
            raise DuplicateRequest(records[0].request_id) from error
        except sa.exc.SQLAlchemyError as error:
            raise LedgerDown(str(error)) from error

    def page(self, since: int, limit: int, tag: str | None = None) -> list[dict[str, Any]]:
        """The records after a cursor, oldest first, at most `limit`; `tag` as in `counts`."""
        query = sa.select(predictions).where(predictions.c.cursor > since, _tagged(tag))
        return self._records(query.order_by(predictions.c.cursor).limit(limit))

    def last(self, limit: int, tag: str | None = None) -> list[dict[str, Any]]:
        """The newest records, oldest of them first."""
        query = sa.select(predictions).where(_tagged(tag))
        return self._records(query.order_by(predictions.c.cursor.desc()).limit(limit))[::-1]

    def newest(self) -> int:
        """The cursor of the newest record, 0 where there is none."""
        return int(self._read(sa.select(sa.func.max(predictions.c.cursor)))[0][0] or 0)

    def counts(self, upto: int, tag: str | None = None) -> dict[str, Counts]:
        """What happened to the requests of each variant, by its name.

        Args:
            upto: the cursor of the last record that is counted, so that counts and pages can be joined.
            tag: only traffic of this tag; "real" is the traffic without one. None counts all.
        """
        answered = predictions.c.status < 400  # noqa: PLR2004
        refused = predictions.c.status.between(400, 499)
        query = (
            sa.select(
                predictions.c.variant,
                sa.func.count(),
                sa.func.count().filter(answered),
                sa.func.count().filter(refused),
                sa.func.avg(predictions.c.prediction),
            )
            .where(predictions.c.cursor <= upto, _tagged(tag))
            .group_by(predictions.c.variant)
        )
        return {
            variant: Counts(total, good, bad, total - good - bad, mean)
            for variant, total, good, bad, mean in map(tuple, self._read(query))
        }

    def tags(self) -> dict[str, int]:
        """How many requests there are of each tag; "real" is the traffic without one."""
        tag = sa.func.coalesce(predictions.c.tag, "real")
        return dict(map(tuple, self._read(sa.select(tag, sa.func.count()).group_by(tag))))

    def served_by(self, variant: str) -> tuple[str | None, str | None]:
        """The model and the version that answered last for a variant; None where none did."""
        mine = (predictions.c.variant == variant, predictions.c.version.is_not(None))
        query = sa.select(predictions.c.model, predictions.c.version).where(*mine)
        found = self._read(query.order_by(predictions.c.cursor.desc()).limit(1))
        return (found[0].model, found[0].version) if found else (None, None)

    def failing(self, variant: str) -> str | None:
        """What is wrong with a variant: the problem of its newest request, if that failed (5xx)."""
        query = sa.select(predictions.c.status, predictions.c.problem).where(predictions.c.variant == variant)
        found = self._read(query.order_by(predictions.c.cursor.desc()).limit(1))
        return found[0].problem if found and found[0].status >= 500 else None  # noqa: PLR2004

    def latency(self, variant: str, share: float, tag: str | None = None) -> float | None:
        """A quantile of the latency of answered requests, milliseconds; None where there are none.

        The inverse of the empirical distribution function (Hyndman & Fan 1996, definition 1).
        """
        answered = (predictions.c.variant == variant, predictions.c.status == 200, _tagged(tag))  # noqa: PLR2004
        count = self._read(sa.select(sa.func.count()).where(*answered))[0][0]
        if not count:
            return None
        place = max(0, math.ceil(share * count) - 1)
        ordered = sa.select(predictions.c.latency_ms).where(*answered).order_by(predictions.c.latency_ms)
        return float(self._read(ordered.offset(place).limit(1))[0][0])

    def check(self) -> None:
        """Raise LedgerDown where the database cannot be reached."""
        self._read(sa.select(1))

    def _records(self, query: sa.Executable) -> list[dict[str, Any]]:
        return [_as_json(row._mapping) for row in self._read(query)]

    def _read(self, query: sa.Executable) -> Sequence[sa.Row[Any]]:
        try:
            with self._engine.connect() as connection:
                return connection.execute(query).all()
        except sa.exc.SQLAlchemyError as error:
            raise LedgerDown(str(error)) from error


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    # Readers do not wait for the writer, nor it for them.
    cursor.execute("PRAGMA journal_mode = WAL")
    # An answer that the caller got must outlive a power cut: each commit reaches the disk.
    cursor.execute("PRAGMA synchronous = FULL")
    # Writers of other workers wait for their turn.
    cursor.execute("PRAGMA busy_timeout = 5000")
    cursor.close()


def _tagged(tag: str | None) -> sa.ColumnElement[bool]:
    if tag is None:
        return sa.true()
    return predictions.c.tag.is_(None) if tag == "real" else predictions.c.tag == tag


def _as_json(row: sa.RowMapping) -> dict[str, Any]:
    features = row["features"]
    return {**row, "features": None if features is None else json.loads(features)}


def _stamp(time: datetime) -> str:
    """RFC 3339 in UTC with microseconds: sorts as text, reads the same in every database."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
