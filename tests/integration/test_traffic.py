"""Traffic follows from a seed, comes when it is due whatever the service does, and tells the truth late."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np
import pytest
from aiohttp import web

from data.credit import PAYMENTS
from tests.house import House, until
from traffic.clients import HELD_OUT, population
from traffic.outcomes import Outcomes
from traffic.plan import Plan
from traffic.send import NOT_SENT, Sender, Sent, send_now

STALL_SECONDS = 1.0


@contextmanager
def stalling() -> Iterator[str]:
    """A service that answers at once, but for a second, which begins half a second after the first."""
    loop = asyncio.new_event_loop()
    first: list[float] = []

    async def answer(_: web.Request) -> web.Response:
        first.append(time.monotonic())
        since = time.monotonic() - first[0]
        await asyncio.sleep(max(0.0, 0.5 + STALL_SECONDS - since) if since >= 0.5 else 0.0)
        return web.json_response({"prediction": 0.5})

    async def start() -> tuple[web.AppRunner, int]:
        app = web.Application()
        app.router.add_post("/predict", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner, runner.addresses[0][1]

    runner, port = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.parametrize("shape", ["steady", "bursts", "ramp"])
def test_the_same_plan_sends_the_same_clients_as_the_same_units_at_the_same_moments(shape: str) -> None:
    def sent(seed: int) -> list[tuple[float, str, bytes, int]]:
        plan = Plan.model_validate({"shape": shape, "rate": 50, "seconds": 10, "seed": seed})
        return [(each.at, each.unit, each.body, each.outcome) for each in plan.requests()]

    assert sent(1) == sent(1)
    assert sent(1) != sent(2)


@pytest.mark.parametrize(("shape", "expected"), [("steady", 20_000), ("bursts", 20_000), ("ramp", 10_000)])
def test_as_many_requests_come_as_the_rate_says(shape: str, expected: int) -> None:
    plan = Plan.model_validate({"shape": shape, "rate": 1000, "seconds": 20})
    due = [each.at for each in plan.requests()]
    assert len(due) == pytest.approx(expected, abs=5 * expected**0.5)
    assert due == sorted(due)
    if shape == "bursts":
        assert all(at % 5 <= 1 for at in due)


def test_drift_changes_everybody_from_a_moment_on_and_no_outcome() -> None:
    usual = list(Plan(rate=50, seconds=10).requests("a"))
    drifted = list(Plan(rate=50, seconds=10, drift="two-months-late", drift_at=5).requests("a"))
    for before, after in zip(usual, drifted, strict=True):
        assert before.outcome == after.outcome
        if before.at < 5:
            assert before.body == after.body
        else:
            late = json.loads(before.body) | dict.fromkeys(PAYMENTS, 2)
            assert json.loads(after.body) == late
    assert any(one.body != other.body for one, other in zip(usual, drifted, strict=True))


def test_clients_come_with_the_outcomes_that_the_data_know() -> None:
    outcomes = {each.outcome for each in islice(population(HELD_OUT, 1), 100)}
    assert outcomes == {0, 1}


def test_a_stall_is_seen_by_all_that_were_due_in_it_and_by_one_of_a_closed_loop() -> None:
    def slow(sender: Sender, plan: Plan) -> list[Sent]:
        told: list[Sent] = []
        send_now(plan.requests(), sender, told.append)
        return [each for each in told if each.seconds > STALL_SECONDS / 4]

    plan = Plan(rate=100, seconds=2)
    with stalling() as url:
        opened = slow(Sender(url), plan)
    with stalling() as url:
        closed = slow(Sender(url, max_in_flight=1, waits=True), plan)
    # Three quarters of the second's hundred had a quarter of a second or more to wait.
    assert len(opened) > 40
    assert len(closed) <= 1 + 1
    assert np.max([each.seconds for each in opened]) < STALL_SECONDS * 5


def test_what_is_due_while_too_many_are_under_way_is_counted_as_not_sent() -> None:
    told: list[Sent] = []
    plan = Plan(rate=100, seconds=2)
    with stalling() as url:
        send_now(plan.requests(), Sender(url, max_in_flight=10), told.append)
    kinds = [each.error for each in told]
    assert len(told) == len(list(plan.requests()))
    assert kinds.count(NOT_SENT) > 40
    assert kinds.count(None) == len(told) - kinds.count(NOT_SENT)


def test_outcomes_come_late_and_the_router_counts_them_as_known(house: House) -> None:
    plan, reports = Plan(rate=50, seconds=2, seed=7), Outcomes(house.router_url, "by-outcome", mean=1.0)
    told: list[Sent] = []

    def on_sent(sent: Sent) -> None:
        told.append(sent)
        reports.know(sent)

    async def run() -> None:
        sender, over = Sender(house.router_url, tag="late-truth"), asyncio.Event()
        async with sender.session() as session:
            reporting = asyncio.create_task(reports.report(session, over))
            await sender.send(plan.requests(), session, on_sent)
            over.set()
            await reporting

    asyncio.run(run())
    assert {each.status for each in told} == {200}
    assert reports.told == {"recorded": len(told)}
    assert reports.waiting == 0
    truth = {each.request.id: each.request.outcome for each in told}
    rows = [row for row in house.record() if row["tag"] == "late-truth"]
    assert {row["id"] for row in rows} == set(truth)
    for id_ in islice(truth, 20):
        on_record = house.router.gets(f"/v1/predictions/{id_}").json["outcomes"]
        assert [each["outcome"] for each in on_record] == [truth[id_]]


@pytest.mark.slow
def test_outcomes_are_reported_again_until_the_router_is_back(own_router: House) -> None:
    reports = Outcomes(own_router.router_url, "fixed", mean=0.0)
    send_now(Plan().at_once(20), Sender(own_router.router_url, max_in_flight=4, waits=True), reports.know)
    assert reports.waiting == 20
    own_router.services.kill("router")

    async def run() -> None:
        over = asyncio.Event()
        over.set()
        async with Sender(own_router.router_url).session() as session:
            await reports.report(session, over)

    reporting = threading.Thread(target=lambda: asyncio.run(run()))
    reporting.start()
    until(lambda: reports.retries > 0, "a report that failed")
    own_router.services.start_one("router")
    reporting.join(30)
    assert reports.told == {"recorded": 20}
