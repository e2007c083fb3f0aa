"""The dashboard's server: `python -m runoff.server dashboard.app:app --port 8050 --workers 1`.

Once in two seconds an open and visible tab asks for what is new; the answer adds points to the charts that
stand. One process only: it keeps the simulation that it runs in memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from dash import ClientsideFunction, Dash, Input, Output, Patch, State, ctx, no_update
from dash.exceptions import DependencyException
from flask import Response, request

from dashboard import charts, page, pieces
from dashboard.charts import Points, Stats
from dashboard.router_client import RouterClient, RouterDown
from dashboard.simulation import Order, Simulator
from runoff import web
from runoff.problems import FieldError, Invalid, NotFound

DEFAULT_ROUTER = "http://127.0.0.1:8000"

# Where Dash's script asks for what changed.
UPDATE = "/_dash-update-component"

# Records on the charts at first, and how many there may come to be before they are drawn anew.
WINDOW = 1000
MAX_POINTS = 2000
GRID_ROWS = 200
# A router that does not answer is asked less and less often; milliseconds.
MAX_PERIOD = 30_000

# What is told of the page, by the names in OUTPUTS; what is not told stays as it is.
News = dict[str, Any]

OUTPUTS = {
    "answered": Output("answered", "data"),
    "drawn": Output("drawn", "data"),
    "period": Output("interval", "interval"),
    "experiment": Output("experiment", "children"),
    "variants": Output("variants", "children"),
    "as_of": Output("as-of", "children"),
    "summary": Output("summary", "children"),
    "troubles": Output("troubles", "children"),
    "tiles": Output("tiles", "children"),
    "not_empty": Output("empty", "hidden"),
    "why_empty": Output("empty-reason", "children"),
    "no_charts": Output("charts", "hidden"),
    "charts_class": Output("charts", "className"),
    "requests_chart": Output("requests-chart", "figure"),
    "requests_summary": Output("requests-summary", "children"),
    "share_chart": Output("share-chart", "figure"),
    "share_summary": Output("share-summary", "children"),
    "share_table": Output("share-table", "children"),
    "grid": Output("grid", "rowData"),
    "progress": Output("progress", "children"),
    "cannot_send": Output("send", "disabled"),
    "cannot_stop": Output("stop", "disabled"),
}


def create_app() -> Dash:
    """Make the dashboard of the router at ROUTER_URL."""
    app = Dash(__name__, title="Runoff", update_title="", assets_folder="assets")
    # Dash takes only a fixed prefix, which would hold in one place. Relative to the page, its addresses hold
    # below any prefix, whether a proxy or a server tells of it or not.
    app.config.unset_read_only(["requests_pathname_prefix"])
    app.config.requests_pathname_prefix = "./"
    app.index_string = app.index_string.replace("<html>", '<html lang="en">')
    app.layout = page.layout
    web.equip(app.server, checks={})
    _refuse_what_no_page_sends(app)
    router = RouterClient(os.environ.get("ROUTER_URL") or DEFAULT_ROUTER)
    simulator = Simulator(router.url)
    _know_the_browser(app)
    _take_commands(app, simulator)
    _keep_up(app, router, simulator)
    return app


def _refuse_what_no_page_sends(app: Dash) -> None:
    """Answer requests that Dash's own script never makes with a problem: Dash itself would fail on them."""

    def check() -> None:
        if request.path != UPDATE or request.method != "POST":
            return
        body = web.json_body()
        if not isinstance(body, dict) or str(body.get("output")) not in app.callback_map:
            detail = "the body names no output of this page"
            raise Invalid(detail, errors=[FieldError("/output", "enum", detail)])
        for name in ("inputs", "state"):
            parts = body.get(name, [])
            if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
                detail = f"{name} must be a list of objects"
                raise Invalid(detail, errors=[FieldError(f"/{name}", "type", detail, parts)])

    def no_such_library(_error: DependencyException) -> Response:
        return web.answer_problem(NotFound(f"{request.path} is not an address of this service"))

    app.server.before_request(check)
    app.server.register_error_handler(DependencyException, no_such_library)


def _know_the_browser(app: Dash) -> None:
    """What happens in the browser alone: its address, its looks, when it asks, and when nothing comes."""
    app.clientside_callback(
        ClientsideFunction("runoff", "address"),
        Output("url", "search"),
        Output("traffic", "value"),
        Output("look", "data"),
        Output("provider", "forceColorScheme"),
        Input("url", "search"),
        Input("traffic", "value"),
        Input("theme-button", "n_clicks"),
        State("look", "data"),
    )
    app.clientside_callback(
        ClientsideFunction("runoff", "tick"),
        Output("tick", "data"),
        Input("interval", "n_intervals"),
        Input("live", "checked"),
        prevent_initial_call=True,
    )
    app.clientside_callback(ClientsideFunction("runoff", "answered"), Input("answered", "data"))
    app.clientside_callback(ClientsideFunction("runoff", "heard"), Input("as-of", "children"))


def _take_commands(app: Dash, simulator: Simulator) -> None:
    @app.callback(
        Output("commanded", "data"),
        Input("send", "n_clicks"),
        Input("stop", "n_clicks"),
        Input("sample", "n_clicks"),
        State("kind", "value"),
        State("queries", "value"),
        State("concurrency", "value"),
        State("seed", "value"),
        prevent_initial_call=True,
    )
    def command(
        send: int | None,
        stop: int | None,
        sample: int | None,
        kind: str,
        queries: Any,
        concurrency: Any,
        seed: Any,
    ) -> list[int | None]:
        usual = Order()
        if ctx.triggered_id == "stop":
            simulator.stop()
        elif ctx.triggered_id == "sample":
            simulator.start(usual)
        else:
            simulator.start(
                Order(
                    kind,
                    _whole(queries, usual.queries),
                    _whole(concurrency, usual.concurrency),
                    _whole(seed, usual.seed),
                )
            )
        return [send, stop, sample]


def _keep_up(app: Dash, router: RouterClient, simulator: Simulator) -> None:
    @app.callback(
        OUTPUTS,
        Input("tick", "data"),
        Input("commanded", "data"),
        Input("look", "data"),
        Input("traffic", "value"),
        State("drawn", "data"),
        State("interval", "interval"),
    )
    def refresh(
        tick: Any, _commanded: Any, look: dict[str, Any] | None, traffic: str, drawn: News | None, period: int
    ) -> News:
        run = simulator.progress
        news: News = dict.fromkeys(OUTPUTS, no_update) | {
            "answered": tick,
            "progress": pieces.progress(run),
            "cannot_send": run.running,
            "cannot_stop": not run.running,
        }
        tag = None if traffic == "all" else traffic
        look = look or {"theme": "light", "narrow": False}
        try:
            return news | _ask(router, tag, look, drawn)
        except RouterDown as error:
            # While a run goes on, the page follows it all the same.
            period = page.PERIOD if run.running else min(2 * period, MAX_PERIOD)
            repainted = _repainted(drawn, look["theme"]) if drawn else {}
            troubles = pieces.router_down(router.url, str(error), period / 1000, known=bool(drawn))
            return news | repainted | {"period": period, "troubles": troubles}


def _ask(router: RouterClient, tag: str | None, look: dict[str, Any], drawn: News | None) -> News:
    """Everything that may have changed on the page since it was drawn.

    Raises:
        RouterDown: the router cannot be asked.
    """
    stats = router.stats(tag)
    told: News = {
        "period": page.PERIOD,
        "experiment": stats["experiment"],
        "variants": pieces.variants(stats),
        "as_of": f"As of {stats['as_of'][11:19]} UTC",
        "summary": pieces.summary(stats, tag),
        "troubles": pieces.failing(stats),
        "tiles": pieces.tiles(stats),
        "not_empty": stats["requests"] > 0,
        "why_empty": pieces.why_empty(stats, tag),
        "no_charts": stats["requests"] == 0,
        "charts_class": "",
        "requests_summary": pieces.requests_summary(stats),
        "share_summary": pieces.share_summary(stats),
        "share_table": pieces.share_table(stats),
    }
    scene = {
        "tag": tag,
        "narrow": look["narrow"],
        "variants": [[each["name"], each["role"], each["configured_share"]] for each in stats["variants"]],
        # Other weights, another share: it is drawn anew.
        "weights": [stats["version"], stats["allocation"]],
    }
    new = stats["cursor"] - drawn["cursor"] if drawn and drawn["scene"] == scene else -1
    if drawn and 0 <= new <= WINDOW and drawn["points"] + new <= MAX_POINTS:
        return told | _continued(router, stats, drawn, look["theme"])
    return told | _drawn_anew(router, stats, scene, look["theme"])


class Numbers(NamedTuple):
    """Requests before some: all, those that the weights in force assigned, those of the variant."""

    all: int
    split: int
    followed: int


def _counted(rows: Sequence[News]) -> list[News]:
    """The records that count: those that were forced, or asked during a pause, do not."""
    return [row for row in rows if row["propensity"] is not None]


def _points(it: Stats, rows: Sequence[News], scene: News, before: Numbers) -> Points:
    version, allocation = scene["weights"]
    return Points(
        rows,
        before.all,
        (version, allocation),
        before.split,
        before.followed,
        it["name"],
        it["configured_share"],
    )


def _drawn_anew(router: RouterClient, stats: Stats, scene: News, theme: str) -> News:
    """The charts and the grid from the newest records."""
    variants = stats["variants"]
    it = charts.followed(variants)
    # Those that came since the counts were made are left to the next time.
    rows = [row for row in router.last(WINDOW, scene["tag"]) if row["cursor"] <= stats["cursor"]]
    points = _points(it, _counted(rows), scene, Numbers(0, 0, 0))
    split, got = it["share_of"], round((it["share"] or 0) * it["share_of"])
    before = Numbers(stats["requests"] - points.last, split - points.split_last, got - points.followed_last)
    points = _points(it, points.rows, scene, before)
    requests = charts.requests_figure(points, variants, narrow=scene["narrow"])
    share = charts.share_figure(points)
    charts.paint(requests, share, [each["role"] for each in variants], theme)
    return {
        "requests_chart": requests,
        "share_chart": share,
        "grid": pieces.grid_rows(rows[-GRID_ROWS:]),
        "drawn": {
            "scene": scene,
            "theme": theme,
            "cursor": stats["cursor"],
            "points": len(rows),
            "numbers": [points.last, points.split_last, points.followed_last],
        },
    }


def _continued(router: RouterClient, stats: Stats, drawn: News, theme: str) -> News:
    """The changes to the charts and the grid that stand: what is new, in the colours that are on."""
    scene = drawn["scene"]
    it = charts.followed(stats["variants"])
    rows = router.since(drawn["cursor"], WINDOW, scene["tag"])
    now = drawn | {"cursor": max([stats["cursor"], *(row["cursor"] for row in rows[-1:])])}
    if not rows:
        return {"drawn": now} | _repainted(now, theme)
    points = _points(it, _counted(rows), scene, Numbers(*drawn["numbers"]))
    requests, share = Patch(), Patch()
    charts.tell(requests, share, points, [name for name, *_ in scene["variants"]], narrow=scene["narrow"])
    charts.paint(requests, share, [role for _, role, _ in scene["variants"]], theme)
    return {
        "requests_chart": requests,
        "share_chart": share,
        "grid": pieces.grid_rows(router.last(GRID_ROWS, scene["tag"])),
        "drawn": now
        | {
            "theme": theme,
            "points": drawn["points"] + len(rows),
            "numbers": [points.last, points.split_last, points.followed_last],
        },
    }


def _repainted(drawn: News, theme: str) -> News:
    """The charts that stand, in another theme: nothing, if they are in it already."""
    if drawn["theme"] == theme:
        return {}
    requests, share = Patch(), Patch()
    charts.paint(requests, share, [role for _, role, _ in drawn["scene"]["variants"]], theme)
    return {"requests_chart": requests, "share_chart": share, "drawn": drawn | {"theme": theme}}


def _whole(value: Any, usual: int) -> int:
    """What an input field holds: a number, or nothing or a piece of one while somebody types."""
    return int(value) if isinstance(value, int | float) else usual


app = create_app()
