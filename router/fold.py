"""Sums over the ledger, kept by a fold: rows are added once, whoever folds and however often.

The table `folds` says up to which cursor rows are in the sums. Rows are read and added up without a lock;
then the cursor is moved and the sums are added in one transaction, if nobody moved it meanwhile. So the sums
are never behind by more than what `catch_up` folds when they are read, reading them costs the same however
many rows there are, and who writes rows does nothing for it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from router.database import DatabaseDown
from router.tables import folds, latencies, predictions, scores, standings, sums

ROWS_AT_ONCE = 2000
# Neighbouring bins of latencies differ by one per cent.
GROWTH = math.log(1.01)
LEAST_MS = 0.001
SCORE_BINS = 50

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Counts:
    """What the ledger holds of one variant: requests = answered + refused (4xx) + failed (5xx)."""

    requests: int
    answered: int
    refused: int
    failed: int
    sum_p: float

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.requests + other.requests,
            self.answered + other.answered,
            self.refused + other.refused,
            self.failed + other.failed,
            self.sum_p + other.sum_p,
        )

    @property
    def mean_prediction(self) -> float | None:
        return self.sum_p / self.answered if self.answered else None


NOTHING = Counts(0, 0, 0, 0, 0.0)


class Fold:
    """Adds the ledger's rows to its sums, and reads those."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[engine.dialect.name]
        # Made once: to build a statement costs more than to execute it.
        self._begin_at_0 = insert(folds).values(name="predictions", cursor=0).on_conflict_do_nothing()
        self._move = (
            folds.update()
            .where(folds.c.name == "predictions", folds.c.cursor == sa.bindparam("before"))
            .values(cursor=sa.bindparam("after"))
        )
        self._upserts = {
            table: _upsert(insert(table), table, merge)
            for table, merge in ((sums, _sum), (latencies, _sum), (scores, _sum), (standings, _newer))
        }

    def catch_up(self) -> int:
        """Fold what is not folded yet; returns the cursor up to which the sums are.

        Raises:
            DatabaseDown: the database cannot be written or read.
        """
        try:
            while True:
                cursor, rows = self._unfolded()
                if not rows:
                    return cursor
                self._add(cursor, rows)
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseDown(str(error)) from error

    def _unfolded(self) -> tuple[int, Sequence[Any]]:
        table = predictions.c
        with self._engine.connect() as connection:
            folded = sa.select(folds.c.cursor).where(folds.c.name == "predictions")
            at = int(connection.execute(folded).scalar() or 0)
            query = (
                sa.select(
                    table.cursor,
                    table.experiment,
                    table.experiment_version,
                    table.allocation,
                    table.variant,
                    table.tag,
                    table.time,
                    table.model,
                    table.version,
                    table.status,
                    table.prediction,
                    table.latency_ms,
                    table.propensity,
                    table.problem,
                )
                .where(table.cursor > at)
                .order_by(table.cursor)
                .limit(ROWS_AT_ONCE)
            )
            rows: Any = connection.execute(query).all()
            return at, rows

    def _add(self, cursor: int, rows: Sequence[sa.Row[Any]]) -> None:
        """Add rows to the sums, if those are still where they were when the rows were read."""
        added = Sums(rows)
        with self._engine.begin() as connection:
            if connection.dialect.name == "sqlite":
                # A transaction that begins by reading could not write after somebody else has.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            if cursor == 0:
                connection.execute(self._begin_at_0)
            moved = connection.execute(self._move, {"before": cursor, "after": rows[-1].cursor}).rowcount
            if moved == 1:
                for table, more in added.by_table.items():
                    if more:
                        connection.execute(self._upserts[table], more)

    def counts(self, experiment: str, tag: str | None = None) -> dict[tuple[int, int, str], Counts]:
        """What happened to the requests of each variant, by version, allocation and name of the variant.

        Args:
            experiment: its name.
            tag: only traffic of this tag; "real" is the traffic without one. None counts all.
        """
        key = (sums.c.experiment_version, sums.c.allocation, sums.c.variant)
        added = [sums.c[name] for name in ("requests", "answered", "refused", "failed", "sum_p")]
        query = (
            sa.select(*key, *(sa.func.sum(column) for column in added))
            .where(sums.c.experiment == experiment, _of(sums, tag))
            .group_by(*key)
        )
        return {
            (version, allocation, variant): Counts(int(n), int(answered), int(refused), int(failed), sum_p)
            for version, allocation, variant, n, answered, refused, failed, sum_p in map(
                tuple, self._read(query)
            )
        }

    def latency(self, experiment: str, tag: str | None = None) -> dict[str, Histogram]:
        """How long answered requests took, by variant."""
        found: dict[str, Histogram] = defaultdict(Histogram)
        query = (
            sa.select(latencies.c.variant, latencies.c.bin, sa.func.sum(latencies.c.requests))
            .where(latencies.c.experiment == experiment, _of(latencies, tag))
            .group_by(latencies.c.variant, latencies.c.bin)
        )
        for variant, bin_, requests in map(tuple, self._read(query)):
            found[variant][bin_] = int(requests)
        return found

    def tags(self, experiment: str) -> dict[str, int]:
        """How many requests there are of each tag; "real" is the traffic without one."""
        query = sa.select(sums.c.tag, sa.func.sum(sums.c.requests)).where(sums.c.experiment == experiment)
        found = self._read(query.group_by(sums.c.tag))
        return {tag or "real": int(count) for tag, count in map(tuple, found)}

    def standings(self, experiment: str) -> dict[str, sa.RowMapping]:
        """Who answered last for each variant, and what is wrong where its newest request failed."""
        query = sa.select(standings).where(standings.c.experiment == experiment)
        return {row.variant: row._mapping for row in self._read(query)}

    def _read(self, query: sa.Executable) -> Sequence[sa.Row[Any]]:
        try:
            with self._engine.connect() as connection:
                return connection.execute(query).all()
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseDown(str(error)) from error


class Histogram(Counter[int]):
    """How many requests took how long, in bins that grow by one per cent each."""

    def quantile(self, share: float) -> float | None:
        """The latency in ms that a share of requests does not exceed, within 1 %; None without requests.

        The inverse of the empirical distribution function (Hyndman & Fan 1996, definition 1), at the middle
        of its bin.
        """
        place = max(1, math.ceil(share * self.total()))
        for bin_ in sorted(self):
            place -= self[bin_]
            if place <= 0:
                return math.exp((bin_ + 0.5) * GROWTH)
        return None


def _of(table: sa.Table, tag: str | None) -> sa.ColumnElement[bool]:
    """The sums over the traffic of a tag."""
    return sa.true() if tag is None else table.c.tag == ("" if tag == "real" else tag)


def _upsert(statement: Any, table: sa.Table, merge: Callable[[sa.Column[Any], Any], Any]) -> Any:
    """Insert rows, or merge them into those that have their keys."""
    key = [column.name for column in table.primary_key]
    merged = {
        column.name: merge(column, statement.excluded[column.name])
        for column in table.columns
        if column.name not in key
    }
    return statement.on_conflict_do_update(index_elements=key, set_=merged)


def _sum(old: sa.Column[Any], new: Any) -> Any:
    return old + new


def _newer(old: sa.Column[Any], new: Any) -> Any:
    """A variant that has not answered of late stands by who answered before; what is wrong is as of now."""
    return new if old.name == "problem" else sa.func.coalesce(new, old)


class Sums:
    """The sums over some rows, as rows of the tables of sums."""

    def __init__(self, rows: Iterable[sa.Row[Any]]) -> None:
        counted: dict[Key, list[float]] = defaultdict(lambda: [0, 0, 0, 0, 0.0, 0.0])
        slow: Counter[Key] = Counter()
        scored: Counter[Key] = Counter()
        standing: dict[tuple[str, str], dict[str, Any]] = {}
        for row in rows:
            stands = standing.setdefault(
                (row.experiment, row.variant), {"model": None, "version": None, "problem": None}
            )
            if row.version is not None:
                stands |= {"model": row.model, "version": row.version}
            stands["problem"] = row.problem if row.status >= 500 else None  # noqa: PLR2004
            # What was forced says nothing of the experiment.
            if row.propensity is None:
                continue
            period = (
                row.experiment,
                row.experiment_version,
                row.allocation,
                row.variant,
                row.tag or "",
                row.time[:13],
            )
            count = counted[(*period, row.model or "", row.version or "")]
            count[0] += 1
            if row.status < 400:  # noqa: PLR2004
                count[1] += 1
                slow[(*period, math.floor(math.log(max(row.latency_ms, LEAST_MS)) / GROWTH))] += 1
                if row.prediction is not None:
                    count[4] += row.prediction
                    count[5] += row.prediction**2
                    scored[(*period, math.floor(row.prediction * SCORE_BINS))] += 1
            elif row.status < 500:  # noqa: PLR2004
                count[2] += 1
            else:
                count[3] += 1
        # In one order, so that two who add at once do not wait for each other in a circle.
        self.by_table = {
            sums: [_row(sums, key, count) for key, count in sorted(counted.items())],
            latencies: [_row(latencies, key, [n]) for key, n in sorted(slow.items())],
            scores: [_row(scores, key, [n]) for key, n in sorted(scored.items())],
            standings: [
                {"experiment": experiment, "variant": variant, **stands}
                for (experiment, variant), stands in sorted(standing.items())
            ],
        }


def _row(table: sa.Table, key: Key, values: Sequence[float]) -> dict[str, Any]:
    return dict(zip((column.name for column in table.columns), (*key, *values), strict=True))
