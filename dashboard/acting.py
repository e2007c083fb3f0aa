"""How something is changed from a page: with the operator's key, a reason, and a look at what it will do.

A page proposes: it puts what is to be asked of the router, and what that changes, into the store `proposal`.
A dialog shows the difference and asks for a reason; what is confirmed there is asked of the router, which
says whether it may be; or a simulation is begun, which asks for it. The key is typed in by the operator, is
kept in the tab's session storage, and passes through this server without being kept.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.development.base_component import Component

from dashboard.pieces import notice
from dashboard.router_client import RouterClient, RouterDown
from dashboard.simulation import Simulator
from traffic.simulation import Order

# What a page proposes, in JSON types: see `proposal`.
Proposal = dict[str, Any]

MAX_REASON = 500
MAX_BY = 60


def proposal(
    title: str,
    differences: Sequence[str],
    method: str,
    path: str,
    body: dict[str, Any],
    *,
    version: int | str | None = None,
    in_query: bool = False,
    override: bool = False,
    kept: str = "the audit",
    undone: str = "can be undone",
) -> Proposal:
    """A change to be confirmed.

    Args:
        title: what is done, as on the button that does it: "Ramp B to 50%".
        differences: what it changes, a line each; the first one is the gist.
        method: of the request to the router.
        path: of the request.
        body: of the request, without the reason.
        version: by the look of which it is proposed: of the experiment, or of what is changed else.
        in_query: whether the reason goes into the query, not into the body.
        override: whether the router may have doubts, which a typed word overrides.
        kept: where the reason stands from then on.
        undone: how it is taken back.
    """
    return _proposal(title, differences, kept, undone) | {
        "method": method,
        "path": path,
        "body": body,
        "version": version,
        "in_query": in_query,
        "override": override,
    }


def with_phases(proposed: Proposal, change: dict[str, Any] | None, router: RouterClient) -> Proposal:
    """The same, and what it would end: the outcomes that stay with the phase that is in force.

    Args:
        proposed: the change.
        change: what the router is asked; None where nothing ends.
        router: which knows. What it refuses it will say by itself when the change is made.
    """
    if change is None:
        return proposed
    try:
        says = router.foreseen(change)["says"]
    except RouterDown:
        return proposed
    return proposed | {"differences": [*proposed["differences"], says]}


def simulation(title: str, differences: Sequence[str], order: Order) -> Proposal:
    """A simulation to be confirmed, since it changes something while it runs; otherwise as `proposal`."""
    told = _proposal(title, differences, "the audit", "is taken back at the end")
    return told | {"order": order.model_dump(mode="json")}


def _proposal(title: str, differences: Sequence[str], kept: str, undone: str) -> Proposal:
    return {
        "title": title,
        "differences": list(differences),
        "kept": kept,
        "undone": undone,
        "order": None,
        "override": False,
        # The same for each attempt at this change.
        "key": str(uuid.uuid4()),
    }


def panel() -> html.Section:
    """Where the operator's key is typed in, and what it may do; with the dialog and what came of it."""
    return html.Section(
        className="card acting",
        **{"aria-label": "Operator"},  # type: ignore[arg-type]
        children=[
            dcc.Store(id="proposal"),
            dcc.Store(id="may-act"),
            html.H2("Operator"),
            html.P(id="may-act-why", className="note", **{"aria-live": "polite"}),  # type: ignore[arg-type]
            html.Div(
                id="key-row",
                hidden=True,
                className="key-row",
                children=[
                    dmc.PasswordInput(
                        id="key-typed",
                        label="Operator's key",
                        description="Kept in this tab alone, until it is closed.",
                        autoComplete="off",
                        visibilityToggleButtonProps={"aria-label": "Show the key"},
                    ),
                    dmc.Button("Use this key", id="key-use", variant="default"),
                    dmc.Button("Forget it", id="key-forget", variant="default"),
                ],
            ),
            html.Div(id="acted", **{"aria-live": "polite"}),  # type: ignore[arg-type]
            _dialog(),
        ],
    )


def _dialog() -> dmc.Modal:
    return dmc.Modal(
        id="confirm",
        title="",
        size="md",
        closeButtonProps={"aria-label": "Cancel"},
        transitionProps={"duration": 0},
        children=dmc.Stack(
            gap="sm",
            children=[
                html.Div(id="confirm-differences"),
                dmc.Textarea(
                    id="reason",
                    label="Reason",
                    required=True,
                    autosize=True,
                    minRows=2,
                    **{"data-autofocus": True},
                ),
                dmc.TextInput(
                    id="by", label="Your name", description="Optional; shown beside the key's name."
                ),
                html.Div(
                    id="override-row",
                    hidden=True,
                    children=dmc.TextInput(
                        id="override",
                        label="Override",
                        description="To promote despite the doubts above, type the variant's name.",
                        autoComplete="off",
                    ),
                ),
                html.Div(id="confirm-trouble", **{"aria-live": "polite"}),  # type: ignore[arg-type]
                dmc.Group(
                    justify="flex-end",
                    children=[
                        dmc.Button("Cancel", id="confirm-no", variant="default"),
                        dmc.Button("Confirm", id="confirm-yes", className="primary"),
                    ],
                ),
            ],
        ),
    )


def register(app: Dash, router: RouterClient, simulator: Simulator) -> None:
    """Let panel and dialog live, on whichever page they are."""
    _know_the_key(app, router)
    _confirm(app, router, simulator)


def _know_the_key(app: Dash, router: RouterClient) -> None:
    @app.callback(
        Output("operator-key", "data"),
        Output("key-typed", "value"),
        Input("key-use", "n_clicks"),
        Input("key-forget", "n_clicks"),
        State("key-typed", "value"),
        prevent_initial_call=True,
    )
    def take(use: int | None, _forget: int | None, typed: str | None) -> tuple[Any, Any]:
        if ctx.triggered_id == "key-use" and use and typed and typed.strip():
            return typed.strip(), ""
        return (None, "") if ctx.triggered_id == "key-forget" else (no_update, no_update)

    @app.callback(
        Output("may-act", "data"),
        Output("may-act-why", "children"),
        Output("key-row", "hidden"),
        Input("operator-key", "data"),
        Input("tick", "data"),
        State("may-act", "data"),
        State("may-act-why", "children"),
    )
    def judge(key: str | None, _tick: Any, may: bool | None, why: Any) -> tuple[Any, Any, Any]:
        # Once it was told it need not be asked again with each tick; a key that was refused may be a new one.
        if ctx.triggered_id == "tick" and may is not None and (may or not key):
            return (no_update,) * 3
        now, told = may_act(router, key)
        # Where one may act without a key, none is asked for.
        needless = now is not False and not key
        return (no_update if now == may else now), (no_update if told == why else told), needless


def may_act(router: RouterClient, key: str | None) -> tuple[bool | None, str]:
    """Whether whoever holds this key may change something, and why; None where nobody can tell."""
    why = "the router takes an operator's key for changes"
    try:
        told = router.key(key)
    except RouterDown as error:
        if error.status is None:
            return None, f"Nobody can tell what you may do: the router does not answer ({error})."
        return False, f"You can look, but not act: {error if key else why}."
    if not told["needed"]:
        return True, "You can act: this router has no keys, so everybody who reaches it may change things."
    if key and told["scope"] == "operator":
        return True, f"You can act: by the operator's key {told['name']}."
    if key:
        why = f"the key {told['name']} may {told['scope']}, not operate"
    return False, f"You can look, but not act: {why}."


def _confirm(app: Dash, router: RouterClient, simulator: Simulator) -> None:
    @app.callback(
        Output("confirm", "opened"),
        Output("confirm", "title"),
        Output("confirm-differences", "children"),
        Output("confirm-trouble", "children"),
        Output("reason", "value"),
        Output("reason", "description"),
        Output("acted", "children"),
        Output("changed", "data"),
        Output("override-row", "hidden"),
        Output("override", "value"),
        Input("proposal", "data"),
        Input("confirm-yes", "n_clicks"),
        Input("confirm-no", "n_clicks"),
        State("reason", "value"),
        State("by", "value"),
        State("override", "value"),
        State("operator-key", "data"),
        prevent_initial_call=True,
    )
    def confirm(
        proposed: Proposal | None,
        yes: int | None,
        _no: int | None,
        reason: str | None,
        by: str | None,
        override: str | None,
        key: str | None,
    ) -> tuple[Any, ...]:
        nothing = (no_update,) * 10
        if proposed is None or ctx.triggered_id == "confirm-no":
            return (False, *nothing[1:])
        if ctx.triggered_id == "proposal":
            stands = f"Stands in {proposed['kept']}, for good."
            told: tuple[Any, ...] = (proposed["title"], _differences(proposed), [], "", stands, [], no_update)
            return (True, *told, not proposed["override"], "")
        reason = (reason or "").strip()
        if not reason or len(reason) > MAX_REASON:
            trouble = notice("A reason is needed", f"Say why, in at most {MAX_REASON} characters.")
            return (*nothing[:3], trouble, *nothing[4:])
        by = (by or "").strip()[:MAX_BY]
        if proposed["order"]:
            if not simulator.start(_ordered(proposed["order"], reason, by), key):
                trouble = notice("One at a time", "Another simulation is running: stop it, or wait.")
                return (*nothing[:3], trouble, *nothing[4:])
        else:
            try:
                _ask(router, proposed, reason, by, (override or "").strip(), key)
            except RouterDown as error:
                return (*nothing[:3], _refused(error), *nothing[4:])
        said = f"“{reason}”. It is recorded in {proposed['kept']} and {proposed['undone']}."
        done = notice(f"{'Begun' if proposed['order'] else 'Done'}: {proposed['title']}", said, well=True)
        return False, no_update, no_update, [], "", no_update, done, [proposed["key"], yes], no_update, ""


def _ordered(told: dict[str, Any], reason: str, by: str) -> Order:
    """A simulation as it was proposed, with what the audit is told of it."""
    order = Order.model_validate(told)
    why = {"reason": reason, "by": by or None}
    return order.model_copy(update={"broken": order.broken and order.broken.model_copy(update=why)})


def _ask(
    router: RouterClient, proposed: Proposal, reason: str, by: str, override: str, key: str | None
) -> None:
    why = {"reason": reason} | ({"by": by} if by else {}) | ({"override": override} if override else {})
    path, body = proposed["path"], proposed["body"]
    router.change(
        proposed["method"],
        path,
        body if proposed["in_query"] else body | why,
        query=why if proposed["in_query"] else {},
        key=key,
        version=proposed["version"],
        idempotency_key=proposed["key"],
    )


def _differences(proposed: Proposal) -> Component:
    first, *more = proposed["differences"]
    return html.Div(
        [html.P(html.B(first)), html.Ul([html.Li(each) for each in more])], className="differences"
    )


def _refused(error: RouterDown) -> Component:
    """What the router says instead, and what to do."""
    steps = {
        401: "Type in the operator's key, and try again.",
        403: "It takes an operator's key.",
        412: "Somebody was faster: cancel, look at what is in force, and decide anew.",
        409: "Look at what is in force, and decide anew.",
        None: "It may have been done all the same: look at the audit before you try again.",
    }
    step = steps.get(error.status, "Nothing was changed.")
    return notice("The router did not do it", f"{error}. {step}")
