"""Evidence from rows: what answers and their outcomes add up to.

The ledger keeps these sums while rows come, for verdicts that cost the same however many there are. Here
they are made at once, from arrays: for simulated rows, and for those who have the ledger's export and would
check what the router says.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from verdict import money
from verdict.declared import LIVE, Declared, Terms
from verdict.evidence import (
    GAP_BINS,
    HOUR,
    SCORE_BINS,
    TENTHS,
    Arm,
    Costs,
    Decisions,
    Evidence,
    Pairs,
    Part,
    Period,
    in_cells,
)
from verdict.moments import ClusteredMoments, Moments, Swings, WeightedMoments
from verdict.quantiles import GROWTH
from verdict.segments import part
from verdict.sequence import Floats

Truths = NDArray[np.bool_]
Wholes = NDArray[np.int64]

Loss = Literal["brier", "log-loss"]

# In the order in which sums by unit are kept.
METRICS = ("brier", "log-loss", "profit")
BY_UNIT = (*METRICS, "calibration")

# Into so many equal bins pairs of scores are counted, on each side.
JOINT_BINS = 20
LEAST_MS = 0.001
# Of errors a unit tells once in so many seconds.
TEN_MINUTES = 600.0
# No probability is nearer to 0 or 1 in the log loss: one that is wrong would be an infinite loss.
CLIP = 1e-15


def score(metric: Loss, p: Floats, y: Floats) -> Floats:
    """The loss of scores p at outcomes y, each 0 or 1."""
    if metric == "brier":
        # Brier (Monthly Weather Review 1950)
        return np.asarray((p - y) ** 2)
    return np.asarray(-np.log(np.clip(np.where(y == 1, p, 1 - p), CLIP, 1)))


def scored(p: Floats, y: Floats, threshold: float, costs: Costs | None = None) -> Arm:
    """The sums of a variant over answers whose outcome is known; what was asked is not counted.

    Args:
        p: its scores, of shape (n,).
        y: the outcomes, 0 or 1, of the same shape.
        threshold: the score from which on a decision is positive.
        costs: what decisions bring, if anything.
    """
    decisions = _decided(p, y, threshold)

    def sums(metric: Loss) -> Moments:
        return _sums(score(metric, p, y), y, score(metric, p, 1 - y))

    return Arm(
        labelled=len(p),
        positives=int(y.sum()),
        brier=sums("brier"),
        log_loss=sums("log-loss"),
        calibration=_sums(y - p, y, 1 - y - p),
        profit=money.moments(costs, decisions) if costs else None,
        decisions=decisions,
    )


def paired(
    one: Floats, other: Floats, y: Floats, thresholds: tuple[float, float], costs: Costs | None = None
) -> Pairs:
    """The sums over rows that both the champion and a challenger scored, and whose outcome is known.

    Args:
        one: the champion's scores, of shape (n,).
        other: the challenger's.
        y: the outcomes, 0 or 1.
        thresholds: the champion's and the challenger's.
        costs: what decisions bring, if anything.
    """
    profit = None
    if costs:
        a, b = one >= thresholds[0], other >= thresholds[1]
        cells = [(i, j, k) for i in (True, False) for j in (True, False) for k in (0, 1)]
        counts = {(i, j, k): int(((a == i) & (b == j) & (y == k)).sum()) for i, j, k in cells}
        profit = money.paired(costs, counts)

    def sums(metric: Loss) -> Moments:
        here, otherwise = (score(metric, one, each) - score(metric, other, each) for each in (y, 1 - y))
        return _sums(here, y, otherwise)

    return Pairs(
        labelled=len(y),
        brier=sums("brier"),
        log_loss=sums("log-loss"),
        profit=profit,
        max_gap=float(np.abs(one - other).max(initial=0.0)),
    )


class Answers(NamedTuple):
    """What variants answered: arrays of one length, a place for each answer, live ones and side answers.

    Attributes:
        request: a number from 0 on; answers of the same number are to the same request.
        time: of the request, in seconds since 1970.
        version: of the experiment's document by which the request was assigned.
        allocation: of the weights within it.
        variant: who answered; of a replay the name of the set.
        kind: LIVE, "shadow" or "replay".
        status: that of HTTP.
        score: the probability; NaN where there is none.
        latency: in ms; NaN where it was not measured.
        outcome: of the request, 0 or 1; NaN or anything else does not count.
        saved: of live answers, whether another variant gave it since this one failed.
        unit: a number for each unit by which requests were assigned; requests that are units by themselves
            have one that nobody else has.
        named: whether the request told its unit.
        row: the request's place in its batch, from 0 on; 0 where it came alone.
        cluster: a number for those who are not independent of each other: the requests of a unit, else those
            of a batch; a request that is neither has one of its own.
    """

    request: Wholes
    time: Floats
    version: Wholes
    allocation: Wholes
    variant: NDArray[np.object_]
    kind: NDArray[np.object_]
    status: Wholes
    score: Floats
    latency: Floats
    outcome: Floats
    saved: Truths
    unit: Wholes
    named: Truths
    row: Wholes
    cluster: Wholes

    def where(self, chosen: Truths) -> Answers:
        """Some of them."""
        columns: Any = (column[chosen] for column in self)
        return Answers(*columns)


def evidence(
    answers: Answers,
    declared: Declared,
    now: float,
    records: Sequence[Mapping[str, Any]] = (),
) -> Evidence:
    """The evidence in rows, as the ledger's sums have it: by hours, of what was assigned by the experiment.

    Args:
        answers: of all requests that count, in the order in which they were recorded: assigned by chance, and
            in the versions that are declared.
        declared: who is compared, by which rules, and by which terms rows were assigned.
        now: in seconds since 1970. Of outcomes those count whose requests came before the hour in which the
            maturity began; without a maturity all.
        records: what was asked about, by request; needed where parts of the traffic are declared.
    """
    rows = _Rows.of(answers, declared, now).with_units()
    if rows.units and not rows.units.before.any():
        rows = replace(rows, units=None)
    whole = in_cells(declared.who.nothing, list(_by_hours(rows)), now)
    return whole + replace(
        declared.who.nothing,
        arms=_histograms(rows),
        pairs=_joint(rows) if declared.who.design == "shadow" else None,
        segments=_segments(rows, records),
    )


def known(answers: Answers, declared: Declared, now: float, variant: str) -> tuple[Floats, Floats]:
    """A variant's scores whose outcomes count, and these; the arguments are those of `evidence`."""
    rows = _Rows.of(answers, declared, now)
    mine = rows.known & (rows.all.variant == variant)
    return rows.all.score[mine], rows.all.outcome[mine]


class _Units(NamedTuple):
    """Of each row that counts itself, and what came before it of its cluster: arrays of one length.

    Attributes:
        w: its weight.
        x: by metric of BY_UNIT, of shape (4, rows): its score, or the difference of both scores.
        before: how many rows of its cluster came before it.
        before_w: their Σw.
        before_x: their Σx, of shape (4, rows).
        before_wx: their Σwx, of shape (4, rows).
    """

    w: Floats
    x: Floats
    before: Floats
    before_w: Floats
    before_x: Floats
    before_wx: Floats

    def where(self, chosen: Truths) -> _Units:
        """Some of them."""
        columns: Any = (column[..., chosen] for column in self)
        return _Units(*columns)

    def by_unit(self, plain: Mapping[str, Moments]) -> dict[str, ClusteredMoments]:
        """The sums by unit, from those by row."""
        repeats, twins = int((self.before > 0).sum()), int(self.before.sum())
        crosses = (self.x * self.before + self.before_x).sum(axis=1).tolist()
        products = (self.x * self.before_x).sum(axis=1).tolist()
        return {
            metric: ClusteredMoments.apart(plain[metric])
            + ClusteredMoments.repeated(repeats, twins, cross, product)
            for metric, cross, product in zip(BY_UNIT, crosses, products, strict=True)
            if metric in plain
        }

    def weighted(self, plain: Mapping[str, WeightedMoments]) -> dict[str, WeightedMoments]:
        """The same of those by weights."""
        twins = float((self.w * self.before_w).sum())
        crosses = (self.w * (self.x * self.before_w + self.before_wx)).sum(axis=1).tolist()
        products = (self.w * self.x * self.before_wx).sum(axis=1).tolist()
        return {
            metric: plain[metric] + WeightedMoments.repeated(twins, cross, product)
            for metric, cross, product in zip(BY_UNIT, crosses, products, strict=True)
            if metric in plain
        }


@dataclass(frozen=True)
class _Rows:
    """Answers of those who are compared, and what of them counts.

    Attributes:
        all: of them.
        known: whether the outcome counts: it is there, it has matured, and the answer was the variant's own.
        beside: the champion's score of the same request; NaN where it has none of its own.
        first: whether chance assigned it for itself: the first one of its unit, or of its batch; of a side
            answer, whether the live one did, and was its variant's own.
        apart: whether it tells of errors: the first one of its batch, and of its unit in ten minutes.
        together: where it tells of one, in how many ten minutes before its unit got no answer, by the same
            weights.
        declared: of the experiment.
        matured: outcomes count of what was asked before.
        units: None where no cluster has more than one row.
    """

    all: Answers
    known: Truths
    beside: Floats
    first: Truths
    apart: Truths
    together: Wholes
    declared: Declared
    matured: float
    units: _Units | None = None

    @classmethod
    def of(cls, answers: Answers, declared: Declared, now: float) -> _Rows:
        who, maturity = declared.who, declared.rules.maturity
        matured = _hour(now - maturity) if maturity else _hour(now) + HOUR
        count = int(answers.request.max(initial=-1)) + 1
        live = answers.kind == LIVE
        own = live & ~np.isnan(answers.score) & ~answers.saved
        # What another variant answered in its place says nothing of any of them.
        told = np.zeros(count, bool)
        told[answers.request[own]] = True
        champions = np.full(count, np.nan)
        mine = own & (answers.variant == who.champion)
        champions[answers.request[mine]] = answers.score[mine]
        known = (
            ~np.isnan(answers.score)
            & np.isin(answers.outcome, (0, 1))
            & told[answers.request]
            & (_hour(answers.time) < matured)
        )
        compared = np.zeros(len(live), bool)
        for name in who.variants:
            compared |= (answers.variant == name) & (answers.kind == who.kind_of(name))
        first = _first(answers, live)
        # Of side answers those beside a first row that the live variant answered itself.
        beside = np.zeros(count, bool)
        beside[answers.request[first & own]] = True
        first = np.where(live, first, beside[answers.request])
        apart, together = _apart(answers, live)
        return cls(
            answers.where(compared),
            known[compared],
            champions[answers.request][compared],
            first[compared],
            apart[compared],
            together[compared],
            declared,
            matured,
        )

    def where(self, chosen: Truths) -> _Rows:
        """Some of them."""
        return replace(
            self,
            all=self.all.where(chosen),
            known=self.known[chosen],
            beside=self.beside[chosen],
            first=self.first[chosen],
            apart=self.apart[chosen],
            together=self.together[chosen],
            units=self.units and self.units.where(chosen),
        )

    def with_units(self) -> _Rows:
        """The same, where each row knows what came before it of its cluster among these."""
        who, variant = self.declared.who, self.all.variant
        counts = self.known
        if who.design == "shadow":
            counts = counts & ~np.isnan(self.beside) & (variant != who.champion)
        w, x = np.zeros(len(variant)), np.zeros((len(BY_UNIT), len(variant)))
        for terms, here in self._places():
            for name in who.variants:
                its = counts & here & (variant == name)
                w[its] = terms.tilt / terms.weights[name] if terms.weights.get(name) else 0.0
                x[:, its] = self.where(its)._scores(terms, name)
        # A cluster counts in each arm by itself.
        _, arm = np.unique(variant.astype(str), return_inverse=True)
        _, cluster = np.unique(np.stack([arm, self.all.cluster]), axis=1, return_inverse=True)
        sums = _before(cluster.ravel(), self.all.time, np.vstack([counts, w, x, w * x])) * counts
        return replace(self, units=_Units(w, x, sums[0], sums[1], sums[2:6], sums[6:10]))

    def _scores(self, terms: Terms, variant: str) -> Floats:
        """By metric the scores of a variant, whose rows these are; in pairs the champion's less those."""
        costs, y = self.declared.rules.costs, self.all.outcome

        def of(p: Floats, name: str) -> Floats:
            flagged = p >= _threshold(terms, name)
            profit = money.each(costs, flagged, y) if costs else np.zeros(len(y))
            return np.stack([score("brier", p, y), score("log-loss", p, y), profit, y - p])

        own = of(self.all.score, variant)
        who = self.declared.who
        return of(self.beside, who.champion) - own if who.design == "shadow" else own

    def _places(self) -> Iterator[tuple[Terms, Truths]]:
        """Which are of each version and allocation."""
        places = np.stack([self.all.version, self.all.allocation], 1)
        for version, allocation in np.unique(places, axis=0).tolist():
            mine = (self.all.version == version) & (self.all.allocation == allocation)
            yield self.declared.at((version, allocation)), mine

    def periods(self) -> Iterator[tuple[Terms, _Rows]]:
        """Those of each version and allocation."""
        for terms, mine in self._places():
            yield terms, self.where(mine)

    def arms(self) -> Iterator[tuple[str, _Rows]]:
        """Those of each variant that has any."""
        for name in self.declared.who.variants:
            mine = self.all.variant == name
            if mine.any():
                yield name, self.where(mine)


def _by_hours(rows: _Rows) -> Iterator[Part]:
    """What was counted in each hour."""
    hours = _hour(rows.all.time)
    for hour in np.unique(hours).tolist():
        for terms, part_ in rows.where(hours == hour).periods():
            yield hour, hour, _asked(part_, terms, hour < rows.matured) + _known(part_, terms)


def _asked(rows: _Rows, terms: Terms, mature: bool) -> Evidence:
    """What requests say, whatever their outcomes."""
    who = rows.declared.who
    found = who.nothing
    for name, mine in rows.arms():
        requests, fails = len(mine.all.status), _fails(mine.all)
        own = ~fails
        apart, apart_failed = int(mine.apart.sum()), int((mine.apart & fails).sum())
        assigned, missed = int(mine.first.sum()), int((mine.first & fails).sum())
        answered, errors, together = (int(each.sum()) for each in (own, fails, mine.together))
        arm = Arm(requests, errors, apart, apart_failed, together, answered if mature else 0)
        found = found + replace(who.nothing, arms={name: arm})
        if who.design == "shadow":
            if name != who.champion:
                pairs = Pairs(mature=answered if mature else 0, asked=assigned, missed=missed)
                found = found + replace(who.nothing, pairs={name: pairs})
        elif terms.weights:
            period = Period(
                terms.weights,
                requests={name: requests},
                assigned={name: assigned},
                served={name: assigned - missed if mature else 0},
                apart={name: apart},
                apart_failed={name: apart_failed},
                together={name: together},
                missed={name: missed},
                scores=_tenths(name, mine.all.score[mine.first & own]) if mature else {},
            )
            found = found + replace(who.nothing, periods=(period,))
    return found


def _known(rows: _Rows, terms: Terms) -> Evidence:
    """What outcomes say."""
    who, costs = rows.declared.who, rows.declared.rules.costs
    found = who.nothing
    for name, mine in rows.where(rows.known).arms():
        p, y = mine.all.score, mine.all.outcome
        arm = scored(p, y, _threshold(terms, name), costs)
        plain = _by_metric(arm)
        if who.chances(terms.weights):
            share = terms.weights[name]
            weighted = {metric: each.weighted(share, terms.tilt) for metric, each in plain.items()}
            arm = replace(arm, weighted=mine.units.weighted(weighted) if mine.units else weighted)
        if mine.units and who.design != "shadow":
            arm = replace(arm, by_unit=mine.units.by_unit({**plain, "calibration": arm.calibration}))
        ones = int((mine.first & (y == 1)).sum())
        arm = replace(arm, assigned_labels=int(mine.first.sum()), assigned_positives=ones)
        found = found + replace(who.nothing, arms={name: arm})
        if who.design != "shadow" and terms.weights:
            period = Period(
                terms.weights,
                labels={name: int(mine.first.sum())},
                score_labels=_tenths(name, p[mine.first]),
            )
            found = found + replace(who.nothing, periods=(period,))
        if who.design == "shadow" and name != who.champion:
            both = ~np.isnan(mine.beside)
            thresholds = _threshold(terms, who.champion), _threshold(terms, name)
            pairs = paired(mine.beside[both], p[both], y[both], thresholds, costs)
            if mine.units:
                pairs = replace(pairs, by_unit=mine.units.where(both).by_unit(_by_metric(pairs)))
            first = mine.first & both
            once, ones = int(first.sum()), int((first & (y == 1)).sum())
            pairs = replace(pairs, max_gap=0.0, assigned=once, assigned_positives=ones)
            found = found + replace(who.nothing, pairs={name: pairs})
    return found


def _histograms(rows: _Rows) -> dict[str, Arm]:
    """Latencies, and scores by outcome."""
    found: dict[str, Arm] = {}
    for name, mine in rows.arms():
        timed = (mine.all.status < 400) & ~np.isnan(mine.all.latency) & (mine.all.row == 0)  # noqa: PLR2004
        took = mine.all.latency[timed]
        p, y = mine.all.score[mine.known], mine.all.outcome[mine.known]
        found[name] = Arm(
            latencies=_counts(np.floor(np.log(np.maximum(took, LEAST_MS)) / GROWTH).astype(int)),
            negative_scores=_counts(_bins(p[y == 0], SCORE_BINS)),
            positive_scores=_counts(_bins(p[y == 1], SCORE_BINS)),
        )
    return found


def _joint(rows: _Rows) -> dict[str, Pairs]:
    """How far scores of a row are apart, rounded up to a bin, and how they go together."""
    found: dict[str, Pairs] = {}
    for name, mine in rows.where(rows.known & ~np.isnan(rows.beside)).arms():
        if name == rows.declared.who.champion:
            continue
        one, other, y = mine.beside, mine.all.score, mine.all.outcome
        together = zip(
            *(each.tolist() for each in (_bins(one, JOINT_BINS), _bins(other, JOINT_BINS), y.astype(int))),
            strict=True,
        )
        gap = (int(_bins(np.abs(one - other), GAP_BINS).max()) + 1) / GAP_BINS
        found[name] = Pairs(max_gap=gap, joint=dict(Counter(together)))
    return found


def _segments(rows: _Rows, records: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Evidence]:
    """What outcomes say of the declared parts of the traffic."""
    nothing = rows.declared.who.nothing
    found: dict[tuple[str, str], Evidence] = {}
    wanted = {*rows.declared.rules.segments, *rows.declared.rules.sensitive}
    mine = rows.where(rows.known)
    chosen: dict[tuple[str, str], Truths] = {}
    for terms, here in mine._places():
        for column, cuts in terms.parts:
            if column not in wanted:
                continue
            values = [part(records[each].get(column), cuts) for each in mine.all.request[here]]
            for value in dict.fromkeys(values):
                # A column may be both a segment and sensitive.
                these = chosen.setdefault((column, value), np.zeros(len(here), bool))
                these[here] |= np.array([each == value for each in values])
    for key, these in chosen.items():
        those = mine.where(these)
        for terms, period in (those.with_units() if rows.units else those).periods():
            found[key] = found.get(key, nothing) + _known(period, terms)
    return found


def _fails(answers: Answers) -> Truths:
    """Which got no answer from their variant, which refused or failed."""
    return np.asarray((answers.status >= 400) | answers.saved)  # noqa: PLR2004


def _first(answers: Answers, live: Truths) -> Truths:
    """Which were assigned for themselves: the first live one of each unit, or of each batch."""
    _, earliest = np.unique(answers.unit[live], return_index=True)
    first = np.zeros(len(live), bool)
    first[np.flatnonzero(live)[earliest]] = True
    return np.where(answers.named, first, live & (answers.row == 0))


def _come_again(answers: Answers, live: Truths) -> Truths:
    """Which are live ones of units that there are more of."""
    count = int(answers.unit.max(initial=-1)) + 1
    return live & (np.bincount(answers.unit[live], minlength=count) > 1)[answers.unit]


def _apart(answers: Answers, live: Truths) -> tuple[Truths, Wholes]:
    """Which tell of errors; and where they tell of one, in how many ten minutes before their unit failed."""
    apart, together = answers.row == 0, np.zeros(len(live), np.int64)
    before: dict[int, tuple[int, ...]] = {}
    failed: dict[tuple[int, ...], set[int]] = defaultdict(set)
    minutes = np.floor(answers.time / TEN_MINUTES).astype(np.int64)
    places = np.stack([answers.unit, answers.version, answers.allocation, minutes], 1)
    fails = _fails(answers)
    again = _come_again(answers, live)
    for row in np.flatnonzero(again):
        unit, version, allocation, ten = places[row].tolist()
        place = (version, allocation, ten)
        apart[row] &= before.get(unit) != place
        before[unit] = place
        if fails[row]:
            mine = failed[unit, version, allocation]
            together[row] = len(mine - {ten}) if apart[row] else 0
            mine.add(ten)
    return apart, together


def _before(unit: Wholes, time: Floats, values: Floats) -> Floats:
    """Of each row the sums over the rows of its cluster that came before it; values of shape (k, rows)."""
    order = np.lexsort((time, unit))
    ordered, units = values[:, order], unit[order]
    starts = np.flatnonzero(np.diff(units, prepend=-1))
    until = np.cumsum(ordered, axis=1) - ordered
    found = np.empty_like(until)
    found[:, order] = until - np.repeat(until[:, starts], np.diff(starts, append=len(units)), axis=1)
    return found


def _by_metric(sums: Arm | Pairs) -> dict[str, Moments]:
    found = dict(zip(METRICS, (sums.brier, sums.log_loss, sums.profit), strict=True))
    return {metric: each for metric, each in found.items() if each is not None}


def _threshold(terms: Terms, variant: str) -> float:
    return terms.thresholds.get(variant, 0.5)


def _decided(p: Floats, y: Floats, threshold: float) -> Decisions:
    flagged = p >= threshold
    counts: Mapping[str, Truths] = {
        "tp": flagged & (y == 1),
        "fp": flagged & (y == 0),
        "tn": ~flagged & (y == 0),
        "fn": ~flagged & (y == 1),
    }
    return Decisions(**{name: int(each.sum()) for name, each in counts.items()})


def _sums(values: Floats, y: Floats, otherwise: Floats) -> Moments:
    """The sums of scores, of which each would have been another one with the other outcome."""
    c = np.abs(values - otherwise)
    swings = (float((c[y == outcome] ** power).sum()) for outcome in (0, 1) for power in (2, 3))
    return Moments(len(values), float(values.sum()), float((values * values).sum()), Swings(*swings))


def _bins(values: Floats, bins: int) -> Wholes:
    """The bins of numbers in [0, 1], of which 1 is in the last one."""
    return np.minimum((values * bins).astype(np.int64), bins - 1)


def _tenths(variant: str, scores: Floats) -> dict[tuple[str, int], int]:
    """How many of a variant's scores are of which tenth."""
    return {(variant, tenth): count for tenth, count in _counts(_bins(scores, TENTHS)).items()}


def _counts(bins: Wholes) -> dict[int, int]:
    return dict(Counter(bins.tolist()))


def _hour(time: Any) -> Any:
    """When the hour of a time began."""
    return np.floor(time / HOUR) * HOUR
