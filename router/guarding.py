"""Guardrails that act: a canary goes back where its declared guardrails say so, by e-values.

Each step of a canary is judged by what was recorded in it, so that no error rate that drifts while the shares
change is taken for the challenger's. How, and how often they are wrong: `verdict/guardrails.py`.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

from router.controllers import TOO_FEW_ANSWERS, Gate, Judgement, errors_and_latency
from router.controllers import Evidence as Counted
from router.experiments import Current
from router.verdicts import Verdicts, rules
from verdict import guardrails
from verdict.results import Check, GuardrailResult


class Guards:
    """Judges canaries, and promotions."""

    def __init__(self, verdicts: Verdicts) -> None:
        self._verdicts = verdicts

    def gate(self, current: Current) -> Gate:
        """What judges the steps of a canary: its guardrails, or without any its errors and latency."""
        return partial(self._judge, current) if current.document.guardrails else errors_and_latency

    def _judge(self, current: Current, counted: Counted) -> Judgement:
        document = current.document
        [challenger] = (each.name for each in document.challengers)
        evidence = self._verdicts.evidence(current, document.moving, step=current.step)
        canary = document.canary
        step = guardrails.at_step(
            *(evidence, challenger, rules(document), len(canary.steps), canary.min_requests),
            last=counted.further == 1,
        )
        return Judgement(step.says, _why(step), [asdict(each) for each in step.results])

    def doubts(self, current: Current, variant: str) -> list[str]:
        """What speaks against making a variant the champion: what it does not meet, or is not known to.

        It is to be as good as the champion, but for the margin, by a bound that holds whenever one looks.

        Raises:
            DatabaseDown: the database cannot be read.
        """
        champion = current.document.champion or current.document.variants[0]
        if variant == champion.name:
            return []
        verdict, _ = self._verdicts.verdict(current, "real")
        mine = [each for each in verdict.comparisons if each.challenger == variant]
        checks = [*verdict.checks, *(check for each in mine for check in each.checks)]
        found = [f"{each.name}: {each.seen}" for each in checks if each.state != "passed"]
        told = [each.sentence if each.decision == "keep" else each.doubt for each in mine]
        found += [each for each in told if each]
        for each in (result for compared in mine for result in compared.guardrails):
            if each.state == "breached":
                found.append(f"the guardrail {_worse(each)}")
            elif each.state != "clear":
                found.append(f"the guardrail {each.name} cannot be judged yet")
        return found


def _why(step: guardrails.Step) -> str:
    """Why the guardrails say what they say."""
    each = step.because
    if each is None:
        return TOO_FEW_ANSWERS if step.says == "hold" else "no guardrail objects"
    if isinstance(each, Check):
        return each.seen
    if step.says == "regress":
        return f"the guardrail {_worse(each)}"
    if each.harm is None:
        return f"the guardrail {each.name} has too little to go by yet"
    if each.harm > each.margin:
        return f"{each.name} seems worse than its margin of {each.margin:g}"
    most = "" if each.at_most is None else f", it may be worse by {each.at_most:.3g}"
    return f"the guardrail {each.name} is not clear yet: its margin is {each.margin:g}{most}"


def _worse(result: GuardrailResult) -> str:
    least = result.at_least if result.at_least is not None else result.margin
    return f"{result.name} is broken: worse by {max(least, result.margin):.3g} or more"
