"""The page of the verdict: which model stays, and what that rests on."""

from __future__ import annotations

import json
import zlib
from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, dcc, html, no_update
from dash.development.base_component import Component
from flask import Response, request

from dashboard import pieces, report, verdict_charts
from dashboard import verdict_words as words
from dashboard.charts import GRAPH_CONFIG, Stats
from dashboard.router_client import RouterClient, RouterDown
from dashboard.shell import TRAFFIC, VIEW, View, link
from dashboard.verdict_charts import Shown
from runoff import web
from runoff.problems import NotFound, Unavailable

PATH, TITLE = "verdict", "Verdict"
HEEDS = ("traffic",)

# Asked anew so many ticks after the last time.
SELDOM = 5
DECISIONS = {
    "keep": "● Keep",
    "promote": "▲ Promote",
    "equivalent": "= Equivalent",
    "keep collecting": "… Keep collecting",
    "don't trust": "▲ Don't trust this",
}


def layout() -> html.Div:
    """The page before anything is known."""
    return html.Div(
        [
            dcc.Store(id="verdict-seen"),
            html.H1("Verdict", id="verdict-sentence", className="spoken", **{"aria-live": "polite"}),  # type: ignore[arg-type]
            html.Div(
                dmc.Select(
                    id="verdict-phase",
                    label="Phase",
                    description="Another model, split or rule begins one; those before stay.",
                    placeholder="The present one",
                    data=[],
                    clearable=True,
                    mb="sm",
                ),
                id="verdict-phases",
                hidden=True,
            ),
            html.Div(pieces.skeletons(60, 120, 300), id="verdict"),
        ]
    )


def register(app: Dash, router: RouterClient) -> None:
    """Let the page live."""

    @app.callback(
        Output("verdict-sentence", "children"),
        Output("verdict", "children"),
        Output("verdict-seen", "data"),
        Output("verdict-phase", "data"),
        Output("verdict-phases", "hidden"),
        Input("tick", "data"),
        *VIEW,
        Input("verdict-phase", "value"),
        State("verdict-seen", "data"),
        State("url", "search"),
    )
    def refresh(
        _tick: Any,
        look: Any,
        traffic: str,
        range_: str,
        chosen: str | None,
        seen: Any,
        search: str | None,
    ) -> tuple[Any, ...]:
        waits, now = pieces.waits(seen, [look, traffic, range_, chosen], SELDOM)
        if seen and waits:
            return no_update, no_update, seen | now, no_update, no_update
        view = View.of(look, traffic, range_)
        try:
            told, mixed = router.verdict(view.tag, _phase(chosen)), _mixed(router, view.tag)
            listed = router.phases(view.tag)["phases"]
        except RouterDown as error:
            if error.status is None and seen:
                return (no_update,) * 5
            # Where it does not answer at all the frame says so, and when it is asked again.
            reason = f"The router says: {error}." if error.status else f"The router cannot be asked: {error}."
            empty = pieces.empty("There is no verdict", reason)
            return "No verdict yet", empty, now | {"shown": None}, no_update, no_update
        # What stands is left alone where nothing is new: somebody may be reading it.
        live = link("", search)
        shown = [{**told, "as_of": None}, view.theme, mixed, live, listed]
        now["shown"] = zlib.crc32(json.dumps(shown).encode())
        if seen and seen["shown"] == now["shown"]:
            return no_update, no_update, now, no_update, no_update
        options = [{"value": f"{each['phase']}", "label": words.phase(each)} for each in listed[::-1]]
        return told["sentence"], _told(told, view, live, mixed=mixed), now, options, len(options) < 2  # noqa: PLR2004

    def exported() -> Response:
        """The verdict as one HTML file."""
        traffic = request.args.get("traffic", "all")
        try:
            tag = None if traffic not in TRAFFIC or traffic == "all" else traffic
            told, mixed = router.verdict(tag, _phase(request.args.get("phase"))), _mixed(router, tag)
        except RouterDown as error:
            problem = NotFound if error.status == NotFound.status else Unavailable
            return web.answer_problem(problem(str(error)))
        name = f"verdict-{words.safe(told['experiment'])}-{told['as_of'][:10]}.html"
        disposition = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(report.render(told, mixed=mixed), mimetype="text/html", headers=disposition)

    app.server.add_url_rule("/verdict-report", "verdict-report", exported)


def _phase(text: str | None) -> int | None:
    """The number of a phase; None for the present one."""
    return int(text) if text and text.isdecimal() else None


def _mixed(router: RouterClient, tag: str | None) -> bool:
    """Whether real and simulated traffic are judged together; raises RouterDown."""
    return tag is None and len(router.stats(None)["tags"]) > 1


def _told(told: Stats, view: View, live: str, *, mixed: bool) -> list[Component]:
    basis = html.P(
        [html.B(DECISIONS[told["decision"]]), f"  {words.basis(told, mixed=mixed)}"], id="verdict-basis"
    )
    if not told["requests"]:
        action = html.A("Send some on the live page", href=live, className="more")
        return [basis, pieces.empty("There is nothing to judge yet", words.nothing(told), action)]
    return [
        basis,
        html.P(words.models(told), className="note", id="verdict-models"),
        html.P(told["estimand"], className="note"),
        html.P(told["risk"], className="note"),
        html.P(
            html.A(
                "Export as one HTML file",
                href=f"./verdict-report?traffic={view.tag or 'all'}"
                + (f"&phase={told['phase']}" if told["phase"] else ""),
                className="more",
                download="",
            )
        ),
        html.Section(
            [
                html.H2("Can this be trusted?"),
                html.Ul(
                    [
                        html.Li([html.B(f"{name}: {state}"), html.Span(seen)])
                        for name, state, seen in words.checks(told)
                    ],
                    className="checks",
                ),
            ],
            className="card",
        ),
        *(part for number in range(len(told["comparisons"])) for part in _compared(told, number, view)),
        *([_card("Between groups", words.gaps(told))] if told["gaps"] else []),
        html.Div([_chart(shown) for shown in verdict_charts.of_variants(told, view.theme)], className="pair"),
        _chart(verdict_charts.traffic(told, view.theme, narrow=view.narrow)),
    ]


def _compared(told: Stats, number: int, view: View) -> list[Component]:
    each = told["comparisons"][number]
    if not each["rows"]:
        # The same model: nothing is compared.
        title = f"{told['champion']} and {each['challenger']}"
        return [html.Section([html.H2(title), html.P(each["sentence"])], className="card")]
    funnel, latency = verdict_charts.compared(told, number, view.theme)
    return [
        _card(
            f"{told['champion']} and {each['challenger']}",
            words.figures(told, each),
            grey=5,
            note=f"{words.fewer(told, each)} {words.E_VALUE}".strip(),
        ),
        _chart(funnel),
        _card("Guardrails", words.guardrails(each), note=words.HARM)
        if each["guardrails"]
        else html.Section(
            [html.H2("Guardrails"), html.P("The experiment declares none.", className="note")],
            className="card",
        ),
        *([_card("Parts of the traffic", words.segments(told, each))] if each["segments"] else []),
        _chart(latency),
    ]


def _chart(shown: Shown) -> html.Section:
    """A card with a chart that is drawn at once; with the summary alone where there is nothing to draw."""
    said = html.P(shown.summary, className="note", id=f"{shown.name}-summary")
    if not shown.table[1]:
        return html.Section([html.H2(shown.title), said], className="card")
    return html.Section(
        [
            pieces.heading(shown.title),
            said,
            html.Div(
                dcc.Graph(
                    id=shown.name,
                    config=GRAPH_CONFIG,
                    figure=shown.figure,
                    responsive=True,
                    style={"height": shown.height},
                ),
                style={"minHeight": shown.height},
            ),
            html.Details(
                [
                    html.Summary("View as table"),
                    html.Div(pieces.table(*shown.table), tabIndex="0", id=f"{shown.name}-table"),
                ]
            ),
        ],
        className="card",
    )


def _card(title: str, content: words.Table, grey: int | None = None, note: str = "") -> html.Section:
    """A card with a table, of which one column is greyed: it is beside the point."""
    head, rows = content
    shown = [
        [html.Span(cell, className="beside") if number == grey else cell for number, cell in enumerate(row)]
        for row in rows
    ]
    return html.Section(
        [
            html.H2(title),
            *([html.P(note, className="note")] if note else []),
            html.Div(pieces.table(head, shown), className="scroll", tabIndex="0"),
        ],
        className="card",
    )
