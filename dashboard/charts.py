"""The charts of the live page, from the router's records and counts; pure functions.

A chart is drawn once, then told what is new, and painted again when the theme changes. A `Patch` takes the
same assignments as a figure, so that `label_end` and `paint` serve both the drawing and the telling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from dash import Patch

from verdict.split import share_interval

# A figure, or a patch to one.
Drawing = Any
Stats = dict[str, Any]

# Okabe & Ito: told apart by everybody. The champion's colour first, then the challengers'; each challenger
# has a hatching and a mark of its own, too.
PALETTE = {
    "light": ("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    "dark": ("#56B4E9", "#E69F00", "#009E73", "#CC79A7"),
}
HATCHES = ("", "/", "x", ".")
MARKS = ("circle", "diamond", "square", "triangle-up")
INK = {"light": "#1c2530", "dark": "#e4e7eb"}
SOFT = {"light": "#55606e", "dark": "#a3adba"}
GRID = {"light": "#e8ebee", "dark": "#2d333b"}

# Bars in view at first, on a wide screen and on a narrow one; the reader may drag back to the rest.
BARS_SHOWN, BARS_SHOWN_NARROW = 150, 50
# A share axis reaches up to that at least.
LEAST_SHARE = 0.05
FONT = "system-ui, sans-serif"

GRAPH_CONFIG: Any = {
    "displaylogo": False,
    # plotly 7 offers to upload a figure unless told not to.
    "showSendToCloud": False,
    # A button beside each title saves it with that, and opaque.
    "modeBarButtonsToRemove": ["toImage", "select2d", "lasso2d", "autoScale2d"],
}


def places(roles: Sequence[str]) -> list[int]:
    """The place of each variant in PALETTE, HATCHES and MARKS: the champion has the first."""
    challengers = 0
    found = []
    for role in roles:
        if role == "champion":
            found.append(0)
        else:
            found.append(1 + challengers % (len(MARKS) - 1))
            challengers += 1
    return found


def followed(variants: Sequence[Stats]) -> Stats:
    """The variant whose share the chart follows: the first challenger, or whichever there is."""
    return next((each for each in variants if each["role"] == "challenger"), variants[0])


@dataclass(frozen=True)
class Points:
    """What records add to the charts.

    A share can be told of requests that were assigned by the weights in force alone: `weights` says by which,
    the version of the experiment and the allocation. Of those there were `split_first` before the records,
    of which the followed variant got `followed_first`; `configured` is the share that it is to get. Of all
    requests there were `first` before the records.
    """

    rows: Sequence[dict[str, Any]]
    first: int
    weights: tuple[int, int]
    split_first: int
    followed_first: int
    followed: str
    configured: float

    @property
    def last(self) -> int:
        """How many requests there are with these."""
        return self.first + len(self.rows)

    @property
    def split(self) -> list[bool]:
        """Whether the followed variant got each of the records that the weights in force assigned.

        Units and batches count once: chance assigned them as a whole.
        """
        return [
            row["variant"] == self.followed
            for row in self.rows
            if row["assigned"] and (row["experiment_version"], row["allocation"]) == self.weights
        ]

    @property
    def split_last(self) -> int:
        """How many units, batches and single requests the weights in force have assigned."""
        return self.split_first + len(self.split)

    @property
    def followed_last(self) -> int:
        """How many of those the followed variant got."""
        return self.followed_first + sum(self.split)

    @property
    def numbers(self) -> list[int]:
        """The number of each request, counted from 1 over the whole record."""
        return list(range(self.first + 1, self.last + 1))

    def bars(self, variant: str) -> dict[str, list[Any]]:
        """The answered requests of a variant: number, probability, and what a pointer is told."""
        chosen = [
            (number, row)
            for number, row in zip(self.numbers, self.rows, strict=True)
            if row["variant"] == variant and row["prediction"] is not None
        ]
        return {
            "x": [number for number, _ in chosen],
            "y": [row["prediction"] for _, row in chosen],
            "customdata": [[row["id"], row["latency_ms"]] for _, row in chosen],
        }

    def failures(self) -> dict[str, list[Any]]:
        """The requests that no model answered."""
        chosen = [
            (number, row)
            for number, row in zip(self.numbers, self.rows, strict=True)
            if row["prediction"] is None
        ]
        return {
            "x": [number for number, _ in chosen],
            "y": [0.0] * len(chosen),
            "customdata": [[row["variant"], row["status"]] for _, row in chosen],
        }

    def share(self) -> dict[str, list[float]]:
        """The followed variant's cumulative share after each request, with its always-valid band."""
        mine = np.cumsum(self.split) + self.followed_first
        numbers = list(range(self.split_first + 1, self.split_last + 1))
        n = np.asarray(numbers, float)
        lower, upper = share_interval(mine, n, self.configured)
        return {
            "x": numbers,
            "share": (mine / n).tolist() if len(n) else [],
            "lower": lower.tolist(),
            "upper": upper.tolist(),
        }


def requests_figure(points: Points, variants: Sequence[Stats], *, narrow: bool) -> go.Figure:
    """A bar for each request: its height is the probability, its colour and hatching the variant."""
    figure = go.Figure()
    for variant, place in zip(variants, places([each["role"] for each in variants]), strict=True):
        figure.add_bar(
            **points.bars(variant["name"]),
            name=f"{variant['name']} {variant['role']}",
            marker={
                "line": {"width": 0},
                "pattern": {
                    "shape": HATCHES[place],
                    "fillmode": "overlay",
                    "fgopacity": 0.4,
                    "size": 5,
                    "solidity": 0.35,
                },
            },
            hovertemplate=(
                f"<b>{variant['name']} %{{y:.3f}}</b><br>request %{{x}}, %{{customdata[1]:.1f}} ms"
                "<br>%{customdata[0]}<extra></extra>"
            ),
        )
    figure.add_scatter(
        **points.failures(),
        name="no answer",
        mode="markers",
        marker={"symbol": "x", "size": 8},
        cliponaxis=False,
        hovertemplate="request %{x}: no answer from %{customdata[0]} (%{customdata[1]})<extra></extra>",
    )
    lay_out(figure)
    figure.update_layout(
        barmode="overlay",
        bargap=0.2,
        margin={"r": 12},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
    )
    figure.update_xaxes(title="request", range=shown_range(points, narrow=narrow), tickformat="d")
    figure.update_yaxes(title="probability", range=[0, 1], tickformat=".1f", dtick=0.2)
    return figure


def share_figure(points: Points) -> go.Figure:
    """The followed variant's share of what the weights in force assigned, in its always-valid band."""
    told = points.share()
    figure = go.Figure()
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    figure.add_scatter(x=told["x"], y=told["upper"], **edge)
    figure.add_scatter(x=told["x"], y=told["lower"], **edge, fill="tonexty")
    figure.add_scatter(
        x=told["x"],
        y=told["share"],
        mode="lines",
        line={"width": 2},
        hovertemplate="after %{x} requests: %{y:.1%}<extra></extra>",
    )
    figure.add_scatter(
        mode="markers+text",
        marker={"symbol": MARKS[1], "size": 9},
        textfont={"size": 12},
        cliponaxis=False,
        hoverinfo="skip",
    )
    figure.add_hline(y=points.configured, line={"width": 1, "dash": "dash"})
    figure.add_annotation(
        text=f"configured {points.configured:.0%}",
        y=points.configured,
        x=1,
        xref="paper",
        xanchor="left",
        xshift=6,
        showarrow=False,
    )
    lay_out(figure)
    figure.update_layout(margin={"t": 16, "r": 108}, showlegend=False)
    figure.update_xaxes(title="requests so far", tickformat="d", rangemode="nonnegative")
    figure.update_yaxes(
        title=f"share of {points.followed}", tickformat=".0%", range=_share_range(points.configured, 0.0)
    )
    label_end(figure, points)
    return figure


def tell(requests: Patch, share: Patch, points: Points, names: Sequence[str], *, narrow: bool) -> None:
    """Add a few more records to the charts that stand.

    Args:
        requests: takes the changes of the request chart.
        share: takes those of the share chart.
        points: the records, and the counts before them.
        names: the variants, in the order in which they were drawn.
        narrow: whether the screen is.
    """
    traces = [points.bars(name) for name in names] + [points.failures()]
    for number, trace in enumerate(traces):
        for axis, values in trace.items():
            requests["data"][number][axis].extend(values)
    requests["layout"]["xaxis"]["range"] = shown_range(points, narrow=narrow)
    told = points.share()
    for number, line in enumerate(("upper", "lower", "share")):
        share["data"][number]["x"].extend(told["x"])
        share["data"][number]["y"].extend(told[line])
    label_end(share, points)


def label_end(share: Drawing, points: Points) -> None:
    """Name the line of the share chart at its end, clear of the name of the configured share."""
    if not points.split_last:
        return
    value = points.followed_last / points.split_last
    above = value >= points.configured
    share["data"][3]["x"] = [points.split_last]
    share["data"][3]["y"] = [value]
    share["data"][3]["text"] = [f" {points.followed} {value:.1%}"]
    share["data"][3]["textposition"] = "top right" if above else "bottom right"
    share["layout"]["annotations"][0]["yanchor"] = "top" if above else "bottom"
    share["layout"]["yaxis"]["range"] = _share_range(points.configured, value)


def _share_range(configured: float, value: float) -> list[float]:
    """Both in view, with room above; a share of 0, too, has an axis."""
    return [0, min(1.02, max(LEAST_SHARE, 2 * configured, 1.25 * value))]


def paint(requests: Drawing, share: Drawing, roles: Sequence[str], theme: str) -> None:
    """Give both charts the colours of a theme.

    Args:
        requests: the request chart, or what takes its changes.
        share: the share chart, likewise.
        roles: of the variants, in the order in which they were drawn.
        theme: "light" or "dark".
    """
    palette, ink, soft, grid = PALETTE[theme], INK[theme], SOFT[theme], GRID[theme]
    for number, place in enumerate(places(roles)):
        requests["data"][number]["marker"]["color"] = palette[place]
        requests["data"][number]["marker"]["pattern"]["fgcolor"] = ink
    requests["data"][len(roles)]["marker"]["color"] = ink
    colour = palette[1] if "challenger" in roles else palette[0]
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    share["data"][1]["fillcolor"] = f"rgba({red},{green},{blue},0.16)"
    share["data"][2]["line"]["color"] = colour
    share["data"][3]["marker"]["color"] = colour
    share["data"][3]["textfont"]["color"] = ink
    share["layout"]["shapes"][0]["line"]["color"] = soft
    share["layout"]["annotations"][0]["font"]["color"] = soft
    for figure in (requests, share):
        figure["layout"]["font"]["color"] = soft
        for axis in ("xaxis", "yaxis"):
            figure["layout"][axis]["gridcolor"] = grid
            figure["layout"][axis]["linecolor"] = grid
    requests["layout"]["legend"]["font"]["color"] = ink


def shown_range(points: Points, *, narrow: bool) -> list[float]:
    """The stretch of requests in view: the newest."""
    shown = BARS_SHOWN_NARROW if narrow else BARS_SHOWN
    return [max(0.5, points.last - shown + 0.5), max(points.last + 0.5, 20.5)]


def lay_out(figure: go.Figure) -> None:
    """What all charts have in common but their colours."""
    figure.update_layout(
        template="none",
        margin={"l": 52, "r": 12, "t": 8, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 12},
        hoverlabel={"font": {"family": FONT}},
        # The reader's zoom outlives an update.
        uirevision="live",
    )
    figure.update_xaxes(title={"standoff": 8}, showgrid=False, zeroline=False, showline=True)
    figure.update_yaxes(title={"standoff": 8}, showgrid=True, zeroline=False)
