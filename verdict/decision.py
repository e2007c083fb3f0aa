"""Which model stays: one decision from the evidence and the rules, with all that it rests on."""

from __future__ import annotations

import math

from verdict import guardrails, plan, rows, trust, words
from verdict.contrast import FIELDS, Basis, Contrast, Ruler, basis, contrast, ruler
from verdict.evidence import Evidence, Rules
from verdict.fairness import gaps
from verdict.moments import ClusteredMoments, Moments
from verdict.results import Check, Comparison, Decision, GuardrailResult, Verdict, finite

__all__ = ["Check", "Comparison", "Decision", "GuardrailResult", "Verdict", "judge"]

# The decisions of several challengers, the one that counts for all of them first.
ORDER: tuple[Decision, ...] = ("don't trust", "promote", "keep collecting", "equivalent", "keep")


def judge(evidence: Evidence, rules: Rules) -> Verdict:
    """The verdict on an experiment; the same however the evidence was cut into buckets.

    Args:
        evidence: the sums, of matured requests where outcomes count.
        rules: what was declared.

    Raises:
        ValueError: a rule is out of its range; the message names it.
    """
    _check_rules(rules)
    # Each challenger has a share of the risk (Bonferroni).
    shared = max(len(evidence.challengers), 1)
    checks = trust.of_experiment(evidence, rules)
    found = tuple(
        _compare(evidence, each, rules, rules.alpha / shared, checks) for each in evidence.challengers
    )
    chosen = _chosen(found)
    decision: Decision = chosen.decision if chosen else "keep collecting"
    variant: str | None = None
    if chosen and decision == "promote":
        variant = chosen.challenger
    elif decision in ("keep", "equivalent"):
        variant = evidence.champion
    return Verdict(
        decision=decision,
        variant=variant,
        sentence=chosen.sentence if chosen else "Keep collecting: there is no challenger.",
        reasons=chosen.reasons if chosen else (),
        design=evidence.design,
        champion=evidence.champion,
        metric=rules.metric,
        alpha=rules.alpha,
        margin=rules.margin,
        estimand=words.estimand(evidence, rules),
        risk=words.risk(rules),
        checks=checks,
        comparisons=found,
        gaps=gaps(evidence, rules),
        reliability=rows.reliability(evidence),
        traffic=rows.traffic(evidence),
    )


def _chosen(comparisons: tuple[Comparison, ...]) -> Comparison | None:
    """The comparison that decides: of several to promote the one that is ahead most."""
    if not comparisons:
        return None

    def rank(each: Comparison) -> tuple[int, float]:
        return ORDER.index(each.decision), -each.advantage

    return min(comparisons, key=rank)


def _compare(
    evidence: Evidence, challenger: str, rules: Rules, alpha: float, shared: tuple[Check, ...]
) -> Comparison:
    """One challenger against the champion, at its share of alpha."""
    if challenger in rules.same:
        return _the_same(evidence.champion, challenger)
    measured = ruler(evidence, rules.metric, rules, alpha, challenger)
    now = contrast(basis(evidence, challenger, rules.metric))
    radius = float(measured.radii([now])[0])
    owed = trust.owed(evidence, challenger, rules)
    # How much better the challenger is: of losses less is better, of profit more.
    advantage = -now.value if rules.metric == "profit" else now.value
    checks = trust.of_pairs(evidence, challenger, rules)
    guarded = guardrails.results(evidence, challenger, rules)
    more_outcomes = _remaining(now, radius, rules, alpha) if measured.believes(now) else None
    per_day = _per_day(evidence, challenger, now.n)
    more_days = more_outcomes / per_day if more_outcomes is not None and per_day else None
    said = words.Said(
        champion=evidence.champion,
        challenger=challenger,
        metric=rules.metric,
        advantage=advantage,
        radius=radius + owed,
        owed=owed,
        margin=rules.margin,
        n=now.n,
        # An exact interval that leaves no doubt takes no more outcomes.
        lacking="" if abs(now.value) > radius else _lacking(evidence, challenger, rules, measured),
        more_outcomes=more_outcomes,
        more_days=more_days,
    )
    decision, sentence, reasons = _decide(evidence, rules, said, (*shared, *checks), guarded)
    return Comparison(
        challenger=challenger,
        decision=decision,
        sentence=sentence,
        reasons=reasons,
        doubt=said.doubt(),
        checks=checks,
        rows=rows.table(evidence, challenger, rules, alpha),
        guardrails=guarded,
        segments=rows.segments(evidence, challenger, rules, alpha),
        history=rows.funnel(evidence, challenger, rules, alpha),
        n=now.n,
        advantage=advantage,
        more_outcomes=more_outcomes if decision == "keep collecting" else None,
        more_days=more_days if decision == "keep collecting" else None,
        fewer=_fewer(evidence, challenger, rules),
    )


def _the_same(champion: str, challenger: str) -> Comparison:
    """What is said of a challenger that is the champion's model: whatever differs is chance."""
    sentence = words.the_same(champion, challenger)
    return Comparison(
        challenger=challenger,
        decision="equivalent",
        sentence=sentence,
        reasons=("both variants serve the same model",),
        doubt="",
        checks=(),
        rows=(),
        guardrails=(),
        segments=(),
        history=(),
        n=0,
        advantage=0.0,
        more_outcomes=None,
        more_days=None,
        fewer=None,
    )


def _decide(
    evidence: Evidence,
    rules: Rules,
    said: words.Said,
    checks: tuple[Check, ...],
    guarded: tuple[GuardrailResult, ...],
) -> tuple[Decision, str, tuple[str, ...]]:
    """The decision, the sentence, and the reasons."""
    failed = [each for each in checks if each.state == "failed"]
    if failed:
        return "don't trust", words.distrust(failed[0]), tuple(each.seen for each in failed)
    breached = [each for each in guarded if each.state == "breached"]
    if breached:
        return "keep", said.breach(breached[0]), tuple(words.harm(each, said) for each in breached)
    if said.lacking:
        return "keep collecting", f"Keep collecting: {said.lacking}.", (said.lacking,)
    if _identical(evidence, said.challenger, rules):
        return "equivalent", said.identical(), ("all scores are the same",)
    return _by_interval(rules, said, guarded)


def _by_interval(
    rules: Rules, said: words.Said, guarded: tuple[GuardrailResult, ...]
) -> tuple[Decision, str, tuple[str, ...]]:
    """What the interval of the advantage says, of evidence that is whole and enough."""
    if abs(said.advantage) + said.radius < rules.margin:
        return "equivalent", said.equivalent(), (said.between(),)
    if said.advantage + said.radius < 0:
        return "keep", said.keep(), (said.between(),)
    if said.advantage - said.radius > 0:
        unclear = [each for each in guarded if each.state != "clear"]
        if unclear:
            return (
                "keep collecting",
                said.not_clear(unclear),
                tuple(words.harm(each, said) for each in unclear),
            )
        return "promote", said.promote(), (said.between(),)
    return "keep collecting", said.collect(), (said.between(),)


def _lacking(evidence: Evidence, challenger: str, rules: Rules, measured: Ruler) -> str:
    """What there is too little of for any winner to be named; nothing where there is enough."""
    of = basis(evidence, challenger, rules.metric)
    if not contrast(of).n:
        return "no outcome has matured yet"
    names = (evidence.champion, challenger)
    whose = [f"outcomes of {each}" for each in names]
    if evidence.design == "shadow":
        whose = [f"pairs of {' and '.join(names)}"]
    for name, part in zip(whose, of.parts, strict=True):
        if measured.believes(contrast(Basis((part,)))):
            continue
        if isinstance(part, Moments) and part.n < rules.min_outcomes:
            return f"{part.n:,} of the {rules.min_outcomes:,} {name} that a decision takes at least are there"
        if part.independent < rules.min_outcomes:
            kind = "units" if isinstance(part, ClusteredMoments) else "independent ones"
            return (
                f"the {name} count for {part.independent:,.0f} of the {rules.min_outcomes:,} {kind} that a "
                "decision takes at least"
            )
        return (
            f"the {name} tell as much as {part.effective:,.0f} of the rarer outcome, of the "
            f"{rules.min_each:,} that a decision takes at least"
        )
    return ""


def _identical(evidence: Evidence, challenger: str, rules: Rules) -> bool:
    """Whether both gave the same score on every pair, and on enough of them for that to say something."""
    pairs = evidence.pair(challenger)
    return pairs.labelled >= max(rules.min_outcomes, 1) and pairs.brier.squares == 0


def _remaining(now: Contrast, radius: float, rules: Rules, alpha: float) -> int | None:
    """About how many more outcomes a decision takes."""
    if not math.isfinite(radius) or not now.n or not math.isfinite(now.error):
        return None
    variance = now.error**2 * now.n
    return plan.further(now.value, variance, now.n, n_star=rules.n_star, alpha=alpha, margin=rules.margin)


def _per_day(evidence: Evidence, challenger: str, n: int) -> float | None:
    """How many of its outcomes come a day, by the n that are known; None where nothing tells."""
    names = (challenger,) if evidence.design == "shadow" else (evidence.champion, challenger)
    arms = [evidence.arm(name) for name in names]
    answered, mature = sum(arm.requests - arm.errors for arm in arms), sum(arm.mature for arm in arms)
    if not mature or evidence.first is None or evidence.last is None or evidence.last <= evidence.first:
        return None
    # Requests came on all of these days. What is known is of the matured ones alone.
    return n / mature * answered / ((evidence.last - evidence.first) / plan.DAY)


def _fewer(evidence: Evidence, challenger: str, rules: Rules) -> float | None:
    """How many times fewer outcomes pairs take than a split in halves."""
    pairs = evidence.pair(challenger)
    field = FIELDS[rules.metric]
    arms = [getattr(evidence.arm(name), field) for name in (evidence.champion, challenger)]
    paired = getattr(pairs, field)
    if pairs.labelled < rules.min_outcomes or not paired or not paired.variance or not all(arms):
        return None
    one, other = (arm.variance for arm in arms)
    return finite(plan.variance_of("split", (one, other), 0.5) / paired.variance)


def _check_rules(rules: Rules) -> None:
    """Raise ValueError for the first rule that is out of its range."""
    shares = ("alpha", "guardrail_alpha", "trust_alpha")
    for name, holds in (
        *((name, 0 < getattr(rules, name) < 1) for name in shares),
        ("metric", rules.metric in FIELDS),
        ("margin", 0 <= rules.margin < math.inf),
        ("n_star", 1 <= rules.n_star < math.inf),
        ("maturity", rules.maturity is None or 0 <= rules.maturity < math.inf),
        ("max_gap", rules.max_gap is None or 0 < rules.max_gap <= 1),
        ("spread", rules.spread is None or 0 < rules.spread < math.inf),
        ("min_outcomes", rules.min_outcomes >= 0),
        ("min_each", rules.min_each >= 0),
    ):
        if not holds:
            raise ValueError(f"{name}: {getattr(rules, name)!r} is out of its range")
    for guardrail in rules.guardrails:
        guardrails.check(guardrail)
