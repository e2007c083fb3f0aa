"""`make run`, as somebody at a terminal or a machine without one sees it."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house import free_ports

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def surroundings(board: Path, tmp_path: Path) -> dict[str, str]:
    """An environment with free ports, trained models of its own to release, and nothing else of ours."""
    own = tmp_path / "board"
    shutil.copytree(board, own)
    clean = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    ports = {f"{name.upper()}_PORT": str(port) for name, port in free_ports().items()}
    return clean | ports | {"RUNOFF_VAR": str(tmp_path), "RUNOFF_BOARD": str(own)}


def launch(surroundings: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch", *arguments],
        cwd=ROOT,
        env=surroundings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def is_free(port: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) != 0


@pytest.fixture
def taken_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        yield str(somebody.getsockname()[1])


def test_make_alone_lists_the_targets_a_line_each() -> None:
    listed = subprocess.run(
        ["make"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {line.split()[0] for line in listed} >= {"run", "smoke", "test", "train", "check", "fetch"}
    assert all(len(line.split()) > 3 for line in listed)


@pytest.mark.slow
def test_the_burst_goes_through_and_is_summed_up_in_plain_lines(surroundings: dict[str, str]) -> None:
    done = launch(surroundings, "--smoke")
    assert done.returncode == 0, done.stdout
    assert "500 of 500 answered" in done.stdout
    assert "500 on record" in done.stdout
    for name in ("A", "B"):
        assert re.search(
            rf"variant {name}: \d+ requests, [\d.]+% "
            r"\(always-valid 95% interval [\d.]+% to [\d.]+%, configured \d+%: as configured\)",
            done.stdout,
        )
    assert re.search(r"latency: median [\d.]+ ms, p99 [\d.]+ ms", done.stdout)
    assert "Sending 500 held-out clients: 500 of 500" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stdout.rstrip().endswith("All services are stopped.")


def test_it_stays_up_until_ctrl_c_and_its_curl_works_as_pasted(surroundings: dict[str, str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "launch"],
        cwd=ROOT,
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    curl = ""
    for line in process.stdout:
        curl = line if line.startswith("curl") else curl
        if line.startswith("Up until"):
            break
    answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True).stdout
    assert re.match(r'\{"prediction":0\.\d+,"model":"model-[ab]","version":"', answer)

    os.killpg(process.pid, signal.SIGINT)
    said = process.stdout.read()
    assert process.wait() == 0
    assert "All services are stopped." in said
    assert "Traceback" not in said
    assert all(is_free(port) for name, port in surroundings.items() if name.endswith("_PORT"))


@pytest.mark.slow
def test_somebody_at_a_terminal_sees_bars(surroundings: dict[str, str]) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "launch", "--smoke"],
        cwd=ROOT,
        env=surroundings | {"TERM": "xterm-256color"},
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    shown = b""
    try:
        while piece := os.read(leader, 65_536):
            shown += piece
    except OSError:  # how Linux says that the other end is gone
        pass
    assert process.wait() == 0
    assert "━" in shown.decode()
    assert b"500/500" in shown


def test_a_taken_port_is_named_with_the_way_to_choose_another(
    surroundings: dict[str, str], taken_port: str
) -> None:
    done = launch(surroundings | {"ROUTER_PORT": taken_port})
    assert done.returncode == 1
    assert f"port {taken_port}, wanted by router, is taken" in done.stdout
    assert "make run ROUTER_PORT=" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize("text", ["eighty", "0", "70000", "-1"])
def test_a_port_that_is_none_is_refused(surroundings: dict[str, str], text: str) -> None:
    done = launch(surroundings | {"DASHBOARD_PORT": text})
    assert done.returncode == 1
    assert f"DASHBOARD_PORT={text} is no port" in done.stdout


@pytest.mark.slow
def test_a_service_that_does_not_start_is_named_with_the_end_of_its_log(
    surroundings: dict[str, str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text('name = "x"\nvariants = []\n')
    done = launch(surroundings | {"RUNOFF_EXPERIMENT": str(broken)})
    assert done.returncode == 1
    assert "router stopped with exit code" in done.stdout
    assert f"The end of {tmp_path}/log/router.log" in done.stdout
    assert "broken.toml: variants: " in done.stdout
    assert all(is_free(port) for name, port in surroundings.items() if name.endswith("_PORT"))


def test_a_bad_data_file_is_named_before_anything_starts(
    surroundings: dict[str, str], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("ID,AGE\n1,2\n")
    done = launch(surroundings | {"CREDIT_DATA": str(bad)})
    assert done.returncode == 1
    assert "bad.csv is not the data set" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.slow
def test_ctrl_c_while_training_stops_it_without_a_traceback(
    surroundings: dict[str, str], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "launch"],
        cwd=ROOT,
        env=surroundings | {"RUNOFF_BOARD": str(tmp_path / "empty")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    for line in process.stdout:
        if "3 of" in line:  # a kernel is at work
            break
    os.killpg(process.pid, signal.SIGINT)
    said = process.stdout.read()
    assert process.wait() == 0
    assert said.strip() == "Stopping …"


@pytest.mark.slow
def test_with_an_operators_key_the_router_asks_for_keys_and_the_burst_has_one(
    surroundings: dict[str, str],
) -> None:
    done = launch(surroundings | {"RUNOFF_OPERATOR_KEY": "open sesame"}, "--smoke")
    assert done.returncode == 0, done.stdout
    assert "500 of 500 answered" in done.stdout
    assert '-H "Authorization: Bearer $RUNOFF_OPERATOR_KEY"' in done.stdout
    assert "open sesame" not in done.stdout


def test_its_help_says_what_it_does_and_does_nothing_of_it(surroundings: dict[str, str]) -> None:
    helped = launch(surroundings, "--help")
    assert helped.returncode == 0
    assert "--smoke" in helped.stdout
    assert "Starting the services" not in helped.stdout
    assert launch(surroundings, "--nonsense").returncode == 2


MAKES = (
    "import pathlib, sys; from launch import environment; print(environment.of(pathlib.Path(sys.argv[1])))"
)


def test_processes_that_need_an_environment_at_once_get_one_that_is_whole(tmp_path: Path) -> None:
    # Locks of nothing, each of a content of its own.
    for number in range(3):
        lock = tmp_path / f"nothing-{number}.txt"
        lock.write_text(f"# {tmp_path}, {number}\n")
        starting = [
            subprocess.Popen([sys.executable, "-c", MAKES, lock], cwd=ROOT, stdout=subprocess.PIPE, text=True)
            for _ in range(4)
        ]
        told = {process.communicate()[0].strip() for process in starting}
        [python] = map(Path, told)
        try:
            assert [process.returncode for process in starting] == [0] * 4
            assert (
                subprocess.run([python, "-c", "print(1)"], check=True, capture_output=True).stdout == b"1\n"
            )
        finally:
            shutil.rmtree(python.parents[1])
            python.parents[1].with_name(f"{python.parents[1].name}.lock").unlink()
