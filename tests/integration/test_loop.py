"""The main job: train, serve, route, record. What the router says, the ledger holds, to the last request."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
from scipy.stats import binomtest

from runoff.store import Store
from tests.house import House, Reply, until

REFUSED_OR_FAILED = {502, 503, 504}


def test_held_out_clients_are_split_answered_and_recorded_to_the_last_request(
    own_router: House, store: Store, clients: list[dict[str, int]]
) -> None:
    house = own_router
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(house.router.asks, clients))
    assert [reply.status for reply in replies] == [200] * len(clients)

    # The answers are those of the models, offline, to the last bit.
    models = {"A": store.load("model-a"), "B": store.load("model-b")}
    for client, reply in zip(clients, replies, strict=True):
        [offline] = models[reply.headers["X-Variant"]].probabilities(pd.DataFrame([client]))
        assert reply.prediction == offline

    # The record holds each answer, and nothing else.
    recorded = {row["request_id"]: row for row in house.record()}
    assert len(house.on_disk()) == len(recorded) == len(replies)
    for client, reply in zip(clients, replies, strict=True):
        row = recorded[reply.headers["X-Request-ID"]]
        assert row["variant"] == reply.headers["X-Variant"]
        assert (row["model"], row["version"]) == (reply.json["model"], reply.json["version"])
        assert row["prediction"] == reply.prediction
        assert row["features"] == client
        assert row["status"] == 200
        assert row["latency_ms"] > 0

    # The counts are those of the answers, and the split is the configured one, as far as chance goes.
    stats = house.stats()
    answered = Counter(reply.headers["X-Variant"] for reply in replies)
    assert stats["requests"] == len(replies)
    for name in ("A", "B"):
        told = stats["variants"][name]
        assert told["requests"] == told["answered"] == answered[name]
        assert told["share"] == pytest.approx(answered[name] / len(replies))
        assert told["share_interval"][0] <= told["configured_share"] <= told["share_interval"][1]
        mine = [reply.prediction for reply in replies if reply.headers["X-Variant"] == name]
        assert told["mean_prediction"] == pytest.approx(sum(mine) / len(mine))
    # One chance in a million that a right split fails here.
    assert binomtest(answered["A"], len(replies), 0.8).pvalue > 1e-6


@pytest.mark.slow
def test_when_a_model_is_killed_under_traffic_each_request_is_answered_or_refused_and_recorded(
    own_house: House, clients: list[dict[str, int]]
) -> None:
    house = own_house
    replies = traffic_around(house, clients, lambda: house.services.kill("model_b"))

    by_status = Counter(reply.status for reply in replies)
    assert set(by_status) <= {200} | REFUSED_OR_FAILED
    assert by_status[200] > 0
    failed = [reply for reply in replies if reply.status != 200]
    assert failed, "model B got a fifth of the traffic and was gone"
    for reply in failed:
        assert reply.json["variant"] == reply.headers["X-Variant"] == "B"
    recorded = {row["request_id"]: row for row in house.record()}
    assert len(recorded) == len(replies)
    for reply in replies:
        row = recorded[reply.headers["X-Request-ID"]]
        assert row["status"] == reply.status
        assert (row["prediction"] is None) == (reply.status != 200)
    assert house.stats()["variants"]["B"]["failed"] == len(failed)
    assert house.stats()["variants"]["A"]["failed"] == 0

    house.services.start_one("model_b")
    house.services.wait_ready("model_b")
    # A variant that failed so often is asked again by probes, a second or more apart, in each worker.
    until(
        lambda: {house.router.asks(client).status for client in clients[:40]} == {200}, "B takes part again"
    )


@pytest.mark.slow
def test_when_the_router_is_killed_no_answer_that_was_given_is_lost(
    own_house: House, clients: list[dict[str, int]]
) -> None:
    house = own_house
    replies = traffic_around(house, clients, lambda: house.services.kill("router"), allow_broken=True)

    assert replies, "some requests were answered before the router was killed"
    on_disk = {row["request_id"]: row["prediction"] for row in house.on_disk()}
    for reply in replies:
        assert on_disk[reply.headers["X-Request-ID"]] == reply.prediction


def traffic_around(
    house: House, clients: list[dict[str, int]], event: Callable[[], None], *, allow_broken: bool = False
) -> list[Reply]:
    """Send all clients, and let something happen after a third of them; return the replies that came."""
    sent = 0
    counting = threading.Lock()
    reached = threading.Event()

    def ask(client: dict[str, int]) -> Reply | None:
        nonlocal sent
        try:
            return house.router.asks(client)
        except Exception:
            if not allow_broken:
                raise
            return None
        finally:
            with counting:
                sent += 1
                if sent >= len(clients) // 3:
                    reached.set()

    with ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(ask, client) for client in clients]
        assert reached.wait(60)
        event()
        replies = [each.result() for each in pending]
    return [reply for reply in replies if reply is not None]
