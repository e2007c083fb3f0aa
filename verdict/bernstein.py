"""The exact interval for a mean of bounded differences: no asymptotics, and right from the first pair on."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import gammainc, gammaln, log_ndtr

from verdict.sequence import BISECTIONS, Floats

# From here on P(v, a) is taken by its normal approximation, where the other sum would lose all digits.
TINY = 1e-290


def best_rho(v_opt: float, alpha: float) -> float:
    """The parameter with which a normal mixture's two-sided bound is tightest at the variance v_opt."""
    # Howard et al. (2021), section 3.5: ρ = v / (2 ln 1/α + ln(1 + 2 ln 1/α))
    told = -2 * np.log(alpha)
    return float(v_opt / (told + np.log1p(told)))


def best_bet(v_opt: float, c: float, alpha: float) -> float:
    """The one λ with which the two-sided bound is tightest at the sum of squares v_opt: in (0, 1/c)."""

    def width(bet: float) -> float:
        # Where exp(λS − ψ(λ)V) is 2/α.
        return (_psi(bet, c) * v_opt + math.log(2 / alpha)) / bet

    return float(minimize_scalar(width, bounds=(1e-6 / c, (1 - 1e-6) / c), method="bounded").x)


def log_mixture(s: ArrayLike, v: ArrayLike, rho: float, c: float) -> Floats:
    """The logarithm of the gamma-exponential mixture martingale.

    Args:
        s: the sum less what it is tested for.
        v: the sum of squares.
        rho: of the mixture.
        c: scale: no single value is below −c.
    """
    s, v = np.broadcast_arrays(np.asarray(s, float), np.asarray(v, float))
    prior, shape = rho / c**2, (v + rho) / c**2
    at = np.maximum((c * s + v + rho) / c**2, 0)
    # Howard et al. (2021), proposition 9:
    # ρ̃ ln ρ̃ − lnΓ(ρ̃) − ln P(ρ̃, ρ̃) + lnΓ(ṽ) + ln P(ṽ, a) − ṽ ln a + a − ρ̃, where a − ρ̃ = (cS + V)/c².
    # Of terms as great as ṽ ln ṽ those are taken together that cancel.
    begin = -_stirling(prior) - _log_gammainc(prior, prior)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = begin + _stirling(shape) + _log_gammainc(shape, at) + shape * _excess(c * s / (v + rho))
    return np.asarray(np.where(at > 0, found, -np.inf))


def log_wealth(s: ArrayLike, v: ArrayLike, rho: float, c: float, bet: float) -> Floats:
    """The logarithm of a martingale: of `log_mixture`, or where there is a bet half of it and half of that.

    A mixture is good at any time, and at each pays for all others. Half of the stake on the λ that is best at
    the planned one costs ln 2 at most elsewhere, and there spares most of what the mixture pays.

    Args:
        s: the sum less what it is tested for.
        v: the sum of squares.
        rho: of the mixture.
        c: the bound of the values.
        bet: λ in (0, 1/c), declared before the start; 0: the mixture alone.
    """
    told = log_mixture(s, v, rho, c)
    if not bet:
        return told
    # Fan, Grama & Liu (2015): exp(λx − ψ(λ)x²) ≤ 1 + λx for x ≥ −c.
    alone = bet * np.asarray(s, float) - _psi(bet, c) * np.asarray(v, float)
    return np.asarray(np.logaddexp(told, alone) - np.log(2))


def _psi(bet: float, c: float) -> float:
    return (-math.log1p(-c * bet) - c * bet) / c**2


def log_e_value(total: ArrayLike, squares: ArrayLike, rho: float, c: float, bet: float = 0.0) -> Floats:
    """The logarithm of the two-sided e-value against a mean of 0: half of the greater side's.

    Args:
        total: Σd.
        squares: Σd²: the variance around the constant 0, so that the order of the values does not matter.
        rho: of the mixture.
        c: the bound of |d|.
        bet: as in `log_wealth`.
    """
    total = np.asarray(total, float)
    sides = (log_wealth(side, squares, rho, c, bet) for side in (total, -total))
    return np.asarray(np.maximum(*sides) - np.log(2))


def radius(
    n: ArrayLike, squares: ArrayLike, rho: float, c: float, alpha: float, *, bet: float = 0.0
) -> Floats:
    """The half-width of the two-sided interval of the mean.

    Source: Choe & Ramdas (Operations Research 2023), theorem 2, by Howard et al. (2021), theorem 4.

    Args:
        n: values; 0 gives infinity.
        squares: Σd².
        rho: of the mixture, declared before the start: `best_rho(v_opt, alpha)`.
        c: the bound of |d|.
        alpha: the probability that it ever misses, on both sides together.
        bet: as in `log_wealth`, `best_bet(v_opt, c, alpha)`.
    """
    n, v = np.broadcast_arrays(np.asarray(n, float), np.asarray(squares, float))
    aim = np.log(2 / alpha)
    low, high = np.zeros(v.shape), np.full(v.shape, c + np.sqrt(rho))
    while (outside := log_wealth(high, v, rho, c, bet) < aim).any():
        high = np.where(outside, 2 * high, high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        inside = log_wealth(middle, v, rho, c, bet) < aim
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return np.asarray(np.divide(high, n, out=np.full(v.shape, np.inf), where=n > 0))


def _stirling(x: ArrayLike) -> Floats:
    """lnΓ(x) − x ln x + x, without their cancelling where x is great."""
    x = np.asarray(x, float)
    great = np.maximum(x, 1e3)
    # Abramowitz & Stegun, 6.1.41.
    series = 0.5 * np.log(2 * np.pi / great) + 1 / (12 * great) - 1 / (360 * great**3)
    small = np.minimum(np.maximum(x, 1e-300), 1e3)
    return np.asarray(np.where(x > 1e3, series, gammaln(small) - small * np.log(small) + small))  # noqa: PLR2004


def _excess(d: Floats) -> Floats:
    """The function d − ln(1 + d)."""
    near = np.abs(d) < 1e-3  # noqa: PLR2004
    return np.asarray(np.where(near, d * d * (0.5 - d / 3 + d * d / 4), d - np.log1p(np.where(near, 0, d))))


def _log_gammainc(shape: ArrayLike, at: ArrayLike) -> Floats:
    """The logarithm of P(shape, at)."""
    shape, at = np.broadcast_arrays(np.asarray(shape, float), np.asarray(at, float))
    p = gammainc(shape, at)
    # Wilson & Hilferty (1931): the cube root of a gamma variate is nearly normal.
    z = (np.cbrt(at / shape) - 1 + 1 / (9 * shape)) * 3 * np.sqrt(shape)
    return np.asarray(np.where(p > TINY, np.log(np.maximum(p, TINY)), log_ndtr(z)))
