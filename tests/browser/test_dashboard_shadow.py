"""The dashboard where challengers score unseen: what they said is told beside what callers got."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.browser.test_dashboard import opens
from tests.house import House, running, until

pytestmark = pytest.mark.slow

SHADOW = """
name = "ours"
mode = "shadow"
maturity = "0d"

[[variants]]
name = "A"
role = "champion"
url = "${MODEL_A_URL:-}"

[[variants]]
name = "B"
role = "challenger"
url = "${MODEL_B_URL:-}"

[[variants]]
name = "gradient-again"
role = "challenger"
url = "${MODEL_A_URL:-}"
"""
# Whose probabilities are drawn, each by the mean of the bins it is drawn in.
DRAWN = """() => document.querySelector("#scores-chart .js-plotly-plot").data
    .map(each => [each.name, Array.from(each.x), Array.from(each.y)])"""
ASKED = 60


@pytest.fixture(scope="module")
def shadow(
    board: Path, clients: list[dict[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    """A house with two challengers in the shadow, both of which have answered all that was asked."""
    var = tmp_path_factory.mktemp("shadow")
    document = var / "experiment.toml"
    document.write_text(SHADOW)
    with running(var, board, RUNOFF_EXPERIMENT=str(document)) as house:
        for client in clients[:ASKED]:
            house.router.asks(client)

        def answered(name: str) -> int:
            unseen = house.stats()["variants"][name]["shadow"]
            return unseen["answered"] if unseen else 0

        until(lambda: answered("B") == answered("gradient-again") == ASKED, "the shadows have answered")
        yield house


def test_stats_and_spreads_tell_what_was_answered_unseen_beside_what_callers_got(shadow: House) -> None:
    rows = [shadow.router.gets(f"/v1/predictions/{row['id']}").json for row in shadow.record()]
    said = {
        name: [each["prediction"] for row in rows for each in row["side_answers"] if each["name"] == name]
        for name in ("B", "gradient-again")
    }
    stats = shadow.stats()["variants"]
    assert stats["A"]["shadow"] is None
    assert (stats["A"]["requests"], stats["B"]["requests"]) == (ASKED, 0)
    spreads = {each["name"]: each for each in shadow.router.gets("/v1/distributions").json["variants"]}
    for name, predictions in said.items():
        unseen = stats[name]["shadow"]
        assert (unseen["requests"], unseen["failed"]) == (ASKED, 0)
        assert unseen["mean_prediction"] == pytest.approx(np.mean(predictions))
        assert 0 < unseen["latency_ms"]["p50"] <= unseen["latency_ms"]["p99"]
        assert spreads[name]["scores"]["counts"] == []
        told = spreads[name]["shadow"]["scores"]
        assert told["counts"] == np.histogram(predictions, np.append(told["edges"][:-1], 2))[0].tolist()


def test_tiles_and_charts_show_the_challengers_answers_and_no_split_that_there_is_not(
    shadow: House, page: Page
) -> None:
    opens(page, shadow)
    expect(page.locator("#summary")).to_contain_text(
        f"{ASKED} real requests: A answers, B and gradient-again score unseen"
    )
    for number, each in enumerate(shadow.stats()["variants"].values()):
        mean = (each["shadow"] or each)["mean_prediction"]
        expect(page.locator("#tile-probability tr").nth(number)).to_contain_text(f"{each['name']}{mean:.3f}")
    expect(page.locator("#tile-share tr", has_text="gradient-again")).to_contain_text(str(ASKED))
    expect(page.locator("#share-card")).to_be_hidden()
    expect(page.locator("#scores-summary")).to_contain_text("B answers on average")
    # It is the same model: it says the same.
    drawn = {name: (x, y) for name, x, y in page.evaluate(DRAWN)}
    assert set(drawn) == {"A", "B", "gradient-again"}
    assert drawn["gradient-again"] == drawn["A"] != drawn["B"]


def test_three_variants_fit_on_a_phone(shadow: House, page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    for path in ("", "verdict", "experiment"):
        page.goto(f"{shadow.dashboard_url}/{path}")
        expect(page.locator("#variants")).to_contain_text("gradient-again")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
