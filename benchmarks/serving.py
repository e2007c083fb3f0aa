"""Our prediction service beside its peers, in one run: `make bench`.

Everybody serves the same model with the same number of workers. All are started once and checked to answer
what scikit-learn says; then each is asked in turn, round after round, by wrk, which sends held-out clients
over connections that stay open. What is told is the median of the rounds.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import urllib3
from rich.console import Console

from benchmarks import processes, report
from benchmarks.contenders import CONTENDERS, Contender, Form, Place, Records, Subject
from benchmarks.processes import Figures, Refused, Tree, median, raw
from benchmarks.report import BATCH, Result
from launch import environment
from runoff.store import Store
from traffic.clients import held_out

MODEL = "model-a"
# Bodies that are sent in turn, so that nobody is asked the same twice in a row: how many, and over how many
# connections, by rows in a body.
BODIES = {1: 500, BATCH: 8}
CONNECTIONS = {1: 8, BATCH: 2}
TOLERANCE = 1e-6


class Service:
    """A contender that runs."""

    def __init__(self, contender: Contender, port: int) -> None:
        self.contender = contender
        self._url = f"http://127.0.0.1:{port}"

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

    def measure(self, tree: Tree, requests: Path, rows: int, seconds: int) -> Figures:
        return processes.measure(self._url, tree, requests, connections=CONNECTIONS[rows], seconds=seconds)


@contextmanager
def running(
    contender: Contender, subject: Subject, check: Callable[[Service], None]
) -> Iterator[tuple[Service, Tree]]:
    """A contender for the length of a `with`, ready, and found to be right by a check."""
    port = processes.free_port()
    service = Service(contender, port)
    programs = environment.of(contender.lock).parent if contender.lock else Path()
    with processes.running(
        contender.name,
        lambda folder: contender.command(Place(programs, port, folder), subject),
        cwd=contender.lock.parent if contender.lock else environment.ROOT,
        environment=lambda folder: surroundings(subject, folder),
        check=lambda: check(service),
    ) as tree:
        yield service, tree


def surroundings(subject: Subject, folder: Path) -> dict[str, str]:
    """The variables that a contender starts with: where the model is."""
    version = subject.version
    return processes.inherited() | {
        "MODEL": str(subject.file),
        "BOARD": subject.store.place,
        "PIN": version.name,
        "VERSION": version.id,
        "RUNOFF_BOARD": subject.store.place,
        "RUNOFF_VERSION": version.id,
        "BENTOML_HOME": str(folder),
        "BENTOML_DO_NOT_TRACK": "true",
    }


def forms(contender: Contender) -> Iterator[tuple[int, Form]]:
    """What a contender is asked: how many rows in one request, in which form."""
    yield 1, contender.row
    for form in contender.batches:
        yield BATCH, form


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
            service, tree = open_.enter_context(running(contender, subject, check))
            for rows, form in forms(contender):
                requests = folder / f"{contender.name} {rows} {form.name}"
                each = (records[at : at + rows] for at in range(0, BODIES[rows] * rows, rows))
                requests.write_bytes(b"".join(raw(form.path, *form.write(some)) for some in each))
                service.measure(tree, requests, rows, seconds=1)  # a warm-up
                tasks.append((service, tree, rows, form, requests, list[Figures]()))
        for number in range(rounds):
            for service, tree, rows, _, requests, measured in tasks:
                measured.append(service.measure(tree, requests, rows, seconds))
            console.print(f"Round {number + 1} of {rounds} is done.")
    results = [
        Result(service.contender, rows, form, median(measured))
        for service, _, rows, form, _, measured in tasks
    ]
    report.show(console, results)
    if write:
        write.write_text(report.markdown(results, subject.version, rounds, seconds), encoding="utf-8")


if __name__ == "__main__":
    main()
