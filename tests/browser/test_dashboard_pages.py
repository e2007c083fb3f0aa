"""The dashboard's pages as readers and operators see them: a real browser, real services, REST beside it."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from flask import Flask
from playwright.sync_api import Browser, Page, Route, ViewportSize, expect
from sklearn.tree import DecisionTreeClassifier
from sqlalchemy import create_engine

from dashboard.app import create_app
from dashboard.verdict_words import latencies
from router.keys import Keys
from runoff.store import Store
from tests.house import CI, PATIENCE, House, Reply, running, served, until
from traffic.clients import population
from verdict.drift import psi

# The heights in a chart of the verdict, of each of its traces.
DRAWN = """name => document.querySelector(`#${name} .js-plotly-plot`).data.map(each => Array.from(each.y))"""

# Nothing on the page fades or moves; what turns for ever, as a sign of loading, does not count.
RESTS = """() => document.getAnimations().every(each =>
    each.playState !== "running" || each.effect.getComputedTiming().endTime === Infinity)"""

PIXEL = """async address => {
    const image = new Image();
    image.src = address;
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.width, image.height];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    return Array.from(context.getImageData(2, 2, 1, 1).data); }"""

NOTEBOOK = "https://connect.example.com/content/0f5a/"
KEY = "an-operator's-key-of-these-tests"
PAGES = ("", "verdict", "models", "load", "drift", "experiment")
WIDTHS: dict[str, ViewportSize] = {
    "desktop": {"width": 1280, "height": 900},
    "phone": {"width": 390, "height": 844},
}
# Who reads a chart's data, not its pixels.
PSI_BARS = """() => {
    const bars = document.querySelector("#psi-chart .js-plotly-plot")?.data?.[1];
    return bars && Object.fromEntries(Array.from(bars.y, (name, i) => [name, bars.x[i]])); }"""


@pytest.fixture(scope="module")
def keyed(
    board: Path, clients: list[dict[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    """A house whose router asks for keys, with 160 requests on record, half of them with outcomes."""
    var = tmp_path_factory.mktemp("keyed")
    own = shutil.copytree(board, var / "models")
    # As if Posit Connect had run the one notebook, and somebody had written what is no address for the other.
    for model, address in (("model-a", NOTEBOOK), ("model-b", "javascript:alert(1)")):
        [description] = own.glob(f"{model}/*/data.txt")
        text = description.read_text("utf-8")
        assert "notebook: null" in text
        description.write_text(text.replace("notebook: null", f"notebook: {address}"), "utf-8")
    with running(var, own, RUNOFF_OPERATOR_KEY=KEY) as house:
        told = [asks(house, client) for client in clients[:160]]
        outcomes = [
            {"id": reply.headers["X-Request-ID"], "outcome": int(number % 5 == 0)}
            for number, reply in enumerate(told[:80])
        ]
        body = json.dumps(outcomes).encode()
        assert house.router.sends(body, "/v1/outcomes", Authorization=f"Bearer {KEY}").status == 200
        yield house


def asks(house: House, client: dict[str, int]) -> Reply:
    return house.router.asks(client, Authorization=f"Bearer {KEY}")


def rest(house: House, path: str) -> Any:
    """What the router's REST API says to an operator."""
    reply = house.router.sends(b"", path, "GET", Authorization=f"Bearer {KEY}")
    assert reply.status == 200, reply.body
    return reply.json


def opens(page: Page, house: House, path: str = "") -> None:
    page.goto(f"{house.dashboard_url}/{path}")
    expect(page.locator("#as-of")).to_contain_text("As of")


def opens_table(page: Page, chart: str) -> None:
    page.locator(f"#{chart}-table").locator("..").locator("summary").click()


def types_in(page: Page, key: str) -> None:
    field = page.get_by_label("Operator's key", exact=True)

    def is_taken() -> bool:
        # A page that is not alive yet takes nothing: one types it in again.
        field.fill(key)
        page.get_by_role("button", name="Use this key").click()
        page.wait_for_timeout(500)
        return field.input_value() == ""

    until(is_taken, "the key is taken")


def confirms(page: Page, button: str, *said: str) -> None:
    """Press a button, see what it would do, and confirm that with a reason."""
    page.get_by_role("button", name=button).click()
    dialog = page.get_by_role("dialog")
    for line in said:
        expect(dialog).to_contain_text(line)
    dialog.get_by_label("Reason").fill("to see")
    dialog.get_by_role("button", name="Confirm").click()
    expect(dialog).to_be_hidden()


def barriers(page: Page) -> list[Any]:
    """What axe finds that is serious or critical, with its places; not in the charts' drawings."""
    spec = importlib.util.find_spec("axe_playwright_python")
    if spec is None or spec.origin is None:
        assert not CI, "axe-playwright-python is not there"
        pytest.skip("axe-playwright-python is not there: it brings axe-core for the tests")
    page.evaluate((Path(spec.origin).parent / "axe.min.js").read_text(encoding="utf-8"))
    # What still fades in has, for a moment, the contrast of fog.
    page.wait_for_function(RESTS)
    return [
        (each["id"], [node["target"] for node in each["nodes"]])
        for each in page.evaluate(
            "axe.run({exclude: ['.main-svg'], rules: {'target-size': {enabled: true}}})"
        )["violations"]
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path or "live")
def test_a_page_is_free_of_barriers_and_fits(keyed: House, page: Page, path: str) -> None:
    page.set_viewport_size(WIDTHS["desktop"])
    opens(page, keyed, f"{path}?theme=light")
    is_free_and_fits(page, path, "light")
    page.get_by_role("button", name="Dark theme").click()
    page.set_viewport_size(WIDTHS["phone"])
    is_free_and_fits(page, path, "dark")


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path or "live")
def test_a_page_that_is_opened_in_any_width_and_theme_is_free_of_barriers_and_fits(
    keyed: House, page: Page, path: str, theme: str, width: str
) -> None:
    page.set_viewport_size(WIDTHS[width])
    opens(page, keyed, f"{path}?theme={theme}")
    is_free_and_fits(page, path, theme)


def is_free_and_fits(page: Page, path: str, theme: str) -> None:
    expect(page.locator("html")).to_have_attribute("data-mantine-color-scheme", theme)
    expect(page.locator("main .mantine-Skeleton-root")).to_have_count(0)
    if not path:
        # The grid is not drawn before somebody may see it.
        page.locator("#grid").scroll_into_view_if_needed()
        expect(page.locator("#grid .ag-cell").first).to_be_visible()
    assert barriers(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_pages_are_gone_to_by_links_that_keep_what_was_chosen_and_a_reload_keeps_it_too(
    keyed: House, page: Page
) -> None:
    opens(page, keyed)
    page.get_by_text("15m", exact=True).click()
    page.get_by_role("button", name="Dark theme").click()
    expect(page).to_have_url(re.compile(r"/\?range=15m&theme=dark$"))

    page.get_by_role("link", name="Models", exact=True).click()
    expect(page).to_have_url(re.compile(r"/models\?range=15m&theme=dark"))
    expect(page.get_by_role("heading", name="Versions", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name="Models", exact=True)).to_have_attribute("aria-current", "page")
    expect(page).to_have_title("Models – Runoff")

    page.reload()
    expect(page.get_by_role("heading", name="Versions", exact=True)).to_be_visible()
    expect(page.locator("html")).to_have_attribute("data-mantine-color-scheme", "dark")
    # The range says nothing of models, and so is not there; elsewhere it is what was chosen.
    expect(page.locator("#range-choice")).to_be_hidden()
    page.get_by_role("link", name="Drift", exact=True).click()
    expect(page.get_by_role("radio", name="15m")).to_be_checked()


@pytest.mark.slow
def test_what_is_looked_at_on_a_page_is_in_its_address_and_outlives_a_reload(
    keyed: House, page: Page, clients: list[dict[str, int]]
) -> None:
    for client in clients[:60]:
        keyed.router.asks(client, Authorization=f"Bearer {KEY}", X_Force_Variant="B")
    opens(page, keyed, "drift")
    page.get_by_role("radio", name="B").locator("..").click()
    page.get_by_role("textbox", name="Look at").click()
    page.get_by_role("option", name="AGE", exact=True).click()
    expect(page).to_have_url(re.compile(r"/drift\?variant=B&feature=AGE$"))
    page.reload()
    expect(page.locator("#drift-summary")).to_contain_text("B: in the newest")
    expect(page.locator("#overlay-summary")).to_contain_text("AGE moved by")
    expect(page).to_have_url(re.compile(r"/drift\?variant=B&feature=AGE$"))

    [one], [other] = (rest(keyed, f"/v1/variants/{name}/versions")["versions"] for name in ("A", "B"))
    chosen = f"B/{other['version']},A/{one['version']}"
    opens(page, keyed, f"models?models={chosen}")
    expect(page.locator("#comparison thead").first).to_contain_text(
        re.compile(f"B {other['version'][:16]}.*A {one['version'][:16]}")
    )
    assert page.url.endswith(f"?models={chosen}")


@pytest.mark.slow
def test_the_way_out_of_an_empty_page_keeps_what_was_chosen(keyed: House, page: Page) -> None:
    for path in ("drift", "verdict"):
        opens(page, keyed, f"{path}?traffic=simulation&theme=dark")
        page.get_by_role("link", name="Send some on the live page").click()
        expect(page).to_have_url(re.compile(r"/\?traffic=simulation&theme=dark$"))


@pytest.mark.slow
def test_a_page_whose_server_fails_says_so_with_the_request_and_what_to_do(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Something else listens where the router should.
    other = Flask("other")
    other.add_url_rule("/<path:path>", "any", lambda path: {"path": path})
    with served(other) as router:
        monkeypatch.setenv("ROUTER_URL", router)
        with served(create_app().server) as dashboard:
            page.goto(dashboard)
            expect(page.locator("#page-fault")).to_contain_text("A part of this page cannot be shown")
            expect(page.locator("#page-fault")).to_contain_text(re.compile(r"\(request [0-9a-f-]{20,};"))
            expect(page.locator("#page-fault")).to_contain_text("if this stays, reload it")
            page.goto("about:blank")


def test_an_address_that_is_no_page_is_not_found(keyed: House) -> None:
    assert keyed.dashboard.gets("/no-such-page").status == 404
    assert keyed.dashboard.gets("/models/deeper").status == 404


@pytest.mark.slow
def test_a_row_of_the_record_opens_what_was_asked_and_answered(keyed: House, page: Page) -> None:
    opens(page, keyed)
    newest = rest(keyed, "/v1/predictions?last=1")["predictions"][0]
    page.locator(f"#grid [row-id='{newest['id']}'] [col-id='variant']").click()

    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(newest["id"])
    asked, answered = (dialog.locator("pre").nth(number).inner_text() for number in (0, 1))
    assert json.loads(asked) == newest["features"]
    assert json.loads(answered)["prediction"] == newest["prediction"]
    expect(dialog.locator("#curl")).to_contain_text(f"curl -s {keyed.router_url}/predict")

    assert barriers(page) == []
    page.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()


@pytest.fixture(scope="module")
def reader(keyed: House) -> str:
    """A key that may read, as the router knows it."""
    engine = create_engine(f"sqlite:///{keyed.var / 'ledger.sqlite'}")
    key = Keys(engine).add("reader", "read")
    engine.dispose()
    sent = {"Authorization": f"Bearer {key}"}
    until(
        lambda: all(keyed.router.sends(b"", "/v1/key", "GET", **sent).status == 200 for _ in range(10)),
        "every worker knows the key",
    )
    return key


def test_without_a_key_or_with_one_that_reads_one_sees_all_and_cannot_act_and_is_told_why(
    keyed: House, reader: str, page: Page
) -> None:
    opens(page, keyed, "experiment")
    expect(page.locator("#may-act-why")).to_contain_text(
        "You can look, but not act: the router takes an operator"
    )
    expect(page.locator("#experiment-summary")).to_have_text("Split: A 80%, B 20%")
    for name in ("Ramp …", "Pause …", "Hold …", "Promote …", "Undo the newest"):
        expect(page.get_by_role("button", name=name)).to_be_disabled()

    types_in(page, "no-such-key")
    expect(page.locator("#may-act-why")).to_contain_text("this key is not known here")
    expect(page.get_by_role("button", name="Ramp …")).to_be_disabled()

    types_in(page, reader)
    expect(page.locator("#may-act-why")).to_contain_text("the key reader may read, not operate")
    for name in ("Ramp …", "Pause …", "Hold …", "Promote …", "Undo the newest"):
        expect(page.get_by_role("button", name=name)).to_be_disabled()
    page.get_by_role("link", name="Models", exact=True).click()
    expect(page.locator("#may-act-why")).to_contain_text("the key reader may read, not operate")
    for name in ("Release …", "Roll back …"):
        expect(page.get_by_role("button", name=name)).to_be_disabled()


def test_an_operator_ramps_sees_the_difference_first_gives_a_reason_and_undoes_it(
    keyed: House, page: Page
) -> None:
    opens(page, keyed, "experiment")
    types_in(page, KEY)
    expect(page.locator("#may-act-why")).to_contain_text("You can act")
    # The key is in this tab alone.
    assert KEY not in page.url
    assert KEY not in page.evaluate("JSON.stringify(localStorage)")
    assert KEY in page.evaluate("Object.values(sessionStorage).map(each => JSON.parse(each)).join()")

    per_hour = rest(keyed, "/v1/distributions")["requests_last_hour"]
    page.get_by_role("button", name="Ramp …").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(f"B 20% → 50%: about {round(0.3 * per_hour)} more requests an hour")
    dialog.get_by_role("button", name="Confirm").click()
    expect(dialog).to_contain_text("A reason is needed")
    assert barriers(page) == []
    assert rest(keyed, "/v1/experiment/state")["weights"] == {"A": 0.8, "B": 0.2}

    dialog.get_by_label("Reason").fill("B looks good")
    dialog.get_by_label("Your name").fill("ada")
    dialog.get_by_role("button", name="Confirm").click()

    expect(page.locator("#experiment-summary")).to_have_text("Split: A 50%, B 50%")
    state = rest(keyed, "/v1/experiment/state")
    assert state["weights"] == {"A": 0.5, "B": 0.5}
    assert state["reason"] == "B looks good"
    assert state["by"].startswith("ada (")
    expect(page.locator("#timeline > li").first).to_contain_text("“B looks good”")
    expect(page.locator("#variants")).to_contain_text("B challenger 50%")

    page.get_by_role("button", name="Undo the newest").click()
    expect(dialog).to_contain_text("Undo: ramp B to 20%")
    dialog.get_by_label("Reason").fill("it was not")
    dialog.get_by_role("button", name="Confirm").click()
    expect(page.locator("#experiment-summary")).to_have_text("Split: A 80%, B 20%")
    weights = rest(keyed, "/v1/experiment/state")["weights"]
    assert weights == {"A": pytest.approx(0.8), "B": pytest.approx(0.2)}
    assert [each["reason"] for each in rest(keyed, "/v1/audit")["entries"]][-2:] == [
        "B looks good",
        "it was not",
    ]

    # After a reload it may act still, and nothing of the key is on the server's disk.
    page.reload()
    expect(page.locator("#may-act-why")).to_contain_text("You can act")
    kept = [each for each in keyed.var.rglob("*") if each.is_file() and KEY.encode() in each.read_bytes()]
    assert kept == []


@pytest.mark.slow
def test_an_experiment_is_paused_and_resumed_and_its_document_is_changed_and_set_back(
    keyed: House, page: Page
) -> None:
    opens(page, keyed, "experiment")
    types_in(page, KEY)

    confirms(page, "Pause …", "B 20% → 0%")
    expect(page.locator("#status")).to_contain_text("Paused")
    assert rest(keyed, "/v1/experiment/state")["paused"]
    confirms(page, "Resume …", "B 0% → 20%")
    expect(page.locator("#status")).to_contain_text("Running")
    assert not rest(keyed, "/v1/experiment/state")["paused"]

    before = rest(keyed, "/v1/experiment")
    page.get_by_text("the whole document").click()
    field = page.get_by_label("Document, JSON")
    field.fill(json.dumps(before | {"fallback": "A"}))
    confirms(page, "Set …", "fallback: none → A")
    until(lambda: rest(keyed, "/v1/experiment")["fallback"] == "A", "the document is set")
    expect(page.locator("#timeline")).to_contain_text("fallback: none → A")
    # The router refuses what breaks a rule, and says which; nothing is changed.
    field.fill(json.dumps(before | {"mode": "roulette"}))
    page.get_by_role("button", name="Set …").click()
    page.get_by_role("dialog").get_by_label("Reason").fill("to see")
    page.get_by_role("button", name="Confirm").click()
    expect(page.get_by_role("dialog")).to_contain_text("The router did not do it")
    expect(page.get_by_role("dialog")).to_contain_text("mode")
    page.get_by_role("dialog").get_by_role("button", name="Cancel").last.click()
    confirms(page, "Undo the newest", "fallback: A → none")
    until(lambda: rest(keyed, "/v1/experiment") == before, "the document of before is in force")


def switches(page: Page, mode: str, *told: str) -> None:
    """Choose another mode, look at what it means, and confirm."""
    page.get_by_role("textbox", name="Mode").click()
    page.get_by_role("option", name=mode, exact=True).click()
    confirms(page, "Switch …", *told)


def elsewhere(house: House, **changed: Any) -> None:
    """Let somebody else set another version of the document."""
    document = rest(house, "/v1/experiment") | changed
    version = rest(house, "/v1/experiment/state")["version"]
    reply = house.router.sends(
        json.dumps(document).encode(),
        "/v1/experiment?reason=meanwhile&by=grace",
        "PUT",
        Authorization=f"Bearer {KEY}",
        If_Match=f'"{version}"',
    )
    assert reply.status == 200, reply.body


@pytest.mark.slow
def test_what_somebody_types_stays_when_another_one_changes_the_experiment(keyed: House, page: Page) -> None:
    opens(page, keyed, "experiment")
    types_in(page, KEY)
    before = rest(keyed, "/v1/experiment")
    page.get_by_text("the whole document").click()
    field = page.get_by_label("Document, JSON")
    # What nobody has touched follows what is in force.
    elsewhere(keyed, fallback="A")
    expect(field).to_have_value(re.compile('"fallback": "A"'))

    typed = json.dumps(before | {"fallback": "B"})
    field.fill(typed)
    elsewhere(keyed, maturity="7d")
    expect(page.locator("#document-outdated")).to_contain_text("The document was changed meanwhile")
    expect(page.locator("#document-outdated")).to_contain_text("by grace (RUNOFF_OPERATOR_KEY): “meanwhile”")
    expect(field).to_have_value(typed)
    page.get_by_role("button", name="Take what is in force").click()
    expect(field).to_have_value(re.compile('"maturity": "P7D"'))
    expect(page.locator("#document-outdated")).to_be_empty()

    field.fill(json.dumps(before))
    confirms(page, "Set …", "fallback: A → none")
    expect(field).to_have_value(json.dumps(rest(keyed, "/v1/experiment"), indent=2))
    expect(page.locator("#document-outdated")).to_be_empty()
    assert rest(keyed, "/v1/experiment") == before


@pytest.mark.slow
def test_what_is_added_to_a_list_is_a_line_and_what_is_too_much_is_counted(keyed: House, page: Page) -> None:
    opens(page, keyed, "experiment")
    types_in(page, KEY)
    before = rest(keyed, "/v1/experiment")
    segments = [{"column": name} for name in ("SEX", "EDUCATION", "MARRIAGE", "PAY_0", "PAY_2", "PAY_3")]
    more = {
        "guardrails": [{"name": "errors", "metric": "error-rate", "margin": 0.01}],
        "decision": before["decision"] | {"segments": segments},
    }
    page.get_by_text("the whole document").click()
    page.get_by_label("Document, JSON").fill(json.dumps(before | more))
    page.get_by_role("button", name="Set …").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("guardrails errors: none → metric error-rate, margin 0.01")
    expect(dialog).to_contain_text("decision.segments SEX: none → column SEX")
    expect(dialog).not_to_contain_text("none → none")
    dialog.get_by_label("Reason").fill("to look closer")
    dialog.get_by_role("button", name="Confirm").click()
    expect(dialog).to_be_hidden()
    newest = page.locator("#timeline > li", has_text="“to look closer”")
    expect(newest).to_contain_text("guardrails errors: none → metric error-rate, margin 0.01")
    expect(newest).to_contain_text("and 1 more")
    confirms(page, "Undo the newest", "guardrails errors: metric error-rate, margin 0.01 → none")
    until(lambda: rest(keyed, "/v1/experiment") == before, "the document of before is in force")


@pytest.mark.slow
def test_what_was_decided_by_the_look_of_another_version_is_refused_with_what_to_do(
    keyed: House, page: Page
) -> None:
    opens(page, keyed, "experiment")
    types_in(page, KEY)
    page.get_by_role("button", name="Promote …").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("B becomes the champion, A a challenger.")
    # Meanwhile somebody else sets another version.
    elsewhere(keyed)

    dialog.get_by_label("Reason").fill("B has won")
    dialog.get_by_role("button", name="Confirm").click()
    expect(dialog).to_contain_text("Somebody was faster")
    roles = {each["name"]: each["role"] for each in rest(keyed, "/v1/experiment")["variants"]}
    assert roles == {"A": "champion", "B": "challenger"}


def test_the_models_page_tells_of_each_version_what_its_service_does(keyed: House, page: Page) -> None:
    opens(page, keyed, "models")
    for variant in ("A", "B"):
        [version] = rest(keyed, f"/v1/variants/{variant}/versions")["versions"]
        row = page.locator("#versions tr", has_text=version["version"])
        auc = version["metrics"]["roc_auc"]
        expect(row).to_contain_text(f"{auc['value']:.3f} ({auc['lower']:.3f} to {auc['upper']:.3f})")
        expect(row).to_contain_text(f"{version['metrics']['brier']['value']:.3f}")
        expect(row).to_contain_text(version["digest"][:8])
        expect(row).to_contain_text("live")
        expect(row).to_contain_text(version["algorithm"])
        card = keyed.dashboard.gets(f"/cards/{variant}/{version['version']}")
        assert version["digest"] in card.body.decode()
        assert card.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
    notebooks = page.locator("#versions a", has_text="Notebook")
    expect(notebooks).to_have_count(1)
    expect(notebooks).to_have_attribute("href", NOTEBOOK)
    # All of its columns are in sight.
    assert page.locator("#versions").evaluate("each => each.scrollWidth - each.clientWidth") <= 0
    expect(page.locator("#comparison")).to_contain_text("AUC of precision and recall")
    page.get_by_text("Importance of the factors").click()
    shown = page.locator("#comparison details").last.locator("tbody tr").all()
    importances = [
        max(
            abs(float(cell.replace("−", "-")))
            for cell in row.locator("td").all_inner_texts()[1:3]
            if cell != "–"
        )
        for row in shown
    ]
    assert importances == sorted(importances, reverse=True)
    assert "PAY_0" in shown[0].inner_text()


@contextmanager
def overtaken(page: Page, output: str, called_by: str) -> Iterator[None]:
    """Hold back what a page asks for an output because of an input, and let a tick be answered before."""
    held: list[Route] = []

    def hold(route: Route) -> None:
        asked = route.request.post_data_json or {}
        if output in asked["output"] and called_by in asked["changedPropIds"]:
            held.append(route)
            page.evaluate("dash_clientside.set_props('tick', {data: Date.now()})")
        else:
            route.continue_()

    page.route(re.compile("/_dash-update-component"), hold)
    yield
    assert held
    for each in held:
        each.continue_()
    page.unroute_all()


def test_an_operator_releases_a_version_rolls_it_back_and_what_cannot_be_rolled_back_is_told(
    keyed: House, page: Page
) -> None:
    store = Store.open(keyed.var / "models")
    first = store.version("model-a")
    golden = store.golden_rows(first)
    assert golden
    X = pd.DataFrame(golden.rows)
    tree = DecisionTreeClassifier(max_depth=3).fit(X, [n % 2 for n in range(len(X))])
    second = store.write("model-a", tree, prototype=first.prototype, record=first.record, examples=X)

    def live() -> Any:
        return rest(keyed, "/v1/variants/A/releases")["live"]["version"]

    opens(page, keyed, "models")
    expect(page.get_by_role("button", name="Release …")).to_be_disabled()
    types_in(page, KEY)
    # What does not serve is chosen; until something was released the newest version does.
    expect(page.locator("#release-version")).to_have_value(f"A  {first.id}")
    page.get_by_role("button", name="Roll back …").click()
    expect(page.locator("#release-trouble")).to_contain_text("Nothing is chosen")
    page.get_by_role("textbox", name="Variant").click()
    page.get_by_role("option", name="A", exact=True).click()
    page.get_by_role("button", name="Roll back …").click()
    expect(page.locator("#release-trouble")).to_contain_text("Nothing was released to A before")

    page.get_by_role("button", name="Release …").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(f"A serves {first.id} instead of {second.id}")
    expect(dialog).to_contain_text("Stands in the history of releases, for good.")
    dialog.get_by_label("Reason").fill("the one we trust")
    # A tick that knows nothing of the change is answered first, or after it.
    with overtaken(page, "models-summary", "changed.data"):
        dialog.get_by_role("button", name="Confirm").click()
        expect(dialog).to_be_hidden()
        release = rest(keyed, "/v1/variants/A/releases")["releases"][-1]
        assert (release["reason"], release["by"]) == ("the one we trust", "RUNOFF_OPERATOR_KEY")
        assert live() == first.id
        expect(page.locator("#releases > li").first).to_contain_text("“the one we trust”")
        expect(page.locator("#acted")).to_contain_text("It is recorded in the history of releases")
        expect(page.locator("#release-version")).to_have_value(f"A  {second.id}")

    # Who decided by the look of another release is told so.
    page.get_by_role("button", name="Release …").click()
    dialog.get_by_label("Reason").fill("to see")
    again = keyed.router.sends(
        json.dumps({"version": first.id, "reason": "meanwhile"}).encode(),
        "/v1/variants/A/releases",
        Authorization=f"Bearer {KEY}",
        If_Match=f'"{release["id"]}"',
    )
    assert again.status == 200, again.body
    dialog.get_by_role("button", name="Confirm").click()
    expect(dialog).to_contain_text("Somebody was faster")
    dialog.get_by_role("button", name="Cancel").last.click()
    expect(dialog).to_be_hidden()

    confirms(page, "Release …", f"A serves {second.id} instead of {first.id}")
    assert live() == second.id
    expect(page.locator("#versions tr", has_text=second.id)).to_contain_text("live")
    confirms(page, "Roll back …", f"A serves {first.id} again instead of {second.id}")
    assert live() == first.id
    expect(page.locator("#releases > li").first).to_contain_text("A: rollback")
    expect(page.locator("#versions tr", has_text=first.id)).to_contain_text("live")
    until(lambda: keyed.model_a.gets("/metadata").json["version"] == first.id, "the service follows")
    # Now nothing is before it any more.
    page.get_by_role("button", name="Roll back …").click()
    expect(page.locator("#release-trouble")).to_contain_text("Nothing was released to A before")


@pytest.mark.slow
def test_where_nothing_can_be_released_the_page_says_so_before_anybody_tries(
    house: House, page: Page
) -> None:
    opens(page, house, "models")
    expect(page.locator("#release-why")).to_contain_text("started with RUNOFF_OPERATOR_KEY")
    for name in ("Release …", "Roll back …"):
        expect(page.get_by_role("button", name=name)).to_be_disabled()
    expect(page.locator("#may-act-why")).to_contain_text("this router has no keys")
    expect(page.get_by_label("Operator's key", exact=True)).to_be_hidden()


@pytest.mark.slow
def test_drift_is_told_of_each_feature_against_what_the_model_was_trained_on(
    keyed: House, page: Page
) -> None:
    for client in islice(population("7-9 months late", seed=3), 120):
        asks(keyed, client.record)
    opens(page, keyed, "drift")
    expect(page.locator("#drift-summary")).to_contain_text("moved away from training")
    drift = rest(keyed, "/v1/drift?variant=A")
    spread = drift["features"]["PAY_0"]
    expected = psi([*spread["reference"], 0, 0], [*spread["live"], spread["missing"][1], spread["other"]])
    assert page.wait_for_function(PSI_BARS).json_value()["PAY_0"] == pytest.approx(expected)
    expect(page.locator("#psi-table")).to_contain_text("▲ more than chance")
    expect(page.locator("#reliability-summary")).to_contain_text(
        f"Of {drift['labelled']:,} labelled requests"
    )
    page.locator("#reliability-table").locator("..").locator("summary").click()
    counts = [each["count"] for each in drift["calibration"] if each["count"]]
    shown = page.locator("#reliability-table tbody tr td:nth-child(2)").all_inner_texts()
    assert [int(each.replace(",", "")) for each in shown] == counts

    # Of simulated traffic there is none: the page says so, and offers one thing to do.
    page.get_by_text("Simulated", exact=True).click()
    expect(page.locator("#drift-empty")).to_contain_text("A answered 0 requests in this range")
    expect(page.locator("#drift-charts")).to_be_hidden()


def test_the_verdict_is_the_routers_down_to_the_figures_and_says_what_it_rests_on(
    keyed: House, page: Page
) -> None:
    opens(page, keyed, "verdict?traffic=real")
    told = rest(keyed, "/v1/verdict?tag=real")
    expect(page.locator("h1")).to_have_text(told["sentence"])
    expect(page.locator("#verdict-basis")).to_contain_text(
        f"Labelled {told['labelled']:,} of {told['requests']:,} requests of real traffic."
    )
    for check in told["checks"]:
        expect(page.locator(".checks")).to_contain_text(check["seen"])
    [compared] = told["comparisons"]
    points = [point for point in compared["history"] if point["difference"] is not None]
    expect(page.locator("#funnel-0 .scatterlayer")).to_be_visible()
    drawn = page.evaluate(
        "document.querySelector('#funnel-0 .js-plotly-plot').data.map(each => Array.from(each.y))"
    )
    ends = [[point["interval"][end] for point in points] for end in ("upper", "lower")]
    assert drawn[0] == pytest.approx(ends[0])
    assert drawn[1] == pytest.approx(ends[1])
    assert drawn[2] == pytest.approx([point["difference"] for point in points])
    brier = next(row for row in compared["rows"] if row["metric"] == "brier")
    row = page.locator("tr", has_text="Brier score")
    expect(row).to_contain_text(f"{brier['champion']:.4g}")

    # Latencies with their intervals, what scores were worth, and what came, down to the figures.
    p95 = next(row for row in compared["rows"] if row["metric"] == "latency-p95")
    assert page.evaluate(DRAWN, "latency-0") == [
        *(pytest.approx([row[side] for row in latencies(compared)]) for side in ("champion", "challenger")),
    ]
    opens_table(page, "latency-0")
    expect(page.locator("#latency-0-table tr", has_text="p95")).to_contain_text(f"{p95['challenger']:.4g}")
    for number, each in enumerate(told["reliability"]):
        [_, true] = page.evaluate(DRAWN, f"reliable-{number}")
        assert true == pytest.approx([bin_["positives"] / bin_["count"] for bin_ in each["bins"]])
        opens_table(page, f"reliable-{number}")
        shown = page.locator(f"#reliable-{number}-table tbody tr td:nth-child(2)").all_inner_texts()
        assert [int(text) for text in shown] == [bin_["count"] for bin_ in each["bins"]]
    mine = [[cell["requests"][name] for cell in told["traffic"]] for name in ("A", "B")]
    assert page.evaluate(DRAWN, "verdict-traffic")[:2] == mine
    # One on the other, since beside each other they would look like times.
    stacked = "document.querySelector('#verdict-traffic .js-plotly-plot').layout.barmode"
    assert page.evaluate(stacked) == "stack"
    expect(page.locator("#verdict-traffic-summary")).to_contain_text("where 20.0% were to come")

    # Where nothing was asked, there is nothing to judge, and no accuracy is spoken of.
    page.get_by_text("Simulated", exact=True).click()
    expect(page.locator("h1")).to_have_text(rest(keyed, "/v1/verdict?tag=simulation")["sentence"])
    expect(page.locator("#verdict-basis")).to_contain_text("Labelled 0 of 0 requests of simulated traffic.")
    expect(page.locator("#verdict-basis")).to_contain_text("Without outcomes nothing is said of accuracy.")
    expect(page.locator("#verdict .empty")).to_contain_text("Of simulated traffic nothing was recorded")
    expect(page.get_by_role("link", name="Send some on the live page")).to_be_visible()
    expect(page.locator(".js-plotly-plot")).to_have_count(0)


@pytest.mark.slow
def test_the_report_of_a_verdict_is_one_file_that_shows_all_of_it_without_a_network(
    keyed: House, page: Page, tmp_path: Path
) -> None:
    opens(page, keyed, "verdict?traffic=real")
    with page.expect_download() as downloading:
        page.get_by_role("link", name="Export as one HTML file").click()
    file = tmp_path / downloading.value.suggested_filename
    downloading.value.save_as(file)
    assert re.fullmatch(r"verdict-credit-default-[0-9-]{10}\.html", file.name)

    page.context.set_offline(True)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    expect(page.locator("h1")).to_have_text(rest(keyed, "/v1/verdict?tag=real")["sentence"])
    # The funnel, latencies, reliability of both, the traffic.
    expect(page.locator(".js-plotly-plot .scatterlayer")).to_have_count(5)
    expect(page.locator("body")).to_contain_text("Do the probabilities of B mean what they say?")
    # Which of them is less the other is said, since what is better depends on the metric.
    expect(page.get_by_role("columnheader", name="A − B").first).to_be_visible()
    assert [url for url in asked if url.startswith("http")] == []
    with page.expect_download() as picture:
        page.get_by_role("button", name="PNG: How sure is it, as outcomes come in?").click()
    assert picture.value.suggested_filename == "funnel-0.png"
    assert corner(page, Path(picture.value.path())) == [255, 255, 255, 255]


@pytest.mark.slow
def test_a_chart_is_saved_as_a_picture_that_can_be_read_on_any_ground(keyed: House, page: Page) -> None:
    opens(page, keyed, "?theme=dark")
    expect(page.locator("#latency-chart .scatterlayer")).to_be_attached()
    with page.expect_download() as picture:
        page.get_by_role("button", name="PNG: How long does an answer take?").click()
    assert picture.value.suggested_filename == "latency-chart.png"
    # The ground of the dark theme, and nothing shines through.
    assert corner(page, Path(picture.value.path())) == [27, 31, 36, 255]


def corner(page: Page, picture: Path) -> list[int]:
    """Red, green, blue and opacity of a picture's first pixel, as the browser decodes it."""
    text = base64.b64encode(picture.read_bytes()).decode()
    found: list[int] = page.evaluate(PIXEL, f"data:image/png;base64,{text}")
    return found


@pytest.mark.slow
def test_what_the_evidence_has_doubts_of_is_promoted_by_typing_its_name(keyed: House, page: Page) -> None:
    # After those who look at the verdict: with another champion evidence begins anew.
    opens(page, keyed, "experiment")
    types_in(page, KEY)
    page.get_by_role("button", name="Promote …").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("I like it")
    dialog.get_by_role("button", name="Confirm").click()
    expect(dialog).to_contain_text("the evidence has doubts")
    assert rest(keyed, "/v1/experiment")["variants"][0]["role"] == "champion"
    dialog.get_by_label("Override").fill("B")
    dialog.get_by_role("button", name="Confirm").click()
    expect(dialog).to_be_hidden()
    roles = {each["name"]: each["role"] for each in rest(keyed, "/v1/experiment")["variants"]}
    assert roles == {"A": "challenger", "B": "champion"}
    page.get_by_role("button", name="Undo the newest").click()
    expect(dialog).to_be_visible()
    expect(dialog.get_by_label("Override")).to_be_hidden()
    dialog.get_by_label("Reason").fill("as before")
    dialog.get_by_role("button", name="Confirm").click()
    expect(dialog).to_be_hidden()
    roles = {each["name"]: each["role"] for each in rest(keyed, "/v1/experiment")["variants"]}
    assert roles == {"A": "champion", "B": "challenger"}


@pytest.mark.slow
def test_a_canary_is_held_and_the_undo_of_that_resumes_it(keyed: House, page: Page) -> None:
    # After those who look at the verdict: with another split, too, evidence begins anew.
    opens(page, keyed, "experiment")
    types_in(page, KEY)

    before = rest(keyed, "/v1/experiment")
    page.get_by_role("button", name="Switch …").click()
    expect(page.locator("#proposal-trouble")).to_contain_text("Split is in force already")
    switches(page, "Canary", "mode: split → canary", "B 20% → 1%", "a new phase begins")
    expect(page.locator("#experiment-summary")).to_have_text("Canary: A 99%, B 1%")
    assert rest(keyed, "/v1/experiment") == before | {"mode": "canary"}
    waits = "By its gates the canary stays at this step: there are too few answers yet."
    expect(page.locator("#judged")).to_have_text(waits, timeout=30_000)

    def judged() -> tuple[Any, ...]:
        told = rest(keyed, "/v1/experiment/state")["judged"] or {}
        return told.get("says"), told.get("reason")

    # Each of the router's processes judges on its own, now and then.
    until(lambda: judged() == ("hold", "there are too few answers yet"), "the router says it, too")
    confirms(page, "Hold …", "Nothing moves the shares by itself")
    expect(page.locator("#experiment-summary")).to_contain_text("held")
    assert rest(keyed, "/v1/experiment/state")["held"]
    confirms(page, "Undo the newest", "Undo: resume the experiment")
    expect(page.get_by_role("button", name="Hold …")).to_be_visible()
    assert not rest(keyed, "/v1/experiment/state")["held"]
    switches(page, "Split", "mode: canary → split", "B 1% → 20%")
    until(lambda: rest(keyed, "/v1/experiment") == before, "it is a split again")
    # Where the document has no weights the shares in force become those of the split.
    bare = [{name: each[name] for name in ("name", "role", "url")} for each in before["variants"]]
    elsewhere(keyed, mode="bandit", variants=bare)
    expect(page.locator("#experiment-summary")).to_have_text("Bandit: A 50%, B 50%")
    switches(page, "Split", "mode: bandit → split", "variants A.weight: none → 0.5")
    assert {each["weight"] for each in rest(keyed, "/v1/experiment")["variants"]} == {0.5}
    elsewhere(keyed, **before)


@pytest.mark.slow
def test_what_the_router_would_refuse_is_not_offered_and_the_page_says_why(keyed: House, page: Page) -> None:
    # After those who look at the verdict, as the one before.
    opens(page, keyed, "experiment")
    types_in(page, KEY)
    expect(page.get_by_role("button", name="Ramp …")).to_be_enabled()
    expect(page.get_by_role("button", name="Hold …")).to_be_disabled()
    expect(page.locator("#impossible-why")).to_contain_text("in the mode split nothing moves")
    page.get_by_label("Share, %").fill("")
    page.get_by_role("button", name="Ramp …").click()
    expect(page.locator("#proposal-trouble")).to_contain_text("A share is missing")

    before = rest(keyed, "/v1/experiment")
    elsewhere(keyed, mode="shadow")
    expect(page.locator("#experiment-summary")).to_contain_text("Shadow")
    expect(page.get_by_role("button", name="Ramp …")).to_be_disabled()
    expect(page.locator("#impossible-why")).to_contain_text(
        "in the mode shadow the shares are not set by hand"
    )
    elsewhere(keyed, **before)
    expect(page.get_by_role("button", name="Ramp …")).to_be_enabled()


@pytest.mark.slow
def test_a_service_that_is_down_is_named_and_what_the_others_tell_is_shown(keyed: House, page: Page) -> None:
    keyed.services.kill("model_b")
    try:
        opens(page, keyed, "models")
        expect(page.locator("#models-troubles")).to_contain_text("The service of B tells no versions")
        expect(page.locator("#versions")).to_contain_text("gradient-boosted trees")
    finally:
        keyed.services.start_one("model_b")
        keyed.services.wait_ready("model_b")


@pytest.mark.slow
def test_while_the_router_is_away_a_page_shows_what_was_known_and_comes_back(
    keyed: House, page: Page
) -> None:
    opens(page, keyed, "experiment")
    expect(page.locator("#experiment-summary")).to_contain_text("Split")
    keyed.services.kill("router")
    try:
        expect(page.locator("#troubles")).to_contain_text("The router does not answer")
        expect(page.locator("#status")).to_contain_text("Router down")
        expect(page.locator("#experiment-summary")).to_contain_text("Split")
    finally:
        keyed.services.start_one("router")
        keyed.services.wait_ready("router")
    expect(page.locator("#troubles")).to_be_empty(timeout=60_000)
    expect(page.locator("#status")).to_contain_text("Running")


@pytest.mark.slow
def test_where_the_router_asks_for_keys_simulated_traffic_takes_the_operators(
    keyed: House, page: Page
) -> None:
    start = rest(keyed, "/v1/stats")["cursor"]
    opens(page, keyed, "?traffic=simulation")
    expect(page.locator("#send-why")).to_contain_text("takes the operator's key")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_disabled()
    expect(page.get_by_role("button", name="Send 100 sample requests")).to_be_disabled()
    expect(page.locator("#empty")).to_contain_text("takes the operator's key")

    types_in(page, KEY)
    expect(page.locator("#send-why")).to_be_empty()
    expect(page.get_by_role("button", name="Send 100 sample requests")).to_be_enabled()
    page.get_by_role("textbox", name="Requests").fill("10")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#progress-text")).to_have_text("Sent: 10 of 10")
    assert rest(keyed, "/v1/stats")["cursor"] == start + 10

    # What is asked again is what it was: simulated, and by a key.
    page.locator("#grid .ag-row [col-id='variant']").first.click()
    command = page.locator("#curl").inner_text()
    environment = os.environ | {"RUNOFF_KEY": KEY}
    done = subprocess.run(["sh", "-c", command], capture_output=True, env=environment, check=True)
    assert "prediction" in json.loads(done.stdout)
    newest = rest(keyed, "/v1/predictions?last=1")["predictions"][0]
    assert (newest["cursor"], newest["tag"]) == (start + 11, "simulation")


@pytest.mark.slow
def test_while_the_dashboards_own_server_is_away_the_page_says_so_and_comes_back(
    keyed: House, browser: Browser
) -> None:
    # A tab of its own: that its server is away is an error on the console.
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    opens(page, keyed)
    expect(page.locator("#tile-requests")).to_be_visible()
    expect(page.locator("#silence")).to_be_hidden()
    keyed.services.kill("dashboard")
    try:
        expect(page.locator("#silence")).to_contain_text("The dashboard does not answer")
        expect(page.locator("#silence")).to_be_visible()
        expect(page.locator("#tile-requests")).to_be_visible()
    finally:
        keyed.services.start_one("dashboard")
        keyed.services.wait_ready("dashboard")
    expect(page.locator("#silence")).to_be_hidden(timeout=2 * PATIENCE)
    context.close()
