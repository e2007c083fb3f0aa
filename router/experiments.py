"""The versions of the experiment in the database, the weights in force, and how each worker follows them.

A **version** is a document with who, when and why. The first comes from the configuration file, and so does
another when that has changed since it was last taken in; all others are set over REST. An **allocation** is a
change of the weights within a version: by an operator's ramp, a canary, a bandit, a hold, or a pause. Both
are added and never changed, and together they are the audit.

A **series** are all versions that split traffic and decide alike, whatever came in between: who takes a
change back is in the series of before again, and what was recorded in it counts on. Rules of decision that
are declared for a split which had others before are a further **attempt**, and judged at half of the risk of
the one before (`router/verdicts.py`).

The weights in force are those of the version's last allocation, or where there is none those with which the
document begins. A version that splits traffic as the one before it carries its allocation on.

**Paused**, all traffic goes to the champion (without one to the variant named first), no challenger is asked,
and nothing that is recorded counts: it has no propensity. Resuming goes back to the weights of before. A
further version of the document stays paused; promoting a variant ends the pause.

**Held**, a canary or a bandit keeps the weights that it has: everything still counts, and nothing moves them
by itself until it is resumed, or ramped by hand. A hold outlives a further version, and ends with a
promotion, as a pause does.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from router import assignment, database
from router.assignment import Assignment
from router.database import DatabaseDown, stamp
from router.experiment import Experiment, ExperimentError, read
from router.periodic import Periodic
from router.tables import allocations, experiments
from runoff.problems import Unavailable

POLL_SECONDS = 0.5
# The modes in which something moves the weights by itself.
MOVING = ("canary", "bandit")
# How often a change is tried anew, when another one came first.
ATTEMPTS = 5

# Of a version, and of an allocation.
VersionAction = Literal["configure", "set", "promote"]
AllocationAction = Literal["carry", "pause", "resume", "hold", "ramp", "step", "regress", "update"]
# With these a step of a canary goes on: what was recorded in it before counts on.
GOING_ON = ("hold", "resume")

log = logging.getLogger(__name__)


class Stale(Exception):
    """What was to be changed has changed meanwhile."""


class NotPossible(Exception):
    """The experiment is not in a state in which that could be done; the message says why."""


class Place(NamedTuple):
    """A place in the audit: a version, and the allocation in it, 0 for the version itself."""

    version: int
    number: int


@dataclass(frozen=True)
class Allocation:
    """Weights that took the place of the document's. `evidence` is what they were decided from, JSON.

    `step` is the allocation with which the present step began: to be held, and resumed from that, is none of
    its own.
    """

    number: int
    step: int
    time: datetime
    action: str
    by: str
    reason: str
    weights: Mapping[str, float]
    evidence: Any


@dataclass(frozen=True)
class Entry:
    """One entry of the audit: a version with its document, or an allocation with its weights."""

    place: Place
    time: str
    action: str
    by: str
    reason: str
    document: Any
    weights: Any
    evidence: Any


@dataclass(frozen=True)
class Current:
    """The experiment as it is in force: never changed, so that a request sees one state of it."""

    version: int
    series: int
    time: datetime
    action: str
    by: str
    reason: str
    document: Experiment
    allocation: Allocation | None
    # The how many-th rules of decision these are for this split, and all versions of the series.
    attempt: int = 1
    versions: tuple[int, ...] = ()

    @property
    def place(self) -> Place:
        """Which version, and which allocation in it."""
        return Place(self.version, self.allocation.number if self.allocation else 0)

    @property
    def step(self) -> Place:
        """From where on what is recorded is of the present step of a canary."""
        return Place(self.version, self.allocation.step if self.allocation else 0)

    @property
    def since(self) -> datetime:
        """Since when the weights are in force."""
        return self.allocation.time if self.allocation else self.time

    @cached_property
    def weights(self) -> dict[str, float]:
        """The weights in force, by the name of the variant; they sum to 1."""
        told = self.allocation.weights if self.allocation else self.document.shares
        total = sum(told.values())
        return {variant.name: told.get(variant.name, 0.0) / total for variant in self.document.variants}

    @cached_property
    def paused(self) -> bool:
        """Whether all goes to the champion, and nothing counts."""
        return self.allocation is not None and self.allocation.action == "pause"

    @cached_property
    def held(self) -> bool:
        """Whether nothing moves the weights by itself."""
        return self.allocation is not None and self.allocation.action == "hold"

    def assign(self, unit: str | None = None) -> Assignment:
        """The variant that a request goes to; the arguments are those of `router.assignment.assign`."""
        assigned = assignment.assign(self.document, self.weights, unit)
        return assigned._replace(propensity=None) if self.paused else assigned

    def shadowed(self, key: str) -> bool:
        """Whether the challengers are asked as well about the request of this id."""
        return not self.paused and assignment.shadowed(self.document, key)


class Experiments:
    """The experiment's versions and allocations in the router's database.

    Who changes something says which version it is a change of. Of two changes at once one comes first, and
    the other is refused: the numbers of versions and allocations are primary keys.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def newest(self) -> Place | None:
        """Which version and allocation is in force; None where there is none. One query by primary keys.

        Raises:
            DatabaseDown: the database cannot be read.
        """
        version = sa.select(sa.func.max(experiments.c.version)).scalar_subquery()
        numbers = sa.select(sa.func.max(allocations.c.number))
        number = numbers.where(allocations.c.experiment_version == version).scalar_subquery()
        found = self._read(sa.select(version.label("version"), number.label("number")))[0]
        return None if found.version is None else Place(found.version, found.number or 0)

    def current(self) -> Current | None:
        """The experiment in force, None where there is none yet.

        Raises:
            DatabaseDown: the database cannot be read.
            ExperimentError: this release cannot read the document.
        """
        return self._last(sa.select(experiments))

    def of_series(self, series: int) -> Current | None:
        """The last version of a series as if it were in force, None where there is none; see `current`."""
        return self._last(sa.select(experiments).where(experiments.c.series == series))

    def series_of(self, document: Experiment) -> tuple[int | None, int]:
        """The series that a document would be of, None for another one; and which attempt its rules are.

        Raises:
            DatabaseDown: the database cannot be read.
        """
        attempt = 0
        # By series its last document, of which the first that declares no maturity is no other one.
        last: dict[int, tuple[Experiment, int]] = {}
        for row in self._read(sa.select(experiments).order_by(experiments.c.version)):
            try:
                known = read(json.loads(row.document))
            except ExperimentError:
                continue
            if known.maturity is None and row.series in last:
                known = known.model_copy(update={"maturity": last[row.series][0].maturity})
            last.pop(row.series, None)
            last[row.series] = known, row.attempt
        for series, (known, its) in reversed(last.items()):
            if document.splits_like(known):
                if document.decides_like(known):
                    return series, its
                attempt = max(attempt, its)
        return None, attempt + 1

    def by_series(self) -> dict[int, tuple[Experiment | None, list[int]]]:
        """Of each series its last document, None where this release cannot read it, and its versions."""
        found: dict[int, tuple[Experiment | None, list[int]]] = {}
        for row in self._read(sa.select(experiments).order_by(experiments.c.version)):
            _, versions = found.get(row.series, (None, []))
            try:
                document = read(json.loads(row.document))
            except ExperimentError:
                document = None
            found[row.series] = document, [*versions, row.version]
        return found

    def _last(self, query: sa.Select[Any]) -> Current | None:
        found = self._read(query.order_by(experiments.c.version.desc()).limit(1))
        if not found:
            return None
        row = found[0]
        alike = sa.select(experiments.c.version).where(experiments.c.series == row.series)
        return Current(
            version=row.version,
            series=row.series,
            time=datetime.fromisoformat(row.time),
            action=row.action,
            by=row.by,
            reason=row.reason,
            document=read(json.loads(row.document)),
            allocation=self._allocation(row.version),
            attempt=row.attempt,
            versions=tuple(each.version for each in self._read(alike)),
        )

    def take_in(self, document: Experiment) -> None:
        """Let the configuration file's document be a version, if it is not what was last read from there.

        Raises:
            DatabaseDown: the database cannot be read, or did not take it.
            Stale: others change the experiment all the time.
        """
        configured = sa.select(experiments.c.document).where(experiments.c.action == "configure")
        for _ in range(ATTEMPTS):
            newest = self.newest()
            last = self._read(configured.order_by(experiments.c.version.desc()).limit(1))
            if last and _is(last[0].document, document):
                return
            reason = "the configuration file has changed" if last else "there was no experiment yet"
            try:
                self._set(document, newest, "configure", "the configuration file", reason)
            except Stale:
                continue  # Another worker may have taken it in.
            return
        raise Stale("the experiment changes too fast")

    def set(self, document: Experiment, *, expected: int, by: str, reason: str) -> Current:
        """Make a document the next version.

        Args:
            document: the whole of it.
            expected: the version that it is a change of.
            by: who says so.
            reason: why.

        Raises:
            Stale: the version in force is another one.
            DatabaseDown: the database did not take it.
        """
        return self._set(document, self._expected(expected).place, "set", by, reason)

    def promote(self, variant: str, *, expected: int, by: str, reason: str) -> Current:
        """Make a variant the champion, with all of the traffic; otherwise as `set`.

        Raises:
            NotPossible: there is no such variant.
        """
        current = self._expected(expected)
        return self._set(promoting(current.document, variant), current.place, "promote", by, reason)

    def pause(self, *, expected: int, by: str, reason: str) -> Current:
        """Send everything to the champion, and let nothing count; the arguments are those of `set`.

        Raises:
            NotPossible: it is paused already.
        """

        def decide(current: Current) -> Mapping[str, float]:
            if current.paused:
                raise NotPossible("the experiment is paused already")
            return _at_rest(current.document)

        return self._decide(expected, decide, "pause", by, reason)

    def hold(self, *, expected: int, by: str, reason: str) -> Current:
        """Keep a canary or a bandit at the weights that it has; the arguments are those of `set`.

        Raises:
            NotPossible: it is held already, it is paused, or its mode moves no weights.
        """

        def decide(current: Current) -> Mapping[str, float]:
            if current.held:
                raise NotPossible("the experiment is held already")
            if current.paused:
                raise NotPossible("the experiment is paused: resume it first")
            if current.document.mode not in MOVING:
                raise NotPossible(f"in the mode {current.document.mode} nothing moves that could be held")
            return current.weights

        return self._decide(expected, decide, "hold", by, reason)

    def resume(self, *, expected: int, by: str, reason: str) -> Current:
        """End a hold, or a pause, with the weights of before; the arguments are those of `set`.

        Raises:
            NotPossible: it is neither held nor paused.
        """

        def decide(current: Current) -> Mapping[str, float]:
            if current.held:
                return current.weights
            if not current.paused:
                raise NotPossible("the experiment is neither held nor paused")
            before = self._allocation(current.version, allocations.c.action != "pause")
            return before.weights if before else current.document.shares

        return self._decide(expected, decide, "resume", by, reason)

    def ramp(
        self, share: float, variant: str | None = None, *, expected: int, by: str, reason: str
    ) -> Current:
        """Give a variant another share; the others share the rest in proportion.

        A canary goes on from there, also if it was held, except from 0, where it stays until it is ramped
        again.

        Args:
            share: from 0 to 1.
            variant: its name; None for the only challenger.
            expected: as in `set`, like the others.
            by: who says so.
            reason: why.

        Raises:
            NotPossible: the mode sets the weights by itself, it is paused, or there is no such variant.
        """

        def decide(current: Current) -> Mapping[str, float]:
            if current.paused:
                raise NotPossible("the experiment is paused: resume it first")
            if current.document.mode not in ("split", "canary"):
                raise NotPossible(f"in the mode {current.document.mode} the weights are not set by hand")
            return _with_share(current, variant, share)

        return self._decide(expected, decide, "ramp", by, reason)

    def allocate(
        self,
        current: Current,
        weights: Mapping[str, float],
        action: AllocationAction,
        *,
        by: str,
        reason: str,
        evidence: Any = None,
    ) -> Current:
        """Add an allocation after the one in force; the state then.

        Raises:
            Stale: `current` is not in force any more.
            DatabaseDown: the database did not take it.
        """
        row = _allocated(current.place, weights, action, by=by, reason=reason, evidence=evidence)
        if self.newest() != current.place:
            raise Stale(f"version {current.version} is not what it was any more")
        self._write((allocations, [row]))
        now = self._now()
        if now.version != current.version:
            raise Stale(f"version {now.version} came in between")
        return now

    def audit(self, after: Place, limit: int) -> list[Entry]:
        """The entries of the audit after a place, oldest first, at most `limit`; raises DatabaseDown."""
        entries = _entries()
        later = sa.or_(
            entries.c.version > after.version,
            sa.and_(entries.c.version == after.version, entries.c.number > after.number),
        )
        ordered = sa.select(entries).where(later).order_by(entries.c.version, entries.c.number)
        return [_entry(row) for row in self._read(ordered.limit(limit))]

    def last(self, limit: int) -> list[Entry]:
        """The newest entries, oldest of them first; raises DatabaseDown."""
        entries = _entries()
        ordered = sa.select(entries).order_by(entries.c.version.desc(), entries.c.number.desc())
        return [_entry(row) for row in self._read(ordered.limit(limit))][::-1]

    def _set(
        self, document: Experiment, after: Place | None, action: VersionAction, by: str, reason: str
    ) -> Current:
        try:
            current = self.current()
        except ExperimentError as error:
            # What cannot be read can be replaced all the same.
            log.warning("the experiment in force cannot be read: %s", error)
            current = None
        version = after.version + 1 if after else 1
        alike = current is not None and document.splits_like(current.document)
        series, attempt = self.series_of(document)
        row = {
            "version": version,
            "time": stamp(datetime.now(UTC)),
            "action": action,
            "by": by,
            "reason": reason,
            "series": series or version,
            "attempt": attempt,
            "document": document.model_dump_json(),
        }
        carried: list[tuple[Mapping[str, float], AllocationAction]] = []
        if current and current.allocation and action != "promote":
            moved = self._allocation(current.version, allocations.c.action != "pause")
            if moved and alike:
                carried.append((moved.weights, "carry"))
            if current.paused:
                carried.append((_at_rest(document), "pause"))
            if current.held and document.mode in MOVING:
                carried.append((moved.weights if moved and alike else document.shares, "hold"))
        why = f"as before, in version {version - 1}"
        rows = [
            _allocated(Place(version, number), weights, told, by=by, reason=why)
            for number, (weights, told) in enumerate(carried)
        ]
        self._write((experiments, [row]), (allocations, rows))
        return self._now()

    def _decide(
        self,
        expected: int,
        decide: Callable[[Current], Mapping[str, float]],
        action: AllocationAction,
        by: str,
        reason: str,
    ) -> Current:
        """Add an allocation; a controller that was faster does not hold an operator up."""
        for _ in range(ATTEMPTS):
            current = self._expected(expected)
            try:
                return self.allocate(current, decide(current), action, by=by, reason=reason)
            except Stale:
                continue
        raise Stale("the experiment changes too fast")

    def _expected(self, version: int) -> Current:
        current = self.current()
        if current is None or current.version != version:
            raise Stale(f"version {current.version if current else 0} is in force, not {version}")
        return current

    def _now(self) -> Current:
        current = self.current()
        assert current is not None, "a version was just added"
        return current

    def _allocation(self, version: int, *which: sa.ColumnElement[bool]) -> Allocation | None:
        """The last allocation of a version, or the last of those that are asked for."""
        query = sa.select(allocations).where(allocations.c.experiment_version == version, *which)
        found = self._read(query.order_by(allocations.c.number.desc()).limit(1))
        if not found:
            return None
        row = found[0]
        return Allocation(
            number=row.number,
            step=self._step(version) if row.action in GOING_ON else row.number,
            time=datetime.fromisoformat(row.time),
            action=row.action,
            by=row.by,
            reason=row.reason,
            weights=json.loads(row.weights),
            evidence=json.loads(row.evidence) if row.evidence else None,
        )

    def _step(self, version: int) -> int:
        """The last allocation of a version with which a step began; 0 where it is the document's first."""
        chosen = allocations.c.experiment_version == version, allocations.c.action.not_in(GOING_ON)
        [found] = self._read(sa.select(sa.func.max(allocations.c.number).label("number")).where(*chosen))
        return found.number or 0

    def _read(self, query: sa.Executable) -> Sequence[sa.Row[Any]]:
        return database.read(self._engine, query)

    def _write(self, *rows: tuple[sa.Table, list[dict[str, Any]]]) -> None:
        try:
            with self._engine.begin() as connection:
                for table, each in rows:
                    if each:
                        connection.execute(table.insert(), each)
        except sa.exc.IntegrityError:
            raise Stale("another change came first") from None
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseDown(error) from error


class Following:
    """The experiment as this process knows it, kept up with the database twice a second.

    A request asks `now` once, and keeps to what it got. While the database is away, what is known stays in
    force; where it was away from the beginning, nothing is until it is back.
    """

    def __init__(self, experiments: Experiments, configured: Experiment | None = None) -> None:
        """Nothing is read before it is asked for: a server may fork this process.

        Args:
            experiments: what is followed.
            configured: the configuration file's document, to be taken in.
        """
        self.trouble: str | None = None
        self._experiments = experiments
        self._configured = configured
        self._current: Current | None = None
        self._lock = threading.Lock()
        self._periodic = Periodic("experiment", POLL_SECONDS, self.look)

    def now(self) -> Current:
        """The experiment in force.

        Raises:
            Unavailable: it could not be read yet.
        """
        self._periodic.begin()
        current = self._current
        if current is None:
            reason = f"the experiment could not be read yet: {self.trouble or 'there is none'}"
            raise Unavailable(reason, headers={"Retry-After": "1"})
        return current

    def check(self) -> None:
        """Raise Unavailable, as a check of readiness, where no experiment is in force."""
        self.now()

    def look(self) -> None:
        """Read what is new, now; what goes wrong is said, and does not end what is in force."""
        with self._lock:
            try:
                self._look()
            except DatabaseDown as error:
                self._say("the database cannot be reached", error)
            # A document of a later release, say.
            except Exception as error:
                self._say(str(error), error)
            else:
                self.trouble = None

    def _look(self) -> None:
        if self._configured:
            self._experiments.take_in(self._configured)
            self._configured = None
        newest = self._experiments.newest()
        if newest != (self._current and self._current.place):
            self._current = self._experiments.current()
            if newest:
                log.info("version %d of the experiment is in force, allocation %d", *newest)

    def _say(self, trouble: str, error: Exception) -> None:
        if trouble != self.trouble:
            log.warning("the experiment cannot be followed: %s", error)
        self.trouble = trouble


def promoting(document: Experiment, variant: str) -> Experiment:
    """The document in which a variant is the champion; raises NotPossible where there is no such variant."""
    try:
        return document.promoting(variant)
    except KeyError:
        raise NotPossible(f"the experiment has no variant named {variant[:40]}") from None


def _at_rest(document: Experiment) -> dict[str, float]:
    """The weights while an experiment is paused."""
    return {(document.champion or document.variants[0]).name: 1.0}


def _with_share(current: Current, variant: str | None, share: float) -> dict[str, float]:
    """The weights in force with the share of one changed, and those of the others in proportion."""
    document = current.document
    if variant is None:
        if len(document.challengers) != 1:
            raise NotPossible("there is not one challenger alone: say which variant")
        variant = document.challengers[0].name
    others = [each.name for each in document.variants if each.name != variant]
    if len(others) == len(document.variants):
        raise NotPossible(f"the experiment has no variant named {variant[:40]}")
    if not others and share < 1:
        raise NotPossible("there is no other variant to take the rest")
    # Where the others had nothing yet, as the document begins; where that gives them nothing, all the same.
    for weights in (current.weights, document.shares, dict.fromkeys(others, 1.0)):
        if total := sum(weights[name] for name in others):
            return {variant: share} | {name: (1 - share) * (weights[name] / total) for name in others}
    return {variant: 1.0}


def _allocated(
    after: Place,
    weights: Mapping[str, float],
    action: AllocationAction,
    *,
    by: str,
    reason: str,
    evidence: Any = None,
) -> dict[str, Any]:
    return {
        "experiment_version": after.version,
        "number": after.number + 1,
        "time": stamp(datetime.now(UTC)),
        "action": action,
        "by": by,
        "reason": reason,
        "weights": json.dumps(dict(weights)),
        "evidence": None if evidence is None else json.dumps(evidence),
    }


def _entries() -> sa.Subquery:
    """The audit: versions and allocations in the order in which they came."""
    nothing = sa.cast(sa.null(), sa.Text)

    def selected(table: sa.Table, columns: Iterable[sa.ColumnElement[Any]]) -> sa.Select[Any]:
        return sa.select(*columns, table.c.time, table.c.action, table.c.by, table.c.reason)

    versions = selected(experiments, [experiments.c.version, sa.literal(0).label("number")]).add_columns(
        experiments.c.document, nothing.label("weights"), nothing.label("evidence")
    )
    changes = selected(allocations, [allocations.c.experiment_version, allocations.c.number]).add_columns(
        nothing.label("document"), allocations.c.weights, allocations.c.evidence
    )
    return sa.union_all(versions, changes).subquery()


def _entry(row: sa.Row[Any]) -> Entry:
    document, weights, evidence = (
        None if text is None else json.loads(text) for text in (row.document, row.weights, row.evidence)
    )
    place = Place(row.version, row.number)
    return Entry(place, row.time, row.action, row.by, row.reason, document, weights, evidence)


def _is(stored: str, document: Experiment) -> bool:
    try:
        known = read(json.loads(stored))
    except ExperimentError:
        return False
    # Earlier releases wrote 0 down where the file said nothing: that file has not changed.
    if document.maturity is None and not known.maturity:
        known = known.model_copy(update={"maturity": None})
    return known == document
