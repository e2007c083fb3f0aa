"""The experiments by which the verdict is tried: many streams, a look after every batch, and what is decided.

Type I error for each design and each stress; what fails without the rules; how many outcomes a decision
takes, beside a test with one look, group sequential tests, and GrowthBook's sequential test, which runs in an
environment of its own.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from verdict import bernstein, multinomial, plan, quantiles, rates, sequence, sequential
from verdict.bandit import thompson
from verdict.contrast import Contrast, ruler
from verdict.counted import paired as of_pairs
from verdict.counted import score
from verdict.evidence import GAP_BINS, Evidence, Rules
from verdict.sequence import Floats
from verdict.simulate import Credit, Delays, Rows, Running, Summed, delay

Metric = Literal["brier", "log-loss"]
Truths = NDArray[np.bool_]
RULES = Rules()
ALPHA = 0.05
FLOOR = 0.05
# GrowthBook's statistics; needs numpy < 2, so it lives apart.
GBSTATS = "gbstats==0.8.0"


@dataclass(frozen=True)
class Stress:
    """A way in which streams are awkward; both models are as good as each other."""

    name: str
    credit: Credit
    metric: Metric = "brier"
    # The challenger's share in a split.
    share: float = 0.5
    # A unit, which has one score and one outcome, comes at up to so many looks, with up to so many rows each.
    looks_of_unit: int = 1
    rows_of_unit: int = 1

    @property
    def rows_on_average(self) -> float:
        """Of a unit."""
        return (self.looks_of_unit + 1) / 2 * (self.rows_of_unit + 1) / 2


FAIR = Credit()
STRESSES = (
    Stress("none", FAIR),
    Stress("1 % default rate", replace(FAIR, rate=0.01)),
    Stress("heavy-tailed log loss", replace(FAIR, sharpness=3.0), "log-loss"),
    Stress("repeated units", FAIR, looks_of_unit=10, rows_of_unit=3),
    Stress("drifting base rate", replace(FAIR, drift=0.8)),
    Stress("weights 90 : 10", FAIR, share=0.1),
)


@dataclass(frozen=True)
class Size:
    """How much is simulated: streams, looks, and rows between two looks."""

    streams: int
    looks: int
    batch: int


@dataclass(frozen=True)
class Rate:
    """How often something happened, of how many streams, with the exact 95 % interval."""

    name: str
    count: int
    streams: int

    @property
    def share(self) -> float:
        """Of the streams."""
        return self.count / self.streams

    @property
    def ends(self) -> tuple[float, float]:
        """The interval of Clopper & Pearson (Biometrika 1934)."""
        low, high = rates.proportion_interval(self.count, self.streams)
        return float(low), float(high)


@dataclass(frozen=True)
class Seen:
    """The state of all streams at a look: the difference, its standard error, outcomes, if it is believed."""

    value: Floats
    error: Floats
    n: Floats
    enough: Truths
    squares: Floats | None = None
    # Of a split: n, Σs and Σs² of both arms, of shape (2, 3, streams).
    sums: Floats | None = None


@dataclass
class Group:
    """Units of many streams that come for the first time at one look.

    Attributes:
        rows: their scores and outcomes, of shape (streams, units), as the following.
        place: in [0, 1): the challenger has those below its share, as the router has it of a unit.
        last: the look at which each comes for the last time.
        before: of each arm, what has been counted of each so far: rows, or the sum of their weights.
    """

    rows: Rows
    place: Floats
    last: Floats
    before: Floats


def arrivals(rng: np.random.Generator, stress: Stress, size: Size) -> Iterator[list[tuple[Group, Floats]]]:
    """Who comes at each look, and with how many rows: those of former looks that come again, and new ones."""
    groups: list[Group] = []
    shape = (size.streams, max(round(size.batch / stress.rows_on_average), 1))
    for look in range(size.looks):
        rows, place = stress.credit.draw(rng, shape, look / size.looks), rng.random(shape)
        last = look + rng.integers(0, stress.looks_of_unit, shape).astype(float)
        groups = [each for each in groups if (each.last >= look).any()]
        groups.append(Group(rows, place, last, np.zeros((2, *shape))))
        yield [
            (each, (each.last >= look) * rng.integers(1, stress.rows_of_unit + 1, shape).astype(float))
            for each in groups
        ]


def losses(metric: Metric, p: Floats) -> tuple[Floats, Floats]:
    """Of scores p with the outcome 0, and with 1."""
    return score(metric, p, np.zeros_like(p)), score(metric, p, np.ones_like(p))


def differences(metric: Metric, rows: Rows) -> tuple[Floats, Floats]:
    """The champion's losses less the challenger's, with the outcome 0, and with 1."""
    one, other = losses(metric, rows.champion), losses(metric, rows.challenger)
    return one[0] - other[0], one[1] - other[1]


def shadow(rng: np.random.Generator, stress: Stress, size: Size, by_unit: bool = True) -> Iterator[Seen]:
    """Pairs: a look after each batch."""
    pairs = Summed(size.streams)
    for coming in arrivals(rng, stress, size):
        for group, count in coming:
            told = differences(stress.metric, group.rows)
            pairs.add(told, group.rows.outcome, count, before=group.before[0])
            group.before[0] += count
        error = pairs.error if by_unit else pairs.naive_error
        yield Seen(pairs.mean, error, pairs.n, enough(pairs), pairs.rows[2])


def split(rng: np.random.Generator, stress: Stress, size: Size) -> Iterator[Seen]:
    """Each unit sees one model; a look after each batch."""
    arms = Summed(size.streams), Summed(size.streams)
    for coming in arrivals(rng, stress, size):
        for group, count in coming:
            challenged = group.place < stress.share
            for side, mine in enumerate((count * ~challenged, count * challenged)):
                told = losses(stress.metric, group.rows[side])
                arms[side].add(told, group.rows.outcome, mine, before=group.before[side])
                group.before[side] += mine
        yield between(*arms)


def bandit(rng: np.random.Generator, stress: Stress, size: Size) -> Iterator[Seen]:
    """Thompson sampling on the very score, mixed with a floor; a look and new shares after each batch."""
    arms = Summed(size.streams), Summed(size.streams)
    share = np.full(size.streams, 0.5)
    for coming in arrivals(rng, stress, size):
        for group, count in coming:
            challenged = group.place < share[:, None]
            for side, mine in enumerate((count * ~challenged, count * challenged)):
                # By overlap a row counts by the other's share.
                weight = 1 - share if side else share
                told = losses(stress.metric, group.rows[side])
                arms[side].add(told, group.rows.outcome, mine, weight, group.before[side])
                group.before[side] += mine * weight[:, None]
        seen = between(*arms)
        yield seen
        share = thompson(seen.value, seen.error, FLOOR)


DESIGNS: dict[str, Callable[[np.random.Generator, Stress, Size], Iterator[Seen]]] = {
    "shadow": shadow,
    "split": split,
    "bandit": bandit,
}


def between(one: Summed, other: Summed) -> Seen:
    """The state of two arms."""
    error = np.hypot(one.error, other.error)
    return Seen(one.mean - other.mean, error, one.n + other.n, enough(one) & enough(other))


def enough(sums: Summed) -> Truths:
    """Where a standard error is believed: `Ruler.believes`."""
    return np.asarray((sums.independent >= RULES.min_outcomes) & (sums.effective >= RULES.min_each))


def rejections(
    looks: Iterator[Seen], radius: Callable[[Seen], Floats], patient: bool = True
) -> tuple[Floats, Floats]:
    """How many outcomes each stream had when its interval first excluded 0, and on which side.

    Args:
        looks: the states, one for each look.
        radius: of the interval.
        patient: whether one waits for as many outcomes as a decision takes.

    Returns:
        Outcomes, infinite where it never did; the sign of the difference then.
    """
    when: Floats | None = None
    sign: Floats | None = None
    for seen in looks:
        if when is None or sign is None:
            when, sign = np.full(seen.n.shape, np.inf), np.zeros(seen.n.shape)
        out = np.abs(seen.value) > radius(seen)
        if patient:
            out &= seen.enough
        new = out & ~np.isfinite(when)
        when, sign = np.where(new, seen.n, when), np.where(new, np.sign(seen.value), sign)
    assert when is not None
    assert sign is not None
    return when, sign


def always_valid(n_star: float) -> Callable[[Seen], Floats]:
    """The interval of the verdict."""
    return lambda seen: sequence.radius(seen.error, seen.n, n_star, ALPHA)


def one_look(seen: Seen) -> Floats:
    """The interval that is right for one look."""
    return np.asarray(float(norm.ppf(1 - ALPHA / 2)) * seen.error)


def exact(n_star: float, max_gap: float, spread: float) -> Callable[[Seen], Floats]:
    """The exact interval of pairs; a stream in which scores differ by more has left its promise."""
    c = 2 * max_gap
    rho, bet = bernstein.best_rho(n_star * spread**2, ALPHA), bernstein.best_bet(n_star * spread**2, c, ALPHA)

    def radius(seen: Seen) -> Floats:
        assert seen.squares is not None
        return bernstein.radius(seen.n, seen.squares, rho, c, ALPHA, bet=bet)

    return radius


def type_one(size: Size) -> list[Rate]:
    """The share of streams in which a verdict on equal models ever names a winner."""
    found = []
    n_star = size.looks * size.batch / 2
    for design, looks in DESIGNS.items():
        for stress in STRESSES:
            if stress.share != 0.5 and design != "split":  # noqa: PLR2004
                continue
            rng = np.random.default_rng(5)
            when, _ = rejections(looks(rng, stress, size), always_valid(n_star))
            found.append(Rate(f"{design}, stress: {stress.name}", int(np.isfinite(when).sum()), size.streams))
    rng = np.random.default_rng(5)
    when, _ = rejections(shadow(rng, STRESSES[0], size), exact(n_star, 1.0, 0.05), patient=False)
    found.append(
        Rate("shadow, exact interval, from the first pair on", int(np.isfinite(when).sum()), size.streams)
    )
    return found


def naive(size: Size) -> list[Rate]:
    """What goes wrong without the rules: each is to fail."""
    found = []
    for design, looks in DESIGNS.items():
        when, _ = rejections(looks(np.random.default_rng(6), STRESSES[0], size), one_look)
        found.append(
            Rate(f"{design}, 95 % interval for one look", int(np.isfinite(when).sum()), size.streams)
        )
    repeated = next(each for each in STRESSES if each.rows_of_unit > 1)
    looked = shadow(np.random.default_rng(6), repeated, size, by_unit=False)
    when, _ = rejections(looked, always_valid(size.looks * size.batch / 2), patient=False)
    found.append(
        Rate("shadow, repeated units taken for independent", int(np.isfinite(when).sum()), size.streams)
    )
    return found


def armitage(streams: int) -> list[tuple[int, float, Rate]]:
    """Naive peeking at 1, 2, 5, 10, 20 looks: the exact figure, and what this harness counts."""
    rng = np.random.default_rng(7)
    found = []
    for looks in (1, 2, 5, 10, 20):
        sums = np.cumsum(rng.standard_normal((streams, looks)), axis=1)
        z = sums / np.sqrt(np.arange(1, looks + 1))
        count = int((np.abs(z) > norm.ppf(0.975)).any(1).sum())
        bounds = np.full(looks, norm.ppf(0.975))
        told = float(sum(side.sum() for side in sequential.crossing(np.arange(1, looks + 1), bounds)))
        found.append((looks, told, Rate(f"{looks} looks", count, streams)))
    return found


# A period of ten days with 1,000 requests, for 240 days.
DELAYS = Delays()
PERIOD_DAYS, PER_PERIOD, PERIODS = 10, 1000, 24
# The champion's scores are too high: it looks good among defaults, and is the worse one.
LATE = Credit(champion=0.744, challenger=0.744, correlation=0.996, shift=0.25)
Counted = Literal["all outcomes so far", "matured requests alone"]
COUNTED: tuple[Counted, ...] = ("all outcomes so far", "matured requests alone")


def late(
    rng: np.random.Generator, design: str, credit: Credit, counted: Counted, streams: int
) -> Iterator[Seen]:
    """Outcomes that come late, with a look after each period; a bandit's shares follow what counts."""
    arms, pairs = (Summed(streams), Summed(streams)), Summed(streams)
    share = np.full(streams, 0.5)
    waiting: dict[int, list[tuple[Rows, Truths, Truths, Floats]]] = {}
    for period in range(PERIODS):
        rows = credit.draw(rng, (streams, PER_PERIOD))
        challenged = rng.random(rows.outcome.shape) < share[:, None]
        takes = delay(rng, rows.outcome, DELAYS)
        if counted == "matured requests alone":
            takes = np.full(takes.shape, float(DELAYS.paid))
        for periods in np.unique(takes):
            due = waiting.setdefault(period + int(periods), [])
            due.append((rows, takes == periods, challenged, share))
        for known, told, theirs, its_share in waiting.pop(period, []):
            if design == "shadow":
                pairs.add(differences("brier", known), known.outcome, told.astype(float))
                continue
            for side, (mine, weight) in enumerate(((~theirs, its_share), (theirs, 1 - its_share))):
                counts = (told & mine).astype(float)
                arms[side].add(losses("brier", known[side]), known.outcome, counts, weight)
        if design == "shadow":
            yield Seen(pairs.mean, pairs.error, pairs.n, enough(pairs))
            continue
        seen = between(*arms)
        yield seen
        if design == "bandit":
            share = thompson(seen.value, seen.error, FLOOR)


@dataclass(frozen=True)
class Delayed:
    """With late outcomes: how often each rule names the better, and the worse model, and what it saw."""

    rule: str
    better: Rate
    worse: Rate
    # The mean difference of the Brier scores, by day.
    seen: Mapping[int, float]


def delayed(streams: int) -> tuple[float, list[Delayed]]:
    """Late outcomes in shadow mode, of which the challenger is the better model: the truth, and both rules.

    The verdict waits for some of both outcomes, which would hold back who is misled for some weeks. Here
    nobody waits.
    """
    truth = _advantage(LATE)
    found = []
    for rule in COUNTED:
        states = list(late(np.random.default_rng(8), "shadow", LATE, rule, streams))
        when, sign = rejections(iter(states), always_valid(PERIODS * PER_PERIOD / 2), patient=False)
        won = np.isfinite(when)
        named = [
            Rate(rule, int((won & (sign == side)).sum()), streams)
            for side in (math.copysign(1, truth), -math.copysign(1, truth))
        ]
        seen = {
            (period + 1) * PERIOD_DAYS: float(each.value.mean())
            for period, each in enumerate(states)
            if each.n.all()
        }
        found.append(Delayed(rule, named[0], named[1], seen))
    return truth, found


def delayed_type_one(streams: int) -> list[tuple[Rate, Rate]]:
    """False winners with late outcomes, by all outcomes so far and by matured ones, for each design.

    The champion's scores are too high and the challenger's too low, so that their Brier scores are the same.
    """
    rows = 1_000_000

    def excess(shift: float) -> float:
        return _advantage(replace(LATE, challenger_shift=shift), rows)

    equal = replace(LATE, challenger_shift=float(brentq(excess, -1.0, 0.0, xtol=1e-4)))
    found = []
    for design in DESIGNS:
        both = []
        for rule in COUNTED:
            looks = late(np.random.default_rng(12), design, equal, rule, streams)
            patient = rule == "matured requests alone"
            when, _ = rejections(looks, always_valid(PERIODS * PER_PERIOD / 2), patient)
            both.append(Rate(f"{design}, {rule}", int(np.isfinite(when).sum()), streams))
        found.append((both[0], both[1]))
    return found


def _advantage(credit: Credit, rows: int = 2_000_000) -> float:
    """The champion's Brier score less the challenger's, over so many rows, always the same."""
    drawn = credit.draw(np.random.default_rng(1), (rows,))
    one, other = (score("brier", p, drawn.outcome) for p in (drawn.champion, drawn.challenger))
    return float((one - other).mean())


def sample_ratio(streams: int) -> tuple[float, Rate]:
    """The median of requests until a split of 52 : 48 is found, and false alarms in 100,000 requests."""
    rng = np.random.default_rng(9)
    n = 100 * np.arange(1, 1001)

    def alarms(share: float) -> Floats:
        k = np.cumsum(rng.binomial(100, share, (streams, 1000)), axis=1)
        e = multinomial.log_bayes_factor(np.stack([k, n - k], axis=-1), [0.5, 0.5])
        out = e >= -np.log(0.05)
        return np.where(out.any(1), n[out.argmax(1)], np.inf)

    found, false = alarms(0.52), alarms(0.5)
    return float(np.median(found)), Rate(
        "false alarms in 100,000 requests", int(np.isfinite(false).sum()), streams
    )


# Looks at trust checks, rows between two, and the least share for which they are tried.
CHECKED, ROWS_BETWEEN, LEAST_SHARE = 400, 100, 0.01


def distrust(streams: int) -> list[Rate]:
    """How often a trust check ever fails without cause: of single rows, assigned by the declared shares."""
    rng = np.random.default_rng(16)
    n = ROWS_BETWEEN * np.arange(1.0, CHECKED + 1)
    found = []

    def ever(name: str, log_e: Floats, enough: Truths) -> None:
        failed = (enough & (log_e >= -math.log(RULES.trust_alpha))).any(1)
        found.append(Rate(name, int(failed.sum()), streams))

    for share in (0.5, LEAST_SHARE):
        k = np.cumsum(rng.binomial(ROWS_BETWEEN, share, (streams, CHECKED)), axis=1).astype(float)
        log_e = multinomial.log_bayes_factor(np.stack([k, n - k], axis=-1), [share, 1 - share])
        ever(f"sample ratio, a share of {100 * share:g} %", log_e, np.ones(k.shape, bool))
    for n_star in (1000, 10_000):
        enough = np.minimum(k, n - k) >= RULES.min_outcomes
        log_e = log_e_value_of_propensities(k, n, share, n_star)
        ever(f"propensities, a share of {100 * share:g} %, n_star {n_star:,}", log_e, enough)
    return found


def log_e_value_of_propensities(k: Floats, n: Floats, share: float, n_star: float) -> Floats:
    """What `trust` says of two arms, to one of which k of n rows came with the probability `share`."""
    # By overlap a row counts by the other's share.
    total, squares = k * (1 - share) - (n - k) * share, k * (1 - share) ** 2 + (n - k) * share**2
    error = np.sqrt(np.maximum(squares - total**2 / n, 0) / (n - 1) / n)
    return sequence.log_e_value(total / n, error, n, n_star, RULES.trust_alpha)


def canaries(streams: int, slow: int) -> list[Rate]:
    """How often a guardrail trips on a challenger whose harm is as great as allowed, or that is the same."""
    rng = np.random.default_rng(10)
    found = []
    for name, champion, challenger, margin in (
        ("error rate, the same", 0.01, 0.01, 0.0),
        ("error rate, as much worse as allowed", 0.01, 0.02, 0.01),
    ):
        k, n, m, total = np.zeros((4, streams))
        tripped = np.zeros(streams, bool)
        for _ in range(100):
            k, n = k + rng.binomial(190, champion, streams), n + 190
            m, total = m + rng.binomial(10, challenger, streams), total + 10
            tripped |= rates.log_e_value_of_excess((k, n), (m, total), margin) >= -np.log(0.05)
        found.append(Rate(f"{name}, 100 looks", int(tripped.sum()), streams))
    count = 0
    for _ in range(slow):
        one: dict[int, int] = {}
        other: dict[int, int] = {}
        for _ in range(20):
            for histogram, size in ((one, 450), (other, 50)):
                bins = np.floor(rng.normal(math.log(20), 0.5, size) / quantiles.GROWTH).astype(int)
                for each, seen in zip(*np.unique(bins, return_counts=True), strict=True):
                    histogram[int(each)] = histogram.get(int(each), 0) + int(seen)
            if quantiles.log_e_value_of_ratio(one, other, 0.95, 1.0) >= -math.log(0.05):
                count += 1
                break
    return [*found, Rate("p95 latency, the same, 20 looks", count, slow)]


def broken(streams: int = 1000) -> list[tuple[str, float, float]]:
    """How many requests a canary takes until a broken challenger trips the guardrail of the error rate.

    At 5 % of the traffic, against 1 % of errors, none more allowed: the median of the challenger's own
    requests, and the share found within 2,000 of them.
    """
    rng = np.random.default_rng(13)
    found = []
    for rate in (0.02, 0.05, 0.2, 1.0):
        k, n, m, total = np.zeros((4, streams))
        when = np.full(streams, np.inf)
        for _ in range(200):
            k, n = k + rng.binomial(190, 0.01, streams), n + 190
            m, total = m + rng.binomial(10, rate, streams), total + 10
            tripped = rates.log_e_value_of_excess((k, n), (m, total), 0.0) >= -np.log(0.05)
            when = np.where(tripped & ~np.isfinite(when), total, when)
        found.append((f"{rate:.0%} of errors", float(np.median(when)), float(np.isfinite(when).mean())))
    return found


@dataclass(frozen=True)
class Power:
    """What a decision takes: outcomes on average, the fixed sample, the share of right decisions."""

    name: str
    fixed: float
    expected: float
    theory: float | None
    right: Rate | None


POWER = 0.8
# What is aimed at: a share of the best unpaired peer's outcomes, and times the bound's expectation.
FEWER, COSTLIER = 50, 1.3

# The two credit models of the design: 8 % defaults, AUC .731 against .744, scores S that correlate .996. S is
# the Brier score: both have the same outcome, so it correlates that much where what both see does .95.
PAIR = Credit(rate=0.08, champion=0.731, challenger=0.744, correlation=0.95)


class Pairing(NamedTuple):
    """What pairs save where both models see so much alike.

    Attributes:
        correlation: of what both see, among clients with the same outcome.
        scores: the correlation of both Brier scores.
        paired: pairs for one look that finds the difference with a power of 80 %.
        unpaired: the same of the outcomes of a split in halves.
    """

    correlation: float
    scores: float
    paired: float
    unpaired: float


def pairing() -> list[Pairing]:
    """What pairs save, by how alike both models see.

    What each model sees by itself is the same in all rows, so the difference is, and the unpaired sample.
    """
    effect = _advantage(PAIR, 4_000_000)
    found = []
    for correlation in (0.0, 0.5, 0.9, PAIR.correlation, 0.98, 0.996):
        rows = replace(PAIR, correlation=correlation).draw(np.random.default_rng(14), (1_000_000,))
        one, other = (score("brier", p, rows.outcome) for p in (rows.champion, rows.challenger))
        samples = [
            plan.fixed_sample_size(float(variance), effect)
            for variance in ((one - other).var(), 2 * (one.var() + other.var()))
        ]
        found.append(Pairing(correlation, float(np.corrcoef(one, other)[0, 1]), *samples))
    return found


# Two models of clients of whom 22 % default, as those of the data set, and by how much they may differ.
PAIRED = Credit(rate=0.22, champion=0.76, challenger=0.78, correlation=0.9)
GAP, PAIRS = 0.5, 1000
# How wide an exact interval may be, in parts of that of hedged betting.
NEARLY = 1.1


class Sharp(NamedTuple):
    """A half-width at so many pairs, beside that of the asymptotic interval planned for these, on average."""

    name: str
    width: float


def sharpness(streams: int) -> list[Sharp]:
    """How wide exact intervals are, of pairs whose scores differ by GAP at most."""
    rng = np.random.default_rng(18)
    rows = PAIRED.draw(rng, (streams, PAIRS))
    d = score("brier", rows.champion, rows.outcome) - score("brier", rows.challenger, rows.outcome)
    # Who differs by more is taken to differ by that: none may.
    d = np.clip(d, -2 * GAP, 2 * GAP)
    spread, squares = float(d.std()), (d * d).sum(1)
    told = sequence.radius(d.std(1, ddof=1) / math.sqrt(PAIRS), PAIRS, PAIRS, ALPHA)
    found = []
    for name, planned, its in (
        ("neither the spread nor the number of pairs is declared", RULES.n_star, None),
        ("the number of pairs is declared", PAIRS, None),
        ("the spread is declared", RULES.n_star, spread),
        ("both are declared", PAIRS, spread),
        ("both are declared, and the spread is half of that", PAIRS, 2 * spread),
    ):
        rules = Rules(n_star=planned, max_gap=GAP - 1 / GAP_BINS, spread=its)
        measured = ruler(Evidence("shadow", "A", ("B",)), "brier", rules, ALPHA, "B")
        radius = measured.radii(Contrast(0.0, 0.0, PAIRS, PAIRS, PAIRS, each) for each in squares)
        found.append(Sharp(name, float((radius / told).mean())))
    bets = hedged_betting((d / (2 * GAP) + 1) / 2) * 4 * GAP
    return [*found, Sharp("hedged betting", float((bets / told).mean()))]


def hedged_betting(x: Floats) -> Floats:
    """The half-width of the confidence sequence of hedged betting, after all values.

    Source: Waudby-Smith & Ramdas (Journal of the Royal Statistical Society B 2024), theorem 3, with the
    predictable bets of equation 26, half of the capital on each side.

    Args:
        x: values in [0, 1], of shape (streams, n).
    """
    streams, n = x.shape
    t = np.arange(1, n + 1)
    mean = (0.5 + np.cumsum(x, axis=1)) / (t + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2, axis=1)) / (t + 1)
    # What a bet may know is what came before it.
    known = np.concatenate([np.full((streams, 1), 0.25), variance[:, :-1]], axis=1)
    bets = np.sqrt(2 * math.log(2 / ALPHA) / (known * t * np.log(t + 1)))
    found = []
    for values, stakes, middle in zip(x, bets, mean[:, -1], strict=True):
        m = middle + np.linspace(-0.25, 0.25, 2001)
        m = m[(m > 0) & (m < 1)]
        up = np.minimum(stakes[:, None], 0.5 / m) * (values[:, None] - m)
        down = np.minimum(stakes[:, None], 0.5 / (1 - m)) * (values[:, None] - m)
        capital = np.logaddexp(np.log1p(up).sum(0), np.log1p(-down).sum(0)) - math.log(2)
        inside = m[capital < -math.log(ALPHA)]
        found.append((inside.max() - inside.min()) / 2)
    return np.array(found)


def believed() -> float:
    """From how many pairs of the two credit models on a standard error of the Brier score is believed."""
    rows = PAIR.draw(np.random.default_rng(14), (1_000_000,))
    sums = of_pairs(*rows, (0.5, 0.5)).brier
    return max(sums.n * RULES.min_each / sums.effective, RULES.min_outcomes)


def power(streams: int, peer_streams: int, environment: Path | None) -> list[Power]:
    """How many outcomes a decision takes at 5 % and a power of 80 % for the fixed sample."""
    rng = np.random.default_rng(11)
    rows = PAIR.draw(rng, (4_000_000,))
    one, other = (score("brier", p, rows.outcome) for p in (rows.champion, rows.challenger))
    effect = float((one - other).mean())
    paired = plan.fixed_sample_size(float((one - other).var()), effect)
    unpaired = plan.fixed_sample_size(2 * float(one.var() + other.var()), effect)
    stops = plan.stopping()
    found = [Power("shadow, one look", paired, paired, None, None)]
    batch = max(int(paired / 40), 1)
    size = Size(streams, int(plan.FURTHEST * 40), batch)
    when, sign = rejections(shadow(rng, Stress("", PAIR), size), always_valid(paired))
    right = Rate("right", int((np.isfinite(when) & (sign > 0)).sum()), streams)
    expected = float(np.minimum(when, size.looks * batch).mean())
    found.append(Power("shadow, the verdict", paired, expected, stops.expected * paired, right))
    found.append(Power("split, one look", unpaired, unpaired, None, None))
    for name, bounds in (
        ("split, group sequential, 5 looks (O'Brien & Fleming)", sequential.obrien_fleming(5)),
        ("split, group sequential, 5 looks (Pocock)", np.full(5, sequential.pocock(5))),
    ):
        found.append(_group_sequential(name, bounds, unpaired))
    # Millions of rows a stream: the sums of a batch are drawn by the central limit theorem.
    looked = _batch_sums(rng, one, other, unpaired, streams)
    when, sign = rejections(iter(looked), always_valid(unpaired), patient=False)
    right = Rate("right", int((np.isfinite(when) & (sign > 0)).sum()), streams)
    capped = np.minimum(when, plan.FURTHEST * unpaired)
    theory = stops.expected * unpaired
    found.append(Power("split, the verdict", unpaired, float(capped.mean()), theory, right))
    if environment is not None:
        some = np.stack([seen.sums[..., :peer_streams] for seen in looked if seen.sums is not None])
        same = float(capped[:peer_streams].mean())
        found.append(
            Power(f"split, the verdict, the first {peer_streams} streams", unpaired, same, None, None)
        )
        found.append(_growthbook(environment, some, unpaired))
    return found


def _group_sequential(name: str, bounds: Floats, fixed: float) -> Power:
    """A group sequential test as large as its power takes, and its mean sample."""
    drift = norm.ppf(0.975) + norm.ppf(POWER)
    low, high = 1.0, 2.0
    times = np.arange(1, len(bounds) + 1) / len(bounds)
    for _ in range(40):
        middle = (low + high) / 2
        upper, lower = sequential.crossing(times * middle, bounds, float(drift))
        low, high = (middle, high) if (upper + lower).sum() < POWER else (low, middle)
    upper, lower = sequential.crossing(times * high, bounds, float(drift))
    stops = upper + lower
    mean = float((times * high * stops).sum() + high * (1 - stops.sum()))
    return Power(name, fixed, mean * fixed, None, None)


def _batch_sums(
    rng: np.random.Generator, one: Floats, other: Floats, fixed: float, streams: int
) -> list[Seen]:
    """The states of a split of halves, 40 looks for each fixed sample."""
    half = max(round(fixed / 40 / 2), 1)
    arms = Running(streams), Running(streams)
    found = []
    moments = []
    for loss in (one, other):
        both = np.stack([loss, loss * loss])
        moments.append((both.mean(1), np.linalg.cholesky(np.cov(both))))
    for _ in range(int(plan.FURTHEST * 40)):
        for arm, (mean, root) in zip(arms, moments, strict=True):
            sums = half * mean[:, None] + math.sqrt(half) * root @ rng.standard_normal((2, streams))
            arm.n, arm.total, arm.squares = arm.n + half, arm.total + sums[0], arm.squares + sums[1]
        found.append(
            Seen(
                arms[0].mean - arms[1].mean,
                np.hypot(arms[0].error, arms[1].error),
                arms[0].n + arms[1].n,
                np.ones(streams, bool),
                sums=np.stack([[arm.n, arm.total, arm.squares] for arm in arms]),
            )
        )
    return found


# Runs in GrowthBook's environment: for each stream and look the sums, for each stream when it first decides.
PEER = """
import json, sys
from gbstats.frequentist.tests import SequentialConfig, SequentialTwoSidedTTest
from gbstats.models.statistics import SampleMeanStatistic

def interval(a, b, tuning, kind):
    one, other = (SampleMeanStatistic(n=int(n), sum=s, sum_squares=q) for n, s, q in (a, b))
    config = SequentialConfig(difference_type=kind, sequential_tuning_parameter=tuning)
    return SequentialTwoSidedTTest(one, other, config).compute_result().ci

asked = json.load(sys.stdin)
told = {"published": interval(*asked["published"], "relative"), "stops": []}
for stream in asked["streams"]:
    stop = None
    for one, other in stream:
        ends = interval(one, other, asked["tuning"], "absolute")
        if ends[0] > 0 or ends[1] < 0:
            stop = one[0] + other[0]
            break
    told["stops"].append(stop)
json.dump(told, sys.stdout)
"""
PUBLISHED = ((3000, 1396.87, 52377.9767), (3461, 2422.7, 134698.29), 1000)
PUBLISHED_INTERVAL = (-0.55844, 1.56516)


def growthbook(environment: Path) -> Path:
    """The interpreter of an environment with GrowthBook's statistics; made where it is not there yet.

    Raises:
        subprocess.CalledProcessError: it cannot be made, for want of a network or of wheels.
    """
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", GBSTATS], check=True)
    return python


def _growthbook(environment: Path, sums: Floats, fixed: float) -> Power:
    """When GrowthBook's sequential test decides, on the same streams; its published figures are checked.

    `sums` are n, Σs and Σs² of both arms at each look, of shape (looks, 2, 3, streams).
    """
    streams = sums.shape[-1]
    asked = {
        "published": PUBLISHED,
        "tuning": fixed,
        "streams": sums.transpose(3, 0, 1, 2).tolist(),
    }
    done = subprocess.run(
        [growthbook(environment), "-c", PEER],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    if not np.allclose(told["published"], PUBLISHED_INTERVAL, atol=1e-5):
        raise ValueError(f"gbstats gives {told['published']} where {PUBLISHED_INTERVAL} is published")
    most = plan.FURTHEST * fixed
    expected = float(np.mean([most if stop is None else stop for stop in told["stops"]]))
    return Power(f"split, GrowthBook ({GBSTATS}), the same {streams} streams", fixed, expected, None, None)
