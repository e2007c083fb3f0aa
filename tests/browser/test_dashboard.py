"""The dashboard as a reader sees it: a real browser, real services, and what the router recorded."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from data.credit import PAYMENTS
from router.database import stamp
from router.fold import SUMS
from router.tables import folds
from tests.house import PATIENCE, House, until
from traffic.clients import PROFILES

# All bars of the request chart as [request id, probability], and the crosses of what was not answered.
BARS = """() => document.querySelector("#requests-chart .js-plotly-plot").data
    .filter(trace => trace.type === "bar")
    .flatMap(trace => Array.from(trace.y, (y, i) => [trace.customdata[i][0], y]))"""
CROSSES = """() => document.querySelector("#requests-chart .js-plotly-plot").data
    .filter(trace => trace.name === "no answer").flatMap(trace => Array.from(trace.x))"""
LAST_SHARE = """() => {
    const line = document.querySelector("#share-chart .js-plotly-plot").data[2];
    return [line.x.at(-1), line.y.at(-1)]; }"""
COLOUR = "() => document.querySelector('#requests-chart .js-plotly-plot')?.data?.[0]?.marker.color"


def test_an_empty_dashboard_says_why_and_its_one_button_fills_it_with_what_the_router_recorded(
    own_house: House, page: Page
) -> None:
    opens(page, own_house)
    expect(page.locator("#empty")).to_contain_text("The router has nothing on record")
    expect(page.locator("#tile-requests")).to_have_text("0")
    expect(page.locator("#charts")).to_be_hidden()
    assert own_house.record() == [], "opening a tab sends no traffic"

    page.get_by_role("button", name="Send 100 sample requests").click()

    expect(page.locator("#tile-requests")).to_have_text("100")
    expect(page.locator("#empty")).to_be_hidden()
    expect(page.locator("#progress-text")).to_have_text("Sent: 100 of 100")
    shows_what_the_router_recorded(page, own_house)
    assert {row["tag"] for row in own_house.record()} == {"simulation"}


@pytest.mark.slow
def test_pressing_send_adds_to_tiles_charts_and_grid_what_the_router_recorded(
    house: House, page: Page
) -> None:
    house.router.asks({}, X_Traffic_Tag="simulation")
    opens(page, house)
    expect(page.locator("#charts")).to_be_visible()
    before = len(house.record())

    page.get_by_role("textbox", name="Requests").fill("40")
    page.get_by_role("textbox", name="At once").fill("2")
    page.get_by_role("button", name="Send", exact=True).click()

    expect(page.locator("#progress-text")).to_have_text("Sent: 40 of 40")
    expect(page.locator("#tile-requests")).to_have_text(f"{before + 40:,}")
    shows_what_the_router_recorded(page, house)


@pytest.mark.slow
def test_clients_of_a_payment_profile_come_to_the_record_with_that_payment_history(
    house: House, page: Page
) -> None:
    opens(page, house)
    start = house.stats()["cursor"]

    page.get_by_role("textbox", name="Who asks").click()
    page.get_by_role("option", name="7–9 months late").click()
    page.get_by_role("textbox", name="Requests").fill("25")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#progress-text")).to_have_text("Sent: 25 of 25")

    rows = house.record(start)
    assert len(rows) == 25
    codes = {row["features"][name] for row in rows for name in PAYMENTS}
    assert codes <= set(PROFILES["7-9 months late"])


@pytest.mark.slow
def test_a_stream_whose_outcomes_come_late_is_seen_to_come_true_on_the_verdict_page(
    own_house: House, page: Page
) -> None:
    opens(page, own_house)
    page.get_by_role("textbox", name="How they come").click()
    page.get_by_role("option", name="A steady stream").click()
    expect(page.get_by_role("textbox", name="Requests")).to_be_hidden()
    page.get_by_role("textbox", name="Per second").fill("40")
    page.get_by_role("textbox", name="Seconds").fill("4")
    page.get_by_text("Outcomes, drift, faults, seed").click()
    page.get_by_role("textbox", name="Report true outcomes").fill("1")
    page.get_by_role("textbox", name="What happens to those who ask").click()
    page.get_by_role("option", name="All pay two months late").click()
    page.get_by_role("button", name="Send", exact=True).click()

    expect(page.locator("#progress-text")).to_have_text(re.compile(r"Sent: \d+ in 4 s$"))
    expect(page.locator("#progress-outcomes")).to_have_text(re.compile(r"^Outcomes: \d+ told$"))
    rows = own_house.record()
    sent = int(page.locator("#progress-text").inner_text().split()[1])
    told = int(page.locator("#progress-outcomes").inner_text().split()[1])
    assert sent == told == len(rows) > 60
    # At half time, and in the order in which they were sent.
    late = [set(row["features"][name] for name in PAYMENTS) == {2} for row in sorted(rows, key=number)]
    assert not any(late[:10])
    assert all(late[-10:])

    page.get_by_role("link", name="Verdict", exact=True).click()
    page.get_by_text("Simulated", exact=True).click()
    expect(page.locator("#verdict-basis")).to_contain_text(
        f"Labelled {told:,} of {sent:,} requests of simulated"
    )


def breaks_the_challenger(page: Page, reason: str) -> None:
    """Choose a fault, see what that changes, and confirm it."""
    page.get_by_text("Outcomes, drift, faults, seed").click()
    page.get_by_role("textbox", name="What happens to the challenger").click()
    page.get_by_role("option", name="Fails every other time").click()
    page.get_by_role("button", name="Send", exact=True).click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("B fails every other time: simulated requests alone")
    expect(dialog).to_contain_text("then the present one goes on")
    dialog.get_by_role("button", name="Confirm").click()
    expect(dialog).to_contain_text("A reason is needed")
    dialog.get_by_label("Reason").fill(reason)
    dialog.get_by_role("button", name="Confirm").click()
    expect(dialog).to_be_hidden()


@pytest.mark.slow
def test_a_challenger_that_is_to_break_breaks_when_that_is_confirmed_and_is_mended(
    own_house: House, page: Page
) -> None:
    opens(page, own_house)
    before = own_house.router.gets("/v1/experiment").json
    breaks_the_challenger(page, "to see guardrails at work")

    expect(page.locator("#progress-text")).to_have_text(re.compile(r"Sent: 100 of 100, \d+ failed"))
    expect(page.locator("#progress")).to_contain_text("this variant is broken on purpose")
    failed = own_house.stats()["variants"]["B"]["failed"]
    assert failed == int(page.locator("#progress-text").inner_text().split()[-2])
    until(lambda: own_house.router.gets("/v1/experiment").json == before, "B is mended")
    reasons = [each["reason"] for each in own_house.router.gets("/v1/audit").json["entries"]]
    assert "B is to break on purpose (errors): to see guardrails at work; its own service is" in reasons[-2]
    assert "B is mended" in reasons[-1]
    expect(page.locator("#troubles")).to_be_empty()


@pytest.mark.slow
def test_a_fault_that_is_not_confirmed_changes_and_sends_nothing(own_house: House, page: Page) -> None:
    opens(page, own_house)
    page.get_by_text("Outcomes, drift, faults, seed").click()
    page.get_by_role("textbox", name="What happens to the challenger").click()
    page.get_by_role("option", name="Answers 0.3 s late").click()
    page.get_by_role("button", name="Send", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Cancel").last.click()
    expect(dialog).to_be_hidden()
    assert own_house.record() == []
    assert len(own_house.router.gets("/v1/audit").json["entries"]) == 1


@pytest.mark.slow
def test_what_a_simulation_broke_is_mended_when_the_dashboard_ends_and_when_it_comes_back_from_a_crash(
    own_house: House, page: Page
) -> None:
    opens(page, own_house)
    own = own_house.router.gets("/v1/experiment").json

    def is_broken() -> bool:
        return bool(own_house.router.gets("/v1/experiment").json != own)

    def breaks_it_for_long(reason: str) -> None:
        page.get_by_role("textbox", name="Requests").fill("2000")
        page.get_by_role("textbox", name="At once").fill("1")
        breaks_the_challenger(page, reason)
        until(is_broken, "B is looked for elsewhere")

    breaks_it_for_long("to see it mended")
    # The page asks nobody while its server is away.
    page.goto("about:blank")
    own_house.services.stop_one("dashboard")
    assert not is_broken()

    own_house.services.start_one("dashboard")
    own_house.services.wait_ready("dashboard")
    opens(page, own_house)
    breaks_it_for_long("to see it mended again")
    page.goto("about:blank")
    own_house.services.kill("dashboard")
    assert is_broken()
    own_house.services.start_one("dashboard")
    own_house.services.wait_ready("dashboard")
    until(lambda: not is_broken(), "B is mended")


def number(row: dict[str, Any]) -> int:
    """Which of its run a request was."""
    return int(row["id"].rpartition("-")[2])


@pytest.mark.slow
def test_a_run_is_found_again_after_a_reload_and_can_be_stopped(house: House, page: Page) -> None:
    opens(page, house)
    start = house.stats()["cursor"]
    page.get_by_role("textbox", name="Requests").fill("5000")
    page.get_by_role("textbox", name="At once").fill("1")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#progress-text")).to_contain_text("Sending")

    page.reload()
    # The field takes 2,000 at most, and so does the server.
    expect(page.locator("#progress-text")).to_have_text(re.compile(r"Sending: [\d,]+ of 2,000"))
    page.get_by_role("button", name="Stop").click()

    expect(page.locator("#progress-text")).to_have_text(re.compile(r"Stopped: [\d,]+ of 2,000"))
    told = page.locator("#progress-text").inner_text()
    assert int(told.split()[1].replace(",", "")) == len(house.record(start)) < 2000


@pytest.mark.slow
def test_real_and_simulated_traffic_are_told_apart_and_the_choice_is_kept_in_the_address(
    house: House, page: Page, client: dict[str, int]
) -> None:
    house.router.asks(client)
    house.router.asks(client, X_Traffic_Tag="simulation")
    opens(page, house)
    expect(page.locator("#summary")).to_contain_text("real and simulated")

    page.get_by_text("Real", exact=True).click()

    expect(page).to_have_url(re.compile(r"traffic=real"))
    expect(page.locator("#tile-requests")).to_have_text(f"{house.stats('real')['requests']:,}")
    shows_what_the_router_recorded(page, house, tag="real")
    page.reload()
    expect(page.locator("#summary")).to_contain_text(f"{house.stats('real')['requests']:,} real request")


@pytest.mark.slow
def test_the_theme_changes_page_and_charts_and_is_kept_in_the_address(
    house: House, page: Page, client: dict[str, int]
) -> None:
    house.router.asks(client)
    opens(page, house)
    page.wait_for_function(f"({COLOUR})() === '#0072B2'")

    page.get_by_role("button", name="Dark theme").click()

    page.wait_for_function(f"({COLOUR})() === '#56B4E9'")
    expect(page).to_have_url(re.compile(r"theme=dark"))
    assert is_dark(page)
    page.reload()
    page.wait_for_function(f"({COLOUR})() === '#56B4E9'")
    assert is_dark(page)


@pytest.mark.slow
def test_on_a_phone_everything_stands_in_one_column_that_fits(
    house: House, page: Page, client: dict[str, int]
) -> None:
    house.router.asks(client)
    page.set_viewport_size({"width": 390, "height": 844})
    opens(page, house)
    expect(page.locator("#charts")).to_be_visible()
    expect(page.locator("#tile-requests")).to_be_visible()

    boxes = [card.bounding_box() for card in page.locator(".card:visible").all()]
    assert len(boxes) >= 8
    assert len({round(box["x"]) for box in boxes if box}) == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_a_paused_page_asks_for_nothing(house: House, page: Page, client: dict[str, int]) -> None:
    house.router.asks(client)
    opens(page, house)
    page.locator(".mantine-Switch-track").click()
    before = page.locator("#tile-requests").inner_text()
    house.router.asks(client)

    # It says by itself that what it shows grows old.
    expect(page.locator("html")).to_have_attribute("data-stale", "")
    assert page.locator("#tile-requests").inner_text() == before

    page.locator(".mantine-Switch-track").click()
    expect(page.locator("#tile-requests")).to_have_text(f"{house.stats()['requests']:,}")


@pytest.mark.slow
def test_by_keyboard_one_skips_to_the_content_and_sees_where_one_is(house: House, page: Page) -> None:
    opens(page, house)
    page.keyboard.press("Tab")
    link = page.get_by_role("link", name="Skip to the content")
    expect(link).to_be_focused()
    expect(link).to_be_in_viewport()
    assert link.evaluate("link => getComputedStyle(link).outlineStyle") == "solid"


@pytest.mark.slow
def test_no_chart_offers_to_upload_itself(house: House, page: Page, client: dict[str, int]) -> None:
    house.router.asks(client)
    opens(page, house)
    expect(page.locator("#charts")).to_be_visible()
    expect(page.locator(".modebar-btn").first).to_be_attached()
    titles = page.locator(".modebar-btn").evaluate_all("all => all.map(each => each.dataset.title || '')")
    assert any("Zoom" in title for title in titles)
    assert not [title for title in titles if re.search("cloud|plotly|edit", title, re.IGNORECASE)]


@pytest.mark.slow
def test_what_is_down_is_named_with_its_reason_and_the_page_goes_on(own_house: House, page: Page) -> None:
    house = own_house
    house.services.kill("model_b")
    opens(page, house)
    page.get_by_role("button", name="Send 100 sample requests").click()

    # A model: the page names it, counts its failures, and shows what the other answers.
    expect(page.locator("#progress-text")).to_contain_text("Sent: 100 of 100")
    expect(page.locator("#troubles")).to_contain_text("Variant B does not answer")
    reason = house.stats()["variants"]["B"]["failing"]
    expect(page.locator("#troubles")).to_contain_text(reason)
    # With the id by which the logs know the request.
    lost = [row["request_id"] for row in house.record() if row["variant"] == "B"]
    expect(page.locator("#troubles")).to_contain_text(f"(request {lost[-1]})")
    failed = house.stats()["variants"]["B"]["failed"]
    assert failed > 0
    expect(page.locator("#tiles")).to_contain_text(f"{failed} failed")
    shows_what_the_router_recorded(page, house)

    # The router: what was known stays, in the other theme, too.
    house.services.kill("router")
    expect(page.locator("#troubles")).to_contain_text("The router does not answer")
    expect(page.locator("#troubles")).to_contain_text(house.router_url)
    expect(page.locator("#tile-requests")).to_have_text("100")
    page.get_by_role("button", name="Dark theme").click()
    page.wait_for_function(f"({COLOUR})() === '#56B4E9'")

    # Both are back: so is the page, by itself.
    house.services.start_one("model_b")
    house.services.start_one("router")
    house.services.wait_ready("model_b")
    house.services.wait_ready("router")
    expect(page.locator("#troubles")).not_to_contain_text("The router does not answer", timeout=2 * PATIENCE)
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#tile-requests")).to_have_text("200")
    expect(page.locator("#troubles")).to_be_empty()


@pytest.mark.slow
def test_after_a_change_of_weights_the_share_is_that_of_what_they_assigned(
    own_house: House, page: Page, clients: list[dict[str, int]]
) -> None:
    house = own_house
    for client in clients[:40]:
        house.router.asks(client)
    opens(page, house)
    expect(page.locator("#tile-requests")).to_have_text("40")
    ramp = b'{"share": 0.5, "reason": "to see"}'
    assert house.router.sends(ramp, "/v1/experiment/ramp", If_Match='"1"').status == 200
    expect(page.locator("#summary")).to_contain_text("none by the shares now configured")
    expect(page.locator("#tile-share")).to_have_text("–")
    # The other worker knows of it, too, by now.
    page.wait_for_timeout(4000)
    for client in clients[:30]:
        house.router.asks(client)
    house.router.asks(clients[0], X_Force_Variant="B")
    expect(page.locator("#tile-requests")).to_have_text("70")
    expect(page.locator(".tile.share")).to_contain_text("configured 50%, 30 assigned")
    share = house.stats()["variants"]["B"]["share"]
    page.wait_for_function(f"({LAST_SHARE})()[0] === 30")
    assert page.evaluate(LAST_SHARE) == [30, pytest.approx(share)]
    expect(page.locator("#summary")).to_contain_text("of 30 assigned")


@pytest.mark.slow
def test_what_came_long_ago_is_not_shown_as_if_it_were_new(
    own_house: House, page: Page, clients: list[dict[str, int]]
) -> None:
    for client in clients[:30]:
        own_house.router.asks(client)
    [*_, row] = own_house.record()
    own_house.services.kill("router")
    with sqlite3.connect(own_house.var / "ledger.sqlite") as connection:
        long_ago = stamp(datetime.now(UTC) - timedelta(hours=5))
        connection.execute("UPDATE predictions SET time = ?", (long_ago,))
        for table in (*SUMS, folds):
            connection.execute(f"DELETE FROM {table.name}")
    own_house.services.start_one("router")
    own_house.services.wait_ready("router")

    page.goto(f"{own_house.dashboard_url}/?range=15m&theme=light")
    expect(page.locator("#summary")).to_contain_text("No requests since")
    expect(page.locator("#tile-requests")).to_have_text("0")
    expect(page.locator("#empty")).to_contain_text("Nothing came in the last 15 min")
    expect(page.locator("#empty")).to_contain_text("30 requests on record")
    expect(page.locator("#charts")).to_be_hidden()

    page.get_by_text("24h", exact=True).click()
    expect(page.locator("#tile-requests")).to_have_text("30")
    expect(page.locator("#summary")).to_contain_text("30 real requests since")
    expect(page.locator(".tile.requests")).to_contain_text("by whole hours")
    expect(page.locator("#charts")).to_be_visible()
    expect(page.locator(f"#grid [row-id='{row['id']}']")).to_have_count(1)


@pytest.mark.slow
def test_while_an_experiment_is_paused_no_split_is_drawn(
    own_house: House, page: Page, clients: list[dict[str, int]]
) -> None:
    for client in clients[:20]:
        own_house.router.asks(client)
    opens(page, own_house)
    expect(page.locator("#share-card")).to_be_visible()
    pause = b'{"reason": "to see"}'
    assert own_house.router.sends(pause, "/v1/experiment/pause", If_Match='"1"').status == 200
    expect(page.locator("#share-card")).to_be_hidden()


def opens(page: Page, house: House) -> None:
    """Open the dashboard, and wait until it has heard from the router."""
    page.goto(house.dashboard_url)
    expect(page.locator("#as-of")).to_contain_text("As of")


def shows_what_the_router_recorded(page: Page, house: House, tag: str | None = None) -> None:
    """Compare tiles, charts and grid with the REST API's answers, to the last request."""
    stats = house.stats(tag)
    mine = [row for row in house.record() if tag is None or (row["tag"] or "real") == tag]
    # What was forced counts nowhere.
    rows = [row for row in mine if row["propensity"] is not None]
    expect(page.locator("#tile-requests")).to_have_text(f"{stats['requests']:,}")

    first = stats["variants"]["A"]
    expect(page.locator("#tile-share")).to_have_text(f"{first['share']:.1%}")
    lower, upper = first["share_interval"]
    expect(page.locator(".tile.share")).to_contain_text(f"{lower:.1%} to {upper:.1%}")
    expect(page.locator(".tile.share")).to_contain_text("configured 80%")
    errors = sum(each["failed"] + each["refused"] for each in stats["variants"].values())
    expect(page.locator("#tile-errors")).to_have_text(f"{errors / stats['requests']:.1%}")
    for variant in (each for each in stats["variants"].values() if each["answered"]):
        expect(page.locator("#tile-probability")).to_contain_text(f"{variant['mean_prediction']:.3f}")
        for quantile in variant["latency_ms"].values():
            expect(page.locator("#tile-latency")).to_contain_text(f"{quantile:.1f}")

    page.wait_for_function(f"({LAST_SHARE})()[0] === {len(rows)}")
    bars: list[list[Any]] = page.evaluate(BARS)
    shown = len(bars) + len(page.evaluate(CROSSES))
    newest = rows[-shown:]
    assert shown >= min(len(rows), 1000)
    assert dict(bars) == {row["id"]: row["prediction"] for row in newest if row["prediction"] is not None}
    assert page.evaluate(LAST_SHARE) == [len(rows), pytest.approx(stats["variants"]["B"]["share"])]
    expect(page.locator(f"#grid [row-id='{mine[-1]['id']}']").first).to_be_visible()


def is_dark(page: Page) -> bool:
    red, green, blue = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    )
    return bool(red + green + blue < 3 * 128)


@pytest.mark.slow
def test_before_anything_is_known_one_sees_that_it_loads(own_house: House, page: Page) -> None:
    router = own_house.services.pid("router")
    os.killpg(router, signal.SIGSTOP)
    try:
        page.goto(own_house.dashboard_url)
        expect(page.locator("#as-of")).to_have_text("Loading …")
        expect(page.locator("#tiles .mantine-Skeleton-root")).to_have_count(5)
        # It does not load for ever.
        expect(page.locator("#troubles")).to_contain_text("it does not answer in time. Nothing is known yet")
    finally:
        os.killpg(router, signal.SIGCONT)
    expect(page.locator("#tile-requests")).to_have_text("0", timeout=2 * PATIENCE)
    expect(page.locator("#tiles .mantine-Skeleton-root")).to_have_count(0)
