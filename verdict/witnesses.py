"""Settings in which rows are not independent: batches, units that ask a lot, requests that are tried again.

Both models are equally good, and not alike. The streams are groups of rows, and two rules are compared: the
old one counted each row of a batch, and the last rows of a unit together; the new one counts each group with
all of its rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from verdict import sequence
from verdict.counted import score
from verdict.harness import ALPHA, RULES, Rate, Truths, enough
from verdict.sequence import Floats
from verdict.settings import Rates
from verdict.simulate import Summed

# So many rows of a unit were counted together, before.
TOGETHER = 500
# How often the outcome is 1: of clients, and of batches, which are of the one kind or of the other. What both
# models say of whom, so that they are equally good: as far from the mean rate on both sides.
CLIENTS, BATCHES = 0.2, (0.02, 0.5)
SAID = {"clients": (0.1, 0.3), "batches": (0.18, 0.34)}


@dataclass(frozen=True)
class Crowd:
    """A way in which rows belong together.

    Attributes:
        name: of it.
        design: "shadow" or "split".
        of: batches, or clients.
        size: of a batch.
        heavy: units that ask a lot.
        share: of the rows that are theirs.
        tried: the share of clients who try again.
        times: how often these do.
        named: whether those who try again have a unit, by which they are known.
        looks: at the stream.
        batch: rows between two looks, about.
    """

    name: str
    design: Literal["shadow", "split"] = "shadow"
    of: Literal["clients", "batches"] = "clients"
    size: int = 50
    heavy: int = 0
    share: float = 0.0
    tried: float = 0.0
    times: int = 5
    named: bool = True
    looks: int = 200
    batch: int = 100


class Came(NamedTuple):
    """Groups of rows that came at a look, of shape (streams, groups).

    Attributes:
        rows: with the outcome 0, and with 1, of shape (2, streams, groups).
        challenged: which got the challenger in a split.
        unit: whether they are of the units that come at each look.
    """

    rows: Floats
    challenged: Truths
    unit: bool


def arrivals(rng: np.random.Generator, crowd: Crowd, streams: int) -> Iterator[list[Came]]:
    """What comes at each look."""

    def half(groups: int) -> Truths:
        return np.asarray(rng.random((streams, groups)) < 0.5)  # noqa: PLR2004

    units = rng.random((streams, crowd.heavy)) < CLIENTS
    kept, theirs = half(crowd.heavy), round(crowd.batch * crowd.share)
    for _ in range(crowd.looks):
        if crowd.of == "batches":
            groups = max(crowd.batch // crowd.size, 1)
            ones = rng.binomial(crowd.size, rng.choice(BATCHES, (streams, groups))).astype(float)
            yield [Came(np.stack([crowd.size - ones, ones]), half(groups), unit=False)]
            continue
        shape = (streams, crowd.batch - theirs)
        y = rng.random(shape) < CLIENTS
        rows = 1.0 + crowd.times * (rng.random(shape) < crowd.tried)
        found = [Came(np.stack([rows * ~y, rows * y]), half(shape[1]), unit=False)]
        if crowd.heavy:
            rows = rng.multinomial(theirs, np.full(crowd.heavy, 1 / crowd.heavy), streams).astype(float)
            found.append(Came(np.stack([rows * ~units, rows * units]), kept, unit=True))
        yield found


class Sums(NamedTuple):
    """The sums of arms, or of pairs, after a look: by the witnesses of before, and of now."""

    before: list[Summed]
    now: list[Summed]


def looks(rng: np.random.Generator, crowd: Crowd, streams: int) -> Iterator[Sums]:
    """The sums after each look."""
    arms = 1 if crowd.design == "shadow" else 2
    # With the outcome 0, and with 1: of the champion, and of the challenger.
    both = [
        np.array([float(score("brier", np.array(p), np.array(y))) for y in (0, 1)]) for p in SAID[crowd.of]
    ]
    scores = [both[0] - both[1]] if arms == 1 else both
    found = Sums(*([Summed(streams) for _ in range(arms)] for _ in range(2)))
    sofar = np.zeros((arms, 2, streams, crowd.heavy))
    for came in arrivals(rng, crowd, streams):
        for arm, x in enumerate(scores):
            for group in came:
                rows = group.rows if arms == 1 else group.rows * (group.challenged == bool(arm))
                for sums in (found.before[arm], found.now[arm]):
                    sums.count((x[:1].repeat(2), x[1:].repeat(2)), np.array([0.0, 1.0]), rows.sum(2).T)
                n, t, q = rows.sum(0), np.tensordot(x, rows, 1), np.tensordot(x * x, rows, 1)
                if group.unit:
                    before = sofar[arm]
                    last = np.minimum(1.0, TOGETHER / np.maximum(before[0], 1))
                    _together(found.now[arm], (n, t, q), before, before[0] == 0)
                    _together(found.before[arm], (n, t, q), before * last, before[0] == 0)
                    sofar[arm] += np.stack([n, t])
                elif crowd.of == "batches" or crowd.named:
                    _together(found.now[arm], (n, t, q), np.zeros((2, *n.shape)), np.ones_like(n) > 0)
        yield found


def _together(sums: Summed, new: tuple[Floats, Floats, Floats], before: Floats, first: Truths) -> None:
    """Add what rows of groups make with each other, and with those of before.

    Args:
        sums: to which each of the rows was added alone.
        new: of each group how many rows, Σx and Σx².
        before: how many came before and count, and their Σx.
        first: which groups come for the first time.
    """
    (n, t, q), (m, s) = new, before
    more = [2 * m * n + n * n - n, m * t + s * n + n * t - t, 2 * s * t + t * t - q]
    sums.squares = sums.squares + np.stack([each.sum(1) for each in more])
    sums.units = sums.units - (n - ((n > 0) & first)).sum(1)


def wrong(crowd: Crowd, streams: int, seed: int = 19) -> Rates:
    """In how many streams a winner is ever named, by the witnesses of before, and of now."""
    ever = np.zeros((2, streams), bool)
    for found in looks(np.random.default_rng(seed), crowd, streams):
        for which, arms in enumerate(found):
            value = arms[0].mean - sum(arm.mean for arm in arms[1:])
            error = np.sqrt(sum(arm.error**2 for arm in arms))
            error = np.where(error > 0, error, np.inf)
            n = np.asarray(sum(arm.n for arm in arms))
            log_e = sequence.log_e_value(value, error, n, RULES.n_star, ALPHA)
            believed = np.all([enough(arm) for arm in arms], axis=0)
            ever[which] |= believed & (log_e >= -math.log(ALPHA))
    return Rates(*(Rate(crowd.name, int(each.sum()), streams) for each in ever))


def distrusted(crowd: Crowd, streams: int, seed: int = 20) -> Rates:
    """In how many streams of a split the check of propensities ever fails without cause; see `wrong`."""
    ever = np.zeros((2, streams), bool)
    for found in looks(np.random.default_rng(seed), crowd, streams):
        for which, arms in enumerate(found):
            # By overlap a row of a split in halves counts a half.
            n, total = arms[0].n + arms[1].n, (arms[0].n - arms[1].n) / 2
            squares = (arms[0].squares[0] + arms[1].squares[0]) / 4
            error = np.sqrt(np.maximum(squares - total**2 / n, 0) / (n - 1) / n)
            log_e = sequence.log_e_value(total / n, error, n, RULES.n_star, RULES.trust_alpha)
            witnesses = np.minimum(*(arm.independent for arm in arms))
            failed = log_e >= -math.log(RULES.trust_alpha)
            ever[which] |= (witnesses >= RULES.min_outcomes) & failed
    return Rates(*(Rate(f"propensities, {crowd.name}", int(each.sum()), streams) for each in ever))


WITNESSES = (
    Crowd("split, batches of 50 rows of whom 2 or 50 % default", "split", "batches"),
    Crowd("shadow, batches of 50 rows of whom 2 or 50 % default", "shadow", "batches"),
    Crowd("split, batches of 10 rows of whom 2 or 50 % default", "split", "batches", size=10),
    *(
        Crowd(f"{design}, {name} of the rows", design, heavy=heavy, share=share, batch=500)
        for design in ("shadow", "split")
        for name, heavy, share in (("one unit with 30 %", 1, 0.3), ("60 units with 50 %", 60, 0.5))
    ),
    Crowd("shadow, 2 % of requests are tried again five times, with a unit", tried=0.02),
    Crowd("shadow, 20 % of requests are tried again five times, with a unit", tried=0.2),
)
# Of those nobody can tell who asks again.
UNNAMED = (
    Crowd("shadow, 2 % of requests are tried again five times, without units", tried=0.02, named=False),
)
