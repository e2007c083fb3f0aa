"""Sums of a number over rows, from which its mean and error follow; those of parts add to those of all."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

# Of Σx² the share that rounding alone may leave: what is less is a variance of 0.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Moments:
    """Of a number x over rows: how many rows, Σx and Σx²."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float]) -> Moments:
        """The sums over some values."""
        kept = [float(value) for value in values]
        return cls(len(kept), math.fsum(kept), math.fsum(value * value for value in kept))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.n + other.n, self.total + other.total, self.squares + other.squares)

    def __neg__(self) -> Moments:
        """The sums of −x."""
        return Moments(self.n, -self.total, self.squares)

    @property
    def mean(self) -> float:
        """Σx / n; 0 without rows."""
        return self.total / self.n if self.n else 0.0

    @property
    def variance(self) -> float:
        """The unbiased variance of x; exactly 0 where all x are equal; infinite where n < 2."""
        if self.n < 2:  # noqa: PLR2004
            return math.inf
        spread = self.squares - self.total * self.total / self.n
        return spread / (self.n - 1) if spread > ROUNDING * self.squares else 0.0

    @property
    def standard_error(self) -> float:
        """Of the mean; infinite where n < 2."""
        return math.sqrt(self.variance / self.n) if self.n else math.inf

    def weighted(self, propensity: float) -> WeightedMoments:
        """The same rows, each weighted by the inverse of the one probability by which all were assigned."""
        w = 1 / propensity
        return WeightedMoments(
            self.n, self.n * w, self.n * w * w, w * self.total, w * w * self.total, w * w * self.squares
        )


@dataclass(frozen=True)
class WeightedMoments:
    """Of a score s over the rows of an arm, each weighted by w = 1 / (its probability to be assigned there).

    n rows, Σw, Σw², Σws, Σw²s, Σw²s².
    """

    n: int = 0
    w: float = 0.0
    w2: float = 0.0
    ws: float = 0.0
    w2s: float = 0.0
    w2s2: float = 0.0

    @classmethod
    def repeated(cls, twins: float, cross: float, product: float) -> WeightedMoments:
        """What rows add, beyond what each adds by itself, since others of their units came before them.

        With these added the squares are those of the sums by unit, as the error needs them where the rows of
        a unit are not independent. The arguments are Σ over those pairs of rows i, j of a unit of w_i·w_j, of
        w_i·w_j·(s_i + s_j) and of w_i·w_j·s_i·s_j.
        """
        # (Σᵢ xᵢ)(Σⱼ yⱼ) = Σᵢ xᵢyᵢ + Σ_{i<j} (xᵢyⱼ + xⱼyᵢ)
        return cls(w2=2 * twins, w2s=cross, w2s2=2 * product)

    def __add__(self, other: WeightedMoments) -> WeightedMoments:
        return WeightedMoments(
            self.n + other.n,
            self.w + other.w,
            self.w2 + other.w2,
            self.ws + other.ws,
            self.w2s + other.w2s,
            self.w2s2 + other.w2s2,
        )


@dataclass(frozen=True)
class ClusteredMoments:
    """Of a number x over rows that come from units, where a unit is seen more than once.

    How many units, and by unit u with its n rows and their sum t: Σn, Σt, Σn², Σnt, Σt². They add where no
    unit is in both parts.
    """

    units: int = 0
    rows: int = 0
    total: float = 0.0
    rows2: float = 0.0
    cross: float = 0.0
    squares: float = 0.0

    @classmethod
    def apart(cls, rows: Moments) -> ClusteredMoments:
        """Rows of which each is a unit by itself."""
        return cls(rows.n, rows.n, rows.total, rows.n, rows.total, rows.squares)

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
        m = self.mean
        spread = self.squares - 2 * m * self.cross + m * m * self.rows2
        if spread <= ROUNDING * self.squares:
            return 0.0
        return math.sqrt(spread * self.units / (self.units - 1)) / self.rows


NO_MOMENTS = Moments()
