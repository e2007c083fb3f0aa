"""The pieces that pages are made of, and what the router's counts say in words and in tiles."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html

from dashboard.charts import GRAPH_CONFIG, Stats, followed, places
from traffic.clients import HELD_OUT

# The share tile's strip shows this many percentage points on either side of the configured share.
STRIP_REACH = 0.15
# A number, an interval, both, or none.
_NUMBER = r"[−-]?[\d.,]+(?:e[−-]?\d+)?%?"
_RANGE = rf"{_NUMBER} (?:to {_NUMBER}|or more|or less)"
FIGURE = re.compile(rf"–|{_RANGE}|{_NUMBER}(?: of {_NUMBER}| \({_RANGE}\))?")
# Of a variant that has answered nothing.
NO_ANSWERS: Stats = {
    "requests": 0,
    "answered": 0,
    "refused": 0,
    "failed": 0,
    "mean_prediction": None,
    "latency_ms": None,
}


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> html.Table:
    """A table of texts, or of whatever else may stand in a cell; columns of figures stand to the right."""
    names = [""] * len(head)
    for number, column in enumerate(zip(*rows, strict=True)):
        if number and all(map(_is_figure, column)):
            names[number] = "figure"
    return html.Table(
        [
            html.Thead(
                html.Tr(
                    [
                        html.Th(title, scope="col", className=name)
                        for title, name in zip(head, names, strict=True)
                    ]
                )
            ),
            html.Tbody(
                [
                    html.Tr([html.Td(cell, className=name) for cell, name in zip(row, names, strict=True)])
                    for row in rows
                ]
            ),
        ],
        className="table",
    )


def _is_figure(cell: Any) -> bool:
    text = getattr(cell, "children", cell)
    return isinstance(text, str) and FIGURE.fullmatch(text) is not None


def moment(time: str) -> str:
    """A time of the router's as one reads it, without fractions of a second."""
    return f"{time[:10]} {time[11:19]}"


def heading(title: str) -> html.Div:
    """The title of a card with a chart, and what saves that as a picture (assets/png.js)."""
    save = html.Button(
        "PNG",
        className="png more",
        type="button",
        title="Save the chart as a PNG",
        **{"data-title": title, "aria-label": f"PNG: {title}"},  # type: ignore[arg-type]
    )
    return html.Div([html.H2(title), save], className="heading")


def chart(name: str, title: str, more: Any = None, height: int = 280) -> html.Section:
    """A card with a chart: `<name>-summary` says what it shows, `<name>-table` holds the same as a table.

    `<name>-drawn` holds both, and is hidden where there is nothing to draw.

    Args:
        name: of the chart, whose id is `<name>-chart`.
        title: a question, best.
        more: stands in the place of the table.
        height: in pixels.
    """
    return html.Section(
        id=f"{name}-card",
        className="card",
        children=[
            heading(title),
            html.P(id=f"{name}-summary", className="note"),
            html.Div(
                id=f"{name}-drawn",
                className="drawn",
                children=[
                    dcc.Graph(
                        id=f"{name}-chart",
                        config=GRAPH_CONFIG,
                        figure={},
                        responsive=True,
                        className="chart",
                        style={"height": height},
                    ),
                    more
                    or html.Details(
                        [html.Summary("View as table"), html.Div(id=f"{name}-table", tabIndex="0")]
                    ),
                ],
            ),
        ],
    )


def empty(title: str, reason: Any, action: Any = None) -> html.Section:
    """Says why there is nothing to show, and offers at most one thing to do."""
    return html.Section([html.H2(title), html.P(reason), action], className="card empty")


def select(
    name: str, label: str, options: dict[str, str], value: str, description: str | None = None
) -> dmc.Select:
    """A field in which one of some options is chosen, which are titles by value."""
    data = [{"value": each, "label": title} for each, title in options.items()]
    return dmc.Select(
        id=name, label=label, description=description, data=data, value=value, allowDeselect=False
    )


def skeletons(*heights: int) -> list[dmc.Skeleton]:
    """What stands in the place of cards before anything is known."""
    return [dmc.Skeleton(height=height, mb="sm") for height in heights]


def waits(seen: dict[str, Any] | None, asked: Sequence[Any], ticks: int) -> tuple[bool, dict[str, Any]]:
    """Whether what is asked for need not be asked for anew with this tick, and what is to be kept of it.

    It goes by what was asked for, not by what called: calls are answered in any order.

    Args:
        seen: what was kept with the last answer; None before the first.
        asked: what is asked for.
        ticks: after how many ticks the same is asked for again.
    """
    same = seen is not None and seen["asked"] == list(asked)
    count = seen["count"] + 1 if seen and same else 0
    return bool(count % ticks), {"asked": list(asked), "count": count}


def capital(text: str) -> str:
    """A reason as the beginning of a sentence."""
    return text[:1].upper() + text[1:]


def status(stats: Stats | None) -> list[Any]:
    """Whether all is well, in a word; None where the router does not answer."""
    if stats is None:
        return [html.B("▲ Router down")]
    if failing(stats):
        return [html.B("▲ Variant down")]
    if stats["paused"]:
        alone = max(stats["variants"], key=lambda each: each["configured_share"])["name"]
        return [html.B("❚❚ Paused"), f" all goes to {alone}"]
    return [html.B("● Running"), f" {stats['mode']}"]


def kind_title(kind: str) -> str:
    """A kind of simulated client, as the reader is offered it."""
    if kind == HELD_OUT:
        return "Held-out clients"
    return f"Those who pay {kind.replace('-', '–')}"


def variants(stats: Stats) -> list[html.Span]:
    """Who is champion, who is challenger, and with which share."""
    return [
        html.Span(
            [mark(place), html.B(each["name"]), f" {each['role']} {each['configured_share']:.0%}"],
            className="variant",
            title=f"{each['model'] or 'has not answered yet'} {each['version'] or ''}",
        )
        for each, place in _with_places(stats)
    ]


def answers(stats: Stats, variant: Stats) -> Stats:
    """What a variant answered: in shadow mode that of a challenger is what callers never see."""
    if not is_unseen(stats, variant):
        return variant
    found: Stats = variant["shadow"] or NO_ANSWERS
    return found


def has_split(stats: Stats) -> bool:
    """Whether there is a split to be seen: not where the champion answers all."""
    return stats["mode"] != "shadow" and not stats["paused"]


def tiles(stats: Stats) -> list[html.Div]:
    """Requests, share or shadows, errors, average probability, latency."""
    every = stats["variants"]
    total = stats["requests"]
    failed, refused = _unanswered(stats)
    first = _champion(stats)
    unseen = "Challengers score unseen." if stats["mode"] == "shadow" else ""
    share = (
        _tile("share", f"Share of {first['name']}", _figure(first["share"], ".1%"), _share_note(first))
        if stats["mode"] != "shadow"
        else _tile(
            "share",
            "In the shadow",
            _by_variant(
                stats,
                ("scored", "failed"),
                lambda each: [f"{each['answered']:,}", f"{each['failed'] + each['refused']:,}"],
                [each for each in every if is_unseen(stats, each)],
            ),
            f"{first['name']} answers all.",
        )
    )
    return [
        _tile("requests", "Requests", f"{total:,}", _on_record(stats)),
        share,
        _tile(
            "errors",
            "Errors",
            f"{(failed + refused) / total:.1%}" if total else "–",
            f"{failed:,} failed, {refused:,} refused",
        ),
        _tile(
            "probability",
            "Average probability",
            _by_variant(stats, (), lambda each: [_figure(each["mean_prediction"], ".3f")]),
            unseen,
        ),
        _tile(
            "latency",
            "Latency, ms",
            _by_variant(
                stats,
                ("p50", "p95", "p99"),
                lambda each: [
                    _figure((each["latency_ms"] or {}).get(quantile), ".1f")
                    for quantile in ("p50", "p95", "p99")
                ],
            ),
            unseen,
        ),
    ]


def _unanswered(stats: Stats) -> tuple[int, int]:
    """How many requests failed, and how many were refused."""
    failed, refused = (sum(each[what] for each in stats["variants"]) for what in ("failed", "refused"))
    return failed, refused


def summary(stats: Stats, tag: str | None) -> str:
    """The page in one sentence."""
    total = stats["requests"]
    begin = f" since {_hour(stats)}" if stats["since"] else ""
    if not total:
        what = "No requests" if tag is None else f"No {_kind(tag)} requests"
        return f"{what}{begin or ' yet'}"
    first = _champion(stats)
    unanswered = sum(_unanswered(stats))
    errors = f"{unanswered:,} without an answer ({unanswered / total:.1%})" if unanswered else "no errors"
    # Of all that is on record alone it is told of which kind it is.
    tags = [tag] if tag else sorted(stats["tags"], key=_order) or ["real"]
    noun = "request" if total == 1 else "requests"
    *first_kinds, last_kind = map(_kind, tags)
    kinds = f"{', '.join(first_kinds)} and {last_kind}"
    what = f"{total:,} {noun}{begin}, {kinds}" if first_kinds else f"{total:,} {last_kind} {noun}{begin}"
    if stats["mode"] == "shadow":
        others = [each["name"] for each in stats["variants"] if is_unseen(stats, each)]
        verb = "scores" if len(others) == 1 else "score"
        return f"{what}: {first['name']} answers, {' and '.join(others)} {verb} unseen, {errors}"
    if first["share"] is None:
        return f"{what}, none by the shares now configured, {errors}"
    return f"{what}: {_of(first, total)} went to {first['name']}, {_split(first)}, {errors}"


def requests_summary(stats: Stats, drawn: int) -> str:
    """What the request chart shows, in a few sentences; `drawn` is how many requests are on it."""
    told = [
        f"{each['name']} answered {each['answered']:,} of {each['requests']:,}, "
        f"on average with {each['mean_prediction']:.3f}"
        for each in stats["variants"]
        if each["mean_prediction"] is not None
    ]
    if not told:
        return "No request was answered yet."
    newest = f" Drawn are the newest {drawn:,}." if drawn < stats["requests"] else ""
    return f"{'; '.join(told)}.{newest}"


def share_summary(stats: Stats) -> str:
    """What the share chart shows, in one sentence."""
    it = followed(stats["variants"])
    if it["share_interval"] is None:
        return "Nothing to split yet by the shares now configured."
    lower, upper = it["share_interval"]
    verb = "covers" if lower <= it["configured_share"] <= upper else "▲ does not cover"
    return (
        f"{it['name']} got {it['share']:.1%} of the requests; the shaded band, always valid at 95%, "
        f"from {lower:.1%} to {upper:.1%}, {verb} the configured {it['configured_share']:.0%}."
    )


def share_table(stats: Stats) -> html.Table:
    """Requests and shares by variant."""
    head = ("Variant", "Requests", "Share", "From", "To", "Configured")
    rows = [
        (
            each["name"],
            f"{each['requests']:,}",
            _figure(each["share"], ".1%"),
            *(_figure(edge, ".1%") for edge in each["share_interval"] or (None, None)),
            f"{each['configured_share']:.0%}",
        )
        for each in stats["variants"]
    ]
    return table(head, rows)


def scores_summary(stats: Stats) -> str:
    """How far the average answers are from the champion's, in one sentence."""
    told = {
        each["name"]: mean
        for each in stats["variants"]
        if (mean := answers(stats, each)["mean_prediction"]) is not None
    }
    if len(told) < 2:  # noqa: PLR2004
        return "Only one variant has answered yet." if told else "No request was answered yet."
    first = _champion(stats)["name"]
    first = first if first in told else next(iter(told))
    gaps = {name: 100 * (mean - told[first]) for name, mean in told.items() if name != first}
    parts = [
        f"{name} answers on average {abs(gap):.1f} percentage points {'▲ higher' if gap > 0 else '▼ lower'}"
        for name, gap in gaps.items()
    ]
    return f"{', '.join(parts)} than {first}."


def scores_table(spreads: Sequence[Stats]) -> html.Table:
    """The share of answers in each tenth of probability, by variant."""
    rows = []
    for tenth in range(10):
        shares = []
        for each in spreads:
            edges, counts = each["scores"]["edges"], each["scores"]["counts"]
            # An edge may lie a rounding error below a tenth.
            mine = sum(n for edge, n in zip(edges, counts, strict=False) if int(10 * edge + 1e-6) == tenth)
            shares.append(f"{mine / sum(counts):.1%}" if counts else "–")
        rows.append((f"{tenth / 10:.1f} to {(tenth + 1) / 10:.1f}", *shares))
    return table(("Probability", *(each["name"] for each in spreads)), rows)


def latency_summary(stats: Stats) -> str:
    """Who is faster for most requests, in one sentence."""
    told = [
        f"{each['name']} answers half of its requests within {latency['p50']:.1f} ms, "
        f"and all but 1% within {latency['p99']:.1f} ms"
        for each in stats["variants"]
        if (latency := answers(stats, each)["latency_ms"])
    ]
    return f"{'; '.join(told)}." if told else "No request was answered yet."


def latency_table(stats: Stats) -> html.Table:
    """Latency quantiles by variant."""
    rows = [
        (
            each["name"],
            *(
                _figure((answers(stats, each)["latency_ms"] or {}).get(name), ".1f")
                for name in ("p50", "p95", "p99")
            ),
        )
        for each in stats["variants"]
    ]
    return table(("Variant", "p50, ms", "p95, ms", "p99, ms"), rows)


def rate_summary(rates: Sequence[list[Any]], names: Sequence[str]) -> str:
    """How busy it is now, in one sentence."""
    if not rates:
        return "Nothing has come yet."
    told = ", ".join(f"{value:.1f} to {name}" for name, value in zip(names, rates[-1][1:], strict=True))
    peak = max(sum(each[1:]) for each in rates)
    return f"Now {sum(rates[-1][1:]):.1f} requests a second ({told}); at most {peak:.1f} in what is shown."


def rate_table(rates: Sequence[list[Any]], names: Sequence[str]) -> html.Table:
    """The newest rates, by variant."""
    rows = [(each[0][11:19], *(f"{value:.1f}" for value in each[1:])) for each in reversed(rates[-20:])]
    return table(("Time, UTC", *(f"{name}, per second" for name in names)), rows)


def grid_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records for the grid, newest first."""
    shown = ("id", "time", "variant", "version", "prediction", "latency_ms", "status", "problem")
    return [{**{name: row[name] for name in shown}, "tag": row["tag"] or "real"} for row in reversed(rows)]


def why_empty(stats: Stats, tag: str | None, length: str) -> str:
    """Why there is nothing to show; `length` is that of the range that was chosen, as in "1 h"."""
    on_record = stats["tags"].get(tag, 0) if tag else sum(stats["tags"].values())
    if on_record:
        kind = f"{_kind(tag)} " if tag else ""
        return (
            f"Nothing came in the last {length}. The router has {on_record:,} {kind}requests on record: "
            "choose a longer range above, or send some."
        )
    on_record = sum(stats["tags"].values())
    if on_record:
        return f"The router has {on_record:,} requests on record, none of them {_kind(tag or 'real')}."
    return "The router has nothing on record. Send some traffic, and it will show here."


def failing(stats: Stats) -> list[html.Div]:
    """A notice for each variant whose newest request failed."""
    return [
        notice(
            f"Variant {each['name']} does not answer",
            f"The router says: {each['failing']}"
            + (f" (request {each['failing_request']})" if each["failing_request"] else "")
            + f". It looks for it at {each['url']}; the others go on. "
            f"This goes away with the next request that {each['name']} answers.",
        )
        for each in stats["variants"]
        if each["failing"]
    ]


def router_down(url: str, reason: str, seconds: float, *, known: bool) -> html.Div:
    """A notice that nothing new can be shown; `known` says whether anything was before."""
    below = "What stands below is what was known before" if known else "Nothing is known yet"
    return notice(
        "The router does not answer", f"{url}: {reason}. {below}; the next try is in {seconds:.0f} s."
    )


def notice(title: str, text: str, *, well: bool = False) -> html.Div:
    """What is wrong, and what comes next; or that something went well."""
    kind = "card notice well" if well else "card notice"
    return html.Div([html.H2(title), html.P(text)], className=kind)


def _tile(name: str, title: str, value: Any, note: Any) -> html.Div:
    return html.Div(
        className=f"card tile {name}",
        children=[
            html.H2(title),
            html.Div(value, className="value", id=f"tile-{name}"),
            html.Div(note, className="note"),
        ],
    )


def _by_variant(
    stats: Stats,
    head: Sequence[str],
    tell: Callable[[Stats], list[str]],
    chosen: Sequence[Stats] | None = None,
) -> html.Table:
    """A small table with a row for each variant, or each that is chosen, of what it answered."""
    rows = [
        html.Tr(
            [html.Th([mark(place), each["name"]], scope="row"), *map(html.Td, tell(answers(stats, each)))]
        )
        for each, place in _with_places(stats)
        if chosen is None or each in chosen
    ]
    columns = html.Tr([html.Td(""), *(html.Th(name, scope="col") for name in head)])
    return html.Table([*([html.Thead(columns)] if head else []), html.Tbody(rows)], className="by-variant")


def _share_note(variant: Stats) -> list[Any]:
    configured = variant["configured_share"]
    if variant["share_interval"] is None:
        return [f"configured {configured:.0%}"]
    lower, upper = variant["share_interval"]
    return [
        _strip(variant["share"], lower, upper, configured),
        html.Div(f"{lower:.1%} to {upper:.1%}, always valid"),
        html.Div(f"configured {configured:.0%}, {variant['share_of']:,} assigned"),
    ]


def _strip(share: float, lower: float, upper: float, configured: float) -> html.Div:
    """The interval as a bar, the share as a dot, the configured share as a line in the middle."""

    def at(value: float) -> float:
        return 100 * min(max((value - configured + STRIP_REACH) / (2 * STRIP_REACH), 0), 1)

    return html.Div(
        className="strip",
        # The note below says the same in words.
        **{"aria-hidden": "true"},  # type: ignore[arg-type]
        children=[
            html.I(
                className="interval", style={"left": f"{at(lower)}%", "width": f"{at(upper) - at(lower)}%"}
            ),
            html.I(className="configured"),
            html.I(className="share", style={"left": f"{at(share)}%"}),
        ],
    )


def mark(place: int) -> html.I:
    """The mark of a variant, by its place."""
    return html.I(className=f"mark mark-{place}", **{"aria-hidden": "true"})  # type: ignore[arg-type]


def _with_places(stats: Stats) -> list[tuple[Stats, int]]:
    every = stats["variants"]
    return list(zip(every, places([each["role"] for each in every]), strict=True))


def _champion(stats: Stats) -> Stats:
    every = stats["variants"]
    found: Stats = next((each for each in every if each["role"] == "champion"), every[0])
    return found


def is_unseen(stats: Stats, variant: Stats) -> bool:
    """Whether callers never see what a variant answers: in shadow mode that of challengers."""
    return bool(stats["mode"] == "shadow" and variant["role"] != "champion")


def _hour(stats: Stats) -> str:
    """The hour from which on is counted; with its day, where that is another one."""
    since, now = stats["since"], stats["as_of"]
    return f"{since[11:16]} UTC" if since[:10] == now[:10] else f"{since[:10]} {since[11:16]} UTC"


def _on_record(stats: Stats) -> str:
    tags = dict(stats["tags"])
    real, simulated = tags.pop("real", 0), tags.pop("simulation", 0)
    others = "".join(f", {count:,} tagged {tag}" for tag, count in tags.items())
    begin = f"since {_hour(stats)}, by whole hours; " if stats["since"] else ""
    return f"{begin}on record: {real:,} real, {simulated:,} simulated{others}"


def _kind(tag: str) -> str:
    return {"simulation": "simulated"}.get(tag, tag)


def _order(tag: str) -> tuple[bool, bool, str]:
    """Real traffic first, then that of simulations."""
    return tag != "real", tag != "simulation", tag


def _of(variant: Stats, total: int) -> str:
    """A variant's share, and of which requests, where other weights have assigned some."""
    told = f"{variant['share']:.1%}"
    return told if variant["share_of"] == total else f"{told} of {variant['share_of']:,} assigned"


def _split(variant: Stats) -> str:
    lower, upper = variant["share_interval"]
    return "split as configured" if lower <= variant["configured_share"] <= upper else "▲ not as configured"


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
