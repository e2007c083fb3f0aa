"""What stands on every page: the bar with status, variants and controls, and the notice of what is wrong.

The address holds the state, `?range=15m&traffic=real&theme=dark`, and never a key.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from urllib.parse import parse_qs, urlencode

import dash_mantine_components as dmc
from dash import ALL, ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update, set_props
from dash.development.base_component import Component
from flask import g

from dashboard import pieces
from dashboard.pieces import notice
from dashboard.router_client import RouterClient, RouterDown

log = logging.getLogger(__name__)

# How often the router is asked for what is new, and how seldom one that does not answer; milliseconds.
PERIOD = 2000
MAX_PERIOD = 30_000
# So long a fault is told of: by then each page has asked again.
FAULT_SECONDS = 60.0

TRAFFIC = {"all": "All traffic", "real": "Real", "simulation": "Simulated"}
# What all pages keep in the address.
SHARED = ("traffic", "range", "theme")
CONTROLS = ("range", "traffic")
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
    # Those of CONTROLS that change what it shows.
    HEEDS: Sequence[str]

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


def keep(app: Dash, *names: str) -> None:
    """Let the address hold what is chosen by some controls of a page, so that a link shows it.

    By which names it holds them is known to `KEPT` in assets/runoff.js.
    """
    app.clientside_callback(
        ClientsideFunction("runoff", "keep"),
        Output("url", "search", allow_duplicate=True),
        *(Input(name, "value") for name in names),
        State("url", "search"),
        prevent_initial_call=True,
    )


def kept(search: str | None, name: str) -> str | None:
    """What an address holds by a name."""
    return parse_qs((search or "").lstrip("?")).get(name, [None])[0]


def link(page: str, search: str | None) -> str:
    """The address of a page, with what all pages keep in it."""
    shared = [(name, value) for name in SHARED if (value := kept(search, name))]
    return f"./{page}?{urlencode(shared)}" if shared else f"./{page}"


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
            # When this server failed at something, in seconds since 1970.
            dcc.Store(id="page-failed"),
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
                    html.Div(id="page-fault", **{"aria-live": "polite"}),  # type: ignore[arg-type]
                    _silence(),
                    html.Div(id="page"),
                ],
            ),
        ],
    )


def tell_of(error: Exception) -> None:
    """Say on the page that one of its callbacks failed; what it would have changed stays as it was."""
    log.error("request %s failed", g.request_id, exc_info=error)
    now = datetime.now(UTC)
    told = (
        f"At {now:%H:%M:%S} UTC the dashboard failed at bringing it up to date (request {g.request_id}; its "
        "log says why). What is shown may be old. The page tries again by itself: if this stays, reload it."
    )
    set_props("page-fault", {"children": notice("A part of this page cannot be shown", told)})
    set_props("page-failed", {"data": now.timestamp()})


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


def _choice(name: str, options: dict[str, str], value: str, label: str) -> html.Div:
    """A control, hidden on pages that do not heed it."""
    data = [{"value": each, "label": title} for each, title in options.items()]
    control = dmc.SegmentedControl(id=name, value=value, data=data, size="xs", **{"aria-label": label})
    return html.Div(control, id=f"{name}-choice")


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

    @app.callback(
        Output("page", "children"),
        *(Output(f"{name}-choice", "hidden") for name in CONTROLS),
        Input("url", "pathname"),
    )
    def show(pathname: str | None) -> tuple[Component, *tuple[bool, ...]]:
        page = by_path.get((pathname or "").rpartition("/")[2], pages[0])
        return page.layout(), *(name not in page.HEEDS for name in CONTROLS)

    @app.callback(
        {
            "answered": Output("answered", "data"),
            "period": Output("interval", "interval"),
            "experiment": Output("experiment", "children"),
            "status": Output("status", "children"),
            "variants": Output("variants", "children"),
            "as_of": Output("as-of", "children"),
            "troubles": Output("troubles", "children"),
            "fault": Output("page-fault", "children"),
        },
        Input("tick", "data"),
        Input("changed", "data"),
        State("as-of", "children"),
        State("interval", "interval"),
        State("page-failed", "data"),
    )
    def refresh(tick: Any, _changed: Any, as_of: str, period: int, failed: float | None) -> dict[str, Any]:
        over = failed is not None and datetime.now(UTC).timestamp() - failed > FAULT_SECONDS
        fault: Any = [] if over else no_update
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
                "fault": fault,
            }
        return {
            "answered": tick,
            "period": PERIOD,
            "experiment": stats["experiment"],
            "status": pieces.status(stats),
            "variants": pieces.variants(stats),
            "as_of": f"As of {stats['as_of'][11:19]} UTC",
            "troubles": pieces.failing(stats),
            "fault": fault,
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
