"""From real clients to a verdict, through real services: outcomes come late and in no order."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flask import Flask, request
from sklearn.tree import DecisionTreeClassifier

from data import credit
from tests.house import House, running, served, until
from tests.integration.test_routing import TWO, a_router_by
from tests.integration.test_verdicts import reports

# A challenger that learnt nothing is sent back within so many requests of both.
BOUND = 2_000
# So many clients are held out of the whole data set; of the sample too few to tell both models apart.
WHOLE = 7_500


@pytest.fixture(scope="module")
def held_out() -> list[tuple[dict[str, int], int]]:
    """Clients whom no model was trained on, and what became of each."""
    _, frame = credit.split(credit.load())
    records = frame[list(credit.FEATURES)].to_dict("records")
    return [
        ({str(name): int(value) for name, value in record.items()}, int(outcome))
        for record, outcome in zip(records, frame[credit.TARGET], strict=True)
    ]


@pytest.fixture(scope="module")
def learnt_nothing() -> Iterator[str]:
    """A service like ours whose model was trained on labels that belong to others."""
    train, _ = credit.split(credit.load())
    labels = np.random.default_rng(1).permutation(train[credit.TARGET])
    model = DecisionTreeClassifier(min_samples_leaf=10, random_state=1)
    model.fit(train[list(credit.FEATURES)], labels)
    app = Flask(__name__)

    @app.post("/predict")
    def predict() -> dict[str, Any]:
        [probability] = model.predict_proba(pd.DataFrame([request.get_json()])[list(credit.FEATURES)])[:, 1]
        return {"prediction": float(probability), "model": "nothing", "version": "1"}

    with served(app) as url:
        yield url


def verdict(house: House) -> dict[str, Any]:
    told: dict[str, Any] = house.router.gets("/v1/verdict").json
    return told


def state_of(house: House) -> Any:
    """The experiment as it stands."""
    return house.router.gets("/v1/experiment/state").json


@pytest.mark.slow
def test_the_verdict_is_about_the_difference_on_all_who_were_held_out(
    board: Path, models: House, tmp_path: Path, held_out: list[tuple[dict[str, int], int]]
) -> None:
    with a_router_by(tmp_path, board, models, 'mode = "shadow"') as house:
        became: dict[str, int] = {}
        seen = []
        for number, (client, outcome) in enumerate(held_out):
            became[house.router.asks(client).headers["X-Request-ID"]] = outcome
            if number % 200 == 199:
                # One looks again and again, while few outcomes have come.
                seen.append(verdict(house))
        late = list(became.items())
        random.Random(1).shuffle(late)
        for start in range(0, len(late), 200):
            reports(house, dict(late[start : start + 200]))
            seen.append(verdict(house))
        until(lambda: verdict(house)["comparisons"][0]["n"] == len(late), "all outcomes are counted")
        last = verdict(house)

        scores = {"A": [], "B": []}  # type: dict[str, list[float]]
        for id_, outcome in late:
            row = house.router.gets(f"/v1/predictions/{id_}").json
            scores["A"].append((row["prediction"] - outcome) ** 2)
            scores["B"].append((row["side_answers"][0]["prediction"] - outcome) ** 2)
        truth = float(np.mean(scores["A"]) - np.mean(scores["B"]))
    [compared] = last["comparisons"]
    assert compared["n"] == len(late)
    brier = next(row for row in compared["rows"] if row["metric"] == "brier")
    assert brier["difference"] == pytest.approx(truth, abs=1e-9)
    assert brier["interval"]["lower"] <= truth <= brier["interval"]["upper"]
    ends = brier["interval"]
    first = next((each["comparisons"][0]["n"] for each in seen if each["decision"] == last["decision"]), None)
    print(f"{last['decision']} (at a look since {first} pairs): of {len(late):,} pairs the Brier score of A")
    print(f"less that of B is {truth:+.5f}, {ends['lower']:+.5f} to {ends['upper']:+.5f}")
    right, wrong = ("promote", "keep") if truth > 0 else ("keep", "promote")
    # Whatever it decided at any look is not against what is true of all of them.
    assert wrong not in {each["decision"] for each in [*seen, last]}
    assert last["decision"] == right or len(late) < WHOLE


@pytest.mark.slow
def test_a_challenger_that_learnt_nothing_is_sent_back_by_its_guardrail(
    board: Path, tmp_path: Path, held_out: list[tuple[dict[str, int], int]], learnt_nothing: str
) -> None:
    document = """
name = "guarded"
maturity = "0d"
mode = "canary"
[[guardrails]]
name = "scores"
metric = "brier"
margin = 0.0
[canary]
steps = [0.5, 1.0]
hold = "1h"
"""
    (tmp_path / "experiment.toml").write_text(
        document + TWO.replace("${MODEL_B_URL:-http://127.0.0.1:1}", learnt_nothing)
    )
    settings = {"RUNOFF_EXPERIMENT": str(tmp_path / "experiment.toml")}
    with running(tmp_path, board, "model_a", "router", **settings) as house:
        asked = 0
        pending: dict[str, int] = {}
        while asked < BOUND and state_of(house)["action"] != "regress":
            for client, outcome in held_out[asked % len(held_out) :][:100]:
                pending[house.router.asks(client).headers["X-Request-ID"]] = outcome
                asked += 1
            # They become known a hundred requests later.
            known, pending = (pending, {}) if len(pending) > 100 else ({}, pending)
            if known:
                reports(house, known)
        until(lambda: state_of(house)["action"] == "regress", "it is sent back")
        state = state_of(house)
        assert state["weights"] == {"A": 1, "B": 0}
        print(f"sent back after {asked} requests")
        assert "the guardrail scores is broken" in state["reason"]
        told = verdict(house)
    assert told["decision"] == "keep"
    assert json.dumps(state["evidence"]["gate"][0]["state"]) == '"breached"'
