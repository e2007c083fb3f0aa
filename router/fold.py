"""Sums over the ledger, kept by a fold: everything is added once, whoever folds and however often.

The table `folds` has the cursors up to which the ledger's tables are in the sums. A fold takes what is new
after those. Of new predictions the database itself counts requests, latencies and scores. What depends on
outcomes is added by prediction: for each that something new is known of, what it adds now less what it added
before. Rows of a unit or of a batch are a cluster: from its sums by hours follows what its rows add together,
and so what further ones do. So answers, outcomes, corrections and shadows may come in any order.

What is new is read and added up without a lock, as of one moment; then the cursors are moved and the sums
are added in one transaction, if nobody has moved them meanwhile. Reading the sums costs the same however many
rows there are, and who writes rows does nothing for it.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from router import cursors, database, phases
from router.assignment import SHADOW
from router.controllers import Sums
from router.cursors import Cursors, bounds, new_rows
from router.database import DatabaseDown, stamp
from router.experiment import Decision, ExperimentError, read
from router.labelling import (
    ALL,
    SUMS_OF_CLUSTER,
    Addition,
    Beside,
    Cell,
    Cluster,
    Known,
    Rules,
    adds,
    adds_of_cluster,
    counts_from,
    segments_of,
    together,
)
from router.phases import NONE, Book, Model, Phases, first_of_its_own, phase_of, row_before
from router.tables import (
    NO_ANSWER,
    allocations,
    clusters,
    experiments,
    folds,
    gaps,
    joint_scores,
    labels,
    latencies,
    outcome_scores,
    outcomes,
    pairs,
    predictions,
    repeats,
    scores,
    side_answers,
    standings,
    sums,
)
from verdict.bandit import tilt
from verdict.counted import LEAST_MS
from verdict.declared import LIVE
from verdict.evidence import SCORE_BINS, Costs

# Less is a difference in rounding.
NOISE = 1e-6
# Neighbouring bins of latencies differ by one per cent.
GROWTH = math.log(1.01)

SUMS = (
    *(sums, latencies, scores, labels, outcome_scores, pairs, gaps, joint_scores),
    repeats,
)
BINNED = (latencies, scores)
# The kinds of side answers that make a pair with the live one.
BESIDE = (SHADOW, "replay")
# The hour of what is summed over all hours.
TOTAL = ""
READER = "ledger"

Key = tuple[Any, ...]
# What a version of the experiment and an allocation in it declare of decisions.
Declared = Callable[[sa.Connection, int, int], Rules]
At = TypeVar("At")
# What is added, by table and key.
Added = dict[tuple[sa.Table, Key], list[float]]
# Sums of clusters, by the hour and the weights; and what is added to them.
Cells = dict[Cluster, dict[Cell, list[float]]]
News = dict[Cluster, list[Addition]]
# All that came before some hour.
BEFORE: Cell = (TOTAL, 0, 0)


@dataclass(frozen=True)
class Counts:
    """Counts of one variant in the ledger: requests = answered + refused (4xx) + failed (5xx).

    `assigned` are those that chance assigned for themselves: the first of units and of batches.
    """

    requests: int
    answered: int
    refused: int
    failed: int
    assigned: int
    sum_p: float

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.requests + other.requests,
            self.answered + other.answered,
            self.refused + other.refused,
            self.failed + other.failed,
            self.assigned + other.assigned,
            self.sum_p + other.sum_p,
        )

    @property
    def mean_prediction(self) -> float | None:
        return self.sum_p / self.answered if self.answered else None


NOTHING = Counts(0, 0, 0, 0, 0, 0.0)


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


class Fold:
    """Adds the ledger's rows to its sums, and reads those."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[engine.dialect.name]
        # Made once: to build a statement costs more than to execute it.
        begin = {"name": READER, **Cursors()._asdict(), "recounts": 0, "pruned": ""}
        self._begin_at_0 = insert(folds).values(begin).on_conflict_do_nothing()
        mark = {"sqlite": "?", "postgresql": "%s"}[engine.dialect.name]
        self._adds = {table: _adding(table, mark) for table in (*SUMS, clusters)}
        self._stand = _standing(insert(standings))
        self._rules: dict[tuple[int, int], Rules] = {}
        self.phases = Phases(engine)

    def catch_up(self) -> int:
        """Fold what is not folded yet; returns the cursor up to which predictions are in the sums.

        Raises:
            DatabaseDown: the database cannot be written or read.
        """
        try:
            while True:
                with database.snapshot(self._engine) as connection:
                    at, recounts = cursors.of(connection, READER), _history(connection)[0]
                    to = cursors.reached(connection, at)
                    if to == at:
                        return at.predictions
                    # What is counted has a phase.
                    known = _is_marked(connection, to)
                    if known:
                        added, news = _added(connection, at, to, self._declared)
                        summed = {cluster: _summed(rows) for cluster, rows in news.items()}
                        for place, values in _repeated(connection, news, summed):
                            _into(added, place, values)
                        added |= _totals(added) | _of_cells(summed)
                        stand = _standings(connection, at, to)
                if known:
                    self._add(at, to, recounts, added, stand)
                else:
                    self.phases.mark()
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseDown(error) from error

    def state(self) -> tuple[Any, ...]:
        """What changes whenever the sums may have: where they are, recounts, and what was pruned.

        Raises:
            DatabaseDown: the database cannot be written or read.
        """
        self.catch_up()
        return tuple(map(tuple, database.read(self._engine, sa.select(folds))))

    def recount(self) -> int:
        """Make the sums anew from the rows, and correct those that differ; returns how many did.

        Those of hours that were pruned stay as they are. Others may write and fold meanwhile.

        Raises:
            DatabaseDown: the database cannot be written or read.
        """
        self.catch_up()
        try:
            with database.snapshot(self._engine) as connection:
                at, recounts, pruned = cursors.of(connection, READER), *_history(connection)
                added, should = _anew(connection, at, self._declared)
                are = _as_cells(connection.execute(sa.select(*_CELL, *_OF_CLUSTER)))
                for place, made in _as_kept(are, should):
                    _into(added, place, made)
                hours: Added = {}
                totals: Added = {}
                for table in SUMS:
                    keys = len(table.primary_key)
                    for row in connection.execute(sa.select(table)):
                        (totals if row.hour == TOTAL else hours)[table, tuple(row[:keys])] = list(row[keys:])
            wrong = {
                (table, key): lack for (table, key), lack in _differ(added, hours).items() if key[1] >= pruned
            }
            wrong |= _differ(_totals(_together(hours, wrong)), totals)
            lacking = {}
            for cluster in are.keys() | should.keys():
                lacks = _differ(_summed(should.get(cluster, [])), are.get(cluster, {}))
                if lacks := {cell: lack for cell, lack in lacks.items() if cell[0] >= pruned}:
                    lacking[cluster] = lacks
            with database.writing(self._engine) as connection:
                # Who recounts at the same time would correct the same again.
                if not connection.execute(_RECOUNTED, {"at_recounts": recounts}).rowcount:
                    return 0
                # To those of clusters others may have added meanwhile.
                changed: Added = {}
                for cluster, cells in _changes(connection, lacking):
                    for cell, values in cells.items():
                        _into(changed, _repeats_of(cluster)(cell), values)
                for more in (changed, _totals(changed), _of_cells(lacking)):
                    wrong = _together(wrong, more)
                self._upsert(connection, wrong)
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseDown(error) from error
        return len(wrong)

    def _add(
        self, at: Cursors, to: Cursors, recounts: int, added: Added, stand: list[dict[str, Any]]
    ) -> None:
        """Add to the sums, if those are still where they were when the rows were read."""
        with database.writing(self._engine) as connection:
            if at == Cursors():
                connection.execute(self._begin_at_0)
            if not cursors.moved(connection, READER, at, to, recounts):
                return
            self._upsert(connection, added)
            if stand:
                connection.execute(self._stand, stand)

    def _upsert(self, connection: sa.Connection, added: Added) -> None:
        by_table: dict[sa.Table, list[tuple[Any, ...]]] = defaultdict(list)
        for (table, key), values in added.items():
            if any(values):
                by_table[table].append((*key, *values))
        for table, rows in by_table.items():
            connection.exec_driver_sql(self._adds[table], rows)

    def _declared(self, connection: sa.Connection, version: int, allocation: int) -> Rules:
        """What a version of the experiment declares, and an allocation in it; they never change."""
        known = self._rules.get((version, allocation))
        if known is None:
            found = connection.scalar(
                sa.select(experiments.c.document).where(experiments.c.version == version)
            )
            decision, shares, maturity = Decision(), dict[str, float](), None
            try:
                document = read(json.loads(found or "{}"))
                decision, shares, maturity = document.decision, document.shares, document.maturity
            # Rows of an older ledger have no document, and one of a later release cannot be read.
            except ExperimentError:
                pass
            moved = sa.select(allocations.c.weights).where(
                allocations.c.experiment_version == version, allocations.c.number == allocation
            )
            if told := connection.scalar(moved):
                shares = json.loads(told)
            known = self._rules[version, allocation] = Rules(
                decision,
                # Where one of them has no chance there is nothing to compare.
                tilt(decision.weighting, _shares(shares)) if all(shares.values()) else 1.0,
                Costs(**decision.costs.model_dump()) if decision.costs else None,
                maturity,
            )
        return known

    def counts(
        self, experiment: str, tag: str | None = None, since: str = TOTAL, kind: str = LIVE
    ) -> dict[tuple[int, int, str], Counts]:
        """What happened to the requests of each variant, by version, allocation and name of the variant.

        Args:
            experiment: its name.
            tag: only traffic of this tag; "real" is the traffic without one. None counts all.
            since: the first hour that counts; TOTAL counts all.
            kind: of side answer, or LIVE.
        """
        key = (sums.c.experiment_version, sums.c.allocation, sums.c.variant)
        added = [sums.c[name] for name in ("requests", "answered", "refused", "failed", "assigned", "sum_p")]
        query = (
            sa.select(*key, *(sa.func.sum(column) for column in added))
            .where(_over(sums, experiment, since, kind), _of(sums, tag))
            .group_by(*key)
        )
        return {
            (version, allocation, variant): Counts(
                int(n), int(answered), int(refused), int(failed), int(assigned), sum_p
            )
            for version, allocation, variant, n, answered, refused, failed, assigned, sum_p in map(
                tuple, database.read(self._engine, query)
            )
        }

    def latency(
        self, experiment: str, tag: str | None = None, since: str = TOTAL, kind: str = LIVE
    ) -> dict[str, Histogram]:
        """How long answered requests took, by variant; arguments as of `counts`."""
        found: dict[str, Histogram] = defaultdict(Histogram)
        query = (
            sa.select(latencies.c.variant, latencies.c.bin, sa.func.sum(latencies.c.requests))
            .where(_over(latencies, experiment, since, kind), _of(latencies, tag))
            .group_by(latencies.c.variant, latencies.c.bin)
        )
        for variant, bin_, requests in map(tuple, database.read(self._engine, query)):
            found[variant][bin_] = int(requests)
        return found

    def scored(
        self, experiment: str, tag: str | None = None, since: str = TOTAL, kind: str = LIVE
    ) -> dict[str, Counter[int]]:
        """How many answers fell into each of SCORE_BINS bins of probability, by variant; see `counts`."""
        found: dict[str, Counter[int]] = defaultdict(Counter)
        query = (
            sa.select(scores.c.variant, scores.c.bin, sa.func.sum(scores.c.requests))
            .where(_over(scores, experiment, since, kind), _of(scores, tag))
            .group_by(scores.c.variant, scores.c.bin)
        )
        for variant, bin_, requests in map(tuple, database.read(self._engine, query)):
            # A probability of exactly 1 is of the last bin.
            found[variant][min(bin_, SCORE_BINS - 1)] += int(requests)
        return found

    def last_hour(self, experiment: str, now: datetime, tag: str | None = None) -> float:
        """About how many requests came in the hour before `now`.

        Sums are by the hour of the clock: of the one that ended meanwhile, the part that is not older.
        """
        hours = [stamp(now - timedelta(hours=1))[:13], stamp(now)[:13]]
        query = (
            sa.select(sums.c.hour, sa.func.sum(sums.c.requests))
            .where(sums.c.experiment == experiment, sums.c.hour.in_(hours), _of(sums, tag))
            .group_by(sums.c.hour)
        )
        found = {hour: int(count) for hour, count in map(tuple, database.read(self._engine, query))}
        gone = (now.minute * 60 + now.second) / 3600
        return found.get(hours[1], 0) + (1 - gone) * found.get(hours[0], 0)

    def labelled(self, experiment: str, tag: str | None = None, since: str = TOTAL) -> dict[str, int]:
        """Of how many answered requests the outcome is known, by variant; arguments as of `counts`."""
        query = sa.select(labels.c.variant, sa.func.sum(labels.c.labelled))
        mine = query.where(_over(labels, experiment, since), _of(labels, tag)).group_by(labels.c.variant)
        return {variant: int(count) for variant, count in map(tuple, database.read(self._engine, mine))}

    def by_phase(self, tag: str | None = None) -> dict[int, tuple[int, int]]:
        """How many requests count in each phase, and of how many of these the outcome is known."""
        found: dict[int, tuple[int, int]] = {}
        for place, (table, column) in enumerate(((sums, sums.c.requests), (labels, labels.c.labelled))):
            query = sa.select(table.c.phase, sa.func.sum(column)).group_by(table.c.phase)
            mine = query.where(table.c.hour == TOTAL, _whole_of(table), _of(table, tag))
            for phase, count in map(tuple, database.read(self._engine, mine)):
                requests, known = found.get(phase, (0, 0))
                found[phase] = (int(count), known) if place == 0 else (requests, int(count))
        return found

    def tags(self, experiment: str) -> dict[str, int]:
        """How many requests there are of each tag; "real" is the traffic without one."""
        query = sa.select(sums.c.tag, sa.func.sum(sums.c.requests)).where(_over(sums, experiment))
        found = database.read(self._engine, query.group_by(sums.c.tag))
        return {tag or "real": int(count) for tag, count in map(tuple, found)}

    def standings(self, experiment: str) -> dict[str, sa.RowMapping]:
        """Who answered last for each variant, and what is wrong where its newest request failed."""
        query = sa.select(standings).where(standings.c.experiment == experiment)
        return {row.variant: row._mapping for row in database.read(self._engine, query)}

    def counted(
        self,
        experiment: str,
        versions: tuple[int, int],
        allocation: int,
        matured: datetime,
        tag: str | None,
        *,
        phase: int | None = None,
    ) -> dict[str, Sums]:
        """The sums by variant, for those who move weights.

        Args:
            experiment: its name.
            versions: the first and the last of the document's versions that count.
            allocation: of each version the first that counts; with 0 all do.
            matured: outcomes count of what was asked before.
            tag: only traffic of this tag; "real" is the traffic without one. None counts all.
            phase: whose rows count; None counts those of all.
        """

        def mine(table: sa.Table, hours: sa.ColumnElement[bool], columns: Sequence[str]) -> sa.Select[Any]:
            chosen = [
                *(table.c.experiment == experiment, hours, _whole_of(table), _of(table, tag)),
                table.c.experiment_version.between(*versions),
                table.c.allocation >= allocation,
                sa.true() if phase is None else table.c.phase == phase,
            ]
            added = [sa.func.sum(table.c[name]).label(name) for name in columns]
            return sa.select(table.c.variant, *added).where(*chosen).group_by(table.c.variant)

        self.catch_up()
        asked = mine(
            sums,
            sums.c.hour == TOTAL,
            (
                *("requests", "refused", "failed", "saved", "assigned"),
                *("apart", "apart_failed", "together", "timed", "log_latency", "log_latency2"),
            ),
        )
        told = mine(
            labels,
            sa.and_(labels.c.hour > TOTAL, labels.c.hour < stamp(matured)[:13]),
            ("labelled", "positives"),
        )
        known = {
            variant: (int(n), int(positives))
            for variant, n, positives in map(tuple, database.read(self._engine, told))
        }
        return {
            # It gave no answer to requests that it refused, or that another variant had to answer.
            row.variant: Sums(
                requests=int(row.requests),
                errors=int(row.failed) + int(row.refused) + int(row.saved),
                assigned=int(row.assigned),
                apart=int(row.apart),
                apart_failed=int(row.apart_failed),
                together=int(row.together),
                timed=int(row.timed),
                log_latency=row.log_latency,
                log_latency_squares=row.log_latency2,
                labelled=known.get(row.variant, (0, 0))[0],
                positives=known.get(row.variant, (0, 0))[1],
            )
            for row in database.read(self._engine, asked)
        }


def _history(connection: sa.Connection) -> tuple[int, str]:
    """How often was recounted, and the hour before which was pruned."""
    found = connection.execute(_HISTORY).one_or_none()
    return (found.recounts, found.pruned) if found else (0, "")


# The statements are made once: to build one costs more than to execute it.
_HISTORY = sa.select(folds.c.recounts, folds.c.pruned).where(folds.c.name == READER)
_RECOUNTED = (
    folds.update()
    .where(folds.c.name == READER, folds.c.recounts == sa.bindparam("at_recounts"))
    .values(recounts=folds.c.recounts + 1)
)


def _sum(of: sa.ColumnElement[Any], where: sa.ColumnElement[bool] | None = None) -> sa.ColumnElement[Any]:
    return sa.func.coalesce(sa.func.sum(of if where is None else sa.case((where, of))), 0)


def _whole(number: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    return sa.cast(sa.func.floor(number), sa.Integer)


_P = predictions.c
_S = side_answers.c


def _ten_minutes(of: Any) -> Any:
    """By which weights a row was assigned, and in which ten minutes: the first 15 letters of its time."""
    version, allocation = (sa.cast(each, sa.String) for each in (of.experiment_version, of.allocation))
    return version + "/" + allocation + "/" + sa.func.substr(of.time, 1, 15)


_PHASE = phase_of(_P)
_FIRST = first_of_its_own(_P)
_APART = sa.and_(
    _P.row == 0,
    sa.or_(
        _P.unit.is_(None),
        sa.func.coalesce(row_before(_P, _ten_minutes), "") != _ten_minutes(_P),
    ),
)
# What was forced, or asked during a pause, says nothing of the experiment.
_COUNTS = sa.and_(new_rows(predictions), _P.propensity.is_not(None))


# What another said of a row counts when both are there: where it is new, and where the row is.
_NEW_BESIDE, _BESIDE_NEW = (
    sa.and_(_S.kind.in_(BESIDE), _P.propensity.is_not(None), *which)
    for which in (
        (new_rows(side_answers), _P.cursor <= sa.bindparam("to_predictions")),
        (new_rows(predictions), _S.cursor <= sa.bindparam("at_side_answers")),
    )
)


def _counting(
    answers: Any, variant: Any, kind: Any, chosen: Any, saved: Any
) -> dict[sa.Table, sa.Select[Any]]:
    """What new answers add whatever becomes of them, by table.

    Args:
        answers: the columns of the table that they are in.
        variant: whose answers they are.
        kind: of side answer, or LIVE.
        chosen: which count.
        saved: of the answered, which another variant gave.
    """
    answered, failed = answers.status < 400, answers.status >= 500  # noqa: PLR2004
    live = answers is _P
    own = sa.and_(answered, sa.not_(saved))
    timed = sa.and_(answered, answers.latency_ms.is_not(None), _P.row == 0)
    # Beside those that the live variant answered itself, another one is missed.
    first = _FIRST if live else sa.and_(_FIRST, sa.not_(NO_ANSWER))
    apart = _APART if live else _P.row == 0
    unanswered = NO_ANSWER if live else sa.not_(answered)
    log_ms = sa.func.ln(sa.case((answers.latency_ms > LEAST_MS, answers.latency_ms), else_=LEAST_MS))
    period = (
        *(_P.experiment, sa.func.substr(_P.time, 1, 13), _P.experiment_version, _P.allocation, _PHASE),
        *(variant, kind, sa.func.coalesce(_P.tag, "")),
    )
    # Of side answers who gave them: a row's phase may not be theirs.
    who = () if live else (answers.model, answers.version, answers.digest)

    def counting(key: Sequence[Any], added: Sequence[Any], where: Any = None) -> sa.Select[Any]:
        named = [column.label(f"key{number}") for number, column in enumerate((*who, *period, *key))]
        which = chosen if where is None else sa.and_(chosen, where)
        selected = sa.select(*named, *added).where(which).group_by(*(column.name for column in named))
        if live:
            return selected
        return selected.select_from(side_answers.join(predictions, _P.id == _S.prediction_id))

    return {
        sums: counting(
            (sa.func.coalesce(answers.model, ""), sa.func.coalesce(answers.version, "")),
            (
                sa.func.count(),
                _sum(sa.literal(1), answered),
                _sum(sa.literal(1), sa.not_(sa.or_(answered, failed))),
                _sum(sa.literal(1), failed),
                _sum(sa.literal(1), saved),
                _sum(sa.literal(1), first),
                _sum(sa.literal(1), sa.and_(first, own)),
                _sum(sa.literal(1), apart),
                _sum(sa.literal(1), sa.and_(apart, unanswered)),
                # `_of_failed` adds it.
                sa.literal(0),
                _sum(sa.literal(1), timed),
                _sum(answers.prediction),
                _sum(answers.prediction * answers.prediction),
                _sum(log_ms, timed),
                _sum(log_ms * log_ms, timed),
            ),
        ),
        latencies: counting((_whole(log_ms / GROWTH),), (sa.func.count(),), timed),
        scores: counting(
            (_whole(answers.prediction * SCORE_BINS),),
            (sa.func.count(), _sum(sa.literal(1), first)),
            sa.and_(answers.prediction.is_not(None), own),
        ),
    }


# Whoever of a unit got no answer, with the key of its sums.
_FAILED = (
    sa.select(
        *(_P.experiment, sa.func.substr(_P.time, 1, 13), _P.experiment_version, _P.allocation, _PHASE),
        *(_P.variant, sa.literal(LIVE), sa.func.coalesce(_P.tag, ""), sa.func.coalesce(_P.model, "")),
        *(sa.func.coalesce(_P.version, ""), _P.unit, _ten_minutes(_P).label("minutes")),
        sa.case((_APART, 1), else_=0).label("apart"),
    )
    .where(_COUNTS, _P.unit.is_not(None), NO_ANSWER)
    .order_by(_P.cursor)
)
_FAILED_BEFORE = (
    sa.select(_P.unit, _P.experiment, sa.func.coalesce(_P.tag, ""), _ten_minutes(_P))
    .where(
        *(_P.unit.in_(sa.bindparam("units", expanding=True)), _P.unit.is_not(None), NO_ANSWER),
        *(_P.cursor <= sa.bindparam("at"), _P.propensity.is_not(None)),
    )
    .distinct()
)
TOGETHER_AT = list(sums.columns).index(sums.c.together)
PHASE_AT, VARIANT_AT, KIND_AT = (
    list(sums.columns).index(sums.c[each]) for each in ("phase", "variant", "kind")
)

_SAVED = sa.and_(_P.status < 400, _P.answered_by.is_not(None))  # noqa: PLR2004
_COUNTED = (
    _counting(_P, _P.variant, sa.literal(LIVE), _COUNTS, _SAVED),
    _counting(_S, _S.name, _S.kind, _NEW_BESIDE, sa.false()),
    _counting(_S, _S.name, _S.kind, _BESIDE_NEW, sa.false()),
)

# The predictions whose labels and pairs change: those that have an outcome and are new, or of which an
# outcome or a shadow's answer is new.
_known_outcome = outcomes.c.cursor <= sa.bindparam("to_outcomes")
_told = sa.select(outcomes.c.prediction_id).where(new_rows(outcomes))
_shadowed = (
    sa.select(side_answers.c.prediction_id)
    .join(outcomes, outcomes.c.prediction_id == side_answers.c.prediction_id)
    .where(new_rows(side_answers), side_answers.c.kind.in_(BESIDE), _known_outcome)
)
_predicted = sa.select(_P.id).join(outcomes, outcomes.c.prediction_id == _P.id).where(_COUNTS, _known_outcome)
_LABELLABLE = sa.select(
    *(_P.cursor, _P.id, _P.experiment, _P.experiment_version, _P.allocation, _P.variant, _P.tag, _P.time),
    *(_P.prediction, _P.features, _P.propensity, _P.unit, _P.request_id),
    sa.case((_FIRST, 1), else_=0).label("first"),
    _PHASE.label("phase"),
).where(
    _P.cursor <= sa.bindparam("to_predictions"),
    _P.propensity.is_not(None),
    _P.prediction.is_not(None),
    # What another variant said in its place says nothing of this one.
    _P.answered_by.is_(None),
)
_CONCERNED = _LABELLABLE.where(_P.id.in_(sa.union(_told, _shadowed, _predicted)))
# A cluster's sums by hours, those before some hour together.
_CELL = [
    clusters.c[name]
    for name in (
        *("cluster", "experiment", "phase", "variant", "kind", "tag", "beside", "segment"),
        *("hour", "experiment_version", "allocation"),
    )
]
_OF_CLUSTER = [column for column in clusters.columns if not column.primary_key]
_EARLIER = clusters.c.hour < sa.bindparam("since")
_KEY_OF_CELL = [
    *_CELL[:-3],
    *(
        sa.case((_EARLIER, none), else_=column).label(f"key{number}")
        for number, (column, none) in enumerate(zip(_CELL[-3:], BEFORE, strict=True))
    ),
]
_CELLS = (
    sa.select(*_KEY_OF_CELL, *(sa.func.sum(column) for column in _OF_CLUSTER))
    .where(clusters.c.cluster.in_(sa.bindparam("clusters", expanding=True)))
    .group_by(*(sa.literal_column(each.name) for each in _KEY_OF_CELL))
)
HOUR_AT = list(clusters.columns).index(clusters.c.hour)
_IDS: Any = sa.bindparam("ids", expanding=True)
_OUTCOMES = (
    sa.select(outcomes.c.cursor, outcomes.c.prediction_id, outcomes.c.outcome, outcomes.c.reported)
    .where(outcomes.c.prediction_id.in_(_IDS))
    .order_by(outcomes.c.cursor)
)
_BESIDE = (
    sa.select(
        *(_S.cursor, _S.prediction_id, _S.kind, _S.name, _S.prediction, _S.model, _S.version, _S.digest)
    )
    .where(_S.prediction_id.in_(_IDS), _S.kind.in_(BESIDE), _S.prediction.is_not(None))
    .order_by(_S.cursor)
)
# By variant, the cursors of its newest request and of the newest that a version answered.
_NEWEST = (
    sa.select(
        _P.experiment,
        _P.variant,
        sa.func.max(_P.cursor).label("last"),
        sa.func.max(sa.case((_P.version.is_not(None), _P.cursor))).label("answered"),
    )
    .where(new_rows(predictions))
    .group_by(_P.experiment, _P.variant)
)
_BY_CURSOR = sa.select(_P.cursor, _P.model, _P.version, _P.status, _P.problem).where(
    _P.cursor.in_(sa.bindparam("cursors", expanding=True))
)


def _added(connection: sa.Connection, at: Cursors, to: Cursors, declared: Declared) -> tuple[Added, News]:
    """The additions to sums, and to those of clusters, of all that came after some cursors, up to others."""
    between = bounds(at, to)
    added: Added = defaultdict(list)
    news: News = defaultdict(list)
    book = phases.read(connection)
    live, *beside = _COUNTED
    for table, query in live.items():
        keys = len(table.primary_key)
        for row in connection.execute(query, between):
            _into(added, (table, tuple(row[:keys])), row[keys:])
    for counted in beside:
        for table, query in counted.items():
            keys = len(table.primary_key)
            for row in connection.execute(query, between):
                model, key = Model(*row[:3]), list(row[3 : 3 + keys])
                key[PHASE_AT] = book.of_answer(key[PHASE_AT], key[KIND_AT], key[VARIANT_AT], model)
                _into(added, (table, tuple(key)), row[3 + keys :])
    for place, values in _of_failed(connection, at, to):
        _into(added, place, values)
    for known, rules, sign in _known(connection, at, to, declared, book):
        for place, values in adds(known, rules.decision):
            _into(added, place, values, sign)
        for its, addition in adds_of_cluster(known, rules, sign):
            for cluster in its:
                news[cluster].append(addition)
    return added, news


def _anew(connection: sa.Connection, at: Cursors, declared: Declared) -> tuple[Added, News]:
    """What is added by all that came up to some cursors, but for what rows of clusters add together."""
    added: Added = defaultdict(list)
    should: News = defaultdict(list)
    done = Cursors(0, at.side_answers, at.outcomes)
    while done.predictions < at.predictions:
        to = min(cursors.reached(connection, done).predictions, at.predictions)
        upto = done._replace(predictions=to)
        more, news = _added(connection, done, upto, declared)
        for place, values in more.items():
            _into(added, place, values)
        for cluster, rows in news.items():
            should[cluster] += rows
        done = upto if upto != done else at
    return added, should


def _is_marked(connection: sa.Connection, to: Cursors) -> bool:
    """Whether the phases of all rows up to some cursors are known."""
    marked = cursors.of(connection, phases.READER)
    return to.predictions <= marked.predictions and to.side_answers <= marked.side_answers


def _of_failed(
    connection: sa.Connection, at: Cursors, to: Cursors
) -> Iterator[tuple[tuple[sa.Table, Key], Sequence[float]]]:
    """What is added by units that got no answer: of each in how many ten minutes before it got none."""
    failed = connection.execute(_FAILED, bounds(at, to)).all()
    before: dict[Key, set[str]] = defaultdict(set)
    for some in _slices(sorted({row.unit for row in failed})):
        for unit, experiment, tag, minutes in map(
            tuple, connection.execute(_FAILED_BEFORE, {"units": some, "at": at.predictions})
        ):
            before[unit, experiment, tag, minutes.rpartition("/")[0]].add(minutes)
    keys = len(sums.primary_key)
    for row in failed:
        mine = before[row.unit, row[0], row[7], row.minutes.rpartition("/")[0]]
        if row.apart and (others := len(mine - {row.minutes})):
            values = [0.0] * (len(sums.columns) - keys)
            values[TOGETHER_AT - keys] = others
            yield (sums, tuple(row[:keys])), values
        mine.add(row.minutes)


def _known(
    connection: sa.Connection, at: Cursors, to: Cursors, declared: Declared, book: Book
) -> Iterator[tuple[Known, Rules, int]]:
    """What is known of predictions and has outcomes: now, and with the sign -1 as it was counted before."""
    rows = {row.id: row for row in connection.execute(_CONCERNED, bounds(at, to))}
    told: dict[str, list[Any]] = defaultdict(list)
    beside: dict[str, list[Any]] = defaultdict(list)
    for ids in _slices([*rows]):
        for outcome in connection.execute(_OUTCOMES, {"ids": ids}):
            told[outcome.prediction_id].append(outcome)
        for other in connection.execute(_BESIDE, {"ids": ids}):
            beside[other.prediction_id].append(other)

    def phase_beside(phase: int, said: Any) -> int:
        model = Model(said.model, said.version, said.digest)
        return book.of_answer(phase, said.kind, said.name, model)

    due: dict[tuple[str, timedelta], str] = {}

    def late(row: Any, those: Sequence[Any]) -> bool:
        """Whether another outcome was known, or none, when it came to count."""
        maturity = declared(connection, row.experiment_version, row.allocation).maturity
        if not maturity or not those:
            return False
        place = row.time[:13], maturity
        if place not in due:
            due[place] = counts_from(*place)
        known_then = [each.outcome for each in those if each.reported <= due[place]]
        return bool(known_then[-1:] != [those[-1].outcome])

    def known(row: Any, upto: Cursors, segments: Sequence[str]) -> Known:
        those = [each for each in told[row.id] if each.cursor <= upto.outcomes]
        outcome = [each.outcome for each in those]
        others = (each for each in beside[row.id] if each.cursor <= upto.side_answers)
        said = tuple(
            Beside(each.kind, each.name, each.prediction, phase_beside(row.phase, each)) for each in others
        )
        return Known(row, outcome[-1] if outcome else None, said, segments, late(row, those))

    for row in rows.values():
        rules = declared(connection, row.experiment_version, row.allocation)
        segments = segments_of(row.features, rules.decision)
        now = known(row, to, segments)
        if row.cursor <= at.predictions:
            before = known(row, at, segments)
            if before == now:
                continue
            yield before, rules, -1
        yield now, rules, 1


def _repeated(
    connection: sa.Connection, news: News, summed: Cells
) -> Iterator[tuple[tuple[sa.Table, Key], Sequence[float]]]:
    """The products of new rows of clusters with all others: they add these beyond what each adds alone."""
    for cluster, made in _changes(connection, summed):
        place = _repeats_of(cluster)
        for cell, changed in made.items():
            yield place(cell), changed
        for row in news[cluster]:
            yield place(row.cell), row.alone


def _changes(connection: sa.Connection, added: Cells) -> Iterator[tuple[Cluster, dict[Cell, list[float]]]]:
    """The change of what rows of clusters make together, when something is added to their sums."""
    by_name: dict[str, list[Cluster]] = defaultdict(list)
    since: dict[str, str] = {}
    for cluster, cells in added.items():
        by_name[cluster[0]].append(cluster)
        since[cluster[0]] = min(since.get(cluster[0], "~"), *(hour for hour, *_ in cells))
    # Those of which something came late are read together: of the others less is to be read.
    for names in _slices(sorted(by_name, key=lambda name: since[name])):
        first = min(since[name] for name in names)
        known = _as_cells(connection.execute(_CELLS, {"clusters": names, "since": first}))
        for cluster in chain.from_iterable(by_name[name] for name in names):
            before, cells = known.get(cluster, {}), added[cluster]
            if before or not _is_one(cells):
                yield cluster, _together(_made(_together(before, cells)), _made(before), -1)


def _is_one(cells: Mapping[Cell, Sequence[float]]) -> bool:
    """Whether a cluster is a row at most."""
    return len(cells) < 2 and all(values[0] <= 1 for values in cells.values())  # noqa: PLR2004


def _summed(rows: Iterable[Addition]) -> dict[Cell, list[float]]:
    """The sum of what rows add to their cluster, by hours and weights."""
    found: dict[Cell, list[float]] = {}
    for row in rows:
        _into(found, row.cell, row.values, row.sign)
    return found


def _made(cells: Mapping[Cell, Sequence[float]]) -> dict[Cell, list[float]]:
    """What the rows of a cluster make together, by hours and weights."""
    found: dict[Cell, list[float]] = {}
    before: Sequence[float] = (0.0,) * SUMS_OF_CLUSTER
    for cell, values in sorted(cells.items()):
        if cell != BEFORE:
            found[cell] = together(values, before)
        before = [one + other for one, other in zip(before, values, strict=True)]
    return found


def _as_kept(are: Cells, should: News) -> Iterator[tuple[tuple[sa.Table, Key], Sequence[float]]]:
    """What clusters make by their sums as they are kept, less what their rows add alone."""
    for cluster in are.keys() | should.keys():
        cells, rows = are.get(cluster, {}), should.get(cluster, [])
        if len(rows) > 1 or not _is_one(cells):
            place = _repeats_of(cluster)
            for cell, made in _made(cells).items():
                yield place(cell), made
            for row in rows:
                yield place(row.cell), row.alone


def _repeats_of(cluster: Cluster) -> Callable[[Cell], tuple[sa.Table, Key]]:
    """Where it is kept what rows of a cluster make together."""
    _, experiment, phase, *more = cluster
    return lambda cell: (repeats, (experiment, *cell, phase, *more))


def _as_cells(rows: Iterable[Any]) -> Cells:
    """Sums of clusters as they are read: the key of _CELL, and what is summed."""
    found: Cells = defaultdict(dict)
    for row in rows:
        key, values = tuple(row[: len(_CELL)]), row[len(_CELL) :]
        found[key[:-3]][key[-3:]] = [*map(float, values)]
    return found


def _of_cells(cells: Mapping[Cluster, Mapping[Cell, list[float]]]) -> Added:
    """Sums of clusters as they are added."""
    return {
        (clusters, (name, experiment, *cell, *more)): values
        for (name, experiment, *more), its in cells.items()
        for cell, values in its.items()
    }


def _shares(weights: Mapping[str, float]) -> list[float]:
    """Of their sum."""
    total = sum(weights.values())
    return [weight / total for weight in weights.values()]


def _totals(added: Added) -> Added:
    """The same over all hours, and where there are bins over all weights."""
    found: Added = defaultdict(list)
    for (table, (experiment, _, version, allocation, phase, *more)), values in added.items():
        weights = (0, 0, NONE) if table in BINNED else (version, allocation, phase)
        _into(found, (table, (experiment, TOTAL, *weights, *more)), values)
    return found


def _together(
    one: Mapping[At, list[float]], other: Mapping[At, list[float]], sign: int = 1
) -> dict[At, list[float]]:
    found = dict(one)
    for place, values in other.items():
        _into(found, place, values, sign)
    return found


def _differ(should: Mapping[At, list[float]], are: Mapping[At, list[float]]) -> dict[At, list[float]]:
    """What some sums lack, where it is more than rounding."""
    lack = _together(should, are, -1)
    return {place: values for place, values in lack.items() if any(abs(each) > NOISE for each in values)}


def _slices(ids: list[str]) -> Iterator[list[str]]:
    """So many as databases take in one statement."""
    return (ids[start : start + 500] for start in range(0, len(ids), 500))


def _into(added: dict[At, list[float]], place: At, values: Iterable[float], sign: int = 1) -> None:
    """Add values at a place, or with the sign -1 take them away."""
    mine = added.get(place)
    added[place] = (
        [old + sign * new for old, new in zip(mine, values, strict=True)]
        if mine
        else [sign * new for new in values]
    )


def _standings(connection: sa.Connection, at: Cursors, to: Cursors) -> list[dict[str, Any]]:
    """How variants stand after the predictions between two cursors."""
    between = {"at_predictions": at.predictions, "to_predictions": to.predictions}
    newest = connection.execute(_NEWEST, between).all()
    cursors = [cursor for row in newest for cursor in (row.last, row.answered) if cursor]
    rows = {row.cursor: row for row in connection.execute(_BY_CURSOR, {"cursors": cursors})}
    return [
        {
            "experiment": each.experiment,
            "variant": each.variant,
            "model": rows[each.answered].model if each.answered else None,
            "version": rows[each.answered].version if each.answered else None,
            "problem": rows[each.last].problem if rows[each.last].status >= 500 else None,  # noqa: PLR2004
        }
        for each in newest
    ]


def _over(table: sa.Table, experiment: str, since: str = TOTAL, kind: str = LIVE) -> sa.ColumnElement[bool]:
    """The sums of an experiment over all hours, or over those from one on."""
    hours = table.c.hour == TOTAL if since == TOTAL else table.c.hour >= since
    return sa.and_(table.c.experiment == experiment, hours, _whole_of(table, kind))


def _whole_of(table: sa.Table, kind: str = LIVE) -> sa.ColumnElement[bool]:
    """The sums of what callers were answered, or of another kind of answer, of all segments."""
    return sa.and_(table.c.kind == kind, table.c.segment == ALL if "segment" in table.c else sa.true())


def _of(table: sa.Table, tag: str | None) -> sa.ColumnElement[bool]:
    """The sums over the traffic of a tag."""
    return sa.true() if tag is None else table.c.tag == ("" if tag == "real" else tag)


def _adding(table: sa.Table, mark: str) -> str:
    """The statement that adds rows to those that have their keys, with so many marks for their columns.

    As a text, since there are many rows of it: sqlalchemy would take longer with them than the database.
    """
    names, keys = [each.name for each in table.columns], [each.name for each in table.primary_key]
    added = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in names if name not in keys)
    marks = ", ".join([mark] * len(names))
    return (
        f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks}) "  # noqa: S608 (our own names)
        f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {added}"
    )


def _standing(statement: Any) -> Any:
    """Insert how variants stand, or put it in the place of how they stood."""
    new = statement.excluded
    # A variant that has not answered of late stands by who answered before; what is wrong is as of now.
    who = {name: sa.func.coalesce(new[name], standings.c[name]) for name in ("model", "version")}
    return statement.on_conflict_do_update(
        index_elements=["experiment", "variant"], set_={**who, "problem": new.problem}
    )
