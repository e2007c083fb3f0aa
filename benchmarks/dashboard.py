"""The dashboard on a ledger of a million predictions, with ten tabs open: `make bench-dashboard`.

The services run as they do anywhere, each tab is a window of its own in Chromium. What is told is what a page
costs: how soon it is drawn, how soon what is new is seen, what it keeps in the browser, and the CPU of the
router and of the dashboard, less what they take with no tab open.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import click
import urllib3
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console
from rich.table import Table

from benchmarks import processes
from benchmarks.processes import Tree
from benchmarks.report import machine
from launch.services import SERVICES, Services
from router import database
from router.database import stamp
from router.entries import Entry, Record
from router.fold import Fold
from router.outcomes import Outcomes
from router.store import Store
from runoff.store import Store as Board
from traffic.clients import held_out
from traffic.load import Load, Recorder
from traffic.load import measure as measure_load
from traffic.runs import Runs

CHROMIUM = Path("/usr/bin/chromium")
# Chromium on a machine without a display or a GPU, which asks nobody for news.
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
PATIENCE = 120_000.0

TABS = 10
# After so many ms a tab is at rest: each page has asked a second time what it asks seldom.
SETTLED = 12_000
# What a load test asks for real; the others on record repeat that at other times, of these many days.
ASKED, DAYS = 1000, 30
LOAD = Load(users=50, seconds=ASKED / 50)
AT_ONCE = 1000
# Requests a second of the stream, and how often somebody waits for one of them to be seen.
RATE, LOOKS = 40, 5
JSON = {"Content-Type": "application/json"}

# One tab may cost the router so much of a core at rest, in per cent; a chart may hold so many requests.
CPU_GOAL, POINTS_GOAL = 1.0, 2000

CHARTS = "() => Array.from(document.querySelectorAll('.js-plotly-plot'))"
# How many points all traces of a page's charts have, and the longest of them.
POINTS = f"""() => {{
    const all = ({CHARTS})().flatMap(plot => (plot.data || []).map(each => (each.y || each.x || []).length));
    return [all.reduce((sum, each) => sum + each, 0), Math.max(0, ...all)]; }}"""
TOTAL = "() => Number(document.getElementById('tile-requests').innerText.replaceAll(',', ''))"


@dataclass(frozen=True)
class Look:
    """A page: its address, and what is there once it is drawn."""

    name: str
    path: str
    drawn: str

    def opens(self, page: Page, url: str) -> float:
        """Open it; the seconds until it is drawn."""
        began = time.perf_counter()
        page.goto(f"{url}/{self.path}")
        page.wait_for_function(self.drawn, timeout=PATIENCE)
        return time.perf_counter() - began


HAS_CHARTS = f"() => ({CHARTS})().length >= %d && ({POINTS})()[0] > 0"
PAGES = (
    Look("live", "", HAS_CHARTS % 5),
    Look("verdict", "verdict?traffic=real", HAS_CHARTS % 5),
    Look("load", "load", HAS_CHARTS % 3),
    Look("drift", "drift", HAS_CHARTS % 3),
    Look("models", "models", "() => document.querySelector('#versions tbody tr')"),
    Look("experiment", "experiment", "() => document.querySelector('#in-force table')"),
)


@dataclass(frozen=True)
class Found:
    """What one tab costs: seconds until it is drawn, CPU in per cent of a core, points in all and at most."""

    name: str
    drawn: float
    router: float
    dashboard: float
    points: int
    longest: int


@dataclass(frozen=True)
class Taken:
    """What services take while something goes on, in per cent of a core."""

    what: str
    router: float
    dashboard: float
    # Seconds until a request that was answered is seen; none with no tab open.
    seen: Sequence[float] = ()


def fill(url: str, rows: int, asked: Sequence[dict[str, Any]], told: Console) -> None:
    """Write so many rows as they would have come within some days, half of them with outcomes; and fold them.

    Args:
        url: of the ledger.
        rows: how many.
        asked: records of the router, which are repeated.
        told: how long it took.
    """
    engine = database.connect(url)
    store, outcomes, random_ = Store(engine), Outcomes(engine), random.Random(1)
    models = [_record(each) for each in asked]
    now, step = datetime.now(UTC), timedelta(days=DAYS) / rows
    began = time.perf_counter()
    for first in range(0, rows, AT_ONCE):
        made = [
            models[number % len(models)]._replace(
                id=f"filled-{number}", request_id=f"filled-{number}", time=stamp(now - step * (rows - number))
            )
            for number in range(first, min(first + AT_ONCE, rows))
        ]
        failed = [each for each in store.write([Entry(made)]) if each]
        if failed:
            raise click.ClickException(f"the ledger cannot be filled: {failed[0]}")
        reports = [
            {"id": each.id, "outcome": int(random_.random() < (each.prediction or 0.0))} for each in made[::2]
        ]
        for _ in outcomes.append(reports):
            pass
    told.print(f"{rows:,} rows were written in {time.perf_counter() - began:.0f} s.")
    began = time.perf_counter()
    Fold(engine).catch_up()
    told.print(f"They were folded in {time.perf_counter() - began:.0f} s.")
    store.close()
    engine.dispose()


def _record(told: dict[str, Any]) -> Record:
    known = {name: told[name] for name in Record._fields if name in told}
    return Record(**{**known, "features": json.dumps(told["features"]), "unit": None, "tag": None})


class House:
    """The services, and what they take."""

    def __init__(self, services: Services) -> None:
        self.router, self.dashboard = services.urls["router"], services.urls["dashboard"]
        self._trees = [Tree(services.pid(name)) for name in ("router", "dashboard")]
        self._http = urllib3.PoolManager(retries=False, timeout=30.0, maxsize=8)
        self._bodies = cycle([json.dumps(each).encode() for each in islice(held_out(500, seed=1), 500)])

    def ask(self) -> None:
        """Send a request, and wait for its answer."""
        reply = self._http.request("POST", f"{self.router}/predict", body=next(self._bodies), headers=JSON)
        if reply.status != 200:  # noqa: PLR2004
            raise click.ClickException(f"the router answers {reply.status}: {reply.data[:200]!r}")

    def get(self, path: str) -> Any:
        """What the router's REST API says."""
        return self._http.request("GET", f"{self.router}{path}").json()

    def take(self, seconds: float, pages: Sequence[Page] = ()) -> tuple[float, float]:
        """What router and dashboard take for some seconds, in per cent of a core; pages go on meanwhile."""
        before = [tree.cpu_seconds() for tree in self._trees]
        began = time.perf_counter()
        if pages:
            # Playwright's own loop must run, or nobody reads what pages say.
            pages[0].wait_for_timeout(1000 * seconds)
        else:
            time.sleep(seconds)
        length = time.perf_counter() - began
        one, other = (
            100 * (tree.cpu_seconds() - had) / length for tree, had in zip(self._trees, before, strict=True)
        )
        return one, other

    @contextmanager
    def busy(self) -> Iterator[None]:
        """RATE requests a second are sent."""
        stop = threading.Event()

        def send() -> None:
            due = time.monotonic()
            while not stop.is_set():
                self.ask()
                due += 1 / RATE
                stop.wait(max(0.0, due - time.monotonic()))

        sender = threading.Thread(target=send)
        sender.start()
        try:
            yield
        finally:
            stop.set()
            sender.join()

    def seen(self, live: Page) -> float:
        """The seconds from an answer until the live page has counted it."""
        self.ask()
        began = time.perf_counter()
        total = self.get("/v1/stats")["requests"]
        live.wait_for_function(f"() => ({TOTAL})() >= {total}", timeout=PATIENCE)
        return time.perf_counter() - began


def measure(house: House, browser: Browser, seconds: float, told: Console) -> tuple[list[Found], list[Taken]]:
    """Each page alone, then all tabs at once."""

    def tab() -> Page:
        return browser.new_context(viewport={"width": 1280, "height": 900}).new_page()

    rest = house.take(seconds)
    loads = [Taken("no tab, at rest", *rest)]
    found = []
    for look in PAGES:
        page = tab()
        drawn = look.opens(page, house.dashboard)
        page.wait_for_timeout(SETTLED)
        router, dashboard = house.take(seconds, [page])
        points, longest = page.evaluate(POINTS)
        found.append(Found(look.name, drawn, router - rest[0], dashboard - rest[1], points, longest))
        page.context.close()
        told.print(f"{look.name} is measured.")
    with house.busy():
        loads.append(Taken(f"no tab, {RATE} requests a second", *house.take(seconds)))
    pages = [tab() for _ in range(TABS)]
    for page, look in zip(pages, cycle(PAGES), strict=False):
        look.opens(page, house.dashboard)
    pages[0].wait_for_timeout(SETTLED)
    took = house.take(seconds, pages)
    loads.append(Taken(f"{TABS} tabs, at rest", *took, [house.seen(pages[0]) for _ in range(LOOKS)]))
    with house.busy():
        took = house.take(seconds, pages)
        seen = [house.seen(pages[0]) for _ in range(LOOKS)]
        longest = max(page.evaluate(POINTS)[1] for page in pages)
    loads.append(Taken(f"{TABS} tabs, {RATE} requests a second", *took, seen))
    # Of the live page the stream made more.
    found[0] = Found(**{**found[0].__dict__, "longest": max(longest, found[0].longest)})
    return found, loads


PAGE_HEADER = (
    *("one tab on", "first drawn, s", "CPU of the router", "CPU of the dashboard"),
    *("points", "longest trace"),
)
LOAD_HEADER = ("", "CPU of the router", "CPU of the dashboard", "seen after, s: median", "at most")


def page_lines(found: Sequence[Found]) -> list[tuple[str, ...]]:
    return [
        (
            *(each.name, f"{each.drawn:.1f}", f"{each.router:.2f} %", f"{each.dashboard:.2f} %"),
            *(f"{each.points:,}", f"{each.longest:,}"),
        )
        for each in found
    ]


def load_lines(loads: Sequence[Taken]) -> list[tuple[str, ...]]:
    return [
        (
            *(each.what, f"{each.router:.1f} %", f"{each.dashboard:.1f} %"),
            *(f"{tell(each.seen):.1f}" if each.seen else "" for tell in (statistics.median, max)),
        )
        for each in loads
    ]


def goals(found: Sequence[Found], loads: Sequence[Taken]) -> list[str]:
    """How far each goal is reached."""
    rest, tabs = (next(each for each in loads if each.what.startswith(what)) for what in ("no", str(TABS)))
    shared = (tabs.router - rest.router) / TABS
    dearest = max(found, key=lambda each: each.router)
    longest = max(each.longest for each in found)

    def met(holds: bool) -> str:
        return "met" if holds else "not met"

    return [
        f"the router for a tab at rest, the dearest page alone ({dearest.name}): {dearest.router:.2f} % of a"
        f" core, goal {CPU_GOAL:g} % {met(dearest.router < CPU_GOAL)}",
        f"the same with {TABS} tabs, for each: {shared:.2f} %, {met(shared < CPU_GOAL)}",
        f"requests on a chart at most: {longest:,}, goal about {POINTS_GOAL:,} {met(longest <= POINTS_GOAL)}",
    ]


def markdown(rows: int, found: Sequence[Found], loads: Sequence[Taken], seconds: float) -> str:
    """The page: how it was measured, both tables, the goals."""

    def table(header: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> str:
        ruler = ("---", *["---:"] * (len(header) - 1))
        return "\n".join(f"| {' | '.join(line)} |" for line in (header, ruler, *lines))

    about = (
        f"The ledger (SQLite) holds {rows:,} predictions of {DAYS} days, half of them with outcomes. About"
        f" {ASKED:,} were asked for by a load test, which the load page shows; the others repeat those under"
        " other ids and times, written by the router's own code. Router and dashboard run as they do"
        " anywhere, each tab is a window of its own, and CPU is that of their processes over"
        f" {seconds:g} s, in per cent of one core; of one tab less what is taken with no tab open. The {TABS}"
        " tabs show one page after the other, in the order below. A request is seen when the live page has"
        " counted it, after its answer; a page asks for what is new every two seconds. Compare within a run"
        " only."
    )
    parts = [
        "# The dashboard, measured",
        f"Written by `make bench-dashboard` on {datetime.now(UTC):%d %B %Y}, on {machine()}.",
        about,
        "## One tab",
        table(PAGE_HEADER, page_lines(found)),
        "## Many",
        table(LOAD_HEADER, load_lines(loads)),
        "## Goals",
        "\n".join(f"- {goal}" for goal in goals(found, loads)),
    ]
    return "\n\n".join(parts) + "\n"


@click.command(help="Measure the dashboard on a ledger of many predictions, with ten tabs open.")
@click.option("--rows", default=1_000_000, show_default=True, help="Predictions on record.")
@click.option("--seconds", default=60.0, show_default=True, help="How long each figure is taken.")
@click.option("--write", type=click.Path(path_type=Path), help="A Markdown file for the result.")
def main(rows: int, seconds: float, write: Path | None) -> None:
    """Fill a ledger, open the tabs, measure, and tell."""
    if not CHROMIUM.exists():
        raise click.ClickException(f"{CHROMIUM} is not there: apt-get install chromium")
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        var = Path(folder)
        ledger = f"sqlite:///{var / 'ledger.sqlite'}"
        ports = {service.name: processes.free_port() for service in SERVICES}
        kept = var / "load"
        environment = processes.inherited() | {
            "RUNOFF_BOARD": Board.open().place,
            "RUNOFF_LEDGER": ledger,
            "RUNOFF_LOADS": str(kept),
        }
        services = Services(ports, var, environment)
        services.start()
        try:
            house = House(services)
            Runs(kept).keep(measure_load(Recorder(LOAD, house.router)))
            asked = house.get(f"/v1/predictions?last={ASKED}")["predictions"]
            fill(ledger, rows - len(asked), asked, console)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
                found, loads = measure(house, browser, seconds, console)
                browser.close()
        finally:
            services.stop()
    for title, header, lines in (
        ("One tab", PAGE_HEADER, page_lines(found)),
        ("Many", LOAD_HEADER, load_lines(loads)),
    ):
        table = Table(title=title)
        for number, column in enumerate(header):
            table.add_column(column, justify="right" if number else "left")
        for line in lines:
            table.add_row(*line)
        console.print(table)
    for goal in goals(found, loads):
        console.print(goal, soft_wrap=True)
    if write:
        write.write_text(markdown(rows, found, loads, seconds), encoding="utf-8")


if __name__ == "__main__":
    main()
