"""Whether the evidence may be trusted at all: checks that a verdict must not fail."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from verdict import rates, sequence
from verdict.contrast import Basis, basis, contrast
from verdict.evidence import GAP_BINS, Evidence, Rules
from verdict.moments import Moments
from verdict.multinomial import log_bayes_factor_of_periods
from verdict.results import Check, CheckState, finite_exp

METRICS = ("brier", "log-loss", "profit")
# The share of pairs that may be missing without a word.
MISSING = 0.05
UNDECLARED = (
    "no maturity is declared: say after how long outcomes count, "
    'maturity = "30d", or "0d" where they are known at once'
)


def of_experiment(evidence: Evidence, rules: Rules) -> tuple[Check, ...]:
    """The checks that concern all variants."""
    found = [_matured(evidence, rules), _witnesses(evidence, rules)]
    if evidence.design != "shadow":
        found.append(sample_ratio(evidence, rules))
        found.append(_label_ratio(evidence, rules))
        found += _propensities(evidence, rules)
        found += _selection(evidence, rules)
    return tuple(found)


def sample_ratio(evidence: Evidence, rules: Rules) -> Check:
    """Whether requests came to the variants as they were to.

    A unit counts once, and so does a batch: chance assigned them as a whole.
    """
    periods = [(each.weights, each.assigned) for each in evidence.periods]
    return _ratio("sample ratio", ("the requests", "the configured shares"), periods, evidence, rules)


def of_pairs(evidence: Evidence, challenger: str, rules: Rules) -> tuple[Check, ...]:
    """The checks that concern one challenger's pairs; none in other designs."""
    if evidence.design != "shadow":
        return ()
    return (_answered(evidence, challenger, rules), *_gap(evidence, challenger, rules))


def _matured(evidence: Evidence, rules: Rules) -> Check:
    """How many outcomes are there at all, of how many that could be; of each variant, where they differ."""
    names = (evidence.champion, *evidence.challengers)
    arms = {name: evidence.arm(name) for name in (names[:1] if evidence.design == "shadow" else names)}
    requests, mature, labelled = (
        sum(getattr(arm, name) for arm in arms.values()) for name in ("requests", "mature", "labelled")
    )
    if not mature:
        return Check("maturity", "not yet", f"none of {requests:,} requests has matured")
    seen = (
        f"{mature:,} of {requests:,} requests have matured ({mature / max(requests, 1):.0%}), "
        f"and of these {labelled:,} have an outcome ({labelled / mature:.0%})"
    )
    if len(arms) > 1:
        parts = (
            f"{name} {arm.mature / max(arm.requests, 1):.0%} and {arm.labelled / max(arm.mature, 1):.0%}"
            for name, arm in arms.items()
        )
        seen += f": {', '.join(parts)}"
    if not labelled:
        return Check("maturity", "not yet", seen)
    if rules.maturity is None:
        return Check("maturity", "failed", UNDECLARED)
    return Check("maturity", "passed", seen)


def _witnesses(evidence: Evidence, rules: Rules) -> Check:
    """As how many independent outcomes those count that are known, and what that takes for granted.

    Rows of a unit or of a batch are one witness. Of a request that is neither nobody knows whether it was
    made before.
    """
    counted: list[tuple[str, Basis]] = []
    for each in evidence.challengers:
        parts = basis(evidence, each, rules.metric).parts
        names = (evidence.champion, each) if len(parts) > 1 else (f"pairs with {each}",)
        counted += [(name, Basis((part,))) for name, part in zip(names, parts, strict=True)]
    told = {name: contrast(of) for name, of in counted}
    if not any(each.n for each in told.values()):
        return Check("witnesses", "not yet", "no outcome is known yet")
    seen = ", ".join(
        f"{name} {each.n:,} outcomes that count for {each.independent:,.0f}" for name, each in told.items()
    )
    assumed = "requests without a unit are taken to be of different clients, also those that are made again"
    return Check("witnesses", "passed", f"{seen}; {assumed}")


def _label_ratio(evidence: Evidence, rules: Rules) -> Check:
    """Whether outcomes became known of each variant's answers alike.

    What got no answer can have no outcome, and is no fault of the outcomes.
    """
    periods = [(_shares(each.served), each.labels) for each in evidence.periods if sum(each.served.values())]
    return _ratio("label ratio", ("the outcomes that are known", "the answers"), periods, evidence, rules)


def _shares(counts: Mapping[str, int]) -> dict[str, float]:
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()}


def _ratio(
    name: str,
    what: tuple[str, str],
    periods: Sequence[tuple[Mapping[str, float], Mapping[str, int]]],
    evidence: Evidence,
    rules: Rules,
) -> Check:
    n = sum(sum(counts.values()) for _, counts in periods)
    if not n:
        return Check(name, "not yet", f"there are none of {what[0]} yet")
    log_e = log_bayes_factor_of_periods(periods)
    variants = (evidence.champion, *evidence.challengers)
    counted = {each: sum(counts.get(each, 0) for _, counts in periods) for each in variants}
    expected = {
        each: sum(shares.get(each, 0.0) * sum(counts.values()) for shares, counts in periods)
        for each in variants
    }
    told = ", ".join(
        f"{each} {counted[each]:,} where {expected[each]:,.0f} are expected" for each in variants
    )
    failed = log_e >= -math.log(rules.trust_alpha)
    seen = f"{what[0]} {'do not ' if failed else ''}follow {what[1]} ({told})"
    return Check(name, "failed" if failed else "passed", seen, finite_exp(log_e))


def _selection(evidence: Evidence, rules: Rules) -> tuple[Check, ...]:
    """Whether outcomes are of the same clients, where the served score decides who can ever have one."""
    if not rules.selective:
        return ()
    names = " and ".join((evidence.champion, *evidence.challengers))
    seen = (
        f"the served score decides who has an outcome, so those of {names} are of different clients: compare "
        "them in mode shadow, where one approves and both score"
    )
    known = any(evidence.arm(each).labelled for each in (evidence.champion, *evidence.challengers))
    return (Check("selection", "failed" if known else "not yet", seen),)


def _propensities(evidence: Evidence, rules: Rules) -> tuple[Check, ...]:
    """Whether the probabilities on record are those by which rows were assigned, where rows are weighted."""
    found: list[Check] = []
    arms = {each: evidence.arm(each) for each in (evidence.champion, *evidence.challengers)}
    metric = next((each for each in METRICS if all(each in arm.weighted for arm in arms.values())), None)
    if metric is not None:
        sums = {name: arm.weighted[metric] for name, arm in arms.items()}
        n, mine = sum(each.n for each in sums.values()), sums[evidence.champion]
        worst, culprit = -math.inf, ""
        for name in evidence.challengers:
            its = sums[name]
            # Whatever the tilt, chance gives both as much weight of a row: over all n rows there is a mean of
            # 0 of w where they came to the one, of −w where to the other, and of 0 elsewhere.
            squares = sum(each.w2 + each.twins_w2 for each in (mine, its))
            excess = Moments(n, mine.w - its.w, squares)
            log_e = float(
                sequence.log_e_value(excess.mean, excess.standard_error, n, rules.n_star, rules.trust_alpha)
            ) - math.log(len(evidence.challengers))
            if log_e > worst:
                worst = log_e
                culprit = (
                    f"the weights sum to {mine.w:,.0f} for {evidence.champion} and to {its.w:,.0f} for {name}"
                )
        # Of few rows of an arm with a small share, or of few units, a standard error means nothing.
        counted = [
            arm.by_unit[metric].independent if metric in arm.by_unit else sums[name].n
            for name, arm in arms.items()
        ]
        small = min(counted) < rules.min_outcomes
        failed = not small and worst >= -math.log(rules.trust_alpha)
        state: CheckState = "not yet" if small else "failed" if failed else "passed"
        found.append(Check("propensities", state, culprit, finite_exp(worst)))
    weights = {tuple(sorted(period.weights.items())) for period in evidence.periods}
    if (
        not found
        and (len(weights) > 1 or evidence.design == "bandit")
        and any(a.labelled for a in arms.values())
    ):
        seen = "shares changed, and there are no sums by weights"
        found.append(Check("propensities", "failed", seen))
    return tuple(found)


def _answered(evidence: Evidence, challenger: str, rules: Rules) -> Check:
    """Whether the challenger answered nearly all that it was asked: what it fails on is no random part."""
    arm = evidence.arm(challenger)
    if not arm.requests:
        return Check("pairs", "not yet", f"{challenger} was not asked yet")
    log_e = float(rates.log_e_value_above(arm.apart_failed, arm.apart, MISSING))
    seen = (
        f"{challenger} answered {arm.requests - arm.errors:,} of the {arm.requests:,} requests it was asked"
    )
    pairs, matured = evidence.pair(challenger).mature, evidence.arm(evidence.champion).mature
    if pairs < matured:
        seen += f"; there are pairs of {pairs:,} of the {matured:,} matured requests"
    return Check(
        "pairs", "failed" if log_e >= -math.log(rules.trust_alpha) else "passed", seen, finite_exp(log_e)
    )


def _gap(evidence: Evidence, challenger: str, rules: Rules) -> tuple[Check, ...]:
    """Whether scores surely differed more than was declared, once: they are counted in bins."""
    pairs = evidence.pair(challenger)
    if not pairs.labelled:
        return ()
    if rules.gap_bound is None:
        return (Check("disagreement", "passed", f"scores differ by {pairs.max_gap:.3g} at most"),)
    declared = f"; {rules.max_gap:.3g} is declared, and checked to {1 / GAP_BINS:g}"
    if pairs.max_gap > rules.gap_bound:
        seen = f"scores differ by {pairs.max_gap - 1 / GAP_BINS:.3g} or more{declared}"
        return (Check("disagreement", "failed", seen),)
    return (Check("disagreement", "passed", f"scores differ by {pairs.max_gap:.3g} at most{declared}"),)
