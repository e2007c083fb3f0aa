"""Sums of a number over rows, from which its mean and error follow; those of parts add to those of all."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

# Of Σx² the share that rounding alone may leave: what is less is a variance of 0.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Swings:
    """How much of a score the outcomes decide: of c = |x(1) − x(0)|, Σc² and Σc³, by the outcome that came.

    x(y) is what a row's score would be with the outcome y; c is known before the outcome is.
    """

    squares_0: float = 0.0
    cubes_0: float = 0.0
    squares_1: float = 0.0
    cubes_1: float = 0.0

    @classmethod
    def alike(cls, negatives: float, positives: float, c: float = 1.0) -> Swings:
        """Those of rows that all swing by the same."""
        return cls(negatives * c**2, negatives * c**3, positives * c**2, positives * c**3)

    def __add__(self, other: Swings) -> Swings:
        return Swings(
            self.squares_0 + other.squares_0,
            self.cubes_0 + other.cubes_0,
            self.squares_1 + other.squares_1,
            self.cubes_1 + other.cubes_1,
        )

    def times(self, w: float) -> Swings:
        """Those of w·x."""
        return Swings(self.squares_0 * w**2, self.cubes_0 * w**3, self.squares_1 * w**2, self.cubes_1 * w**3)

    def effective(self, spread: float) -> float:
        """As how many rarer outcomes some rows tell of the mean of their scores: V / (Σc³/Σc²)².

        Given what the models said, chance is in the outcomes alone: of V = Σc²q(1 − q) it makes the third
        moment Σc³q(1 − q)(1 − 2q), for q the probability of a 1. So the skewness of the sum, by which its law
        differs from the normal one (Berry 1941, Esseen 1942), is about 1/√this at most. Where all c are the
        same this is n·q(1 − q): rarer outcomes are counted. A few rows of great c on which nothing rare has
        come yet make it small, and so does what is rare and came where c is great: of both outcomes the
        greater swing counts.

        Args:
            spread: V, the sum of (x − mean)².

        Returns:
            Infinity where nothing hangs on the outcomes.
        """
        swing = max(
            self.cubes_0 / self.squares_0 if self.squares_0 > 0 else 0.0,
            self.cubes_1 / self.squares_1 if self.squares_1 > 0 else 0.0,
        )
        return spread / swing**2 if swing > 0 else math.inf


NO_SWINGS = Swings()


@dataclass(frozen=True)
class Moments:
    """Of a number x over rows: how many rows, Σx and Σx², and what outcomes decide of it."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0
    swings: Swings = NO_SWINGS

    @classmethod
    def of(cls, values: Iterable[float]) -> Moments:
        """The sums over some values."""
        kept = [float(value) for value in values]
        return cls(len(kept), math.fsum(kept), math.fsum(value * value for value in kept))

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.n + other.n,
            self.total + other.total,
            self.squares + other.squares,
            self.swings + other.swings,
        )

    def __neg__(self) -> Moments:
        """The sums of −x."""
        return Moments(self.n, -self.total, self.squares, self.swings)

    @property
    def mean(self) -> float:
        """Σx / n; 0 without rows."""
        return self.total / self.n if self.n else 0.0

    @property
    def spread(self) -> float:
        """Σ(x − mean)²; exactly 0 where all x are equal, and without rows."""
        spread = self.squares - self.total * self.mean
        return spread if spread > ROUNDING * self.squares else 0.0

    @property
    def variance(self) -> float:
        """The unbiased variance of x; exactly 0 where all x are equal; infinite where n < 2."""
        return self.spread / (self.n - 1) if self.n > 1 else math.inf

    @property
    def standard_error(self) -> float:
        """Of the mean; infinite where n < 2."""
        return math.sqrt(self.variance / self.n) if self.n else math.inf

    @property
    def independent(self) -> float:
        """How many witnesses the rows are."""
        return self.n

    @property
    def effective(self) -> float:
        """As how many rarer outcomes they tell."""
        return self.swings.effective(self.spread)

    def weighted(self, propensity: float, tilt: float = 1.0) -> WeightedMoments:
        """The same rows, each weighted by tilt / (the one probability by which all were assigned)."""
        w = tilt / propensity
        return WeightedMoments(
            *(self.n, self.n * w, self.n * w * w, w * self.total, w * w * self.total, w * w * self.squares),
            swings=self.swings.times(w),
        )


NO_MOMENTS = Moments()


@dataclass(frozen=True)
class WeightedMoments:
    """Of a score s over the rows of an arm, each weighted by w = tilt / (its chance to be assigned there).

    n rows, Σw, Σw², Σws, Σw²s, Σw²s²; and what the rows of the same unit add to the last of these together:
    so the squares are those of the sums by unit, as the error needs them where rows are not independent.
    """

    n: int = 0
    w: float = 0.0
    w2: float = 0.0
    ws: float = 0.0
    w2s: float = 0.0
    w2s2: float = 0.0
    twins_w2: float = 0.0
    twins_w2s: float = 0.0
    twins_w2s2: float = 0.0
    swings: Swings = NO_SWINGS

    @classmethod
    def repeated(cls, twins: float, cross: float, product: float) -> WeightedMoments:
        """What rows add, beyond what each adds by itself, since others of their units came before them.

        The arguments are Σ over those pairs of rows i, j of a unit of w_i·w_j, of w_i·w_j·(s_i + s_j) and of
        w_i·w_j·s_i·s_j.
        """
        # (Σᵢ xᵢ)(Σⱼ yⱼ) = Σᵢ xᵢyᵢ + Σ_{i<j} (xᵢyⱼ + xⱼyᵢ)
        return cls(twins_w2=2 * twins, twins_w2s=cross, twins_w2s2=2 * product)

    def __add__(self, other: WeightedMoments) -> WeightedMoments:
        return WeightedMoments(
            self.n + other.n,
            self.w + other.w,
            self.w2 + other.w2,
            self.ws + other.ws,
            self.w2s + other.w2s,
            self.w2s2 + other.w2s2,
            self.twins_w2 + other.twins_w2,
            self.twins_w2s + other.twins_w2s,
            self.twins_w2s2 + other.twins_w2s2,
            self.swings + other.swings,
        )

    @property
    def mean(self) -> float:
        """Over all requests, also over those that others got; 0 without rows."""
        # Hájek (1971): Σws / Σw
        return self.ws / self.w if self.w > 0 else 0.0

    @property
    def standard_error(self) -> float:
        """Of that mean, by linearization; infinite with fewer than two rows, 0 where all scores are equal."""
        if self.n < 2 or self.w <= 0:  # noqa: PLR2004
            return math.inf
        return math.sqrt(self._by_unit * self.n / (self.n - 1)) / self.w

    @property
    def independent(self) -> float:
        """How many witnesses the rows are, by their weights: Kish's effective size of a sample (1965)."""
        squares = self.w2 + self.twins_w2
        return self.w**2 / squares if squares > 0 else 0.0

    @property
    def effective(self) -> float:
        """As how many rarer outcomes they tell."""
        m = self.mean
        rows = self.w2s2 - 2 * m * self.w2s + m * m * self.w2
        return _effective(self.swings, rows if rows > ROUNDING * self.w2s2 else 0.0, self._by_unit)

    @property
    def _by_unit(self) -> float:
        """Σ over units of (Σ w(s − mean))²."""
        # The pseudo-outcomes of Waudby-Smith et al. (arXiv 2103.06476), section 3, around the mean.
        m = self.mean
        squares = self.w2s2 + self.twins_w2s2
        spread = squares - 2 * m * (self.w2s + self.twins_w2s) + m * m * (self.w2 + self.twins_w2)
        return spread if spread > ROUNDING * squares else 0.0


@dataclass(frozen=True)
class ClusteredMoments:
    """Of a number x over rows that come from units, where a unit is seen more than once.

    How many units, and by unit u with its n rows and their sum t: Σn, Σt, Σn², Σnt, Σt²; and `plain`, the
    sums over the rows as if each were a unit. They add where no unit is in both parts.
    """

    units: int = 0
    rows: int = 0
    total: float = 0.0
    rows2: float = 0.0
    cross: float = 0.0
    squares: float = 0.0
    plain: Moments = NO_MOMENTS

    @classmethod
    def apart(cls, rows: Moments) -> ClusteredMoments:
        """Rows of which each is a unit by itself."""
        return cls(rows.n, rows.n, rows.total, rows.n, rows.total, rows.squares, rows)

    @classmethod
    def repeated(cls, repeats: int, twins: int, cross: float, product: float) -> ClusteredMoments:
        """What rows add, beyond what each adds by itself, since others of their units came before them.

        Args:
            repeats: how many rows have one of their unit before them.
            twins: how many pairs of rows i, j of a unit that makes.
            cross: Σ over those pairs of x_i + x_j.
            product: of x_i·x_j.
        """
        return cls(units=-repeats, rows2=2 * twins, cross=cross, squares=2 * product)

    def __add__(self, other: ClusteredMoments) -> ClusteredMoments:
        return ClusteredMoments(
            self.units + other.units,
            self.rows + other.rows,
            self.total + other.total,
            self.rows2 + other.rows2,
            self.cross + other.cross,
            self.squares + other.squares,
            self.plain + other.plain,
        )

    @property
    def mean(self) -> float:
        """Over rows: Σt / Σn; 0 without rows."""
        return self.total / self.rows if self.rows else 0.0

    @property
    def standard_error(self) -> float:
        """Of the mean, by the delta method; infinite with fewer than two units."""
        # Deng, Knoblich & Lu (KDD 2018), equation 3: Var(Σt/Σn) ≈ Σ(t − mean·n)² / (Σn)²
        if self.units < 2:  # noqa: PLR2004
            return math.inf
        return math.sqrt(self._by_unit * self.units / (self.units - 1)) / self.rows

    @property
    def independent(self) -> float:
        """How many witnesses the rows are, by the rows of each unit: Kish's effective size of a sample."""
        return self.rows**2 / self.rows2 if self.rows2 else 0.0

    @property
    def effective(self) -> float:
        """As how many rarer outcomes they tell."""
        return _effective(self.plain.swings, self.plain.spread, self._by_unit)

    @property
    def _by_unit(self) -> float:
        """Σ(t − mean·n)²."""
        m = self.mean
        spread = self.squares - 2 * m * self.cross + m * m * self.rows2
        return spread if spread > ROUNDING * self.squares else 0.0


def _effective(swings: Swings, rows: float, units: float) -> float:
    """As how many rarer outcomes rows tell, of which some come from the same units.

    Args:
        swings: of the rows.
        rows: the spread over them, as if they were independent.
        units: the spread over the sums by unit; it is so many times as great as the design effect says.
    """
    return swings.effective(rows) / max(units / rows, 1.0) if rows > 0 else swings.effective(0.0)
