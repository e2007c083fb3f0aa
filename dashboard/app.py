"""The dashboard's server: `gunicorn --workers 1 dashboard.app:app`.

Once in two seconds an open and visible tab asks for what is new; the answer adds points to the charts that
stand. One process only: it keeps the simulation that it runs in memory.
"""

from __future__ import annotations

import os
from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, Patch, State, ctx, no_update

from dashboard import charts, page
from dashboard.charts import Points
from dashboard.router_client import RouterClient, RouterDown
from dashboard.simulation import Order, Simulator
from runoff import web

DEFAULT_ROUTER = "http://127.0.0.1:8000"

# Records on the charts at first, and how many there may come to be before they are drawn anew.
WINDOW = 500
MAX_POINTS = 2000
# A router that does not answer is asked less and less often.
MAX_PERIOD = 30_000

Changes = dict[str, Any]


def create_app() -> Dash:
    """Make the dashboard of the router at ROUTER_URL."""
    app = Dash(__name__, title="Runoff", update_title="", assets_folder="assets")
    app.index_string = app.index_string.replace("<html>", '<html lang="en">')
    app.layout = page.layout
    web.equip(app.server, checks={})
    router = RouterClient(os.environ.get("ROUTER_URL") or DEFAULT_ROUTER)
    simulator = Simulator(router.url)
    _know_the_browser(app)
    _take_commands(app, simulator)
    _keep_up(app, router, simulator)
    return app


def _know_the_browser(app: Dash) -> None:
    """What happens in the browser alone: what is in the address, the theme, and whether a tab is seen."""
    app.clientside_callback(
        ClientsideFunction("runoff", "address"),
        Output("url", "search"),
        Output("traffic", "value"),
        Output("theme", "data"),
        Output("provider", "forceColorScheme"),
        Input("url", "search"),
        Input("traffic", "value"),
        Input("theme-button", "n_clicks"),
        State("theme", "data"),
    )
    app.clientside_callback(
        ClientsideFunction("runoff", "tick"),
        Output("tick", "data"),
        Input("interval", "n_intervals"),
        Input("live", "checked"),
        prevent_initial_call=True,
    )


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
        if ctx.triggered_id == "stop":
            simulator.stop()
        elif ctx.triggered_id == "sample":
            simulator.start(Order())
        else:
            simulator.start(Order(kind, _whole(queries, 100), _whole(concurrency, 4), _whole(seed, 1)))
        return [send, stop, sample]


def _keep_up(app: Dash, router: RouterClient, simulator: Simulator) -> None:
    outputs = {
        "drawn": Output("drawn", "data"),
        "period": Output("interval", "interval"),
        "experiment": Output("experiment", "children"),
        "variants": Output("variants", "children"),
        "as_of": Output("as-of", "children"),
        "as_of_class": Output("as-of", "className"),
        "summary": Output("summary", "children"),
        "troubles": Output("troubles", "children"),
        "tiles": Output("tiles", "children"),
        "empty": Output("empty", "hidden"),
        "empty_reason": Output("empty-reason", "children"),
        "charts": Output("charts", "hidden"),
        "charts_class": Output("charts", "className"),
        "requests_chart": Output("requests-chart", "figure"),
        "requests_summary": Output("requests-summary", "children"),
        "requests_table": Output("requests-table", "children"),
        "share_chart": Output("share-chart", "figure"),
        "share_summary": Output("share-summary", "children"),
        "share_table": Output("share-table", "children"),
        "progress": Output("progress", "children"),
        "send_off": Output("send", "disabled"),
        "stop_off": Output("stop", "disabled"),
    }

    @app.callback(
        outputs,
        Input("tick", "data"),
        Input("commanded", "data"),
        Input("theme", "data"),
        Input("traffic", "value"),
        State("drawn", "data"),
        State("interval", "interval"),
    )
    def refresh(
        _tick: Any, _commanded: Any, theme: str | None, traffic: str, drawn: Changes | None, period: int
    ) -> Changes:
        run = simulator.progress
        told: Changes = dict.fromkeys(outputs, no_update) | {
            "progress": page.progress(run),
            "send_off": run.running,
            "stop_off": not run.running,
        }
        tag = None if traffic == "all" else traffic
        try:
            return told | _news(router, tag, theme or "light", drawn, running=run.running)
        except RouterDown as error:
            longer = min(2 * period, MAX_PERIOD)
            return told | {
                "period": longer,
                "as_of_class": "as-of stale",
                "troubles": page.router_down(router.url, str(error), longer / 1000),
            }


def _news(
    router: RouterClient, tag: str | None, theme: str, drawn: Changes | None, *, running: bool
) -> Changes:
    """Everything that may have changed on the page since it was drawn.

    Raises:
        RouterDown: the router cannot be asked.
    """
    stats = router.stats(tag)
    challenger = next((each for each in stats["variants"] if each["role"] == "challenger"), None)
    told: Changes = {
        "period": page.BUSY_PERIOD if running else page.PERIOD,
        "experiment": stats["experiment"],
        "variants": page.variants(stats),
        "as_of": f"As of {stats['as_of'][11:19]} UTC",
        "as_of_class": "as-of",
        "summary": page.summary(stats),
        "troubles": page.failing(stats),
        "tiles": page.tiles(stats),
        "empty": stats["requests"] > 0,
        "empty_reason": _why_empty(tag, sum(stats["tags"].values())),
        "charts": stats["requests"] == 0,
        "charts_class": "",
        "requests_summary": page.requests_summary(stats),
        "share_summary": page.share_summary(stats),
        "share_table": page.share_table(stats),
    }
    looks = {"tag": tag, "theme": theme}
    behind = stats["cursor"] - drawn["cursor"] if drawn else 0
    if drawn and drawn["looks"] == looks and 0 <= behind <= WINDOW and drawn["points"] + behind <= MAX_POINTS:
        rows = router.since(drawn["cursor"], WINDOW, tag)
        points = Points(rows, drawn["n"], drawn["k"], drawn["challenger"], drawn["configured"])
        if rows:
            told |= _added(points, stats) | {
                "requests_table": page.requests_table(router.last(page.TABLE_ROWS, tag))
            }
        on_charts = drawn["points"] + len(rows)
    else:
        rows = [row for row in router.last(WINDOW, tag) if row["cursor"] <= stats["cursor"]]
        name = challenger["name"] if challenger else None
        mine = sum(row["variant"] == name for row in rows)
        points = Points(
            rows,
            stats["requests"] - len(rows),
            challenger["requests"] - mine if challenger else 0,
            name,
            challenger["configured_share"] if challenger else 0.0,
        )
        told |= {
            "requests_chart": charts.requests_figure(points, stats["variants"], theme),
            "share_chart": charts.share_figure(points, theme),
            "requests_table": page.requests_table(rows),
        }
        on_charts = len(rows)
    return told | {
        "drawn": {
            "looks": looks,
            "cursor": rows[-1]["cursor"] if rows else (drawn or stats)["cursor"],
            "n": points.first + len(rows),
            "k": points.challenger_first + sum(row["variant"] == points.challenger for row in rows),
            "points": on_charts,
            "challenger": points.challenger,
            "configured": points.configured,
        }
    }


def _added(points: Points, stats: Changes) -> Changes:
    """The changes that a few more records make to the charts that stand."""
    requests, share = Patch(), Patch()
    traces = [points.bars(variant["name"]) for variant in stats["variants"]] + [points.failures()]
    for number, trace in enumerate(traces):
        for axis, values in trace.items():
            requests["data"][number][axis].extend(values)
    requests["layout"]["xaxis"]["range"] = charts.shown_range(points)
    told = points.share()
    for number, edge in enumerate(("upper", "lower", "share")):
        share["data"][number]["x"].extend(told["x"])
        share["data"][number]["y"].extend(told[edge])
    return {"requests_chart": requests, "share_chart": share}


def _why_empty(tag: str | None, on_record: int) -> str:
    if on_record:
        kind = "real" if tag == "real" else "simulated"
        return f"The router has {on_record:,} requests on record, none of them of {kind} traffic."
    return "The router has nothing on record. Send some traffic, and it will show here."


def _whole(value: Any, default: int) -> int:
    """What an input field holds: a number, or nothing or a piece of one while somebody types."""
    return int(value) if isinstance(value, int | float) else default


app = create_app().server
