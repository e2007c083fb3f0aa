"""Settings in which standard errors mislead: streams of equally good models whose scores are not alike.

A setting is drawn as counts: how many rows came of each part of the traffic, with each outcome, to each
variant. So it is exact, however rare an outcome is, and costs the same however many rows there are. In each
part both models are equally good, and neither is the better one by how often the outcome is the rarer one:
what is drawn is asymmetric, as two symmetric models have no skewness that could mislead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from scipy.optimize import brentq

from verdict import bandit, bernstein, money, sequence
from verdict.contrast import ruler
from verdict.counted import score
from verdict.evidence import Costs, Evidence, Metric, Rules
from verdict.guardrails import LEAST_RARE
from verdict.harness import ALPHA, Rate, Truths
from verdict.sequence import Floats
from verdict.simulate import Summed

RULES = Rules()
# As decided by before: so many of the rarer outcome of all rows.
BEFORE = 25
# The score from which on a decision is positive.
FLAGGED = 0.5
Design = Literal["shadow", "split", "bandit"]
# What must not happen: that a winner is named, a p-value below α is shown, or a guardrail sends back.
Asked = Literal["winner", "p-value", "brier", "log-loss", "calibration"]


@dataclass(frozen=True)
class Part:
    """Rows that are alike: their share, what both models say of them, and how often the outcome is 1."""

    share: float
    champion: float
    challenger: float
    rate: float


@dataclass(frozen=True)
class Setting:
    """A way in which traffic comes, and what is decided by.

    Attributes:
        name: of it.
        parts: of the traffic; both models are equally good over all of them.
        asked: what must not happen.
        design: which.
        metric: that is decided by.
        costs: of the metric profit; decisions are positive from FLAGGED on.
        shares: the challenger's, each for as many looks; of a bandit that of the beginning.
        floor: of a bandit.
        late: the parts' shares at the end of the stream, where they move; each is fair then.
        n_star: for how many outcomes one plans.
        looks: at the stream.
        batch: rows between two looks.
    """

    name: str
    parts: tuple[Part, ...]
    asked: Asked = "winner"
    design: Design = "shadow"
    metric: Metric = "brier"
    costs: Costs | None = None
    shares: tuple[float, ...] = (0.5,)
    floor: float = 0.05
    late: tuple[float, ...] = ()
    n_star: int = RULES.n_star
    looks: int = 200
    batch: int = 100

    def scores(self, p: Floats) -> tuple[Floats, Floats]:
        """Of what a model says, with the outcome 0, and with 1."""
        if self.metric == "profit":
            assert self.costs
            none = np.zeros_like(p)
            return money.each(self.costs, p >= FLAGGED, none), money.each(self.costs, p >= FLAGGED, none + 1)
        return score(self.metric, p, np.zeros_like(p)), score(self.metric, p, np.ones_like(p))

    @property
    def advantage(self) -> float:
        """The champion's mean score less the challenger's: 0."""
        share, one, other, rate = np.array(
            [(p.share, p.champion, p.challenger, p.rate) for p in self.parts]
        ).T
        d = [mine - its for mine, its in zip(self.scores(one), self.scores(other), strict=True)]
        return float((share * ((1 - rate) * d[0] + rate * d[1])).sum())


def fair(share: float, champion: float, challenger: float, of: Setting | None = None) -> Part:
    """A part in which two models that say different things are equally good."""
    like = of or Setting("", ())
    one, other = (like.scores(np.array([p])) for p in (champion, challenger))
    d0, d1 = (float(mine[0] - its[0]) for mine, its in zip(one, other, strict=True))
    # q·d1 + (1 − q)·d0 = 0
    return Part(share, champion, challenger, d0 / (d0 - d1))


def same(share: float, p: float) -> Part:
    """A part of which both say the same, and rightly."""
    return Part(share, p, p, p)


def finding(rate: float) -> tuple[Part, ...]:
    """A champion that says the same of everybody, and a challenger that finds half of the defaults.

    It says too much of the others, by as much as makes the Brier scores the same.
    """
    found, told = 2 * rate, 0.25
    rest = (rate - found * told) / (1 - found)

    def excess(p: float) -> float:
        mine = found * told * (1 - told) + (1 - found) * (rest * (1 - p) ** 2 + (1 - rest) * p**2)
        return mine - rate * (1 - rate)

    p = float(brentq(excess, rest, 0.5, xtol=1e-15))
    return Part(found, rate, told, told), Part(1 - found, rate, p, rest)


class State(NamedTuple):
    """All streams at a look.

    What is measured, its error, and outcomes; whether the error was believed before, and is now; Σx² and
    whether there are as many as an exact interval takes, for pairs.
    """

    value: Floats
    error: Floats
    n: Floats
    before: Truths
    now: Truths
    squares: Floats
    least: Truths


def states(
    rng: np.random.Generator, setting: Setting, streams: int, inverse: bool = False
) -> Iterator[State]:
    """A look after each batch; `inverse` weighs rows by their inverse propensity, as they were before."""
    begin = np.array([part.share for part in setting.parts])
    end = np.array(setting.late) if setting.late else begin
    rates = np.array([part.rate for part in setting.parts])
    said = [
        np.array([getattr(part, who) for part in setting.parts] * 2) for who in ("champion", "challenger")
    ]
    outcome = np.repeat([0.0, 1.0], len(rates))
    arms = 1 if setting.design == "shadow" else 2
    sums, ones = [Summed(streams) for _ in range(arms)], np.zeros((arms, streams))
    share = np.full(streams, setting.shares[0])
    for look in range(setting.looks):
        progress = look / setting.looks
        mix = begin + (end - begin) * progress
        cells = np.concatenate([mix * (1 - rates), mix * rates])
        if setting.design == "split":
            share = np.full(streams, setting.shares[look * len(setting.shares) // setting.looks])
        chances = [np.ones(streams)] if arms == 1 else [1 - share, share]
        counts = rng.multinomial(
            setting.batch, np.concatenate([each[:, None] * cells for each in chances], 1)
        )
        for side, times in enumerate(np.split(counts.astype(float), arms, axis=1)):
            weight = None
            if arms == 2:  # noqa: PLR2004
                weight = 1 / chances[side] if inverse else chances[1 - side]
            sums[side].count(_measured(setting, said, side), outcome, times, weight)
            ones[side] += times @ outcome
        yield _state(setting, sums, ones)
        if setting.design == "bandit":
            # As the router has it, by the shares of the outcomes that are 1.
            n = np.stack([each.n for each in sums])
            rate = (ones + 1) / (n + 2)
            errors = np.sqrt(rate * (1 - rate) / (n + 2))
            share = bandit.thompson(rate[1] - rate[0], np.hypot(*errors), setting.floor)


def _measured(setting: Setting, said: list[Floats], side: int) -> tuple[Floats, Floats]:
    """What is summed of an arm, or of pairs."""
    if setting.asked == "calibration":
        return -said[side], 1 - said[side]
    one, other = (setting.scores(p) for p in said)
    if setting.design == "shadow":
        return one[0] - other[0], one[1] - other[1]
    return (one, other)[side]


def _state(setting: Setting, sums: list[Summed], ones: Floats) -> State:
    judged = [sums[1]] if setting.asked == "calibration" else sums
    n = np.stack([each.n for each in sums])
    guards = setting.asked in ("brier", "log-loss", "calibration")
    rarer = np.minimum(ones, n - ones).min(0)
    before = np.ones_like(n[0], bool) if setting.asked == "p-value" else rarer >= BEFORE
    least = n.min(0) >= RULES.min_outcomes
    if guards:
        # Both together, of all that is calibrated one's own.
        least = sum(each.n for each in judged) >= RULES.min_outcomes
        before = np.ones_like(before)
    rare = np.stack([each.effective for each in judged]).min(0) >= (LEAST_RARE if guards else RULES.min_each)
    independent = np.stack([each.independent for each in judged]).min(0) >= RULES.min_outcomes
    value = judged[0].mean - sum(each.mean for each in judged[1:])
    return State(
        value,
        np.sqrt(sum(each.error**2 for each in judged)),
        np.asarray(sum(each.n for each in judged)),
        np.asarray(before & (least | (setting.asked == "p-value"))),
        np.asarray(rare & least & (independent | guards)),
        judged[0].rows[2],
        np.asarray(least),
    )


class Rates(NamedTuple):
    """How often it happens in a setting, by what was asked for before, and by what is now."""

    before: Rate
    now: Rate


def wrong(setting: Setting, streams: int, seed: int = 17) -> Rates:
    """In how many streams what must not happen ever does."""
    ever = {}
    weighted = setting.design != "shadow"
    for inverse in (False, True) if weighted else (False,):
        found = np.zeros((2, streams), bool)
        for state in states(np.random.default_rng(seed), setting, streams, inverse):
            out = _out(setting, state)
            found |= np.stack([out & state.before, np.where(state.now, out, _exactly(setting, state))])
        ever[inverse] = found.sum(1)
    before, now = ever[weighted][0], ever[False][1]
    return Rates(*(Rate(setting.name, int(count), streams) for count in (before, now)))


def _out(setting: Setting, state: State) -> Truths:
    """Where the e-value has reached its bound."""
    error = np.where(state.error > 0, state.error, np.inf)
    if setting.asked in ("brier", "log-loss"):
        # The challenger's harm is the champion's loss less its own, with the other sign.
        log_e = sequence.log_e_value_above(-state.value, error, state.n, setting.n_star, ALPHA)
    else:
        log_e = sequence.log_e_value(state.value, error, state.n, setting.n_star, ALPHA)
    return np.asarray(log_e >= -math.log(ALPHA))


def _exactly(setting: Setting, state: State) -> Truths:
    """The same of exact intervals, which pairs by the Brier score have as long as no error is believed."""
    open_ = state.least & ~state.now
    if setting.design != "shadow" or setting.metric != "brier" or not open_.any():
        return np.zeros_like(open_)
    rules = replace(RULES, n_star=setting.n_star)
    measured = ruler(Evidence("shadow", "A", ("B",)), "brier", rules, ALPHA, "B")
    assert measured.exact
    c, rho, bet = measured.exact
    log_e = bernstein.log_e_value(state.value * state.n, state.squares, rho, c, bet)
    return np.asarray(open_ & (log_e >= -math.log(ALPHA)))


_LOG = Setting("", (), metric="log-loss")
_MISS = Setting("", (), metric="profit", costs=Costs(tp=0, fp=-1, tn=0, fn=-100))
_ALARM = Setting("", (), metric="profit", costs=Costs(tp=1, fp=-50, tn=0, fn=0))
_REST = 0.2


def _differing(
    share: float, champion: float, challenger: float, of: Setting | None = None
) -> tuple[Part, ...]:
    """Models that differ on a share of the rows alone."""
    return fair(share, champion, challenger, of), same(1 - share, _REST)


# Many rows that tell little, and a few that tell much and seldom.
_MIXED = (fair(0.25, 0.302, 0.298), fair(0.25, 0.298, 0.302), fair(0.01, 0.2, 0.0), same(0.49, 0.3))
_ENDS = (fair(0.05, 0.02, 0.0), fair(0.05, 0.98, 1.0), same(0.9, 0.3))

ERRORS = (
    *(
        Setting(f"shadow, Brier, {share:.1%} of rows .02 and 0", _differing(share, 0.02, 0.0))
        for share in (0.001, 0.01, 0.1)
    ),
    Setting("shadow, Brier, 10 % of rows .10 and 0", _differing(0.1, 0.1, 0.0)),
    replace(
        _LOG, name="shadow, log loss, 10 % of rows 1e-3 and 1e-6", parts=_differing(0.1, 1e-3, 1e-6, _LOG)
    ),
    replace(
        _MISS,
        name="shadow, profit, 5 % decided differently, a miss costs 100 false alarms",
        parts=_differing(0.05, 0.6, 0.4, _MISS),
    ),
    *(
        Setting(f"split, p-value below .05, {rate:.1%} defaults", finding(rate), "p-value", "split")
        for rate in (0.01, 0.001)
    ),
    *(
        Setting(f"shadow, p-value below .05, {rate:.1%} defaults", finding(rate), "p-value")
        for rate in (0.01, 0.001)
    ),
)
GUARDRAILS = (
    *(
        Setting(
            f"canary, calibration, a calibrated challenger, {rate:.1%} defaults",
            (Part(1.0, rate, rate, rate),),
            *("calibration", "split"),
            shares=(0.25,),
        )
        for rate in (0.01, 0.001)
    ),
    *(
        Setting(f"canary, brier, equally good, {rate:.1%} defaults", finding(rate), "brier", "split")
        for rate in (0.01, 0.001)
    ),
)
WEIGHTS = (
    Setting(
        "split, 50 % for 1,000 rows, then 1 %; 5 % defaults",
        (fair(1.0, 0.02, 0.08),),
        design="split",
        shares=(0.5, *(0.01,) * 19),
    ),
    Setting(
        "split, 50 changes of weights between 1 and 50 %",
        (fair(1.0, 0.02, 0.08),),
        design="split",
        shares=(0.01, 0.5) * 25,
    ),
    Setting(
        "bandit, defaults drift from 5 to 40 %, floor .01",
        (fair(1.0, 0.02, 0.08), fair(0.0, 0.3, 0.5)),
        design="bandit",
        floor=0.01,
        late=(0.0, 1.0),
    ),
)
FURTHER = (
    Setting("shadow, Brier, many rows tell little, 1 % of them .20 and 0", _MIXED),
    Setting("shadow, Brier, the same, a look every 1,000 rows", _MIXED, batch=1000),
    Setting("shadow, Brier, 5 % of rows .02 and 0, 5 % .98 and 1", _ENDS),
    Setting("shadow, Brier, the same, a look every 1,000 rows", _ENDS, batch=1000),
    Setting("shadow, Brier, 10 % of rows .98 and 1", _differing(0.1, 0.98, 1.0)),
    Setting(
        "shadow, Brier, 10 % of rows .02 and 0, a look every 1,000 rows",
        _differing(0.1, 0.02, 0.0),
        batch=1000,
    ),
    Setting(
        "shadow, Brier, 10 % of rows .10 and 0, planned for 1,000", _differing(0.1, 0.1, 0.0), n_star=1000
    ),
    Setting(
        "shadow, Brier, half of the rows .002 and 0, 1 % .30 and .20",
        (fair(0.5, 0.002, 0.0), fair(0.01, 0.3, 0.2), same(0.49, 0.3)),
    ),
    replace(
        _LOG,
        name="shadow, log loss, 1 % of rows 1e-2 and 1e-6, others .31 and .29",
        parts=(fair(0.01, 1e-2, 1e-6, _LOG), fair(0.5, 0.31, 0.29, _LOG), same(0.49, 0.3)),
    ),
    replace(
        _ALARM,
        name="shadow, profit, 5 % decided differently, a false alarm costs 50",
        parts=_differing(0.05, 0.6, 0.4, _ALARM),
    ),
    Setting("split, Brier, a challenger that finds half of 1.0% defaults", finding(0.01), design="split"),
    Setting(
        "split, Brier, the same at 5 % of the traffic",
        finding(0.01),
        design="split",
        shares=(0.05,),
    ),
    replace(
        _LOG,
        name="split, log loss, 10 % of rows 1e-2 and 1e-6",
        design="split",
        parts=_differing(0.1, 1e-2, 1e-6, _LOG),
    ),
    replace(
        _MISS,
        name="split, profit, 5 % decided differently, a miss costs 100",
        design="split",
        parts=_differing(0.05, 0.6, 0.4, _MISS),
    ),
    Setting(
        "split, a ramp from 1 to 50 % in six steps, 5 % defaults",
        (fair(1.0, 0.02, 0.08),),
        design="split",
        shares=(0.01, 0.02, 0.05, 0.1, 0.25, 0.5),
    ),
    Setting(
        "bandit, defaults drift from 40 to 5 %, floor .01",
        (fair(0.0, 0.02, 0.08), fair(1.0, 0.3, 0.5)),
        design="bandit",
        floor=0.01,
        late=(1.0, 0.0),
    ),
    Setting("bandit, 10 % of rows .10 and 0", _differing(0.1, 0.1, 0.0), design="bandit"),
)
