"""The verdict on the experiment: the ledger's sums as evidence, the document's rules, and what they say.

Evidence is what was recorded since traffic is split as it is now. Whatever depends on outcomes is of whole
hours that are older than the experiment's maturity. Reading costs as many rows as there are sums: those of
hours, however many requests came in them.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, NamedTuple

import sqlalchemy as sa

from router import database
from router.database import stamp
from router.experiment import Experiment, ExperimentError, read
from router.experiments import Current
from router.fold import TOTAL, Fold
from router.labelling import ALL, GAP_BINS, LIVE
from router.tables import (
    allocations,
    experiments,
    gaps,
    joint_scores,
    labels,
    latencies,
    outcome_scores,
    pairs,
    sums,
)
from runoff.problems import NotFound
from verdict import money
from verdict.decision import judge
from verdict.evidence import (
    Arm,
    Costs,
    Decisions,
    Design,
    Evidence,
    Guardrail,
    Pairs,
    Period,
    Rules,
    gathered,
)
from verdict.moments import Moments
from verdict.results import Verdict

# The cells of the grid of time on which the interval's history is kept: whole hours each.
CELLS = 60
HOUR = 3600.0
METRICS = {"brier": "brier", "log-loss": "log_loss", "profit": "profit"}

# Verdicts that are kept for who asks again, by what they are on.
KEPT = 8

# A version of the document, and an allocation in it: constant weights.
Place = tuple[int, int]
Weights = Mapping[Place, Mapping[str, float]]


class Scope(NamedTuple):
    """What counts: of which experiment and versions, of which tag, and what outcomes have matured."""

    experiment: str
    versions: tuple[int, int]
    # None: all; "": real traffic.
    tag: str | None
    # Outcomes count of what was asked before this hour.
    matured: str
    # The only one of its version's; None: all.
    allocation: int | None = None

    def of(self, table: sa.Table) -> sa.ColumnElement[bool]:
        """The sums by hours that count."""
        chosen = [
            table.c.experiment == self.experiment,
            table.c.hour > TOTAL,
            table.c.experiment_version.between(*self.versions),
        ]
        if self.tag is not None:
            chosen.append(table.c.tag == self.tag)
        if self.allocation is not None:
            chosen.append(table.c.allocation == self.allocation)
        return sa.and_(*chosen)

    def matured_of(self, table: sa.Table) -> sa.ColumnElement[bool]:
        """Those whose outcomes count."""
        return sa.and_(self.of(table), table.c.hour < self.matured)


@dataclass(frozen=True)
class Roles:
    """Who is compared with whom, and by which kind of answers."""

    design: Design
    champion: str
    challengers: tuple[str, ...]
    # Of the challengers' answers.
    kind: str

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.champion, *self.challengers)

    def kind_of(self, variant: str) -> str:
        """Of a variant's answers."""
        return LIVE if variant == self.champion else self.kind

    def has(self, variant: str, kind: str) -> bool:
        """Whether answers of this kind are of one of those that are compared."""
        return variant in self.variants and kind == self.kind_of(variant)


def roles(document: Experiment, replay: str | None = None) -> Roles:
    """Who is compared in an experiment; with a replay, the champion with that."""
    champion = (document.champion or document.variants[0]).name
    if replay is not None:
        return Roles("shadow", champion, (replay,), "replay")
    others = tuple(each.name for each in document.variants if each.name != champion)
    if document.mode == "shadow":
        return Roles("shadow", champion, others, "shadow")
    return Roles("bandit" if document.mode == "bandit" else "split", champion, others, LIVE)


def rules(document: Experiment) -> Rules:
    """What an experiment's document declares, as the verdict takes it."""
    declared = document.decision
    return Rules(
        alpha=declared.alpha,
        metric=declared.metric,
        margin=declared.margin,
        n_star=declared.planned_outcomes,
        maturity=document.maturity.total_seconds(),
        costs=_costs(document),
        thresholds={each.name: declared.threshold(each.name) for each in document.variants},
        guardrails=tuple(Guardrail(each.name, each.metric, each.margin) for each in document.guardrails),
        segments=tuple(each.column for each in declared.segments),
        sensitive=tuple(each.column for each in declared.sensitive),
        selective=declared.selective,
        max_gap=declared.max_gap,
    )


@dataclass(frozen=True)
class Question:
    """Of what evidence is asked, and what it takes to tell."""

    scope: Scope
    who: Roles
    weights: Weights
    document: Experiment
    # Evidence of this design and these variants in which nothing is counted.
    empty: Evidence


class Verdicts:
    """Reads the evidence, and judges it."""

    def __init__(self, engine: sa.Engine, fold: Fold) -> None:
        self._engine = engine
        self._fold = fold
        self._kept: dict[tuple[Any, ...], tuple[Verdict, Evidence]] = {}

    def verdict(
        self, current: Current, tag: str | None, *, replay: str | None = None, now: datetime | None = None
    ) -> tuple[Verdict, Evidence]:
        """The verdict now, and what it is made from; as long as nothing is new in an hour, the same one.

        Args:
            current: the experiment in force.
            tag: only traffic of this tag; "real" is the traffic without one. None counts all.
            replay: the name of a replay set, which is then compared with the champion.
            now: of which outcomes have matured; by default the time.

        Raises:
            NotFound: there is no such replay set.
            DatabaseDown: the database cannot be read.
        """
        now = now or datetime.now(UTC)
        hours = [stamp(each)[:13] for each in (now, now - current.document.maturity)]
        asked = (current.place, tag, replay, *hours, self._fold.state())
        found = self._kept.get(asked)
        if found is None:
            evidence = self.evidence(current, tag, replay=replay, now=now)
            found = judge(evidence, rules(current.document)), evidence
            # Several threads may be here: what another one took out is not missed.
            for oldest in [*self._kept][: 1 - KEPT]:
                self._kept.pop(oldest, None)
            self._kept[asked] = found
        return found

    def evidence(
        self,
        current: Current,
        tag: str | None,
        *,
        replay: str | None = None,
        step: Place | None = None,
        now: datetime | None = None,
    ) -> Evidence:
        """What was recorded since traffic is split as it is now.

        The arguments are those of `verdict`; and `step`, a version and an allocation, of which alone it is.
        """
        self._fold.catch_up()
        document = current.document
        now = now or datetime.now(UTC)
        maturity = document.maturity
        # Without a maturity the hour that is not over counts, too.
        matured = stamp(now - maturity if maturity else now + timedelta(hours=1))[:13]
        versions = (step[0], step[0]) if step else (current.series, current.version)
        only = step[1] if step else None
        scope = Scope(document.name, versions, "" if tag == "real" else tag, matured, only)
        who = roles(document, replay)
        weights = self._weights(scope.versions)
        empty = Evidence(who.design, who.champion, who.challengers, pairs={} if _paired(who) else None)
        question = Question(scope, who, weights, document, empty)
        cells = self._cells(question, now)
        if replay is not None and not any(cell.pair(replay).labelled for cell in cells.values()):
            raise NotFound(
                f"there is no replay {replay[:40]} of what the champion answered and that is known"
            )
        whole = gathered(empty, cells) if cells else empty
        return whole + replace(
            empty,
            arms=self._histograms(scope, who),
            pairs=self._joint(scope, who) if _paired(who) else None,
            segments=self._segments(question),
        )

    def _weights(self, versions: tuple[int, int]) -> Weights:
        """The shares in force, by version and allocation; paused ones say nothing."""
        found: dict[Place, Mapping[str, float]] = {}
        chosen = sa.select(experiments.c.version, experiments.c.document)
        for row in self._read(chosen.where(experiments.c.version.between(*versions))):
            try:
                found[row.version, 0] = read(json.loads(row.document)).shares
            except ExperimentError:
                continue
        moved = sa.select(allocations.c.experiment_version, allocations.c.number, allocations.c.weights)
        for version, number, told in map(
            tuple, self._read(moved.where(allocations.c.experiment_version.between(*versions)))
        ):
            weights: dict[str, float] = json.loads(told)
            total = sum(weights.values())
            found[version, number] = {name: weight / total for name, weight in weights.items()}
        return found

    def _cells(self, question: Question, now: datetime) -> dict[float, Evidence]:
        """All that is counted by hours, in cells of so many hours that there are few."""
        scope, who, empty = question.scope, question.who, question.empty
        asked = self._sums(sums, scope.of(sums), ASKED)
        known = self._sums(labels, sa.and_(scope.matured_of(labels), labels.c.segment == ALL), LABELS)
        both = self._sums(pairs, sa.and_(scope.matured_of(pairs), pairs.c.segment == ALL), PAIRS, ("beside",))
        hours = sorted({row.hour for rows in (asked, known, both) for row in rows})
        if not hours:
            return {}
        begin = _begin(hours[0])
        width = math.ceil((_begin(hours[-1]) + HOUR - begin) / HOUR / CELLS) * HOUR
        parts: dict[float, list[Evidence]] = defaultdict(list)

        def cell(hour: str) -> tuple[float, bool]:
            """When the cell of an hour ends, and whether what was asked in that has matured."""
            return begin + (math.floor((_begin(hour) - begin) / width) + 1) * width, hour < scope.matured

        def put(row: Any, part: Evidence) -> None:
            first, last = _begin(row.hour), min(_begin(row.last) + HOUR, now.timestamp())
            end = min(cell(row.hour)[0], max(now.timestamp(), first))
            parts[end].append(replace(part, first=first, last=last))

        for row in _summed(asked, ASKED, cell):
            if who.has(row.variant, row.kind):
                put(row, _of_asked(row, question))
        for row in _summed(known, LABELS, cell):
            if who.has(row.variant, row.kind):
                put(row, _of_known(row, question))
        for row in _summed(both, PAIRS, cell):
            if row.variant == who.champion and row.kind == who.kind and row.beside in who.challengers:
                put(row, replace(empty, pairs={row.beside: _of_pairs(row, question.document)}))
        return {time: sum(found[1:], found[0]) for time, found in sorted(parts.items())}

    def _segments(self, question: Question) -> dict[tuple[str, str], Evidence]:
        """The declared parts of the traffic, over all hours."""
        scope, who, empty = question.scope, question.who, question.empty
        decision = question.document.decision
        declared = {each.column for each in (*decision.segments, *decision.sensitive)}
        found: dict[tuple[str, str], Evidence] = {}
        if not declared:
            return found

        def put(segment: str, part: Evidence) -> None:
            column, _, value = segment.partition("=")
            if column in declared:
                found[column, value] = found.get((column, value), empty) + part

        some = sa.and_(scope.matured_of(labels), labels.c.segment != ALL)
        for row in self._sums(labels, some, LABELS, ("segment",)):
            if who.has(row.variant, row.kind):
                put(row.segment, _of_known(row, question))
        some = sa.and_(scope.matured_of(pairs), pairs.c.segment != ALL)
        for row in self._sums(pairs, some, PAIRS, ("beside", "segment")):
            if row.variant == who.champion and row.kind == who.kind and row.beside in who.challengers:
                put(row.segment, replace(empty, pairs={row.beside: _of_pairs(row, question.document)}))
        return found

    def _histograms(self, scope: Scope, who: Roles) -> dict[str, Arm]:
        """Latencies, and scores by outcome, over all hours."""
        found: dict[str, Arm] = {name: Arm() for name in who.variants}
        took = _counted(latencies, scope.of(latencies), ("variant", "kind", "bin"), "requests")
        for variant, kind, bin_, count in map(tuple, self._read(took)):
            if who.has(variant, kind):
                found[variant] += Arm(latencies={bin_: int(count)})
        told = _counted(
            outcome_scores,
            scope.matured_of(outcome_scores),
            ("variant", "kind", "outcome", "bin"),
            "labelled",
        )
        for variant, kind, outcome, bin_, count in map(tuple, self._read(told)):
            if who.has(variant, kind):
                which = "positive_scores" if outcome else "negative_scores"
                found[variant] += Arm(**{which: {bin_: int(count)}})  # type: ignore[arg-type]
        return found

    def _joint(self, scope: Scope, who: Roles) -> dict[str, Pairs]:
        """How far scores of a row are apart, and how they go together, over all hours."""
        found: dict[str, Pairs] = {name: Pairs() for name in who.challengers}
        key = ("variant", "kind", "beside")
        apart = _counted(gaps, scope.matured_of(gaps), (*key, "bin"), "pairs")
        for variant, kind, beside, bin_, count in map(tuple, self._read(apart)):
            if variant == who.champion and kind == who.kind and beside in found and count:
                found[beside] += Pairs(max_gap=(bin_ + 1) / GAP_BINS)
        together = _counted(
            joint_scores,
            scope.matured_of(joint_scores),
            (*key, "bin", "other_bin", "outcome"),
            "pairs",
        )
        for variant, kind, beside, bin_, other, outcome, count in map(tuple, self._read(together)):
            if variant == who.champion and kind == who.kind and beside in found:
                found[beside] += Pairs(joint={(bin_, other, outcome): int(count)})
        return found

    def _sums(
        self, table: sa.Table, where: sa.ColumnElement[bool], added: Sequence[str], more: Sequence[str] = ()
    ) -> Sequence[sa.Row[Any]]:
        """Sums by hour, weights and variant."""
        names = ("hour", "experiment_version", "allocation", "variant", "kind", *more)
        key = [table.c[name] for name in names]
        total = [sa.func.sum(table.c[name]).label(name) for name in added]
        return self._read(sa.select(*key, *total).where(where).group_by(*key))

    def _read(self, query: sa.Executable) -> Sequence[sa.Row[Any]]:
        return database.read(self._engine, query)


ASKED = ("requests", "answered", "failed", "saved")
LABELS = (
    *("labelled", "positives", "tp", "fp", "tn", "fn"),
    *("brier", "brier2", "log_loss", "log_loss2", "residual", "residual2"),
)
PAIRS = (
    *("pairs", "brier", "brier2", "log_loss", "log_loss2"),
    *("live_only_1", "live_only_0", "other_only_1", "other_only_0"),
)


def _summed(
    rows: Iterable[sa.Row[Any]], added: Sequence[str], cell: Callable[[str], Any]
) -> Iterable[SimpleNamespace]:
    """Sums by hour that are of the same cell and key as one, of the hours from `hour` to `last`.

    To add numbers costs a small part of what it costs to add evidence.
    """
    found: dict[Any, SimpleNamespace] = {}
    for row in rows:
        told = row._asdict()
        key = (cell(row.hour), *(value for name, value in told.items() if name not in {"hour", *added}))
        mine = found.get(key)
        if mine is None:
            found[key] = SimpleNamespace(**told, last=row.hour)
        else:
            for name in added:
                setattr(mine, name, getattr(mine, name) + told[name])
            mine.hour, mine.last = min(mine.hour, row.hour), max(mine.last, row.hour)
    return found.values()


def _of_asked(row: Any, question: Question) -> Evidence:
    """What requests say, whatever their outcomes."""
    scope, who, empty = question.scope, question.who, question.empty
    requests, errors = int(row.requests), int(row.failed) + int(row.saved)
    answered = int(row.answered) - int(row.saved)
    arm = Arm(requests=requests, errors=errors, mature=answered if row.hour < scope.matured else 0)
    place = (row.experiment_version, row.allocation)
    found = replace(empty, arms={row.variant: arm})
    if who.design == "shadow":
        if row.variant != who.champion and row.hour < scope.matured:
            found = replace(found, pairs={row.variant: Pairs(mature=answered)})
        return found
    if place in question.weights:
        period = Period(question.weights[place], {row.variant: requests}, errors={row.variant: errors})
        found = replace(found, periods=(period,))
    return found


def _of_known(row: Any, question: Question) -> Evidence:
    """What outcomes say of a variant."""
    n = int(row.labelled)
    decisions = Decisions(
        n, int(row.tp + row.fp), *(int(getattr(row, each)) for each in ("tp", "fp", "tn", "fn"))
    )
    costs, who = _costs(question.document), question.who
    moments = {
        "brier": Moments(n, row.brier, row.brier2),
        "log-loss": Moments(n, row.log_loss, row.log_loss2),
    }
    if costs:
        moments["profit"] = money.moments(costs, decisions)
    shares = question.weights.get((row.experiment_version, row.allocation), {})
    # Where one of them had no chance at all, there is nothing to compare.
    chances = who.design != "shadow" and all(shares.get(each, 0.0) > 0 for each in who.variants)
    arm = Arm(
        labelled=n,
        positives=int(row.positives),
        brier=moments["brier"],
        log_loss=moments["log-loss"],
        calibration=Moments(n, row.residual, row.residual2),
        profit=moments.get("profit"),
        decisions=decisions,
        weighted={name: each.weighted(shares[row.variant]) for name, each in moments.items()}
        if chances
        else {},
    )
    found = replace(question.empty, arms={row.variant: arm})
    if who.design != "shadow" and shares:
        found = replace(found, periods=(Period(shares, labels={row.variant: n}),))
    return found


def _of_pairs(row: Any, document: Experiment) -> Pairs:
    """What outcomes say of the champion beside another one."""
    n = int(row.pairs)
    costs = _costs(document)
    # By the champion's decision, the other's, and the outcome; where they agree it makes no difference.
    counts = {
        (True, False, 1): int(row.live_only_1),
        (True, False, 0): int(row.live_only_0),
        (False, True, 1): int(row.other_only_1),
        (False, True, 0): int(row.other_only_0),
    }
    agreed = {(True, True, 1): n - sum(counts.values())}
    return Pairs(
        labelled=n,
        brier=Moments(n, row.brier, row.brier2),
        log_loss=Moments(n, row.log_loss, row.log_loss2),
        profit=money.paired(costs, counts | agreed) if costs else None,
    )


def _counted(
    table: sa.Table, where: sa.ColumnElement[bool], key: Sequence[str], counts: str
) -> sa.Select[Any]:
    columns: Iterable[sa.Column[Any]] = [table.c[name] for name in key]
    return sa.select(*columns, sa.func.sum(table.c[counts])).where(where).group_by(*columns)


def _costs(document: Experiment) -> Costs | None:
    declared = document.decision.costs
    return Costs(**declared.model_dump()) if declared else None


def _paired(who: Roles) -> bool:
    return who.design == "shadow"


def _begin(hour: str) -> float:
    """When an hour began, in seconds since 1970."""
    return datetime.fromisoformat(f"{hour}:00:00+00:00").timestamp()
