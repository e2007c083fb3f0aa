"""Reliability diagrams: whether probabilities mean what they say; pure functions.

They are of bins of probability, as the router tells them: `lower`, `upper`, `count`, `sum_p` and `positives`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from dashboard.charts import INK, SOFT, Stats
from dashboard.spreads import style
from verdict.rates import proportion_interval


def summary(bins: Sequence[Stats], within: float = 0.0) -> str:
    """What the diagram shows, in one sentence; nothing without bins.

    Args:
        bins: of which none is empty.
        within: how exactly the mean of a bin's probabilities is known.
    """
    if not bins:
        return ""
    total = sum(each["count"] for each in bins)
    said = sum(each["sum_p"] for each in bins) / total
    true = sum(each["positives"] for each in bins) / total
    off = sum(not _covers(each, within) for each in bins)
    verdict = f"▲ {off} of {len(bins)} bins are off" if off else "every bin is within its interval"
    expected = f"Of {total:,} labelled requests {said:.1%} were expected to come true"
    return f"{expected}, and {true:.1%} did; {verdict}."


def table(bins: Sequence[Stats]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The same as a table: its heads, and its rows."""
    head = ("Probability", "Requests", "Said on average", "Came true", "From", "To")
    return head, [_row(each) for each in bins]


def _covers(each: Stats, within: float) -> bool:
    lower, upper = proportion_interval(each["positives"], each["count"])
    said = each["sum_p"] / each["count"]
    return bool(lower - within <= said <= upper + within)


def _row(each: Stats) -> tuple[str, ...]:
    lower, upper = proportion_interval(each["positives"], each["count"])
    return (
        f"{each['lower']:.1f} to {each['upper']:.1f}",
        f"{each['count']:,}",
        f"{each['sum_p'] / each['count']:.3f}",
        f"{each['positives'] / each['count']:.3f}",
        f"{float(lower):.3f}",
        f"{float(upper):.3f}",
    )


def figure(bins: Sequence[Stats], look: dict[str, Any], theme: str) -> go.Figure:
    """What came true against what was said, with exact 95% intervals; on the diagonal they agree."""
    drawn = go.Figure()
    drawn.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        line={"width": 1, "dash": "dash", "color": SOFT[theme]},
        hoverinfo="skip",
    )
    said = [each["sum_p"] / each["count"] for each in bins]
    true = [each["positives"] / each["count"] for each in bins]
    edges = [proportion_interval(each["positives"], each["count"]) for each in bins]
    drawn.add_scatter(
        x=said,
        y=true,
        mode="markers+text",
        marker={"color": look["color"], "symbol": look["symbol"], "size": 9},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [float(upper) - y for (_, upper), y in zip(edges, true, strict=True)],
            "arrayminus": [y - float(lower) for (lower, _), y in zip(edges, true, strict=True)],
            "color": look["color"],
            "thickness": 1.5,
        },
        text=[f"{each['count']:,}" for each in bins],
        textposition="middle right",
        textfont={"size": 11, "color": INK[theme]},
        hovertemplate="said %{x:.3f}, came true %{y:.3f} of %{text}<extra></extra>",
    )
    style(drawn, theme)
    drawn.update_layout(showlegend=False)
    drawn.update_xaxes(title="said", range=[0, 1])
    drawn.update_yaxes(title="came true", range=[0, 1.06])
    return drawn
