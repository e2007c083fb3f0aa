"""Whether the evidence may be trusted at all: checks that a verdict must not fail."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from verdict import rates, sequence
from verdict.contrast import Basis, basis, contrast
from verdict.evidence import GAP_BINS, TENTHS, Arm, Evidence, Period, Rules
from verdict.moments import Moments
from verdict.multinomial import log_bayes_factor_of_periods
from verdict.results import Check, CheckState, finite_exp

METRICS = ("brier", "log-loss", "profit")
# The share of answers, pairs or outcomes that may be missing, or late, without a word: a restart is no bias.
TOLERATED = 0.005
# How many times as often as the others' a variant's outcomes may be missing among scores that are alike:
# models that see different things sort clients who never tell into different tenths.
UNLIKE = 1.25
# What a challenger that owes an answer is taken to have said of what came, by the log loss.
LEAST_SAID = 0.01
UNDECLARED = (
    "no maturity is declared: say after how long outcomes count, "
    'maturity = "30d", or "0d" where they are known at once'
)


def of_experiment(evidence: Evidence, rules: Rules) -> tuple[Check, ...]:
    """The checks that concern all variants."""
    found = [_matured(evidence, rules), _witnesses(evidence, rules)]
    if evidence.design != "shadow":
        found.append(sample_ratio(evidence, rules))
        found.append(_answers(evidence, rules))
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
    return _late(list(arms.values()), seen, rules)


def _late(arms: Sequence[Arm], seen: str, rules: Rules) -> Check:
    """Whether outcomes that count were known when they had matured, of each kind nearly all."""
    late, ones = (sum(getattr(arm, name) for arm in arms) for name in ("late", "late_positives"))
    labelled, positives = (sum(getattr(arm, name) for arm in arms) for name in ("labelled", "positives"))
    kinds = [(ones, positives), (late - ones, labelled - positives)]
    # Half of the risk is on each.
    log_e = float(rates.log_mean(*(rates.log_e_value_above(k, n, TOLERATED) for k, n in kinds)))
    if late:
        told = [f"{k:,} of {n:,} outcomes {y}" for y, (k, n) in zip((1, 0), kinds, strict=True)]
        seen += f"; {late:,} came or changed after the maturity ({', '.join(told)})"
    state: CheckState = "passed"
    if log_e >= -math.log(rules.trust_alpha):
        state, seen = "failed", f"outcomes come later than the maturity says: {seen}"
    return Check("maturity", state, seen, finite_exp(log_e))


def _answers(evidence: Evidence, rules: Rules) -> Check:
    """Whether requests got an answer of each variant alike: what it fails on, or refuses, is no random part.

    Chance gave all variants the same requests. So of those that got no answer each is to have its share, and
    one that has more surely, and by more than is tolerated, chooses by whom it is judged.
    """
    names = (evidence.champion, *evidence.challengers)
    missed, assigned = (
        {name: sum(getattr(each, which).get(name, 0) for each in evidence.periods) for name in names}
        for which in ("missed", "assigned")
    )
    if not sum(assigned.values()):
        return Check("answers", "not yet", "there are no requests yet")
    rate = {name: missed[name] / max(assigned[name], 1) for name in names}
    strata = [(each.weights, each.missed) for each in evidence.periods]
    log_e = float(rates.log_mean(*(_unlike(name, strata) for name in names)))
    most, least = max(names, key=rate.__getitem__), min(names, key=rate.__getitem__)
    failed = log_e >= -math.log(rules.trust_alpha) and rate[most] - rate[least] > TOLERATED
    told = " and ".join(
        f"{name} {missed[name]:,} of {assigned[name]:,} ({_percent(rate[name])})" for name in names
    )
    seen = f"without an answer are {told}"
    if failed:
        seen += f": surely more of {most} than of {least}, and what it leaves is no random part"
    return Check("answers", "failed" if failed else "passed", seen, finite_exp(log_e))


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

    What got no answer can have no outcome, and is no fault of the outcomes. A third of the risk is on the
    outcomes that are known, on those that are missing, which say more where they are few, and on where these
    are: by tenths of the variants' scores, since as many may be lost of either kind.
    """
    name, what = "label ratio", ("the outcomes that are known", "the answers")
    periods = [each for each in evidence.periods if sum(each.served.values())]
    known = [(_shares(each.served), each.labels) for each in periods]
    if not sum(sum(labels.values()) for _, labels in known):
        return Check(name, "not yet", f"there are none of {what[0]} yet")
    names = (evidence.champion, *evidence.challengers)
    missing = [
        (shares, {who: each.served.get(who, 0) - each.labels.get(who, 0) for who in names})
        for (shares, _), each in zip(known, periods, strict=True)
    ]
    parts = [
        log_bayes_factor_of_periods(known),
        float(rates.log_mean(*(_unlike(who, missing) for who in names))),
        float(rates.log_mean(*(_by_score(periods, names, who) for who in names))),
    ]
    log_e = float(rates.log_mean(*parts))
    failed = log_e >= -math.log(rules.trust_alpha)
    if parts[2] == max(parts) and failed:
        told = "; ".join(_missing_in(periods, names, tenth) for tenth in range(TENTHS))
        seen = f"outcomes are not missing alike of scores that are alike ({told})"
    elif parts[1] == max(parts) and failed:
        told = ", ".join(f"{who} {_missing_of(missing, periods, who)}" for who in names)
        seen = f"the outcomes that are missing do not follow {what[1]} ({told})"
    else:
        seen = f"{what[0]} {'do not ' if failed else ''}follow {what[1]} ({_expected(known, names)})"
    return Check(name, "failed" if failed else "passed", seen, finite_exp(log_e))


Stratum = tuple[Mapping[str, float], Mapping[str, int]]


def _unlike(who: str, strata: Sequence[Stratum]) -> float:
    """The logarithm of the e-value against its having its share of what is counted in each stratum."""
    of = [(counts.get(who, 0), sum(counts.values()), shares.get(who, 0.0)) for shares, counts in strata]
    # Where it has all, or none, nothing is compared.
    of = [(k, n, share) for k, n, share in of if n and 0 < share < 1]
    k, n, share = np.array(of, float).reshape(-1, 3).T
    return float(rates.log_e_value_of_odds(k, n, share))


def _by_score(periods: Sequence[Period], names: Sequence[str], who: str) -> float:
    """The same against its being as often among the missing outcomes as among the answers, by tenths."""
    # Of shape (tenths, periods): of the served, and of those without an outcome, its own and all.
    served, labels = (
        np.array(
            [
                [[getattr(each, which).get((name, tenth), 0) for name in names] for each in periods]
                for tenth in range(TENTHS)
            ],
            float,
        )
        for which in ("scores", "score_labels")
    )
    missing, mine = served - labels, names.index(who)
    share = served[..., mine] / np.maximum(served.sum(-1), 1)
    return float(rates.log_e_value_of_trend(missing[..., mine], missing.sum(-1), share, UNLIKE))


def _missing_in(periods: Sequence[Period], names: Sequence[str], tenth: int) -> str:
    """How many outcomes are missing of a tenth of the scores."""
    told = []
    for name in names:
        served, labels = (
            sum(getattr(each, which).get((name, tenth), 0) for each in periods)
            for which in ("scores", "score_labels")
        )
        told.append(f"{name} {served - labels:,} of {served:,}")
    return f"{tenth / TENTHS:g} to {(tenth + 1) / TENTHS:g}: {', '.join(told)}"


def _missing_of(missing: Sequence[Stratum], periods: Sequence[Period], who: str) -> str:
    lacks = sum(counts[who] for _, counts in missing)
    return f"{lacks:,} of {sum(each.served.get(who, 0) for each in periods):,}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


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
    failed = log_e >= -math.log(rules.trust_alpha)
    told = _expected(periods, (evidence.champion, *evidence.challengers))
    seen = f"{what[0]} {'do not ' if failed else ''}follow {what[1]} ({told})"
    return Check(name, "failed" if failed else "passed", seen, finite_exp(log_e))


def _expected(strata: Sequence[Stratum], variants: Sequence[str]) -> str:
    """How many were counted of each variant, and how many were to be."""
    told = []
    for each in variants:
        counted = sum(counts.get(each, 0) for _, counts in strata)
        expected = sum(shares.get(each, 0.0) * sum(counts.values()) for shares, counts in strata)
        told.append(f"{each} {counted:,} where {expected:,.0f} are expected")
    return ", ".join(told)


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
    """Whether the challenger answered nearly all that it was asked: what it fails on is no random part.

    Half of the risk is on how many answers it owes beside the champion's, of which TOLERATED may be missing,
    and half on which: those of rows with the outcome 1 are to be missing, and there, as often as others.
    """
    arm, pairs = evidence.arm(challenger), evidence.pair(challenger)
    if not arm.requests:
        return Check("pairs", "not yet", f"{challenger} was not asked yet")
    parts = [
        float(rates.log_e_value_above(pairs.missed, pairs.asked, TOLERATED)),
        float(rates.log_mean(*_composition(evidence, challenger))),
    ]
    log_e = float(rates.log_mean(*parts))
    seen = (
        f"{challenger} answered {arm.requests - arm.errors:,} of the {arm.requests:,} requests it was asked"
    )
    if pairs.missed:
        seen += f", and missed {pairs.missed:,} of {pairs.asked:,} that {evidence.champion} answered"
    matured = evidence.arm(evidence.champion).mature
    if pairs.mature < matured:
        seen += f"; there are pairs of {pairs.mature:,} of the {matured:,} matured requests"
    state: CheckState = "failed" if log_e >= -math.log(rules.trust_alpha) else "passed"
    if state == "failed" and parts[1] > parts[0]:
        seen = f"pairs are missing by what came of the rows, {_missing_pairs(evidence, challenger)}: {seen}"
    return Check("pairs", state, seen, finite_exp(log_e))


def _composition(evidence: Evidence, challenger: str) -> list[float]:
    """The same against pairs being missing, and there, whatever came of the rows; within cells of time.

    What is missing at a time in which other clients come is no choice of the challenger's.
    """
    missing, there = list[Stratum](), list[Stratum]()
    for cell in evidence.history.values() or (evidence,):
        all_, pairs = cell.arm(evidence.champion), cell.pair(challenger)
        if all_.assigned_labels:
            share = {"1": all_.assigned_positives / all_.assigned_labels}
            there.append(
                (share, {"1": pairs.assigned_positives, "0": pairs.assigned - pairs.assigned_positives})
            )
            lacks = all_.assigned_positives - pairs.assigned_positives
            missing.append((share, {"1": lacks, "0": all_.assigned_labels - pairs.assigned - lacks}))
    return [_unlike("1", each) for each in (missing, there)]


def _missing_pairs(evidence: Evidence, challenger: str) -> str:
    all_, pairs = evidence.arm(evidence.champion), evidence.pair(challenger)
    ones, positives = all_.assigned_positives - pairs.assigned_positives, all_.assigned_positives
    zeros, negatives = all_.assigned_labels - pairs.assigned - ones, all_.assigned_labels - positives
    return f"{ones:,} of {positives:,} outcomes 1 and {zeros:,} of {negatives:,} 0"


def owed(evidence: Evidence, challenger: str, rules: Rules) -> float:
    """What the answers that a challenger owes could change of the mean difference in pairs; 0 elsewhere.

    It may have been as wrong on those as one can be, or the champion: a bound, whatever it chose them by
    (Horowitz & Manski, Journal of the American Statistical Association 2000). The log loss has none, and is
    taken for that of a probability of LEAST_SAID of what came.
    """
    pairs = evidence.pair(challenger)
    if evidence.design != "shadow" or not pairs.missed:
        return 0.0
    greatest = {"brier": 1.0, "log-loss": -math.log(LEAST_SAID)}
    if rules.costs:
        greatest["profit"] = max(abs(rules.costs.tp - rules.costs.fn), abs(rules.costs.tn - rules.costs.fp))
    return greatest.get(rules.metric, 0.0) * pairs.missed / pairs.asked


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
