"""Sums over the ledger, kept by a fold: everything is added once, whoever folds and however often.

What a row adds to the sums follows from what is known of it: the answer, its outcome, what shadows said. The
table `folds` has the cursors up to which the ledger's tables are in the sums. A fold takes the rows after
those, and for each prediction that they concern adds what it adds now less what it added before. So answers,
outcomes, corrections and shadows may come in any order.

Rows are read and added up without a lock; then the cursors are moved and the sums are added in one
transaction, if nobody has moved them meanwhile. Reading the sums costs the same however many rows there are,
and who writes rows does nothing for it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from router.controllers import Sums
from router.database import DatabaseDown, stamp
from router.tables import (
    folds,
    labels,
    latencies,
    outcomes,
    pairs,
    predictions,
    scores,
    side_answers,
    standings,
    sums,
)

ROWS_AT_ONCE = 2000
# Neighbouring bins of latencies differ by one per cent.
GROWTH = math.log(1.01)
LEAST_MS = 0.001
SCORE_BINS = 50
# A probability of 0 or 1 that is wrong would be an infinite loss.
CLIP = 1e-15

SUMS = (sums, latencies, scores, labels, pairs)
COLUMNS = tuple(
    predictions.c[name]
    for name in (
        *("cursor", "id", "experiment", "experiment_version", "allocation", "variant", "tag", "time"),
        *("model", "version", "status", "prediction", "latency_ms", "propensity", "problem"),
    )
)

Key = tuple[Any, ...]
# What is added, by table and key.
Added = dict[tuple[sa.Table, Key], list[float]]


class Cursors(NamedTuple):
    """Up to where the ledger's tables are in the sums."""

    predictions: int = 0
    side_answers: int = 0
    outcomes: int = 0


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


class Known(NamedTuple):
    """What is known of a prediction: its row, its outcome if it has one, what shadows said of it."""

    row: Any
    outcome: float | None
    shadows: tuple[tuple[str, float], ...]


class Fold:
    """Adds the ledger's rows to its sums, and reads those."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[engine.dialect.name]
        # Made once: to build a statement costs more than to execute it.
        self._begin_at_0 = insert(folds).values(name="ledger", **Cursors()._asdict()).on_conflict_do_nothing()
        at = [folds.c[name] == sa.bindparam(f"at_{name}") for name in Cursors._fields]
        self._move = (
            folds.update()
            .where(folds.c.name == "ledger", *at)
            .values({name: sa.bindparam(f"to_{name}") for name in Cursors._fields})
        )
        self._upserts = {table: _upsert(insert(table), table, _plus) for table in SUMS}
        self._stand = _upsert(insert(standings), standings, _newer)

    def catch_up(self) -> int:
        """Fold what is not folded yet; returns the cursor up to which predictions are in the sums.

        Raises:
            DatabaseDown: the database cannot be written or read.
        """
        try:
            while True:
                with self._engine.connect() as connection:
                    at = _cursors(connection)
                    to, before, after = _news(connection, at)
                if to == at:
                    return at.predictions
                self._add(at, to, before, after)
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseDown(str(error)) from error

    def _add(self, at: Cursors, to: Cursors, before: Sequence[Known], after: Sequence[Known]) -> None:
        """Add to the sums, if those are still where they were when the rows were read."""
        added: Added = defaultdict(list)
        for known in before:
            _into(added, known, -1)
        for known in after:
            _into(added, known, 1)
        by_table: dict[sa.Table, list[dict[str, Any]]] = {table: [] for table in SUMS}
        # In one order, so that two who add at once do not wait for each other in a circle.
        for (table, key), values in sorted(added.items(), key=lambda item: (item[0][0].name, item[0][1])):
            if any(values):
                by_table[table].append(_row(table, key, values))
        moved = {f"at_{name}": value for name, value in at._asdict().items()} | {
            f"to_{name}": value for name, value in to._asdict().items()
        }
        with self._engine.begin() as connection:
            if connection.dialect.name == "sqlite":
                # A transaction that begins by reading could not write after somebody else has.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            if at == Cursors():
                connection.execute(self._begin_at_0)
            if connection.execute(self._move, moved).rowcount != 1:
                return
            for table, rows in by_table.items():
                if rows:
                    connection.execute(self._upserts[table], rows)
            if stand := _standings(known.row for known in after if known.row.cursor > at.predictions):
                connection.execute(self._stand, stand)

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

    def labelled(self, experiment: str, tag: str | None = None) -> dict[str, int]:
        """Of how many answered requests the outcome is known, by variant."""
        query = sa.select(labels.c.variant, sa.func.sum(labels.c.labelled))
        mine = query.where(labels.c.experiment == experiment, _of(labels, tag)).group_by(labels.c.variant)
        return {variant: int(count) for variant, count in map(tuple, self._read(mine))}

    def tags(self, experiment: str) -> dict[str, int]:
        """How many requests there are of each tag; "real" is the traffic without one."""
        query = sa.select(sums.c.tag, sa.func.sum(sums.c.requests)).where(sums.c.experiment == experiment)
        found = self._read(query.group_by(sums.c.tag))
        return {tag or "real": int(count) for tag, count in map(tuple, found)}

    def standings(self, experiment: str) -> dict[str, sa.RowMapping]:
        """Who answered last for each variant, and what is wrong where its newest request failed."""
        query = sa.select(standings).where(standings.c.experiment == experiment)
        return {row.variant: row._mapping for row in self._read(query)}

    def counted(
        self, experiment: str, versions: tuple[int, int], allocation: int | None, matured: datetime
    ) -> dict[str, Sums]:
        """The sums by variant, for those who move weights.

        Args:
            experiment: its name.
            versions: the first and the last of the document's versions that count.
            allocation: the only one that counts; None for all.
            matured: outcomes count of what was asked before.
        """

        def mine(table: sa.Table, *columns: str) -> sa.Select[Any]:
            chosen = [table.c.experiment == experiment, table.c.experiment_version.between(*versions)]
            if allocation is not None:
                chosen.append(table.c.allocation == allocation)
            added = [sa.func.sum(table.c[name]) for name in columns]
            return sa.select(table.c.variant, *added).where(*chosen).group_by(table.c.variant)

        self.catch_up()
        asked = mine(sums, "requests", "failed", "log_latency", "log_latency2")
        told = mine(labels, "labelled", "positives").where(labels.c.hour < stamp(matured)[:13])
        known = {variant: (int(n), int(positives)) for variant, n, positives in map(tuple, self._read(told))}
        return {
            variant: Sums(int(n), int(failed), latency, squares, *known.get(variant, (0, 0)))
            for variant, n, failed, latency, squares in map(tuple, self._read(asked))
        }

    def _read(self, query: sa.Executable) -> Sequence[sa.Row[Any]]:
        try:
            with self._engine.connect() as connection:
                return connection.execute(query).all()
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseDown(str(error)) from error


def _cursors(connection: sa.Connection) -> Cursors:
    columns = [folds.c[name] for name in Cursors._fields]
    found = connection.execute(sa.select(*columns).where(folds.c.name == "ledger")).one_or_none()
    return Cursors._make(found) if found else Cursors()


# Made once, as above.
_NEW_PREDICTIONS = (
    sa.select(*COLUMNS)
    .where(predictions.c.cursor > sa.bindparam("at"))
    .order_by(predictions.c.cursor)
    .limit(ROWS_AT_ONCE)
)


def _new(table: sa.Table) -> sa.Select[Any]:
    query = sa.select(table.c.cursor, table.c.prediction_id).where(table.c.cursor > sa.bindparam("at"))
    return query.order_by(table.c.cursor).limit(ROWS_AT_ONCE)


_NEW_SIDE_ANSWERS, _NEW_OUTCOMES = _new(side_answers), _new(outcomes)
_IDS: Any = sa.bindparam("ids", expanding=True)
_PREDICTIONS = sa.select(*COLUMNS).where(predictions.c.id.in_(_IDS))
_OUTCOMES = (
    sa.select(outcomes.c.cursor, outcomes.c.prediction_id, outcomes.c.outcome)
    .where(outcomes.c.prediction_id.in_(_IDS))
    .order_by(outcomes.c.cursor)
)
_SHADOWS = (
    sa.select(
        side_answers.c.cursor, side_answers.c.prediction_id, side_answers.c.name, side_answers.c.prediction
    )
    .where(
        side_answers.c.prediction_id.in_(_IDS),
        side_answers.c.kind == "shadow",
        side_answers.c.prediction.is_not(None),
    )
    .order_by(side_answers.c.cursor)
)


def _news(connection: sa.Connection, at: Cursors) -> tuple[Cursors, list[Known], list[Known]]:
    """What there is after some cursors: new ones, and what was and is known of whatever it concerns."""
    new = connection.execute(_NEW_PREDICTIONS, {"at": at.predictions}).all()
    new_aside = connection.execute(_NEW_SIDE_ANSWERS, {"at": at.side_answers}).all()
    new_outcomes = connection.execute(_NEW_OUTCOMES, {"at": at.outcomes}).all()
    to = Cursors(
        new[-1].cursor if new else at.predictions,
        new_aside[-1].cursor if new_aside else at.side_answers,
        new_outcomes[-1].cursor if new_outcomes else at.outcomes,
    )
    rows = {row.id: row for row in new}
    others = {row.prediction_id for row in (*new_aside, *new_outcomes)} - rows.keys()
    for ids in _slices(list(others)):
        found = connection.execute(_PREDICTIONS, {"ids": ids})
        # One that is not in the sums yet is taken when it is its turn.
        rows |= {row.id: row for row in found if row.cursor <= to.predictions}
    told: dict[str, list[Any]] = defaultdict(list)
    shadowed: dict[str, list[Any]] = defaultdict(list)
    for ids in _slices(list(rows)):
        for row in connection.execute(_OUTCOMES, {"ids": ids}):
            told[row.prediction_id].append(row)
        for shadow in connection.execute(_SHADOWS, {"ids": ids}):
            shadowed[shadow.prediction_id].append(shadow)

    def known(row: Any, upto: Cursors) -> Known:
        outcome = [each.outcome for each in told.get(row.id, ()) if each.cursor <= upto.outcomes]
        shadows = (each for each in shadowed.get(row.id, ()) if each.cursor <= upto.side_answers)
        return Known(
            row, outcome[-1] if outcome else None, tuple((each.name, each.prediction) for each in shadows)
        )

    before = [known(row, at) for row in rows.values() if row.cursor <= at.predictions]
    return to, before, [known(row, to) for row in rows.values()]


def _slices(ids: list[str]) -> Iterator[list[str]]:
    """So many as databases take in one statement."""
    return (ids[start : start + 500] for start in range(0, len(ids), 500))


def _into(added: Added, known: Known, sign: int) -> None:
    """Add what is known of a prediction, or with the sign -1 take it away."""
    for table, key, values in _adds(known):
        mine = added[table, key]
        if not mine:
            mine.extend([0] * len(values))
        for place, value in enumerate(values):
            mine[place] += sign * value


def _adds(known: Known) -> Iterator[tuple[sa.Table, Key, Sequence[float]]]:
    """What a prediction adds to the sums."""
    row = known.row
    # What was forced, or asked during a pause, says nothing of the experiment.
    if row.propensity is None:
        return
    period = (
        *(row.experiment, row.experiment_version, row.allocation, row.variant),
        *(row.tag or "", row.time[:13]),
    )
    answered, failed = row.status < 400, row.status >= 500  # noqa: PLR2004
    p = row.prediction
    log_ms = math.log(max(row.latency_ms, LEAST_MS))
    latency = (0.0, 0.0) if failed else (log_ms, log_ms**2)
    score = (p, p**2) if answered and p is not None else (0.0, 0.0)
    counts = (1, int(answered), int(not answered and not failed), int(failed))
    yield sums, (*period, row.model or "", row.version or ""), (*counts, *score, *latency)
    if answered:
        yield latencies, (*period, math.floor(log_ms / GROWTH)), (1,)
    if p is None:
        return
    yield scores, (*period, math.floor(p * SCORE_BINS)), (1,)
    y = known.outcome
    if y not in (0, 1):
        return
    brier, loss = _brier(p, y), _log_loss(p, y)
    yield labels, period, (1, int(y), brier, brier**2, loss, loss**2, y - p, (y - p) ** 2)
    for name, other in known.shadows:
        d, e, gap = brier - _brier(other, y), loss - _log_loss(other, y), abs(p - other)
        yield pairs, (*period, name), (1, d, d**2, e, e**2, gap, gap**2)


def _brier(p: float, y: float) -> float:
    return (p - y) ** 2


def _log_loss(p: float, y: float) -> float:
    return -math.log(min(max(p if y else 1 - p, CLIP), 1.0))


def _standings(rows: Iterable[Any]) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        name = {"experiment": row.experiment, "variant": row.variant}
        stands = found.setdefault((row.experiment, row.variant), {**name, "model": None, "version": None})
        if row.version is not None:
            stands |= {"model": row.model, "version": row.version}
        stands["problem"] = row.problem if row.status >= 500 else None  # noqa: PLR2004
    return [stands for _, stands in sorted(found.items())]


def _row(table: sa.Table, key: Key, values: Sequence[float]) -> dict[str, Any]:
    return dict(zip((column.name for column in table.columns), (*key, *values), strict=True))


def _of(table: sa.Table, tag: str | None) -> sa.ColumnElement[bool]:
    """The sums over the traffic of a tag."""
    return sa.true() if tag is None else table.c.tag == ("" if tag == "real" else tag)


def _upsert(statement: Any, table: sa.Table, merge: Callable[[sa.Column[Any], Any], Any]) -> Any:
    """Insert rows, or merge them into those that have their keys."""
    key = [column.name for column in table.primary_key]
    merged: Mapping[str, Any] = {
        column.name: merge(column, statement.excluded[column.name])
        for column in table.columns
        if column.name not in key
    }
    return statement.on_conflict_do_update(index_elements=key, set_=merged)


def _plus(old: sa.Column[Any], new: Any) -> Any:
    return old + new


def _newer(old: sa.Column[Any], new: Any) -> Any:
    """A variant that has not answered of late stands by who answered before; what is wrong is as of now."""
    return new if old.name == "problem" else sa.func.coalesce(new, old)
