"""The page of drift and calibration: what is asked now, beside what the model was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import dash_mantine_components as dmc
import numpy as np
import plotly.graph_objects as go
from dash import Dash, Input, Output, State, dcc, html, no_update

from dashboard import pieces, reliability
from dashboard.charts import SOFT, Stats
from dashboard.router_client import RouterClient, RouterDown
from dashboard.shell import VIEW, View, keep, kept, link
from dashboard.spreads import looks, style
from dashboard.verdict_words import KINDS
from verdict.drift import psi, psi_limit

PATH, TITLE = "drift", "Drift"
HEEDS = ("range", "traffic")

ROWS = 2000
# Asked anew so many ticks after the last time.
SELDOM = 15
# Fewer different records say nothing of a spread.
LEAST_RECORDS = 50
# The limits that are usual, whatever the number of rows.
USUAL_LIMITS = (0.1, 0.25)
PREDICTION = "prediction"
# So many edges are named on an axis at most.
MOST_EDGES = 8


@dataclass(frozen=True)
class Moved:
    """How far one thing has moved since training, and what chance alone explains."""

    name: str
    psi: float
    limit: float

    @property
    def drifted(self) -> bool:
        return self.psi > self.limit


def layout() -> html.Div:
    """The page before anything is known."""
    return html.Div(
        [
            dcc.Store(id="drift-seen"),
            html.H1("Drift and calibration", id="drift-summary"),
            dmc.SegmentedControl(
                id="drift-variant", data=[], value=None, size="sm", mb="md", **{"aria-label": "variant"}
            ),
            html.Div(id="drift-empty", hidden=True),
            html.Div(
                id="drift-charts",
                className="loading",
                children=html.Div(
                    className="pair tall",
                    children=[
                        pieces.chart("psi", "What has moved since training?", height=560),
                        html.Div(
                            className="stack",
                            children=[
                                html.Div(
                                    [
                                        dmc.Select(
                                            id="feature",
                                            label="Look at",
                                            data=[],
                                            allowDeselect=False,
                                            mb="sm",
                                        ),
                                        pieces.chart("overlay", "Training and now", height=300),
                                    ]
                                ),
                                pieces.chart(
                                    "reliability", "Do probabilities mean what they say?", height=260
                                ),
                            ],
                        ),
                    ],
                ),
            ),
        ]
    )


OUTPUTS = {
    "seen": Output("drift-seen", "data"),
    "summary": Output("drift-summary", "children"),
    "variants": Output("drift-variant", "data"),
    "variant": Output("drift-variant", "value"),
    "not_empty": Output("drift-empty", "hidden"),
    "why_empty": Output("drift-empty", "children"),
    "no_charts": Output("drift-charts", "hidden"),
    "charts_class": Output("drift-charts", "className"),
    "features": Output("feature", "data"),
    "feature": Output("feature", "value"),
    **{
        f"{name}_{what}": Output(f"{name}-{what}", prop)
        for name in ("psi", "overlay", "reliability")
        for what, prop in (("chart", "figure"), ("summary", "children"), ("table", "children"))
    },
}


def register(app: Dash, router: RouterClient) -> None:
    """Let the page live."""
    keep(app, "drift-variant", "feature")

    @app.callback(
        OUTPUTS,
        Input("tick", "data"),
        *VIEW,
        Input("drift-variant", "value"),
        Input("feature", "value"),
        State("drift-seen", "data"),
        State("url", "search"),
    )
    def refresh(
        _tick: Any,
        look: Any,
        traffic: str,
        range_: str,
        variant: str | None,
        feature: str | None,
        seen: Any,
        search: str | None,
    ) -> dict[str, Any]:
        nothing = dict.fromkeys(OUTPUTS, no_update)
        waits, now = pieces.waits(seen, [look, traffic, range_, variant, feature], SELDOM)
        if waits:
            return nothing | {"seen": now}
        view = View.of(look, traffic, range_)
        try:
            variants = router.stats(None)["variants"]
        except RouterDown:
            return nothing
        names = [each["name"] for each in variants]
        variant = variant or kept(search, "variant")
        chosen = variant if variant and variant in names else names[0]
        told = nothing | {"seen": now, "variants": names, "variant": chosen}
        live = link("", search)
        try:
            drift = router.drift(chosen, ROWS, view.tag, view.start)
        except RouterDown as error:
            return told | _nothing("Nothing can be compared", f"{pieces.capital(str(error))}.", live)
        if drift["distinct"] < LEAST_RECORDS:
            why = (
                f"{chosen} answered {drift['rows']} requests in this range, about {drift['distinct']} "
                f"different records; {LEAST_RECORDS} of those are needed."
            )
            return told | _nothing("Too little to compare", why, live)
        role = variants[names.index(chosen)]["role"]
        feature = feature or kept(search, "feature")
        return told | _told(drift, feature, role, [each["role"] for each in variants], view.theme)


def _nothing(title: str, reason: str, live: str) -> dict[str, Any]:
    action = html.A("Send some on the live page", href=live, className="more")
    return {
        "summary": title,
        "not_empty": False,
        "why_empty": pieces.empty(title, reason, action),
        "no_charts": True,
    }


def moved(drift: Stats) -> list[Moved]:
    """How far each feature and the probabilities have moved, the farthest beyond chance first.

    The level is shared among all of them, so that by chance one in twenty looks finds anything at all. Chance
    is that of the different records alone: the same clients, asked about again and again, are no more people.
    """
    compared = drift["features"] | {PREDICTION: drift[PREDICTION]}
    found = []
    for name, each in compared.items():
        reference, live = _counts(each)
        different = min(sum(live), drift["distinct"])
        bins = int(np.count_nonzero(np.add(reference, live)))
        if not sum(live) or bins < 2:  # noqa: PLR2004
            continue
        # What counts as half a row in an empty bin is half a record, too.
        records = np.asarray(live) * different / sum(live)
        limit = psi_limit(reference, np.rint(records), 0.05 / len(compared))
        found.append(Moved(name, psi(reference, records), limit))
    return sorted(found, key=lambda each: each.psi / each.limit, reverse=True)


def _counts(each: Stats) -> tuple[list[int], list[int]]:
    """The counts of training and of now, with what was missing, and what training never saw."""
    before, now = each["missing"]
    return [*each["reference"], before, 0], [*each["live"], now, each["other"]]


def _told(drift: Stats, feature: str | None, role: str, roles: list[str], theme: str) -> dict[str, Any]:
    found = moved(drift)
    names = [each.name for each in found]
    feature = feature if feature in names else names[0]
    look = looks(roles, theme)[roles.index(role)]
    compared = (drift["features"] | {PREDICTION: drift[PREDICTION]})[feature]
    drifted = [each for each in found if each.drifted]
    calibration = [each for each in drift["calibration"] if each["count"]]
    return {
        "summary": summary(drift, drifted),
        "not_empty": True,
        "no_charts": False,
        "charts_class": "",
        "features": names,
        "feature": feature,
        "psi_chart": psi_figure(found, look, theme),
        "psi_summary": _psi_summary(drift, drifted),
        "psi_table": pieces.table(
            ("What", "PSI", "By chance up to", ""),
            [
                (
                    each.name,
                    f"{each.psi:.3f}",
                    f"{each.limit:.3f}",
                    "▲ more than chance" if each.drifted else "within chance",
                )
                for each in found
            ],
        ),
        "overlay_chart": overlay_figure(compared, look, theme),
        "overlay_summary": _overlay_summary(feature, next(each for each in found if each.name == feature)),
        "overlay_table": pieces.table(
            ("Value", "Training", "Now"),
            [
                (label, f"{a:.1%}", f"{b:.1%}")
                for label, a, b in zip(_labels(compared), *_shares(compared), strict=True)
            ],
        ),
        "reliability_chart": reliability.figure(calibration, look, theme),
        "reliability_summary": reliability.summary(calibration)
        or f"No outcome is known yet: labelled 0 of {drift['rows']:,}.",
        "reliability_table": pieces.table(*reliability.table(calibration)),
    }


def summary(drift: Stats, drifted: list[Moved]) -> str:
    """The page in one sentence, with the kind of traffic that it is of."""
    what = f"{drift['variant']}: in the newest {drift['rows']:,} requests ({_kinds(drift['tags'])})"
    if not drifted:
        return f"{what} nothing has moved more than chance explains"
    names = ", ".join(each.name for each in drifted[:3])
    more = f" and {len(drifted) - 3} more" if len(drifted) > 3 else ""  # noqa: PLR2004
    return f"{what} ▲ {names}{more} moved away from training"


def _kinds(tags: Mapping[str, int]) -> str:
    """Which traffic was looked at; kinds that are mixed are counted."""
    named = {KINDS.get(tag, f"traffic tagged {tag}"): count for tag, count in sorted(tags.items())}
    if len(named) == 1:
        return next(iter(named))
    return f"▲ mixed: {' and '.join(f'{count:,} of {name}' for name, count in named.items())}"


def _psi_summary(drift: Stats, drifted: list[Moved]) -> str:
    return (
        f"{len(drifted)} of {len(drift['features']) + 1} are beyond what chance explains in "
        f"{drift['rows']:,} requests about {drift['distinct']:,} different records, against "
        f"{drift['reference_rows']:,} clients of training ({drift['model']} {drift['version']}). PSI, the "
        "population stability index, is 0 where shares are as in training; grey is what chance makes of so "
        "many records."
    )


def _overlay_summary(feature: str, each: Moved) -> str:
    way = "more than" if each.drifted else "no more than"
    return f"{feature} moved by a PSI of {each.psi:.3f}, {way} the {each.limit:.3f} that chance explains."


def psi_figure(found: list[Moved], look: dict[str, Any], theme: str) -> go.Figure:
    """A bar for each feature, on the band of what chance explains."""
    names = [each.name for each in found][::-1]
    values = [each.psi for each in found][::-1]
    limits = [each.limit for each in found][::-1]
    figure = go.Figure()
    figure.add_bar(
        y=names,
        x=limits,
        orientation="h",
        width=0.9,
        marker={"color": SOFT[theme], "opacity": 0.22},
        name="by chance",
        hovertemplate="%{y}: by chance up to %{x:.3f}<extra></extra>",
    )
    figure.add_bar(
        y=names,
        x=values,
        orientation="h",
        width=0.45,
        marker={
            "color": [
                look["color"] if value > limit else SOFT[theme]
                for value, limit in zip(values, limits, strict=True)
            ],
            "line": {"width": 0},
        },
        text=["▲" if value > limit else "" for value, limit in zip(values, limits, strict=True)],
        textposition="outside",
        cliponaxis=False,
        name="PSI",
        hovertemplate="%{y}: %{x:.3f}<extra></extra>",
    )
    style(figure, theme)
    top = max([*values, *limits, 0.05]) * 1.1
    for limit in USUAL_LIMITS:
        if limit < top:
            figure.add_vline(x=limit, line={"width": 1, "dash": "dot", "color": SOFT[theme]})
            figure.add_annotation(
                x=limit,
                y=1,
                yref="paper",
                yanchor="bottom",
                text=f"{limit:g}",
                showarrow=False,
                font={"size": 11, "color": SOFT[theme]},
            )
    figure.update_layout(barmode="overlay", showlegend=False, margin={"l": 96, "t": 22})
    figure.update_xaxes(title="population stability index", range=[0, top])
    figure.update_yaxes(title=None, showgrid=False, tickfont={"size": 11})
    return figure


def overlay_figure(compared: Stats, look: dict[str, Any], theme: str) -> go.Figure:
    """The shares of the bins in training, as bars, and now, as marks with a line."""
    labels, (before, now) = _labels(compared), _shares(compared)
    places = list(range(len(labels)))
    figure = go.Figure()
    figure.add_bar(
        x=places,
        y=before,
        name="training",
        marker={"color": SOFT[theme], "opacity": 0.45},
        customdata=labels,
        hovertemplate="%{customdata}: %{y:.1%} in training<extra></extra>",
    )
    figure.add_scatter(
        x=places,
        y=now,
        name="now",
        mode="lines+markers",
        line={"color": look["color"], "width": 2, "dash": look["dash"]},
        marker={"symbol": look["symbol"], "size": 8},
        customdata=labels,
        hovertemplate="%{customdata}: %{y:.1%} now<extra></extra>",
    )
    style(figure, theme, legend=True)
    figure.update_layout(bargap=0.1)
    figure.update_xaxes(**_ticks(compared, labels), range=[-0.6, len(labels) - 0.4], tickangle=0)
    figure.update_yaxes(title="share", tickformat=".0%", rangemode="tozero")
    return figure


def _ticks(compared: Stats, labels: list[str]) -> dict[str, Any]:
    """The ticks of an overlay: values below their bars, of bins some of the edges between them."""
    if compared["edges"] is None:
        return {"tickvals": list(range(len(labels))), "ticktext": labels}
    edges = compared["edges"]
    step = -(-len(edges) // MOST_EDGES)
    named = {place - 0.5: _brief(edge) for place, edge in enumerate(edges) if place % step == 0}
    # What is in no bin has its name below it, as a value has.
    named |= {place: label for place, label in enumerate(labels) if place >= len(edges) - 1}
    return {"tickvals": list(named), "ticktext": list(named.values())}


def _brief(edge: float) -> str:
    """A number in so few letters as an axis has room for."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(edge) >= size:
            return f"{edge / size:.3g}{letter}".replace("-", "−")
    return f"{edge:.3g}".replace("-", "−")


def _labels(compared: Stats) -> list[str]:
    if compared["values"] is not None:
        named = [
            value if isinstance(value, str) else str(value).replace("-", "−") for value in compared["values"]
        ]
    else:
        edges = compared["edges"]
        named = [f"{a:,.6g} to {b:,.6g}".replace("-", "−") for a, b in pairwise(edges)]
    missing = ["missing"] if any(compared["missing"]) else []
    return [*named, *missing, *(["other"] if compared["other"] else [])]


def _shares(compared: Stats) -> tuple[list[float], list[float]]:
    before, now = [*compared["reference"]], [*compared["live"]]
    if any(compared["missing"]):
        before.append(compared["missing"][0])
        now.append(compared["missing"][1])
    if compared["other"]:
        before.append(0)
        now.append(compared["other"])
    return [each / max(sum(before), 1) for each in before], [each / max(sum(now), 1) for each in now]
