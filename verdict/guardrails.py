"""What must not become worse: each guardrail trips when its e-value against "within the margin" is great."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Literal, NamedTuple

from verdict import quantiles, rates, sequence, trust
from verdict.contrast import FIELDS, Basis, basis, contrast, errors
from verdict.evidence import Evidence, Guardrail, Rules
from verdict.results import Check, GuardrailResult, GuardrailState, finite_exp

# No canary is sent back on fewer of the challenger's requests, nor on what fewer units saw.
LEAST_REQUESTS, LEAST_UNITS = 30, 5
# No guardrail of scores acts where those of a variant tell as much as fewer of the rarer outcome.
LEAST_RARE = 10

LATENCY = re.compile(r"latency-p(\d{1,2}(?:\.\d+)?)")


class Harm(NamedTuple):
    """What the challenger is worse by, the bounds of that, and ln e against its being within the margin."""

    value: float | None
    at_least: float | None
    at_most: float | None
    log_e: float


UNKNOWN = Harm(None, None, None, 0.0)


class Step(NamedTuple):
    """What guardrails say of a step of a canary, what because of, and how each stands."""

    says: Literal["advance", "hold", "regress"]
    because: GuardrailResult | Check | None
    results: tuple[GuardrailResult, ...]


def check(guardrail: Guardrail) -> None:
    """Raise ValueError where there is no such metric, or the margin is out of its range."""
    latency = LATENCY.fullmatch(guardrail.metric)
    known = (*FIELDS, "error-rate", "calibration")
    if guardrail.metric not in known and not (latency and float(latency[1]) > 0):
        raise ValueError(f"guardrails: {guardrail.name}: there is no metric {guardrail.metric!r}")
    if not 0 <= guardrail.margin < math.inf:
        raise ValueError(f"guardrails: {guardrail.name}: the margin {guardrail.margin} is out of its range")


def results(evidence: Evidence, challenger: str, rules: Rules) -> tuple[GuardrailResult, ...]:
    """How each guardrail stands.

    Of G guardrails, for each challenger, one trips at the e-value G/α: the probability that any ever does
    without harm is at most α (Ville's inequality and Bonferroni's).
    """
    count = len(rules.guardrails) * max(len(evidence.challengers), 1)
    found = []
    for guardrail in rules.guardrails:
        alpha = rules.guardrail_alpha / count
        harm = _harm(evidence, challenger, guardrail, rules, alpha)
        state: GuardrailState = "watching"
        if harm.log_e >= -math.log(alpha):
            state = "breached"
        elif harm.at_most is not None and harm.at_most <= guardrail.margin:
            state = "clear"
        found.append(
            GuardrailResult(
                name=guardrail.name,
                metric=guardrail.metric,
                margin=guardrail.margin,
                state=state,
                harm=harm.value,
                at_least=harm.at_least,
                at_most=harm.at_most,
                e_value=finite_exp(harm.log_e),
                bound=1 / alpha,
            )
        )
    return tuple(found)


def at_step(
    evidence: Evidence, challenger: str, rules: Rules, steps: int, min_requests: int, *, last: bool = False
) -> Step:
    """Whether a canary goes back, stays at its step, or may go on.

    It goes on by answers of the step's own alone: who refuses or fails at all that it is asked has none.

    Of G guardrails at S steps one sends it back at an e-value of G·S/α: the probability that a canary ever
    goes back although no harm exceeds its margin is at most α, however often one looks. It goes on where the
    requests follow the shares, each guardrail knows of a harm, and none seems above its margin. To all of the
    traffic, which is a promotion, it goes where each is clear: surely within its margin.

    Args:
        evidence: what was recorded in this step.
        challenger: who may be sent back.
        rules: as declared.
        steps: how many steps there are.
        min_requests: that both must have answered to go on, at least one.
        last: whether the next step is all of the traffic.
    """
    found = results(evidence, challenger, replace(rules, guardrail_alpha=rules.guardrail_alpha / steps))
    arms = [evidence.arm(each) for each in (evidence.champion, challenger)]
    answered = min(arm.requests - arm.errors for arm in arms)
    its = evidence.arm(challenger)
    _, alike = rates.alike(its.apart_failed, its.apart, its.together)
    for each in found:
        if each.state == "breached" and its.apart >= LEAST_REQUESTS and alike >= LEAST_UNITS:
            return Step("regress", each, found)
    if (ratio := trust.sample_ratio(evidence, rules)).state == "failed":
        return Step("hold", ratio, found)
    if answered < max(min_requests, 1):
        return Step("hold", None, found)
    for each in found:
        if each.harm is None or each.harm > each.margin or (last and each.state != "clear"):
            return Step("hold", each, found)
    return Step("advance", None, found)


def _harm(evidence: Evidence, challenger: str, guardrail: Guardrail, rules: Rules, alpha: float) -> Harm:
    if guardrail.metric == "error-rate":
        return _errors(evidence, challenger, guardrail.margin, alpha)
    if guardrail.metric == "calibration":
        return _calibration(evidence, challenger, guardrail.margin, rules, alpha)
    if found := LATENCY.fullmatch(guardrail.metric):
        return _latency(evidence, challenger, float(found[1]) / 100, guardrail.margin, alpha)
    return _mean(evidence, challenger, guardrail, rules, alpha)


def _errors(evidence: Evidence, challenger: str, margin: float, alpha: float) -> Harm:
    if not all(evidence.arm(each).apart for each in (evidence.champion, challenger)):
        return UNKNOWN
    counts = errors(evidence, challenger)
    independent = evidence.design != "shadow"
    log_e = float(rates.log_e_value_of_excess(*counts, margin, independent).sum())
    ends = rates.difference_interval(*counts, alpha, independent)
    return Harm(rates.difference(*counts), *ends, log_e)


def _latency(evidence: Evidence, challenger: str, q: float, margin: float, alpha: float) -> Harm:
    one, other = (evidence.arm(each).latencies for each in (evidence.champion, challenger))
    mine, its = quantiles.estimate(one, q), quantiles.estimate(other, q)
    if mine is None or its is None:
        return UNKNOWN
    independent = evidence.design != "shadow"
    log_e = quantiles.log_e_value_of_ratio(one, other, q, 1 + margin, independent=independent)
    lower, upper = quantiles.ratio_interval(one, other, q, 2 * alpha, independent)
    return Harm(
        its / mine - 1, None if lower is None else lower - 1, None if upper is None else upper - 1, log_e
    )


def _calibration(evidence: Evidence, challenger: str, margin: float, rules: Rules, alpha: float) -> Harm:
    its = evidence.arm(challenger)
    now = contrast(Basis((its.by_unit.get("calibration", its.calibration),)))
    if now.independent < max(rules.min_outcomes, 2) or now.effective < LEAST_RARE:
        return UNKNOWN
    harm, error, n = abs(now.value), now.error, now.n
    # Of the values within the margin the nearest is contradicted least.
    log_e = float(sequence.log_e_value(max(harm - margin, 0.0), error, n, rules.n_star, alpha))
    radius = float(sequence.radius(error, n, rules.n_star, alpha))
    return Harm(harm, max(harm - radius, 0.0), harm + radius, log_e)


def _mean(evidence: Evidence, challenger: str, guardrail: Guardrail, rules: Rules, alpha: float) -> Harm:
    now = contrast(basis(evidence, challenger, guardrail.metric))
    few = now.n < max(rules.min_outcomes, 2) or now.effective < LEAST_RARE
    if few or not math.isfinite(now.error):
        return UNKNOWN
    harm = now.value if guardrail.metric == "profit" else -now.value
    if now.error == 0 and harm != 0:
        return Harm(harm, None, None, 0.0)
    log_e = float(sequence.log_e_value_above(harm - guardrail.margin, now.error, now.n, rules.n_star, alpha))
    radius = float(sequence.radius_above(now.error, now.n, rules.n_star, alpha))
    return Harm(harm, harm - radius, harm + radius, log_e)
