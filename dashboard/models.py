"""The page of the models: their versions, what tells two apart, what was released, and releasing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.development.base_component import Component
from flask import Response

from dashboard import acting, changes, charts, pieces, shell
from dashboard.charts import Stats
from dashboard.router_client import RouterClient, RouterDown
from runoff import web
from runoff.problems import NotFound, Unavailable

PATH, TITLE = "models", "Models"
HEEDS: tuple[str, ...] = ()

# The versions of a service that are listed, and how often they are asked for, in ticks.
MOST_VERSIONS = 50
SELDOM = 5

BUTTONS = ("release", "rollback")
NO_RELEASES = (
    "Nothing can be released from here: router and services take releases only where they were started with "
    "RUNOFF_OPERATOR_KEY. From a shell it can: runoff release."
)
# Where reasons stand: the audit is that of the experiment.
KEPT = "the history of releases"
METRICS = {"roc_auc": "AUC", "brier": "Brier"}
PARTS = {
    "about": "About",
    "metrics": "On held-out clients",
    "parameters": "Parameters",
    "importance": "Importance of the factors",
    "schema": "What it takes",
}
# What records call things, in words.
NAMES = {
    "roc_auc": "AUC",
    "pr_auc": "AUC of precision and recall",
    "brier": "Brier score",
    "log_loss": "Log loss",
    "code_digest": "code, SHA-256",
    "data_digest": "data, SHA-256",
}
# The parts that are figures.
FIGURES = ("metrics", "importance")
MIB = 2**20


def layout() -> html.Div:
    """The page before anything is known."""
    return html.Div(
        [
            dcc.Store(id="models-seen"),
            html.H1("Models", id="models-summary"),
            html.Div(id="models-troubles", **{"aria-live": "polite"}),  # type: ignore[arg-type]
            html.Section(
                className="card",
                children=[
                    html.H2("Versions"),
                    html.P(
                        "Newest first. Figures are on held-out clients, with 95% intervals; digests are of "
                        "the file and of the data.",
                        className="note",
                    ),
                    html.Div(pieces.skeletons(120), id="versions", className="scroll", tabIndex="0"),
                ],
            ),
            html.Div(
                className="columns wide below",
                children=[
                    html.Div(
                        className="stack",
                        children=[_comparison(), acting.panel(), _releasing()],
                    ),
                    html.Section(
                        className="card",
                        children=[
                            html.H2("What was released"),
                            html.P("Newest first, by service.", className="note"),
                            html.Ol(
                                [html.Li(each) for each in pieces.skeletons(60, 60)],
                                id="releases",
                                className="timeline",
                            ),
                        ],
                    ),
                ],
            ),
        ]
    )


def _comparison() -> html.Section:
    return html.Section(
        className="card",
        children=[
            html.H2("What tells two versions apart?"),
            html.Div(
                className="control-row two",
                children=[
                    dmc.Select(id="compare-one", label="This version", data=[], allowDeselect=False),
                    dmc.Select(id="compare-other", label="with this one", data=[], allowDeselect=False),
                ],
            ),
            html.Div(id="comparison", className="scroll", tabIndex="0"),
        ],
    )


def _releasing() -> html.Section:
    return html.Section(
        className="card",
        children=[
            html.H2("Release"),
            html.P(
                "A version is tested before it is served. The service follows within two seconds, "
                "between two requests.",
                className="note",
            ),
            html.P(id="release-why", className="note", **{"aria-live": "polite"}),  # type: ignore[arg-type]
            html.Div(
                className="control-row",
                children=[
                    dmc.Select(
                        id="release-version",
                        label="Version",
                        placeholder="All that there are serve already",
                        data=[],
                        allowDeselect=False,
                    ),
                    dmc.Button("Release …", id="release", variant="default", disabled=True),
                ],
            ),
            html.Div(
                className="control-row",
                children=[
                    dmc.Select(id="rollback-variant", label="Variant", data=[], allowDeselect=False),
                    dmc.Button("Roll back …", id="rollback", variant="default", disabled=True),
                ],
            ),
            html.Div(id="release-trouble", **{"aria-live": "polite"}),  # type: ignore[arg-type]
        ],
    )


def register(app: Dash, router: RouterClient) -> None:
    """Let the page live."""
    _show(app, router)
    _compare(app, router)
    _propose(app, router)
    # Which versions are compared stands in the address, so that a link shows them.
    shell.keep(app, "compare-one", "compare-other")

    @app.callback(
        *(Output(name, "disabled") for name in BUTTONS),
        Output("release-why", "children"),
        Input("may-act", "data"),
        State("operator-key", "data"),
    )
    def allow(may: bool | None, key: str | None) -> tuple[Any, ...]:
        if not may:
            return *(True,) * len(BUTTONS), ""
        try:
            possible = router.key(key)["releases"]
        except RouterDown:
            return (no_update,) * (len(BUTTONS) + 1)
        return *(not possible,) * len(BUTTONS), "" if possible else NO_RELEASES

    def card(variant: str, version: str) -> Response:
        """The model card of a version, as its service renders it."""
        try:
            content = router.card(variant, version)
        except RouterDown as error:
            problem = NotFound if error.status == NotFound.status else Unavailable
            return web.answer_problem(problem(str(error)))
        # Others wrote what stands on it: it may neither run nor load anything.
        policy = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
        return Response(content, mimetype="text/html", headers={"Content-Security-Policy": policy})

    app.server.add_url_rule("/cards/<variant>/<version>", "card", card)


class Known:
    """What the services behind the variants told, and what is wrong with those that did not."""

    def __init__(self, router: RouterClient, stats: Stats) -> None:
        self.versions: dict[str, list[Stats]] = {}
        self.releases: dict[str, Stats] = {}
        self.troubles: list[Component] = []
        self.variants = stats["variants"]
        for each in self.variants:
            name = each["name"]
            try:
                self.versions[name] = router.versions(name)[-MOST_VERSIONS:][::-1]
                self.releases[name] = router.releases(name)
            except RouterDown as error:
                self.versions.pop(name, None)
                text = (
                    f"{pieces.capital(str(error))}. It is looked for at {each['url']}; "
                    "what others tell is shown."
                )
                self.troubles.append(pieces.notice(f"The service of {name} tells no versions", text))

    def live(self, variant: str) -> Stats:
        """The model and version that a variant's service serves: what was released, else the newest."""
        told = self.releases[variant]
        newest = [
            {"model": told["service"], "version": each["version"]} for each in self.versions[variant][:1]
        ]
        return told["live"] or (newest[0] if newest else {})

    def is_live(self, variant: str, version: str) -> bool:
        """Whether a variant's service serves this version."""
        return self.live(variant).get("version") == version

    def before(self, variant: str) -> str | None:
        """The version that a rollback goes back to; None where there is none.

        It is the one before the newest, where those that were rolled back from are passed over, and those
        that were released twice in a row count once.
        """
        service = self.releases[variant]["service"]
        past: list[Stats] = []
        for release in self.releases[variant]["releases"]:
            if release["action"] == "rollback":
                past.pop()
            elif past[-1:] != [release["changes"][service]]:
                past.append(release["changes"][service])
        return past[-2]["version"] if len(past) > 1 else None

    def version(self, variant: str, version: str | None) -> Stats | None:
        """A version of a variant's model, as a phase knows it; None where its service tells no such one."""
        for each in self.versions[variant]:
            if each["version"] == version:
                return {name: each[name] for name in ("version", "digest")}
        return None

    def looked(self, variant: str) -> str:
        """The newest release of a variant's service, as its ETag has it."""
        return next((each["id"] for each in self.releases[variant]["releases"][-1:]), "none")

    def options(self) -> list[dict[str, str]]:
        """All versions, to choose from."""
        return [
            {
                "value": f"{variant}/{each['version']}",
                "label": f"{variant}  {each['version']}"
                + ("  (live)" if self.is_live(variant, each["version"]) else ""),
            }
            for variant, versions in self.versions.items()
            for each in versions
        ]


def _show(app: Dash, router: RouterClient) -> None:
    @app.callback(
        Output("models-summary", "children"),
        Output("models-troubles", "children"),
        Output("versions", "children"),
        Output("releases", "children"),
        Output("compare-one", "data"),
        Output("compare-one", "value"),
        Output("compare-other", "data"),
        Output("compare-other", "value"),
        Output("release-version", "data"),
        Output("release-version", "value"),
        Output("rollback-variant", "data"),
        Output("rollback-variant", "value"),
        Output("models-seen", "data"),
        Input("tick", "data"),
        Input("changed", "data"),
        State("models-seen", "data"),
        State("compare-one", "value"),
        State("compare-other", "value"),
        State("release-version", "value"),
        State("rollback-variant", "value"),
        State("url", "search"),
    )
    def refresh(_tick: Any, changed: Any, seen: Stats | None, *chosen: str | None) -> tuple[Any, ...]:
        one, other, released, rolled, search = chosen
        waits, now = pieces.waits(seen, [changed], SELDOM)
        if seen and waits:
            return (*(no_update,) * 12, seen | now)
        try:
            known = Known(router, router.stats(None))
        except RouterDown:
            return (no_update,) * 13
        options = known.options()
        values = [each["value"] for each in options]
        first = [f"{name}/{versions[0]['version']}" for name, versions in known.versions.items() if versions]
        usual = [*first, *values, None, None]
        others = [each for each in values if not known.is_live(*each.split("/", 1))]
        names = list(known.versions)
        # What serves already is chosen by hand alone: not because it was released meanwhile.
        live = {name: known.live(name) for name in names}
        stays = released in others or (released in values and seen is not None and seen["live"] == live)
        if one is None and other is None:
            one, other = [*(shell.kept(search, "models") or "").split(","), None][:2]
        return (
            _summary(known),
            known.troubles,
            _versions(known),
            _releases(known),
            options,
            one if one in values else usual[0],
            options,
            other if other in values else usual[1],
            options,
            released if stays else next(iter(others), None),
            names,
            rolled if rolled in names else next((name for name in names if known.before(name)), None),
            now | {"live": live},
        )


def _summary(known: Known) -> str:
    told = []
    for variant, versions in known.versions.items():
        live = known.live(variant)
        found = next((each for each in versions if each["version"] == live.get("version")), None)
        auc = changes.figure(found["metrics"].get("roc_auc")) if found else None
        told.append(
            f"{variant} serves {live.get('model', 'its newest')}" + (f", AUC {auc:.3f}" if auc else "")
        )
    return "; ".join(told) or "No service tells its versions"


def _versions(known: Known) -> Component:
    head = (
        *("Variant", "Version", "Status", "AUC", "Brier", "Trained, UTC"),
        *("Algorithm", "Parameters", "Size", "Digests"),
    )
    places = dict(
        zip(
            [each["name"] for each in known.variants],
            charts.places([each["role"] for each in known.variants]),
            strict=True,
        )
    )
    rows = [
        (
            html.Span([pieces.mark(places[variant]), variant]),
            [each["version"], html.Div(_links(variant, each))],
            _status(known, variant, each),
            *(changes.with_interval(each["metrics"].get(metric)) for metric in METRICS),
            (each["trained_at"] or each["created"])[:16].replace("T", " "),
            html.Div(each["algorithm"] or "–", className="wraps"),
            _parameters(each.get("parameters") or {}),
            _size(each.get("size")),
            html.Div([_short(each["digest"]), " ", _short(each.get("data_digest"))], className="narrow"),
        )
        for variant, versions in known.versions.items()
        for each in versions
    ]
    if not rows:
        return html.P("No service tells its versions.", className="note")
    return pieces.table(head, rows)


def _links(variant: str, version: Stats) -> html.Span:
    """The model card, and the notebook that trained it, where that is published."""
    links = {"Model card": f"./cards/{quote(variant)}/{quote(version['version'])}"}
    # Others wrote the record: what is no address of a page is not followed.
    if str(version.get("notebook")).startswith(("https://", "http://")):
        links["Notebook"] = version["notebook"]
    return html.Span(
        [
            html.A(
                title,
                href=href,
                target="_blank",
                rel="noreferrer",
                className="more",
                **{"aria-label": f"{title} of {variant} {version['version']}, in a new tab"},  # type: ignore[arg-type]
            )
            for title, href in links.items()
        ],
        className="links",
    )


def _status(known: Known, variant: str, version: Stats) -> Any:
    if known.is_live(variant, version["version"]):
        return html.B("● live")
    served = [change.get("version") for change in _changes(known, variant)]
    return "was live" if version["version"] in served else "candidate"


def _changes(known: Known, variant: str) -> list[Stats]:
    service = known.releases[variant]["service"]
    return [each["changes"].get(service, {}) for each in known.releases[variant]["releases"]]


def _parameters(parameters: Stats) -> Component:
    rows = [(name, str(value)) for name, value in sorted(parameters.items())]
    return html.Details([html.Summary(f"{len(rows)}"), pieces.table(("Parameter", "Value"), rows)])


def _size(size: int | None) -> str:
    if not size:
        return "–"
    return f"{size / MIB:.2f} MiB" if size >= MIB / 10 else f"{size / 1024:.0f} KiB"


def _short(digest: str | None) -> Any:
    return html.Code(digest[:8], title=digest) if digest else "–"


def _releases(known: Known) -> list[html.Li]:
    found = [
        (release, told["service"], variant)
        for variant, told in known.releases.items()
        for release in told["releases"]
    ]
    items = [
        html.Li(
            [
                html.Div(
                    [
                        html.B(f"{variant}: {release['action']}"),
                        f" of {release['changes'][service]['version']}",
                    ]
                ),
                html.Div(f"“{release['reason']}”, by {release['by']}"),
                html.Div(f"{release['time'][:10]} {release['time'][11:19]} UTC, {service}", className="note"),
            ]
        )
        for release, service, variant in sorted(found, key=lambda each: each[0]["time"], reverse=True)
    ]
    return items or [html.Li("Nothing was released yet: services serve their newest version.")]


def _compare(app: Dash, router: RouterClient) -> None:
    @app.callback(
        Output("comparison", "children"), Input("compare-one", "value"), Input("compare-other", "value")
    )
    def compare(one: str | None, other: str | None) -> Any:
        if not one or not other:
            return no_update
        try:
            before, after = (router.version(*each.split("/", 1)) for each in (one, other))
        except RouterDown as error:
            return pieces.notice("They cannot be compared", f"{pieces.capital(str(error))}.")
        if one == other:
            return html.P("It is the same version: choose another one.", className="note")
        return _difference(before, after, one, other)


def _difference(before: Stats, after: Stats, one: str, other: str) -> list[Component]:
    """What is different in two versions, of one model or of two: a table for each part of it."""
    parts = {
        "about": (_about(before), _about(after)),
        **{
            part: (before["record"].get(part), after["record"].get(part))
            for part in ("metrics", "parameters", "importance")
        },
        "schema": (before["prototype"], after["prototype"]),
    }
    found: list[Component] = []
    for part, title in PARTS.items():
        old, new = parts[part]
        if part in FIGURES:
            old, new = (
                {name: changes.figure(each) for name, each in (side or {}).items()} for side in (old, new)
            )
        found_here = changes.differences(old or {}, new or {})
        if part == "importance":
            # What matters most to either comes first.
            found_here.sort(key=lambda each: max(abs(each[1] or 0.0), abs(each[2] or 0.0)), reverse=True)
        shown = _figure if part in FIGURES else changes.number
        rows = [(NAMES.get(name, name), shown(a), shown(b), _way(a, b)) for name, a, b in found_here]
        if rows:
            found.append(
                html.Details(
                    [
                        html.Summary(f"{title}: {len(rows)} different"),
                        pieces.table(("What", *map(_named, (one, other)), "Change"), rows),
                    ],
                    open=part in ("about", "metrics"),
                )
            )
    return found or [html.P("Nothing that is known of them is different.", className="note")]


def _figure(value: float | None) -> str:
    """A metric or an importance: all with as many decimals, so that they compare at a look."""
    return "–" if value is None else f"{value:.4f}".replace("-", "−")


def _named(chosen: str) -> str:
    variant, version = chosen.split("/", 1)
    return f"{variant} {version[:16]}"


def _about(version: Stats) -> Stats:
    record = version["record"]
    names = ("algorithm", "library", "data_digest", "code_digest", "seed", "threshold")
    told = {name: record.get(name) for name in names} | {"size": _size(version.get("size"))}
    return {name: each[:12] if name.endswith("digest") and each else each for name, each in told.items()}


def _way(before: Any, after: Any) -> str:
    if not isinstance(before, int | float) or not isinstance(after, int | float):
        return ""
    gap = abs(after - before)
    told = f"{gap:,}" if isinstance(gap, int) else f"{gap:.3g}"
    return f"{'▲ higher' if after > before else '▼ lower'} by {told}"


def _propose(app: Dash, router: RouterClient) -> None:
    @app.callback(
        Output("proposal", "data", allow_duplicate=True),
        Output("release-trouble", "children"),
        *(Input(name, "n_clicks") for name in BUTTONS),
        State("release-version", "value"),
        State("rollback-variant", "value"),
        prevent_initial_call=True,
    )
    def propose(
        release: int | None, rollback: int | None, chosen: str | None, rolled: str | None
    ) -> tuple[Any, Any]:
        if not (release or rollback):
            return no_update, no_update
        wanted = chosen if ctx.triggered_id == "release" else rolled
        if not wanted:
            return no_update, pieces.notice("Nothing is chosen", "Choose it in the field beside the button.")
        variant, _, version = wanted.partition("/")
        try:
            known = Known(router, router.stats(None))
        except RouterDown as error:
            return no_update, pieces.notice("Nothing can be proposed now", f"The router: {error}.")
        if variant not in known.versions:
            return no_update, known.troubles
        proposed = release_of(known, variant, version) if version else rollback_of(known, variant)
        if proposed is None:
            text = f"Nothing was released to {variant} before what it serves now."
            return no_update, pieces.notice("Nothing can be rolled back", text)
        serves = known.version(variant, version or known.before(variant))
        return acting.with_phases(proposed, {"models": {variant: serves}} if serves else None, router), []


def release_of(known: Known, variant: str, version: str) -> acting.Proposal:
    """Let the service of a variant serve a version."""
    live = known.live(variant).get("version", "its newest version")
    found = {each["version"]: each for each in known.versions[variant]}
    lines = [f"{variant} serves {version} instead of {live}", *_better(found.get(live), found.get(version))]
    if live == version:
        lines = [f"{variant} serves {version} already; it goes on until another version is released"]
    return acting.proposal(
        f"Release {version} to {variant}",
        lines,
        "POST",
        f"/v1/variants/{quote(variant)}/releases",
        {"version": version},
        version=known.looked(variant),
        kept=KEPT,
        undone="can be rolled back",
    )


def rollback_of(known: Known, variant: str) -> acting.Proposal | None:
    """Let the service of a variant serve the version that it served before; None where there is none."""
    before = known.before(variant)
    if before is None:
        return None
    live = known.live(variant).get("version", "its newest version")
    found = {each["version"]: each for each in known.versions[variant]}
    return acting.proposal(
        f"Roll {variant} back",
        [f"{variant} serves {before} again instead of {live}", *_better(found.get(live), found.get(before))],
        "POST",
        f"/v1/variants/{quote(variant)}/rollback",
        {},
        version=known.looked(variant),
        kept=KEPT,
        undone="is undone by a release",
    )


def _better(old: Stats | None, new: Stats | None) -> Sequence[str]:
    if not old or not new:
        return []
    lines = []
    for metric, title in METRICS.items():
        a, b = (changes.figure(each["metrics"].get(metric)) for each in (old, new))
        if a is not None and b is not None:
            lines.append(f"{title} on held-out clients: {a:.3f} → {b:.3f}")
    return lines
