"""A verdict of the router in tables and a chart; pure functions, for the page and for its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from dashboard.charts import SOFT, Stats
from dashboard.spreads import looks, style

# A table as texts: its heads, and its rows.
Table = tuple[tuple[str, ...], list[tuple[str, ...]]]

NAMES = {
    "brier": "Brier score",
    "log-loss": "Log loss",
    "profit": "Profit per decision",
    "calibration": "Calibration, mean of y − p",
    "error-rate": "Error rate",
    "auc": "AUC",
}
STATES = {"passed": "✓ passed", "failed": "▲ failed", "not yet": "… not yet"}
RAILS = {"clear": "✓ clear", "watching": "… watching", "breached": "▲ breached"}
KINDS = {"real": "real traffic", "simulation": "simulated traffic", "all": "all traffic"}
NONE = "–"


def number(value: float | None) -> str:
    """A figure in a few digits."""
    if value is None:
        return NONE
    if value and (abs(value) < 1e-4 or abs(value) >= 1e6):  # noqa: PLR2004
        return f"{value:.2e}"
    return f"{value:,.4g}".replace("-", "−")


def interval(ends: Stats) -> str:
    """Both ends of an interval."""
    if ends["lower"] is None and ends["upper"] is None:
        return NONE
    return f"{number(ends['lower'])} to {number(ends['upper'])}"


def _metric(name: Any) -> str:
    return NAMES.get(str(name), str(name))


def basis(told: Stats, *, mixed: bool) -> str:
    """What the verdict rests on; `mixed` says that it judges real and simulated traffic together."""
    kind = KINDS.get(told["tag"], told["tag"])
    rest = f"Labelled {told['labelled']:,} of {told['requests']:,} requests of {kind}."
    others = told["other_traffic"]
    if others:
        left = ", ".join(f"{count:,} {tag}" for tag, count in others.items())
        rest += f" Not judged: {left}."
    if mixed:
        rest += " ▲ Real and simulated traffic are judged together."
    if not told["labelled"]:
        rest += " Without outcomes nothing is said of accuracy."
    return rest


def checks(told: Stats) -> list[tuple[str, str, str]]:
    """The trust checks: name, state in a word, what was seen."""
    every = [*told["checks"], *(check for each in told["comparisons"] for check in each["checks"])]
    return [(each["name"].capitalize(), STATES[each["state"]], each["seen"]) for each in every]


def figures(told: Stats, each: Stats) -> Table:
    """The table of metrics; the interval for one look alone is the last but one."""
    level = f"{100 * (1 - told['alpha']):g}%"
    head: tuple[str, ...] = ("Metric", told["champion"], each["challenger"], "Difference")
    head = (*head, f"{level}, whenever one looks", "for one look alone", "e-value")
    rows: list[tuple[str, ...]] = [
        (
            _metric(row["metric"]) + (f" ({row['note']})" if row["note"] else ""),
            number(row["champion"]),
            number(row["challenger"]),
            number(row["difference"]),
            interval(row["interval"]),
            interval(row["fixed"]),
            number(row["e_value"]),
        )
        for row in each["rows"]
    ]
    return head, rows


def guardrails(each: Stats) -> Table:
    """What must not become worse."""
    head = ("Guardrail", "Metric", "Margin", "Harm", "State", "e-value")
    return head, [
        (
            *(rail["name"], rail["metric"], number(rail["margin"]), number(rail["harm"])),
            RAILS[rail["state"]],
            f"{number(rail['e_value'])} of {number(rail['bound'])}",
        )
        for rail in each["guardrails"]
    ]


def segments(each: Stats) -> Table:
    """The difference in parts of the traffic."""
    head = ("Part", "Outcomes", "Difference", "Interval, all parts together")
    return head, [
        (
            *(f"{part['field']} {part['value']}", f"{part['n']:,}"),
            *(number(part["row"]["difference"]), interval(part["row"]["interval"])),
        )
        for part in each["segments"]
    ]


def gaps(told: Stats) -> Table:
    """How far the rates of groups are apart."""
    head = ("Variant", "Rate", "Group", "Compared with", "Gap", "Interval")
    return head, [
        (
            *(gap["variant"], gap["rate"], f"{gap['field']} {gap['group']}", gap["reference"]),
            *(number(gap["gap"]), interval(gap["interval"])),
        )
        for gap in told["gaps"]
    ]


def funnel_summary(told: Stats, each: Stats) -> str:
    """What the funnel shows, in one sentence."""
    name = _metric(told["metric"])
    known = [point for point in each["history"] if point["difference"] is not None]
    if not known:
        return f"Nothing can be said of the {name} yet: no outcome counts."
    last = known[-1]
    margin = f" Within ±{number(told['margin'])} both are as good." if told["margin"] else ""
    return (
        f"After {each['n']:,} outcomes the {name} of {told['champion']} less that of {each['challenger']} is "
        f"{number(last['difference'])}, and with {1 - told['alpha']:.0%} confidence, "
        f"however often one looks, within {interval(last['interval'])}.{margin}"
    )


def funnel_table(each: Stats) -> Table:
    """The funnel's newest points."""
    head = ("Outcomes", "Difference", "Interval", "e-value")
    return head, [
        (
            f"{point['n']:,}",
            number(point["difference"]),
            interval(point["interval"]),
            number(point["e_value"]),
        )
        for point in each["history"][:-21:-1]
    ]


def funnel(told: Stats, each: Stats, roles: Sequence[str], theme: str) -> go.Figure:
    """The confidence sequence of the primary metric's difference, with zero and both margins."""
    points = [point for point in each["history"] if point["difference"] is not None]
    colour = looks(roles, theme)[-1]["color"] if roles else SOFT[theme]
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
    for value, text in ((0.0, "no difference"), (told["margin"], "margin"), (-told["margin"], "margin")):
        if value or text == "no difference":
            dash = "solid" if not value else "dash"
            figure.add_hline(y=value, line={"width": 1, "dash": dash, "color": SOFT[theme]})
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
    # The first intervals are so wide that nothing else could be seen.
    ends = [
        abs(point["interval"][end] or 0) for point in points[len(points) // 4 :] for end in ("lower", "upper")
    ]
    reach = 1.15 * max([2 * told["margin"], 1e-6, *ends])
    figure.update_layout(showlegend=False, margin={"r": 96, "l": 72})
    figure.update_xaxes(title="outcomes", rangemode="tozero", tickformat=",d")
    higher = (
        next((row["better"] for row in each["rows"] if row["metric"] == told["metric"]), "lower") == "higher"
    )
    winner = told["champion"] if higher else each["challenger"]
    title = f"{told['champion']} less {each['challenger']}<br>above 0: {winner} is better"
    figure.update_yaxes(title=title, range=[-reach, reach])
    return figure


def _radius(points: Sequence[Stats]) -> list[float]:
    ends = points[-1]["interval"] if points else {"upper": None}
    return [] if ends["upper"] is None else [ends["upper"] - points[-1]["difference"]]


def role_list(told: Stats) -> list[str]:
    """The roles of champion and challengers, as `looks` takes them."""
    return ["champion", *("challenger" for _ in told["comparisons"])]


def safe(told: Any) -> str:
    """A title for a file."""
    return "".join(letter if letter.isalnum() else "-" for letter in str(told))
