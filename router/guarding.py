"""Guardrails that act: a canary goes back where its declared guardrails say so, by e-values.

Each step of a canary is judged by what was recorded in it, so that no error rate that drifts while the shares
change is taken for the challenger's. Of G guardrails at S steps each acts at an e-value of G·S/α: the
probability that a canary ever goes back although no harm exceeds its margin is at most α, however often one
looks (Ville's inequality and Bonferroni's).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial

from router.controllers import Evidence, Gate, Judgement, errors_and_latency
from router.experiments import Current
from router.verdicts import Verdicts, rules
from verdict import guardrails
from verdict.decision import judge
from verdict.results import GuardrailResult

# Nobody is sent back on less of the challenger's requests, whatever they say.
LEAST_REQUESTS = 30


class Guards:
    """Judges canaries, and promotions."""

    def __init__(self, verdicts: Verdicts) -> None:
        self._verdicts = verdicts

    def gate(self, current: Current) -> Gate:
        """What judges the steps of a canary: its guardrails, or without any its errors and latency."""
        return partial(self._judge, current) if current.document.guardrails else errors_and_latency

    def _judge(self, current: Current, counted: Evidence) -> Judgement:
        [challenger] = (each.name for each in current.document.challengers)
        declared = rules(current.document)
        declared = replace(
            declared, guardrail_alpha=declared.guardrail_alpha / len(current.document.canary.steps)
        )
        evidence = self._verdicts.evidence(current, None, step=current.step)
        found = guardrails.results(evidence, challenger, declared)
        told = [asdict(each) for each in found]
        breached = [each for each in found if each.state == "breached"]
        if breached and counted.challenger.requests >= LEAST_REQUESTS:
            return Judgement("regress", f"the guardrail {_worse(breached[0])}", told)
        if counted.few:
            return Judgement("hold", "there are too few requests yet", told)
        doubtful = [each for each in found if each.harm is not None and each.harm > each.margin]
        if doubtful:
            seems = doubtful[0]
            return Judgement("hold", f"{seems.name} seems worse than its margin of {seems.margin:g}", told)
        return Judgement("advance", "no guardrail objects", told)

    def doubts(self, current: Current, variant: str) -> list[str]:
        """What speaks against making a variant the champion: each trust check and guardrail that is not met.

        Raises:
            DatabaseDown: the database cannot be read.
        """
        champion = current.document.champion or current.document.variants[0]
        if variant == champion.name:
            return []
        now = datetime.now(UTC)
        verdict = judge(self._verdicts.evidence(current, "real", now=now), rules(current.document))
        mine = [each for each in verdict.comparisons if each.challenger == variant]
        checks = [*verdict.checks, *(check for each in mine for check in each.checks)]
        found = [f"{each.name}: {each.seen}" for each in checks if each.state != "passed"]
        for each in (result for compared in mine for result in compared.guardrails):
            if each.state == "breached":
                found.append(f"the guardrail {_worse(each)}")
            elif each.state != "clear":
                found.append(f"the guardrail {each.name} is open")
        return found


def _worse(result: GuardrailResult) -> str:
    least = result.at_least if result.at_least is not None else result.margin
    return f"{result.name} is broken: worse by {max(least, result.margin):.3g} or more"
