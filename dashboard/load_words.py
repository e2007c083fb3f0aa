"""Load tests in words, tables and charts; pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log10
from typing import Any, NamedTuple

import dash_mantine_components as dmc
import plotly.graph_objects as go
from dash import html
from pydantic import ValidationError

from dashboard import pieces
from dashboard.charts import INK, SOFT
from dashboard.spreads import DASHES, log_axis, style
from traffic.load import MAX_UNDER_WAY, Moment, Run
from traffic.runs import FIGURES, behind, ms, offered, side_by_side

# A table as texts: its heads, and its rows.
Table = tuple[Sequence[str], Sequence[Sequence[Any]]]

QUANTILES = ("p50", "p95", "p99")
# The ticks of the percentile curve: percentiles, by how rare what is slower is.
PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99, 99.999)
ROWS = 20
# Blue and orange are the variants': runs have others, each with a dash and a mark of its own.
OTHERS = ("#009E73", "#CC79A7")
MARKS = ("circle", "square", "triangle-up", "x")
HATCHES = ("", "/", "x", ".", "\\", "+")


class Drawn(NamedTuple):
    """A chart of runs, the sentence that says what it shows, and the same as a table."""

    figure: Callable[[Sequence[Run], str], go.Figure]
    summary: Callable[[Sequence[Run]], str]
    table: Callable[[Sequence[Run]], Table]


def title(run: Run) -> str:
    """A run in a line."""
    return f"{_time(run)} {run.load.target}, {offered(run)}"


def summary(run: Run | None) -> str:
    """The page in one sentence."""
    if run is None:
        return "Load test: choose a run"
    load, target = run.load, run.load.target
    what = f"{load.users:,} users" if load.users else f"{load.per_second:g} requests a second"
    if _is_starting(run):
        return f"Starting: {what} to {target}"
    if run.state == "running":
        return f"Offering {what} to {target}: {run.ran:.0f} of {load.seconds:g} s"
    if not run.answered:
        return f"▲ {target} answered none of {run.offered:,} requests"
    slow = f"half answered within {_ms(run, 'p50')}, all but 1% within {_ms(run, 'p99')}"
    if run.failed or run.omitted:
        share = (run.failed + run.omitted) / run.offered
        return f"▲ {target} did not keep up with {what}: {share:.1%} went without a good answer, {slow}"
    cut = "" if run.state == "finished" else f" for {run.ran:.0f} s"
    return f"{target} kept up with {what}{cut}: {slow}"


def progress(run: Run | None) -> list[Any]:
    """How far the run that is under way is."""
    if run is None:
        return []
    if _is_starting(run):
        return [html.P("Starting the process that sends …", className="note")]
    done = min(1.0, run.ran / run.load.seconds)
    text = f"Sending: {run.offered:,} requests in {run.ran:.0f} of {run.load.seconds:g} s"
    bar = dmc.Progress(
        value=100 * done,
        animated=True,
        color="var(--ink)",
        mb=6,
        **{"aria-label": "time of the load test"},
    )
    return [bar, html.P(text, className="note")]


def _is_starting(run: Run) -> bool:
    return run.state == "running" and not run.offered


def compared(runs: Sequence[Run]) -> Table:
    """The runs side by side, a column each; and why figures are to be doubted, where they are."""
    rows: list[Sequence[Any]] = list(side_by_side(runs))
    if any(map(behind, runs)):
        rows.append(("▲ the sender was too slow", *(behind(run) or "" for run in runs)))
    if any(run.problem for run in runs):
        rows.append(("first failure", *(run.problem or "" for run in runs)))
    return ("", *map(_time, runs)), rows


def kept(runs: Sequence[Run]) -> html.Table:
    """The runs that there are, with what can be downloaded of them."""
    head = (
        "Begun, UTC",
        "Target",
        "Offered",
        "For",
        "State",
        "Answered",
        "Failed",
        "p50, ms",
        "p99, ms",
        "Export",
    )
    return pieces.table(
        head,
        [
            (
                *(_time(run), run.load.target, offered(run), f"{run.load.seconds:g} s", run.state),
                *(f"{run.answered:,}", f"{run.failed:,}", ms(run, "p50"), ms(run, "p99")),
                [_download(run, "csv"), " ", _download(run, "json")],
            )
            for run in runs
        ],
    )


def broken_rule(error: ValidationError) -> str:
    """Which field breaks which rule."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    return f"{field}: {first['msg']}." if field else f"{first['msg']}."


def _keeping(runs: Sequence[Run], theme: str) -> go.Figure:
    """What was due and what was answered, by second."""
    figure = go.Figure()
    moments = _moments(runs)
    for name, dash, colour in (("offered", "dash", SOFT[theme]), ("answered", "solid", INK[theme])):
        figure.add_scatter(
            x=[each.at for each in moments],
            y=[each.offered if name == "offered" else each.achieved for each in moments],
            mode="lines",
            name=name,
            line={"width": 2, "dash": dash, "color": colour},
            hovertemplate=f"%{{y:.1f}} {name} a second at %{{x:.0f}} s<extra></extra>",
        )
    return _by_second(figure, theme, "requests per second")


def _keeping_summary(runs: Sequence[Run]) -> str:
    if not runs:
        return "No run is chosen."
    run = runs[0]
    most = max((each.achieved for each in run.moments), default=0.0)
    return (
        f"{run.offered:,} requests were due, {run.answered:,} were answered well; "
        f"at most {most:,.0f} in a second."
    )


def _keeping_table(runs: Sequence[Run]) -> Table:
    rows = [(f"{each.at:g}", f"{each.offered:.1f}", f"{each.achieved:.1f}") for each in _newest(runs)]
    return ("Second", "Offered, per second", "Answered, per second"), rows


def _taking(runs: Sequence[Run], theme: str) -> go.Figure:
    """Quantiles of the latency, by second."""
    figure = go.Figure()
    moments = _moments(runs)
    for name, dash in zip(QUANTILES, DASHES, strict=False):
        known = [(each.at, getattr(each, name)) for each in moments]
        figure.add_scatter(
            x=[at for at, _ in known],
            y=[value for _, value in known],
            mode="lines",
            name=name,
            line={"width": 2, "dash": dash, "color": INK[theme]},
            hovertemplate=f"{name} %{{y:.1f}} ms at %{{x:.0f}} s<extra></extra>",
        )
    _by_second(figure, theme, "latency, ms")
    figure.update_yaxes(rangemode="normal", **_ms_axis(figure))
    return figure


def _taking_summary(runs: Sequence[Run]) -> str:
    if not runs or not runs[0].latency:
        return "Nothing was answered."
    worst = max((each.p99 or 0.0 for each in runs[0].moments), default=0.0)
    return (
        f"Half are answered within {_ms(runs[0], 'p50')}, all but 1% within {_ms(runs[0], 'p99')}; "
        f"in its worst second all but 1% took up to {worst:,.1f} ms."
    )


def _taking_table(runs: Sequence[Run]) -> Table:
    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:,.1f}"

    rows = [(f"{each.at:g}", *map(shown, (each.p50, each.p95, each.p99))) for each in _newest(runs)]
    return ("Second", *(f"{name}, ms" for name in QUANTILES)), rows


def _failing(runs: Sequence[Run], theme: str) -> go.Figure:
    """Failures by second, a bar on the other for each kind."""
    figure = go.Figure()
    moments = _moments(runs)
    for number, kind in enumerate(runs[0].errors if runs else ()):
        figure.add_bar(
            x=[each.at for each in moments],
            y=[each.errors.get(kind, 0) for each in moments],
            name=kind,
            marker={
                "color": INK[theme] if number % 2 == 0 else SOFT[theme],
                "line": {"width": 0},
                "pattern": {"shape": HATCHES[number % len(HATCHES)], "fillmode": "replace"},
            },
            hovertemplate=f"{kind}: %{{y:,}} at %{{x:.0f}} s<extra></extra>",
        )
    _by_second(figure, theme, "failures")
    figure.update_layout(barmode="stack", bargap=0.1)
    return figure


def _failing_summary(runs: Sequence[Run]) -> str:
    if not runs:
        return "No run is chosen."
    run = runs[0]
    told = ", ".join(f"{count:,} × {kind}" for kind, count in run.errors.items())
    waited = f" {run.omitted:,} were not asked, since their users still waited." if run.omitted else ""
    if not told:
        return f"Nothing failed.{waited}"
    most = (
        f" More than {MAX_UNDER_WAY} are never under way at once." if "not sent in time" in run.errors else ""
    )
    return f"{told}.{waited}{most}"


def _failing_table(runs: Sequence[Run]) -> Table:
    kinds = list(runs[0].errors) if runs else []
    rows = [
        (f"{each.at:g}", *(f"{each.errors.get(kind, 0):,}" for kind in kinds))
        for each in _newest(runs)
        if each.errors
    ]
    return ("Second", *kinds), rows


def _percentiles(runs: Sequence[Run], theme: str) -> go.Figure:
    """The latency at each percentile; the rarer what is slower, the farther to the right."""
    figure = go.Figure()
    colours = (INK[theme], *OTHERS, SOFT[theme])
    for number, run in enumerate(runs):
        # At 100 % it would be infinitely far to the right.
        points = [(1 / (1 - level / 100), value) for level, value in run.curve if level < 100]  # noqa: PLR2004
        figure.add_scatter(
            x=[x for x, _ in points],
            y=[value for _, value in points],
            customdata=[100 - 100 / x for x, _ in points],
            mode="lines+markers",
            name=f"{_clock(run)} {run.load.target}, {offered(run)}",
            line={"width": 2, "dash": DASHES[number], "color": colours[number]},
            marker={"symbol": MARKS[number], "size": 5},
            hovertemplate="%{customdata:.4~f}% within %{y:.1f} ms<extra></extra>",
        )
    style(figure, theme, legend=True)
    most = max((x for trace in figure.data for x in trace.x), default=10.0)
    figure.update_xaxes(
        title="percentile",
        type="log",
        range=[0, max(1.0, log10(most) + 0.05)],
        tickvals=[1, *(1 / (1 - each / 100) for each in PERCENTILES)],
        ticktext=["0%", *(f"{each:g}%" for each in PERCENTILES)],
    )
    figure.update_yaxes(title="latency, ms", **_ms_axis(figure))
    return figure


def _percentiles_summary(runs: Sequence[Run]) -> str:
    told = [
        f"{_clock(run)} {run.load.target}: 1 in 1,000 took longer than {_ms(run, 'p99.9')}"
        for run in runs
        if run.curve
    ]
    return f"{'; '.join(told)}." if told else "The curve is drawn when a run is over."


def _percentiles_table(runs: Sequence[Run]) -> Table:
    rows = [(_time(run), run.load.target, *(ms(run, name) for name in FIGURES)) for run in runs]
    return ("Begun, UTC", "Target", *(f"{name}, ms" for name in FIGURES)), rows


figures = {
    "keeping": Drawn(_keeping, _keeping_summary, _keeping_table),
    "taking": Drawn(_taking, _taking_summary, _taking_table),
    "failing": Drawn(_failing, _failing_summary, _failing_table),
    "percentiles": Drawn(_percentiles, _percentiles_summary, _percentiles_table),
}


def _by_second(figure: go.Figure, theme: str, what: str) -> go.Figure:
    style(figure, theme, legend=True)
    figure.update_xaxes(title="second", rangemode="tozero")
    figure.update_yaxes(title=what, rangemode="tozero")
    return figure


def _ms_axis(figure: go.Figure) -> dict[str, Any]:
    """A logarithmic axis for all that is drawn, with some room."""
    drawn = [value for trace in figure.data for value in trace.y if value]
    return log_axis(min(drawn) / 1.1, 1.1 * max(drawn)) if drawn else {}


def _moments(runs: Sequence[Run]) -> Sequence[Moment]:
    """Those of the first run; the last one is still coming while it runs."""
    if not runs:
        return ()
    return runs[0].moments[:-1] if runs[0].state == "running" else runs[0].moments


def _newest(runs: Sequence[Run]) -> Sequence[Moment]:
    return _moments(runs)[: -ROWS - 1 : -1]


def _download(run: Run, form: str) -> html.A:
    return html.A(
        form.upper(),
        href=f"./load-runs/{run.id}.{form}",
        className="more",
        download="",
        title=f"{title(run)}",
    )


def _time(run: Run) -> str:
    return f"{run.began[:10]} {_clock(run)}"


def _clock(run: Run) -> str:
    return run.began[11:19]


def _ms(run: Run, name: str) -> str:
    return f"{ms(run, name)} ms"
