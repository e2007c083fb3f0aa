"""The verdict on the experiment: the ledger's sums as evidence, the document's rules, and what they say.

Evidence is what was recorded in one phase, that in force unless somebody asks for another one
(`router/phases.py`). Whatever depends on outcomes is of whole hours that are older than the experiment's
maturity. Reading costs as many rows as there are sums: those of hours, however many requests came in them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, NamedTuple

import sqlalchemy as sa

from router import database
from router.database import stamp
from router.experiment import Decision, Experiment, ExperimentError, read
from router.experiments import Current, Experiments
from router.fold import TOTAL, Fold
from router.labelling import ALL
from router.phases import Phase
from router.tables import (
    allocations,
    experiments,
    gaps,
    joint_scores,
    labels,
    latencies,
    outcome_scores,
    pairs,
    repeats,
    scores,
    sums,
)
from runoff.problems import NotFound
from verdict import money
from verdict.bandit import tilt
from verdict.decision import judge
from verdict.declared import LIVE, Declared, Place, Roles, Terms
from verdict.evidence import (
    GAP_BINS,
    SCORE_BINS,
    TENTHS,
    Arm,
    Costs,
    Decisions,
    Evidence,
    Grid,
    Guardrail,
    Pairs,
    Part,
    Period,
    Rules,
    in_cells,
)
from verdict.moments import ClusteredMoments, Moments, Swings, WeightedMoments
from verdict.results import Verdict
from verdict.segments import parts

# Verdicts that are kept for who asks again, by what they are on.
KEPT = 8
# The phase of rows that are still to come.
NOTHING_YET = -1


class Scope(NamedTuple):
    """What counts: of which experiment and phase, of which tag, and what outcomes have matured."""

    experiment: str
    phase: int
    # None: all; "": real traffic.
    tag: str | None
    # Outcomes count of what was asked before this hour.
    matured: str
    # The version that counts, and the first allocation in it; None: all of the phase.
    step: Place | None = None

    def of(self, table: sa.Table) -> sa.ColumnElement[bool]:
        """The sums by hours that count."""
        chosen = [
            table.c.experiment == self.experiment,
            table.c.hour > TOTAL,
            table.c.phase == self.phase,
        ]
        if self.step is not None:
            version, allocation = self.step
            chosen += [table.c.experiment_version == version, table.c.allocation >= allocation]
        if self.tag is not None:
            chosen.append(table.c.tag == self.tag)
        return sa.and_(*chosen)

    def matured_of(self, table: sa.Table) -> sa.ColumnElement[bool]:
        """Those whose outcomes count."""
        return sa.and_(self.of(table), table.c.hour < self.matured)


def roles(document: Experiment, replay: str | None = None) -> Roles:
    """Who is compared in an experiment; with a replay, the champion with that."""
    champion = (document.champion or document.variants[0]).name
    if replay is not None:
        return Roles("shadow", champion, (replay,), "replay")
    others = tuple(each.name for each in document.variants if each.name != champion)
    if document.mode == "shadow":
        return Roles("shadow", champion, others, "shadow")
    return Roles("bandit" if document.mode == "bandit" else "split", champion, others, LIVE)


def rules(document: Experiment, attempt: int = 1, replays: int = 0, same: tuple[str, ...] = ()) -> Rules:
    """What an experiment's document declares, as the verdict takes it.

    Args:
        document: of the experiment.
        attempt: the how many-th rules these are for the same split. Each has half of the risk of the one
            before, so that all of them together have less than twice that of the first.
        replays: how many replay sets share the risk; 0 where no replay is judged.
        same: the challengers that are the same model as the champion.
    """
    declared = document.decision
    return Rules(
        alpha=declared.alpha / 2 ** (attempt - 1) / max(replays, 1),
        attempt=attempt,
        replays=replays,
        same=same,
        metric=declared.metric,
        margin=declared.margin,
        n_star=declared.planned_outcomes,
        maturity=None if document.maturity is None else document.maturity.total_seconds(),
        costs=_costs(document),
        thresholds={each.name: declared.threshold(each.name) for each in document.variants},
        guardrails=tuple(Guardrail(each.name, each.metric, each.margin) for each in document.guardrails),
        segments=tuple(each.column for each in declared.segments),
        sensitive=tuple(each.column for each in declared.sensitive),
        parts=_cut(declared),
        weighting=declared.weighting,
        selective=declared.selective,
        max_gap=declared.max_gap,
        spread=declared.spread,
    )


@dataclass(frozen=True)
class Question:
    """Of what evidence is asked, and what it takes to tell."""

    scope: Scope
    declared: Declared
    # Whether there are clusters of more than one row: rows then do not count by themselves.
    by_unit: bool = False

    @property
    def who(self) -> Roles:
        return self.declared.who


class Verdicts:
    """Reads the evidence, and judges it."""

    def __init__(self, engine: sa.Engine, fold: Fold) -> None:
        self._engine = engine
        self._fold = fold
        self._experiments = Experiments(engine)
        self._kept: dict[tuple[Any, ...], tuple[Verdict, Evidence]] = {}

    def of_phase(self, number: int) -> tuple[Current, Phase]:
        """A phase, and the experiment as it was in it.

        Raises:
            NotFound: there is no such phase.
            DatabaseDown: the database cannot be read.
            ExperimentError: this release cannot read the document.
        """
        self._fold.catch_up()
        phase = next((each for each in self._fold.phases.all() if each.number == number), None)
        current = self._experiments.of_series(phase.series) if phase else None
        if phase is None or current is None:
            raise NotFound(f"there is no phase {number}: GET /v1/phases lists those that there are")
        return current, phase

    def in_force(self, current: Current) -> Phase | None:
        """The phase that is in force; None as long as nothing was recorded in it. Raises DatabaseDown."""
        self._fold.catch_up()
        return self._fold.phases.of_series(current.series)

    def rules(self, current: Current, phase: Phase | None, replay: str | None = None) -> Rules:
        """By what a phase of an experiment is judged; the arguments are those of `evidence`."""
        who = roles(current.document, replay)
        models = phase.models if phase else {}
        digests = {name: models[name].digest for name in who.variants if name in models}
        mine = digests.get(who.champion)
        same = tuple(each for each in who.challengers if mine and digests.get(each) == mine)
        sets = 0
        if replay is not None:
            names = sa.select(pairs.c.beside).where(
                *(
                    pairs.c.experiment == current.document.name,
                    pairs.c.hour == TOTAL,
                    pairs.c.kind == who.kind,
                )
            )
            sets = len(self._read(names.distinct()))
        return rules(current.document, current.attempt, sets, same)

    def verdict(
        self,
        current: Current,
        tag: str | None,
        *,
        replay: str | None = None,
        phase: Phase | None = None,
        now: datetime | None = None,
    ) -> tuple[Verdict, Evidence]:
        """The verdict now, and what it is made from; as long as nothing is new in an hour, the same one.

        Args:
            current: the experiment in force.
            tag: only traffic of this tag; "real" is the traffic without one. None counts all.
            replay: the name of a replay set, which is then compared with the champion.
            phase: whose evidence counts, with the experiment as it was in it; None: the one in force.
            now: of which outcomes have matured; by default the time.

        Raises:
            NotFound: there is no such replay set.
            DatabaseDown: the database cannot be read.
        """
        now = now or datetime.now(UTC)
        hours = [stamp(each)[:13] for each in (now, now - current.document.matures_after)]
        phase = phase or self.in_force(current)
        asked = (current.place, phase and phase.number, tag, replay, *hours, self._fold.state())
        found = self._kept.get(asked)
        if found is None:
            evidence = self.evidence(current, tag, replay=replay, phase=phase, now=now)
            found = judge(evidence, self.rules(current, phase, replay)), evidence
            # Several threads may be here: what another one took out is not missed.
            for oldest in [*self._kept][: 1 - KEPT]:
                self._kept.pop(oldest, None)
            self._kept[asked] = found
        return found

    def declared(
        self,
        current: Current,
        *,
        replay: str | None = None,
        phase: Phase | None = None,
        step: Place | None = None,
    ) -> Declared:
        """What was declared of the rows that count; the arguments are those of `evidence`.

        Raises:
            DatabaseDown: the database cannot be read.
        """
        phase = phase or self.in_force(current)
        which = experiments.c.version == step[0] if step else experiments.c.series == current.series
        who = roles(current.document, replay)
        decisions: dict[int, Decision] = {}
        found: dict[Place, Terms] = {}

        def put(place: Place, weights: Mapping[str, float]) -> None:
            decision = decisions.get(place[0], Decision())
            found[place] = Terms(
                *place,
                weights,
                {name: decision.threshold(name) for name in who.variants},
                tuple((each.column, each.cuts) for each in (*decision.segments, *decision.sensitive)),
                tilt(decision.weighting, weights.values()) if who.chances(weights) else 1.0,
            )

        for row in self._read(sa.select(experiments.c.version, experiments.c.document).where(which)):
            try:
                document = read(json.loads(row.document))
            except ExperimentError:
                continue
            decisions[row.version] = document.decision
            put((row.version, 0), document.shares)
        moved = sa.select(allocations.c.experiment_version, allocations.c.number, allocations.c.weights)
        its = sa.select(experiments.c.version).where(which)
        for version, number, told in map(
            tuple, self._read(moved.where(allocations.c.experiment_version.in_(its)))
        ):
            weights: dict[str, float] = json.loads(told)
            total = sum(weights.values())
            put((version, number), {name: weight / total for name, weight in weights.items()})
        return Declared(
            *(current.document.name, phase.number if phase else NOTHING_YET, who),
            *(self.rules(current, phase, replay), tuple(found.values())),
        )

    def evidence(
        self,
        current: Current,
        tag: str | None,
        *,
        replay: str | None = None,
        phase: Phase | None = None,
        step: Place | None = None,
        now: datetime | None = None,
    ) -> Evidence:
        """What was recorded in a phase.

        The arguments are those of `verdict`; and `step`, a version and the allocation from which on it is.

        Raises:
            NotFound: there is no such replay set.
            DatabaseDown: the database cannot be read.
        """
        self._fold.catch_up()
        document = current.document
        now = now or datetime.now(UTC)
        maturity = document.matures_after
        # Without a maturity the hour that is not over counts, too.
        matured = stamp(now - maturity if maturity else now + timedelta(hours=1))[:13]
        declared = self.declared(current, replay=replay, phase=phase, step=step)
        scope = Scope(document.name, declared.phase, "" if tag == "real" else tag, matured, step)
        who = declared.who
        some = sa.and_(scope.matured_of(repeats), _compared(who, repeats), repeats.c.segment == ALL)
        by_unit = bool(self._read(sa.select(sa.literal(1)).where(some).limit(1)))
        question = Question(scope, declared, by_unit)
        whole = in_cells(who.nothing, list(self._parts(question)), now.timestamp())
        if replay is not None and not whole.pair(replay).labelled:
            raise NotFound(
                f"there is no replay {replay[:40]} of what the champion answered and that is known"
            )
        return whole + replace(
            who.nothing,
            arms=self._histograms(scope, who),
            pairs=self._joint(scope, who) if who.design == "shadow" else None,
            periods=self._by_score(question) if who.design != "shadow" else (),
            segments=self._segments(question),
        )

    def _parts(self, question: Question) -> Iterator[Part]:
        """All that is counted by hours, those of a cell together."""
        scope, who = question.scope, question.who
        asked = self._sums(sums, scope.of(sums), ASKED)
        known = self._sums(labels, sa.and_(scope.matured_of(labels), labels.c.segment == ALL), LABELS)
        both = self._sums(pairs, sa.and_(scope.matured_of(pairs), pairs.c.segment == ALL), PAIRS, ("beside",))
        hours = {row.hour for rows in (asked, known, both) for row in rows}
        if not hours:
            return
        grid = Grid.over([_begin(hour) for hour in hours])
        # What was asked in an hour has matured or not.
        cells = {hour: (grid.end(_begin(hour)), hour < scope.matured) for hour in hours}
        for row in _summed(asked, ASKED, cells):
            if who.has(row.variant, row.kind):
                yield _begin(row.hour), _begin(row.last), _of_asked(row, question)
        for row in _summed(known, LABELS, cells):
            if who.has(row.variant, row.kind):
                yield _begin(row.hour), _begin(row.last), _of_known(row, question)
        for row in _summed(both, PAIRS, cells):
            if row.variant == who.champion and row.kind == who.kind and row.beside in who.challengers:
                yield _begin(row.hour), _begin(row.last), _of_pairs(row, question)
        if question.by_unit:
            for row in _summed(self._repeats(question, ALL), REPEATS, cells):
                yield _begin(row.hour), _begin(row.last), _of_repeats(row, question)

    def _segments(self, question: Question) -> dict[tuple[str, str], Evidence]:
        """The declared parts of the traffic, over all hours."""
        scope, who, empty = question.scope, question.who, question.who.nothing
        declared = {*question.declared.rules.segments, *question.declared.rules.sensitive}
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
                put(row.segment, _of_pairs(row, question))
        if question.by_unit:
            for row in self._repeats(question):
                put(row.segment, _of_repeats(row, question))
        return found

    def _repeats(self, question: Question, segment: str | None = None) -> Sequence[sa.Row[Any]]:
        """Sums over clusters of more than one row, of a segment or of all but ALL."""
        which = repeats.c.segment != ALL if segment is None else repeats.c.segment == segment
        some = sa.and_(question.scope.matured_of(repeats), _compared(question.who, repeats), which)
        return self._sums(repeats, some, REPEATS, ("beside", "segment"))

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

    def _by_score(self, question: Question) -> tuple[Period, ...]:
        """How many served rows each variant scored alike, and of how many of these the outcome is known."""
        who, found = question.who, list[Period]()
        for table, which in ((scores, "scores"), (outcome_scores, "score_labels")):
            tenth = (table.c.bin // (SCORE_BINS // TENTHS)).label("tenth")
            key = (table.c.experiment_version, table.c.allocation, table.c.variant, table.c.kind, tenth)
            chosen = sa.select(*key, sa.func.sum(table.c.assigned))
            for version, allocation, variant, kind, of, count in map(
                tuple, self._read(chosen.where(question.scope.matured_of(table)).group_by(*key))
            ):
                weights = question.declared.at((version, allocation)).weights
                if who.has(variant, kind) and weights:
                    # A score of exactly 1 is of the last one.
                    place = variant, min(int(of), TENTHS - 1)
                    found.append(Period(weights, **{which: {place: int(count)}}))  # type: ignore[arg-type]
        return tuple(found)

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


APART = ("apart", "apart_failed", "together")
ASKED = ("requests", "answered", "refused", "failed", "saved", "assigned", "served", *APART)
SWINGS = {
    score: tuple(f"{score}_swing{power}_{outcome}" for outcome in (0, 1) for power in (2, 3))
    for score in ("brier", "log_loss")
}
LABELS = (
    *("labelled", "positives", "tp", "fp", "tn", "fn"),
    *("assigned", "assigned_positives", "late", "late_positives"),
    *("brier", "brier2", "log_loss", "log_loss2", "residual", "residual2"),
    *(name for names in SWINGS.values() for name in names),
)
PAIRS = (
    *("pairs", "brier", "brier2", "log_loss", "log_loss2"),
    *("live_only_1", "live_only_0", "other_only_1", "other_only_0", "assigned", "assigned_positives"),
    *(name for names in SWINGS.values() for name in names),
)


REPEATS = tuple(column.name for column in repeats.columns if not column.primary_key)


def _compared(who: Roles, table: sa.Table) -> sa.ColumnElement[bool]:
    """The sums over clusters of those who are compared: of pairs, or of live answers."""
    beside = table.c.beside.in_(who.challengers) if who.design == "shadow" else table.c.beside == ""
    names = (who.champion,) if who.design == "shadow" else who.variants
    return sa.and_(beside, table.c.variant.in_(names), table.c.kind == who.kind)


def _summed(
    rows: Iterable[sa.Row[Any]], added: Sequence[str], cells: Mapping[str, Any]
) -> Iterable[SimpleNamespace]:
    """Sums by hour that are of the same cell and key as one, of the hours from `hour` to `last`.

    To add numbers costs a small part of what it costs to add evidence.
    """
    found: dict[Any, SimpleNamespace] = {}
    for row in rows:
        told = row._asdict()
        key = (cells[row.hour], *(value for name, value in told.items() if name not in {"hour", *added}))
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
    scope, who, empty = question.scope, question.who, question.who.nothing
    requests, answered = int(row.requests), int(row.answered) - int(row.saved)
    errors, missed = requests - answered, int(row.assigned) - int(row.served)
    mature = row.hour < scope.matured
    apart, apart_failed, together = (int(getattr(row, name)) for name in APART)
    arm = Arm(requests, errors, apart, apart_failed, together, answered if mature else 0)
    weights = question.declared.at((row.experiment_version, row.allocation)).weights
    found = replace(empty, arms={row.variant: arm})
    if who.design == "shadow":
        if row.variant != who.champion:
            pairs_ = Pairs(mature=answered if mature else 0, asked=int(row.assigned), missed=missed)
            found = replace(found, pairs={row.variant: pairs_})
        return found
    if weights:
        period = Period(
            weights,
            requests={row.variant: requests},
            assigned={row.variant: int(row.assigned)},
            served={row.variant: int(row.served) if mature else 0},
            apart={row.variant: apart},
            apart_failed={row.variant: apart_failed},
            together={row.variant: together},
            missed={row.variant: missed},
        )
        found = replace(found, periods=(period,))
    return found


def _of_known(row: Any, question: Question) -> Evidence:
    """What outcomes say of a variant."""
    n = int(row.labelled)
    decisions = Decisions(*(int(getattr(row, each)) for each in ("tp", "fp", "tn", "fn")))
    costs, who = question.declared.rules.costs, question.who
    moments = _losses(row, n)
    if costs:
        moments["profit"] = money.moments(costs, decisions)
    terms = question.declared.at((row.experiment_version, row.allocation))
    shares = terms.weights
    positives = int(row.positives)
    residual = Moments(n, row.residual, row.residual2, Swings.alike(n - positives, positives))
    apart = {**moments, "calibration": residual} if question.by_unit and who.design != "shadow" else {}
    arm = Arm(
        labelled=n,
        positives=positives,
        brier=moments["brier"],
        log_loss=moments["log-loss"],
        calibration=residual,
        profit=moments.get("profit"),
        decisions=decisions,
        weighted={name: each.weighted(shares[row.variant], terms.tilt) for name, each in moments.items()}
        if who.chances(shares)
        else {},
        by_unit={name: ClusteredMoments.apart(each) for name, each in apart.items()},
        assigned_labels=int(row.assigned),
        assigned_positives=int(row.assigned_positives),
        late=int(row.late),
        late_positives=int(row.late_positives),
    )
    found = replace(who.nothing, arms={row.variant: arm})
    if who.design != "shadow" and shares:
        found = replace(found, periods=(Period(shares, labels={row.variant: int(row.assigned)}),))
    return found


def _losses(row: Any, n: int) -> dict[str, Moments]:
    """Of the losses of n rows, or of their differences in pairs, the sums by metric."""
    swings = {score: Swings(*(getattr(row, each) for each in names)) for score, names in SWINGS.items()}
    return {
        "brier": Moments(n, row.brier, row.brier2, swings["brier"]),
        "log-loss": Moments(n, row.log_loss, row.log_loss2, swings["log_loss"]),
    }


def _of_pairs(row: Any, question: Question) -> Evidence:
    """What outcomes say of the champion beside another one."""
    n, costs = int(row.pairs), question.declared.rules.costs
    # By the champion's decision, the other's, and the outcome; where they agree it makes no difference.
    counts = {
        (True, False, 1): int(row.live_only_1),
        (True, False, 0): int(row.live_only_0),
        (False, True, 1): int(row.other_only_1),
        (False, True, 0): int(row.other_only_0),
    }
    agreed = {(True, True, 1): n - sum(counts.values())}
    moments = _losses(row, n)
    if costs:
        moments["profit"] = money.paired(costs, counts | agreed)
    pairs_ = Pairs(
        labelled=n,
        brier=moments["brier"],
        log_loss=moments["log-loss"],
        profit=moments.get("profit"),
        by_unit={name: ClusteredMoments.apart(each) for name, each in moments.items()}
        if question.by_unit
        else {},
        assigned=int(row.assigned),
        assigned_positives=int(row.assigned_positives),
    )
    return replace(question.who.nothing, pairs={row.beside: pairs_})


def _of_repeats(row: Any, question: Question) -> Evidence:
    """What the rows of clusters add together."""
    who, both = question.who, (int(row.repeats), int(row.twins))
    scores = {"brier": "brier", "log-loss": "log_loss"}
    if question.declared.rules.costs:
        scores["profit"] = "profit"

    def told(*names: str) -> list[float]:
        return [getattr(row, name) for name in names]

    by_unit = {
        metric: ClusteredMoments.repeated(*both, *told(f"{score}_cross", f"{score}_product"))
        for metric, score in scores.items()
    }
    if who.design == "shadow":
        return replace(who.nothing, pairs={row.beside: Pairs(by_unit=by_unit)})
    residual = ClusteredMoments.repeated(*both, row.residual_cross, row.residual_product)
    weighted = {
        metric: WeightedMoments.repeated(row.twins_w, *told(f"{score}_cross_w", f"{score}_product_w"))
        for metric, score in scores.items()
    }
    chances = who.chances(question.declared.at((row.experiment_version, row.allocation)).weights)
    arm = Arm(by_unit={**by_unit, "calibration": residual}, weighted=weighted if chances else {})
    return replace(who.nothing, arms={row.variant: arm})


def _counted(
    table: sa.Table, where: sa.ColumnElement[bool], key: Sequence[str], counts: str
) -> sa.Select[Any]:
    columns: Iterable[sa.Column[Any]] = [table.c[name] for name in key]
    return sa.select(*columns, sa.func.sum(table.c[counts])).where(where).group_by(*columns)


def _cut(declared: Decision) -> dict[str, int]:
    """Into how many parts columns are cut; one may be cut in one way for segments, in another for groups."""
    found: dict[str, set[str]] = {}
    for each in (*declared.segments, *declared.sensitive):
        if each.cuts:
            found.setdefault(each.column, set()).update(parts(each.cuts))
    return {column: len(names) for column, names in found.items()}


def _costs(document: Experiment) -> Costs | None:
    declared = document.decision.costs
    return Costs(**declared.model_dump()) if declared else None


def _begin(hour: str) -> float:
    """When an hour began, in seconds since 1970."""
    return datetime.fromisoformat(f"{hour}:00:00+00:00").timestamp()
