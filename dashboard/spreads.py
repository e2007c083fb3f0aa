"""The charts of how answers are spread: by probability, by latency, by time; pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dashboard.charts import GRID, INK, MARKS, PALETTE, SOFT, Stats, lay_out, places

# The champion's line is whole, those of challengers are broken, each in its way.
DASHES = ("solid", "dash", "dot", "dashdot")
# Moments kept of the rate, and seconds between two where they come from records.
MOST_RATES = 240
LEAST_STEP = 2.0
# Ticks of an axis of time at most, on a wide screen and on a narrow one.
WIDE_TICKS, NARROW_TICKS = 6, 3
# From this ratio of its ends on a logarithmic axis has ticks at powers of ten alone.
MANY_TICKS = 5000

Rate = list[Any]


def style(figure: go.Figure, theme: str, *, legend: bool = False) -> go.Figure:
    """A figure in the colours of a theme, with a legend above it or none."""
    lay_out(figure)
    figure.update_layout(showlegend=legend, margin={"t": 32 if legend else 8})
    figure.update_layout(
        font={"color": SOFT[theme]},
        legend={
            "orientation": "h",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "x": 0,
            "font": {"size": 12, "color": INK[theme]},
        },
    )
    figure.update_xaxes(gridcolor=GRID[theme], linecolor=GRID[theme])
    figure.update_yaxes(gridcolor=GRID[theme], linecolor=GRID[theme])
    return figure


def looks(roles: Sequence[str], theme: str) -> list[dict[str, Any]]:
    """Colour, dash and mark of each variant."""
    return [
        {"color": PALETTE[theme][place], "dash": DASHES[place], "symbol": MARKS[place]}
        for place in places(roles)
    ]


def scores_figure(spreads: Sequence[Stats], roles: Sequence[str], theme: str) -> go.Figure:
    """The share of each variant's answers in each bin of probability, as steps."""
    figure = go.Figure()
    for each, look in zip(spreads, looks(roles, theme), strict=True):
        edges, counts = each["scores"]["edges"], each["scores"]["counts"]
        if not counts:
            continue
        shares = np.asarray(counts) / sum(counts)
        figure.add_scatter(
            x=edges,
            y=[*shares, shares[-1]],
            mode="lines",
            line={"shape": "hv", "width": 2, "color": look["color"], "dash": look["dash"]},
            name=each["name"],
            hovertemplate=f"<b>{each['name']}</b> from %{{x:.2f}}: %{{y:.1%}}<extra></extra>",
        )
    style(figure, theme, legend=True)
    figure.update_xaxes(title="probability", range=[0, 1])
    figure.update_yaxes(title="share of answers", tickformat=".0%", rangemode="tozero")
    return figure


def latency_figure(spreads: Sequence[Stats], roles: Sequence[str], theme: str) -> go.Figure:
    """The share of each variant's answers that took no longer than so many ms (ECDF), on a log axis."""
    figure = go.Figure()
    for each, look in zip(spreads, looks(roles, theme), strict=True):
        edges, counts = each["latency_ms"]["edges"], each["latency_ms"]["counts"]
        if not counts:
            continue
        figure.add_scatter(
            x=edges,
            y=[0.0, *(np.cumsum(counts) / sum(counts))],
            mode="lines",
            line={"width": 2, "color": look["color"], "dash": look["dash"]},
            name=each["name"],
            hovertemplate=f"<b>{each['name']}</b> %{{y:.1%}} within %{{x:.1f}} ms<extra></extra>",
        )
    style(figure, theme, legend=True)
    edges = [edge for each in spreads for edge in each["latency_ms"]["edges"]]
    figure.update_xaxes(title="latency, ms", **(log_axis(min(edges), max(edges)) if edges else {}))
    figure.update_yaxes(title="share of answers", tickformat=".0%", range=[0, 1.02])
    return figure


def log_axis(least: float, most: float) -> dict[str, Any]:
    """A logarithmic axis from one value to another, both above 0, with a tick at each 1, 2 and 5.

    It reaches farther where there would be less than two ticks; where there would be many, 1s alone have one.
    """
    tens = range(math.floor(math.log10(least)) - 1, math.ceil(math.log10(most)) + 2)
    digits = (1, 2, 5) if most / least < MANY_TICKS else (1,)
    ticks = [digit * 10.0**ten for ten in tens for digit in digits]
    if sum(least <= tick <= most for tick in ticks) < 2:  # noqa: PLR2004
        least = max(tick for tick in ticks if tick <= least)
        most = min(tick for tick in ticks if tick >= most and tick > least)
    return {
        "type": "log",
        "range": [math.log10(least), math.log10(most)],
        "tickvals": ticks,
        "ticktext": [f"{tick:,g}" for tick in ticks],
    }


def rates_of(rows: Sequence[Stats], names: Sequence[str], now: str) -> list[Rate]:
    """The rate of records by variant over time: [time, requests a second of each], about 60 moments."""
    if not rows:
        return []
    times = [datetime.fromisoformat(row["time"]) for row in rows]
    first, last = min(times), max(times)
    step = max(LEAST_STEP, (last - first).total_seconds() / 60)
    counts = np.zeros((int((last - first).total_seconds() / step) + 1, len(names)))
    for time, row in zip(times, rows, strict=True):
        if row["variant"] in names:
            counts[int((time - first).total_seconds() / step), names.index(row["variant"])] += 1
    nothing = [0.0] * len(names)
    rates = [
        [_stamp(first), *nothing],
        *(
            [_stamp(first + timedelta(seconds=step * (number + 1))), *(each / step).round(3).tolist()]
            for number, each in enumerate(counts)
        ),
    ]
    # Where it ended some time ago, it ends there.
    if (datetime.fromisoformat(now) - last).total_seconds() > 3 * step:
        rates.append([_stamp(first + timedelta(seconds=step * (len(counts) + 1))), *nothing])
    return rates


def rates_with(rates: Sequence[Rate], now: str, since: str, came: Sequence[int]) -> list[Rate]:
    """The rates, and that of the requests that came between two moments.

    While nothing comes the line is drawn on by its two ends alone.
    """
    seconds = (datetime.fromisoformat(now) - datetime.fromisoformat(since)).total_seconds()
    if seconds <= 0:
        return list(rates)
    new = [_stamp(datetime.fromisoformat(now)), *(round(max(0, count) / seconds, 3) for count in came)]
    idle = [each for each in (*rates[-2:], new) if not any(each[1:])]
    kept = rates[:-1] if len(idle) == 3 else rates  # noqa: PLR2004
    return [*kept, new][-MOST_RATES:]


def rates_figure(
    rates: Sequence[Rate], names: Sequence[str], roles: Sequence[str], theme: str, *, narrow: bool
) -> go.Figure:
    """Requests per second of each variant over time."""
    figure = go.Figure()
    for number, (name, look) in enumerate(zip(names, looks(roles, theme), strict=True), 1):
        figure.add_scatter(
            x=[each[0] for each in rates],
            y=[each[number] for each in rates],
            mode="lines",
            line={"width": 2, "color": look["color"], "dash": look["dash"]},
            name=name,
            hovertemplate=f"<b>{name}</b> %{{y:.1f}} a second at %{{x|%H:%M:%S}}<extra></extra>",
        )
    style(figure, theme, legend=True)
    figure.update_xaxes(title="time, UTC", type="date", tickformat="%H:%M:%S", tickangle=0)
    figure.update_xaxes(nticks=NARROW_TICKS if narrow else WIDE_TICKS)
    figure.update_yaxes(title="requests per second", rangemode="tozero")
    return figure


def _stamp(time: datetime) -> str:
    """A time as plotly takes it, in UTC."""
    return time.replace(tzinfo=None).isoformat(timespec="milliseconds")
