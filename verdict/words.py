"""The verdict in words, fit to be read aloud."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from verdict.contrast import needs_weights
from verdict.evidence import Evidence, Rules
from verdict.plan import DAY
from verdict.results import Check, GuardrailResult

METRICS = {"brier": "Brier score", "log-loss": "log loss", "profit": "profit per decision"}
YEARS = 3650.0


@dataclass(frozen=True)
class Said:
    """What sentences are made of: the advantage of the challenger in units of the metric, and the radius.

    Of the radius so much is `owed` to answers that the challenger did not give (`trust.owed`).
    `lacking` is what there is too little of for any winner to be named; nothing where there is enough.
    """

    champion: str
    challenger: str
    metric: str
    advantage: float
    radius: float
    owed: float
    margin: float
    n: int
    lacking: str
    more_outcomes: int | None
    more_days: float | None

    @property
    def _what(self) -> str:
        return METRICS[self.metric]

    def promote(self) -> str:
        """The challenger is better."""
        word = "higher" if self.metric == "profit" else "lower"
        least = self.advantage - self.radius
        return (
            f"Promote {self.challenger}: its {self._what} is {word} than {self.champion}'s by "
            f"{figure(self.advantage)}, and surely by {figure(least)} or more."
        )

    def keep(self) -> str:
        """The champion is better."""
        word = "lower" if self.metric == "profit" else "higher"
        least = -self.advantage - self.radius
        return (
            f"Keep {self.champion}: {self.challenger}'s {self._what} is {word} by "
            f"{figure(-self.advantage)}, and surely by {figure(least)} or more."
        )

    def breach(self, guardrail: GuardrailResult) -> str:
        """A guardrail tripped."""
        return f"Keep {self.champion}: {harm(guardrail, self)}."

    def equivalent(self) -> str:
        """Neither is better by what matters."""
        return (
            f"{self.champion} and {self.challenger} are practically equivalent: in {self._what} they differ "
            f"by less than {figure(self.margin)}."
        )

    def identical(self) -> str:
        """All scores are the same."""
        return (
            f"{self.champion} and {self.challenger} are practically equivalent: they gave the same score on "
            f"all {self.n:,} pairs."
        )

    def collect(self) -> str:
        """It is open, and about how long it will be."""
        if self.owed and abs(self.advantage) > self.radius - self.owed:
            return (
                f"Keep collecting: {self.challenger} did not give all answers that it was asked for, and "
                f"what it might have said could change the difference by {figure(self.owed)}, so nothing "
                f"tells {self.champion} and {self.challenger} apart."
            )
        if self.more_outcomes is None:
            return f"Keep collecting: nothing tells {self.champion} and {self.challenger} apart yet."
        outcomes = f"about {rounded(self.more_outcomes):,} more outcomes"
        if self.more_days is None:
            days = ""
        elif self.more_days > YEARS:
            days = ", more than ten years,"
        else:
            days = f", some {max(rounded(math.ceil(self.more_days)), 1):,} more days,"
            days = days.replace("some 1 more days", "about a day more")
        return f"Keep collecting: {outcomes}{days} should tell {self.champion} and {self.challenger} apart."

    def doubt(self) -> str:
        """What speaks against the challenger's being as good as the champion; nothing where it surely is.

        As good is what is worse by the margin at most: the bound of non-inferiority.
        """
        if self.lacking:
            return self.lacking
        if not math.isfinite(self.radius):
            return f"nothing tells {self.champion} and {self.challenger} apart yet"
        least = self.advantage - self.radius
        if least >= -self.margin:
            return ""
        return (
            f"{self.challenger} may be worse than {self.champion} in {self._what} by {figure(-least)}, where "
            f"{figure(self.margin)} is allowed"
        )

    def not_clear(self, guardrails: Sequence[GuardrailResult]) -> str:
        """The challenger is better, and a guardrail is open."""
        names = " and ".join(each.name for each in guardrails)
        word = "guardrail" if len(guardrails) == 1 else "guardrails"
        return (
            f"Keep collecting: {self.challenger} has the better {self._what}, but it is not sure yet that it "
            f"stays within the {word} {names}."
        )

    def between(self) -> str:
        """The interval of the advantage."""
        if not math.isfinite(self.radius):
            return "there is no interval yet"
        low, high = self.advantage - self.radius, self.advantage + self.radius
        return (
            f"{self.challenger} is better in {self._what} by between {figure(low)} and {figure(high)}, "
            f"whenever one looks"
        )


def estimand(evidence: Evidence, rules: Rules) -> str:
    """What the difference is a difference of, in a sentence or two."""
    whose = f"{evidence.champion} and " + " or ".join(evidence.challengers)
    days = (rules.maturity or 0.0) / DAY
    age = "" if not days else f" {days:,.3g} days after it" if days != 1 else " a day after it"
    over = {
        "shadow": " on the same request, over all requests whose outcome is known{age}",
        "split": " over all requests whose outcome is known{age}, had one variant answered them all",
        "bandit": " over all requests whose outcome is known{age}, had one variant answered them all, "
        "whatever the shares were",
    }[evidence.design]
    if needs_weights(evidence) and rules.weighting == "overlap":
        over += ", each time counted by how much of it both were asked (overlap weights)"
    warning = ""
    if rules.selective:
        warning = " The served score decides who can ever have an outcome: "
        if evidence.design == "shadow":
            warning += "nothing is said of those who were turned away."
        else:
            over = ", each over those of its own requests whose outcome is known{age}"
            warning += "these are different clients, and no variant answered for all."
    told = f"The mean difference in {METRICS[rules.metric]} between {whose}{over.format(age=age)}."
    return told + warning


def the_same(champion: str, challenger: str) -> str:
    """Two variants serve one model."""
    return f"{champion} and {challenger} are the same model, so nothing is compared."


def risk(rules: Rules) -> str:
    """How often anything is decided without cause, and what shares that."""
    told = f"Where no model is better, a winner is ever named with a probability of {_percent(rules.alpha)}"
    if rules.attempt > 1:
        told += (
            f": these are the {_ordinal(rules.attempt)} rules for this split, and each have half of the risk "
            "of those before"
        )
    if rules.replays > 1:
        told += f"{',' if rules.attempt > 1 else ':'} {rules.replays} replay sets share the declared alpha"
    told += "."
    if rules.guardrails:
        both = _percent(rules.alpha + rules.guardrail_alpha)
        told += (
            f" Guardrails spend {_percent(rules.guardrail_alpha)} of their own, on harm where there is none:"
            f" both together are {both}."
        )
    return told


def _percent(share: float) -> str:
    return f"at most {100 * share:.3g} %"


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if number % 100 in (11, 12, 13) else ending}"


def distrust(check: Check) -> str:
    """A trust check failed."""
    return f"Don't trust this: {check.seen}."


def harm(guardrail: GuardrailResult, said: Said) -> str:
    """How a guardrail stands."""
    if guardrail.harm is None:
        return f"nothing is known yet of the guardrail {guardrail.name}"
    allowed = f"{figure(guardrail.margin)} is allowed"
    if guardrail.state == "breached" and guardrail.at_least is not None:
        return (
            f"{said.challenger} breaks the guardrail {guardrail.name}, worse by at least "
            f"{figure(guardrail.at_least)} where {allowed}"
        )
    if guardrail.at_most is None:
        return f"the guardrail {guardrail.name} has no upper bound yet, where {allowed}"
    return (
        f"by the guardrail {guardrail.name} {said.challenger} may be worse by {figure(guardrail.at_most)}, "
        f"where {allowed}"
    )


def figure(value: float) -> str:
    """A number with two significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    places = max(0, 1 - math.floor(math.log10(abs(value))))
    told = f"{value:,.{min(places, 12)}f}"
    return (told.rstrip("0").rstrip(".") if "." in told else told).replace("-", "−")


def rounded(count: float) -> int:
    """With two significant digits."""
    if count < 100:  # noqa: PLR2004
        return int(count)
    return int(round(count, 1 - math.floor(math.log10(count))))
