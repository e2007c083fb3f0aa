"""Assignment: shares are the weights, units stay, changes move what they must, and every language agrees."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from router.assignment import ASSIGN, SHADOW, assign, shadowed, uniform
from router.experiment import Experiment, read

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "assignment.md").read_text(encoding="utf-8")
# A test of chance that is right fails once in a million runs.
RARELY = 1e-6

units = st.text(max_size=40)
weight = st.floats(0.01, 100)


def experiment(*names: str, salt: str = "s", **fields: object) -> Experiment:
    variants = [{"name": name, "url": "http://h", "weight": 1} for name in names]
    variants[0]["role"] = "champion"
    return read({"name": "x", "salt": salt, "variants": variants, **fields})


def winner(weights: Mapping[str, float], unit: str | None, salt: str = "s") -> str:
    return assign(experiment(*weights, salt=salt), weights, unit).variant.name


def winners(weights: Mapping[str, float], units: Iterable[str], salt: str = "s") -> list[str]:
    """The variant of each of many units: to read the document takes longer than to assign one."""
    document = experiment(*weights, salt=salt)
    return [assign(document, weights, unit).variant.name for unit in units]


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading of the page."""
    table = PAGE.split(heading, 1)[1].split("| ---", 1)[1].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in table]


def test_the_vectors_of_the_page_hold() -> None:
    vectors = rows("## Test vectors")
    assert len(vectors) >= 5
    for salt, variant, unit, digits, draw in vectors:
        u = uniform(ASSIGN, salt, variant, "" if unit == "(empty)" else unit)
        assert u == (int(digits, 16) + 0.5) / 2**52
        assert -math.log(u) == pytest.approx(float(draw), abs=1e-12)
    for unit, *winners in rows("who wins at the weights"):
        told = ({"A": 80, "B": 20}, {"A": 70, "B": 30}, {"A": 0, "B": 1}, {"A": 70, "B": 30, "C": 25})
        assert [winner(weights, unit, "credit-default") for weights in told] == winners
    shadows = re.findall(r"`([0-9a-f]{13})`", PAGE.split("for the shadow", 1)[1].split("\n\n")[0])
    assert [(int(digits, 16) + 0.5) / 2**52 for digits in shadows] == [
        uniform(SHADOW, "credit-default", key) for key in ("r-1", "r-2", "r-3")
    ]


@pytest.mark.skipif(not shutil.which("node"), reason="there is no node")
def test_another_language_assigns_the_same() -> None:
    code = PAGE.split("```js\n")[1].split("```")[0]
    weights = {"A": 70.0, "B": 30.0, "C": 0.0, "d.e": 12.5}
    some = [f"unit-{number}" for number in range(2000)] + ["", "Zoë ☃", "a,1:b", "\U0001f600"]
    code += f"console.log(JSON.stringify({json.dumps(some)}.map(u => assign('ä', {json.dumps(weights)}, u))))"
    told = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(told) == winners(weights, some, "ä")


@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_many_units_are_split_as_the_weights_say(count: int) -> None:
    weights = {"A": 70, "B": 27, "C": 3}
    counts = Counter(winners(weights, map(str, range(count))))
    expected = [w * count / 100 for w in weights.values()]
    assert chisquare([counts[name] for name in weights], expected).pvalue > RARELY


def test_requests_without_a_unit_are_drawn_by_the_weights() -> None:
    weights = {"A": 2.0, "B": 1.0, "C": 1.0}
    document, rng = experiment(*weights), random.Random(1)
    counts = Counter(assign(document, weights, None, rng).variant.name for _ in range(40_000))
    assert chisquare([counts[name] for name in weights], [20_000, 10_000, 10_000]).pvalue > RARELY
    assert len({winner(weights, None) for _ in range(100)}) > 1, "the system's own randomness draws, too"


@given(units, weight, weight)
def test_a_unit_stays_where_it_is_and_its_propensity_is_its_share(unit: str, a: float, b: float) -> None:
    weights = {"A": a, "B": b}
    first, again = (assign(experiment(*weights), weights, unit) for _ in range(2))
    assert first == again
    assert first.propensity == pytest.approx(weights[first.variant.name] / (a + b))


@given(units, st.dictionaries(st.sampled_from("ABCDE"), weight, min_size=2), st.data())
def test_a_variant_that_grows_only_gains_and_takes_from_no_order_among_the_others(
    unit: str, weights: dict[str, float], data: st.DataObject
) -> None:
    grown = data.draw(st.sampled_from(sorted(weights)))
    after = {**weights, grown: weights[grown] * data.draw(st.floats(1, 50))}
    assert winner(after, unit) in (winner(weights, unit), grown)


@given(units, st.dictionaries(st.sampled_from("ABCDE"), weight, min_size=2), st.data())
def test_whoever_leaves_moves_its_own_units_alone_and_an_order_of_variants_does_not_matter(
    unit: str, weights: dict[str, float], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(sorted(weights)))
    before = winner(weights, unit)
    assert winner(dict(reversed(weights.items())), unit) == before
    without = {**weights, gone: 0.0}
    assert winner(without, unit) != gone
    assert before in (gone, winner(without, unit))
    left = {name: each for name, each in weights.items() if name != gone}
    assert winner(left, unit) == winner(without, unit), "weight 0 is as good as not there"


def test_from_20_to_30_percent_a_tenth_moves_all_of_it_from_a_to_b() -> None:
    some = [str(unit) for unit in range(20_000)]
    before, after = winners({"A": 80, "B": 20}, some), winners({"A": 70, "B": 30}, some)
    moves = Counter((one, other) for one, other in zip(before, after, strict=True) if one != other)
    assert moves.keys() == {("A", "B")}
    assert chisquare([moves["A", "B"], 20_000 - moves["A", "B"]], [2_000, 18_000]).pvalue > RARELY


def test_a_third_variant_takes_from_the_others_in_proportion() -> None:
    some = [str(unit) for unit in range(20_000)]
    before, after = winners({"A": 60, "B": 40}, some), winners({"A": 60, "B": 40, "C": 25}, some)
    moved = Counter(one for one, other in zip(before, after, strict=True) if other == "C")
    assert chisquare([moved["A"], moved["B"]], [0.6 * moved.total(), 0.4 * moved.total()]).pvalue > RARELY


@settings(max_examples=5, deadline=None)
@given(st.text(min_size=1, max_size=10), st.text(min_size=1, max_size=10))
def test_experiments_of_different_salts_are_independent(one: str, other: str) -> None:
    weights = {"A": 1.0, "B": 1.0}
    here, there = (experiment("A", "B", salt=salt) for salt in (one, other))
    pairs = Counter(
        tuple(assign(each, weights, str(unit)).variant.name for each in (here, there))
        for unit in range(2_000)
    )
    if one == other:
        assert pairs.keys() == {("A", "A"), ("B", "B")}
    else:
        table = [[pairs[a, b] for b in "AB"] for a in "AB"]
        assert chi2_contingency(table).pvalue > RARELY


@given(
    st.lists(st.text(max_size=6), min_size=3, max_size=3),
    st.lists(st.text(max_size=6), min_size=3, max_size=3),
)
def test_no_two_texts_run_into_each_other(some: list[str], others: list[str]) -> None:
    assert (uniform(*some) == uniform(*others)) == (some == others)


def test_the_shadowed_sample_has_its_share_and_knows_nothing_of_the_assignment() -> None:
    document = experiment("A", "B", mode="shadow", shadow={"sample": 0.3})
    keys = [str(key) for key in range(20_000)]
    draws = [shadowed(document, key) for key in keys]
    table = Counter(zip(draws, winners({"A": 1, "B": 1}, keys), strict=True))
    sampled = sum(draws)
    assert chisquare([sampled, 20_000 - sampled], [6_000, 14_000]).pvalue > RARELY
    assert chi2_contingency([[table[x, y] for y in "AB"] for x in (True, False)]).pvalue > RARELY
    wider = experiment("A", "B", mode="shadow", shadow={"sample": 0.4})
    assert all(shadowed(wider, key) for key, drawn in zip(keys, draws, strict=True) if drawn), (
        "a wider sample holds it"
    )
    assert not any(shadowed(experiment("A", "B"), key) for key in keys[:100]), "a split has no shadows"


def test_where_nobody_has_a_weight_nobody_is_assigned() -> None:
    with pytest.raises(ValueError, match="above 0"):
        winner({"A": 0, "B": 0}, "unit")
