"""The experiment's document: what it takes, how it says what it refuses, and that JSON loses nothing."""

from __future__ import annotations

import copy
import json
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.experiment import Experiment, ExperimentError, load, read


def document(mode: str = "split", **fields: Any) -> dict[str, Any]:
    variants = [
        {"name": "A", "role": "champion", "url": "http://a.example", "weight": 80},
        {"name": "B", "url": "http://b.example/x", "weight": 20},
    ]
    return {"name": "credit", "mode": mode, "variants": variants} | fields


def test_the_file_that_comes_with_runoff_is_a_split() -> None:
    loaded = load(environment={})
    assert loaded.mode == "split"
    assert loaded.salt == loaded.name == "credit-default"
    assert loaded.shares == {"A": 0.8, "B": 0.2}


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("30d", timedelta(days=30)),
        ("P30D", timedelta(days=30)),
        ("12h", timedelta(hours=12)),
        ("PT12H", timedelta(hours=12)),
        ("90 s", timedelta(seconds=90)),
        ("2w", timedelta(days=14)),
        ("1.5h", timedelta(minutes=90)),
        (3600, timedelta(hours=1)),
    ],
)
def test_a_duration_is_written_shortly_or_as_iso_8601(written: Any, means: timedelta) -> None:
    assert read(document(maturity=written)).maturity == means


def test_a_maturity_that_is_not_declared_stays_so_and_outcomes_count_at_once() -> None:
    undeclared = read(document())
    assert read(json.loads(undeclared.model_dump_json())).maturity is None
    assert undeclared.matures_after == timedelta(0)
    assert read(document(maturity="0d")).maturity == timedelta(0)


names = st.from_regex(r"[A-Za-z0-9._-]{1,40}", fullmatch=True)
durations = st.timedeltas(timedelta(microseconds=1), timedelta(days=3650))
shares = st.floats(0, 1, exclude_min=True)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(2, 5))
    mode = draw(st.sampled_from(["split", "shadow", "bandit", *["canary"] * (count == 2)]))
    called = draw(st.lists(names, min_size=count, max_size=count, unique=True))
    weights = draw(st.lists(st.floats(0.001, 1e9), min_size=count, max_size=count))
    columns = draw(st.lists(st.text(min_size=1, max_size=20), unique=True, max_size=6))
    return {
        "name": draw(names),
        "mode": mode,
        "salt": draw(st.text(min_size=1, max_size=20)),
        "maturity": draw(st.none() | durations),
        "fallback": draw(st.sampled_from([None, *called])),
        "variants": [
            {
                "name": name,
                "role": "challenger" if place else "champion",
                "url": f"http://h{place}:{place + 1}/p",
                "weight": weight,
                "model": draw(st.none() | names),
            }
            for place, (name, weight) in enumerate(zip(called, weights, strict=True))
        ],
        "shadow": {"sample": draw(shares)},
        "canary": {"steps": sorted(draw(st.sets(shares, min_size=1, max_size=5))), "hold": draw(durations)},
        "bandit": {"floor": draw(st.floats(0.001, 0.19)), "success": draw(st.sampled_from([0, 1]))},
        "guardrails": [{"name": "g", "metric": "error-rate", "margin": draw(st.floats(0, 10))}],
        "decision": {
            "metric": draw(st.sampled_from(["brier", "log-loss", "profit"])),
            "margin": draw(st.floats(0, 1)),
            "costs": {"tp": 0, "fp": draw(st.floats(-9, -1)), "tn": 1, "fn": -5},
            "thresholds": {called[0]: draw(st.floats(0, 1))},
            "segments": [{"column": each, "cuts": [0, draw(st.floats(1, 9))]} for each in columns],
            "max_gap": draw(st.none() | shares),
        },
        "privacy": {"omitted": columns[::2], "hashed": columns[1::2]},
    }


@given(documents())
def test_json_out_and_in_loses_nothing(made: dict[str, Any]) -> None:
    first = read(made)
    again = read(json.loads(first.model_dump_json()))
    assert again == first
    assert hash(again) == hash(first)
    assert sum(first.shares.values()) == pytest.approx(1)
    for variant in first.variants:
        promoted = read(json.loads(first.promoting(variant.name).model_dump_json()))
        assert promoted.champion is not None
        assert promoted.champion.name == variant.name
        assert promoted.shares[variant.name] == 1


def three(**weight: float) -> list[dict[str, Any]]:
    return [{"name": name, "url": "http://h", **weight} for name in "ABC"]


BROKEN: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("no weight in a split", {"variants": three()}, "/variants/0/weight", "required", "mode split"),
    ("no champion in a shadow", document("shadow", variants=three()), "/variants", "contains", "a champion"),
    (
        "two champions",
        {"variants": [{"name": n, "role": "champion", "url": "http://h", "weight": 1} for n in "AB"]},
        "/variants",
        "maxContains",
        "at most one",
    ),
    (
        "a canary of three",
        document("canary", variants=[three()[0] | {"role": "champion"}, *three()[1:]]),
        "/variants",
        "maxItems",
        "one challenger",
    ),
    ("a bandit of one arm", document("bandit", variants=three()[:1]), "/variants", "minItems", "two"),
    ("a floor too high", document("bandit", bandit={"floor": 0.5}), "/bandit/floor", "maximum", "below 1"),
    ("steps that go down", {"canary": {"steps": [0.5, 0.1]}}, "/canary/steps", "order", "greater"),
    ("a step above 1", {"canary": {"steps": [0.5, 2]}}, "/canary/steps/1", "maximum", "less than or equal"),
    ("nobody to fall back on", {"fallback": "C"}, "/fallback", "enum", "no variant"),
    ("a negative time", {"maturity": "-P1D"}, "/maturity", "minimum", "greater than or equal"),
    ("no time at all", {"maturity": "soon"}, "/maturity", "format", "timedelta"),
    ("an endless number of days", {"maturity": "9999999999d"}, "/maturity", "format", ""),
    (
        "a column left out and hashed",
        {"privacy": {"omitted": ["X"], "hashed": ["X"]}},
        "/privacy",
        "not",
        "both",
    ),
    ("an unknown mode", {"mode": "ab"}, "/mode", "enum", "'split'"),
    ("an unknown field", {"colour": 1}, "/colour", "additionalProperties", "not permitted"),
    (
        "a guardrail twice",
        {"guardrails": 2 * [{"name": "g", "metric": "error-rate", "margin": 0}]},
        "/guardrails",
        "uniqueItems",
        "same name",
    ),
    (
        "a URL with a query",
        {"variants": [{"name": "A", "url": "http://h/?a=1", "weight": 1}]},
        "/variants/0/url",
        "format",
        "no query",
    ),
]


@pytest.mark.parametrize(
    ("fields", "pointer", "rule", "words"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN]
)
def test_what_breaks_a_rule_is_told_with_field_rule_and_value(
    fields: dict[str, Any], pointer: str, rule: str, words: str
) -> None:
    with pytest.raises(ExperimentError) as refused:
        read(document() | copy.deepcopy(fields))
    assert [(error.pointer, error.rule) for error in refused.value.errors] == [(pointer, rule)]
    assert words in refused.value.errors[0].detail
    assert pointer[1:].replace("/", ".") in str(refused.value)


def test_every_broken_field_is_told_at_once_and_nothing_of_our_own_making() -> None:
    with pytest.raises(ExperimentError) as refused:
        read({"maturity": "x", "variants": 7})
    assert {error.pointer for error in refused.value.errors} == {"/name", "/maturity", "/variants"}


def test_each_mode_begins_with_its_own_shares() -> None:
    modes = ("split", "shadow", "canary", "bandit")
    begun = {mode: read(document(mode, canary={"steps": [0.1, 1]})).shares for mode in modes}
    assert begun == {
        "split": {"A": 0.8, "B": 0.2},
        "shadow": {"A": 1, "B": 0},
        "canary": {"A": 0.9, "B": 0.1},
        "bandit": {"A": 0.5, "B": 0.5},
    }


def test_what_leaves_the_split_alone_is_known_from_what_does_not() -> None:
    one = read(document())
    assert one.splits_like(read(document(maturity="30d", timeout_seconds=1)))
    assert not one.splits_like(read(document(salt="another")))
    assert not one.splits_like(one.promoting("B"))


def test_a_document_is_not_changed() -> None:
    made = read(document())
    with pytest.raises(ValueError, match="frozen"):
        made.name = "other"
    assert isinstance(made, Experiment)


def test_the_examples_of_the_page_on_the_verdict_are_what_they_say() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "verdict.md").read_text(encoding="utf-8")
    decided, guarded = (tomllib.loads(block.split("```")[0]) for block in page.split("```toml\n")[1:])
    assert read(document() | decided) == read(document()), "they are the defaults"
    assert read(document("canary") | guarded).guardrails[0].metric == "error-rate"


def test_the_examples_of_the_page_are_what_they_say() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "experiment.md").read_text(encoding="utf-8")
    examples = [tomllib.loads(block.split("```")[0]) for block in page.split("```toml\n")[1:]]
    modes = [each for each in examples if "mode" in each]
    [more] = [each for each in examples if "mode" not in each]
    assert read(document(variants=more["variants"])).variants[0].dialect == "open-inference"
    assert [example["mode"] for example in modes] == ["split", "shadow", "canary", "bandit"]
    for example in modes:
        assert read(document() | example) == read(document(example["mode"])), "they are the defaults"
