"""Phases: which models answered, and since when; by the answers that they gave.

A **phase** is a time in which the split, the rules of decision and the models behind the variants were what
they are. Split and rules are those of a series of versions (`router/experiments.py`); who answered for a
variant is told by its answers: the digest of the model, or where a service tells none its name and version. A
phase is known by these, and not by when it was: whenever all are the same again, it is the same one, with its
evidence.

`Phases.mark` reads the ledger in the order of its cursors, and notes from which row on another phase is: a
span. Each series has its own, so that what is recorded late by an older version counts for that. Where
services of both models answer for a while, spans alternate, and each row counts by what answered.

What a shadow says comes later than the row that it is said of. It begins a span at that row, or where that
has been counted already at the next one, and counts itself in the phase of what really answered:
`Book.of_answer`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import sqlalchemy as sa

from router import cursors, database
from router.assignment import SHADOW
from router.cursors import Cursors
from router.database import DatabaseDown
from router.tables import experiments, folds, phases, predictions, side_answers, spans

READER = "phases"
# Rows whose phase is not known, as before there were any.
NONE = 0


class Model(NamedTuple):
    """Who answers for a variant, as far as it tells."""

    model: str | None
    version: str | None
    digest: str | None

    @property
    def identity(self) -> str:
        """By which it is another one: its digest, else what it is called."""
        return self.digest or f"{self.model or ''}/{self.version or ''}"


Models = Mapping[str, Model]


@dataclass(frozen=True)
class Phase:
    """One phase: `models` are by variant, without those who have not answered yet."""

    number: int
    experiment: str
    series: int
    begun: str
    models: Models

    @property
    def alike(self) -> tuple[tuple[str, str], ...]:
        """By which models it is known."""
        return identities(self.models)


def identities(models: Models) -> tuple[tuple[str, str], ...]:
    """The models behind variants, as they can be compared."""
    return tuple(sorted((name, model.identity) for name, model in models.items()))


def serving_on(models: Models, before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Model]:
    """Of the models behind some services, by variant, those of services that are still the same."""
    return {name: each for name, each in models.items() if name in now and now[name] == before.get(name)}


class Book:
    """All phases, as they were read at one moment, and those that are to be added."""

    def __init__(self, known: Iterable[Phase]) -> None:
        self.by_number = {each.number: each for each in known}
        self.changed: dict[int, Phase] = {}
        self._found = {(each.series, each.alike): each for each in self.by_number.values()}

    def find(self, series: int, models: Models) -> Phase | None:
        """The phase of a series in which these models answered; None where there is none."""
        return self._found.get((series, identities(models)))

    def first(self, series: int, models: Models) -> Phase | None:
        """The first phase of a series in which these models answered, and maybe others; None without any."""
        known = set(identities(models))
        found = (each for each in self.by_number.values() if each.series == series)
        return min((each for each in found if known <= set(each.alike)), default=None, key=_number)

    def put(self, phase: Phase) -> Phase:
        """Add a phase, or change one."""
        if before := self.by_number.get(phase.number):
            del self._found[before.series, before.alike]
        self.by_number[phase.number] = self.changed[phase.number] = phase
        self._found[phase.series, phase.alike] = phase
        return phase

    def begin(self, experiment: str, series: int, models: Models, time: str) -> Phase:
        """The phase of a series and models, which is added where there is none."""
        number = max(self.by_number, default=0) + 1
        return self.find(series, models) or self.put(Phase(number, experiment, series, time, dict(models)))

    def with_model(self, phase: Phase, variant: str, model: Model, time: str) -> Phase:
        """The phase that another one becomes when a variant's model answers."""
        models = {**phase.models, variant: model}
        if variant in phase.models or (found := self.find(phase.series, models)):
            return self.begin(phase.experiment, phase.series, models, time)
        # It is no change that somebody answers for the first time.
        return found or self.put(replace(phase, models=models))

    def of_answer(self, number: int, kind: str, variant: str, model: Model) -> int:
        """The phase of a side answer to a row of some phase: of a shadow by what really answered."""
        phase = self.by_number.get(number)
        if kind != SHADOW or phase is None:
            return number
        if variant in phase.models and phase.models[variant].identity == model.identity:
            return number
        found = self.find(phase.series, {**phase.models, variant: model})
        return found.number if found else number


def phase_of(row: Any) -> sa.ColumnElement[int]:
    """The phase of a row of `predictions`, or of an alias of it."""
    its, span, of = experiments.alias(), spans.alias(), row.cursor.table
    series = (
        sa.select(its.c.series).where(its.c.version == row.experiment_version).correlate(of).scalar_subquery()
    )
    found = (
        sa.select(span.c.phase)
        .where(
            span.c.series == sa.func.coalesce(series, row.experiment_version),
            span.c.cursor <= row.cursor,
        )
        .order_by(span.c.cursor.desc())
        .limit(1)
        .correlate(of)
        .scalar_subquery()
    )
    return sa.func.coalesce(found, NONE)


def row_before(row: Any, what: Callable[[Any], Any]) -> sa.ColumnElement[Any]:
    """Something of the row of `predictions` that came before, of the same unit; NULL where there is none."""
    before = predictions.alias()
    return (
        sa.select(what(before.c))
        .where(
            before.c.unit == row.unit,
            before.c.cursor < row.cursor,
            before.c.propensity.is_not(None),
            before.c.experiment == row.experiment,
            sa.func.coalesce(before.c.tag, "") == sa.func.coalesce(row.tag, ""),
        )
        .order_by(before.c.cursor.desc())
        .limit(1)
        .correlate(row.cursor.table)
        .scalar_subquery()
    )


def first_of_its_own(row: Any) -> sa.ColumnElement[bool]:
    """Whether chance assigned a row of `predictions` for itself: the first of its unit, or of its batch.

    Whoever has a unit stays with its variant: of a phase the first row was assigned by chance.
    """
    return sa.case(
        (row.unit.is_(None), row.row == 0),
        else_=sa.func.coalesce(row_before(row, phase_of), -1) != phase_of(row),
    )


_P = predictions.c
_S = side_answers.c
_ANSWERED = 400


def _changes(answers: Any, variant: Any, chosen: Any) -> sa.Select[Any]:
    """The answers whose model is another one than that of the variant's answer before, or the first."""
    identity = sa.func.coalesce(
        answers.digest,
        sa.func.coalesce(answers.model, "") + "/" + sa.func.coalesce(answers.version, ""),
    )
    before = sa.func.lag(identity).over(
        partition_by=(_P.experiment_version, variant), order_by=answers.cursor
    )
    told = (
        sa.select(
            *(_P.cursor, _P.time, _P.experiment, _P.experiment_version.label("by"), variant.label("variant")),
            *(answers.model, answers.version, answers.digest),
            answers.cursor.label("at"),
            identity.label("identity"),
            before.label("before"),
        )
        .where(chosen, answers.status < _ANSWERED)
        .subquery()
    )
    another = sa.or_(told.c.before.is_(None), told.c.before != told.c.identity)
    return sa.select(told).where(another).order_by(told.c.at)


_LIVE = _changes(_P, _P.variant, sa.and_(cursors.new_rows(predictions), _P.answered_by.is_(None)))
_NEW_BESIDE = sa.and_(
    *(_S.prediction_id == _P.id, _S.kind == SHADOW),
    *(cursors.new_rows(side_answers), _P.cursor <= sa.bindparam("to_predictions")),
)
_BESIDE = _changes(_S, _S.name, _NEW_BESIDE)
# The first row of each version: a series begins with it, or goes on.
_FIRST = (
    sa.select(
        *(sa.func.min(_P.cursor).label("cursor"), sa.func.min(_P.time).label("time")),
        *(_P.experiment, _P.experiment_version.label("by")),
    )
    .where(cursors.new_rows(predictions))
    .group_by(_P.experiment, _P.experiment_version)
)
# Who answered beside rows of which phase: where what was said is new, and where the row is.
_BOTH = [
    sa.select(
        phase_of(_P).label("of"),
        *(_S.name, _S.model, _S.version, _S.digest, sa.func.min(_P.time).label("time")),
    )
    .where(chosen, _S.status < _ANSWERED)
    .group_by(sa.literal_column("of"), _S.name, _S.model, _S.version, _S.digest)
    for chosen in (
        _NEW_BESIDE,
        sa.and_(
            *(_S.prediction_id == _P.id, _S.kind == SHADOW),
            *(cursors.new_rows(predictions), _S.cursor <= sa.bindparam("at_side_answers")),
        ),
    )
]


class Phases:
    """The phases of a ledger."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._versions: dict[int, tuple[int, Mapping[str, Any]]] = {}

    def all(self) -> list[Phase]:
        """All of them, in the order in which they began; raises DatabaseDown."""
        return [_phase(row) for row in database.read(self._engine, sa.select(phases).order_by("number"))]

    def of_series(self, series: int) -> Phase | None:
        """The phase in which the newest rows of a series are; None where it has none. Raises DatabaseDown."""
        last = sa.select(spans.c.phase).where(spans.c.series == series).order_by(spans.c.cursor.desc())
        number = last.limit(1).scalar_subquery()
        found = database.read(self._engine, sa.select(phases).where(phases.c.number == number))
        return _phase(found[0]) if found else None

    def newest(self, experiment: str) -> Phase | None:
        """The phase in which the newest rows of an experiment are; raises DatabaseDown."""
        chosen = sa.select(spans.c.phase).join(phases, phases.c.number == spans.c.phase)
        last = chosen.where(phases.c.experiment == experiment).order_by(spans.c.cursor.desc()).limit(1)
        query = sa.select(phases).where(phases.c.number == last.scalar_subquery())
        found = database.read(self._engine, query)
        return _phase(found[0]) if found else None

    def spans(self, number: int) -> list[tuple[int, int | None]]:
        """From which row to before which one rows of its series are of a phase; None has no end."""
        mine = sa.select(phases.c.series).where(phases.c.number == number).scalar_subquery()
        query = sa.select(spans).where(spans.c.series == mine).order_by(spans.c.cursor)
        found = database.read(self._engine, query)
        ends = [*(row.cursor for row in found[1:]), None]
        return [(row.cursor, end) for row, end in zip(found, ends, strict=True) if row.phase == number]

    def mark(self) -> bool:
        """Note the phases of what is new, at most so many rows; says whether anything was.

        Raises:
            DatabaseDown: the database cannot be written or read.
        """
        try:
            with database.snapshot(self._engine) as connection:
                at = cursors.of(connection, READER)
                to = cursors.reached(connection, at)._replace(outcomes=0)
                if to == at:
                    return False
                book = read(connection)
                begun = [*self._begun(connection, book, at, to)]
            with database.writing(self._engine) as connection:
                if at == Cursors():
                    known = sa.select(sa.literal(1)).where(folds.c.name == READER)
                    if connection.execute(known).first() is None:
                        first = {"name": READER, **at._asdict(), "recounts": 0, "pruned": ""}
                        connection.execute(folds.insert(), first)
                if cursors.moved(connection, READER, at, to):
                    if at == Cursors():
                        # Of what is read anew from the first row.
                        connection.execute(spans.delete())
                    _write(connection, book, begun)
                    self._beside(connection, book, at, to)
        except sa.exc.IntegrityError:
            return True  # Another worker has begun at the same time.
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseDown(error) from error
        return True

    def _begun(
        self, connection: sa.Connection, book: Book, at: Cursors, to: Cursors
    ) -> Iterator[dict[str, int]]:
        """The spans that begin between some cursors."""
        between = cursors.bounds(at, to)
        # In the order of the rows; of one the version comes before who answered.
        events: list[tuple[int, int, Any]] = [
            (row.cursor, 0, row) for row in connection.execute(_FIRST, between)
        ]
        events += [(row.cursor, 1, row) for row in connection.execute(_LIVE, between)]
        events += [
            (max(row.cursor, at.predictions + 1), 2, row) for row in connection.execute(_BESIDE, between)
        ]
        last = {series: phase for series, phase in _last(connection, anew=at == Cursors())}
        newest = next(iter(last.values()), None)
        for cursor, kind, row in sorted(events, key=lambda event: event[:2]):
            series, services = self._version(connection, row.by)
            before = last.get(series)
            phase = book.by_number[before] if before else None
            if kind == 0:
                other = book.by_number[newest] if newest else None
                models = dict(phase.models) if phase else {}
                if other and other.series != series and other.experiment == row.experiment:
                    # Whoever served under another version serves on.
                    _, theirs = self._version(connection, other.series)
                    models |= serving_on(other.models, theirs, services)
                if phase is None:
                    phase = book.first(series, models)
                if phase is None or not set(identities(models)) <= set(phase.alike):
                    phase = book.begin(row.experiment, series, models, row.time)
            elif phase:
                model = Model(row.model, row.version, row.digest)
                known = phase.models.get(row.variant)
                if known is None or known.identity != model.identity:
                    phase = book.with_model(phase, row.variant, model, row.time)
            if phase is None:
                continue
            last[series] = newest = phase.number
            if phase.number != before:
                yield {"series": series, "cursor": cursor, "phase": phase.number}

    def _beside(self, connection: sa.Connection, book: Book, at: Cursors, to: Cursors) -> None:
        """See that there is a phase for whatever shadows said of whichever row."""
        book.changed.clear()
        for query in _BOTH if to.side_answers else ():
            for row in connection.execute(query, cursors.bounds(at, to)).all():
                phase, model = book.by_number.get(row.of), Model(row.model, row.version, row.digest)
                if phase and phase.models.get(row.name, model).identity != model.identity:
                    book.begin(phase.experiment, phase.series, {**phase.models, row.name: model}, row.time)
        _write(connection, book, ())

    def _version(self, connection: sa.Connection, version: int) -> tuple[int, Mapping[str, Any]]:
        """The series of a version, and the service behind each variant; versions never change."""
        known = self._versions.get(version)
        if known is None:
            query = sa.select(experiments.c.series, experiments.c.document)
            found = connection.execute(query.where(experiments.c.version == version)).one_or_none()
            document = json.loads(found.document) if found else {}
            services = {
                each["name"]: [each.get(part) for part in ("url", "dialect", "model")]
                for each in document.get("variants", ())
            }
            known = self._versions[version] = (found.series if found else version, services)
        return known


def read(connection: sa.Connection) -> Book:
    """All phases as of now."""
    return Book(_phase(row) for row in connection.execute(sa.select(phases)))


def _last(connection: sa.Connection, *, anew: bool) -> Sequence[tuple[int, int]]:
    """The phase in which the newest rows of each series are, that of the newest ones first."""
    if anew:
        return ()
    newest = sa.select(spans.c.series, sa.func.max(spans.c.cursor).label("cursor")).group_by(spans.c.series)
    these = newest.subquery()
    both = sa.and_(spans.c.series == these.c.series, spans.c.cursor == these.c.cursor)
    query = sa.select(spans.c.series, spans.c.phase).join(these, both).order_by(spans.c.cursor.desc())
    return [(row.series, row.phase) for row in connection.execute(query)]


def _write(connection: sa.Connection, book: Book, begun: Iterable[Mapping[str, int]]) -> None:
    for number, each in book.changed.items():
        told = {"experiment": each.experiment, "series": each.series, "begun": each.begun}
        told |= {"models": json.dumps({name: list(model) for name, model in each.models.items()})}
        if not connection.execute(phases.update().where(phases.c.number == number).values(told)).rowcount:
            connection.execute(phases.insert(), {"number": number, **told})
    # Of two that begin at a row the last one stands.
    at = {(each["series"], each["cursor"]): dict(each) for each in begun}
    for series, cursor in at:
        same = sa.and_(spans.c.series == series, spans.c.cursor == cursor)
        connection.execute(spans.delete().where(same))
    if at:
        connection.execute(spans.insert(), [*at.values()])


def _number(phase: Phase) -> int:
    return phase.number


def _phase(row: Any) -> Phase:
    models = {name: Model(*told) for name, told in json.loads(row.models).items()}
    return Phase(row.number, row.experiment, row.series, row.begun, models)
