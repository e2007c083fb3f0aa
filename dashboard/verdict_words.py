"""A verdict of the router in sentences and tables; pure functions, for the page and for its report."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from dashboard.charts import Stats
from verdict import report
from verdict.report import NONE, number
from verdict.results import Interval

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
KINDS = {
    "real": "real traffic",
    "simulation": "simulated traffic",
    "load-test": "load tests",
    "all": "all traffic",
}
# Those that begin with a name.
CAPITALS = ("brier", "auc")
LATENCY = "latency-"
SIDES = ("champion", "challenger")

# What readers may not know.
E_VALUE = (
    "An e-value is evidence of a difference, whenever one looks: where there is none, it ever reaches 20 at "
    "most one time in 20."
)
HARM = (
    "Harm is by how much the challenger is worse, in the metric's unit. A guardrail is breached when its "
    "e-value, the evidence of more harm than the margin, reaches the bound behind it."
)


def interval(ends: Stats) -> str:
    """Both ends of an interval, or the one that is known."""
    return report.interval(Interval(**ends))


def _metric(name: Any) -> str:
    """A metric, as a heading names it."""
    text = str(name)
    return NAMES.get(text) or (f"Latency {text.removeprefix(LATENCY)}" if text.startswith(LATENCY) else text)


def _in_a_sentence(name: Any) -> str:
    text = _metric(name)
    return text if name in CAPITALS else text[:1].lower() + text[1:]


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


def models(told: Stats) -> str:
    """Which models are judged, and in which phase."""
    if told["phase"] is None:
        return "By this split and these rules nothing was recorded yet, so no phase has begun."
    serving = ", ".join(f"{name} serves {served(each)}" for name, each in told["models"].items())
    return f"Phase {told['phase']}: {serving or 'nobody has answered yet'}."


def served(model: Stats) -> str:
    """A model by its version, or what else its service tells."""
    told = model["version"] or (model["digest"] or "")[:12] or model["model"]
    return str(told or "what tells no version")


def phase(told: Stats) -> str:
    """A phase, to be chosen from a list."""
    now = ", now" if told["in_force"] else ""
    count = told["outcomes"]
    outcomes = f"{count:,} outcome{'' if count == 1 else 's'}"
    return f"{told['phase']}{now}: {', '.join(told['because'])}; {outcomes}"


def nothing(told: Stats) -> str:
    """Why there is nothing to judge."""
    kind = KINDS.get(told["tag"], told["tag"])
    return f"Of {kind} nothing was recorded in this phase."


def checks(told: Stats) -> list[tuple[str, str, str]]:
    """The trust checks: name, state in a word, what was seen."""
    many = len(told["comparisons"]) > 1
    every = [(check, "") for check in told["checks"]] + [
        (check, f", {each['challenger']}" if many else "")
        for each in told["comparisons"]
        for check in each["checks"]
    ]
    return [
        (f"{check['name'].capitalize()}{of}", STATES[check["state"]], check["seen"]) for check, of in every
    ]


def figures(told: Stats, each: Stats) -> Table:
    """The table of metrics; the interval for one look alone is the last but one."""
    level = f"{100 * (1 - told['alpha']):g}%"
    head: tuple[str, ...] = (
        "Metric",
        told["champion"],
        each["challenger"],
        report.less(told["champion"], each["challenger"]),
    )
    head = (*head, f"{level}, whenever one looks", "for one look alone", "e-value")
    rows: list[tuple[str, ...]] = [
        (
            _metric(row["metric"]) + (f" ({row['note']})" if row["note"] else ""),
            *(report.with_interval(row[side], Interval(**row[f"{side}_interval"])) for side in SIDES),
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
            *(rail["name"], _metric(rail["metric"]), number(rail["margin"]), number(rail["harm"])),
            RAILS[rail["state"]],
            f"{number(rail['e_value'])} of {number(rail['bound'])}",
        )
        for rail in each["guardrails"]
    ]


def segments(told: Stats, each: Stats) -> Table:
    """The difference in parts of the traffic."""
    head = (
        "Part",
        "Outcomes",
        report.less(told["champion"], each["challenger"]),
        "Interval, all parts together",
    )
    return head, [
        (
            *(f"{part['field']} {part['value']}", f"{part['n']:,}"),
            *(number(part["row"]["difference"]), interval(part["row"]["interval"])),
        )
        for part in each["segments"]
    ]


def gaps(told: Stats) -> Table:
    """How far the rates of groups are apart."""
    head = ("Variant", "Rate", "Group", "Of outcomes", "Compared with", "Of outcomes", "Gap", "Interval")
    return head, [
        (
            *(gap["variant"], gap["rate"], f"{gap['field']} {gap['group']}", f"{gap['n']:,}"),
            *(gap["reference"], f"{gap['reference_n']:,}", number(gap["gap"]), interval(gap["interval"])),
        )
        for gap in told["gaps"]
    ]


def known(each: Stats) -> list[Stats]:
    """The points of the history at which there was a difference."""
    return [point for point in each["history"] if point["difference"] is not None]


def funnel_summary(told: Stats, each: Stats) -> str:
    """What the funnel shows, in one sentence."""
    name = _in_a_sentence(told["metric"])
    points = known(each)
    if not points:
        return f"Nothing can be said of the {name} yet: no outcome counts."
    last = points[-1]
    margin = f" Within ±{number(told['margin'])} both are as good." if told["margin"] else ""
    alone = " There is a point for each hour at most: the next one comes then." if len(points) == 1 else ""
    return (
        f"After {each['n']:,} outcomes the {name} of {told['champion']} less that of {each['challenger']} is "
        f"{number(last['difference'])}, and with {1 - told['alpha']:.0%} confidence, "
        f"however often one looks, within {interval(last['interval'])}.{margin}{alone}"
    )


def funnel_table(told: Stats, each: Stats) -> Table:
    """The funnel's newest points."""
    head = ("Outcomes", report.less(told["champion"], each["challenger"]), "Interval", "e-value")
    return head, [
        (
            f"{point['n']:,}",
            number(point["difference"]),
            interval(point["interval"]),
            number(point["e_value"]),
        )
        for point in known(each)[:-21:-1]
    ]


def latencies(each: Stats) -> list[Stats]:
    """The rows of a comparison that are quantiles of latency, the lowest quantile first."""
    rows = [row for row in each["rows"] if row["metric"].startswith(LATENCY)]
    return sorted(rows, key=lambda row: float(quantile(row)[1:]))


def quantile(row: Stats) -> str:
    """Which quantile of latency a row is of, as in p95."""
    return str(row["metric"]).removeprefix(LATENCY)


def latency_summary(told: Stats, each: Stats) -> str:
    """How long both take, in one sentence, and where that is beyond doubt."""
    rows = [row for row in latencies(each) if row["champion"] is not None and row["challenger"] is not None]
    if not rows:
        return "Nothing can be said of latencies yet: not both have answered."
    one, other = told["champion"], each["challenger"]
    parts = [
        f"{quantile(row)} of {one} {row['champion']:.3g} ms, of {other} {row['challenger']:.3g} ms"
        for row in rows
    ]
    slower = {side: [quantile(row) for row in rows if _surely_slower(row, side)] for side in SIDES}
    told_of = [
        f"▲ {name} is slower at {', '.join(found)} beyond doubt"
        for name, found in zip((one, other), slower.values(), strict=True)
        if found
    ]
    verdict = "; ".join(told_of) or "the intervals overlap, so neither is slower beyond doubt"
    sure = f"Bars hold with {1 - told['alpha']:.0%} confidence, whenever one looks."
    return f"{'; '.join(parts)}: {verdict}. {sure}"


def _surely_slower(row: Stats, side: str) -> bool:
    [other] = {*SIDES} - {side}
    lower, upper = row[f"{side}_interval"]["lower"], row[f"{other}_interval"]["upper"]
    return lower is not None and upper is not None and lower > upper


def latency_table(told: Stats, each: Stats) -> Table:
    """Quantiles of latency, with their intervals."""
    one, other = told["champion"], each["challenger"]
    head = ("Quantile", f"{one}, ms", f"{one}, interval", f"{other}, ms", f"{other}, interval")
    return head, [
        (
            quantile(row),
            *(text for side in SIDES for text in (number(row[side]), interval(row[f"{side}_interval"]))),
        )
        for row in latencies(each)
        if any(row[side] is not None for side in SIDES)
    ]


def fewer(told: Stats, each: Stats) -> str:
    """How many times fewer outcomes pairs take, in one sentence; nothing where there are no pairs."""
    if each["fewer"] is None:
        return ""
    return (
        f"{told['champion']} and {each['challenger']} scored the same requests. Compared in pairs they need "
        f"{each['fewer']:,.3g} times fewer outcomes than a split of the traffic in halves would, by the "
        "variances seen so far."
    )


def traffic_summary(told: Stats) -> str:
    """What came to whom, and what was to come, in one sentence."""
    cells = told["traffic"]
    if not cells:
        return "Nothing has come yet."
    names = variants(told)
    got = {name: sum(each["requests"][name] for each in cells) for name in names}
    span = f"From {_clock(cells[0]['begin'])} to {_clock(cells[-1]['end'])} UTC"
    drawn = [each for each in cells if each["shares"]]
    if not drawn:
        parts = "; ".join(f"{name} was asked {count:,} times" for name, count in got.items())
        return f"{span} {parts}."
    total = sum(got.values())
    parts = ", ".join(
        f"{name} {got[name] / max(total, 1):.1%} where {_expected(drawn, name):.1%} were to come"
        for name in names
    )
    return (
        f"{span} {total:,} requests came: {parts}. Lines are propensities, the probabilities with which "
        "variants were drawn; marks are the shares that came."
    )


def _expected(cells: Sequence[Stats], name: str) -> float:
    """The mean propensity of a variant over the requests of some cells."""
    counts = [sum(each["requests"].values()) for each in cells]
    total = sum(each["shares"][name] * n for each, n in zip(cells, counts, strict=True))
    return float(total / max(sum(counts), 1))


def traffic_table(told: Stats) -> Table:
    """The newest cells of time: requests and propensities by variant."""
    names = variants(told)
    head = ("From, UTC", *(f"{name}, requests" for name in names), *(f"{name}, propensity" for name in names))
    return head, [
        (
            _clock(each["begin"]),
            *(f"{each['requests'][name]:,}" for name in names),
            *(f"{each['shares'][name]:.1%}" if each["shares"] else NONE for name in names),
        )
        for each in told["traffic"][:-21:-1]
    ]


def _clock(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


def variants(told: Stats) -> list[str]:
    """The champion's name, and those of the challengers, in the order of `role_list`."""
    return [told["champion"], *(each["challenger"] for each in told["comparisons"])]


def role_list(told: Stats) -> list[str]:
    """The roles of champion and challengers, as `looks` takes them."""
    return ["champion", *("challenger" for _ in told["comparisons"])]


def safe(told: Any) -> str:
    """A title for a file."""
    return "".join(letter if letter.isalnum() else "-" for letter in str(told))
