"""Figures of a model's quality, by plotly; what they show comes from `runoff.evaluation`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from numpy.typing import ArrayLike
from plotly.io import to_html
from plotly.io.base_renderers import MimetypeRenderer

from runoff.evaluation import TITLES, Measures

# Okabe & Ito: told apart by everybody, and in grey by their markers.
CHAMPION = "#0072B2"
CHALLENGER = "#D55E00"
GREY = "#6b7280"

HEIGHT = 400
# So many columns are shown with what they cost.
COLUMNS = 12


class _Embedded(MimetypeRenderer):  # type: ignore[misc] # plotly carries no types
    """Draws figures by a script that stands in the document itself, once: nothing comes from a network."""

    def __init__(self) -> None:
        # plotly copies a renderer each time it draws; what a copy appends, all of them see.
        self._drawn: list[None] = []

    def to_mimebundle(self, figure: dict[str, Any]) -> dict[str, str]:
        html = to_html(
            figure,
            config={"displaylogo": False, "showSendToCloud": False},
            include_plotlyjs=not self._drawn,
            include_mathjax=False,
            full_html=False,
            validate=False,
        )
        self._drawn.append(None)
        return {"text/html": html}


def embed() -> None:
    """Show the figures of this notebook such that it, and the HTML made of it, are read without a network."""
    pio.renderers["embedded"] = _Embedded()
    pio.renderers.default = "embedded"


def metrics_table(measured: Mapping[str, Measures]) -> pd.DataFrame:
    """Metrics with their intervals as text, a row for each model."""
    return pd.DataFrame(
        {
            TITLES[metric]: {
                name: "{value:.3f} ({lower:.3f} to {upper:.3f})".format(**each[metric])
                for name, each in measured.items()
            }
            for metric in TITLES
        }
    )


def calibration_figure(table: pd.DataFrame, name: str, colour: str = CHAMPION) -> go.Figure:
    """Observed share against predicted probability, with 95 % intervals; on the diagonal all is well."""
    top = 1.05 * float(max(table["upper"].max(), table["predicted"].max()))
    figure = go.Figure()
    figure.add_scatter(
        x=[0, top], y=[0, top], mode="lines", line={"color": GREY, "dash": "dot"}, hoverinfo="skip"
    )
    figure.add_scatter(
        x=table["predicted"],
        y=table["observed"],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": table["upper"] - table["observed"],
            "arrayminus": table["observed"] - table["lower"],
        },
        mode="markers+lines",
        marker={"color": colour, "size": 9},
        line={"color": colour, "width": 1},
        customdata=table["count"],
        hovertemplate="predicted %{x:.3f}<br>observed %{y:.3f}<br>%{customdata} clients<extra></extra>",
    )
    return styled(figure, f"{name}: calibration", "predicted probability", "observed share")


def scores_figure(
    y: ArrayLike, p: ArrayLike, name: str, outcomes: tuple[str, str], colour: str = CHAMPION
) -> go.Figure:
    """How the predicted probabilities are spread in each class; `outcomes` names classes 0 and 1.

    Class 1 has the model's colour: blue and orange tell models apart, never outcomes.
    """
    y, p = np.asarray(y), np.asarray(p)
    figure = go.Figure()
    looks = zip((0, 1), outcomes, (GREY, colour), ("", "/"), strict=True)
    for outcome, title, shade, pattern in looks:
        figure.add_histogram(
            x=p[y == outcome],
            name=title,
            xbins={"start": 0, "end": 1, "size": 0.04},
            histnorm="percent",
            marker={"color": shade, "pattern": {"shape": pattern}},
            opacity=0.65,
        )
    figure.update_layout(barmode="overlay", showlegend=True)
    return styled(
        figure, f"{name}: predicted probabilities by outcome", "predicted probability", "% of class"
    )


def importance_figure(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """What shuffling the costliest columns costs in ROC AUC, by one model or two; the last sets the order."""
    order = list(tables.values())[-1].index[:COLUMNS][::-1]
    figure = go.Figure()
    looks = zip(tables.items(), (CHAMPION, CHALLENGER), ("circle", "diamond"), (0.14, -0.14), strict=False)
    for (name, table), colour, symbol, shift in looks:
        shown = table.loc[order]
        figure.add_scatter(
            x=shown["mean"],
            y=np.arange(len(order)) + (shift if len(tables) > 1 else 0),
            error_x={
                "type": "data",
                "symmetric": False,
                "array": shown["upper"] - shown["mean"],
                "arrayminus": shown["mean"] - shown["lower"],
            },
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 9},
            name=name,
            customdata=list(order),
            hovertemplate="%{customdata}: %{x:.4f}<extra>" + name + "</extra>",
        )
    figure.add_vline(x=0, line={"color": GREY, "dash": "dot"})
    figure.update_yaxes(tickvals=list(range(len(order))), ticktext=list(order))
    figure.update_layout(showlegend=len(tables) > 1, height=HEIGHT + 60)
    return styled(figure, "What shuffling a column costs", "loss of ROC AUC on held-out clients", None)


def shares_figure(table: pd.DataFrame, title: str, x_title: str, y_title: str) -> go.Figure:
    """A share for each group, with its 95 % interval; columns share, lower, upper, count."""
    figure = go.Figure(
        go.Bar(
            x=[str(group) for group in table.index],
            y=table["share"],
            marker={"color": CHAMPION},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": table["upper"] - table["share"],
                "arrayminus": table["share"] - table["lower"],
            },
            customdata=table["count"],
            hovertemplate="%{x}: %{y:.1%} of %{customdata:,}<extra></extra>",
        )
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(tickformat=".0%")
    return styled(figure, title, x_title, y_title)


def styled(figure: go.Figure, title: str, x_title: str, y_title: str | None) -> go.Figure:
    """Give a figure its titles, and the looks that all of them have."""
    figure.update_layout(
        title=title,
        template="plotly_white",
        height=figure.layout.height or HEIGHT,
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
        showlegend=bool(figure.layout.showlegend),
        legend={"orientation": "h", "y": 1.08, "x": 1, "xanchor": "right"},
    )
    figure.update_xaxes(title=x_title)
    if y_title:
        figure.update_yaxes(title=y_title)
    return figure
