"""What moves weights by itself, in simulated traffic: canaries that break or do not, and a bandit."""

from __future__ import annotations

import contextlib
import math
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from scipy.stats import beta, binomtest

from router import database
from router.controllers import (
    ALPHA,
    Evidence,
    Gate,
    Judgement,
    Runner,
    Sums,
    chances,
    errors_and_latency,
    next_batch,
    next_step,
)
from router.experiment import Canary, read
from router.experiments import Current, Experiments, Following, Place, Stale
from tests import databases

HOUR = timedelta(hours=1)
STEPS = [0.05, 0.25, 1.0]


def current(mode: str, count: int = 2, **fields: Any) -> Current:
    variants = [{"name": name, "url": "http://h", "weight": 1} for name in "ABCDE"[:count]]
    variants[0]["role"] = "champion"
    document = read(
        {"name": "x", "mode": mode, "variants": variants, "canary": {"steps": STEPS, "min_requests": 300}}
        | fields
    )
    return Current(1, 1, datetime.now(UTC), "configure", "the file", "", document, None)


class World:
    """Models that fail, take their time and succeed with probabilities of their own, and what is counted."""

    def __init__(
        self,
        errors: Mapping[str, float] | None = None,
        latency_ms: Mapping[str, float] | None = None,
        successes: Mapping[str, float] | None = None,
    ) -> None:
        self.errors = errors or {}
        self.latency_ms = latency_ms or {}
        self.successes = successes or {}
        self.sums: dict[tuple[int, int, str], Counter[str]] = defaultdict(Counter)
        self.rng = random.Random(1)

    def sends(self, current: Current, requests: int) -> None:
        for _ in range(requests):
            variant = current.assign(str(self.rng.random())).variant.name
            failed = self.rng.random() < self.errors.get(variant, 0.01)
            log = self.rng.gauss(math.log(self.latency_ms.get(variant, 10)), 0.5)
            mine = self.sums[*current.place, variant]
            mine["errors"] += failed
            mine["log_latency"] += 0 if failed else log  # type: ignore[assignment]
            mine["log_latency_squares"] += 0 if failed else log * log  # type: ignore[assignment]
            mine["positives"] += self.rng.random() < self.successes.get(variant, 0.1)
            mine["requests"] += 1

    def counted(self, _: Current, versions: tuple[int, int], begun: int = 0) -> dict[str, Sums]:
        first, last = versions
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for (version, allocation, variant), mine in self.sums.items():
            if first <= version <= last and allocation >= begun:
                found[variant].update(mine)
        return {variant: _sums(mine) for variant, mine in found.items()}


def _sums(counts: Mapping[str, int]) -> Sums:
    """What is counted of requests that are alone: each its own unit and no batch."""
    n, errors = counts["requests"], counts["errors"]
    each = {"assigned": n, "apart": n, "apart_failed": errors, "timed": n - errors, "labelled": n}
    return Sums(**{**counts, **each})


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = database.connect(databases.ledger("sqlite", tmp_path))
    yield engine
    engine.dispose()


def lived(
    engine: sa.Engine, world: World, begin: Current, rounds: int, gate: Gate = errors_and_latency
) -> list[Current]:
    """The states through which an experiment goes, with 2,000 requests in each of some hours."""
    following = Following(Experiments(engine), begin.document)
    runner = Runner(Experiments(engine), following, world.counted, lambda _: gate)
    states = [following.now()]
    for _ in range(rounds):
        world.sends(following.now(), 2000)
        made = runner.decide(following.now().since + HOUR)
        if made:
            states.append(made)
    return states


def shares(states: list[Current]) -> list[float]:
    return [round(state.weights["B"], 6) for state in states]


def test_a_good_challenger_is_ramped_to_all_of_the_traffic(engine: sa.Engine) -> None:
    states = lived(engine, World(), current("canary"), rounds=40)
    assert shares(states) == STEPS
    assert [state.action if not state.allocation else state.allocation.action for state in states] == [
        "configure",
        "step",
        "step",
    ]
    assert states[-1].allocation is not None
    assert states[-1].allocation.by == "canary"
    assert states[-1].allocation.evidence["sums"]["B"]["requests"] >= 300


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (World(errors={"B": 0.2}), "error rate is worse"),
        (World(errors={"B": 1.0}), "error rate is worse"),
        (World(latency_ms={"B": 30}), "latency is worse"),
    ],
    ids=["fails often", "fails always", "is slow"],
)
def test_a_broken_challenger_goes_back_to_nothing_and_stays_there(
    engine: sa.Engine, broken: World, why: str
) -> None:
    states = lived(engine, broken, current("canary"), rounds=12)
    assert shares(states) == [0.05, 0]
    back = states[-1].allocation
    assert back is not None
    assert (back.action, back.by) == ("regress", "canary")
    assert why in back.reason
    assert back.evidence["gate"]
    # An operator may try again.
    again = Experiments(engine).ramp(0.25, expected=1, by="ada", reason="repaired")
    assert lived(engine, World(), again, rounds=12)[-1].weights == {"A": 0, "B": 1}


def test_one_that_breaks_later_goes_back_from_where_it_is(engine: sa.Engine) -> None:
    world = World()
    assert shares(lived(engine, world, current("canary"), rounds=4))[-1] == 0.25
    world.errors = {"B": 0.5}
    assert shares(lived(engine, world, current("canary"), rounds=2)) == [0.25, 0]


def sums(requests: int, errors: int = 0, **more: Any) -> Sums:
    n = requests - errors
    return Sums(requests, errors, requests, requests, errors, 0, n, 2.0 * n, 4.1 * n, **more)


def test_it_is_not_moved_before_its_time_nor_on_a_few_requests() -> None:
    begin = current("canary")
    good, broken = {"A": sums(5000), "B": sums(300)}, {"A": sums(5000), "B": sums(299, 299)}
    later = begin.since + HOUR
    assert next_step(begin, good, later - timedelta(seconds=1), errors_and_latency) is None
    assert next_step(begin, broken, later, errors_and_latency) is None
    assert next_step(begin, {}, later, errors_and_latency) is None
    change = next_step(begin, good, later, errors_and_latency)
    assert change is not None
    assert change.weights == {"A": 0.75, "B": 0.25}
    # What is surely broken does not wait for its time.
    back = next_step(begin, {"A": sums(5000), "B": sums(300, 300)}, begin.since, errors_and_latency)
    assert back is not None
    assert back.action == "regress"


def test_what_seems_worse_and_is_not_surely_so_stays_where_it_is() -> None:
    judged = errors_and_latency(Evidence(Canary(), 0.25, sums(500, 5), sums(500, 13)))
    assert judged.says == "hold"


def test_it_goes_no_step_on_where_requests_do_not_follow_the_shares() -> None:
    for share in (0.25, 0.5):
        judged = errors_and_latency(Evidence(Canary(), share, sums(3000), sums(9000)))
        assert judged.says == "hold"
        assert judged.reason == (
            "the requests do not follow the configured shares: "
            "3,000 went to the champion and 9,000 to the challenger"
        )
    assert errors_and_latency(Evidence(Canary(), 0.25, sums(9000), sums(3000))).says == "advance"


def test_all_of_the_traffic_takes_more_than_that_nothing_seems_worse() -> None:
    few, many = sums(600, 6), sums(20_000, 200)
    assert errors_and_latency(Evidence(Canary(), 0.25, sums(1800, 18), few)).says == "advance"
    judged = errors_and_latency(Evidence(Canary(), 0.5, few, few))
    assert (judged.says, judged.reason) == (
        "hold",
        "the challenger's error rate is not surely as allowed yet",
    )
    assert errors_and_latency(Evidence(Canary(), 0.5, many, many)).says == "advance"


def test_whoever_looks_always_rarely_sees_a_challenger_that_is_as_allowed_go_back() -> None:
    rng = np.random.default_rng(5)
    # Exactly at the margin of 1 %: any worse must go back.
    streams, looks, batch = 300, 60, 100
    gone = 0
    for _ in range(streams):
        champion = rng.binomial(batch, 0.02, looks).cumsum()
        challenger = rng.binomial(batch, 0.03, looks).cumsum()
        gone += any(
            errors_and_latency(Evidence(Canary(), 0.5, sums(n, int(a)), sums(n, int(b)))).says == "regress"
            for n, a, b in zip(range(batch, batch * looks + 1, batch), champion, challenger, strict=True)
            if n >= Canary().min_requests
        )
    assert binomtest(gone, streams, ALPHA, "greater").pvalue > 1e-4


def test_a_gate_may_be_another_one(engine: sa.Engine) -> None:
    seen: list[Evidence] = []

    def gate(evidence: Evidence) -> Judgement:
        seen.append(evidence)
        return Judgement("regress", "the verdict says so", {"e": 120})

    states = lived(engine, World(), current("canary", canary={"steps": [0.5, 1]}), rounds=2, gate=gate)
    assert len(seen) == 1
    allocation = states[-1].allocation
    assert allocation is not None
    assert (allocation.reason, allocation.evidence["gate"]) == ("the verdict says so", {"e": 120})


@pytest.mark.parametrize("success", [1, 0])
def test_a_bandit_goes_to_the_better_arm_and_keeps_its_floor(engine: sa.Engine, success: int) -> None:
    better, worse = (0.3, 0.2) if success else (0.2, 0.3)
    world = World(successes={"A": worse, "B": better, "C": worse})
    bandit = {"floor": 0.05, "success": success}
    states = lived(engine, world, current("bandit", 3, bandit=bandit), rounds=8)
    assert states[0].weights == pytest.approx(dict.fromkeys("ABC", 1 / 3))
    assert states[-1].weights == pytest.approx({"A": 0.05, "B": 0.9, "C": 0.05}, abs=0.011)
    for state in states:
        assert min(state.weights.values()) >= 0.05 - 1e-12
        assert sum(state.weights.values()) == pytest.approx(1)
    assert states[-1].allocation is not None
    assert states[-1].allocation.by == "bandit"
    unit = states[-1].assign("unit")
    assert unit.propensity == states[-1].weights[unit.variant.name], "the propensity in force is known"


def test_a_bandit_that_learns_nothing_new_moves_nobody() -> None:
    begin = current("bandit")
    later = begin.since + HOUR
    assert next_batch(begin, {}, later) is None, "nothing is known: the even split stays"
    learnt = {"A": sums(0, labelled=500, positives=50), "B": sums(0, labelled=500, positives=90)}
    assert next_batch(begin, learnt, later - timedelta(seconds=1)) is None, "too early"
    change = next_batch(begin, learnt, later)
    assert change == next_batch(begin, learnt, later + HOUR), "every worker draws the same"
    assert change is not None
    assert change.weights["B"] > 0.9


def test_the_chances_are_those_of_the_posteriors() -> None:
    known = {"A": sums(0, labelled=100, positives=40), "B": sums(0, labelled=50, positives=23)}
    grid = np.linspace(0, 1, 20_001)
    exact = np.trapezoid(beta(24, 28).pdf(grid) * beta(41, 61).cdf(grid), grid)
    assert chances(current("bandit").document, known)["B"] == pytest.approx(exact, abs=0.02)


def test_paused_or_in_another_mode_nothing_is_moved(engine: sa.Engine) -> None:
    world = World(errors={"B": 0.9})
    experiments = Experiments(engine)
    experiments.take_in(current("canary").document)
    experiments.pause(expected=1, by="ada", reason="so")
    assert len(lived(engine, world, current("canary"), rounds=3)) == 1
    for mode in ("split", "shadow"):
        assert next_step(current(mode), {}, datetime.now(UTC), errors_and_latency) is None
        assert next_batch(current(mode), {}, datetime.now(UTC)) is None


def asked(world: World, experiments: Experiments, rounds: int) -> Runner:
    """A router that has had some hours of traffic."""
    following = Following(experiments)
    runner = Runner(experiments, following, world.counted)
    for _ in range(rounds):
        world.sends(following.now(), 2000)
        runner.decide(following.now().since + HOUR)
    return runner


@pytest.mark.parametrize(
    ("mode", "world", "would"),
    [
        (
            "canary",
            World(errors={"B": 0.9}),
            "canary, held: it would regress, the challenger's error rate is",
        ),
        ("canary", World(), "canary, held: it would step, from 0.05 to 0.25"),
        ("bandit", World(successes={"A": 0.1, "B": 0.4}), "bandit, held: it would update, B is the best"),
    ],
)
def test_held_nothing_is_moved_and_what_would_be_done_is_said_once(
    engine: sa.Engine, caplog: pytest.LogCaptureFixture, mode: str, world: World, would: str
) -> None:
    caplog.set_level("INFO", "router.controllers")
    experiments = Experiments(engine)
    experiments.take_in(current(mode).document)
    held = experiments.hold(expected=1, by="ada", reason="the month closes")
    runner = asked(world, experiments, rounds=9)
    now = experiments.current()
    assert now == held
    assert [each.weights for each in experiments.audit(Place(1, 0), 9)] == [held.weights]
    [said] = [each.message for each in caplog.records if "held" in each.message]
    assert said.startswith(would)
    # What a canary's gate says, and from what, is kept for who asks.
    judged = runner.judged(held)
    assert (judged is not None) == (mode == "canary")
    if judged:
        assert judged.reason in said
        assert judged.evidence["error rate"]["at_most"] > 0
        assert runner.judged(experiments.ramp(0.5, "B", expected=1, by="ada", reason="so")) is None


def test_resumed_a_canary_goes_on_with_what_was_recorded_before_it_was_held(engine: sa.Engine) -> None:
    experiments = Experiments(engine)
    experiments.take_in(current("canary").document)
    world = World()
    # A hundred of the challenger's requests before, and while it is held; three hundred are the least.
    asked(world, experiments, rounds=1)
    experiments.hold(expected=1, by="ada", reason="so")
    asked(world, experiments, rounds=1)
    resumed = experiments.resume(expected=1, by="ada", reason="go on")
    assert (resumed.place, resumed.step) == ((1, 2), (1, 0))
    asked(world, experiments, rounds=2)
    moved = experiments.current()
    assert moved is not None
    assert moved.weights["B"] == pytest.approx(0.25)
    assert moved.step == moved.place
    # After a pause the step begins anew: what made one pause may have been repaired.
    experiments.pause(expected=1, by="ada", reason="so")
    again = experiments.resume(expected=1, by="ada", reason="repaired")
    assert again.weights == moved.weights
    assert again.step.number > moved.step.number


def test_of_workers_that_decide_at_once_one_does(engine: sa.Engine) -> None:
    experiments = Experiments(engine)
    experiments.take_in(current("canary").document)
    world = World()
    followings = [Following(Experiments(engine)) for _ in range(4)]
    begin = followings[0].now()
    world.sends(begin, 20_000)
    known = world.counted(begin, (1, 1))
    runners = [Runner(Experiments(engine), each, lambda *_: known, lambda _: _advance) for each in followings]
    for each in followings:
        each.now()
    workers = [threading.Thread(target=_decide, args=(each, begin.since + HOUR)) for each in runners]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [entry.place for entry in experiments.audit(Place(0, 0), 10)] == [(1, 0), (1, 1)]


def _advance(_: Evidence) -> Judgement:
    return Judgement("advance", "so")


def _decide(runner: Runner, now: datetime) -> None:
    with contextlib.suppress(Stale):
        runner.decide(now)
