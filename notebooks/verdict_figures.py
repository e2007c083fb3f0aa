"""Figures of a verdict, by plotly; what they show comes from `verdict/`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from runoff import figures
from verdict.results import Verdict

# The champion's looks first; told apart by everybody, and in grey by their markers.
COLOURS = (figures.CHAMPION, figures.CHALLENGER, "#009E73", "#CC79A7")
SYMBOLS = ("circle", "diamond", "square", "triangle-up")
DASHES = ("solid", "dash", "dot", "dashdot")


def funnel_figure(table: pd.DataFrame, verdict: Verdict, challenger: str, title: str) -> go.Figure:
    """The always-valid interval of the difference as outcomes come, with zero and both margins.

    Args:
        table: by number of outcomes: difference, lower, upper.
        verdict: says who is compared by what, and within which margin both are as good.
        challenger: its name.
        title: of the figure.
    """
    figure = go.Figure()
    edge = {"x": table.index, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    figure.add_scatter(y=table["upper"], **edge)
    figure.add_scatter(y=table["lower"], **edge, fill="tonexty", fillcolor="rgba(213,94,0,0.18)")
    figure.add_scatter(
        x=table.index,
        y=table["difference"],
        mode="lines+markers",
        line={"color": figures.CHALLENGER},
        marker={"size": 5},
        hovertemplate="after %{x:,} outcomes: %{y:.4g}<extra></extra>",
    )
    margins = (verdict.margin, -verdict.margin) if verdict.margin else ()
    for value in (0.0, *margins):
        figure.add_hline(
            y=value, line={"color": figures.GREY, "width": 1, "dash": "dash" if value else "solid"}
        )
    # The first intervals are so wide that nothing else could be seen.
    ends = table[["lower", "upper"]].iloc[len(table) // 4 :].abs().max().max()
    reach = 1.15 * max(float(ends), 2 * verdict.margin)
    if reach > 0:
        figure.update_yaxes(range=[-reach, reach])
    better = verdict.champion if verdict.metric == "profit" else challenger
    y_title = f"{verdict.champion} less {challenger}<br>above 0: {better} is better"
    return figures.styled(figure, title, "outcomes", y_title)


def reliability_figure(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Observed share against predicted probability of each variant; on the diagonal all is well.

    Args:
        tables: by variant, as `runoff.evaluation.calibration` makes them.
    """
    drawn = go.Figure()
    for (name, table), colour, symbol in zip(tables.items(), COLOURS, SYMBOLS, strict=False):
        own = figures.calibration_figure(table, name, colour)
        own.data[1].update(
            name=f"{name}, {table['count'].min():,} outcomes to a point",
            marker={"symbol": symbol},
            showlegend=True,
        )
        own.data[0].showlegend = False
        drawn.add_traces(own.data)
    drawn.update_layout(showlegend=True)
    return figures.styled(
        drawn, "Is what was predicted what came?", "predicted probability", "observed share"
    )


def profit_figure(curves: pd.DataFrame, thresholds: Mapping[str, float]) -> go.Figure:
    """What a decision brings on average, by the score from which on it is positive.

    Args:
        curves: by threshold, a column for each variant.
        thresholds: those that were declared, by variant; they are marked.
    """
    figure = go.Figure()
    for name, colour, symbol, dash in _looks([str(name) for name in curves]):
        figure.add_scatter(
            x=curves.index,
            y=curves[name],
            name=name,
            mode="lines",
            line={"color": colour, "dash": dash},
            hovertemplate=f"{name} from %{{x:.2f}} on: %{{y:.4g}}<extra></extra>",
        )
        at = thresholds[name]
        nearest = abs(curves.index.to_numpy() - at).argmin()
        figure.add_scatter(
            x=[at],
            y=[curves[name].iloc[nearest]],
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 11},
            name=f"{name} as declared",
        )
    figure.update_layout(showlegend=True)
    return figures.styled(figure, "Profit per decision", "threshold", "mean profit")


def latency_figure(table: pd.DataFrame) -> go.Figure:
    """Quantiles of the latency of each variant, with always-valid intervals.

    Args:
        table: columns variant, quantile, value, lower, upper, in ms; an end that is not known is NaN.
    """
    figure = go.Figure()
    names = list(dict.fromkeys(table["variant"]))
    for place, (name, colour, symbol, _) in enumerate(_looks(names)):
        own = table[table["variant"] == name]
        figure.add_scatter(
            x=[each + 0.16 * (place - (len(names) - 1) / 2) for each in pd.factorize(own["quantile"])[0]],
            y=own["value"],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": own["upper"] - own["value"],
                "arrayminus": own["value"] - own["lower"],
            },
            name=name,
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 9},
            customdata=own["quantile"],
            hovertemplate=f"{name}, %{{customdata}}: %{{y:.3g}} ms<extra></extra>",
        )
    quantiles = list(dict.fromkeys(table["quantile"]))
    figure.update_xaxes(tickvals=list(range(len(quantiles))), ticktext=quantiles)
    # A line for each doubling.
    figure.update_yaxes(type="log", dtick=math.log10(2), tickformat=".2~g")
    figure.update_layout(showlegend=True)
    return figures.styled(figure, "How long an answer took", "quantile", "ms")


def _looks(names: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    return zip(names, COLOURS, SYMBOLS, DASHES, strict=False)
