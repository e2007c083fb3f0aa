"""The charts of a verdict, each with what it shows as a sentence and as a table; pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import plotly.graph_objects as go

from dashboard import reliability
from dashboard import verdict_words as words
from dashboard.charts import HATCHES, INK, SOFT, Stats, places
from dashboard.spreads import NARROW_TICKS, WIDE_TICKS, log_axis, looks, style
from dashboard.verdict_words import Table
from verdict.evidence import SCORE_BINS

# How far marks of two variants stand apart, where a quantile is 1.
APART = 0.24
# How far from 0 a margin is named, as a share of half the height.
LEAST_APART = 0.12
# The share of the height that requests have; propensities have the rest.
UPPER = (0.48, 1.0)
LOWER = (0.0, 0.36)


class Shown(NamedTuple):
    """A chart: its name, a question that it answers, the answer, the figure, the same as a table."""

    name: str
    title: str
    summary: str
    figure: go.Figure
    table: Table
    height: int = 320


def compared(told: Stats, number: int, theme: str) -> list[Shown]:
    """The charts of one challenger beside the champion."""
    each = told["comparisons"][number]
    return [
        Shown(
            f"funnel-{number}",
            "How sure is it, as outcomes come in?",
            words.funnel_summary(told, each),
            funnel(told, each, number, theme),
            words.funnel_table(told, each),
            340,
        ),
        Shown(
            f"latency-{number}",
            f"How long do {told['champion']} and {each['challenger']} take?",
            words.latency_summary(told, each),
            latency(told, each, number, theme),
            words.latency_table(told, each),
        ),
    ]


def of_variants(told: Stats, theme: str) -> list[Shown]:
    """A reliability diagram for each variant."""
    return [
        Shown(
            f"reliable-{number}",
            f"Do the probabilities of {each['variant']} mean what they say?",
            # A mean is known to half a bin.
            reliability.summary(each["bins"], 0.5 / SCORE_BINS)
            or f"Nothing can be said of {each['variant']} yet: no outcome counts.",
            reliability.figure(each["bins"], look, theme),
            reliability.table(each["bins"]),
            300,
        )
        for number, (each, look) in enumerate(zip(told["reliability"], _looks(told, theme), strict=True))
    ]


def traffic(told: Stats, theme: str, *, narrow: bool = False) -> Shown:
    """What came, and by which propensities."""
    return Shown(
        "verdict-traffic",
        "Who was asked, and by which propensities?" if _has_shares(told) else "Who was asked?",
        words.traffic_summary(told),
        traffic_figure(told, theme, narrow=narrow),
        words.traffic_table(told),
        360 if _has_shares(told) else 260,
    )


def funnel(told: Stats, each: Stats, number: int, theme: str) -> go.Figure:
    """The confidence sequence of the primary metric's difference, with zero and both margins."""
    points = words.known(each)
    colour = _looks(told, theme)[number + 1]["color"]
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    x = [point["n"] for point in points]
    figure = go.Figure()
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    figure.add_scatter(x=x, y=[point["interval"]["upper"] for point in points], **edge)
    figure.add_scatter(
        x=x,
        y=[point["interval"]["lower"] for point in points],
        **edge,
        fill="tonexty",
        fillcolor=f"rgba({red},{green},{blue},0.18)",
    )
    figure.add_scatter(
        x=x,
        y=[point["difference"] for point in points],
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"size": 5},
        # With one point alone there is no band to be seen.
        error_y={"type": "data", "array": [0] * (len(points) - 1) + _radius(points), "color": colour},
        hovertemplate="after %{x} outcomes: %{y:.4g}<extra></extra>",
    )
    style(figure, theme)
    # The first intervals are so wide that nothing else could be seen.
    ends = [
        abs(point["interval"][end] or 0) for point in points[len(points) // 4 :] for end in ("lower", "upper")
    ]
    reach = 1.15 * max([2 * told["margin"], 1e-6, *ends])
    margin = told["margin"]
    lines = {0.0: "no difference"} | ({margin: "margin", -margin: "margin"} if margin else {})
    for value, text in lines.items():
        dash = "dash" if value else "solid"
        figure.add_hline(y=value, line={"width": 1, "dash": dash, "color": SOFT[theme]})
        # Names that would stand upon each other are left out.
        if not value or margin > LEAST_APART * reach:
            figure.add_annotation(
                text=text,
                y=value,
                x=1,
                xref="paper",
                xanchor="left",
                xshift=6,
                showarrow=False,
                font={"color": SOFT[theme]},
            )
    figure.update_layout(showlegend=False, margin={"r": 96})
    figure.update_xaxes(title="outcomes", rangemode="tozero", tickformat=",d")
    higher = (
        next((row["better"] for row in each["rows"] if row["metric"] == told["metric"]), "lower") == "higher"
    )
    winner = told["champion"] if higher else each["challenger"]
    title = f"{told['champion']} less {each['challenger']}<br>above 0: {winner} is better"
    figure.update_yaxes(title=title, range=[-reach, reach], automargin=True)
    return figure


def latency(told: Stats, each: Stats, number: int, theme: str) -> go.Figure:
    """Quantiles of latency of both variants, with their always-valid intervals as bars, on a log axis."""
    rows = words.latencies(each)
    known = [
        value
        for row in rows
        for side in ("champion", "challenger")
        for value in (row[side], *row[f"{side}_interval"].values())
        if value is not None
    ]
    least, most = (min(known) / 1.25, max(known) * 1.25) if known else (1.0, 100.0)
    figure = go.Figure()
    every = _looks(told, theme)
    pairs = (("champion", told["champion"], every[0]), ("challenger", each["challenger"], every[number + 1]))
    for way, (side, name, look) in zip((-1, 1), pairs, strict=True):
        drawn = [(place, row) for place, row in enumerate(rows) if row[side] is not None]
        values = [row[side] for _, row in drawn]
        ends = [row[f"{side}_interval"] for _, row in drawn]
        figure.add_scatter(
            x=[place + way * APART / 2 for place, _ in drawn],
            y=values,
            name=name,
            mode="markers+text",
            marker={"color": look["color"], "symbol": look["symbol"], "size": 9},
            error_y={
                "type": "data",
                "symmetric": False,
                # An end that is not known lies beyond what was seen: the bar goes to the edge.
                "array": [(end["upper"] or most) - value for end, value in zip(ends, values, strict=True)],
                "arrayminus": [
                    value - (end["lower"] or least) for end, value in zip(ends, values, strict=True)
                ],
                "color": look["color"],
                "thickness": 2,
                "width": 5,
            },
            cliponaxis=False,
            text=[f"{value:.3g}" for value in values],
            textposition="middle left" if way < 0 else "middle right",
            textfont={"size": 12, "color": INK[theme]},
            hovertemplate=f"<b>{name}</b> %{{y:.3g}} ms<extra></extra>",
        )
    style(figure, theme, legend=True)
    figure.update_layout(margin={"l": 60})
    figure.update_xaxes(
        tickvals=list(range(len(rows))),
        ticktext=[words.quantile(row) for row in rows],
        range=[-0.75, max(len(rows), 1) - 0.25],
    )
    figure.update_yaxes(title="ms", **log_axis(least, most))
    return figure


def traffic_figure(told: Stats, theme: str, *, narrow: bool = False) -> go.Figure:
    """Requests of variants in each cell of time, stacked; below it propensities as lines, shares as marks."""
    cells = told["traffic"]
    figure = go.Figure()
    variants = words.variants(told)
    roles = words.role_list(told)
    # The last cell is not over: its bars are as wide as the others.
    width = max((each["end"] - each["begin"] for each in cells), default=3600.0)
    hatches = [HATCHES[each] for each in places(roles)]
    for name, look, hatch in zip(variants, looks(roles, theme), hatches, strict=True):
        figure.add_bar(
            x=[_time(each["begin"]) for each in cells],
            y=[each["requests"][name] for each in cells],
            width=900 * width,
            offset=50 * width,
            marker={
                "color": look["color"],
                "pattern": {
                    "shape": hatch,
                    "fillmode": "overlay",
                    "fgcolor": INK[theme],
                    "fgopacity": 0.4,
                    "size": 5,
                    "solidity": 0.35,
                },
                "line": {"width": 0},
            },
            name=name,
            hovertemplate=f"<b>{name}</b> %{{y:,}} requests from %{{x|%d %b %H:%M}}<extra></extra>",
        )
    style(figure, theme, legend=True)
    # Ticks have two lines: the time, and the day.
    figure.update_layout(barmode="stack", legend={"traceorder": "normal"}, margin={"l": 60, "b": 60})
    figure.update_xaxes(type="date", tickformat="%H:%M\n%d %b", tickangle=0)
    figure.update_xaxes(nticks=NARROW_TICKS if narrow else WIDE_TICKS)
    figure.update_xaxes(title={"text": "time, UTC", "standoff": 16})
    figure.update_yaxes(title="requests", rangemode="tozero", tickformat=",d")
    if _has_shares(told):
        for name, look in zip(variants, looks(roles, theme), strict=True):
            _add_shares(figure, cells, name, look, width)
        figure.update_layout(
            yaxis={"domain": UPPER},
            yaxis2={
                "domain": LOWER,
                "title": {"text": "propensity", "standoff": 8},
                "tickformat": ".0%",
                "range": [0, 1.05],
                "nticks": 4,
                "gridcolor": figure.layout.yaxis.gridcolor,
                "zeroline": False,
                "showgrid": True,
            },
            xaxis={"anchor": "y2"},
        )
    return figure


def _add_shares(
    figure: go.Figure, cells: Sequence[Stats], name: str, look: dict[str, Any], width: float
) -> None:
    """The propensities of a variant as a line, and the shares that it got as marks."""
    x: list[str] = []
    y: list[float | None] = []
    for each in cells:
        if name in each["shares"]:
            # What is not known of the time between two cells is not drawn.
            if x and x[-1] != _time(each["begin"]):
                x.append(x[-1])
                y.append(None)
            x += [_time(each["begin"]), _time(each["begin"] + width)]
            y += [each["shares"][name]] * 2
    line = {"color": look["color"], "dash": look["dash"], "width": 2}
    figure.add_scatter(
        x=x, y=y, yaxis="y2", mode="lines", line=line, name=name, showlegend=False, hoverinfo="skip"
    )
    asked = [each for each in cells if each["shares"] and sum(each["requests"].values())]
    figure.add_scatter(
        x=[_time(each["begin"] + width / 2) for each in asked],
        y=[each["requests"][name] / sum(each["requests"].values()) for each in asked],
        yaxis="y2",
        mode="markers",
        marker={"color": look["color"], "symbol": look["symbol"], "size": 7},
        name=name,
        showlegend=False,
        hovertemplate=f"<b>{name}</b> got %{{y:.1%}}<extra></extra>",
    )


def _has_shares(told: Stats) -> bool:
    return any(each["shares"] for each in told["traffic"])


def _looks(told: Stats, theme: str) -> list[dict[str, Any]]:
    return looks(words.role_list(told), theme)


def _radius(points: Sequence[Stats]) -> list[float]:
    ends = points[-1]["interval"] if points else {"upper": None}
    return [] if ends["upper"] is None else [ends["upper"] - points[-1]["difference"]]


def _time(seconds: float) -> str:
    """A time as plotly takes it, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat(timespec="seconds")
