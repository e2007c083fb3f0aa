"""A verdict as a page of Markdown, from the sentence that matters to the figures behind it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from verdict.results import Comparison, Interval, Row, Verdict

NAMES = {
    "brier": "Brier score",
    "log-loss": "log loss",
    "profit": "profit per decision",
    "calibration": "calibration (mean of y − p)",
    "error-rate": "error rate",
    "auc": "AUC",
}
NONE = "–"
# Of the interval over time so many points are shown.
MOST_POINTS = 12


def markdown(verdict: Verdict) -> str:
    """The whole verdict."""
    level = f"{100 * (1 - verdict.alpha):g} %"
    parts = [
        f"**{verdict.sentence}**",
        verdict.estimand,
        verdict.risk,
        "## Can this be trusted?",
        checks(verdict),
    ]
    for each in verdict.comparisons:
        parts += [
            f"## {verdict.champion} and {each.challenger}",
            each.sentence if len(verdict.comparisons) > 1 else "",
            figures(verdict.champion, each, level) if each.rows else "",
            fewer(each),
            over_time(verdict.champion, each, level),
            guardrails(each),
            segments(verdict.champion, each, level),
        ]
    parts.append(fairness(verdict))
    return "\n\n".join(part for part in parts if part) + "\n"


def checks(verdict: Verdict) -> str:
    """The trust checks, each with what was seen."""
    all_checks = [*verdict.checks, *(check for each in verdict.comparisons for check in each.checks)]
    return "\n".join(f"- {check.name}: {check.state}. {sentence(check.seen)}" for check in all_checks)


def less(champion: str, challenger: str) -> str:
    """Of which difference figures are: what is positive depends on the metric."""
    return f"{champion} − {challenger}"


def figures(champion: str, compared: Comparison, level: str) -> str:
    """The table."""
    header = (
        *(
            "",
            champion,
            compared.challenger,
            less(champion, compared.challenger),
            f"{level}, whenever one looks",
        ),
        *("for one look alone", "e-value"),
    )
    return table(header, [_figures(row) for row in compared.rows])


def fewer(compared: Comparison) -> str:
    """What comparing in pairs saves."""
    if compared.fewer is None:
        return ""
    return f"A split would take {number(compared.fewer)} times as many outcomes as these pairs."


def over_time(champion: str, compared: Comparison, level: str) -> str:
    """How the difference and its interval came about; of many points some, and the last."""
    points = compared.history[:: -max(math.ceil(len(compared.history) / MOST_POINTS), 1)][::-1]
    if len(points) < 2:  # noqa: PLR2004 (the table above says the same)
        return ""
    lines = [
        (
            datetime.fromtimestamp(each.time, UTC).strftime("%Y-%m-%d %H:%M"),
            *(f"{each.n:,}", number(each.difference), interval(each.interval), number(each.e_value)),
        )
        for each in points
    ]
    header = (
        *("asked until (UTC)", "outcomes", less(champion, compared.challenger)),
        *(f"{level}, whenever one looks", "e-value"),
    )
    return f"### Over time\n\n{table(header, lines)}"


def guardrails(compared: Comparison) -> str:
    """What must not become worse, if anything was declared."""
    if not compared.guardrails:
        return ""
    lines = [
        (
            *(each.name, each.metric, number(each.margin), number(each.harm), each.state),
            f"{number(each.e_value)} of {number(each.bound)}",
        )
        for each in compared.guardrails
    ]
    header = ("guardrail", "metric", "margin", "harm", "state", "e-value")
    return f"### Guardrails\n\n{table(header, lines)}"


def segments(champion: str, compared: Comparison, level: str) -> str:
    """The difference in the declared parts of the requests."""
    if not compared.segments:
        return ""
    lines = [
        (
            f"{each.field} {each.value}",
            f"{each.n:,}",
            number(each.row.difference),
            interval(each.row.interval),
        )
        for each in compared.segments
    ]
    header = ("part", "outcomes", less(champion, compared.challenger), f"{level}, all parts together")
    return f"### Parts of the traffic\n\n{table(header, lines)}"


def fairness(verdict: Verdict) -> str:
    """How far the rates of groups are apart."""
    if not verdict.gaps:
        return ""
    lines = [
        (
            *(each.variant, each.rate, f"{each.field} {each.group}", f"{each.n:,}"),
            *(each.reference, f"{each.reference_n:,}", number(each.gap), interval(each.interval)),
        )
        for each in verdict.gaps
    ]
    header = ("variant", "rate", "group", "of outcomes", "compared with", "of outcomes", "gap", "interval")
    return f"## Between groups\n\n{table(header, lines)}"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; all but the first column to the right."""
    ruler = ("---", *["---:"] * (len(header) - 1))
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ruler, *lines))


def number(value: float | None) -> str:
    """A figure as a reader wants it."""
    if value is None:
        return NONE
    if value and (abs(value) < 1e-4 or abs(value) >= 1e6):  # noqa: PLR2004
        return f"{value:.2e}".replace("-", "−")
    return f"{value:,.4g}".replace("-", "−")


def interval(ends: Interval) -> str:
    """Both ends, or the one that is known."""
    if ends.lower is None and ends.upper is None:
        return NONE
    if ends.upper is None:
        return f"{number(ends.lower)} or more"
    if ends.lower is None:
        return f"{number(ends.upper)} or less"
    return f"{number(ends.lower)} to {number(ends.upper)}"


def with_interval(value: float | None, ends: Interval) -> str:
    """A variant's own figure, with its own interval where it has one."""
    told = interval(ends)
    return number(value) + (f" ({told})" if told != NONE else "")


def sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _figures(row: Row) -> tuple[str, ...]:
    name = NAMES.get(row.metric, row.metric)
    note = f" ({row.note})" if row.note else ""
    return (
        f"{name}{note}",
        with_interval(row.champion, row.champion_interval),
        with_interval(row.challenger, row.challenger_interval),
        number(row.difference),
        interval(row.interval),
        interval(row.fixed),
        number(row.e_value),
    )
