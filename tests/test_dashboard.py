"""The dashboard in a real browser, before real services: press, see, compare with what the router says."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

from tests.conftest import CI, House, running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Without these Chromium asks its maker's hosts for this and that.
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP = ViewportSize(width=1280, height=1250)
PHONE = ViewportSize(width=390, height=844)
SOON = 20_000

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not CI, reason="no Chromium is installed; CI installs one and does not skip this"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


class Tab:
    """A tab on the dashboard, which remembers what it asked other hosts for and what it complained of."""

    def __init__(self, browser: Browser, house: House, viewport: ViewportSize, query: str = "") -> None:
        self.page: Page = browser.new_page(viewport=viewport)
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", self._listen)
        self.page.on("request", self._follow)
        self._home = house.dashboard_url
        self.page.goto(f"{house.dashboard_url}/{query}")

    def _listen(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def _follow(self, request: Any) -> None:
        if not request.url.startswith((self._home, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def text(self, element: str) -> str:
        return self.page.locator(f"#{element}").inner_text()

    def drawn(self, chart: str) -> Any:
        """What plotly has drawn: the traces of a chart."""
        return self.page.evaluate(
            """id => document.querySelector(`#${id} .js-plotly-plot`).data.map(trace => ({
                name: trace.name, type: trace.type, x: Array.from(trace.x), y: Array.from(trace.y)}))""",
            f"{chart}-chart",
        )

    def send(self, kind: str | None = None, queries: int | None = None) -> None:
        if kind:
            self.page.get_by_role("combobox", name="Who asks").click()
            self.page.get_by_role("option", name=kind).click()
        if queries:
            self.page.get_by_label("Number of queries").fill(str(queries))
        self.page.get_by_role("button", name="Send", exact=True).click()


@pytest.fixture
def fresh_house(board: Path, tmp_path: Path) -> Iterator[House]:
    with running(tmp_path, board) as house:
        yield house


def test_pressing_send_changes_tiles_and_charts_to_what_the_router_recorded(
    browser: Browser, fresh_house: House
) -> None:
    tab = Tab(browser, fresh_house, DESKTOP)
    expect(tab.page.locator("#summary")).to_have_text("No requests yet.", timeout=SOON)
    assert fresh_house.stats()["requests"] == 0, "opening a tab sends nothing"

    tab.send(queries=60)
    expect(tab.page.locator("#progress-text")).to_have_text("Sent: 60 of 60", timeout=SOON)
    expect(tab.page.locator("#tile-requests")).to_have_text("60", timeout=SOON)
    assert_page_tells_what_the_router_says(tab, fresh_house)

    # A second run adds to the charts that stand.
    tab.send("Clients who pay 7–9 months late", 40)
    expect(tab.page.locator("#tile-requests")).to_have_text("100", timeout=SOON)
    assert_page_tells_what_the_router_says(tab, fresh_house)
    late = fresh_house.record()[60:]
    assert {row["features"]["PAY_0"] for row in late} <= {7, 8, 9}
    assert {row["tag"] for row in fresh_house.record()} == {"simulation"}
    assert tab.complaints == []
    assert tab.elsewhere == []


def assert_page_tells_what_the_router_says(tab: Tab, house: House) -> None:
    stats, rows = house.stats(), house.record()
    a, b = stats["variants"]["A"], stats["variants"]["B"]
    tab.page.wait_for_function(
        """([id, count]) => {
            const plot = document.querySelector(`#${id} .js-plotly-plot`);
            return plot && plot.data && plot.data[2].x.length === count;
        }""",
        arg=["share-chart", len(rows)],
    )
    assert tab.text("tile-share-of-a") == f"{a['share']:.1%}"
    assert f"{a['mean_prediction']:.3f}" in tab.text("tile-average-probability")
    assert f"{b['mean_prediction']:.3f}" in tab.text("tile-average-probability")
    assert f"{a['latency_ms']['p50']:.1f}" in tab.text("tile-latency-ms")
    assert tab.text("tile-errors") == "0.0%"
    assert "split as configured, no errors" in tab.text("summary")

    bars = {trace["name"]: trace for trace in tab.drawn("requests") if trace["type"] == "bar"}
    for name, title in (("A", "A (champion)"), ("B", "B (challenger)")):
        mine = [(number, row["prediction"]) for number, row in enumerate(rows, 1) if row["variant"] == name]
        assert list(zip(bars[title]["x"], bars[title]["y"], strict=True)) == mine
    share = tab.drawn("share")[2]
    assert share["x"] == list(range(1, len(rows) + 1))
    assert share["y"][-1] == pytest.approx(b["share"])
    assert [edge["y"][-1] for edge in tab.drawn("share")[:2]] == pytest.approx(b["share_interval"][::-1])


def test_an_empty_page_gives_its_reason_and_one_button_that_fills_it(
    browser: Browser, fresh_house: House
) -> None:
    tab = Tab(browser, fresh_house, DESKTOP)
    expect(tab.page.locator("#empty")).to_be_visible(timeout=SOON)
    expect(tab.page.locator("#empty-reason")).to_contain_text("nothing on record")
    expect(tab.page.locator("#charts")).to_be_hidden()
    tab.page.get_by_role("button", name="Send 100 sample requests").click()
    expect(tab.page.locator("#tile-requests")).to_have_text("100", timeout=SOON)
    expect(tab.page.locator("#empty")).to_be_hidden()
    expect(tab.page.locator("#charts")).to_be_visible()

    # Nobody real has asked yet, and the page says so rather than mix the two.
    tab.page.get_by_text("Real", exact=True).click()
    expect(tab.page.locator("#empty-reason")).to_contain_text(
        "100 requests on record, none of them of real traffic", timeout=SOON
    )
    assert fresh_house.stats()["requests"] == 100


def test_a_run_can_be_stopped_and_is_found_again_after_a_reload(browser: Browser, fresh_house: House) -> None:
    tab = Tab(browser, fresh_house, DESKTOP)
    expect(tab.page.locator("#summary")).to_have_text("No requests yet.", timeout=SOON)
    tab.send(queries=2000)
    expect(tab.page.locator("#progress-text")).to_contain_text("Sending", timeout=SOON)
    tab.page.reload()
    expect(tab.page.locator("#progress-text")).to_contain_text("of 2,000", timeout=SOON)
    expect(tab.page.get_by_role("button", name="Send", exact=True)).to_be_disabled()
    tab.page.get_by_role("button", name="Stop").click()
    expect(tab.page.locator("#progress-text")).to_contain_text("Stopped", timeout=SOON)
    done = int(re.search(r"([\d,]+) of", tab.text("progress-text"))[1].replace(",", ""))  # type: ignore[index]
    assert 0 < done < 2000
    assert fresh_house.stats()["requests"] == done


def test_a_model_that_is_down_is_named_and_the_page_goes_on(browser: Browser, fresh_house: House) -> None:
    fresh_house.services.kill("model_b")
    tab = Tab(browser, fresh_house, DESKTOP)
    expect(tab.page.locator("#summary")).to_have_text("No requests yet.", timeout=SOON)
    tab.send(queries=80)
    expect(tab.page.locator("#progress-text")).to_contain_text("Sent: 80 of 80", timeout=SOON)
    expect(tab.page.locator("#tile-requests")).to_have_text("80", timeout=SOON)
    stats = fresh_house.stats()["variants"]
    assert (
        f"{stats['B']['failed']} failed" in tab.page.locator(".tile").filter(has_text="Errors").inner_text()
    )
    expect(tab.page.locator("#troubles")).to_contain_text("Variant B does not answer")
    expect(tab.page.locator("#troubles")).to_contain_text("variant B cannot be reached")
    assert f"A answered {stats['A']['answered']}" in tab.text("requests-summary")


def test_a_router_that_is_down_is_named_and_what_was_known_stays(
    browser: Browser, fresh_house: House
) -> None:
    tab = Tab(browser, fresh_house, DESKTOP)
    tab.page.get_by_role("button", name="Send 100 sample requests").click(timeout=SOON)
    expect(tab.page.locator("#tile-requests")).to_have_text("100", timeout=SOON)
    expect(tab.page.locator("#progress-text")).to_have_text("Sent: 100 of 100", timeout=SOON)
    fresh_house.services.kill("router")
    expect(tab.page.locator("#troubles")).to_contain_text("The router does not answer", timeout=SOON)
    expect(tab.page.locator("#troubles")).to_contain_text("nothing listens there")
    expect(tab.page.locator("#as-of")).to_have_class("as-of stale")
    assert tab.text("tile-requests") == "100"
    expect(tab.page.locator("#charts")).to_be_visible()

    fresh_house.services.start_one("router")
    fresh_house.services.wait_ready("router")
    expect(tab.page.locator("#troubles")).to_be_empty(timeout=2 * SOON)
    expect(tab.page.locator("#as-of")).to_have_class("as-of")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_fits_and_remembers_its_look_in_the_address(
    browser: Browser, house: House, clients: list[dict[str, int]], viewport: ViewportSize, theme: str
) -> None:
    for client in clients[:5]:
        house.router.asks(client)
    tab = Tab(browser, house, viewport, f"?theme={theme}&traffic=real")
    expect(tab.page.locator("html")).to_have_attribute("data-mantine-color-scheme", theme, timeout=SOON)
    tab.page.wait_for_selector("#requests-chart .bars", timeout=SOON)
    wide = tab.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= viewport["width"], "nothing sticks out to the side"
    champion = {"light": "#0072B2", "dark": "#56B4E9"}[theme]
    assert (
        tab.page.evaluate("document.querySelector('#requests-chart .js-plotly-plot').data[0].marker.color")
        == champion
    )

    tab.page.get_by_role("button", name="Theme").click()
    other = {"light": "dark", "dark": "light"}[theme]
    expect(tab.page).to_have_url(re.compile(f"theme={other}"))
    expect(tab.page).to_have_url(re.compile("traffic=real"))
    tab.page.reload()
    expect(tab.page.locator("html")).to_have_attribute("data-mantine-color-scheme", other, timeout=SOON)
    assert tab.complaints == []
    assert tab.elsewhere == []


def test_a_chart_can_be_read_as_a_table(
    browser: Browser, house: House, clients: list[dict[str, int]]
) -> None:
    sent = house.router.asks(clients[0])
    tab = Tab(browser, house, DESKTOP)
    tab.page.wait_for_selector("#requests-chart .bars", timeout=SOON)
    tab.page.get_by_text("View as table").first.click()
    newest = tab.page.locator("#requests-table tbody tr").first
    expect(newest).to_contain_text(f"{sent.prediction:.3f}", timeout=SOON)
    expect(newest).to_contain_text(sent.json["version"])


def test_a_paused_page_asks_for_nothing(browser: Browser, house: House) -> None:
    tab = Tab(browser, house, DESKTOP)
    expect(tab.page.locator("#as-of")).to_contain_text("As of", timeout=SOON)
    tab.page.get_by_text("Live", exact=True).click()
    tab.page.wait_for_timeout(1000)
    asked: list[str] = []
    tab.page.on("request", lambda request: asked.append(request.url))
    tab.page.wait_for_timeout(5000)
    assert asked == []
    tab.page.get_by_text("Live", exact=True).click()
    tab.page.wait_for_timeout(3000)
    assert asked
