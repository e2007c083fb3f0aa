"""Our router beside its peers, in one run: `make bench-router`.

All split the same traffic over the same two model services, which run once for everybody; ours records each
request in its ledger, the others record nothing. What is told is what the router itself costs, without the
models: CPU of its processes for a request, and by how much it delays an answer.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import click
import urllib3
from rich.console import Console
from rich.table import Table

from benchmarks import processes
from benchmarks.contenders import PEERS
from benchmarks.processes import Figures, Refused, Tree, median, raw
from benchmarks.report import machine
from launch import environment
from runoff.store import Store
from traffic.clients import held_out

WORKERS = 2
# At one connection what a router adds to an answer's time is seen; at eight, what it costs under load.
ALONE, LOADED = 1, 8
BODIES = 500
JSON = {"Content-Type": "application/json"}

# The goals: its CPU as a share of the best Python peer's, its delay beside nginx's, in ms.
CPU_GOAL, DELAY_FACTOR, DELAY_MORE = 0.5, 1.5, 1.0

NGINX = """
daemon off; worker_processes {workers}; pid {folder}/pid; error_log stderr error;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};
  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  upstream a {{ server {a}; keepalive 64; }}
  upstream b {{ server {b}; keepalive 64; }}
  split_clients $request_id $variant {{ 80% a; * b; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://$variant; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""

EXPERIMENT = """
name = "bench"
[[variants]]
name = "A"
role = "champion"
url = "{a}"
weight = 80
[[variants]]
name = "B"
url = "{b}"
weight = 20
"""


@dataclass(frozen=True)
class Place:
    """Where a router runs: its port, a folder of its own, and the model services' URLs."""

    port: int
    folder: Path
    a: str
    b: str


@dataclass(frozen=True)
class Contender:
    """A router that can be started."""

    name: str
    about: str
    python: bool = True

    def command(self, place: Place) -> Sequence[str | Path]:
        raise NotImplementedError

    def variables(self, place: Place) -> Mapping[str, str]:
        return {"MODEL_A_URL": place.a, "MODEL_B_URL": place.b}


class Ours(Contender):
    def command(self, place: Place) -> Sequence[str | Path]:
        (place.folder / "experiment.toml").write_text(EXPERIMENT.format(a=place.a, b=place.b))
        ours = (sys.executable, "-m", "runoff.server", "router.app:app")
        return [*ours, "--port", str(place.port), "--workers", str(WORKERS)]

    def variables(self, place: Place) -> Mapping[str, str]:
        return {
            "RUNOFF_EXPERIMENT": str(place.folder / "experiment.toml"),
            "RUNOFF_LEDGER": f"sqlite:///{place.folder / 'ledger.sqlite'}",
        }


class Nginx(Contender):
    def command(self, place: Place) -> Sequence[str | Path]:
        a, b = (url.removeprefix("http://") for url in (place.a, place.b))
        settings = NGINX.format(workers=WORKERS, folder=place.folder, port=place.port, a=a, b=b)
        (place.folder / "nginx.conf").write_text(settings, encoding="utf-8")
        return ["nginx", "-c", place.folder / "nginx.conf", "-p", place.folder]


def _programs() -> Path:
    return environment.of(PEERS / "routers.txt").parent


class ByHand(Contender):
    """With FastAPI, and the library that `about` names."""

    def command(self, place: Place) -> Sequence[str | Path]:
        options = (f"--workers={WORKERS}", f"--port={place.port}", "--no-access-log", "--log-level=warning")
        return [_programs() / "uvicorn", "fastapi_router_app:app", *options]

    def variables(self, place: Place) -> Mapping[str, str]:
        return {**super().variables(place), "CLIENT": self.about}


class Naive(Contender):
    def command(self, place: Place) -> Sequence[str | Path]:
        options = (f"--workers={WORKERS}", "--threads=8", f"--bind=127.0.0.1:{place.port}")
        return [_programs() / "gunicorn", "naive_router_app:app", *options]


OURS = Ours("Runoff", "each request is in the ledger before it is answered")
LIMIT = Nginx("nginx split_clients", "the limit; records nothing", python=False)
CONTENDERS = (
    OURS,
    LIMIT,
    ByHand("FastAPI + aiohttp", "aiohttp"),
    ByHand("FastAPI + httpx", "httpx"),
    Naive("2020 style", "Flask, requests without a session"),
)


@dataclass(frozen=True)
class Result:
    """What was measured of a router, or of asking a model directly, alone and under load."""

    name: str
    alone: Figures
    loaded: Figures


def goals(results: Sequence[Result]) -> list[str]:
    """How far each goal is reached, where those were measured whom it compares."""
    by_name = {each.name: each for each in results}
    python = [each.name for each in CONTENDERS if each.python and each is not OURS and each.name in by_name]
    ours, limit, direct = (by_name.get(name) for name in (OURS.name, LIMIT.name, DIRECT))
    told = []
    if ours and python:
        best = min((by_name[name] for name in python), key=lambda each: each.loaded.cpu_us)
        share = ours.loaded.cpu_us / best.loaded.cpu_us
        met = "met" if share <= CPU_GOAL else "not met"
        told.append(f"CPU of the router beside {best.name}: {share:.2f} of it, goal {CPU_GOAL} {met}")
    if ours and limit and direct:
        added, nginx = (each.alone.p50_ms - direct.alone.p50_ms for each in (ours, limit))
        bound = DELAY_FACTOR * nginx + DELAY_MORE
        met = "met" if added <= bound else "not met"
        told.append(
            f"delay added at one connection: {added:.2f} ms, nginx {nginx:.2f} ms, goal {bound:.2f} ms {met}"
        )
    return told


DIRECT = "no router: a model, asked directly"
HEADER = ("", "CPU of the router", "requests/s", "p50 ms", "p99 ms", "p50 alone, ms", "memory MB")


def lines(results: Sequence[Result]) -> list[tuple[str, ...]]:
    return [
        (
            each.name,
            "none" if each.name == DIRECT else f"{each.loaded.cpu_us:,.0f} µs",
            f"{each.loaded.per_second:,.0f}",
            f"{each.loaded.p50_ms:,.2f}",
            f"{each.loaded.p99_ms:,.2f}",
            f"{each.alone.p50_ms:,.2f}",
            f"{each.loaded.memory_mb:,.0f}",
        )
        for each in results
    ]


def markdown(results: Sequence[Result], rounds: int, seconds: int) -> str:
    """The page: how it was measured, the table, the goals."""
    ruler = ("---", *["---:"] * (len(HEADER) - 1))
    table = "\n".join(f"| {' | '.join(line)} |" for line in (HEADER, ruler, *lines(results)))
    about = (
        f"All split one-row requests 80 to 20 over the same two model services, with {WORKERS} workers each."
        f" wrk asks each in turn for {seconds} seconds, over {LOADED} connections and over {ALONE}; medians"
        f" of {rounds} rounds are told. CPU is that of the router's own processes for a request, without the"
        " models. Ours has recorded each request before it answers; the others record nothing. Compare within"
        " a run only."
    )
    parts = [
        "# Routing, measured",
        f"Written by `make bench-router` on {datetime.now(UTC):%d %B %Y}, on {machine()}.",
        about,
        table,
        "## Goals",
        "\n".join(f"- {goal}" for goal in goals(results)),
    ]
    return "\n\n".join(parts) + "\n"


def _check(url: str) -> None:
    [record] = islice(held_out(1, seed=2), 1)
    sent = json.dumps(record).encode()
    for _ in range(5):
        reply = urllib3.request("POST", f"{url}/predict", body=sent, headers=JSON, retries=False, timeout=10)
        if reply.status != 200 or not 0 <= reply.json()["prediction"] <= 1:  # noqa: PLR2004
            raise Refused(f"{reply.status}: {reply.data[:300]!r}")


@click.command(help="Measure our router beside its peers, before the same two model services.")
@click.option("--rounds", default=3, show_default=True, help="How often each is asked; medians are told.")
@click.option("--seconds", default=4, show_default=True, help="How long each is asked in a round.")
@click.option("--only", multiple=True, help="A contender's name; may be given again. Default: all.")
@click.option("--write", type=click.Path(path_type=Path), help="A Markdown file for the result.")
def main(rounds: int, seconds: int, only: tuple[str, ...], write: Path | None) -> None:
    """Start the models and every router, measure them in turn, and tell."""
    for program in ("wrk", "nginx"):
        if not shutil.which(program):
            raise click.ClickException(f"{program} is not installed: apt-get install {program}")
    console = Console()
    store = Store.open()
    with ExitStack() as open_:
        folder = Path(open_.enter_context(tempfile.TemporaryDirectory()))
        requests = folder / "one row"
        records = islice(held_out(BODIES, seed=1), BODIES)
        requests.write_bytes(b"".join(raw("/predict", json.dumps(each).encode(), JSON) for each in records))

        def start_model(name: str) -> tuple[str, Tree]:
            port = processes.free_port()
            command = [sys.executable, "-m", "runoff.server", f"{name}.app:app", "--port", str(port)]
            url = f"http://127.0.0.1:{port}"
            return url, open_.enter_context(
                processes.running(
                    name,
                    lambda _: command,
                    cwd=environment.ROOT,
                    environment=lambda _: processes.inherited() | {"RUNOFF_BOARD": store.place},
                    check=lambda: _check(url),
                )
            )

        (a, tree), (b, _) = start_model("model_a"), start_model("model_b")
        tasks: list[tuple[str, str, Tree, dict[int, list[Figures]]]] = []
        tasks.append((DIRECT, a, tree, {ALONE: [], LOADED: []}))
        for contender in CONTENDERS:
            if only and contender.name not in only:
                continue
            console.print(f"Starting {contender.name} …")
            port = processes.free_port()
            url = f"http://127.0.0.1:{port}"

            def place(folder: Path, port: int = port) -> Place:
                return Place(port, folder, a, b)

            tree = open_.enter_context(
                processes.running(
                    contender.name,
                    lambda folder, it=contender, place=place: it.command(place(folder)),  # type: ignore[misc]
                    cwd=PEERS if isinstance(contender, ByHand | Naive) else environment.ROOT,
                    environment=lambda folder, it=contender, place=place: (  # type: ignore[misc]
                        processes.inherited() | dict(it.variables(place(folder)))
                    ),
                    check=lambda url=url: _check(url),  # type: ignore[misc]
                )
            )
            processes.measure(url, tree, requests, connections=LOADED, seconds=1)  # a warm-up
            tasks.append((contender.name, url, tree, {ALONE: [], LOADED: []}))
        for number in range(rounds):
            for _, url, tree, measured in tasks:
                for connections, figures in measured.items():
                    figures.append(
                        processes.measure(url, tree, requests, connections=connections, seconds=seconds)
                    )
            console.print(f"Round {number + 1} of {rounds} is done.")
    results = [Result(name, median(told[ALONE]), median(told[LOADED])) for name, _, _, told in tasks]
    table = Table(title="Routing one row")
    for number, column in enumerate(HEADER):
        table.add_column(column, justify="right" if number else "left")
    for line in lines(results):
        table.add_row(*line)
    console.print(table)
    for goal in goals(results):
        console.print(goal, soft_wrap=True)
    if write:
        write.write_text(markdown(results, rounds, seconds), encoding="utf-8")


if __name__ == "__main__":
    main()
