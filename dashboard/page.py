"""What stands on the live page: its layout, and the pieces that change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html

from dashboard.charts import GRAPH_CONFIG
from dashboard.simulation import HELD_OUT, KINDS, MAX_CONCURRENCY, MAX_QUERIES, Progress

# How often the router is asked for what is new, milliseconds: at rest, and while a simulation runs.
PERIOD = 2000
BUSY_PERIOD = 1000

TRAFFIC = [
    {"value": "all", "label": "All traffic"},
    {"value": "real", "label": "Real"},
    {"value": "simulation", "label": "Simulated"},
]
TABLE_ROWS = 50


def layout() -> dmc.MantineProvider:
    """The page as it is first sent: everything in its place, and nothing known yet."""
    return dmc.MantineProvider(
        id="provider",
        defaultColorScheme="auto",
        theme={"fontFamily": "system-ui, sans-serif", "primaryColor": "blue", "defaultRadius": "md"},
        children=[
            dcc.Location(id="url", refresh=False),
            dcc.Interval(id="interval", interval=PERIOD),
            # What the browser knows: when to ask, how it looks, and up to where the charts are drawn.
            *(dcc.Store(id=name) for name in ("tick", "theme", "drawn", "commanded")),
            html.A("Skip to the content", href="#content", className="skip-link"),
            html.Header(_header(), className="top"),
            html.Main(_main(), id="content"),
        ],
    )


def _header() -> html.Div:
    return html.Div(
        className="top-bar",
        children=[
            html.Div(
                className="brand", children=[html.Strong("Runoff"), html.Span(id="experiment", children="…")]
            ),
            html.Div(id="variants", className="variants"),
            html.Div(
                className="controls",
                children=[
                    html.Span(id="as-of", className="as-of", children="Loading …"),
                    dmc.Switch(id="live", checked=True, label="Live", size="md"),
                    dmc.SegmentedControl(id="traffic", value="all", data=TRAFFIC, size="sm"),
                    dmc.Button("Theme", id="theme-button", variant="default", size="compact-md"),
                ],
            ),
        ],
    )


def _main() -> html.Div:
    return html.Div(
        className="page",
        children=[
            html.H1(id="summary", className="summary", children="Live traffic"),
            html.Div(id="troubles", **{"aria-live": "polite"}),  # type: ignore[arg-type]
            html.Div(
                className="columns",
                children=[
                    _simulation(),
                    html.Div(
                        className="results",
                        children=[
                            html.Div(
                                id="tiles",
                                className="tiles",
                                children=[dmc.Skeleton(height=112) for _ in range(5)],
                            ),
                            html.Div(id="empty", hidden=True, children=_empty()),
                            html.Div(
                                id="charts",
                                className="loading",
                                children=[
                                    _chart("requests", "Each request and who answered it"),
                                    _chart("share", "Is the traffic split as configured?"),
                                ],
                            ),
                        ],
                    ),
                ],
            ),
        ],
    )


def _simulation() -> dmc.Paper:
    return dmc.Paper(
        withBorder=True,
        p="md",
        className="simulation",
        children=dmc.Stack(
            gap="sm",
            children=[
                html.H2("Simulate traffic"),
                dmc.Select(
                    id="kind",
                    label="Who asks",
                    data=[{"value": kind, "label": _kind_title(kind)} for kind in KINDS],
                    value=HELD_OUT,
                    allowDeselect=False,
                ),
                dmc.NumberInput(
                    id="queries", label="Number of queries", value=100, min=1, max=MAX_QUERIES, step=50
                ),
                dmc.Group(
                    grow=True,
                    children=[
                        dmc.NumberInput(
                            id="concurrency", label="At once", value=4, min=1, max=MAX_CONCURRENCY
                        ),
                        dmc.NumberInput(id="seed", label="Seed", value=1, min=0, max=999_999),
                    ],
                ),
                dmc.Group(
                    grow=True,
                    children=[
                        dmc.Button("Send", id="send"),
                        dmc.Button("Stop", id="stop", variant="default", disabled=True),
                    ],
                ),
                html.Div(id="progress", **{"aria-live": "polite"}),  # type: ignore[arg-type]
                html.P(
                    "Each query goes through the router to a model, tagged as simulated. "
                    "Opening this page sends nothing.",
                    className="note",
                ),
            ],
        ),
    )


def _chart(name: str, title: str) -> dmc.Paper:
    return dmc.Paper(
        withBorder=True,
        p="md",
        mb="md",
        children=[
            html.H2(title),
            html.P(id=f"{name}-summary", className="note", **{"aria-live": "polite"}),  # type: ignore[arg-type]
            dcc.Graph(id=f"{name}-chart", config=GRAPH_CONFIG, figure={}, className="chart"),
            html.Details([html.Summary("View as table"), html.Div(id=f"{name}-table", className="table")]),
        ],
    )


def _empty() -> dmc.Paper:
    return dmc.Paper(
        withBorder=True,
        p="xl",
        className="empty",
        children=[
            html.H2("No requests yet"),
            html.P(id="empty-reason"),
            dmc.Button("Send 100 sample requests", id="sample"),
        ],
    )


def _kind_title(kind: str) -> str:
    if kind == HELD_OUT:
        return "Held-out clients, as they are"
    return f"Clients who pay {kind.replace('-', '–')}"


# The pieces that change.


def variants(stats: dict[str, Any]) -> list[html.Span]:
    """Who is champion, who is challenger, and with which weight."""
    return [
        html.Span(
            f"{each['name']} {each['role']} {each['configured_share']:.0%}",
            className=f"variant {each['role']}",
            title=f"{each['model'] or 'has not answered yet'} {each['version'] or ''}",
        )
        for each in stats["variants"]
    ]


def tiles(stats: dict[str, Any]) -> list[html.Div]:
    """Requests, share, errors, latency, average probability."""
    every = stats["variants"]
    first = next((each for each in every if each["role"] == "champion"), every[0])
    total = stats["requests"]
    failed, refused = (sum(each[what] for each in every) for what in ("failed", "refused"))
    tags = stats["tags"]
    simulated = sum(count for tag, count in tags.items() if tag != "real")
    share = "–" if first["share"] is None else f"{first['share']:.1%}"
    if first["share_interval"] is None:
        band = f"configured {first['configured_share']:.0%}"
    else:
        lower, upper = first["share_interval"]
        band = f"configured {first['configured_share']:.0%}; always-valid {lower:.1%} to {upper:.1%}"
    return [
        _tile("Requests", f"{total:,}", f"on record: {tags.get('real', 0):,} real, {simulated:,} simulated"),
        _tile(f"Share of {first['name']}", share, band),
        _tile(
            "Errors",
            f"{(failed + refused) / total:.1%}" if total else "–",
            f"{failed:,} failed, {refused:,} refused",
        ),
        _tile(
            "Average probability",
            _by_variant(every, lambda each: _figure(each["mean_prediction"], ".3f")),
            "of default, as answered",
        ),
        _tile("Latency, ms", _latency(every), "as the router saw it"),
    ]


def _tile(title: str, value: Any, note: str) -> html.Div:
    name = title.lower().replace(",", "").replace(" ", "-")
    return html.Div(
        className="tile",
        children=[
            html.H2(title),
            html.Div(value, className="value", id=f"tile-{name}"),
            html.Div(note, className="note"),
        ],
    )


def _by_variant(every: Sequence[dict[str, Any]], tell: Any) -> html.Div:
    return html.Div([html.Span([html.Small(each["name"]), tell(each)]) for each in every], className="pair")


def _latency(every: Sequence[dict[str, Any]]) -> html.Table:
    quantiles = ("p50", "p95", "p99")
    return html.Table(
        className="quantiles",
        children=[
            html.Thead(html.Tr([html.Th(""), *(html.Th(name, scope="col") for name in quantiles)])),
            html.Tbody(
                [
                    html.Tr(
                        [
                            html.Th(each["name"], scope="row"),
                            *(html.Td(_figure((each["latency_ms"] or {}).get(q), ".1f")) for q in quantiles),
                        ]
                    )
                    for each in every
                ]
            ),
        ],
    )


def summary(stats: dict[str, Any]) -> str:
    """The page in one sentence."""
    total = stats["requests"]
    if not total:
        return "No requests yet."
    every = stats["variants"]
    first = next((each for each in every if each["role"] == "champion"), every[0])
    failed = sum(each["failed"] for each in every)
    errors = "no errors" if not failed else f"{failed:,} without an answer"
    return f"{total:,} requests, {first['share']:.1%} of them to {first['name']}: {_split(first)}, {errors}."


def share_summary(stats: dict[str, Any]) -> str:
    """What the share chart shows, in one sentence."""
    told = [
        f"{each['name']} got {each['share']:.1%} of the requests, configured {each['configured_share']:.0%}"
        for each in stats["variants"]
        if each["share"] is not None
    ]
    first = stats["variants"][0]
    return f"{'; '.join(told)}: {_split(first)}." if told else "Nothing to split yet."


def requests_summary(stats: dict[str, Any]) -> str:
    """What the request chart shows, in one sentence."""
    told = [
        f"{each['name']} answered {each['answered']:,}, on average with {each['mean_prediction']:.3f}"
        for each in stats["variants"]
        if each["mean_prediction"] is not None
    ]
    return f"{'; '.join(told)}." if told else "No request was answered yet."


def requests_table(rows: Sequence[dict[str, Any]]) -> html.Table:
    """The newest requests, newest first."""
    return _table(
        ("Time (UTC)", "Variant", "Version", "Probability", "ms", "Status", "Traffic"),
        [
            (
                row["time"][11:23],
                row["variant"],
                row["version"] or "–",
                _figure(row["prediction"], ".3f"),
                _figure(row["latency_ms"], ".1f"),
                row["status"],
                row["tag"] or "real",
            )
            for row in list(reversed(rows))[:TABLE_ROWS]
        ],
    )


def share_table(stats: dict[str, Any]) -> html.Table:
    """Requests and shares by variant."""
    return _table(
        ("Variant", "Requests", "Share", "From", "To", "Configured"),
        [
            (
                each["name"],
                f"{each['requests']:,}",
                _figure(each["share"], ".1%"),
                *(_figure(edge, ".1%") for edge in each["share_interval"] or (None, None)),
                f"{each['configured_share']:.0%}",
            )
            for each in stats["variants"]
        ],
    )


def progress(run: Progress) -> list[Any]:
    """How far the simulation is."""
    if not run.total:
        return []
    state = "Sending" if run.running else "Stopped" if run.stopped else "Sent"
    text = f"{state}: {run.done:,} of {run.total:,}"
    if run.failed:
        text += f", {run.failed:,} failed"
    bar = dmc.Progress(
        value=100 * run.done / run.total, animated=run.running, **{"aria-label": "queries sent"}
    )
    problem = [html.P(f"First failure: {run.problem}", className="note")] if run.problem else []
    return [bar, html.P(text, id="progress-text", className="note"), *problem]


def failing(stats: dict[str, Any]) -> list[dmc.Alert]:
    """A notice for each variant whose newest request failed."""
    return [
        dmc.Alert(
            f"{each['failing']}. The others keep answering; {each['url']} is where the router looks for it.",
            title=f"Variant {each['name']} does not answer",
            color="orange",
            mb="md",
        )
        for each in stats["variants"]
        if each["failing"]
    ]


def router_down(url: str, reason: str, seconds: float) -> dmc.Alert:
    """A notice that nothing new can be shown."""
    return dmc.Alert(
        f"{url}: {reason}. What stands below is what was known before; the next try is in {seconds:.0f} s.",
        title="The router does not answer",
        color="orange",
        mb="md",
    )


def _split(variant: dict[str, Any]) -> str:
    if not variant["share_interval"]:
        return "nothing to split yet"
    lower, upper = variant["share_interval"]
    if lower <= variant["configured_share"] <= upper:
        return "split as configured"
    return "▲ not split as configured"


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> html.Table:
    return html.Table(
        [
            html.Thead(html.Tr([html.Th(title, scope="col") for title in head])),
            html.Tbody([html.Tr([html.Td(cell) for cell in row]) for row in rows]),
        ]
    )
