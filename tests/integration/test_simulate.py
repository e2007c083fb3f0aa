"""`runoff simulate`, as one types it: what is sent, told late, drifted and broken, against real services."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests import shell
from tests.house import House, running_without_dashboard, until
from traffic.faults import Break
from traffic.plan import Plan
from traffic.simulation import Late, Order, Simulation

ROOT = Path(__file__).resolve().parents[2]


def simulates(url: str, *arguments: str, **environment: str) -> CompletedProcess[str]:
    return shell.runoff("simulate", "--url", url, *arguments, **environment)


def audit(house: House) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = house.router.gets("/v1/audit?last=20").json["entries"]
    return entries


def sets(house: House, **changed: Any) -> None:
    """Make the experiment's document another one."""
    told = house.router.gets("/v1/experiment")
    body = json.dumps(told.json | changed).encode()
    etag = told.headers["ETag"]
    reply = house.router.sends(body, "/v1/experiment?reason=for%20this%20test", "PUT", If_Match=etag)
    assert reply.status == 200, reply.body


@pytest.fixture(scope="module")
def breakable(board: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A house in which variants may be broken; each test says which experiment it is about."""
    with running_without_dashboard(tmp_path_factory.mktemp("breakable"), board) as house:
        yield house


def test_what_is_simulated_is_on_record_with_its_outcomes_and_the_verdict_counts_them(
    house: House,
) -> None:
    start = house.stats()["cursor"]
    done = simulates(
        house.router_url,
        "--rate",
        "40",
        "--seconds",
        "3",
        "--outcomes",
        "0.3",
        "--delays",
        "by-outcome",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["failed"], told["not_sent"], told["untold"]) == (0, 0, 0)
    rows = house.record(start)
    assert told["done"] == told["told"] == len(rows) > 60
    assert {row["tag"] for row in rows} == {"simulation"}
    assert told["answers"] == {
        name: sum(row["variant"] == name for row in rows) for name in sorted({row["variant"] for row in rows})
    }
    for row in rows:
        assert len(house.router.gets(f"/v1/predictions/{row['id']}").json["outcomes"]) == 1

    # The same seed, the same clients, in words this time.
    again = simulates(house.router_url, "--rate", "40", "--seconds", "3")
    assert again.returncode == 0
    assert again.stdout.startswith(f"Sent {len(rows)} requests in ")
    later = house.record(start)[len(rows) :]
    assert [row["features"] for row in sorted(later, key=number)] == [
        row["features"] for row in sorted(rows, key=number)
    ]


def number(row: dict[str, Any]) -> int:
    """Which of its run a request was."""
    return int(row["id"].rpartition("-")[2])


@pytest.mark.slow
def test_a_variant_breaks_on_purpose_when_it_is_told_to_and_is_mended_at_the_end(breakable: House) -> None:
    own = breakable.router.gets("/v1/experiment").json["variants"][1]
    sets(
        breakable,
        mode="split",
        variants=[each | {"weight": 1} for each in breakable.router.gets("/v1/experiment").json["variants"]],
    )
    order = Order(
        plan=Plan(rate=20, seconds=6),
        outcomes=Late(mean=0.1),
        broken=Break(variant="B", fault="upside-down", at=4.0),
    )
    simulation = Simulation(order, breakable.router_url)
    start = breakable.stats()["cursor"]
    simulation.run()
    assert simulation.progress.problem is None
    rows = sorted((row for row in breakable.record(start) if row["variant"] == "B"), key=number)
    moved = []
    for row in rows:
        itself = breakable.model_b.asks(row["features"]).prediction
        moved.append(abs(row["prediction"] - itself) > 1e-9)
        assert row["prediction"] == pytest.approx(1 - itself if moved[-1] else itself)
    # What the model itself says is turned around only from the moment on; some are under way then.
    assert not moved[0]
    assert moved[-1]

    reasons = [each["reason"] for each in audit(breakable)]
    assert "B is to break on purpose (upside-down)" in reasons[-2]
    assert "B is mended" in reasons[-1]
    assert breakable.router.gets("/v1/experiment").json["variants"][1]["url"] == own["url"]


@pytest.mark.slow
def test_a_canary_that_is_broken_on_purpose_is_sent_back(breakable: House) -> None:
    guardrail = {"name": "errors", "metric": "error-rate", "margin": 0.01}
    canary = {"steps": [0.5, 1.0], "traffic": "simulation"}
    sets(breakable, mode="canary", canary=canary, guardrails=[guardrail])
    simulation = Simulation(
        Order(plan=Plan(rate=60, seconds=60), broken=Break(variant="B", fault="errors")), breakable.router_url
    )
    thread = threading.Thread(target=simulation.run)
    thread.start()
    try:
        until(lambda: audit(breakable)[-1]["weights"] == {"A": 1.0, "B": 0.0}, "the canary is sent back")
    finally:
        simulation.stop()
        thread.join()
    assert simulation.progress.stopped
    assert simulation.progress.failed > 0
    assert any(each["evidence"] for each in audit(breakable))


def test_what_cannot_be_simulated_is_said_and_exits_with_an_error(house: House) -> None:
    nobody = simulates(house.router_url, "--requests", "5", "--break", "C")
    assert nobody.returncode == 1
    assert "there is no variant C: there are A, B" in nobody.stderr
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    down = simulates(f"http://127.0.0.1:{port}", "--requests", "5")
    assert down.returncode == 1
    assert "no connection" in down.stderr
    elsewhere = simulates("http://router.example", "--requests", "5", "--break", "B")
    assert "is elsewhere" in elsewhere.stderr


@pytest.mark.slow
def test_a_variant_that_is_broken_on_purpose_answers_real_traffic_as_ever(
    breakable: House, client: dict[str, int]
) -> None:
    to_b = {"X_Force_Variant": "B"}
    sets(breakable, mode="split", guardrails=[])
    order = Order(plan=Plan(rate=20, seconds=30), broken=Break(variant="B", fault="errors"))
    simulation = Simulation(order, breakable.router_url)
    thread = threading.Thread(target=simulation.run)
    thread.start()
    statuses = []

    def asks_both() -> bool:
        real = breakable.router.asks(client, **to_b)
        simulated = breakable.router.asks(client, **to_b, X_Traffic_Tag="simulation")
        statuses.append((real.status, simulated.status))
        return sum(failed == 500 for _, failed in statuses) >= 5

    try:
        until(asks_both, "simulated requests fail")
        simulation.stop()
        while thread.is_alive():
            asks_both()
    finally:
        simulation.stop()
        thread.join()
    # From before it was broken until after it was mended.
    statuses += [(breakable.router.asks(client, **to_b).status, 200) for _ in range(20)]
    assert {real for real, _ in statuses} == {200}


@pytest.mark.slow
def test_what_a_run_broke_is_mended_when_it_is_told_to_end_and_by_the_next_one_when_it_was_killed(
    breakable: House,
) -> None:
    sets(breakable, mode="split", guardrails=[])
    own = breakable.router.gets("/v1/experiment").json

    def is_broken() -> bool:
        return bool(breakable.router.gets("/v1/experiment").json != own)

    for number in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "traffic.simulate_cli", "--url", breakable.router_url),
                *("--seconds", "600", "--break", "B"),
            ],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(is_broken, "B is looked for elsewhere")
        process.send_signal(number)
        process.wait()
        assert is_broken() == (number == signal.SIGKILL)
    done = simulates(breakable.router_url, "--requests", "20", "--json")
    assert done.returncode == 0, done.stderr
    assert not is_broken()
    assert json.loads(done.stdout)["failed"] == 0
    assert "B is mended" in audit(breakable)[-1]["reason"]
