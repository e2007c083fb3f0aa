"""What stands on the live page: its layout, before anything is known."""

from __future__ import annotations

from typing import Any

import dash_ag_grid as dag
import dash_mantine_components as dmc
from dash import dcc, html

from dashboard.charts import GRAPH_CONFIG
from dashboard.pieces import kind_title, notice
from dashboard.simulation import KINDS, MAX_CONCURRENCY, MAX_QUERIES, MAX_SEED, Order

# How often the router is asked for what is new, milliseconds.
PERIOD = 2000

TRAFFIC = [
    {"value": "all", "label": "All traffic"},
    {"value": "real", "label": "Real"},
    {"value": "simulation", "label": "Simulated"},
]

# The grid takes its colours from the style sheet, and so follows the theme by itself.
GRID_THEME = (
    "themeQuartz.withParams({backgroundColor: 'var(--surface)', foregroundColor: 'var(--ink)', "
    "headerBackgroundColor: 'var(--surface)', headerTextColor: 'var(--soft)', borderColor: 'var(--line)', "
    "accentColor: 'var(--focus)', fontFamily: 'inherit', fontSize: 13, headerFontSize: 13, "
    "headerFontWeight: 500, spacing: 5, wrapperBorder: false, wrapperBorderRadius: 0})"
)


def layout() -> dmc.MantineProvider:
    """The page as it is first sent: everything in its place, and nothing known yet."""
    order = Order()
    return dmc.MantineProvider(
        id="provider",
        defaultColorScheme="auto",
        theme={"fontFamily": "system-ui, sans-serif", "defaultRadius": "md"},
        children=[
            dcc.Location(id="url", refresh=False),
            dcc.Interval(id="interval", interval=PERIOD),
            # What the browser knows: when it asks and was answered, how it looks, up to where it is drawn.
            *(dcc.Store(id=name) for name in ("tick", "answered", "look", "drawn", "commanded")),
            html.A("Skip to the content", href="#content", className="skip-link"),
            html.Header(_header(), className="top"),
            html.Main(
                id="content",
                className="page",
                children=[
                    html.H1(id="summary", children="Live traffic"),
                    html.Div(id="troubles", **{"aria-live": "polite"}),  # type: ignore[arg-type]
                    _silence(),
                    html.Div(
                        id="tiles", className="tiles", children=[dmc.Skeleton(height=124) for _ in range(5)]
                    ),
                    html.Div(className="columns", children=[_simulation(order), _results()]),
                ],
            ),
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
                    dmc.Switch(id="live", checked=True, label="Live", size="sm"),
                    dmc.SegmentedControl(
                        id="traffic",
                        value="all",
                        data=TRAFFIC,
                        size="sm",
                        **{"aria-label": "which traffic to show"},
                    ),
                    dmc.Button(
                        # The style sheet shows the one that is not on.
                        [
                            html.Span("Dark theme", className="when-light"),
                            html.Span("Light theme", className="when-dark"),
                        ],
                        id="theme-button",
                        variant="default",
                        size="compact-md",
                        fz="sm",
                        fw=500,
                    ),
                ],
            ),
        ],
    )


def _silence() -> html.Div:
    """Shown by the browser itself when this very server does not answer."""
    return html.Div(
        id="silence",
        hidden=True,
        role="alert",
        children=notice(
            "The dashboard does not answer",
            "Its server may have stopped. What stands below is what was known before; "
            "the page asks again by itself.",
        ),
    )


def _results() -> html.Div:
    return html.Div(
        className="results",
        children=[
            html.Div(id="empty", hidden=True, children=_empty()),
            html.Div(
                id="charts",
                className="loading",
                children=[
                    _chart(
                        "requests",
                        "Each request, and who answered it",
                        html.A("View as table", href="#log", className="more"),
                    ),
                    _chart(
                        "share",
                        "Is the traffic split as configured?",
                        html.Details([html.Summary("View as table"), html.Div(id="share-table")]),
                    ),
                    _log(),
                ],
            ),
        ],
    )


def _simulation(order: Order) -> html.Section:
    return html.Section(
        className="card simulation",
        **{"aria-label": "Simulation"},  # type: ignore[arg-type]
        children=dmc.Stack(
            gap="sm",
            children=[
                html.H2("Simulate traffic"),
                dmc.Select(
                    id="kind",
                    label="Who asks",
                    data=[{"value": kind, "label": kind_title(kind)} for kind in KINDS],
                    value=order.kind,
                    allowDeselect=False,
                ),
                _number(
                    "queries", f"Queries, up to {MAX_QUERIES:,}", order.queries, (1, MAX_QUERIES), step=50
                ),
                dmc.Group(
                    grow=True,
                    gap="sm",
                    children=[
                        _number("concurrency", "At once", order.concurrency, (1, MAX_CONCURRENCY)),
                        _number("seed", "Seed", order.seed, (0, MAX_SEED)),
                    ],
                ),
                dmc.Group(
                    grow=True,
                    gap="sm",
                    mt=4,
                    children=[
                        dmc.Button("Send", id="send", className="primary"),
                        dmc.Button("Stop", id="stop", variant="default", disabled=True),
                    ],
                ),
                html.Div(id="progress", **{"aria-live": "polite"}),  # type: ignore[arg-type]
                html.P(
                    "Each query goes through the router to a model, and is tagged as simulated. "
                    "Opening this page sends nothing.",
                    className="note",
                ),
            ],
        ),
    )


def _number(name: str, label: str, value: int, bounds: tuple[int, int], step: int = 1) -> dmc.NumberInput:
    least, most = bounds
    return dmc.NumberInput(
        id=name,
        label=label,
        value=value,
        min=least,
        max=most,
        step=step,
        allowDecimal=False,
        hideControls=True,
    )


def _chart(name: str, title: str, table: Any) -> html.Section:
    return html.Section(
        className="card",
        children=[
            html.H2(title),
            html.P(id=f"{name}-summary", className="note"),
            dcc.Graph(
                id=f"{name}-chart",
                config=GRAPH_CONFIG,
                figure={},
                responsive=True,
                className="chart",
                style={"height": 280},
            ),
            table,
        ],
    )


def _log() -> html.Section:
    return html.Section(
        id="log",
        className="card",
        children=[
            html.H2("The last 200 requests"),
            html.P("Newest first.", className="note"),
            dag.AgGrid(
                id="grid",
                columnDefs=_columns(),
                rowData=[],
                getRowId="params.data.id",
                defaultColDef={"sortable": True, "resizable": True, "suppressMovable": True, "flex": 1},
                dashGridOptions={
                    "theme": {"function": GRID_THEME},
                    "animateRows": False,
                    "enableCellTextSelection": True,
                },
                style={"height": 360},
            ),
        ],
    )


def _columns() -> list[dict[str, Any]]:
    def number(form: str) -> dict[str, Any]:
        shown = {"function": f"params.value == null ? '–' : d3.format('{form}')(params.value)"}
        return {"type": "rightAligned", "valueFormatter": shown}

    text = {"valueFormatter": {"function": "params.value == null ? '–' : params.value"}}
    return [
        {
            "field": "time",
            "headerName": "Time, UTC",
            "minWidth": 118,
            "valueFormatter": {"function": "params.value.slice(11, 23)"},
        },
        {"field": "variant", "headerName": "Variant", "minWidth": 76},
        {"field": "prediction", "headerName": "Probability", "minWidth": 94, **number(".3f")},
        {"field": "latency_ms", "headerName": "Latency, ms", "minWidth": 102, **number(".1f")},
        {"field": "status", "headerName": "Status", "minWidth": 70},
        {"field": "tag", "headerName": "Traffic", "minWidth": 92},
        {"field": "id", "headerName": "Request", "minWidth": 120, "tooltipField": "id"},
        {"field": "version", "headerName": "Version", "minWidth": 120, "tooltipField": "version", **text},
        {"field": "problem", "headerName": "Problem", "minWidth": 110, "tooltipField": "problem", **text},
    ]


def _empty() -> html.Section:
    return html.Section(
        className="card empty",
        children=[
            html.H2("No requests yet"),
            html.P(id="empty-reason"),
            dmc.Button("Send 100 sample requests", id="sample", className="primary"),
        ],
    )
