"""What stands in the query of a request, read and checked."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from flask import request

from router.database import stamp
from router.front import checked_tag
from runoff.problems import wrong_parameter

WHOLE = re.compile(r"-?\d{1,100}", re.ASCII)


def whole(name: str, least: int, most: int, default: int) -> int:
    """A whole number.

    Raises:
        Malformed: it is none, or not from least to most.
    """
    text = request.args.get(name)
    if text is None:
        return default
    number = int(text) if WHOLE.fullmatch(text) else None
    if number is not None and least <= number <= most:
        return number
    rule = "type" if number is None else "minimum" if number < least else "maximum"
    raise wrong_parameter(name, rule, f"a whole number from {least} to {most}", text)


def time(name: str) -> datetime | None:
    """A time, if there is one; raises Malformed where it is none."""
    text = request.args.get(name)
    if text is None:
        return None
    try:
        # The plus of a zone, where nobody escaped it, arrives as a space. Those of the first and the last day
        # of all have no such time in UTC.
        found = datetime.fromisoformat(re.sub(r"(T.*) (\d\d:?\d\d)$", r"\1+\2", text))
        return found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise wrong_parameter(name, "format", "a time such as 2026-11-23T14:05Z", text) from None


def hour(name: str) -> str:
    """The hour in which a time lies, as sums name it (2026-11-23T14); nothing without a time.

    Raises:
        Malformed: it is no time.
    """
    found = time(name)
    return stamp(found)[:13] if found else ""


def tag() -> str | None:
    """A tag of traffic, if there is one; raises Malformed where it is none."""
    return checked_tag(request.args.get("tag"), "tag")
