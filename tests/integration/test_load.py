"""Load tests: what is offered and what comes of it, from a shell, in a process of its own, and by Locust."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hdrh.histogram import HdrHistogram

from tests.house import House, free_ports, until
from tests.integration.test_cli import ROOT
from tests.integration.test_traffic import stalling
from tests.shell import runoff
from traffic.load import MAX_RATE, MAX_SECONDS, MAX_USERS, Load, Recorder, Run, measure
from traffic.load_process import Loader
from traffic.plan import Request
from traffic.runs import NoSuchRun, Runs, targets
from traffic.send import NOT_SENT, STILL_WAITING, TIMED_OUT, Sent


def came(at: float, seconds: float, error: str | None = None, late: float = 0.0) -> Sent:
    """What came of a request that was due at a moment."""
    return Sent(Request(at, "id", "unit", b"", 0), 0 if error else 200, seconds, late, error=error)


def times(run: Run) -> HdrHistogram:
    return HdrHistogram.decode(run.histogram)


def test_what_a_shell_offers_is_on_the_routers_record_and_is_kept_compared_and_exported(
    house: House, tmp_path: Path
) -> None:
    since = house.stats()["cursor"]
    done = runoff(
        "load", "--url", house.router_url, "--rate", 40, "--seconds", 3, "--json", RUNOFF_LOADS=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    run = Run.model_validate_json(done.stdout)
    record = house.record(since)
    assert run.state == "finished"
    assert run.offered == run.answered == len(record)
    assert {row["tag"] for row in record} == {"load-test"}
    assert sum(run.variants.values()) == run.answered
    assert set(run.variants) <= {"A", "B"}
    assert times(run).get_total_count() == run.answered
    assert run.latency["p50"] <= run.latency["p99"] <= run.latency["max"] == run.curve[-1][1]

    # The same seed offers the same clients.
    again = runoff(
        *("load", "--url", house.router_url, "--rate", 40, "--seconds", 3), RUNOFF_LOADS=str(tmp_path)
    )
    assert f"Offered {run.offered} requests in 3.0 s: {run.offered} answered" in again.stdout
    asked = [row["features"] for row in sorted(record, key=lambda row: int(row["id"].split("-")[1]))]
    more = house.record(record[-1]["cursor"])
    assert [row["features"] for row in sorted(more, key=lambda row: int(row["id"].split("-")[1]))] == asked

    listed = runoff("loads", "--json", RUNOFF_LOADS=str(tmp_path))
    newest, first = json.loads(listed.stdout)
    assert first["id"] == run.id
    beside = runoff("loads", run.id, newest["id"], RUNOFF_LOADS=str(tmp_path)).stdout
    assert run.id in beside
    assert newest["id"] in beside
    assert f"{run.offered:,}" in beside
    rows = list(
        csv.DictReader(io.StringIO(runoff("loads", run.id, "--csv", RUNOFF_LOADS=str(tmp_path)).stdout))
    )
    assert sum(float(row["achieved"]) for row in rows) == run.answered


def test_users_wait_for_their_answers_and_each_asks_once_a_second(house: House, tmp_path: Path) -> None:
    since = house.stats()["cursor"]
    done = runoff(
        "load", "--url", house.router_url, "--users", 7, "--seconds", 3, "--json", RUNOFF_LOADS=str(tmp_path)
    )
    run = Run.model_validate_json(done.stdout)
    record = house.record(since)
    assert run.offered == 20  # seven a second, the last of which would be due when it is over
    assert run.answered + run.failed + run.omitted == run.offered
    assert run.answered == len(record)
    assert len({row["unit"] for row in record}) <= 7


@pytest.mark.slow
def test_a_stall_is_seen_by_all_who_were_to_ask_in_it() -> None:
    offered = {"rate": 50.0, "users": 50}
    for how, height in offered.items():
        with stalling() as url:
            run = measure(Recorder(Load.model_validate({how: height, "seconds": 3}), url))
        assert run.failed == 0
        # Whoever counts from when requests left sees each of them once.
        assert times(run).get_total_count() >= run.answered
        assert times(run).get_total_count() + run.omitted >= run.offered - 1
        slow = sum(each.count_at_value_iterated_to for each in slower_than(run, 0.25))
        # A second in which nobody was answered: those due in its first three quarters waited a quarter.
        assert slow >= 30, how


def slower_than(run: Run, seconds: float) -> list[Any]:
    return [each for each in times(run).get_recorded_iterator() if each.value_iterated_to > 1e6 * seconds]


def test_what_users_could_not_ask_while_they_waited_is_put_in() -> None:
    alone, closed = Recorder(Load(rate=1), "x"), Recorder(Load(users=1), "x")
    for recorder in (alone, closed):
        recorder.count(came(0.0, 3.5))
    # 3.5 s, and for those who would have asked a second later each 2.5 s, 1.5 s and half a second.
    assert times(alone.told(4)).get_total_count() == 1
    assert times(closed.told(4)).get_total_count() == 4
    closed.count(came(1.0, 0.0, STILL_WAITING))
    told = closed.told(4)
    assert (told.offered, told.answered, told.omitted, told.failed) == (2, 1, 1, 0)


def test_failures_are_told_by_kind_and_do_not_make_a_service_look_fast() -> None:
    recorder = Recorder(Load(rate=10, seconds=10), "x")
    recorder.count(came(0.0, 0.100))
    for kind in ("status 502", "status 502", NOT_SENT):
        recorder.count(came(1.0, 0.001, kind))
    recorder.count(came(2.0, 10.0, TIMED_OUT))
    recorder.count(came(3.0, 0.2, late=0.15))
    run = recorder.told(10, "finished")
    assert run.errors == {"status 502": 2, NOT_SENT: 1, TIMED_OUT: 1}
    assert (run.offered, run.answered, run.late) == (6, 2, 1)
    counted = times(run)
    assert counted.get_total_count() == 3
    assert counted.get_min_value() == pytest.approx(100_000, rel=1e-3)
    # From when it left, the last one took 50 ms.
    assert run.service["p50"] == pytest.approx(100, rel=1e-3)
    assert run.moments[1].errors == {"status 502": 2, NOT_SENT: 1}
    assert run.moments[12].errors == {TIMED_OUT: 1}


def test_a_long_run_has_no_more_moments_than_a_chart_can_hold() -> None:
    recorder = Recorder(Load(rate=1, seconds=MAX_SECONDS), "x")
    for second in range(MAX_SECONDS):
        recorder.count(came(float(second), 0.01))
    moments = recorder.told(MAX_SECONDS, "finished").moments
    assert len(moments) == 200
    assert all(each.achieved == pytest.approx(1.0) for each in moments)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--target", "http://127.0.0.1:1"), "there is no target http://127.0.0.1:1: there are router"),
        (("--rate", MAX_RATE + 1), "2001"),
        (("--users", MAX_USERS + 1), "501"),
        (("--seconds", MAX_SECONDS + 1), "601"),
        (("--rate", 5, "--users", 5), "either a rate or a number of users"),
    ],
)
def test_beyond_its_bounds_nothing_is_offered(given: tuple[object, ...], said: str, tmp_path: Path) -> None:
    done = runoff("load", *given, RUNOFF_LOADS=str(tmp_path))
    assert done.returncode != 0
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_targets_are_those_of_the_list_alone() -> None:
    assert targets({}, "http://router/") == {"router": "http://router"}
    named = {"RUNOFF_LOAD_TARGETS": "router=http://r model_a=https://a/"}
    assert targets(named, "http://other") == {"router": "http://r", "model_a": "https://a"}
    with pytest.raises(ValueError, match="RUNOFF_LOAD_TARGETS: 'ftp://x'"):
        targets({"RUNOFF_LOAD_TARGETS": "ftp://x"}, "http://router")


def test_where_nobody_answers_that_is_said_and_exits_with_an_error(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_ports()['router']}"
    done = runoff("load", "--url", url, "--rate", 20, "--seconds", 1, RUNOFF_LOADS=str(tmp_path))
    assert done.returncode == 1
    assert "0 answered" in done.stdout
    assert "× no connection" in done.stdout
    assert "did not answer: no connection" in done.stderr


@pytest.fixture
def loader(house: House, tmp_path: Path) -> Loader:
    return Loader({"router": house.router_url, "model_a": house.model_a.url}, Runs(tmp_path))


def sends(loader: Loader, id_: str) -> Run:
    """A run, once it has sent something."""
    until(lambda: loader.runs.get(id_).offered > 0, "it sends")
    return loader.runs.get(id_)


@pytest.mark.slow
def test_a_process_of_its_own_runs_one_test_at_a_time_and_stops_when_it_is_told_to(loader: Loader) -> None:
    id_ = loader.start(Load(rate=20, seconds=60))
    assert id_ is not None
    assert loader.running == id_
    assert loader.start(Load(rate=20, seconds=60)) is None
    assert sends(loader, id_).state == "running"
    loader.stop()
    until(lambda: loader.running is None, "it stops")
    run = loader.runs.get(id_)
    assert run.state == "stopped"
    assert run.answered == run.offered
    assert [each.id for each in loader.runs.newest(5)] == [id_]

    # It can go to a model itself, too, which tells no variant.
    other = loader.start(Load(target="model_a", rate=20, seconds=1))
    assert other is not None
    until(lambda: loader.running is None, "it ends")
    assert loader.runs.get(other).answered > 0
    assert loader.runs.get(other).variants == {}
    with pytest.raises(KeyError):
        loader.start(Load(target="http://127.0.0.1:1", rate=1))


@pytest.mark.slow
def test_a_process_that_dies_is_told_of(loader: Loader) -> None:
    id_ = loader.start(Load(rate=20, seconds=60))
    assert id_ is not None
    sends(loader, id_)
    process = loader._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: loader.running is None, "it is seen to have ended")
    run = loader.runs.get(id_)
    assert (run.state, run.problem) == ("broken off", "its process ended with exit code -9")


@pytest.mark.slow
def test_a_test_outlives_nobody_who_started_it(house: House, tmp_path: Path) -> None:
    starts = (
        "import sys\nfrom pathlib import Path\nfrom traffic.load import Load\n"
        "from traffic.load_process import Loader\nfrom traffic.runs import Runs\n"
        "print(Loader({'router': sys.argv[1]}, Runs(Path(sys.argv[2]))).start(Load(rate=20, seconds=60)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", starts, house.router_url, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    runs = Runs(tmp_path)
    until(lambda: runs.get(done.stdout.strip()).state == "stopped", "it has stopped")


def test_a_run_that_fell_silent_was_broken_off_and_no_name_leads_elsewhere(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "load")
    run = Recorder(Load(rate=1), "x").run.model_copy(update={"updated": "2026-01-01T00:00:00.000Z"})
    runs.keep(run)
    assert runs.get(run.id).state == "broken off"
    (tmp_path / "secret.json").write_text(run.model_dump_json())
    for name in ("../secret", "", "no-such-run", f"../load/{run.id}"):
        with pytest.raises(NoSuchRun):
            runs.get(name)
    (tmp_path / "load" / "20990101T000000Z-0000.json").write_text("{}")
    assert [each.id for each in runs.newest(5)] == [run.id]


@pytest.mark.slow
def test_locust_sends_the_same_clients_tagged_as_simulated(house: House) -> None:
    since = house.stats()["cursor"]
    command = [sys.executable, "-m", "locust", "-f", "traffic/locustfile.py", "--host", house.router_url]
    with subprocess.Popen(
        [*command, "--headless", "-u", "5", "-r", "5", "-t", "120s", "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as locust:
        # However long it takes to begin.
        until(lambda: len(house.record(since)) > 20 or locust.poll() is not None, "it sends")
        locust.terminate()
        out, err = locust.communicate(timeout=60)
    assert locust.returncode == 0, err
    [told] = json.loads(out)
    assert told["num_failures"] == 0
    record = house.record(since)
    # Who is still asked when Locust stops is on record, too.
    assert 0 < told["num_requests"] <= len(record) <= told["num_requests"] + 5
    assert {row["tag"] for row in record} == {"load-test"}
