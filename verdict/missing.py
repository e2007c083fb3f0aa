"""Missing answers and outcomes: streams of equally good models of which one loses answers or outcomes.

The short forms of these settings are tests, the long ones lines of `make validate`. At each look it is
decided as `verdict/trust.py` decides of one experiment, here by arrays over the streams.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from verdict import multinomial, rates, sequence
from verdict.counted import score
from verdict.evidence import TENTHS, Rules
from verdict.harness import ALPHA, Rate, Truths
from verdict.sequence import Floats
from verdict.simulate import Summed
from verdict.trust import TOLERATED, UNLIKE

RULES = Rules()
# The share of pairs that might be missing before.
BEFORE = 0.05
# Looks that are one cell of the grid of time.
CELL = 20


@dataclass(frozen=True)
class Part:
    """Rows that are alike.

    Attributes:
        share: of all rows.
        champion, challenger: what both models say of them.
        rate: how often the outcome is 1.
        fails: how often the champion gives no answer, and the challenger.
        lost: how often an outcome of an answer of the champion never becomes known, if it is 0, and if it is
            1; in pairs that of both.
        its_lost: the same of the challenger.
        late: how often an outcome 1 comes after the maturity, whoever answered.
    """

    share: float
    champion: float
    challenger: float
    rate: float
    fails: tuple[float, float] = (0.0, 0.0)
    lost: tuple[float, float] = (0.0, 0.0)
    its_lost: tuple[float, float] = (0.0, 0.0)
    late: float = 0.0


@dataclass(frozen=True)
class Setting:
    """A way in which something is missing; both models are equally good over all rows.

    Attributes:
        name: of it.
        parts: of the traffic.
        design: which.
        share: the challenger's, in a split.
        ends: the parts' shares at the end of the stream, where they move.
        fails_late: the challenger fails in the last tenth of the stream alone.
        behind: how many looks late outcomes come late.
        looks: at the stream.
        batch: rows between two looks.
    """

    name: str
    parts: tuple[Part, ...]
    design: Literal["shadow", "split"] = "shadow"
    share: float = 0.5
    ends: tuple[float, ...] = ()
    fails_late: bool = False
    behind: int = 10
    looks: int = 200
    batch: int = 100

    @property
    def advantage(self) -> float:
        """The champion's mean Brier score less the challenger's."""
        return sum(each.share * _advantage(each) for each in self.parts)


def _advantage(part: Part) -> float:
    one, other = (p**2 * (1 - part.rate) + (1 - p) ** 2 * part.rate for p in (part.champion, part.challenger))
    return one - other


def balanced(worse: Part, champion: float, challenger: float) -> tuple[Part, ...]:
    """These rows, and all others, on which the challenger is better by as much as it is worse on these."""
    rest = Part(1 - worse.share, champion, challenger, 0.0)
    ends = [_advantage(replace(rest, rate=rate)) for rate in (0.0, 1.0)]
    wanted = -worse.share * _advantage(worse) / rest.share
    return worse, replace(rest, rate=(wanted - ends[0]) / (ends[1] - ends[0]))


class Seen(NamedTuple):
    """All streams at a look: arrays of shape (streams,).

    Attributes:
        named: whether a winner was named before but for the checks.
        surely: whether one is now.
        before: whether a check of before fails.
        now: those of now, by their names.
    """

    named: Truths
    surely: Truths
    before: Truths
    now: dict[str, Truths]


def states(rng: np.random.Generator, setting: Setting, streams: int) -> Iterator[Seen]:
    """A look after each batch."""
    world = Shadow(setting, streams) if setting.design == "shadow" else Split(setting, streams)
    begin = np.array([part.share for part in setting.parts])
    end = np.array(setting.ends) if setting.ends else begin
    for look in range(setting.looks):
        world.comes(rng, begin + (end - begin) * look / setting.looks, look)
        yield world.seen()


class World:
    """Sums over the rows so far: rows are of a part and have an outcome, cells of shape (parts, 2)."""

    def __init__(self, setting: Setting, streams: int) -> None:
        self.setting, self.streams, self.cells = setting, streams, (streams, len(setting.parts), 2)
        parts = setting.parts
        self.rate = np.array([[1 - each.rate, each.rate] for each in parts])
        self.fails = np.array([each.fails for each in parts])
        self.lost = np.array([[each.lost, each.its_lost] for each in parts])
        self.late = np.array([[0.0, each.late] for each in parts])
        self.said = [np.array([getattr(each, who) for each in parts]) for who in ("champion", "challenger")]
        self.known_late, self.labelled = np.zeros((2, streams, 2))
        self.waiting: dict[int, list[tuple[int, Floats]]] = {}

    def split_off(self, rng: np.random.Generator, counts: Floats, chance: Floats) -> tuple[Floats, Floats]:
        """Those of some rows to which something happens with a chance, and the others."""
        some = rng.binomial(counts.astype(np.int64), np.broadcast_to(chance, counts.shape)).astype(float)
        return some, counts - some

    def told(self, rng: np.random.Generator, rows: Floats, side: int, look: int) -> Floats:
        """What becomes known at a look, of what is answered then, and of what was before and comes late."""
        _, known = self.split_off(rng, rows, self.lost[:, side])
        late, now = self.split_off(rng, known, self.late)
        self.waiting.setdefault(look + self.setting.behind, []).append((side, late))
        came = sum((each for its, each in self.waiting.get(look, []) if its == side), np.zeros(self.cells))
        self.known_late += came.sum(1)
        self.labelled += (came + now).sum(1)
        return np.asarray(came + now)

    def too_late(self) -> Truths:
        """Where the check of the maturity fails."""
        return _fails(
            *(rates.log_e_value_above(self.known_late[:, y], self.labelled[:, y], TOLERATED) for y in (0, 1))
        )

    def sums(self, sums: Summed, scores: tuple[Floats, Floats], times: Floats) -> None:
        """Add rows of each cell so many times."""
        outcome = np.tile([0.0, 1.0], len(self.setting.parts))
        of_cells = np.repeat(scores[0], 2), np.repeat(scores[1], 2)
        sums.count(of_cells, outcome, times.reshape(self.streams, -1))


class Shadow(World):
    def __init__(self, setting: Setting, streams: int) -> None:
        super().__init__(setting, streams)
        self.pairs = Summed(streams)
        self.asked, self.missed = np.zeros((2, streams))
        cells = -(-setting.looks // CELL)
        # Of what is labelled, of cells of time: all rows, and pairs, by outcome.
        self.all, self.both = np.zeros((2, streams, cells, 2))

    def comes(self, rng: np.random.Generator, mix: Floats, look: int) -> None:
        chances = (mix[:, None] * self.rate).ravel()
        rows = rng.multinomial(self.setting.batch, chances / chances.sum(), self.streams).astype(float)
        rows = rows.reshape(self.cells)
        fails = self.fails[:, 1:] * (not self.setting.fails_late or look >= 0.9 * self.setting.looks)
        missed, paired = self.split_off(rng, rows, fails)
        self.asked += rows.sum((1, 2))
        self.missed += missed.sum((1, 2))
        # Of pairs, and of what the champion alone answered.
        pairs, alone = self.told(rng, paired, 0, look), self.told(rng, missed, 1, look)
        self.all[:, look // CELL] += (pairs + alone).sum(1)
        self.both[:, look // CELL] += pairs.sum(1)
        one, other = ((score("brier", p, p * 0), score("brier", p, p * 0 + 1)) for p in self.said)
        self.sums(self.pairs, (one[0] - other[0], one[1] - other[1]), pairs)

    def seen(self) -> Seen:
        named = _named(self.pairs)
        # What is owed may be as wrong as can be.
        surely = _named(self.pairs, owed=self.missed / np.maximum(self.asked, 1))
        before = _fails(rates.log_e_value_above(self.missed, self.asked, BEFORE))
        share = self.all[:, :, 1] / np.maximum(self.all.sum(-1), 1)
        parts = [
            rates.log_e_value_of_odds(each[:, :, 1], each.sum(-1), share)
            for each in (self.all - self.both, self.both)
        ]
        many = rates.log_e_value_above(self.missed, self.asked, TOLERATED)
        return Seen(
            named,
            surely,
            before,
            {"pairs": _fails(many, rates.log_mean(*parts)), "maturity": self.too_late()},
        )


class Split(World):
    def __init__(self, setting: Setting, streams: int) -> None:
        super().__init__(setting, streams)
        self.arms = Summed(streams), Summed(streams)
        # By arm, and of these by tenth of the score.
        self.assigned, self.missed = np.zeros((2, streams, 2))
        self.served, self.labels = np.zeros((2, streams, 2, TENTHS))
        self.tenth = [np.minimum((p * TENTHS).astype(int), TENTHS - 1) for p in self.said]

    def comes(self, rng: np.random.Generator, mix: Floats, look: int) -> None:
        chances = (mix[:, None] * self.rate).ravel()
        rows = rng.multinomial(self.setting.batch, chances / chances.sum(), self.streams).astype(float)
        its, mine = self.split_off(rng, rows.reshape(self.cells), np.array(self.setting.share))
        for side, those in enumerate((mine, its)):
            missed, served = self.split_off(rng, those, self.fails[:, side : side + 1])
            labels = self.told(rng, served, side, look)
            self.assigned[:, side] += those.sum((1, 2))
            self.missed[:, side] += missed.sum((1, 2))
            for part, tenth in enumerate(self.tenth[side]):
                self.served[:, side, tenth] += served[:, part].sum(1)
                self.labels[:, side, tenth] += labels[:, part].sum(1)
            p = self.said[side]
            self.sums(self.arms[side], (score("brier", p, p * 0), score("brier", p, p * 0 + 1)), labels)

    def seen(self) -> Seen:
        share = self.setting.share
        # Of two variants one says as much as the other.
        owed = rates.log_e_value_of_odds(
            self.missed[:, 1:], self.missed.sum(1, keepdims=True), np.array([[share]])
        )
        rate = self.missed / np.maximum(self.assigned, 1)
        served, labels = self.served.sum(2), self.labels.sum(2)
        of = served[:, 1] / np.maximum(served.sum(1), 1)
        known = multinomial.log_bayes_factor(labels, np.stack([1 - of, of], -1))
        lacks = served - labels
        missing = rates.log_e_value_of_odds(lacks[:, 1:], lacks.sum(1, keepdims=True), of[:, None])
        named = _named(*self.arms)
        return Seen(
            named,
            named,
            _fails(known),
            {
                "answers": _fails(owed) & (np.abs(rate[:, 1] - rate[:, 0]) > TOLERATED),
                "label ratio": _fails(known, missing, self._by_score()),
                "maturity": self.too_late(),
            },
        )

    def _by_score(self) -> Floats:
        lacks = self.served - self.labels
        of = self.served[:, 1] / np.maximum(self.served.sum(1), 1)
        k, n, shares = (each[..., None] for each in (lacks[:, 1], lacks.sum(1), of))
        return rates.log_e_value_of_trend(k, n, shares, UNLIKE)


def _fails(*log_es: Floats) -> Truths:
    return np.asarray(rates.log_mean(*log_es) >= -math.log(RULES.trust_alpha))


def _named(*sums: Summed, owed: Floats | float = 0.0) -> Truths:
    """Where a winner is named: of pairs, or of both arms, whose standard errors are believed.

    It is, whatever the answers that are owed would change.
    """
    value = sums[0].mean - sum(each.mean for each in sums[1:])
    error = np.sqrt(sum(each.error**2 for each in sums))
    n = np.asarray(sum(each.n for each in sums))
    told = np.stack([each.effective for each in sums]).min(0) >= RULES.min_each
    told &= np.stack([each.independent for each in sums]).min(0) >= RULES.min_outcomes
    error = np.where(error > 0, error, np.inf)
    return np.asarray(told & (np.abs(value) - owed > sequence.radius(error, n, RULES.n_star, ALPHA)))


class Rates(NamedTuple):
    """How often a winner is ever named by the checks of before, and by those of now."""

    before: Rate
    now: Rate


def wrong(setting: Setting, streams: int, seed: int = 19) -> Rates:
    """In how many streams a winner is ever named though both models are equally good."""
    before, now = np.zeros((2, streams), bool)
    for seen in states(np.random.default_rng(seed), setting, streams):
        before |= seen.named & ~seen.before
        now |= seen.surely & ~np.logical_or.reduce([*seen.now.values()])
    return Rates(*(Rate(setting.name, int(each.sum()), streams) for each in (before, now)))


class Found(NamedTuple):
    """After how many rows half of the streams have a check that fails; infinite where it never does."""

    name: str
    before: float
    now: float


def found(setting: Setting, streams: int, seed: int = 20) -> Found:
    """When any check fails, by those of before and of now."""
    when = np.full((2, streams), np.inf)
    for look, seen in enumerate(states(np.random.default_rng(seed), setting, streams), start=1):
        for which, failed in enumerate((seen.before, np.logical_or.reduce([*seen.now.values()]))):
            when[which] = np.where(failed, np.minimum(when[which], look * setting.batch), when[which])
    return Found(setting.name, *(float(np.quantile(each, 0.5, method="inverted_cdf")) for each in when))


def failing(setting: Setting, streams: int, seed: int = 21) -> list[Rate]:
    """How often each check ever fails."""
    ever: dict[str, Truths] = {}
    for seen in states(np.random.default_rng(seed), setting, streams):
        ever = {name: ever.get(name, np.zeros(streams, bool)) | each for name, each in seen.now.items()}
    return [Rate(f"{setting.name}: {name}", int(each.sum()), streams) for name, each in ever.items()]


def _same(**more: tuple[float, float] | float) -> tuple[Part, ...]:
    """Clients of three kinds, of whom both say the same, and rightly."""
    return tuple(
        Part(share, p, p, p, **more)  # type: ignore[arg-type]
        for share, p in ((0.5, 0.05), (0.4, 0.25), (0.1, 0.6))
    )


def _unlike(**more: tuple[float, float] | float) -> tuple[Part, ...]:
    """Clients whom both sort in different ways, and alike well."""
    return tuple(
        Part(share, one, other, rate, **more)  # type: ignore[arg-type]
        for share, one, other, rate in (
            (0.4, 0.05, 0.1, 0.05),
            (0.4, 0.15, 0.1, 0.15),
            (0.1, 0.45, 0.45 - 0.05 * 2**0.5, 0.45),
            (0.1, 0.45, 0.45 + 0.05 * 2**0.5, 0.45),
        )
    )


# How often of each outcome some are lost, where as many are lost of either: q·x = (1 − q)·z at 18.5 %.
_RATE = sum(part.share * part.rate for part in _same())
_ZEROS = 0.05 * _RATE / (1 - _RATE)
_FAILING = (0.0, 1.0)

WRONG = (
    Setting(
        "shadow, the challenger fails on the 2 % that it is worst on",
        balanced(Part(0.02, 0.3, 0.7, 0.3, fails=_FAILING), 0.18, 0.22),
    ),
    Setting(
        "shadow, the challenger fails on the 2 % that it is worst on, which default as others do",
        balanced(Part(0.02, 0.2, 0.6, 0.2, fails=_FAILING), 0.18, 0.22),
    ),
    Setting(
        "shadow, the challenger fails on the 0.4 % that it is worst on",
        balanced(Part(0.004, 0.3, 0.9, 0.5, fails=_FAILING), 0.18, 0.22),
    ),
    Setting(
        "split, the challenger fails on the 2 % that it is worst on",
        balanced(Part(0.02, 0.3, 0.9, 0.4, fails=_FAILING), 0.1, 0.3),
        design="split",
    ),
    Setting(
        "split, the challenger refuses the 2 % that both are worst on",
        (Part(0.02, 0.5, 0.5, 0.5, fails=_FAILING), Part(0.98, 0.1, 0.1, 0.1)),
        design="split",
    ),
    Setting("split, the challenger loses 10 % of its outcomes 1", _same(its_lost=(0.0, 0.1)), design="split"),
    Setting(
        "split, the challenger loses 5 % of its outcomes 1, the champion as many outcomes 0",
        _same(lost=(_ZEROS, 0.0), its_lost=(0.0, 0.05)),
        design="split",
    ),
    Setting(
        "shadow, half of the outcomes 1 come 300 rows after the maturity",
        (Part(1.0, 0.14, 0.06, 0.1, late=0.5),),
        behind=3,
    ),
)
FOUND = (
    Setting("split, 2 % of the challenger's outcomes", _same(its_lost=(0.02, 0.02)), design="split"),
    Setting("split, 10 % of the challenger's outcomes 1", _same(its_lost=(0.0, 0.1)), design="split"),
    Setting("split, 2 % of the challenger's answers", _same(fails=(0.0, 0.02)), design="split"),
    Setting("shadow, 2 % of the challenger's answers", _same(fails=(0.0, 0.02))),
    Setting("shadow or split, 5 % of the outcomes 1 late", _same(late=0.05)),
)
NOT_FAILING = (
    Setting("split, 2 % of requests fail, whoever answers", _same(fails=(0.02, 0.02)), design="split"),
    Setting("split, the challenger fails 0.1 % more", _same(fails=(0.001, 0.002)), design="split"),
    Setting(
        "split at 10 %, of outcomes 0 half are known, of 1 all",
        _unlike(lost=(0.5, 0.0), its_lost=(0.5, 0.0)),
        design="split",
        share=0.1,
    ),
    Setting(
        "split, 5 % of the outcomes are missing, whoever answers",
        _unlike(lost=(0.05, 0.05), its_lost=(0.05, 0.05)),
        design="split",
    ),
    Setting("shadow, 0.4 % of the challenger's answers are missing", _same(fails=(0.0, 0.004))),
    Setting(
        "shadow, an outage of 4 % at the end, when half as many default",
        (Part(0.2, 0.1, 0.1, 0.1, fails=(0.0, 0.04)), Part(0.8, 0.3, 0.3, 0.3, fails=(0.0, 0.04))),
        ends=(0.8, 0.2),
        fails_late=True,
    ),
    Setting("shadow, 0.4 % of the outcomes 1 come late", _same(late=0.004)),
)
