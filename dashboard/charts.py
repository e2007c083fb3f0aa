"""The charts of the live page, from the router's records and counts; pure functions.

A chart is drawn once, and then told what is new: `requests_figure` and `share_figure` draw, `Points` says
which points a few more records add to each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from verdict.split import share_interval

# Okabe & Ito: told apart by everybody. The challenger's bars are hatched, too, and its line is dashed.
COLOURS = {
    "light": {
        "champion": "#0072B2",
        "challenger": "#D55E00",
        "ink": "#1f2937",
        "grid": "#e5e7eb",
        "soft": "#6b7280",
    },
    "dark": {
        "champion": "#56B4E9",
        "challenger": "#E69F00",
        "ink": "#e5e7eb",
        "grid": "#374151",
        "soft": "#9ca3af",
    },
}
BAND = {"light": "rgba(213,94,0,0.15)", "dark": "rgba(230,159,0,0.18)"}
HATCH = {"champion": "", "challenger": "/"}

# What is on screen at first; the reader may drag back to the rest.
BARS_SHOWN = 150
HEIGHT = 300
FONT = "system-ui, sans-serif"

GRAPH_CONFIG: Any = {
    "displaylogo": False,
    # plotly 7 offers to upload a figure unless told not to.
    "showSendToCloud": False,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
    "responsive": True,
}


@dataclass(frozen=True)
class Points:
    """What records add to the charts.

    `first` is the number of requests before them, and `challenger_first` how many of those the challenger
    got; `configured` is the share that it is to get.
    """

    rows: Sequence[dict[str, Any]]
    first: int
    challenger_first: int
    challenger: str | None
    configured: float

    @property
    def numbers(self) -> list[int]:
        """The number of each request, counted from 1 over the whole record."""
        return list(range(self.first + 1, self.first + 1 + len(self.rows)))

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
        """The challenger's cumulative share after each request, with its always-valid band."""
        mine = np.cumsum([row["variant"] == self.challenger for row in self.rows]) + self.challenger_first
        n = np.asarray(self.numbers, float)
        lower, upper = share_interval(mine, n, self.configured)
        return {
            "x": self.numbers,
            "share": (mine / n).tolist() if len(n) else [],
            "lower": lower.tolist(),
            "upper": upper.tolist(),
        }


def requests_figure(points: Points, variants: Sequence[dict[str, Any]], theme: str) -> go.Figure:
    """A bar for each request: its height is the probability, its colour and hatching the variant."""
    colours = COLOURS[theme]
    figure = go.Figure()
    for variant in variants:
        role = variant["role"]
        figure.add_bar(
            **points.bars(variant["name"]),
            name=f"{variant['name']} ({role})",
            marker={
                "color": colours[role],
                "line": {"width": 0},
                "pattern": {"shape": HATCH[role], "fgcolor": colours["ink"], "fgopacity": 0.35, "size": 5},
            },
            hovertemplate=(
                f"{variant['name']}: %{{y:.3f}}<br>request %{{x}}, %{{customdata[1]:.1f}} ms"
                "<br>%{customdata[0]}<extra></extra>"
            ),
        )
    figure.add_scatter(
        **points.failures(),
        name="no answer",
        mode="markers",
        marker={"symbol": "x", "size": 8, "color": colours["ink"]},
        hovertemplate="request %{x}: no answer from %{customdata[0]} (%{customdata[1]})<extra></extra>",
    )
    _style(figure, theme)
    figure.update_layout(barmode="overlay", bargap=0.15)
    figure.update_xaxes(title="request", range=shown_range(points), tickformat="d")
    figure.update_yaxes(title="probability of default", range=[0, 1])
    return figure


def share_figure(points: Points, theme: str) -> go.Figure:
    """The challenger's share of all requests so far, in its always-valid band, and the configured share."""
    colours, told = COLOURS[theme], points.share()
    figure = go.Figure()
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(x=told["x"], y=told["upper"], **edge)
    figure.add_scatter(
        x=told["x"],
        y=told["lower"],
        **edge | {"showlegend": True},
        fill="tonexty",
        fillcolor=BAND[theme],
        name="always-valid 95 % band",
    )
    figure.add_scatter(
        x=told["x"],
        y=told["share"],
        mode="lines",
        line={"color": colours["challenger"], "width": 2, "dash": "dash"},
        name=f"share of {points.challenger}",
        hovertemplate="after %{x} requests: %{y:.1%}<extra></extra>",
    )
    figure.add_hline(
        y=points.configured,
        line={"color": colours["ink"], "width": 1},
        annotation={"text": f"configured {points.configured:.0%}", "font": {"color": colours["ink"]}},
        annotation_position="bottom left",
    )
    _style(figure, theme)
    figure.update_xaxes(title="requests so far", tickformat="d", rangemode="nonnegative")
    figure.update_yaxes(
        title=f"share of {points.challenger}",
        tickformat=".0%",
        range=[0, min(1, 2.5 * points.configured + 0.05)],
    )
    return figure


def shown_range(points: Points) -> list[float]:
    """The stretch of requests in view: the newest."""
    last = points.first + len(points.rows)
    return [max(0.5, last - BARS_SHOWN + 0.5), max(last + 0.5, 20.5)]


def _style(figure: go.Figure, theme: str) -> None:
    colours = COLOURS[theme]
    figure.update_layout(
        height=HEIGHT,
        margin={"l": 56, "r": 12, "t": 8, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "color": colours["ink"], "size": 12},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"font": {"family": FONT}},
        # The reader's zoom outlives an update.
        uirevision="live",
    )
    figure.update_xaxes(title={"font": {"size": 12}, "standoff": 8})
    figure.update_yaxes(title={"font": {"size": 12}})
    figure.update_xaxes(gridcolor=colours["grid"], zeroline=False, linecolor=colours["grid"])
    figure.update_yaxes(gridcolor=colours["grid"], zeroline=False)
