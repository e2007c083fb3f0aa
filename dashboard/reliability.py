"""Reliability diagrams: whether probabilities mean what they say; pure functions.

They are of bins of probability, as the router tells them: `lower`, `upper`, `count`, `sum_p` and `positives`.
Intervals hold for all bins of a diagram together, for one look: the level is shared among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dashboard.charts import INK, SOFT, Stats
from dashboard.spreads import style
from verdict.rates import proportion_interval

ALPHA = 0.05


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
    off = sum(
        not lower - within <= each["sum_p"] / each["count"] <= upper + within
        for each, (lower, upper) in zip(bins, _intervals(bins), strict=True)
    )
    verdict = f"▲ {off} of {len(bins)} bins are off" if off else "every bin is within its interval"
    expected = f"Of {total:,} labelled requests {said:.1%} were expected to come true"
    sure = f"Intervals hold with {1 - ALPHA:.0%} confidence for all bins together, for one look."
    return f"{expected}, and {true:.1%} did; {verdict}. {sure}"


def table(bins: Sequence[Stats]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The same as a table: its heads, and its rows."""
    head = ("Probability", "Requests", "Predicted on average", "Came true", "From", "To")
    return head, [
        (
            f"{each['lower']:.1f} to {each['upper']:.1f}",
            f"{each['count']:,}",
            f"{each['sum_p'] / each['count']:.3f}",
            f"{each['positives'] / each['count']:.3f}",
            f"{lower:.3f}",
            f"{upper:.3f}",
        )
        for each, (lower, upper) in zip(bins, _intervals(bins), strict=True)
    ]


def _intervals(bins: Sequence[Stats]) -> list[tuple[float, float]]:
    """The exact interval of what came true in each bin."""
    if not bins:
        return []
    hits, rows = ([each[name] for each in bins] for name in ("positives", "count"))
    return list(np.transpose(proportion_interval(hits, rows, ALPHA / len(bins))).tolist())


def figure(bins: Sequence[Stats], look: dict[str, Any], theme: str) -> go.Figure:
    """What came true against what was predicted, with exact intervals; on the diagonal they agree."""
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
    edges = _intervals(bins)
    drawn.add_scatter(
        x=said,
        y=true,
        mode="markers+text",
        marker={"color": look["color"], "symbol": look["symbol"], "size": 9},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [upper - y for (_, upper), y in zip(edges, true, strict=True)],
            "arrayminus": [y - lower for (lower, _), y in zip(edges, true, strict=True)],
            "color": look["color"],
            "thickness": 1.5,
        },
        text=[f"{each['count']:,}" for each in bins],
        textposition="middle right",
        textfont={"size": 11, "color": INK[theme]},
        hovertemplate="predicted %{x:.3f}, came true %{y:.3f} of %{text}<extra></extra>",
    )
    style(drawn, theme)
    drawn.update_layout(showlegend=False)
    drawn.update_xaxes(title="predicted probability", range=[0, 1])
    drawn.update_yaxes(title="share that came true", range=[0, 1.06])
    return drawn
