"""Ten tabs for ten minutes under load: `make soak`. What dashboard and browser hold must not grow."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import cycle
from statistics import median

import psutil
import pytest
from playwright.sync_api import Page, sync_playwright

from tests.house import CHROMIUM, QUIET, House

SECONDS = float(os.environ.get("RUNOFF_SOAK_SECONDS", "0"))
TABS = ("", "", "", "?theme=dark", "?range=15m", "verdict", "drift", "models", "load", "experiment")
LOOK_SECONDS = 5.0
# Requests a second that somebody else sends.
LOAD = 40
MIB = 2**20
# What is not growth: caches that fill up, and memory that an allocator keeps.
GROWTH, MIB_MORE = 1.15, 16.0
# Chromium gives the exact size of a heap, and lets it be swept before.
EXACT = ("--enable-precise-memory-info", "--js-flags=--expose-gc")
HEAP = "() => { gc(); return performance.memory.usedJSHeapSize; }"
POINTS = """() => Math.max(0, ...Array.from(document.querySelectorAll(".js-plotly-plot"), plot =>
    (plot.data || []).filter(each => each.type === "bar").reduce((sum, each) => sum + each.x.length, 0)))"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not SECONDS, reason="takes ten minutes: make soak")]


def test_ten_tabs_under_load_hold_no_more_in_the_end_than_at_the_beginning(
    own_house: House, clients: list[dict[str, int]]
) -> None:
    dashboard = psutil.Process(own_house.services.pid("dashboard"))
    looks: list[tuple[float, float, float]] = []
    with sync_playwright() as playwright, busy(own_house, clients):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, *EXACT])
        # A window of its own for each: a tab behind another one asks for nothing.
        pages = [browser.new_context().new_page() for _ in TABS]
        for page, path in zip(pages, TABS, strict=True):
            page.goto(f"{own_house.dashboard_url}/{path}")
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            pages[0].wait_for_timeout(1000 * LOOK_SECONDS)
            looks.append((resident([dashboard]), resident(chromium()), sum(map(heap, pages))))
        points = max(page.evaluate(POINTS) for page in pages)
        browser.close()
    fifth = max(1, len(looks) // 5)
    began, ended = looks[fifth : 2 * fifth], looks[-fifth:]
    print()
    for place, name in enumerate(("dashboard, resident", "browser, resident", "ten tabs, JavaScript heap")):
        first, last = (median(look[place] for look in part) for part in (began, ended))
        most = max(look[place] for look in looks)
        print(
            f"{name}: {first:.0f} MiB after a fifth of the time, {last:.0f} MiB in the end, "
            f"{most:.0f} MiB at most"
        )
        assert last <= GROWTH * first + MIB_MORE, name
    requests = own_house.stats()["requests"]
    print(f"{requests:,} requests in {SECONDS:.0f} s, {points:,} bars on a chart at most")
    assert requests > SECONDS
    assert points <= 2000


def resident(processes: Sequence[psutil.Process]) -> float:
    """What processes and their children hold, in MiB; what they share counts for each."""
    held = 0
    for each in {child for process in processes for child in (process, *process.children(recursive=True))}:
        # One may end while it is looked at.
        with suppress(psutil.NoSuchProcess):
            held += each.memory_info().rss
    return held / MIB


def chromium() -> list[psutil.Process]:
    """The processes of the browser that this test started."""
    return [each for each in psutil.Process().children(recursive=True) if "chromium" in each.name()]


def heap(page: Page) -> float:
    """What a page's script holds after a sweep, in MiB."""
    return float(page.evaluate(HEAP)) / MIB


@contextmanager
def busy(house: House, clients: list[dict[str, int]]) -> Iterator[None]:
    """Somebody sends requests all the time."""
    stop = threading.Event()

    def send() -> None:
        for client in cycle(clients):
            if stop.wait(1 / LOAD):
                return
            house.router.asks(client)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        stop.set()
        sender.join()
