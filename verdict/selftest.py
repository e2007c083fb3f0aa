"""Would this experiment be judged rightly? It is simulated as it is configured, by the code that judges.

Each stream is one life of the experiment, looked at again and again. Clients and scores are those of
`verdict/simulate.py`: what is told is how often the rules as declared name a winner, not how good a model is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import logit, ndtri

from verdict import bandit, guardrails, money, plan, sequence, sequential
from verdict.contrast import FIELDS
from verdict.counted import paired, scored
from verdict.decision import judge
from verdict.evidence import Arm, Design, Evidence, Pairs, Period, Rules
from verdict.plan import DAY
from verdict.rates import proportion_interval
from verdict.sequence import Floats
from verdict.simulate import Credit, Delays, Rows, delay

Truths = NDArray[np.bool_]

CHAMPION, CHALLENGER = "champion", "challenger"
LOOKS = 8
# Of a broken challenger's answers, those that fail.
BROKEN = 0.2
# The checks by which that may be found: of the challenger outcomes are missing.
MISSING = frozenset({"pairs", "answers", "label ratio", "propensities"})
SAME = Credit()
# The worlds in which it is the better one, and in which outcomes come late.
BETTER, LATE = "a better challenger", "late outcomes"
# When outcomes become known, in parts of the days that the last of them take.
DELAYS = Delays()
# So many days that is, if nobody knows better, and so many looks.
SETTLED, LOOKS_SETTLED = 90.0, 3
# What early outcomes would mislead by: the champion's logits are so much too high, the challenger's too low,
# by that much at most.
HIGH, LOW = 1.0, 3.0
# The power for which one plans, and the best challenger that is simulated.
POWER, BEST = 0.8, 0.999
# A score's mean is taken over so many quantiles of what a model sees, a variance in pairs over so many rows.
QUANTILES, PAIRS = 10_000, 100_000
# No threshold is nearer to 0 or 1.
CLIP = 1e-6
# To the sixth digit of an AUC.
BISECTIONS = 20


class Decided(NamedTuple):
    """What was decided at a look, and which trust checks failed."""

    decision: str
    failed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Scenario:
    """A world in which the experiment runs.

    Attributes:
        name: of the world.
        wrong: the decisions that are wrong in it.
        right: those that are hoped for. No trust is one only because of outcomes that are missing.
        credit: the clients and both models.
        errors: the share of the challenger's answers that fail.
        late: whether outcomes become known late, those of defaults first. Scores are then off, so there are
            no guardrails and no max_gap, which would rightly say so.
    """

    name: str
    wrong: tuple[str, ...]
    right: tuple[str, ...] = ()
    credit: Credit = SAME
    errors: float = 0.0
    late: bool = False

    def hopes(self, decided: Decided) -> bool:
        """Whether a decision is one that is hoped for."""
        caused = decided.decision != "don't trust" or bool(decided.failed & MISSING)
        return decided.decision in self.right and caused


@dataclass(frozen=True)
class Result:
    """How many of some streams ever had a wrong decision, or at last a right one; `hoped` says which."""

    scenario: str
    streams: int
    wrong: int
    right: int
    hoped: Mapping[str, int]

    @property
    def interval(self) -> tuple[float, float]:
        """Of the probability of a wrong decision, at 95 % (Clopper & Pearson 1934)."""
        lower, upper = proportion_interval(self.wrong, self.streams)
        return float(lower), float(upper)


@dataclass(frozen=True)
class Better:
    """A better challenger.

    Attributes:
        auc: of it.
        difference: by which it truly is better, in units of the metric that is decided by.
        outcomes: for one look that finds this with a power of 80 %; None where it is no better.
    """

    auc: float
    difference: float
    outcomes: int | None


def tried(experiment: Experiment, scenario: Scenario, streams: int, seed: int = 1) -> Iterator[Result]:
    """Let an experiment live some times in a world; the result so far after each."""
    rng = np.random.default_rng(seed)
    if scenario.late:
        experiment = replace(experiment, rules=replace(experiment.rules, guardrails=(), max_gap=None))
    wrong, hoped = 0, dict.fromkeys(scenario.right, 0)
    for stream in range(1, streams + 1):
        seen = [experiment.decided(evidence) for evidence in experiment.lives(scenario, rng)]
        wrong += any(each.decision in scenario.wrong for each in seen)
        if scenario.hopes(seen[-1]):
            hoped[seen[-1].decision] += 1
        yield Result(scenario.name, stream, wrong, sum(hoped.values()), dict(hoped))


@dataclass(frozen=True)
class Experiment:
    """An experiment as it is configured.

    Attributes:
        rules: as declared; thresholds are those of the names "champion" and "challenger".
        design: of a bandit the shares follow the outcomes, which here are the same whoever answers.
        share: the challenger's, of a bandit that of the beginning.
        outcomes: of each life.
        steps: of a canary, among which its guardrails share their α; 0: it is none.
        floor: of a bandit.
        success: of a bandit, the outcome that is one.
        settled: where outcomes come late, in how many days it is known that there is no default.
    """

    rules: Rules
    design: Design
    share: float
    outcomes: int
    steps: int = 0
    floor: float = 0.05
    success: int = 1
    settled: float = SETTLED

    def scenarios(self, better: float) -> tuple[Scenario, ...]:
        """The worlds that are tried: `better` is the challenger's AUC where it is the better one."""
        winners = ("promote", "keep")
        return (
            Scenario("the same quality", winners),
            Scenario(BETTER, ("keep",), ("promote",), replace(SAME, challenger=better)),
            Scenario(LATE, winners, credit=self.misleading(), late=True),
            Scenario("a drifting base rate", winners, credit=replace(SAME, drift=1.0)),
            Scenario("a broken challenger", ("promote",), ("keep", "don't trust"), errors=BROKEN),
        )

    def misleading(self) -> Credit:
        """Two models that are equally good, of which early defaults speak for the champion.

        Its scores are too high, and the challenger's too low by as much as makes the means of both the same.
        """
        sign = 1 if self.rules.metric == "profit" else -1

        def good(shift: float, name: str) -> float:
            return sign * self._score(name, SAME.champion, shift)[0]

        best = {name: self._best_shift(name) for name in (CHAMPION, CHALLENGER)}
        ends = {CHAMPION: best[CHAMPION] + HIGH, CHALLENGER: best[CHALLENGER] - LOW}
        # It may cost little to flag nobody: then the champion's scores are less too high.
        level = max(good(end, name) for name, end in ends.items())

        def excess(shift: float, name: str) -> float:
            return good(shift, name) - level

        for name, end in ends.items():
            if excess(end, name) < 0 < excess(best[name], name):
                ends[name] = brentq(excess, best[name], end, (name,), xtol=1e-4)
        return replace(SAME, shift=float(ends[CHAMPION]), challenger_shift=float(ends[CHALLENGER]))

    def planned(self) -> Better:
        """The challenger that is better by what one look at the planned outcomes finds with a power of 80 %.

        Where none can be that much better, the best one that is simulated.
        """
        low, high = SAME.champion, BEST
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            takes = self.better(middle).outcomes
            low, high = (low, middle) if takes and takes <= self.rules.n_star else (middle, high)
        return self.better(high)

    def better(self, auc: float) -> Better:
        """By how much a challenger of an AUC truly is better, and how many outcomes that takes."""
        mean, variance = self._score(CHAMPION, SAME.champion)
        its_mean, its_variance = self._score(CHALLENGER, auc)
        difference = its_mean - mean if self.rules.metric == "profit" else mean - its_mean
        if difference <= 0:
            return Better(auc, difference, None)
        if self.design == "shadow":
            spread = self._pair_variance(auc)
        elif self.design == "bandit":
            # Where both succeed alike, the chance to be the better one is uniform, and 1/share on average
            # that over the shares from the floor to the rest.
            inverse = math.log(1 / self.floor - 1) / (1 - 2 * self.floor)
            spread = (variance + its_variance) * inverse
        else:
            spread = plan.variance_of("split", (variance, its_variance), self.share)
        takes = plan.fixed_sample_size(spread, difference, self.rules.alpha, POWER)
        return Better(auc, difference, math.ceil(takes))

    def expected(self, better: Better) -> float:
        """How often a better challenger should be named in a life, by asymptotic intervals at its looks."""
        if better.outcomes is None:
            return 0.0
        times = np.arange(1, LOOKS + 1) / LOOKS * self.outcomes / better.outcomes
        # In information, one fixed sample is 1. The interval's n is any number that is great.
        great = 1e9
        n_star = self.rules.n_star / better.outcomes * great
        bounds = sequence.radius(1.0, times * great, n_star, self.rules.alpha)
        drift = float(ndtri(1 - self.rules.alpha / 2) + ndtri(POWER))
        return float(sequential.crossing(times, bounds, drift)[0].sum())

    def decided(self, evidence: Evidence) -> Decided:
        """The verdict's decision; of a canary "keep" also where a guardrail would send it back."""
        if self.steps:
            step = guardrails.at_step(evidence, CHALLENGER, self.rules, self.steps, 0)
            if step.says == "regress":
                return Decided("keep")
        verdict = judge(evidence, self.rules)
        checks = (*verdict.checks, *verdict.comparisons[0].checks)
        return Decided(verdict.decision, frozenset(each.name for each in checks if each.state == "failed"))

    @property
    def days_between(self) -> float:
        """How many days there are between two looks, where outcomes come late."""
        return max(self.settled, (self.rules.maturity or 0.0) / DAY) / LOOKS_SETTLED

    def lives(self, scenario: Scenario, rng: np.random.Generator) -> Iterator[Evidence]:
        """What is known at each look of one life."""
        evidence = self._nothing
        share, batches = self.share, list[_Batch]()
        for look in range(LOOKS):
            batch = self._drawn(scenario, rng, look, share)
            asked = self._asked(batch)
            evidence = evidence + replace(asked, first=float(look), last=float(look + 1))
            batches.append(batch)
            for each in batches:
                evidence = evidence + self._told(each, look)
            yield evidence
            if self.design == "bandit":
                share = self._next_share(batches, look)

    def _drawn(self, scenario: Scenario, rng: np.random.Generator, look: int, share: float) -> _Batch:
        """Requests that come between two looks."""
        size = max(self.outcomes // LOOKS, 1)
        rows = scenario.credit.draw(rng, (size,), look / LOOKS)
        failed = rng.random(size) < scenario.errors
        mine = rng.random(size) < share
        known = matures = np.full(size, look)
        if scenario.late:
            at = look + rng.random(size)
            days = delay(rng, rows.outcome, DELAYS) * self.settled / DELAYS.paid
            maturity = (self.rules.maturity or 0.0) / DAY
            known, matures = (
                np.maximum(np.ceil(at + each / self.days_between) - 1, look) for each in (days, maturity)
            )
        return _Batch(share, rows, mine, ~failed, known, matures)

    def _next_share(self, batches: list[_Batch], look: int) -> float:
        """A bandit's next share of the challenger, by all outcomes that are known."""
        y = np.concatenate([each.rows.outcome[each.known <= look] for each in batches])
        mine = np.concatenate([each.mine[each.known <= look] for each in batches])
        rates, errors = [], []
        for arm in (y[~mine], y[mine]):
            rate = float((arm == self.success).mean()) if len(arm) else 0.0
            rates.append(rate)
            errors.append(math.sqrt(rate * (1 - rate) / len(arm)) if len(arm) else math.inf)
        return float(bandit.thompson(rates[1] - rates[0], math.hypot(*errors), self.floor))

    def _best_shift(self, name: str) -> float:
        """By how much the logits of calibrated scores should be too high, for the metric."""
        if self.rules.metric != "profit" or self.rules.costs is None:
            return 0.0
        declared = min(max(self._threshold(name), CLIP), 1 - CLIP)
        return float(logit(declared) - logit(money.threshold(self.rules.costs)))

    def _score(self, name: str, auc: float, shift: float = 0.0) -> tuple[float, float]:
        """The mean and the variance of a variant's score."""
        seen = ndtri((np.arange(QUANTILES) + 0.5) / QUANTILES)
        mean = square = 0.0
        for outcome, share in ((0.0, 1 - SAME.rate), (1.0, SAME.rate)):
            y = np.full(QUANTILES, outcome)
            arm = scored(SAME.score(seen, y, auc, shift), y, self._threshold(name), self.rules.costs)
            sums = getattr(arm, FIELDS[self.rules.metric])
            mean += share * sums.mean
            square += share * sums.squares / sums.n
        return mean, square - mean**2

    def _pair_variance(self, auc: float) -> float:
        """The variance of the difference in score on one request."""
        rows = replace(SAME, challenger=auc).draw(np.random.default_rng(1), (PAIRS,))
        thresholds = self._threshold(CHAMPION), self._threshold(CHALLENGER)
        sums = getattr(paired(*rows, thresholds, self.rules.costs), FIELDS[self.rules.metric])
        return float(sums.variance)

    def _asked(self, batch: _Batch) -> Evidence:
        """What requests say, whatever their outcomes."""
        everybody = np.ones(len(batch.mine), bool)
        asked = batch.arms(everybody, self._in_pairs)
        counts = {name: int(which.sum()) for name, which in asked.items()}
        errors = {CHAMPION: 0, CHALLENGER: int((asked[CHALLENGER] & ~batch.answered).sum())}
        arms = {name: Arm(n, errors[name], n, errors[name]) for name, n in counts.items()}
        if self._in_pairs:
            pairs = Pairs(asked=counts[CHALLENGER], missed=errors[CHALLENGER])
            return replace(self._nothing, arms=arms, pairs={CHALLENGER: pairs})
        period = Period(batch.shares, counts, counts, apart=counts, apart_failed=errors, missed=errors)
        return replace(self._nothing, arms=arms, periods=(period,))

    def _told(self, batch: _Batch, look: int) -> Evidence:
        """What the outcomes of a batch say that count from a look on."""
        new = batch.arms(np.maximum(batch.known, batch.matures) == look, self._in_pairs)
        aged = batch.arms(batch.matures == look, self._in_pairs)
        for which in (new, aged):
            which[CHALLENGER] = which[CHALLENGER] & batch.answered
        arms = {}
        for name, scores in ((CHAMPION, batch.rows.champion), (CHALLENGER, batch.rows.challenger)):
            y = batch.rows.outcome[new[name]]
            arm = scored(scores[new[name]], y, self._threshold(name), self.rules.costs)
            if not self._in_pairs:
                sums = {metric: getattr(arm, each) for metric, each in FIELDS.items()}
                share, tilt = batch.shares[name], bandit.tilt(self.rules.weighting, batch.shares.values())
                weighted = {metric: each.weighted(share, tilt) for metric, each in sums.items() if each}
                arm = replace(arm, weighted=weighted)
            arms[name] = replace(arm, mature=int(aged[name].sum()))
        if not self._in_pairs:
            served, labels = (
                {name: getattr(arm, which) for name, arm in arms.items()} for which in ("mature", "labelled")
            )
            period = Period(batch.shares, served=served, labels=labels)
            return replace(self._nothing, arms=arms, periods=(period,))
        one, other, y = (each[new[CHALLENGER]] for each in batch.rows)
        thresholds = self._threshold(CHAMPION), self._threshold(CHALLENGER)
        pairs = paired(one, other, y, thresholds, self.rules.costs)
        pairs = replace(pairs, mature=arms[CHALLENGER].mature)
        return replace(self._nothing, arms=arms, pairs={CHALLENGER: pairs})

    @property
    def _in_pairs(self) -> bool:
        return self.design == "shadow"

    @property
    def _nothing(self) -> Evidence:
        """Evidence in which nothing is counted."""
        return Evidence(self.design, CHAMPION, (CHALLENGER,), pairs={} if self._in_pairs else None)

    def _threshold(self, name: str) -> float:
        return self.rules.thresholds.get(name, 0.5)


@dataclass(frozen=True)
class _Batch:
    """Requests of one life that came between two looks: arrays of one length.

    Attributes:
        share: the challenger's.
        rows: scores and outcomes.
        mine: whether it came to the challenger, where only one answers.
        answered: whether the challenger answers, if it is asked.
        known: from which look on the outcome is known.
        matures: from which look on it is as old as an outcome that counts.
    """

    share: float
    rows: Rows
    mine: Truths
    answered: Truths
    known: Floats
    matures: Floats

    @property
    def shares(self) -> dict[str, float]:
        """By variant."""
        return {CHAMPION: 1 - self.share, CHALLENGER: self.share}

    def arms(self, which: Truths, both: bool) -> dict[str, Truths]:
        """Of some of them, those that each variant is asked."""
        if both:
            return {CHAMPION: which, CHALLENGER: which}
        return {CHAMPION: which & ~self.mine, CHALLENGER: which & self.mine}
