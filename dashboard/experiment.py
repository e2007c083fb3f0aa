"""The page of the experiment: what is in force, how it is changed, and who changed it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.development.base_component import Component

from dashboard import acting, changes, charts, pieces, verdict_words
from dashboard.changes import Answer, percent
from dashboard.router_client import RouterClient, RouterDown

PATH, TITLE = "experiment", "Experiment"
HEEDS: tuple[str, ...] = ()

MAX_ENTRIES = 50
# Of what an entry changed in the document: the rest is counted.
MOST_LINES = 6

# What the audit calls an action, in words.
ACTIONS = {
    "configure": "Read from the configuration file",
    "set": "Document set",
    "promote": "Promoted",
    "pause": "Paused",
    "resume": "Resumed",
    "hold": "Held where it was",
    "ramp": "Ramped",
    "carry": "Weights carried over",
    "step": "Canary went a step on",
    "regress": "Canary went back",
    "update": "Bandit updated",
}
BUTTONS = ("ramp", "switch", "pause", "hold", "promote", "edit", "undo")


def layout() -> html.Div:
    """The page before anything is known."""
    return html.Div(
        [
            dcc.Store(id="experiment-seen"),
            # What cannot be done now, and why, by button.
            dcc.Store(id="impossible", data={}),
            # The document as it was last put into its field, and as it was last proposed from there.
            dcc.Store(id="document-filled"),
            dcc.Store(id="document-proposed"),
            html.H1("Experiment", id="experiment-summary"),
            html.Div(
                className="columns wide",
                children=[
                    html.Div(
                        className="stack",
                        children=[
                            html.Div(
                                className="card",
                                children=[
                                    html.Div(pieces.skeletons(180), id="in-force"),
                                    html.P(id="judged", className="note"),
                                ],
                            ),
                            acting.panel(),
                            _controls(),
                        ],
                    ),
                    html.Section(
                        className="card",
                        children=[
                            html.H2("What was done"),
                            html.P(
                                "Newest first. Nothing is ever taken out of it: an undo is a further entry.",
                                className="note",
                            ),
                            dmc.Button(
                                "Undo the newest", id="undo", variant="default", disabled=True, mt="xs"
                            ),
                            html.Ol(
                                [html.Li(each) for each in pieces.skeletons(60, 60, 60)],
                                id="timeline",
                                className="timeline",
                            ),
                        ],
                    ),
                ],
            ),
        ]
    )


def _controls() -> html.Section:
    return html.Section(
        className="card",
        children=[
            html.H2("Change it"),
            html.P(
                "Each button shows what would change first, and asks for a reason. The router decides.",
                className="note",
            ),
            html.Div(
                className="control-row",
                children=[
                    dmc.Select(id="ramp-variant", label="Variant", data=[], allowDeselect=False),
                    dmc.NumberInput(
                        id="ramp-share",
                        label="Share, %",
                        value=50,
                        min=0,
                        max=100,
                        step=5,
                        decimalScale=1,
                        hideControls=True,
                    ),
                    dmc.Button("Ramp …", id="ramp", variant="default", disabled=True),
                ],
            ),
            html.Div(
                className="control-row",
                children=[
                    dmc.Select(
                        id="mode",
                        label="Mode",
                        data=[{"value": mode, "label": mode.capitalize()} for mode in changes.MODES],
                        allowDeselect=False,
                    ),
                    dmc.Button("Switch …", id="switch", variant="default", disabled=True),
                ],
            ),
            html.Div(
                className="control-row four",
                children=[
                    dmc.Select(id="promote-variant", label="Champion", data=[], allowDeselect=False),
                    dmc.Button("Promote …", id="promote", variant="default", disabled=True),
                    dmc.Button("Pause …", id="pause", variant="default", disabled=True),
                    dmc.Button("Hold …", id="hold", variant="default", disabled=True),
                ],
            ),
            html.Ul(id="impossible-why", className="note", **{"aria-live": "polite"}),  # type: ignore[arg-type]
            html.Details(
                [
                    html.Summary("Weights, guardrails, steps: the whole document"),
                    dmc.Textarea(
                        id="document",
                        label="Document, JSON",
                        description="Its fields are described in docs/experiment.md.",
                        autosize=True,
                        minRows=8,
                        maxRows=24,
                        spellCheck=False,
                        className="code",
                    ),
                    dmc.Group(
                        gap="sm",
                        mt="xs",
                        children=[
                            dmc.Button("Set …", id="edit", variant="default", disabled=True),
                            dmc.Button("Take what is in force", id="document-take", variant="default"),
                        ],
                    ),
                    html.Div(id="document-outdated", **{"aria-live": "polite"}),  # type: ignore[arg-type]
                ]
            ),
            html.Div(id="proposal-trouble", **{"aria-live": "polite"}),  # type: ignore[arg-type]
        ],
    )


def register(app: Dash, router: RouterClient) -> None:
    """Let the page live."""
    _show(app, router)
    _fill(app, router)
    _propose(app, router)

    @app.callback(
        *(Output(name, "disabled") for name in BUTTONS),
        Output("impossible-why", "children"),
        Input("may-act", "data"),
        Input("impossible", "data"),
    )
    def allow(may: bool | None, impossible: dict[str, str]) -> tuple[Any, ...]:
        why = [html.Li(each) for each in impossible.values()]
        return *(not may or name in impossible for name in BUTTONS), why


def _show(app: Dash, router: RouterClient) -> None:
    @app.callback(
        Output("experiment-summary", "children"),
        Output("in-force", "children"),
        Output("timeline", "children"),
        Output("ramp-variant", "data"),
        Output("ramp-variant", "value"),
        Output("promote-variant", "data"),
        Output("promote-variant", "value"),
        Output("mode", "value"),
        Output("pause", "children"),
        Output("hold", "children"),
        Output("impossible", "data"),
        Output("experiment-seen", "data"),
        Output("judged", "children"),
        Input("tick", "data"),
        Input("changed", "data"),
        State("experiment-seen", "data"),
        State("ramp-variant", "value"),
        State("promote-variant", "value"),
    )
    def refresh(
        _tick: Any, changed: Any, seen: list[Any] | None, ramped: str | None, promoted: str | None
    ) -> tuple[Any, ...]:
        nothing = (no_update,) * 12
        try:
            state = router.state()
            now = [changed, *(state[name] for name in ("version", "allocation", "held", "paused"))]
            if seen == now:
                return (*nothing, _judged(state))
            document = router.experiment()
            entries = router.audit(MAX_ENTRIES)
        except RouterDown:
            return (*nothing, no_update)
        names = [each["name"] for each in document["variants"]]
        first = changes.champion(document)
        others = [name for name in names if name != first] or names
        return (
            _summary(state),
            _in_force(state, document),
            _timeline(entries),
            names,
            ramped if ramped in names else others[0],
            names,
            promoted if promoted in names else others[0],
            # What somebody chooses stays, but where another version came into force.
            no_update if seen and state["version"] in seen[1:2] else state["mode"],
            "Resume …" if state["paused"] else "Pause …",
            "Resume …" if state["held"] else "Hold …",
            _impossible(state),
            now,
            _judged(state),
        )


def _impossible(state: Answer) -> dict[str, str]:
    """What the router would refuse as things are, by button, and why."""
    found = {}
    if state["paused"]:
        found["ramp"] = "Ramp: the experiment is paused; resume it first."
        found["hold"] = "Hold: the experiment is paused; resume it first."
        return found
    if state["mode"] not in ("split", "canary"):
        found["ramp"] = f"Ramp: in the mode {state['mode']} the shares are not set by hand."
    if state["mode"] not in ("canary", "bandit"):
        found["hold"] = f"Hold: in the mode {state['mode']} nothing moves the shares by itself."
    return found


def _fill(app: Dash, router: RouterClient) -> None:
    @app.callback(
        Output("document", "value"),
        Output("document-filled", "data"),
        Output("document-outdated", "children"),
        Input("experiment-seen", "data"),
        Input("changed", "data"),
        Input("document-take", "n_clicks"),
        State("document", "value"),
        State("document-filled", "data"),
        State("document-proposed", "data"),
    )
    def fill(
        seen: Any, changed: list[Any] | None, _take: Any, value: str | None, filled: str | None, proposed: Any
    ) -> tuple[Any, Any, Any]:
        """Put what is in force into the field, but for what somebody has typed there and not set."""
        if seen is None:
            return (no_update,) * 3
        try:
            text, entries = json.dumps(router.experiment(), indent=2), router.audit(MAX_ENTRIES)
        except RouterDown:
            return (no_update,) * 3
        was_set = changed is not None and proposed == [changed[0], value]
        if not value or value == filled or was_set or ctx.triggered_id == "document-take":
            return text, text, []
        if text == filled:
            return no_update, no_update, []
        told = [
            f"Version {entry['version']} is in force since {_time(entry['time'])}, by {entry['by']}: "
            f"“{entry['reason']}”. "
            for entry in entries
            if entry["document"]
        ][-1:]
        stays = "What you typed stays; to set it takes that back."
        return (
            no_update,
            no_update,
            pieces.notice("The document was changed meanwhile", "".join([*told, stays])),
        )


def _propose(app: Dash, router: RouterClient) -> None:
    @app.callback(
        Output("proposal", "data"),
        Output("proposal-trouble", "children"),
        Output("document-proposed", "data"),
        *(Input(name, "n_clicks") for name in BUTTONS),
        State("ramp-variant", "value"),
        State("ramp-share", "value"),
        State("promote-variant", "value"),
        State("mode", "value"),
        State("document", "value"),
        prevent_initial_call=True,
    )
    def propose(*given: Any) -> tuple[Any, Any, Any]:
        *clicks, variant, share, promoted, mode, text = given
        edited: Any = no_update
        if not any(clicks):
            return (no_update,) * 3
        try:
            state, document = router.state(), router.experiment()
            per_hour = router.distributions(None)["requests_last_hour"]
            entries = router.audit(MAX_ENTRIES)
        except RouterDown as error:
            return no_update, pieces.notice("Nothing can be proposed now", f"The router: {error}."), edited
        proposed: Any = no_update
        trouble: Any = []
        match ctx.triggered_id:
            case "ramp":
                proposed, trouble = _ramped(state, variant, share, per_hour)
            case "switch":
                proposed, trouble = _switched(state, document, mode, per_hour)
            case "pause" if state["paused"]:
                proposed = changes.resume(state, _before_pause(entries), per_hour)
            case "pause":
                proposed = changes.pause(state, document, per_hour)
            case "hold" if state["held"]:
                proposed = changes.resume(state, state["weights"], per_hour)
            case "hold":
                proposed = changes.hold(state)
            case "promote":
                proposed = changes.promote(state, document, promoted, per_hour)
            case "edit":
                proposed, trouble = _edited(state, document, text, per_hour)
                if proposed is not no_update:
                    edited = [proposed["key"], text]
            case "undo":
                proposed, trouble = _undone(state, entries, per_hour)
        return acting.with_phases(proposed, changes.ends(proposed), router), trouble, edited


def _ramped(state: Answer, variant: str, share: Any, per_hour: int) -> tuple[Any, Any]:
    if not isinstance(share, int | float):
        told = f"Say how much of the traffic {variant} is to get, in per cent."
        return no_update, pieces.notice("A share is missing", told)
    return changes.ramp(state, variant, min(max(share / 100, 0), 1), per_hour), []


def _switched(state: Answer, document: Answer, mode: str, per_hour: int) -> tuple[Any, Any]:
    if mode == document["mode"]:
        return no_update, pieces.notice("Nothing would change", f"{mode.capitalize()} is in force already.")
    return changes.switch(state, document, mode, per_hour), []


def _edited(state: Answer, document: Answer, text: str, per_hour: int) -> tuple[Any, Any]:
    try:
        new = json.loads(text or "")
    except ValueError as error:
        return no_update, pieces.notice("The document is not JSON", f"{error}.")
    if not isinstance(new, dict):
        return no_update, pieces.notice("The document is no object", "It begins with a brace.")
    return changes.replace(state, document, new, per_hour), []


def _undone(state: Answer, entries: Sequence[Answer], per_hour: int) -> tuple[Any, Any]:
    proposed = changes.undo(entries, state, per_hour)
    if proposed is None:
        return no_update, pieces.notice("Nothing can be undone", "There was nothing before this.")
    return proposed, []


def _before_pause(entries: Sequence[Answer]) -> Any:
    for entry in reversed(entries):
        if entry["action"] != "pause":
            return entry["weights"] or changes.shares(entry["document"])
    return None


def _weights(weights: changes.Weights) -> str:
    return ", ".join(f"{name} {percent(share)}" for name, share in sorted(weights.items()))


def _summary(state: Answer) -> str:
    what = "Paused" if state["paused"] else f"{state['mode'].capitalize()}"
    what += ", held" if state["held"] else ""
    return f"{what}: {_weights(state['weights'])}"


def _in_force(state: Answer, document: Answer) -> list[Component]:
    roles = {each["name"]: each["role"] for each in document["variants"]}
    places = dict(zip(roles, charts.places(list(roles.values())), strict=True))
    bars = html.Div(
        [
            html.I(className=f"share-{places[name]}", style={"width": f"{100 * share}%"})
            for name, share in state["weights"].items()
        ],
        className="weights",
        **{"aria-hidden": "true"},  # type: ignore[arg-type]
    )
    rows = [
        ([pieces.mark(places[name]), name], roles[name], percent(share))
        for name, share in state["weights"].items()
    ]
    return [
        html.H2("In force"),
        html.P(
            f"Version {state['version']}, since {_time(state['since'])}, by {state['by']}: "
            f"“{state['reason']}”.",
            className="note",
        ),
        bars,
        pieces.table(("Variant", "Role", "Share"), rows),
        html.Dl(
            [part for name, value in _facts(document) for part in (html.Dt(name), html.Dd(value))],
            className="facts",
        ),
    ]


def _judged(state: Answer) -> str:
    if not (judged := state["judged"]):
        return ""
    does = {"advance": "may go a step on", "hold": "stays at this step", "regress": "is to go back"}
    return f"By its gates the canary {does[judged['says']]}: {judged['reason']}."


def _facts(document: Answer) -> list[tuple[str, str]]:
    mode = document["mode"]
    facts = [("Mode", f"{mode}: {changes.MODES[mode]}")]
    if mode == "canary":
        canary = document["canary"]
        facts += [
            ("Ramp", " → ".join(map(percent, canary["steps"]))),
            ("Each step", f"{canary['hold']}, and {canary['min_requests']:,} answers of each"),
        ]
    if mode in ("canary", "bandit"):
        traffic = document[mode]["traffic"]
        facts.append(("Moved by", verdict_words.KINDS.get(traffic, f"traffic tagged {traffic}")))
    facts += [
        ("Guardrails", _guardrails(document)),
        ("Unit", f"{document['unit']}, by the salt {document['salt']}"),
        ("Outcomes count", _matures(document["maturity"])),
        (
            "Where one fails",
            f"{document['fallback']} answers" if document["fallback"] else "the caller is told",
        ),
    ]
    return facts


def _guardrails(document: Answer) -> str:
    found = [
        f"{each['name']} ({each['metric']}, margin {each['margin']:g})" for each in document["guardrails"]
    ]
    if found or document["mode"] != "canary":
        return "; ".join(found) or "none"
    gates = document["canary"]["gates"]
    return (
        f"none, so the gates: errors at most {percent(gates['max_error_rate_difference'])} more, "
        f"latency at most {gates['max_latency_ratio']:g} times the champion's"
    )


def _matures(maturity: str | None) -> str:
    if maturity is None:
        return "not declared, so no verdict is trusted"
    return "at once" if maturity == "PT0S" else f"after {maturity}"


def _timeline(entries: Sequence[Answer]) -> list[html.Li]:
    items = []
    document: Answer | None = None
    for entry in entries:
        lines: list[Any] = []
        if entry["document"]:
            if document:
                lines = [html.Li(each) for each in changes.lines(document, entry["document"], MOST_LINES)]
            document = entry["document"]
        if entry["weights"]:
            lines.append(html.Li(_weights(entry["weights"])))
        items.append(
            html.Li(
                [
                    html.Div(
                        [
                            html.B(ACTIONS.get(entry["action"], entry["action"])),
                            f" by {entry['by']}: “{entry['reason']}”",
                        ]
                    ),
                    html.Div(
                        f"{_time(entry['time'])}, version {entry['version']}"
                        + (f".{entry['allocation']}" if entry["allocation"] else ""),
                        className="note",
                    ),
                    *([html.Ul(lines)] if lines else []),
                ]
            )
        )
    return items[::-1]


def _time(text: str) -> str:
    return f"{text[:10]} {text[11:19]} UTC"
