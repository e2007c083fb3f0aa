"""What is measured: a program and all processes that it starts, asked by wrk."""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import click
import psutil
import urllib3

READY_SECONDS = 120.0
WRK = Path(__file__).with_name("wrk.lua")


class Refused(Exception):
    """A service answers, but with an error."""


class Figures(NamedTuple):
    """What was measured of one contender in one form.

    `cpu_us` is CPU time per request in µs, of all its processes; `memory_mb` is their proportional set size.
    """

    cpu_us: float
    per_second: float
    p50_ms: float
    p99_ms: float
    memory_mb: float


class Tree:
    """A program that runs, with all processes that it consists of."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def cpu_seconds(self) -> float:
        """User and system time of the whole tree; that of a process that has ended is its parent's."""
        return sum(sum(process.cpu_times()[:4]) for process in self._all())

    def memory_mb(self) -> float:
        """The proportional set size of the whole tree: what processes share is counted once."""
        return float(sum(process.memory_full_info().pss for process in self._all())) / 1e6

    def _all(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]


def measure(url: str, tree: Tree, requests: Path, *, connections: int, seconds: int) -> Figures:
    """Ask for some seconds, with the requests of a file in turn, as fast as it is answered.

    Raises:
        click.ClickException: requests failed.
    """
    before = tree.cpu_seconds()
    said = _wrk(url, requests, connections, seconds)
    spent = tree.cpu_seconds() - before
    if said["failed"]:
        raise click.ClickException(f"{url} failed {said['failed']} times in {requests.name}")
    return Figures(
        cpu_us=spent * 1e6 / said["requests"],
        per_second=said["requests"] * 1e6 / said["microseconds"],
        p50_ms=said["p50"] / 1e3,
        p99_ms=said["p99"] / 1e3,
        memory_mb=tree.memory_mb(),
    )


def _wrk(url: str, requests: Path, connections: int, seconds: int) -> dict[str, Any]:
    options = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout=30s"]
    command: list[str | Path] = ["wrk", *options, "-s", WRK, url, "--", requests]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@contextmanager
def running(
    name: str,
    command: Callable[[Path], Sequence[str | Path]],
    *,
    cwd: Path,
    environment: Callable[[Path], Mapping[str, str]],
    check: Callable[[], None],
) -> Iterator[Tree]:
    """A program for the length of a `with`, once a check passes.

    Args:
        name: for those who wait.
        command: made with a folder of its own.
        cwd: where it is started.
        environment: the variables that it starts with, made with the same folder.
        check: raises Refused, or what urllib3 raises, until it answers as it should.

    Raises:
        click.ClickException: it ended, or does not answer in READY_SECONDS; with the end of its log.
    """
    with tempfile.TemporaryDirectory() as made, ExitStack() as closing:
        folder = Path(made)
        log = closing.enter_context((folder / "log").open("wb"))
        process = subprocess.Popen(
            command(folder),
            cwd=cwd,
            env=environment(folder),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        closing.callback(stop, process)
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                check()
                break
            except (urllib3.exceptions.HTTPError, Refused) as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    said = (folder / "log").read_text(encoding="utf-8", errors="replace")[-2000:]
                    raise click.ClickException(f"{name} does not start:\n{said}\n{error}") from error
            time.sleep(0.2)
        yield Tree(process.pid)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a program and all that it started."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def inherited() -> dict[str, str]:
    """The variables that any program needs, and one OpenMP thread."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {"OMP_NUM_THREADS": "1"}


def raw(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """A request as HTTP has it, after a line with its length, as wrk's script reads it."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    request = "\r\n".join([*lines, "", ""]).encode() + body
    return b"%d\n%b" % (len(request), request)


def median(rounds: Sequence[Figures]) -> Figures:
    return Figures(*(statistics.median(each) for each in zip(*rounds, strict=True)))
