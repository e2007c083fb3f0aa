"""The card by which simulated traffic is sent: who asks, how they come, and what happens to them."""

from __future__ import annotations

from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, ctx, html, no_update

from dashboard import acting
from dashboard.pieces import kind_title, notice, select
from dashboard.router_client import RouterClient, RouterDown
from dashboard.simulation import (
    MAX_CONCURRENCY,
    MAX_LATE,
    MAX_RATE,
    MAX_REQUESTS,
    MAX_SECONDS,
    NONE,
    REQUESTS,
    Simulator,
    Wish,
)
from traffic.clients import KINDS
from traffic.faults import Break
from traffic.plan import MAX_SEED
from traffic.simulation import Order, Progress

PACES = {
    REQUESTS: "A number of requests",
    "steady": "A steady stream",
    "bursts": "Bursts",
    "ramp": "A ramp, slow at first",
}
DRIFTS = {
    NONE: "Nothing",
    "two-months-late": "All pay two months late",
    "half-limits": "All limits are halved",
}
FAULTS = {
    NONE: "Nothing",
    "errors": "Fails every other time",
    "slow": "Answers 0.3 s late",
    "upside-down": "Says 1 − p for p",
}
NEEDS_KEY = "To send it takes the operator's key: type it in under Operator, on this page."


def card(usual: Wish) -> html.Section:
    """The form, filled in with what is usual."""
    return html.Section(
        className="card simulation",
        **{"aria-label": "Simulation"},  # type: ignore[arg-type]
        children=dmc.Stack(
            gap="sm",
            children=[
                html.H2("Simulate traffic"),
                select("kind", "Who asks", {kind: kind_title(kind) for kind in KINDS}, usual.kind),
                select("pace", "How they come", PACES, usual.pace),
                html.Div(
                    id="of-requests",
                    className="two",
                    children=[
                        _number("requests", "Requests", usual.requests, (1, MAX_REQUESTS), step=50),
                        _number("concurrency", "At once", usual.concurrency, (1, MAX_CONCURRENCY)),
                    ],
                ),
                html.Div(
                    id="of-streams",
                    hidden=True,
                    className="two",
                    children=[
                        _number("per-second", "Per second", usual.rate, (1, MAX_RATE)),
                        _number("seconds", "Seconds", usual.seconds, (1, MAX_SECONDS), step=30),
                    ],
                ),
                _more(usual),
                dmc.Group(
                    grow=True,
                    gap="sm",
                    mt=4,
                    children=[
                        dmc.Button("Send", id="send", className="primary", disabled=True),
                        dmc.Button("Stop", id="stop", variant="default", disabled=True),
                    ],
                ),
                html.P(id="send-why", className="note", **{"aria-live": "polite"}),  # type: ignore[arg-type]
                html.Div(id="send-trouble", **{"aria-live": "polite"}),  # type: ignore[arg-type]
                html.Div(id="progress", **{"aria-live": "polite"}),  # type: ignore[arg-type]
                html.P(
                    "Each request goes through the router to a model, and is tagged as simulated. "
                    "Opening this page sends nothing.",
                    className="note",
                ),
            ],
        ),
    )


def _more(usual: Wish) -> html.Details:
    return html.Details(
        [
            html.Summary("Outcomes, drift, faults, seed"),
            dmc.Stack(
                gap="sm",
                mt=6,
                children=[
                    dmc.NumberInput(
                        id="late",
                        label="Report true outcomes after, s",
                        description="On average; leave empty to report none. The verdict rests on them.",
                        value=usual.late,
                        min=0,
                        max=MAX_LATE,
                        allowDecimal=False,
                        hideControls=True,
                    ),
                    select("drift", "What happens to those who ask", DRIFTS, usual.drift),
                    select(
                        "fault",
                        "What happens to the challenger",
                        FAULTS,
                        usual.fault,
                        "For simulated requests alone. A change of the experiment, to be confirmed, and "
                        "taken back at the end: meanwhile is a phase of its own.",
                    ),
                    html.P(
                        "A stream drifts and breaks at half time, a number of requests from the first.",
                        className="note",
                    ),
                    _number("seed", "Seed", usual.seed, (0, MAX_SEED)),
                ],
            ),
        ]
    )


def _number(name: str, label: str, value: int, bounds: tuple[int, int], step: int = 1) -> dmc.NumberInput:
    least, most = bounds
    return dmc.NumberInput(
        id=name,
        label=f"{label} ≤ {most:,}",
        value=value,
        min=least,
        max=most,
        step=step,
        allowDecimal=False,
        hideControls=True,
    )


def register(app: Dash, router: RouterClient, simulator: Simulator) -> None:
    """Let the form live: what it shows follows how requests come, and its buttons send and stop."""

    @app.callback(Output("of-requests", "hidden"), Output("of-streams", "hidden"), Input("pace", "value"))
    def follow(pace: str) -> tuple[bool, bool]:
        return pace != REQUESTS, pace == REQUESTS

    @app.callback(
        Output("commanded", "data"),
        Output("proposal", "data", allow_duplicate=True),
        Output("send-trouble", "children"),
        Input("send", "n_clicks"),
        Input("stop", "n_clicks"),
        Input("sample", "n_clicks"),
        {
            "kind": State("kind", "value"),
            "pace": State("pace", "value"),
            "drift": State("drift", "value"),
            "fault": State("fault", "value"),
        },
        {
            "requests": State("requests", "value"),
            "concurrency": State("concurrency", "value"),
            "rate": State("per-second", "value"),
            "seconds": State("seconds", "value"),
            "seed": State("seed", "value"),
        },
        State("late", "value"),
        State("operator-key", "data"),
        prevent_initial_call=True,
    )
    def command(
        send: int | None,
        stop: int | None,
        sample: int | None,
        chosen: dict[str, Any],
        counts: dict[str, Any],
        late: Any,
        key: str | None,
    ) -> tuple[Any, Any, Any]:
        proposed: Any = no_update
        trouble: list[Any] = []
        if ctx.triggered_id == "stop":
            simulator.stop()
        elif ctx.triggered_id == "sample":
            simulator.start(Wish().order(), key)
        else:
            # A field may hold nothing or a piece of a number while somebody types.
            numbers: dict[str, Any] = {
                name: int(value) for name, value in counts.items() if isinstance(value, int | float)
            }
            late = int(late) if isinstance(late, int | float) else None
            wish = Wish(**chosen, **numbers, late=late)
            if wish.fault == NONE:
                simulator.start(wish.order(), key)
            else:
                proposed, trouble = _breaking(router, wish)
        return [send, stop, sample], proposed, trouble


def _breaking(router: RouterClient, wish: Wish) -> tuple[Any, Any]:
    """A simulation in which the first challenger breaks, to be confirmed; or what is in the way of it."""
    try:
        stats = router.stats(None)
    except RouterDown as error:
        return no_update, notice("Nothing can be proposed now", f"The router: {error}.")
    found = next((each for each in stats["variants"] if each["role"] == "challenger"), None)
    if found is None:
        return no_update, notice("Nobody can be broken", "The experiment has no challenger.")
    order = wish.order(found["name"], stats["version"])
    assert order.broken
    name, since = found["name"], "half time" if order.broken.at else "the first"
    lines = [
        f"{_does(order.broken)}: simulated requests alone, from {since} on",
        f"{name} at {found['url']} → at a service of this dashboard, which passes on all other requests as "
        "they are",
        "This is a change of the experiment, which is taken back at the end: meanwhile is a phase of its "
        "own, and then the present one goes on",
    ]
    return acting.simulation(f"Simulate with {name} broken", lines, order), []


def told(order: Order | None, run: Progress) -> list[Any]:
    """How far the simulation is, and what went wrong first."""
    if order is None:
        return []
    if order.requests:
        done = run.done / order.requests
        text = f"{run.done:,} of {order.requests:,}"
    else:
        whole = order.plan.seconds
        done = min(1.0, run.seconds / whole)
        text = f"{run.done:,} in {min(run.seconds, whole):.0f}"
        text += f" of {whole:.0f} s" if run.sending or run.stopped else " s"
    text = f"{'Sending' if run.sending else 'Stopped' if run.stopped else 'Sent'}: {text}"
    if run.failed:
        text += f", {run.failed:,} failed"
    if run.not_sent:
        text += f", {run.not_sent:,} not sent in time"
    bar = dmc.Progress(
        value=100 * done,
        animated=run.sending,
        color="var(--ink)",
        mb=6,
        **{"aria-label": "requests sent"},
    )
    notes = [html.P(text, id="progress-text", className="note")]
    if order.outcomes:
        to_come = f", {run.untold:,} to come" if run.untold else ""
        notes.append(
            html.P(f"Outcomes: {run.told:,} told{to_come}", id="progress-outcomes", className="note")
        )
    if run.sending:
        notes.append(html.P(_going_on(order, run), className="note"))
    if run.problem:
        notes.append(html.P(f"First failure: {run.problem}", className="note"))
    return [bar, *notes]


def _going_on(order: Order, run: Progress) -> str:
    """Who asks, and what has happened to them and to the challenger by now."""
    words = [kind_title(order.plan.kind)]
    if order.plan.drift and run.seconds >= order.plan.drift_at:
        words.append(DRIFTS[order.plan.drift].lower())
    if order.broken and run.seconds >= order.broken.at:
        words.append(_does(order.broken))
    return "; ".join(words)


def _does(broken: Break) -> str:
    """What a variant does that is broken: "B answers 0.3 s late"."""
    words = FAULTS[broken.fault]
    return f"{broken.variant} {words[0].lower()}{words[1:]}"
