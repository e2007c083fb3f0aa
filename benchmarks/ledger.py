"""What the ledger costs: `python -m benchmarks.ledger`, for PostgreSQL with `--url` of an empty database.

CPU of this process for a row that is appended, by callers who come one by one and at once; for a row that is
folded; and how long counts and quantiles are read, with few rows and with many. Compare within a run only.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import click
import sqlalchemy as sa
from rich.console import Console
from rich.table import Table
from sqlalchemy import event

from router import database
from router.database import stamp
from router.entries import Entry, Record
from router.fold import Fold
from router.ledger import Ledger
from traffic.clients import held_out

CALLERS = (1, 8, 32)
# By each way of writing, in each round.
ROWS = 2_000
FILLED_AT_ONCE = 100_000
NUMBERS = count()

# Rows as they would have come within the last ninety days, features left out.
FILL = """
INSERT INTO predictions (id, request_id, row, time, experiment, experiment_version, allocation, variant,
    propensity, model, version, prediction, latency_ms, status)
WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {first} + {rows})
SELECT 'f' || i, 'f' || i, 0,
    '2026-0' || (7 + i % 3) || '-' || (10 + i / 7 % 20) || 'T' || (10 + i / 11 % 14),
    'filled', 1, 0, CASE WHEN i % 5 = 0 THEN 'B' ELSE 'A' END, 0.5, 'model', 'version',
    (i % 9973) / 9973.0, 1 + i % 4999 / 100.0, 200
FROM n
"""


@click.command(help=__doc__)
@click.option(
    "--url", help="An empty database, as a SQLAlchemy URL; by default SQLite in a folder of its own."
)
@click.option("--rounds", default=5, show_default=True)
@click.option("--rows", "sizes", multiple=True, type=int, default=(1_000, 100_000), show_default=True)
def main(url: str | None, rounds: int, sizes: Sequence[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        urls = {"": url} if url else {each: f"sqlite:///{Path(folder) / each}" for each in ("FULL", "NORMAL")}
        console = Console()
        console.print(writing(urls, rounds))
        engine = _opened(f"sqlite:///{Path(folder) / 'filled'}" if url is None else url)
        console.print(reading(engine, sorted(sizes)))
        engine.dispose()


def writing(urls: dict[str, str], rounds: int) -> Table:
    """What a row costs that is written and folded, medians of rounds that alternate."""
    figures: dict[tuple[str, int], list[tuple[float, float]]] = {}
    folded: list[float] = []
    for _ in range(rounds):
        for name, url in urls.items():
            engine = _opened(url, name)
            ledger, fold = Ledger(engine), Fold(engine)
            for callers in CALLERS:
                figures.setdefault((name, callers), []).append(_appended(ledger, callers))
            folded.append(_spent(fold.catch_up)[0] / ROWS / len(CALLERS))
            engine.dispose()
    table = Table(title="Writing a row")
    for column in ("synchronous", "callers", "CPU µs", "rows/s"):
        table.add_column(column, justify="right")
    for (name, callers), found in figures.items():
        cpu, wall = (statistics.median(each) for each in zip(*found, strict=True))
        table.add_row(name, str(callers), f"{1e6 * cpu / ROWS:.0f}", f"{ROWS / wall:,.0f}")
    table.add_row("", "fold", f"{1e6 * statistics.median(folded):.0f}", "")
    return table


def reading(engine: sa.Engine, sizes: Sequence[int]) -> Table:
    """How long it takes to read what `/stats` tells, by the number of rows."""
    fold, filled = Fold(engine), 0
    table = Table(title="Reading counts and quantiles")
    for column in ("rows", "sums", "ms"):
        table.add_column(column, justify="right")
    for size in sizes:
        while filled < size:
            rows = min(FILLED_AT_ONCE, size - filled)
            with engine.begin() as connection:
                connection.execute(sa.text(FILL.format(first=filled, rows=rows)))
            filled += rows
        fold.catch_up()
        times = [_spent(lambda: _read(fold))[1] for _ in range(9)]
        sums = database.read(engine, sa.text("SELECT count(*) FROM latencies"))[0][0]
        table.add_row(f"{size:,}", f"{sums:,}", f"{1000 * statistics.median(times):.1f}")
    return table


def _read(fold: Fold) -> None:
    fold.catch_up()
    for what in (fold.counts, fold.standings, fold.labelled, fold.tags):
        what("filled")
    for histogram in fold.latency("filled").values():
        histogram.quantile(0.99)


def _appended(ledger: Ledger, callers: int) -> tuple[float, float]:
    """Seconds of CPU, and of time, that it takes to append rows."""
    features = json.dumps(next(held_out(1, seed=1)))

    def append() -> None:
        for _ in range(ROWS // callers):
            ledger.append(Entry([_record(f"r{next(NUMBERS)}", features)]))

    threads = [threading.Thread(target=append) for _ in range(callers)]

    def work() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return _spent(work)


def _record(id_: str, features: str) -> Record:
    now = stamp(datetime.now(UTC))
    who = ("A", None, 0.8, None, "model-a", "20261123T164052Z-8fc67", "f" * 64)
    return Record(id_, id_, 0, now, "bench", 1, 0, *who, features, 0.25, 1.5, 200, None, None)


def _spent(work: Callable[[], Any]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def _opened(url: str, synchronous: str = "") -> sa.Engine:
    engine = database.connect(url)
    database.migrate(engine)
    if synchronous:
        # After the ledger's own settings.
        event.listen(
            engine, "connect", lambda made, _: made.execute(f"PRAGMA synchronous = {synchronous}").close()
        )
    return engine


if __name__ == "__main__":
    main()
