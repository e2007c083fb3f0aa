"""What stands on the live page: its layout, before anything is known."""

from __future__ import annotations

from typing import Any

import dash_ag_grid as dag
import dash_mantine_components as dmc
from dash import dcc, html

from dashboard import acting, pieces, sending
from dashboard.pieces import chart
from dashboard.simulation import Wish

# The grid takes its colours from the style sheet, and so follows the theme by itself.
GRID_THEME = (
    "themeQuartz.withParams({backgroundColor: 'var(--surface)', foregroundColor: 'var(--ink)', "
    "headerBackgroundColor: 'var(--surface)', headerTextColor: 'var(--soft)', borderColor: 'var(--line)', "
    "accentColor: 'var(--focus)', fontFamily: 'inherit', fontSize: 13, headerFontSize: 13, "
    "headerFontWeight: 500, spacing: 5, wrapperBorder: false, wrapperBorderRadius: 0})"
)


def layout() -> html.Div:
    """The page as it is first shown: everything in its place, and nothing known yet."""
    return html.Div(
        [
            # Up to where it is drawn, and when somebody sent something.
            dcc.Store(id="drawn"),
            dcc.Store(id="commanded"),
            html.H1(id="summary", children="Live traffic"),
            html.Div(id="tiles", className="tiles", children=[dmc.Skeleton(height=124) for _ in range(5)]),
            html.Div(
                className="columns",
                children=[
                    html.Div([sending.card(Wish()), acting.panel()], className="stack aside following"),
                    _results(),
                ],
            ),
            _one_request(),
        ]
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
                    chart(
                        "requests",
                        "Each request, and who answered it",
                        html.A("View as table", href="#log", className="more"),
                    ),
                    chart("share", "Is the traffic split as configured?"),
                    html.Div(
                        [
                            chart("scores", "Do the variants give similar answers?", height=240),
                            chart("latency", "How long does an answer take?", height=240),
                        ],
                        className="pair",
                    ),
                    chart("rate", "How busy is it?", height=200),
                    _log(),
                ],
            ),
        ],
    )


def _log() -> html.Section:
    return html.Section(
        id="log",
        className="card",
        children=[
            html.H2("The last 200 requests"),
            html.P(
                "Newest first. A row opens what was asked and answered (with the keyboard: Space).",
                className="note",
            ),
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
                    "rowSelection": {"mode": "singleRow", "checkboxes": False, "enableClickSelection": True},
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
    action = dmc.Button("Send 100 sample requests", id="sample", className="primary", disabled=True)
    reason = [html.Span(id="empty-reason"), " ", html.Span(id="sample-why")]
    return pieces.empty("Nothing to show", reason, action)


def _one_request() -> dmc.Modal:
    return dmc.Modal(
        id="request",
        title="One request",
        size="lg",
        closeButtonProps={"aria-label": "Close"},
        transitionProps={"duration": 0},
        children=html.Div(id="request-told"),
    )
