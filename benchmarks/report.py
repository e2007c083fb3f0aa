"""What a benchmark found, as tables in the terminal and as a page of Markdown."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import OURS, WORKERS, Contender, Form
from benchmarks.processes import Figures
from runoff.store import ModelVersion

BATCH = 1000


@dataclass(frozen=True)
class Result:
    """The figures of a contender that was asked in a form, with so many rows in a request."""

    contender: Contender
    rows: int
    form: Form
    figures: Figures


HEADER = ("", "form", "CPU", "requests/s", "p50 ms", "p99 ms", "memory MB")
TITLES = {1: "One row a request", BATCH: f"{BATCH:,} rows a request"}

# What is aimed at, as a multiple of what the best peer does.
CPU_GOAL, CPU_MOONSHOT, MEMORY_GOAL, BATCH_GOAL = 10, 30, 2, 3


def goals(results: Sequence[Result]) -> list[str]:
    """How far each goal is reached beside peers of as many workers, if both sides were measured."""
    equal = [each for each in results if each.contender.workers == WORKERS]
    ours, theirs = ([each for each in equal if (each.contender is OURS) is side] for side in (True, False))
    if not ours or not theirs:
        return []
    best = {
        rows: min((r for r in theirs if r.rows == rows), key=lambda r: r.figures.cpu_us) for rows in TITLES
    }
    leanest = min((each for each in theirs if each.rows == 1), key=lambda each: each.figures.memory_mb)
    told = []
    for each in ours:
        peer = best[each.rows]
        ratio = peer.figures.cpu_us / each.figures.cpu_us
        beside = f"beside {peer.contender.name} ({peer.form.name})"
        if each.rows == 1:
            memory = leanest.figures.memory_mb / each.figures.memory_mb
            told += [
                f"CPU for one row {beside}: {_reached(ratio, CPU_GOAL)}",
                f"the same, moonshot: {_reached(ratio, CPU_MOONSHOT)}",
                f"memory beside {leanest.contender.name}: {_reached(memory, MEMORY_GOAL)}",
            ]
        else:
            told.append(f"CPU for {BATCH:,} rows as {each.form.name} {beside}: {_reached(ratio, BATCH_GOAL)}")
    return told


def _reached(ratio: float, wanted: float) -> str:
    return f"1/{ratio:.1f}, goal 1/{wanted} {'met' if ratio >= wanted else 'not met'}"


def show(console: Console, results: Sequence[Result]) -> None:
    """Print both tables and the goals."""
    for rows, title in TITLES.items():
        table = Table(title=title)
        for number, column in enumerate(HEADER):
            table.add_column(column, justify="left" if number < 2 else "right")  # noqa: PLR2004
        for line in _lines(results, rows):
            table.add_row(*line)
        console.print(table)
    for goal in goals(results):
        console.print(goal, soft_wrap=True)


def markdown(results: Sequence[Result], served: ModelVersion, rounds: int, seconds: float) -> str:
    """The page: how it was measured, both tables, the goals, who took part."""
    trained = served.record.get("algorithm", "a model")
    parts = [
        "# Serving, measured",
        f"Written by `make bench` on {datetime.now(UTC):%d %B %Y}, on {machine()}.",
        f"Everybody serves {served.name} ({trained}) with {WORKERS} workers and one OpenMP thread, and was"
        " seen to answer what scikit-learn says, to 1e-6. wrk asks each in turn, over connections that stay"
        f" open, for {seconds} seconds in each form; what is told are medians of {rounds} rounds. CPU is the"
        " time of all processes of a service for one request: what a prediction costs, and what other work on"
        " the machine disturbs least. Memory is the proportional set size of all of them. Compare within a"
        " run only.",
    ]
    for rows, title in TITLES.items():
        lines = _lines(results, rows)
        if lines:
            ruler = ("---", "---", *["---:"] * (len(HEADER) - 2))
            parts += [f"## {title}", "\n".join(f"| {' | '.join(line)} |" for line in (HEADER, ruler, *lines))]
    if told := goals(results):
        beside = f"Beside the best, or the leanest, of the peers that have {WORKERS} workers, too:"
        parts += ["## Goals", beside, "\n".join(f"- {goal}" for goal in told)]
    parts.append("## Who took part")
    contenders = dict.fromkeys(result.contender for result in results)
    parts += ["\n".join(f"- **{each.name}**: {each.about}; {versions_of(each)}" for each in contenders)]
    return "\n\n".join(parts) + "\n"


def _lines(results: Sequence[Result], rows: int) -> list[tuple[str, ...]]:
    return [
        (
            each.contender.name,
            each.form.name,
            f"{each.figures.cpu_us:,.0f} µs" if rows == 1 else f"{each.figures.cpu_us / 1e3:,.1f} ms",
            f"{each.figures.per_second:,.0f}",
            f"{each.figures.p50_ms:,.1f}",
            f"{each.figures.p99_ms:,.1f}",
            f"{each.figures.memory_mb:,.0f}",
        )
        for each in sorted(results, key=lambda each: each.figures.cpu_us)
        if each.rows == rows
    ]


def machine() -> str:
    """What it was measured on, in a line."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")
    memory = psutil.virtual_memory().total / 2**30
    python = platform.python_version()
    return (
        f"{psutil.cpu_count()} cores of {processor}, {memory:.0f} GiB, {platform.system()}, Python {python}"
    )


def versions_of(contender: Contender) -> str:
    if contender.lock is None:
        return ", ".join(f"{name} {version(name)}" for name in contender.packages)
    pins = dict(
        line.split(" ")[0].split("==")
        for line in contender.lock.read_text("utf-8").splitlines()
        if line[:1].isalnum()
    )
    return ", ".join(f"{name} {pins[name]}" for name in contender.packages)
