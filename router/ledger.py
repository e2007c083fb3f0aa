"""The ledger: what every routed request was assigned, and what came of it.

Life of a record: `append` writes it, before the caller gets the answer; `page`, `last` and `find` read it
back; the fold (`router/fold.py`) adds it to the sums, from which counts and quantiles are read. While the
database is away an entry may wait in the spool (`router/spool.py`), from which `settle` writes it later.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from router import database, spool
from router.database import DatabaseDown, spool_folder
from router.entries import Entry, Reply
from router.group_commit import GroupCommit
from router.phases import Book, Model, Phases, first_of_its_own, phase_of
from router.spool import Spool
from router.store import DuplicateRequest, Store, reply_of
from router.tables import outcomes, predictions, side_answers

# Records that are read at once.
PAGE = 500
# How far back a failure is looked for.
FAILURE_DEPTH = 10_000

log = logging.getLogger(__name__)


class Ledger:
    """The record of routed requests, in a SQL database."""

    def __init__(self, engine: sa.Engine) -> None:
        """Make it on an engine whose tables are there; no connection is opened before it is needed."""
        self.engine = engine
        self._store = Store(engine)
        self._spool = Spool(spool_folder(engine))
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
            raise DatabaseDown(error) from error

    def settle(self) -> int:
        """Write to the database what waits on this machine's disk; returns how many entries that were.

        To be called again and again, and by one thread at a time. An id that was taken meanwhile by another
        request is written as `<id>~2`: both were answered.

        Raises:
            DatabaseDown: the database is still away.
        """
        if self._spool.is_open:
            self.check()
            self._spool.close()
        store = Store(self.engine)
        try:
            return self._spool.take(lambda lines: self._settle(store, lines))
        except OSError as error:
            raise DatabaseDown(f"the spool cannot be read: {error}") from error
        finally:
            store.close()

    def _write(self, entries: Sequence[Entry]) -> Sequence[Exception | None]:
        """Write entries to the database, or into the spool; tells for each why it is in neither."""
        told: list[Exception | None]
        if self._spool.is_open:
            told = [DatabaseDown("the database was away a moment ago")] * len(entries)
        else:
            told = list(self._store.write(entries))
        for_spool: dict[int, bytes] = {}
        for number, entry in enumerate(entries):
            if isinstance(told[number], DatabaseDown) and entry.on_down == "spool" and not entry.reply:
                try:
                    for_spool[number] = spool.line(entry)
                except ValueError as error:
                    told[number] = error
        if for_spool:
            try:
                self._spool.append([*for_spool.values()])
            except OSError as error:
                log.error("nothing can be spooled either: %s", error)  # noqa: TRY400 (it says all)
            else:
                for number in for_spool:
                    told[number] = None
        return told

    def _settle(self, store: Store, lines: Sequence[bytes]) -> None:
        """Write lines of the spool to the database; raises DatabaseDown."""
        entries: list[Entry] = []
        for line in lines:
            try:
                entries.append(spool.entry(line))
            except (ValueError, TypeError):
                self._put_aside(line)
        for attempt in range(2, 10):
            told = store.write(entries)
            for entry, error in zip(entries, told, strict=True):
                if isinstance(error, DatabaseDown):
                    raise error
                if isinstance(error, ValueError):
                    self._put_aside(spool.line(entry))
            # Of two answers of a shadow the first one stands.
            entries = [
                entry.renamed(attempt)
                for entry, error in zip(entries, told, strict=True)
                if isinstance(error, DuplicateRequest) and entry.records
            ]
            if not entries:
                return
        for entry in entries:
            self._put_aside(spool.line(entry))

    def _put_aside(self, line: bytes) -> None:
        log.error("an entry of the spool cannot be stored, and is kept in %s", self._spool.folder / "refused")
        self._spool.put_aside(line)

    def reply(self, idempotency_key: str) -> Reply | None:
        """The answer that a request with this key got, if there was one."""
        return reply_of(self.engine, idempotency_key)

    def page(self, since: int, limit: int, *where: sa.ColumnElement[bool]) -> list[dict[str, Any]]:
        """The records after a cursor, oldest first, at most `limit`."""
        query = _RECORDS.where(predictions.c.cursor > since, *where)
        return self._records(query.order_by(predictions.c.cursor).limit(limit))

    def last(self, limit: int, *where: sa.ColumnElement[bool]) -> list[dict[str, Any]]:
        """The newest records, oldest of them first."""
        query = _RECORDS.where(*where)
        return self._records(query.order_by(predictions.c.cursor.desc()).limit(limit))[::-1]

    def find(self, id_: str) -> dict[str, Any] | None:
        """The record of a prediction, with what other variants said of it; None where there is none."""
        found = self._records(_RECORDS.where(predictions.c.id == id_))
        if not found:
            return None
        return found[0] | {"side_answers": self._beside(found).get(id_, [])}

    def newest(self) -> int:
        """The cursor of the newest record, 0 where there is none."""
        return int(self.read(sa.select(sa.func.max(predictions.c.cursor)))[0][0] or 0)

    def newest_failure(self, variant: str) -> str | None:
        """The request id of a variant's newest request that failed; None where that is long ago."""
        query = sa.select(predictions.c.request_id).where(
            predictions.c.cursor > self.newest() - FAILURE_DEPTH,
            predictions.c.variant == variant,
            predictions.c.status >= 500,  # noqa: PLR2004
        )
        found = self.read(query.order_by(predictions.c.cursor.desc()).limit(1))
        return str(found[0].request_id) if found else None

    def check(self) -> None:
        """Raise DatabaseDown where the database cannot be reached."""
        self.read(sa.select(1))

    def read(self, query: sa.Executable) -> Sequence[sa.Row[Any]]:
        """The rows of a query; raises DatabaseDown."""
        return database.read(self.engine, query)

    def pages(self, since: int, *where: sa.ColumnElement[bool]) -> Iterator[list[dict[str, Any]]]:
        """All records after a cursor that are there by now, page by page, with what other variants said."""
        upto = self.newest()
        while page := self.page(since, PAGE, predictions.c.cursor <= upto, *where):
            beside = self._beside(page)
            yield [row | {"side_answers": beside.get(row["id"], [])} for row in page]
            since = page[-1]["cursor"]

    def _beside(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, list[dict[str, Any]]]:
        """What other variants said of some rows, by their ids."""
        found: dict[str, list[dict[str, Any]]] = {}
        phases = {row["id"]: row["phase"] for row in rows}
        query = sa.select(side_answers).where(side_answers.c.prediction_id.in_(phases))
        book = Book(Phases(self.engine).all())
        for row in self.read(query.order_by(side_answers.c.cursor)):
            model = Model(row.model, row.version, row.digest)
            phase = book.of_answer(phases[row.prediction_id], row.kind, row.name, model)
            found.setdefault(row.prediction_id, []).append({**row._mapping, "phase": phase})
        return found

    def _records(self, query: sa.Executable) -> list[dict[str, Any]]:
        rows = [_as_json(row._mapping) for row in self.read(query)]
        known: dict[str, float] = {}
        for start in range(0, len(rows), PAGE):
            ids = [row["id"] for row in rows[start : start + PAGE]]
            told = sa.select(outcomes.c.prediction_id, outcomes.c.outcome)
            mine = told.where(outcomes.c.prediction_id.in_(ids)).order_by(outcomes.c.cursor)
            known |= {row.prediction_id: row.outcome for row in self.read(mine)}
        return [row | {"outcome": known.get(row["id"])} for row in rows]


_RECORDS = sa.select(
    predictions,
    phase_of(predictions.c).label("phase"),
    sa.and_(predictions.c.propensity.is_not(None), first_of_its_own(predictions.c)).label("assigned"),
)


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


def _as_json(row: Mapping[Any, Any]) -> dict[str, Any]:
    features = row["features"]
    features = None if features is None else json.loads(features)
    return {**row, "features": features, "assigned": bool(row["assigned"])}
