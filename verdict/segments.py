"""In which declared part of the traffic a record is, by the value of one of its columns."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

LONGEST_VALUE = 40
# The part of what has no value, or none that cuts can sort.
UNKNOWN = "unknown"


def part(value: Any, cuts: Sequence[float] = ()) -> str:
    """The part that a value is in: its code, or where there are cuts the interval between two of them.

    Args:
        value: as JSON has it; None where the record lacks it. What is not kept, or no code, is "unknown" or
            "other".
        cuts: in order; a value that equals one is above it.
    """
    if value is None:
        return UNKNOWN
    return _between(value, cuts) if cuts else _code(value)


def parts(cuts: Sequence[float]) -> tuple[str, ...]:
    """All parts that there can be between some cuts, in order, and what is unknown."""
    return (*(_interval(place, cuts) for place in range(len(cuts) + 1)), UNKNOWN)


def _code(value: Any) -> str:
    if isinstance(value, float) and not value.is_integer():
        return "other"
    text = f"{value:.0f}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST_VALUE else "other"


def _between(value: Any, cuts: Sequence[float]) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return UNKNOWN
    return _interval(bisect_right(cuts, value), cuts)


def _interval(place: int, cuts: Sequence[float]) -> str:
    if place == 0:
        return f"below {cuts[0]:g}"
    return f"{cuts[-1]:g} and more" if place == len(cuts) else f"{cuts[place - 1]:g} to {cuts[place]:g}"
