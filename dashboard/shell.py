"""What stands on every page: the bar with status, variants and controls, and the notice of what is wrong.

The address holds the state, `?range=15m&traffic=real&theme=dark`, and never a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import dash_mantine_components as dmc
from dash import ALL, ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update
from dash.development.base_component import Component

from dashboard import pieces
from dashboard.pieces import notice
from dashboard.router_client import RouterClient, RouterDown

# How often the router is asked for what is new, and how seldom one that does not answer; milliseconds.
PERIOD = 2000
MAX_PERIOD = 30_000

TRAFFIC = {"all": "All traffic", "real": "Real", "simulation": "Simulated"}
RANGES = {
    "15m": timedelta(minutes=15),
    "1h": timedelta(hours=1),
    "24h": timedelta(hours=24),
    "all": None,
}


class Page(Protocol):
    """A page of the dashboard, a module."""

    # The last part of its address, and its name.
    PATH: str
    TITLE: str

    def layout(self) -> Component:
        """What stands on it before anything is known."""


@dataclass(frozen=True)
class View:
    """What the reader chose in the bar.

    Attributes:
        tag: of the traffic, None for all of it.
        start: the time from which on records are shown, None for all.
        theme: "light" or "dark".
        narrow: whether the screen is.
    """

    tag: str | None
    start: str | None
    theme: str
    narrow: bool

    @classmethod
    def of(cls, look: dict[str, Any] | None, traffic: str, range_: str) -> View:
        """From what the browser told; `look` is nothing at first."""
        look = look or {"theme": "light", "narrow": False}
        length = RANGES.get(range_)
        start = None
        if length is not None:
            # In steps, so that tabs ask the same.
            now = datetime.now(UTC).replace(microsecond=0)
            start = (now - length - timedelta(seconds=now.second % 10)).isoformat().replace("+00:00", "Z")
        return cls(None if traffic == "all" else traffic, start, look["theme"], look["narrow"])


# What a page listens to, for `View.of`.
VIEW = (Input("look", "data"), Input("traffic", "value"), Input("range", "value"))


def layout(pages: Sequence[Page]) -> dmc.MantineProvider:
    """The frame as it is first sent: the page comes into it, and nothing is known yet."""
    return dmc.MantineProvider(
        id="provider",
        defaultColorScheme="auto",
        theme={"fontFamily": "system-ui, sans-serif", "defaultRadius": "md"},
        children=[
            dcc.Location(id="url", refresh=False),
            dcc.Interval(id="interval", interval=PERIOD),
            # What the browser knows: when it asks and was answered, how it looks, when it changed something.
            *(dcc.Store(id=name) for name in ("tick", "answered", "look", "changed")),
            # The operator's key: of this tab alone, and gone with it.
            dcc.Store(id="operator-key", storage_type="session"),
            html.A("Skip to the content", href="#content", className="skip-link"),
            html.Header(_header(pages), className="top"),
            html.Main(
                id="content",
                className="page",
                tabIndex="-1",
                children=[
                    html.Div(id="troubles", **{"aria-live": "polite"}),  # type: ignore[arg-type]
                    _silence(),
                    html.Div(id="page"),
                ],
            ),
        ],
    )


def _header(pages: Sequence[Page]) -> list[Component]:
    return [
        html.Div(
            className="top-bar",
            children=[
                html.Div(
                    className="brand",
                    children=[html.Strong("Runoff"), html.Span(id="experiment", children="…")],
                ),
                html.Nav(
                    [
                        dmc.Anchor(
                            page.TITLE,
                            id={"type": "nav", "page": page.PATH},
                            href=f"./{page.PATH}",
                            underline="never",
                            className="nav-link",
                        )
                        for page in pages
                    ],
                    className="nav",
                    **{"aria-label": "Pages"},  # type: ignore[arg-type]
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
        html.Div(
            className="top-bar second",
            children=[
                html.Span(id="status", className="status"),
                html.Div(id="variants", className="variants"),
                html.Div(
                    className="controls",
                    children=[
                        html.Span(id="as-of", className="as-of", children="Loading …"),
                        dmc.Switch(id="live", checked=True, label="Live", size="sm"),
                        _choice("range", {name: name for name in RANGES}, "all", "how far back to show"),
                        _choice("traffic", TRAFFIC, "all", "which traffic to show"),
                    ],
                ),
            ],
        ),
    ]


def _choice(name: str, options: dict[str, str], value: str, label: str) -> dmc.SegmentedControl:
    data = [{"value": each, "label": title} for each, title in options.items()]
    return dmc.SegmentedControl(id=name, value=value, data=data, size="xs", **{"aria-label": label})


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


def register(app: Dash, router: RouterClient, pages: Sequence[Page]) -> None:
    """Let the frame live: the address, the page that it names, and what the router says of itself."""
    _know_the_browser(app)
    by_path = {page.PATH: page for page in pages}

    @app.callback(Output("page", "children"), Input("url", "pathname"))
    def show(pathname: str | None) -> Component:
        return by_path.get((pathname or "").rpartition("/")[2], pages[0]).layout()

    @app.callback(
        {
            "answered": Output("answered", "data"),
            "period": Output("interval", "interval"),
            "experiment": Output("experiment", "children"),
            "status": Output("status", "children"),
            "variants": Output("variants", "children"),
            "as_of": Output("as-of", "children"),
            "troubles": Output("troubles", "children"),
        },
        Input("tick", "data"),
        Input("changed", "data"),
        State("as-of", "children"),
        State("interval", "interval"),
    )
    def refresh(tick: Any, _changed: Any, as_of: str, period: int) -> dict[str, Any]:
        try:
            stats = router.stats(None)
        except RouterDown as error:
            period = min(2 * period, MAX_PERIOD)
            known = as_of.startswith("As of")
            return {
                "answered": tick,
                "period": period,
                "experiment": no_update,
                "status": pieces.status(None),
                "variants": no_update,
                "as_of": no_update,
                "troubles": pieces.router_down(router.url, str(error), period / 1000, known=known),
            }
        return {
            "answered": tick,
            "period": PERIOD,
            "experiment": stats["experiment"],
            "status": pieces.status(stats),
            "variants": pieces.variants(stats),
            "as_of": f"As of {stats['as_of'][11:19]} UTC",
            "troubles": pieces.failing(stats),
        }


def _know_the_browser(app: Dash) -> None:
    """What happens in the browser alone: its address, its looks, when it asks, and when nothing comes."""
    app.clientside_callback(
        ClientsideFunction("runoff", "address"),
        Output("url", "search"),
        Output("traffic", "value"),
        Output("range", "value"),
        Output("look", "data"),
        Output("provider", "forceColorScheme"),
        Output({"type": "nav", "page": ALL}, "href"),
        Input("url", "search"),
        Input("url", "pathname"),
        Input("traffic", "value"),
        Input("range", "value"),
        Input("theme-button", "n_clicks"),
        State("look", "data"),
        State({"type": "nav", "page": ALL}, "id"),
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
