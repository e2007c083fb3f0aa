"""When requests come: as a Poisson process, whose rate is steady, in bursts, or a ramp; or evenly.

Arrivals of a process with intensity λ(t) are those of a process of rate 1, put through the inverse of
Λ(t) = ∫₀ᵗ λ (Çinlar, *Introduction to Stochastic Processes*, 1975, section 4.7).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from math import sqrt

# Bursts: all that comes in a period comes in its first part.
PERIOD_SECONDS = 5.0
BURST_SHARE = 0.2


def _steady(expected: float, rate: float, _seconds: float) -> float:
    return expected / rate


def _bursts(expected: float, rate: float, _seconds: float) -> float:
    whole, rest = divmod(expected, rate * PERIOD_SECONDS)
    return whole * PERIOD_SECONDS + rest * BURST_SHARE / rate


def _ramp(expected: float, rate: float, seconds: float) -> float:
    # λ(t) = rate·t/seconds, so that Λ(t) = rate·t²/(2·seconds).
    return sqrt(2 * seconds * expected / rate)


EVEN = "even"

# Each takes Λ, a rate in requests per second and a length in seconds, and gives t.
SHAPES: dict[str, Callable[[float, float, float], float]] = {
    "steady": _steady,
    "bursts": _bursts,
    "ramp": _ramp,
    EVEN: _steady,
}


def arrivals(shape: str, rate: float, seconds: float, seed: int, ramp: float = 0.0) -> Iterator[float]:
    """When requests come, in seconds since the beginning, in order.

    Args:
        shape: one of SHAPES. "steady" has `rate` requests a second in the mean; so have "bursts", of which
            five times as many come in the first second of each five; "ramp" grows from 0 to `rate`. What is
            "even" comes without chance, each 1/`rate` seconds after the one before.
        rate: requests per second, above 0.
        seconds: no request comes later.
        seed: the same seed gives the same arrivals.
        ramp: seconds in which the rate grows from 0 to `rate`, before the shape begins.
    """
    rng = random.Random(seed)
    expected = 0.0
    rising = rate * ramp / 2
    while True:
        expected += 1.0 if shape == EVEN else rng.expovariate(1.0)
        if expected < rising:
            at = _ramp(expected, rate, ramp)
        else:
            at = ramp + SHAPES[shape](expected - rising, rate, seconds - ramp)
        if at >= seconds:
            return
        yield at
