"""The page of load tests as somebody sees it who presses its buttons: real services, and files beside it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.test_dashboard_pages import KEY, barriers, opens, types_in
from tests.house import House, running, until
from traffic.load import Load, Run
from traffic.load_process import Loader
from traffic.runs import Runs

# What is drawn of the first run: seconds, and requests due and answered a second.
KEEPING = """() => document.querySelector("#keeping-chart .js-plotly-plot")?.data
    ?.map(each => [each.name, Array.from(each.y)])"""
TICKS = (
    """() => Array.from(document.querySelectorAll("#taking-chart .ytick text"), each => each.textContent)"""
)
CURVES = """() => document.querySelector("#percentiles-chart .js-plotly-plot")?.data
    ?.map(each => Array.from(each.y).at(-1))"""


@pytest.fixture(scope="module")
def quiet(board: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A house where nobody else asks anything."""
    with running(tmp_path_factory.mktemp("quiet"), board) as house:
        yield house


def kept(house: House) -> Runs:
    return Runs(house.var / "load")


def newest(house: House) -> Run:
    [run] = kept(house).newest(1)
    return run


@pytest.mark.slow
def test_an_empty_page_offers_one_test_which_is_kept(quiet: House, page: Page) -> None:
    opens(page, quiet, "load")
    expect(page.locator("#load-empty")).to_contain_text("Targets are router, model_a, model_b")
    expect(page.locator("#load-charts")).to_be_hidden()
    assert quiet.record() == [], "opening the page sends nothing"

    page.get_by_role("button", name="Offer 20 requests a second for 10 s").click()
    expect(page.locator("#load-summary")).to_contain_text("Offering 20 requests a second to router")
    expect(page.locator("#load-summary")).to_contain_text("kept up with 20 requests a second")
    run = newest(quiet)
    assert run.answered == run.offered == len(quiet.record())
    expect(page.locator("#keeping-summary")).to_contain_text(f"{run.offered:,} requests were due")
    drawn = dict(page.evaluate(KEEPING))
    assert drawn["offered"] == [each.offered for each in run.moments]
    assert drawn["answered"] == [each.achieved for each in run.moments]
    expect(page.locator("#load-compared")).to_contain_text(f"{run.latency['p99']:,.1f}")
    expect(page.locator("#failing-summary")).to_have_text("Nothing failed.")
    expect(page.locator("#failing-chart")).to_be_hidden()
    # Each tick of the latencies says its whole value.
    ticks = page.evaluate(TICKS)
    assert ticks == [f"{float(tick.replace(',', '')):,g}" for tick in ticks]
    assert all(tick.lstrip("0.").startswith(("1", "2", "5")) for tick in ticks)
    # In the record it is told apart.
    assert set(quiet.stats()["tags"]) == {"load-test"}
    assert barriers(page) == []


@pytest.mark.slow
def test_a_run_is_found_again_stopped_compared_by_an_address_and_exported(quiet: House, page: Page) -> None:
    opens(page, quiet, "load")
    page.get_by_role("textbox", name="Target").click()
    page.get_by_role("option", name="model_a").click()
    page.get_by_role("textbox", name="Offer", exact=True).click()
    page.get_by_role("option", name="Users, who wait for answers").click()
    page.get_by_label("Users ≤ 500").fill("12")
    page.get_by_label("Seconds ≤ 600").fill("60")
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#load-summary")).to_contain_text("Offering 12 users to model_a")
    page.reload()
    expect(page.locator("#load-progress")).to_contain_text("Sending:")
    expect(page.get_by_role("button", name="Start")).to_be_disabled()
    until(lambda: newest(quiet).answered > 0, "it sends")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#load-summary")).to_contain_text("model_a kept up with 12 users for")
    run = newest(quiet)
    assert (run.state, run.load.users, run.load.target) == ("stopped", 12, "model_a")

    # Beside another one, by an address that can be sent to somebody.
    loader = Loader({"router": quiet.router_url}, kept(quiet))
    other = loader.start(Load(rate=30, seconds=1))
    until(lambda: loader.running is None, "the other one is over")
    opens(page, quiet, f"load?runs={run.id},{other}")
    expect(page.locator("#load-compared thead th")).to_have_count(3)
    both = [run, kept(quiet).get(other or "")]
    shown = [page.locator(f"#load-compared tbody tr:has-text('answered') td:nth-child({n})") for n in (2, 3)]
    for cell, each in zip(shown, both, strict=True):
        expect(cell.first).to_have_text(f"{each.answered:,}")
    until(lambda: len(page.evaluate(CURVES) or ()) == 2, "both curves are drawn")
    assert page.evaluate(CURVES) == [
        [value for level, value in each.curve if level < 100][-1] for each in both
    ]
    page.get_by_role("textbox", name="Runs", exact=True).press("Backspace")
    expect(page).to_have_url(re.compile(rf"/load\?runs={run.id}$"))
    expect(page.locator("#load-compared thead th")).to_have_count(2)

    text = quiet.dashboard.gets(f"/load-runs/{run.id}.csv").body.decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert sum(float(row["achieved"]) for row in rows) == pytest.approx(run.answered)
    assert Run.model_validate(quiet.dashboard.gets(f"/load-runs/{run.id}.json").json) == run
    for name in ("no-such-run.csv", f"{run.id}.html", "..%2Fledger.json"):
        assert quiet.dashboard.gets(f"/load-runs/{name}").status == 404


@pytest.mark.slow
def test_what_cannot_be_offered_is_refused_with_the_field(quiet: House, page: Page) -> None:
    opens(page, quiet, "load")
    expect(page.get_by_role("button", name="Start")).to_be_enabled()
    page.get_by_label("Seconds ≤ 600").fill("")
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#load-trouble")).to_contain_text("This load cannot be offered")
    expect(page.locator("#load-trouble")).to_contain_text("seconds")


@pytest.mark.slow
def test_failures_are_drawn_by_kind(own_house: House, page: Page) -> None:
    own_house.services.kill("model_b")
    opens(page, own_house, "load")
    page.get_by_label("Seconds ≤ 600").fill("3")
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#load-summary")).to_contain_text(
        "▲ router did not keep up with 50 requests a second"
    )
    run = newest(own_house)
    assert set(run.errors) <= {"status 502", "status 503"}
    assert run.failed == len([row for row in own_house.record() if row["prediction"] is None]) > 0
    for kind, count in run.errors.items():
        expect(page.locator("#failing-summary")).to_contain_text(f"{count:,} × {kind}")
    expect(page.locator("#load-compared")).to_contain_text("first failure")
    assert barriers(page) == []


@pytest.mark.slow
def test_with_a_router_that_has_keys_only_an_operator_offers_load(
    board: Path, tmp_path: Path, page: Page
) -> None:
    with running(tmp_path, board, RUNOFF_OPERATOR_KEY=KEY) as house:
        opens(page, house, "load")
        expect(page.locator("#may-act-why")).to_contain_text("You can look, but not act")
        expect(page.get_by_role("button", name="Start")).to_be_disabled()
        expect(page.get_by_role("button", name="Offer 20 requests a second for 10 s")).to_be_disabled()
        asked: list[str] = []
        page.on("request", lambda each: asked.append(each.post_data or ""))
        types_in(page, KEY)
        page.get_by_label("Seconds ≤ 600").fill("2")
        page.get_by_role("button", name="Start").click()
        expect(page.locator("#load-summary")).to_contain_text("kept up with 50 requests a second")
        [run] = kept(house).newest(5)
        assert KEY not in (house.var / "load" / f"{run.id}.json").read_text()

        # Who sends what the button sends, with another key, is refused, too.
        [body] = [each for each in asked if '"changedPropIds":["load-start.n_clicks"]' in each]
        forged = body.replace(KEY, "no-such-key").encode()
        reply = house.dashboard.sends(forged, "/_dash-update-component")
        assert "Nothing was done" in reply.body.decode()
        assert len(kept(house).newest(5)) == 1
        page.goto("about:blank")
