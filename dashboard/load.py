"""The page of the load test: what is offered, what is achieved, how long it takes, and what fails."""

from __future__ import annotations

from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, ctx, dcc, html, no_update
from flask import Response
from pydantic import ValidationError

from dashboard import acting, load_words, pieces, shell
from dashboard.load_words import figures
from dashboard.router_client import RouterClient
from runoff import web
from runoff.problems import NotFound
from traffic.clients import HELD_OUT, KINDS
from traffic.load import MAX_RATE, MAX_SECONDS, MAX_USERS, Load, Run
from traffic.load_process import Loader
from traffic.plan import MAX_SEED
from traffic.runs import NoSuchRun, as_csv

PATH, TITLE = "load", "Load test"
HEEDS: tuple[str, ...] = ()

RATE, USERS = "rate", "users"
HOW = {RATE: "Requests per second", USERS: "Users, who wait for answers"}
# Runs that are listed, and those that fit beside each other.
LISTED, MOST = 50, 4
SAMPLE = {"rate": 20.0, "seconds": 10.0}
CHARTS = ("keeping", "taking", "failing", "percentiles")
Chosen = list[str]


def layout() -> html.Div:
    """The page before anything is known."""
    return html.Div(
        [
            dcc.Store(id="load-seen"),
            dcc.Store(id="load-commanded"),
            html.H1("Load test", id="load-summary", **{"aria-live": "polite"}),  # type: ignore[arg-type]
            html.Div(
                className="columns",
                children=[
                    html.Div([_form(), acting.panel()], className="stack aside"),
                    html.Div(
                        className="results", children=[html.Div(id="load-empty", hidden=True), _shown()]
                    ),
                ],
            ),
        ]
    )


def _form() -> html.Section:
    return html.Section(
        className="card simulation",
        **{"aria-label": "Load"},  # type: ignore[arg-type]
        children=dmc.Stack(
            gap="sm",
            children=[
                html.H2("Offer a load"),
                dmc.Select(id="load-target", label="Target", data=[], allowDeselect=False),
                pieces.select("load-how", "Offer", HOW, RATE),
                html.Div(
                    className="two",
                    children=[
                        dmc.NumberInput(
                            id="load-height",
                            label=_height(RATE),
                            value=50,
                            min=1,
                            step=50,
                            hideControls=True,
                        ),
                        dmc.NumberInput(
                            id="load-seconds",
                            label=f"Seconds ≤ {MAX_SECONDS}",
                            value=30,
                            min=1,
                            max=MAX_SECONDS,
                            step=10,
                            hideControls=True,
                        ),
                        dmc.NumberInput(
                            id="load-ramp",
                            label="Ramp, s",
                            value=0,
                            min=0,
                            max=MAX_SECONDS,
                            step=5,
                            hideControls=True,
                        ),
                        dmc.NumberInput(
                            id="load-seed",
                            label="Seed",
                            value=1,
                            min=0,
                            max=MAX_SEED,
                            step=1,
                            hideControls=True,
                        ),
                    ],
                ),
                pieces.select(
                    "load-kind", "Who asks", {kind: pieces.kind_title(kind) for kind in KINDS}, HELD_OUT
                ),
                dmc.Group(
                    grow=True,
                    gap="sm",
                    mt=4,
                    children=[
                        dmc.Button("Start", id="load-start", className="primary", disabled=True),
                        dmc.Button("Stop", id="load-stop", variant="default", disabled=True),
                    ],
                ),
                html.Div(id="load-progress", **{"aria-live": "polite"}),  # type: ignore[arg-type]
                html.Div(id="load-trouble", **{"aria-live": "polite"}),  # type: ignore[arg-type]
                html.P(
                    "It runs in a process of its own, ends by itself, and goes to these targets alone. Each "
                    "request is due at a moment decided beforehand, and latency counts from then. It is "
                    "tagged load-test. Opening this page sends nothing.",
                    className="note",
                ),
            ],
        ),
    )


def _shown() -> html.Div:
    return html.Div(
        id="load-charts",
        className="loading charts",
        children=[
            html.Section(
                className="card",
                children=[
                    dmc.MultiSelect(
                        id="load-runs",
                        label="Runs",
                        description=f"The first one is shown in full; up to {MOST} are compared.",
                        data=[],
                        value=[],
                        maxValues=MOST,
                        searchable=True,
                    ),
                ],
            ),
            html.Div(
                [
                    pieces.chart("keeping", "Does it keep up?", height=240),
                    pieces.chart("taking", "How long does an answer take?", height=240),
                ],
                className="pair",
            ),
            html.Div(
                [
                    pieces.chart("percentiles", "How long do the slowest take?", height=260),
                    pieces.chart("failing", "What fails?", height=260),
                ],
                className="pair",
            ),
            html.Section(
                className="card",
                children=[
                    html.H2("Side by side"),
                    html.Div(id="load-compared", className="scroll", tabIndex="0"),
                ],
            ),
            html.Section(
                className="card",
                children=[
                    html.H2("Runs that were kept"),
                    html.P("Newest first.", className="note"),
                    html.Div(id="load-kept", className="scroll", tabIndex="0"),
                ],
            ),
        ],
    )


def _height(how: str) -> str:
    return f"Per s ≤ {MAX_RATE:,}" if how == RATE else f"Users ≤ {MAX_USERS:,}"


OUTPUTS = {
    "seen": Output("load-seen", "data"),
    "summary": Output("load-summary", "children"),
    "progress": Output("load-progress", "children"),
    "cannot_stop": Output("load-stop", "disabled"),
    "cannot_start": Output("load-start", "disabled"),
    "targets": Output("load-target", "data"),
    "target": Output("load-target", "value"),
    "not_empty": Output("load-empty", "hidden"),
    "why_empty": Output("load-empty", "children"),
    "no_charts": Output("load-charts", "hidden"),
    "charts_class": Output("load-charts", "className"),
    "runs": Output("load-runs", "data"),
    "chosen": Output("load-runs", "value"),
    "compared": Output("load-compared", "children"),
    "kept": Output("load-kept", "children"),
    "nothing_failed": Output("failing-drawn", "hidden"),
    **{
        f"{name}_{what}": Output(f"{name}-{what}", prop)
        for name in CHARTS
        for what, prop in (("chart", "figure"), ("summary", "children"), ("table", "children"))
    },
}


def register(app: Dash, router: RouterClient, loader: Loader) -> None:
    """Let the page live."""
    _show(app, loader)
    _command(app, router, loader)
    _export(app, loader)

    @app.callback(Output("load-height", "label"), Output("load-height", "max"), Input("load-how", "value"))
    def bound(how: str) -> tuple[str, int]:
        return _height(how), MAX_RATE if how == RATE else MAX_USERS

    # Which runs are looked at stands in the address, so that a link shows them.
    shell.keep(app, "load-runs")


def _show(app: Dash, loader: Loader) -> None:
    @app.callback(
        OUTPUTS,
        Input("tick", "data"),
        Input("load-commanded", "data"),
        Input("load-runs", "value"),
        Input("look", "data"),
        Input("may-act", "data"),
        State("url", "search"),
        State("load-target", "value"),
        State("load-seen", "data"),
    )
    def refresh(
        _tick: Any,
        commanded: Any,
        chosen: Chosen | None,
        look: Any,
        may: bool | None,
        search: str | None,
        target: str | None,
        seen: Any,
    ) -> dict[str, Any]:
        runs = loader.runs.newest(LISTED)
        running = loader.running
        names = list(loader.targets)
        news: dict[str, Any] = dict.fromkeys(OUTPUTS, no_update) | {
            "progress": load_words.progress(next((each for each in runs if each.id == running), None)),
            "cannot_start": running is not None or not may,
            "cannot_stop": running is None or not may,
        }
        if target is None:
            news |= {"targets": names, "target": names[0]}
        if not runs:
            why = f"Nothing was measured yet. Targets are {', '.join(names)}."
            return news | {
                "not_empty": False,
                "why_empty": _empty(why, may=bool(may)) if seen != [may] else no_update,
                "no_charts": True,
                "seen": [may],
            }
        # Told by what was seen, not by what called: calls are answered in any order.
        if commanded and commanded["run"] and [commanded] != (seen or [])[:1]:
            chosen = [commanded["run"]]
        elif seen is None or seen == [may]:
            asked = shell.kept(search, "runs")
            chosen = asked.split(",") if asked else [runs[0].id]
        shown = _known(loader, chosen or [])
        theme = (look or {}).get("theme", "light")
        now = [commanded, *([each.id, each.updated, each.state] for each in (*shown, *runs)), theme]
        if now == seen:
            return news
        return news | _drawn(shown, runs, theme) | {"seen": now}


def _empty(why: str, *, may: bool) -> html.Section:
    label = f"Offer {SAMPLE['rate']:g} requests a second for {SAMPLE['seconds']:g} s"
    return pieces.empty(
        "No load test yet", why, dmc.Button(label, id="load-sample", className="primary", disabled=not may)
    )


def _known(loader: Loader, ids: Chosen) -> list[Run]:
    """The chosen runs that there are, at most as many as fit."""
    found = []
    for each in ids[:MOST]:
        try:
            found.append(loader.runs.get(each))
        except NoSuchRun:
            continue
    return found


def _drawn(shown: list[Run], runs: list[Run], theme: str) -> dict[str, Any]:
    first = shown[0] if shown else None
    told: dict[str, Any] = {
        "summary": load_words.summary(first),
        "not_empty": True,
        "no_charts": False,
        "charts_class": "charts",
        "runs": [{"value": each.id, "label": load_words.title(each)} for each in _once(shown, runs)],
        "chosen": [each.id for each in shown],
        "compared": pieces.table(*load_words.compared(shown)) if shown else [],
        "kept": load_words.kept(runs),
        "nothing_failed": not (first and first.errors),
    }
    for name in CHARTS:
        drawn = figures[name]
        told |= {
            f"{name}_chart": drawn.figure(shown, theme),
            f"{name}_summary": drawn.summary(shown),
            f"{name}_table": pieces.table(*drawn.table(shown)),
        }
    return told


def _once(shown: list[Run], runs: list[Run]) -> list[Run]:
    """All runs that can be chosen: those that are shown may be older than those that are listed."""
    return list({each.id: each for each in (*runs, *shown)}.values())


def _command(app: Dash, router: RouterClient, loader: Loader) -> None:
    @app.callback(
        Output("load-commanded", "data"),
        Output("load-trouble", "children"),
        Input("load-start", "n_clicks"),
        Input("load-stop", "n_clicks"),
        Input("load-sample", "n_clicks", allow_optional=True),
        {
            "target": State("load-target", "value"),
            "how": State("load-how", "value"),
            "height": State("load-height", "value"),
            "seconds": State("load-seconds", "value"),
            "ramp": State("load-ramp", "value"),
            "kind": State("load-kind", "value"),
            "seed": State("load-seed", "value"),
        },
        State("operator-key", "data"),
        prevent_initial_call=True,
    )
    def command(
        start: int | None, stop: int | None, sample: int | None, form: dict[str, Any], key: str | None
    ) -> tuple[Any, Any]:
        if not (start or stop or sample):
            return no_update, no_update
        # The button cannot be pressed by whoever may not, but a request can be sent.
        may, why = acting.may_act(router, key)
        if not may:
            return no_update, pieces.notice("Nothing was done", why)
        run: str | None = None
        trouble: Any = []
        if ctx.triggered_id == "load-stop":
            loader.stop()
        else:
            run, trouble = _start(loader, form, key, sample=ctx.triggered_id == "load-sample")
        return {"run": run, "clicks": [start, stop, sample]}, trouble


def _start(loader: Loader, form: dict[str, Any], key: str | None, *, sample: bool) -> tuple[str | None, Any]:
    """Start what the form says, or the sample: the id of the run, or what is in the way."""
    try:
        run = loader.start(_sampled(form) if sample else _asked(form), key)
    except ValidationError as error:
        return None, pieces.notice("This load cannot be offered", load_words.broken_rule(error))
    except KeyError:
        return None, pieces.notice("There is no such target", "Choose one that is listed.")
    if run is None:
        return None, pieces.notice("One at a time", "Another load test is running: stop it, or wait.")
    return run, []


def _asked(form: dict[str, Any]) -> Load:
    """What the form says; raises ValidationError, as an empty field does, too."""
    height = {form["how"]: form["height"]}
    rest = {name: form[name] for name in ("target", "seconds", "ramp", "kind", "seed")}
    # A field may hold nothing while somebody types.
    return Load.model_validate(
        {name: "" if value is None else value for name, value in (rest | height).items()}
    )


def _sampled(form: dict[str, Any]) -> Load:
    return Load.model_validate(SAMPLE | {"target": form["target"]})


def _export(app: Dash, loader: Loader) -> None:
    def run(name: str) -> Response:
        """A run as JSON, or its moments as CSV."""
        id_, _, form = name.rpartition(".")
        try:
            found = loader.runs.get(id_)
        except NoSuchRun as error:
            return web.answer_problem(NotFound(str(error)))
        content = {"json": lambda: found.model_dump_json(indent=2), "csv": lambda: as_csv(found)}
        if form not in content:
            return web.answer_problem(NotFound(f"a run can be downloaded as {id_}.json or {id_}.csv"))
        disposition = {"Content-Disposition": f'attachment; filename="load-{name}"'}
        kind = "text/csv" if form == "csv" else "application/json"
        return Response(content[form](), mimetype=kind, headers=disposition)

    app.server.add_url_rule("/load-runs/<name>", "load-runs", run)
