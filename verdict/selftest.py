"""Would this experiment be judged rightly? It is simulated as it is configured, by the code that judges.

Each stream is one life of the experiment, looked at again and again. Clients and scores are those of
`verdict/simulate.py`: what is told is how often the rules as declared name a winner, not how good a model is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import norm

from verdict import guardrails, plan, sequence, sequential
from verdict.contrast import FIELDS
from verdict.counted import paired, scored
from verdict.decision import judge
from verdict.evidence import Arm, Design, Evidence, Period, Rules
from verdict.rates import proportion_interval
from verdict.simulate import Credit, Delays, Rows, delay

CHAMPION, CHALLENGER = "champion", "challenger"
LOOKS = 8
# Of a broken challenger's answers, those that fail.
BROKEN = 0.2
SAME = Credit()
# The world in which it is the better one.
BETTER = "a better challenger"
# The power for which one plans, and the best challenger that is simulated.
POWER, BEST = 0.8, 0.999
# A score's mean is taken over so many quantiles of what a model sees, a variance in pairs over so many rows.
QUANTILES, PAIRS = 10_000, 100_000
# To the sixth digit of an AUC.
BISECTIONS = 20


@dataclass(frozen=True)
class Scenario:
    """A world in which the experiment runs.

    Attributes:
        name: of the world.
        wrong: the decisions that are wrong in it; of the others `right` is the one that is hoped for.
        right: see there.
        credit: the clients and both models.
        errors: the share of the challenger's answers that fail.
        late: whether outcomes become known late, those of defaults first.
    """

    name: str
    wrong: tuple[str, ...]
    right: str | None
    credit: Credit = SAME
    errors: float = 0.0
    late: bool = False


@dataclass(frozen=True)
class Result:
    """How many of some streams ever had a wrong decision, or at last the right one."""

    scenario: str
    streams: int
    wrong: int
    right: int
    hoped: str | None

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


def scenarios(better: float) -> tuple[Scenario, ...]:
    """The worlds that are tried: `better` is the challenger's AUC where it is the better one."""
    return (
        Scenario("the same quality", ("promote", "keep"), None),
        Scenario(BETTER, ("keep",), "promote", replace(SAME, challenger=better)),
        Scenario("late outcomes", ("promote", "keep"), None, late=True),
        Scenario("a drifting base rate", ("promote", "keep"), None, replace(SAME, drift=1.0)),
        Scenario("a broken challenger", ("promote",), "keep", errors=BROKEN),
    )


def tried(experiment: Experiment, scenario: Scenario, streams: int, seed: int = 1) -> Iterator[Result]:
    """Let an experiment live some times in a world; the result so far after each."""
    rng = np.random.default_rng(seed)
    wrong = right = 0
    for stream in range(1, streams + 1):
        seen = [experiment.decided(evidence) for evidence in experiment.lives(scenario, rng)]
        wrong += any(each in scenario.wrong for each in seen)
        right += seen[-1] == scenario.right
        yield Result(scenario.name, stream, wrong, right, scenario.right)


@dataclass(frozen=True)
class Experiment:
    """An experiment as it is configured.

    Attributes:
        rules: as declared; thresholds are those of the names "champion" and "challenger".
        design: of a bandit the split at its beginning is simulated.
        share: the challenger's.
        outcomes: of each life.
        steps: of a canary, among which its guardrails share their α.
    """

    rules: Rules
    design: Design
    share: float
    outcomes: int
    steps: int = 1

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
        drift = float(norm.ppf(1 - self.rules.alpha / 2) + norm.ppf(POWER))
        return float(sequential.crossing(times, bounds, drift)[0].sum())

    def decided(self, evidence: Evidence) -> str:
        """The decision; "keep" also where a guardrail would send a canary back."""
        if guardrails.at_step(evidence, CHALLENGER, self.rules, self.steps, 0).says == "regress":
            return "keep"
        return judge(evidence, self.rules).decision

    def lives(self, scenario: Scenario, rng: np.random.Generator) -> Iterator[Evidence]:
        """What is known at each look of one life."""
        batch = max(self.outcomes // LOOKS, 1)
        paired = self.design == "shadow"
        evidence = Evidence(
            "shadow" if paired else "split", CHAMPION, (CHALLENGER,), pairs={} if paired else None
        )
        delays = Delays()
        for look in range(LOOKS):
            rows = scenario.credit.draw(rng, (batch,), look / LOOKS)
            known = np.ones(batch, bool)
            if scenario.late and self.rules.maturity == 0:
                # What has come by the end of the life: of the last requests the early outcomes alone.
                left = (LOOKS - look) * (delays.paid + 1) / LOOKS
                known = delay(rng, rows.outcome, delays) <= left
            failed = rng.random(batch) < scenario.errors
            mine = rng.random(batch) < self.share
            added = self._pairs(rows, known, ~failed) if paired else self._arms(rows, known, ~failed, mine)
            evidence = evidence + replace(added, first=float(look), last=float(look + 1))
            yield evidence

    def _score(self, name: str, auc: float) -> tuple[float, float]:
        """The mean and the variance of a variant's score."""
        seen = norm.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES)
        mean = square = 0.0
        for outcome, share in ((0.0, 1 - SAME.rate), (1.0, SAME.rate)):
            y = np.full(QUANTILES, outcome)
            arm = scored(SAME.score(seen, y, auc), y, self._threshold(name), self.rules.costs)
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

    def _pairs(self, rows: Rows, known: Any, answered: Any) -> Evidence:
        """What a batch adds where both score each request."""
        everybody = np.ones(len(known), bool)
        arms = {
            CHAMPION: self._arm(CHAMPION, rows.champion, rows.outcome, known, everybody),
            CHALLENGER: self._arm(CHALLENGER, rows.challenger, rows.outcome, known, answered),
        }
        one, other, y = (each[known & answered] for each in rows)
        thresholds = self._threshold(CHAMPION), self._threshold(CHALLENGER)
        pairs = replace(paired(one, other, y, thresholds, self.rules.costs), mature=int(answered.sum()))
        return Evidence("shadow", CHAMPION, (CHALLENGER,), arms, {CHALLENGER: pairs})

    def _arms(self, rows: Rows, known: Any, answered: Any, mine: Any) -> Evidence:
        """What a batch adds where each request has one answer."""
        asked = {CHAMPION: ~mine, CHALLENGER: mine}
        scores = {CHAMPION: rows.champion, CHALLENGER: rows.challenger}
        arms = {}
        for name, which in asked.items():
            has = answered[which] | (name == CHAMPION)
            arms[name] = self._arm(name, scores[name][which], rows.outcome[which], known[which], has)
        period = Period(
            {CHAMPION: 1 - self.share, CHALLENGER: self.share},
            requests={name: arm.requests for name, arm in arms.items()},
            assigned={name: arm.requests for name, arm in arms.items()},
            served={name: arm.mature for name, arm in arms.items()},
            labels={name: arm.labelled for name, arm in arms.items()},
            apart={name: arm.apart for name, arm in arms.items()},
            apart_failed={name: arm.apart_failed for name, arm in arms.items()},
        )
        return Evidence("split", CHAMPION, (CHALLENGER,), arms, periods=(period,))

    def _arm(self, name: str, scores: Any, outcomes: Any, known: Any, answered: Any) -> Arm:
        """The sums of a variant over what it was asked."""
        p, y = scores[known & answered], outcomes[known & answered]
        arm = scored(p, y, self._threshold(name), self.rules.costs)
        answers = int(answered.sum())
        requests, errors = len(scores), len(scores) - answers
        return replace(
            arm, requests=requests, errors=errors, apart=requests, apart_failed=errors, mature=answers
        )

    def _threshold(self, name: str) -> float:
        return self.rules.thresholds.get(name, 0.5)
