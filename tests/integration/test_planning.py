"""What is planned is what will be judged: by the shares in force, and at the α of each challenger."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from router.planning import Asked, Planned, Plans, plans
from tests.integration.test_verdicts import TWO, Book
from verdict import plan

GIVEN: dict[str, Any] = {"difference": 0.01, "per_day": 1000, "labelled": 1, "variance": 0.04}


def planned(book: Book, **more: Any) -> tuple[Plans, Planned]:
    """The plan, and that of a split."""
    current = book.experiments.current()
    assert current
    told = plans(Asked(**GIVEN | more), current, book.evidence())
    return told, next(each for each in told["designs"] if each["design"] == "split")


def weighted(*weights: float) -> list[dict[str, Any]]:
    return [
        {**TWO[min(number, 1)], "name": "ABCD"[number], "url": f"http://{number}", "weight": weight}
        for number, weight in enumerate(weights)
    ]


def test_a_split_is_planned_by_the_shares_in_force(engine: sa.Engine) -> None:
    even = planned(Book(engine, variants=weighted(50, 50)))[1]
    # Two equal halves take 4 times as many as one mean.
    assert even["fixed"] == pytest.approx(4 * plan.fixed_sample_size(0.04, 0.01), rel=1e-3)
    book = Book(engine, name="uneven", variants=weighted(80, 20))
    told, uneven = planned(book)
    assert told["share"] == pytest.approx(0.2)
    assert uneven["fixed"] / even["fixed"] == pytest.approx(1 / (4 * 0.8 * 0.2), rel=1e-3)
    assert planned(book, share=0.5)[1] == even
    book.experiments.ramp(0.4, "B", expected=2, by="a test", reason="more")
    assert planned(book)[0]["share"] == pytest.approx(0.4)


def test_where_nothing_is_split_equal_parts_are_planned(engine: sa.Engine) -> None:
    told, split = planned(Book(engine, mode="shadow", variants=[{**each, "weight": None} for each in TWO]))
    assert (told["share"], told["alpha"]) == (0.5, 0.05)
    assert split["days_fixed"] == pytest.approx(split["fixed"] / 1000)


def test_several_challengers_are_planned_at_the_alpha_that_each_is_judged_by(engine: sa.Engine) -> None:
    told, split = planned(Book(engine, variants=weighted(40, 40, 20)))
    assert told["alpha"] == 0.025
    # The champion and the one with the least: two thirds and one third of 60 % of the traffic.
    assert told["share"] == pytest.approx(1 / 3)
    fixed = plan.fixed_sample_size(0.04 * (3 / 2 + 3), 0.01, alpha=0.025)
    assert split["fixed"] == pytest.approx(fixed, rel=1e-3)
    assert split["days_fixed"] == pytest.approx(split["fixed"] / 600)
    stops = plan.stopping(0.025, 0.8)
    assert split["expected"] == pytest.approx(split["fixed"] * stops.expected, rel=1e-3)
    assert split["chances"][-1][2] == pytest.approx(stops.chance(plan.FURTHEST))
