"""Simulated credit: two models that score the same clients, and outcomes, also awkward ones.

Streams are drawn side by side, as arrays whose first axis is the stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit, ndtri

from verdict.sequence import Floats

# Where a sum is divided by that may be 0.
TINY = 1e-300


class Rows(NamedTuple):
    """What both models say of requests, and the outcomes: three arrays of one shape."""

    champion: Floats
    challenger: Floats
    outcome: Floats


@dataclass(frozen=True)
class Credit:
    """Clients and two models.

    Each model sees a number that is N(0, 1) for those who pay and N(d, 1) for those who default, with
    d = √2 Φ⁻¹(AUC); its score is the probability of default given that number, so it is calibrated.

    Attributes:
        rate: of defaults.
        champion: the champion's AUC.
        challenger: the challenger's.
        correlation: of what both see, among clients with the same outcome.
        sharpness: scores are that much too sure on the scale of logits; 1 is calibrated.
        shift: what the champion's logits are too high by.
        challenger_shift: what the challenger's are too high by.
        drift: at the end of the stream the logit of the rate is higher by that much, in the middle lower.
    """

    rate: float = 0.08
    champion: float = 0.731
    challenger: float = 0.731
    correlation: float = 0.9
    sharpness: float = 1.0
    shift: float = 0.0
    challenger_shift: float = 0.0
    drift: float = 0.0

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], progress: float = 0.0) -> Rows:
        """Rows of requests.

        Args:
            rng: the source of chance.
            shape: of the arrays.
            progress: where in the stream they are, from 0 to 1; matters with a drift.
        """
        rate = expit(logit(self.rate) - self.drift * np.sin(1.5 * np.pi * progress))
        y = (rng.random(shape) < rate).astype(float)
        common = rng.standard_normal(shape) * np.sqrt(self.correlation)
        own = np.sqrt(1 - self.correlation)
        scores = []
        for area, shift in ((self.champion, self.shift), (self.challenger, self.challenger_shift)):
            noise = common + own * rng.standard_normal(shape)
            scores.append(self.score(noise, y, area, shift))
        return Rows(scores[0], scores[1], y)

    def score(self, noise: Floats, y: Floats, area: float, shift: float = 0.0) -> Floats:
        """What a model says.

        Args:
            noise: N(0, 1), what it sees of a client besides the outcome.
            y: the outcomes, 0 or 1, of the same shape.
            area: its AUC.
            shift: what its logits are too high by.
        """
        d = separation(area)
        x = noise + d * y
        return np.asarray(expit(self.sharpness * (logit(self.rate) + d * x - d * d / 2) + shift))


def separation(area: float) -> float:
    """How far apart the means of two normal distributions of variance 1 are, for an area under the curve."""
    # Green & Swets (1966): AUC = Φ(d / √2)
    return float(np.sqrt(2) * ndtri(area))


class Delays(NamedTuple):
    """When outcomes become known, in periods after the request: defaults early, all others at the end."""

    first_default: int = 1
    last_default: int = 6
    paid: int = 9


def delay(rng: np.random.Generator, outcome: Floats, delays: Delays) -> Floats:
    """How many periods it takes until each outcome becomes known."""
    early = rng.integers(delays.first_default, delays.last_default + 1, outcome.shape)
    return np.asarray(np.where(outcome == 1, early, delays.paid), float)


class Running:
    """Sums of a number over rows, of many streams side by side: what `Moments` is for one.

    `n`, `total` and `squares` have one entry for each stream.
    """

    def __init__(self, streams: int) -> None:
        self.n, self.total, self.squares = (np.zeros(streams) for _ in range(3))

    def add(self, values: Floats, where: Floats | None = None) -> None:
        """Add values of shape (streams, rows); where a mask of that shape is given, those alone."""
        kept = np.ones_like(values) if where is None else where
        self.n = self.n + kept.sum(1)
        self.total = self.total + (values * kept).sum(1)
        self.squares = self.squares + (values * values * kept).sum(1)

    @property
    def mean(self) -> Floats:
        """Of each stream."""
        return np.asarray(self.total / np.maximum(self.n, 1))

    @property
    def error(self) -> Floats:
        """The standard error of each stream's mean; infinite with fewer than two rows."""
        spread = np.maximum(self.squares - self.n * self.mean**2, 0) / np.maximum(self.n - 1, 1)
        return np.where(self.n > 1, np.sqrt(spread / np.maximum(self.n, 1)), np.inf)


def effective(spread: Floats, squares: Floats, cubes: Floats) -> Floats:
    """As how many rarer outcomes rows of many streams tell: what `Swings.effective` is for one.

    Args:
        spread: of shape (streams,).
        squares: over the rows with the outcome 0, and with 1, of shape (2, streams).
        cubes: the same.
    """
    swing = np.divide(cubes, squares, out=np.zeros_like(cubes), where=squares > 0).max(0)
    return np.asarray(np.divide(spread, swing**2, out=np.full(spread.shape, np.inf), where=swing > 0))


class Summed:
    """Sums over rows of many streams side by side: what `ClusteredMoments` is for one, or `WeightedMoments`.

    All rows of a unit are the same.

    Attributes:
        n: rows, of shape (streams,), as the following.
        units: how many units they are of.
        w: Σw.
        total: Σwx.
        rows: Σw², Σw²x and Σw²x² as if rows were independent, of shape (3, streams).
        squares: the same of the sums by unit.
        swings: of wx, Σc² and Σc³ over the rows with the outcome 0, and with 1, of shape (2, 2, streams).
    """

    def __init__(self, streams: int) -> None:
        self.n, self.units, self.w, self.total = np.zeros((4, streams))
        self.rows, self.squares, self.swings = (np.zeros((*shape, streams)) for shape in ((3,), (3,), (2, 2)))
        self.weighted = False

    def add(
        self,
        scores: tuple[Floats, Floats],
        outcome: Floats,
        times: Floats,
        weight: Floats | None = None,
        before: Floats | None = None,
    ) -> None:
        """Add rows, all arrays of shape (streams, rows).

        Args:
            scores: of each row with the outcome 0, and with 1.
            outcome: which of both came.
            times: how often each counts.
            weight: of each stream's rows, of shape (streams,).
            before: of the unit that each is of, the Σw that was added before; None: each is one by itself.
        """
        x, c = np.where(outcome == 1, scores[1], scores[0]), np.abs(scores[1] - scores[0])
        sides = [times * (outcome == which) for which in (0, 1)]
        rows = np.stack([(times * x**power).sum(1) for power in (0, 1, 2)])
        swings = np.stack([[(mine * c**power).sum(1) for power in (2, 3)] for mine in sides])
        self._add(rows, swings, weight)
        if before is None:
            return
        # The units so far are those of `rows`: what is more is of those that come again.
        w = times if weight is None else times * weight[:, None]
        more = w * (2 * before + w) - (times if weight is None else times * weight[:, None] ** 2)
        self.squares += np.stack([(more * x**power).sum(1) for power in (0, 1, 2)])
        self.units = self.units - (times - ((times > 0) & (before == 0))).sum(1)

    def count(
        self, scores: tuple[Floats, Floats], outcome: Floats, times: Floats, weight: Floats | None = None
    ) -> None:
        """Add rows of a few kinds: what `add` does, where scores and outcomes are the same in all streams.

        Args:
            scores: of each kind with the outcome 0, and with 1, of shape (kinds,).
            outcome: which of both came, of the same shape.
            times: how often each came, of shape (streams, kinds).
            weight: as in `add`.
        """
        x, c = np.where(outcome == 1, scores[1], scores[0]), np.abs(scores[1] - scores[0])
        rows = times @ np.stack([x**power for power in (0, 1, 2)], 1)
        swings = times @ np.stack([(outcome == which) * c**power for which in (0, 1) for power in (2, 3)], 1)
        self._add(rows.T, swings.T.reshape(2, 2, -1), weight)

    def _add(self, rows: Floats, swings: Floats, weight: Floats | None) -> None:
        """Add Σx⁰, Σx, Σx² over rows that are independent, and their swings."""
        self.weighted |= weight is not None
        w = np.ones(1) if weight is None else weight
        self.n, self.units = self.n + rows[0], self.units + rows[0]
        self.w, self.total = self.w + w * rows[0], self.total + w * rows[1]
        self.rows, self.squares = self.rows + w**2 * rows, self.squares + w**2 * rows
        self.swings = self.swings + np.stack([w**2, w**3]) * swings

    @property
    def mean(self) -> Floats:
        """Of each stream."""
        return np.asarray(self.total / np.maximum(self.w, TINY))

    @property
    def error(self) -> Floats:
        """The standard error of each stream's mean; infinite with fewer than two."""
        return self._error(self.squares, self.n if self.weighted else self.units)

    @property
    def naive_error(self) -> Floats:
        """As if rows were independent."""
        return self._error(self.rows, self.n)

    @property
    def independent(self) -> Floats:
        """How many witnesses the rows are."""
        return np.asarray(self.w**2 / np.maximum(self.squares[0], TINY))

    @property
    def effective(self) -> Floats:
        """As how many rarer outcomes they tell."""
        rows, units = self._spread(self.rows), self._spread(self.squares)
        told = effective(rows, self.swings[:, 0], self.swings[:, 1])
        return np.asarray(told / np.maximum(units / np.maximum(rows, TINY), 1))

    def _error(self, sums: Floats, n: Floats) -> Floats:
        known = np.sqrt(self._spread(sums) * n / np.maximum(n - 1, 1)) / np.maximum(self.w, TINY)
        return np.where(n > 1, known, np.inf)

    def _spread(self, sums: Floats) -> Floats:
        m = self.mean
        return np.asarray(np.maximum(sums[2] - 2 * m * sums[1] + m * m * sums[0], 0))
