"""The gate: what it says of a candidate beside the version that is live, and that it releases nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyClassifier

from data import credit
from runoff import evaluation, gate
from runoff.management import Management
from runoff.store import ModelVersion, Store


@dataclass
class Candidates:
    """A store with a good version of a model, a bad one, and rows that neither was trained on."""

    store: Store
    good: ModelVersion
    bad: ModelVersion
    X: pd.DataFrame
    y: pd.Series

    def release(self, version: ModelVersion) -> None:
        Management(self.store).release("model-a", version, by="a test", reason="to be compared with")

    def judge(self, candidate: ModelVersion) -> gate.Gate:
        return gate.compare_with_live(self.store, candidate, self.X, self.y, seed=1)


@pytest.fixture
def candidates(store: Store, tmp_path: Path) -> Candidates:
    own = Store.open(tmp_path)
    training, held_out = credit.split(credit.load())
    X, y = training[list(credit.FEATURES)], training[credit.TARGET]
    trained = store.version("model-a")

    def write(estimator: Any) -> ModelVersion:
        return own.write("model-a", estimator, prototype=trained.prototype, record=trained.record)

    return Candidates(
        own,
        write(store.estimator("model-a")),
        write(DummyClassifier().fit(X, y)),
        held_out[list(credit.FEATURES)],
        held_out[credit.TARGET],
    )


def test_a_candidate_is_better_worse_or_no_different_and_nothing_is_released(candidates: Candidates) -> None:
    candidates.release(candidates.bad)
    better = candidates.judge(candidates.good)
    assert better.verdict == "better"
    assert "**The candidate is better than the version that is live.**" in better.text
    assert f"runoff release model-a {candidates.good.id} --reason" in better.text

    candidates.release(candidates.good)
    worse = candidates.judge(candidates.bad)
    assert worse.verdict == "worse"
    # What is seen the other way round is the same difference.
    for metric, difference in worse.differences.items():
        assert difference.value == pytest.approx(-better.differences[metric].value)

    same = candidates.judge(candidates.good)
    assert same.verdict == "no difference"
    assert {each.value for each in same.differences.values()} == {0.0}
    assert [release.changes["model-a"].version for release in Management(candidates.store).history()] == [
        candidates.bad.id,
        candidates.good.id,
    ]


def test_without_a_release_there_is_nothing_to_compare_with(candidates: Candidates) -> None:
    told = candidates.judge(candidates.good)
    assert told.verdict is None
    assert "Nothing has been released to model-a yet" in told.text
    assert f"runoff release model-a {candidates.good.id}" in told.text


def test_what_was_trained_on_other_data_is_said_to_be_flattered(candidates: Candidates) -> None:
    candidates.release(candidates.good)
    assert "other data" not in candidates.judge(candidates.good).text
    other = candidates.store.write(
        "model-a",
        candidates.store.estimator("model-a", candidates.good.id),
        prototype=candidates.good.prototype,
        record={**candidates.good.record, "data_digest": "of other clients"},
    )
    assert "It was trained on other data" in candidates.judge(other).text


def test_a_live_version_that_cannot_be_loaded_is_named_with_the_reason(
    candidates: Candidates, tmp_path: Path
) -> None:
    candidates.release(candidates.bad)
    (tmp_path / "model-a" / candidates.bad.id / "model-a.joblib").write_bytes(b"broken")
    told = candidates.judge(candidates.good)
    assert told.verdict is None
    assert f"model-a {candidates.bad.id}, cannot be loaded" in told.text


def test_the_metrics_compared_are_those_that_evaluation_measures() -> None:
    rng = np.random.default_rng(7)
    y, ours, theirs = rng.integers(0, 2, 300), rng.random(300), rng.integers(0, 2, 300).astype(float)
    found = gate.compare(y, ours, theirs, seed=1)
    assert found.keys() == gate.LOSSES.keys()
    for metric, difference in found.items():
        assert difference.candidate == pytest.approx(evaluation.measure(y, ours)[metric])
        # Probabilities of 0 and 1 have a finite loss, too.
        assert difference.live == pytest.approx(evaluation.measure(y, theirs)[metric])
        assert difference.lower < difference.value < difference.upper


@pytest.mark.slow
def test_equally_good_candidates_are_told_apart_in_one_comparison_of_twenty_at_most() -> None:
    rng = np.random.default_rng(2026)
    told_apart = 0
    for seed in range(200):
        truth = rng.beta(1, 4, 300)
        y = rng.random(300) < truth
        ours, theirs = (np.clip(truth + rng.normal(0, 0.05, 300), 0.01, 0.99) for _ in range(2))
        verdicts = {each.verdict for each in gate.compare(y, ours, theirs, seed).values()}
        told_apart += verdicts != {"no difference"}
    # 10 are expected; more than 18 come about by chance in one of two hundred such tests.
    assert told_apart <= 18
