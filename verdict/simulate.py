"""Simulated credit: two models that score the same clients, and outcomes, also awkward ones.

Streams are drawn side by side, as arrays whose first axis is the stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit, ndtri

from verdict.sequence import Floats


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


class Weighted:
    """Sums by inverse propensity of many streams side by side: what `WeightedMoments` is for one."""

    def __init__(self, streams: int) -> None:
        self.sums = np.zeros((6, streams))

    def add(self, values: Floats, where: Floats, propensity: Floats, before: Floats | float = 0.0) -> None:
        """Add values of shape (streams, rows); propensities are of shape (streams,).

        `where` says how many times each counts. Where that is a unit that comes again, `before` is the sum of
        the weights of its rows so far: the squares are those of the sums by unit.
        """
        w = where / propensity[:, None]
        # (W + w)² − W²
        squares = w * (2 * before + w)
        parts = (where, w, squares, w * values, squares * values, squares * values * values)
        self.sums = self.sums + np.stack([part.sum(1) for part in parts])

    @property
    def mean(self) -> Floats:
        """Of each stream, as `bandit.mean`."""
        return np.asarray(self.sums[3] / np.maximum(self.sums[1], 1e-300))

    @property
    def error(self) -> Floats:
        """Of each stream, as `bandit.standard_error`."""
        n, w, w2, _, w2s, w2s2 = self.sums
        spread = np.maximum(w2s2 - 2 * self.mean * w2s + self.mean**2 * w2, 0)
        known = np.sqrt(spread * n / np.maximum(n - 1, 1)) / np.maximum(w, 1e-300)
        return np.where(n > 1, known, np.inf)
