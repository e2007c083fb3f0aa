"""The live page: what the router recorded, as it comes.

Once in two seconds an open and visible tab asks for what is new; the answer adds points to the charts that
stand. At rest it asks for the counts alone.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from dash import Dash, Input, Output, Patch, State, dcc, html, no_update

from dashboard import charts, live_layout, pieces, sending, spreads
from dashboard.charts import Points, Stats
from dashboard.router_client import RouterClient, RouterDown
from dashboard.shell import VIEW, View
from dashboard.simulation import Simulator

PATH, TITLE = "", "Live traffic"
HEEDS = ("range", "traffic")
layout = live_layout.layout

# Records on the charts at first, and how many there may come to be before they are drawn anew.
WINDOW = 1000
MAX_POINTS = 2000
GRID_ROWS = 200
# How long ranges are, in words.
LENGTHS = {"15m": "15 min", "1h": "hour", "24h": "24 h"}

# What is told of the page, by the names in OUTPUTS; what is not told stays as it is.
News = dict[str, Any]

OUTPUTS = {
    "drawn": Output("drawn", "data"),
    "summary": Output("summary", "children"),
    "tiles": Output("tiles", "children"),
    "not_empty": Output("empty", "hidden"),
    "why_empty": Output("empty-reason", "children"),
    "no_charts": Output("charts", "hidden"),
    "charts_class": Output("charts", "className"),
    "requests_chart": Output("requests-chart", "figure"),
    "requests_summary": Output("requests-summary", "children"),
    "no_share": Output("share-card", "hidden"),
    "share_chart": Output("share-chart", "figure"),
    "share_summary": Output("share-summary", "children"),
    "share_table": Output("share-table", "children"),
    "scores_chart": Output("scores-chart", "figure"),
    "scores_summary": Output("scores-summary", "children"),
    "scores_table": Output("scores-table", "children"),
    "latency_chart": Output("latency-chart", "figure"),
    "latency_summary": Output("latency-summary", "children"),
    "latency_table": Output("latency-table", "children"),
    "rate_chart": Output("rate-chart", "figure"),
    "rate_summary": Output("rate-summary", "children"),
    "rate_table": Output("rate-table", "children"),
    "grid": Output("grid", "rowData"),
    "progress": Output("progress", "children"),
    "cannot_send": Output("send", "disabled"),
    "send_why": Output("send-why", "children"),
    "cannot_sample": Output("sample", "disabled"),
    "sample_why": Output("sample-why", "children"),
    "cannot_stop": Output("stop", "disabled"),
}


def register(app: Dash, router: RouterClient, simulator: Simulator) -> None:
    """Let the page live."""
    sending.register(app, router, simulator)
    _keep_up(app, router, simulator)
    _show_one(app, router)


def _keep_up(app: Dash, router: RouterClient, simulator: Simulator) -> None:
    @app.callback(
        OUTPUTS,
        Input("tick", "data"),
        Input("commanded", "data"),
        Input("changed", "data"),
        Input("may-act", "data"),
        *VIEW,
        State("drawn", "data"),
    )
    def refresh(
        _tick: Any,
        _commanded: Any,
        _changed: Any,
        may: bool | None,
        look: News | None,
        traffic: str,
        range_: str,
        drawn: News | None,
    ) -> News:
        run = simulator.progress
        why = sending.NEEDS_KEY if may is False else ""
        view = View.of(look, traffic, range_)
        news: News = dict.fromkeys(OUTPUTS, no_update) | {
            "progress": sending.told(simulator.order, run),
            "cannot_send": run.running or not may,
            "send_why": why,
            "cannot_sample": run.running or not may,
            "sample_why": why,
            "cannot_stop": not run.running,
        }
        try:
            return news | _ask(router, view, range_, drawn)
        except RouterDown:
            # The frame says so; what was known stays, in the theme that is on.
            return news | (_repainted(drawn, view.theme) if drawn else {})


def _ask(router: RouterClient, view: View, range_: str, drawn: News | None) -> News:
    """Everything that may have changed on the page since it was drawn.

    Raises:
        RouterDown: the router cannot be asked.
    """
    stats = router.stats(view.tag, view.start)
    told: News = {
        "summary": pieces.summary(stats, view.tag),
        "tiles": pieces.tiles(stats),
        "why_empty": pieces.why_empty(stats, view.tag, LENGTHS.get(range_, "")),
        "charts_class": "",
        "no_share": not pieces.has_split(stats),
        "share_summary": pieces.share_summary(stats),
        "share_table": pieces.share_table(stats),
    }
    scene = {
        "tag": view.tag,
        "range": range_,
        "since": stats["since"],
        "narrow": view.narrow,
        "variants": [[each["name"], each["role"], each["configured_share"]] for each in stats["variants"]],
        # Other weights, another share: it is drawn anew.
        "weights": [stats["version"], stats["allocation"]],
    }
    new = stats["cursor"] - drawn["cursor"] if drawn and drawn["scene"] == scene else -1
    # What has left the range is taken away by drawing anew, as soon as it is a tenth of what one sees.
    if drawn and 0 <= new < WINDOW and drawn["points"] + new < MAX_POINTS and not _outlived(drawn, view):
        told |= _continued(router, stats, drawn, view.theme)
    else:
        told |= _drawn_anew(router, stats, scene, view)
    points = told["drawn"]["points"]
    told |= {
        "not_empty": points > 0,
        "no_charts": points == 0,
        "requests_summary": pieces.requests_summary(stats, points),
    }
    return told | _spread(router, stats, view, drawn, told["drawn"])


def _outlived(drawn: News, view: View) -> bool:
    """Whether a tenth of what stands on the charts is older than the range."""
    return bool(view.start and drawn["oldest"] and drawn["oldest"] < view.start and drawn["points"] > 0)


def _spread(router: RouterClient, stats: Stats, view: View, before: News | None, now: News) -> News:
    """The charts of how answers are spread, where something new came or they are in another theme."""
    scene, names = now["scene"], [name for name, *_ in now["scene"]["variants"]]
    roles = [role for _, role, _ in scene["variants"]]
    rates = now["rates"]
    told: News = {
        "rate_chart": spreads.rates_figure(rates, names, roles, view.theme, narrow=view.narrow),
        "rate_summary": pieces.rate_summary(rates, names),
        "rate_table": pieces.rate_table(rates, names),
    }
    same = before and all(before[each] == now[each] for each in ("scene", "theme", "spread"))
    if same:
        return told if before and before["rates"] != rates else {}
    found = router.distributions(view.tag, view.start, seen=stats["cursor"])["variants"]
    if [each["name"] for each in found] != names:
        return told
    every = [
        {"name": name, **(each["shadow"] if pieces.is_unseen(stats, variant) else each)}
        for name, each, variant in zip(names, found, stats["variants"], strict=True)
    ]
    return told | {
        "scores_chart": spreads.scores_figure(every, roles, view.theme),
        "scores_summary": pieces.scores_summary(stats),
        "scores_table": pieces.scores_table(every),
        "latency_chart": spreads.latency_figure(every, roles, view.theme),
        "latency_summary": pieces.latency_summary(stats),
        "latency_table": pieces.latency_table(stats),
    }


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


def _drawn_anew(router: RouterClient, stats: Stats, scene: News, view: View) -> News:
    """The charts and the grid from the newest records."""
    variants = stats["variants"]
    it = charts.followed(variants)
    # Those that came since the counts were made are left to the next time.
    found = router.last(WINDOW, view.tag, view.start, seen=stats["cursor"])
    rows = [row for row in found if row["cursor"] <= stats["cursor"]]
    points = _points(it, _counted(rows), scene, Numbers(0, 0, 0))
    split, got = it["share_of"], round((it["share"] or 0) * it["share_of"])
    before = Numbers(stats["requests"] - points.last, split - points.split_last, got - points.followed_last)
    points = _points(it, points.rows, scene, before)
    requests = charts.requests_figure(points, variants, narrow=scene["narrow"])
    share = charts.share_figure(points)
    charts.paint(requests, share, [each["role"] for each in variants], view.theme)
    return {
        "requests_chart": requests,
        "share_chart": share,
        "grid": pieces.grid_rows(rows[-GRID_ROWS:]),
        "drawn": {
            "scene": scene,
            "theme": view.theme,
            "cursor": stats["cursor"],
            "spread": _answered(stats),
            "points": len(rows),
            "oldest": rows[len(rows) // 10]["time"] if rows else None,
            "rates": spreads.rates_of(rows, [each["name"] for each in variants], stats["as_of"]),
            "counted": _came(stats),
            "numbers": [points.last, points.split_last, points.followed_last],
        },
    }


def _continued(router: RouterClient, stats: Stats, drawn: News, theme: str) -> News:
    """The changes to the charts and the grid that stand: what is new, in the colours that are on."""
    scene = drawn["scene"]
    it = charts.followed(stats["variants"])
    # More may have come since the counts were made.
    room = MAX_POINTS - drawn["points"]
    rows = router.since(drawn["cursor"], min(WINDOW, room), scene["tag"], seen=stats["cursor"])
    now = drawn | {
        "cursor": max([stats["cursor"], *(row["cursor"] for row in rows[-1:])]),
        "spread": _answered(stats),
        "rates": _rates(drawn, stats),
        "counted": _came(stats),
    }
    if not rows:
        return {"drawn": now} | _repainted(now, theme)
    now["oldest"] = now["oldest"] or rows[0]["time"]
    points = _points(it, _counted(rows), scene, Numbers(*drawn["numbers"]))
    requests, share = Patch(), Patch()
    charts.tell(requests, share, points, [name for name, *_ in scene["variants"]], narrow=scene["narrow"])
    charts.paint(requests, share, [role for _, role, _ in scene["variants"]], theme)
    return {
        "requests_chart": requests,
        "share_chart": share,
        "grid": pieces.grid_rows(router.last(GRID_ROWS, scene["tag"], seen=now["cursor"])),
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


def _answered(stats: Stats) -> list[int]:
    """What changes with each answer: of shadows some come later than the requests."""
    return [stats["cursor"], *(each["shadow"]["requests"] for each in stats["variants"] if each["shadow"])]


def _came(stats: Stats) -> list[Any]:
    """When the counts were made, and how many requests of each variant they count."""
    return [stats["as_of"], *(each["requests"] for each in stats["variants"])]


def _rates(drawn: News, stats: Stats) -> list[spreads.Rate]:
    since, *before = drawn["counted"]
    now, *counts = _came(stats)
    came = [count - had for count, had in zip(counts, before, strict=True)]
    return spreads.rates_with(drawn["rates"], now, since, came)


def _show_one(app: Dash, router: RouterClient) -> None:
    @app.callback(
        Output("request", "opened"),
        Output("request-told", "children"),
        Input("grid", "selectedRows"),
        prevent_initial_call=True,
    )
    def show(selected: list[News] | None) -> tuple[Any, Any]:
        if not selected:
            return no_update, no_update
        try:
            return True, _told_of(router, router.prediction(selected[0]["id"]), keyed=_asks_for_keys(router))
        except RouterDown as error:
            return True, pieces.notice("This request cannot be shown", f"The router says: {error}.")

    @app.callback(Output("grid", "selectedRows"), Input("request", "opened"), prevent_initial_call=True)
    def shown(opened: bool) -> Any:
        return no_update if opened else []


def _asks_for_keys(router: RouterClient) -> bool:
    """Whether the router asks for keys; raises RouterDown where nobody can tell."""
    try:
        return bool(router.key(None)["needed"])
    except RouterDown as error:
        if error.status is None:
            raise
        return True


def _told_of(router: RouterClient, record: News, *, keyed: bool) -> list[Any]:
    """What was asked and answered, and how to ask it again: as traffic of the same kind."""
    asked = json.dumps(record["features"])
    answered = {
        name: record[name]
        for name in (
            *("prediction", "status", "problem", "variant", "answered_by", "propensity", "latency_ms"),
            *("model", "version", "digest", "experiment", "experiment_version", "allocation", "tag", "time"),
        )
        if record[name] is not None
    }
    aside = [
        (
            each["kind"],
            each["name"],
            "–" if each["prediction"] is None else f"{each['prediction']:.3f}",
            each["problem"] or "",
        )
        for each in record["side_answers"]
    ]
    became = [
        (f"{each['outcome']:g}", pieces.moment(each["time"]), pieces.moment(each["reported"]))
        for each in record["outcomes"]
    ]
    headers = ["'Content-Type: application/json'"]
    if record["tag"]:
        headers.append(f"'X-Traffic-Tag: {record['tag']}'")
    if keyed:
        headers.append('"Authorization: Bearer $RUNOFF_KEY"')
    curl = " ".join(
        [f"curl -s {router.url}/predict", *(f"-H {each}" for each in headers), "-d", shlex.quote(asked)]
    )
    return [
        html.P(record["id"], className="note"),
        html.H3("Asked"),
        html.Pre(json.dumps(record["features"], indent=1), tabIndex="0"),
        html.H3("Answered"),
        html.Pre(json.dumps(answered, indent=1), tabIndex="0"),
        *(
            [html.H3("Others said"), pieces.table(("", "Who", "Probability", "Problem"), aside)]
            if aside
            else []
        ),
        html.H3("What became of it"),
        pieces.table(("Outcome", "Known, UTC", "Reported, UTC"), became)
        if became
        else html.P("Not reported yet.", className="note"),
        html.H3("Ask it again"),
        *([html.P("RUNOFF_KEY is a key that may predict.", className="note")] if keyed else []),
        html.Div(
            [
                html.Pre(curl, id="curl", tabIndex="0"),
                dcc.Clipboard(target_id="curl", title="copy as curl", className="copy"),
            ],
            className="copied",
        ),
    ]
