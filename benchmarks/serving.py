"""Our prediction service beside its peers, in one run: `make bench`.

Everybody serves the same model with the same number of workers. All are started once and checked to answer
what scikit-learn says; then each is asked in turn, round after round, by wrk, which sends held-out clients
over connections that stay open. What is told is the median of the rounds.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import psutil
import urllib3
from rich.console import Console

from benchmarks import report
from benchmarks.contenders import CONTENDERS, Contender, Form, Place, Records, Subject
from benchmarks.report import BATCH, Figures, Result
from launch import environment
from runoff.store import Store
from traffic.clients import held_out

MODEL = "model-a"
# Bodies that are sent in turn, so that nobody is asked the same twice in a row: how many, and over how many
# connections, by rows in a body.
BODIES = {1: 500, BATCH: 8}
CONNECTIONS = {1: 8, BATCH: 2}
READY_SECONDS = 120.0
TOLERANCE = 1e-6
WRK = Path(__file__).with_name("wrk.lua")


class Refused(Exception):
    """A service answers, but with an error."""


class Service:
    """A contender that runs, and the processes that it consists of."""

    def __init__(self, contender: Contender, port: int, pid: int) -> None:
        self.contender = contender
        self._url = f"http://127.0.0.1:{port}"
        self._root = psutil.Process(pid)

    def ask(self, form: Form, records: Records) -> np.ndarray[Any, Any]:
        """What it answers to some records, one figure for each.

        Raises:
            Refused: an error.
            urllib3.exceptions.HTTPError: it does not answer at all.
        """
        url = self._url + form.path
        body, headers = form.write(records)
        reply = urllib3.request("POST", url, body=body, headers=headers, retries=False, timeout=30)
        if reply.status != 200:  # noqa: PLR2004
            raise Refused(f"{reply.status} to {form.name}: {reply.data[:300]!r}")
        return np.array(form.read(reply.data, reply.headers), np.float64)

    def measure(self, form: Form, requests: Path, rows: int, seconds: int) -> Figures:
        """Ask for some seconds, with the requests of a file in turn, as fast as it answers."""
        before = self._cpu_seconds()
        said = self._wrk(requests, CONNECTIONS[rows], seconds)
        spent = self._cpu_seconds() - before
        if said["failed"]:
            raise click.ClickException(f"{self.contender.name} failed {said['failed']} times in {form.name}")
        return Figures(
            cpu_us=spent * 1e6 / said["requests"],
            per_second=said["requests"] * 1e6 / said["microseconds"],
            p50_ms=said["p50"] / 1e3,
            p99_ms=said["p99"] / 1e3,
            memory_mb=self._memory_mb(),
        )

    def _wrk(self, requests: Path, connections: int, seconds: int) -> dict[str, Any]:
        command: list[str | Path] = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            "--timeout=30s",
            "-s",
            WRK,
            self._url,
        ]
        done = subprocess.run([*command, "--", requests], capture_output=True, text=True, check=True)
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return told

    def _cpu_seconds(self) -> float:
        """User and system time of the whole tree; that of a process that has ended is its parent's."""
        return sum(sum(process.cpu_times()[:4]) for process in self._tree())

    def _memory_mb(self) -> float:
        """The proportional set size of the whole tree: what processes share is counted once."""
        return float(sum(process.memory_full_info().pss for process in self._tree())) / 1e6

    def _tree(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]


@contextmanager
def running(contender: Contender, subject: Subject, check: Callable[[Service], None]) -> Iterator[Service]:
    """A contender for the length of a `with`, ready, and found to be right by a check."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as closing:
        folder = Path(name)
        programs = environment.of(contender.lock).parent if contender.lock else Path()
        place = Place(programs, free_port(), folder)
        log = closing.enter_context((folder / "log").open("wb"))
        process = subprocess.Popen(
            contender.command(place, subject),
            cwd=contender.lock.parent if contender.lock else environment.ROOT,
            env=surroundings(subject, folder),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        closing.callback(stop, process)
        service = Service(contender, place.port, process.pid)
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                check(service)
                break
            except (urllib3.exceptions.HTTPError, Refused) as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    said = (folder / "log").read_text(encoding="utf-8", errors="replace")[-2000:]
                    raise click.ClickException(
                        f"{contender.name} does not start:\n{said}\n{error}"
                    ) from error
            time.sleep(0.2)
        yield service


def surroundings(subject: Subject, folder: Path) -> dict[str, str]:
    """The variables that a contender starts with: where the model is, and one OpenMP thread."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    version = subject.version
    return inherited | {
        "OMP_NUM_THREADS": "1",
        "MODEL": str(subject.file),
        "BOARD": subject.store.place,
        "PIN": version.name,
        "VERSION": version.id,
        "RUNOFF_BOARD": subject.store.place,
        "RUNOFF_VERSION": version.id,
        "BENTOML_HOME": str(folder),
        "BENTOML_DO_NOT_TRACK": "true",
    }


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a contender and all that it started."""
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


def forms(contender: Contender) -> Iterator[tuple[int, Form]]:
    """What a contender is asked: how many rows in one request, in which form."""
    yield 1, contender.row
    for form in contender.batches:
        yield BATCH, form


def raw(form: Form, records: Records) -> bytes:
    """A request as HTTP has it, after a line with its length, as wrk's script reads it."""
    body, headers = form.write(records)
    lines = [f"POST {form.path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    request = "\r\n".join([*lines, "", ""]).encode() + body
    return b"%d\n%b" % (len(request), request)


def median(rounds: Sequence[Figures]) -> Figures:
    return Figures(*(statistics.median(each) for each in zip(*rounds, strict=True)))


@click.command(help="Measure our prediction service beside its peers, each with the same model and workers.")
@click.option("--rounds", default=3, show_default=True, help="How often each is asked; medians are told.")
@click.option("--seconds", default=5, show_default=True, help="How long each form is asked in a round.")
@click.option("--only", multiple=True, help="A contender's name; may be given again. Default: all.")
@click.option("--write", type=click.Path(path_type=Path), help="A Markdown file for the result.")
def main(rounds: int, seconds: int, only: tuple[str, ...], write: Path | None) -> None:
    """Start everybody, check what they answer, measure them in turn, and tell."""
    if not shutil.which("wrk"):
        raise click.ClickException("wrk, which sends the requests, is not installed: apt-get install wrk")
    console = Console()
    store = Store.open()
    subject = Subject(store, store.version(MODEL))
    estimator = store.estimator(MODEL)
    records = list(islice(held_out(BODIES[BATCH] * BATCH, seed=1), BODIES[BATCH] * BATCH))
    probabilities = estimator.predict_proba(pd.DataFrame(records[:BATCH]))[:, 1]

    def check(service: Service) -> None:
        for rows, form in forms(service.contender):
            said = service.ask(form, records[:rows])
            right = probabilities.round() if service.contender.classes else probabilities
            if said.shape != (rows,) or not np.allclose(said, right[:rows], rtol=0, atol=TOLERANCE):
                raise click.ClickException(f"{service.contender.name} is wrong in {form.name}: {said[:3]} …")

    with ExitStack() as open_:
        folder = Path(open_.enter_context(tempfile.TemporaryDirectory()))
        tasks = []
        for contender in CONTENDERS:
            if only and contender.name not in only:
                continue
            console.print(f"Starting {contender.name} …")
            service = open_.enter_context(running(contender, subject, check))
            for rows, form in forms(contender):
                requests = folder / f"{contender.name} {rows} {form.name}"
                each = (records[at : at + rows] for at in range(0, BODIES[rows] * rows, rows))
                requests.write_bytes(b"".join(raw(form, some) for some in each))
                service.measure(form, requests, rows, seconds=1)  # a warm-up
                tasks.append((service, rows, form, requests, list[Figures]()))
        for number in range(rounds):
            for service, rows, form, requests, measured in tasks:
                measured.append(service.measure(form, requests, rows, seconds))
            console.print(f"Round {number + 1} of {rounds} is done.")
    results = [
        Result(service.contender, rows, form, median(measured)) for service, rows, form, _, measured in tasks
    ]
    report.show(console, results)
    if write:
        write.write_text(report.markdown(results, subject.version, rounds, seconds), encoding="utf-8")


if __name__ == "__main__":
    main()
