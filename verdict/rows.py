"""The figures of a page of results: the table, the funnel over time, the segments."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Literal

import numpy as np
from scipy.special import ndtri

from verdict import discrimination, quantiles, rates
from verdict.contrast import (
    Basis,
    Contrast,
    Ruler,
    basis,
    contrast,
    errors,
    means,
    needs_weights,
    of_history,
    ruler,
)
from verdict.evidence import SCORE_BINS, Arm, Evidence, Rules
from verdict.guardrails import LATENCY
from verdict.moments import ClusteredMoments, Moments
from verdict.results import (
    NO_INTERVAL,
    Interval,
    Point,
    Reliability,
    Row,
    ScoreBin,
    SegmentRow,
    Traffic,
    finite,
    finite_exp,
)

Better = Literal["lower", "higher", "nearer to 0"]

# The latencies that are always told of.
QUANTILES = ("latency-p50", "latency-p95", "latency-p99")
# Of these many bins each makes one of a reliability diagram.
COARSER = SCORE_BINS // 10
UNWEIGHTED = "not weighted by propensity"
BY_PERIODS = "by periods of the same shares"
TOO_CLOSE = "scores lie too close together for this figure"


def table(evidence: Evidence, challenger: str, rules: Rules, alpha: float) -> tuple[Row, ...]:
    """One row for each metric that something is known of, the primary one first."""
    arms = [evidence.arm(each) for each in (evidence.champion, challenger)]
    metrics = ["brier", "log-loss"]
    if rules.metric == "profit" or any(arm.profit is not None for arm in arms):
        metrics.append("profit")
    metrics.sort(key=lambda metric: metric != rules.metric)
    found = [mean_row(evidence, challenger, metric, rules, alpha) for metric in metrics]
    asked = [each.metric for each in rules.guardrails if LATENCY.fullmatch(each.metric)]
    others = [
        _calibration(evidence, challenger, rules, alpha),
        _errors(evidence, challenger, alpha),
        *(_latency(arms, metric, alpha) for metric in sorted({*asked, *QUANTILES}, key=_share)),
        _area(evidence, challenger, alpha),
    ]
    if needs_weights(evidence):
        notes = ("; ".join(each for each in (row.note, UNWEIGHTED) if each) for row in others)
        # Differences of errors are within periods.
        others = [
            row if row.note == BY_PERIODS else replace(row, note=note)
            for row, note in zip(others, notes, strict=True)
        ]
    return (*found, *others)


def mean_row(evidence: Evidence, challenger: str, metric: str, rules: Rules, alpha: float) -> Row:
    """The row of a mean score: Brier score, log loss or profit."""
    measured = ruler(evidence, metric, rules, alpha, challenger)
    now = contrast(basis(evidence, challenger, metric))
    past = [*of_history(evidence, challenger, metric).values(), now]
    log_e = measured.log_e_values(past)
    radius = float(measured.radii([now])[0])
    one, other = means(evidence, challenger, metric)
    exact = "exact, for |p − p′| as declared" if measured.declared else ""
    if now.n and not measured.declared and measured.exactly(now) and measured.knows(now):
        exact = "exact, as long as outcomes tell too little"
    return Row(
        metric=metric,
        better="higher" if metric == "profit" else "lower",
        champion=one,
        challenger=other,
        difference=now.value if now.n else None,
        interval=around(now, radius),
        fixed=around(now, float(ndtri(1 - alpha / 2)) * now.error if measured.believes(now) else math.inf),
        e_value=finite_exp(float(log_e[-1])) if now.n else None,
        # Johari et al. (Operations Research 2022): the anytime p-value is 1 / max e.
        p=min(1.0, math.exp(-max(float(np.max(log_e)), 0.0))) if now.n else None,
        note=exact,
    )


def funnel(evidence: Evidence, challenger: str, rules: Rules, alpha: float) -> tuple[Point, ...]:
    """The primary metric's interval at the end of each cell of the grid of time."""
    past = of_history(evidence, challenger, rules.metric)
    if not past:
        return ()
    measured = ruler(evidence, rules.metric, rules, alpha, challenger)
    radii, log_e = measured.radii(past.values()), measured.log_e_values(past.values())
    return tuple(
        Point(time, each.n, each.value if each.n else None, around(each, float(radius)), finite_exp(float(e)))
        for (time, each), radius, e in zip(past.items(), radii, log_e, strict=True)
    )


def segments(evidence: Evidence, challenger: str, rules: Rules, alpha: float) -> tuple[SegmentRow, ...]:
    """The primary metric in each part of the requests; alpha is shared between them (Bonferroni)."""
    mine = {key: part for key, part in sorted(evidence.segments.items()) if key[0] in rules.segments}
    seen = Counter(field for field, _ in mine)
    count = sum(rules.parts_of(field, seen[field]) for field in {*rules.segments})
    found = []
    for (field, value), part in mine.items():
        row = mean_row(part, challenger, rules.metric, rules, alpha / count)
        n = contrast(basis(part, challenger, rules.metric)).n
        found.append(SegmentRow(field, value, n, row))
    return tuple(found)


def reliability(evidence: Evidence) -> tuple[Reliability, ...]:
    """What came true of each variant's scores, in tenths."""
    return tuple(
        Reliability(name, _score_bins(evidence.arm(name)))
        for name in (evidence.champion, *evidence.challengers)
    )


def _score_bins(arm: Arm) -> tuple[ScoreBin, ...]:
    found = []
    for lower in range(0, SCORE_BINS, COARSER):
        mine = range(lower, lower + COARSER)
        counts = [arm.negative_scores.get(each, 0) + arm.positive_scores.get(each, 0) for each in mine]
        if any(counts):
            # A score is taken to be in the middle of its bin.
            said = sum((each + 0.5) * count for each, count in zip(mine, counts, strict=True)) / SCORE_BINS
            positives = sum(arm.positive_scores.get(each, 0) for each in mine)
            ends = lower / SCORE_BINS, (lower + COARSER) / SCORE_BINS
            found.append(ScoreBin(*ends, sum(counts), said, positives))
    return tuple(found)


def traffic(evidence: Evidence) -> tuple[Traffic, ...]:
    """What came to each variant in each cell of the grid of time, and by which propensities."""
    variants = (evidence.champion, *evidence.challengers)
    found = []
    for end, cell in sorted(evidence.history.items()):
        counts = [sum(period.requests.values()) for period in cell.periods]
        total = sum(counts)
        shares = {
            name: sum(
                period.weights.get(name, 0.0) * n for period, n in zip(cell.periods, counts, strict=True)
            )
            / total
            for name in variants
            if total
        }
        begin = end if cell.first is None else cell.first
        requests = {name: cell.arm(name).requests for name in variants}
        found.append(Traffic(begin, end, requests, shares))
    return tuple(found)


def around(now: Contrast, radius: float) -> Interval:
    """The interval of a contrast; no ends where nothing is known."""
    if not now.n or not math.isfinite(radius):
        return NO_INTERVAL
    return Interval(now.value - radius, now.value + radius)


def _calibration(evidence: Evidence, challenger: str, rules: Rules, alpha: float) -> Row:
    """Calibration in the large: the mean of y − p, of each variant by itself.

    The difference has an interval where both are of different rows, which are not weighted.
    """
    arms = [evidence.arm(each) for each in (evidence.champion, challenger)]
    measured = Ruler(rules.n_star, alpha, rules.min_outcomes, rules.min_each)

    def seen(*sums: Moments | ClusteredMoments) -> tuple[Contrast, Interval]:
        now = contrast(Basis(sums))
        return now, around(now, float(measured.radii([now])[0]))

    values = [arm.calibration.mean if arm.calibration.n else None for arm in arms]
    residuals = [arm.by_unit.get("calibration", arm.calibration) for arm in arms]
    own = [seen(each)[1] for each in residuals]
    if evidence.design == "shadow":
        apart = arms[0].labelled != arms[1].labelled
        note = "also of rows without pairs" if apart else ""
        return _row("calibration", "nearer to 0", values, own, note=note)
    if None in values or needs_weights(evidence):
        return _row("calibration", "nearer to 0", values, own)
    now, interval = seen(*residuals)
    return _row(
        "calibration",
        "nearer to 0",
        values,
        own,
        interval=interval,
        fixed=around(now, float(ndtri(1 - alpha / 2)) * now.error if measured.believes(now) else math.inf),
        log_e=float(measured.log_e_values([now])[0]),
    )


def _errors(evidence: Evidence, challenger: str, alpha: float) -> Row:
    arms = [evidence.arm(each) for each in (evidence.champion, challenger)]
    values = [arm.errors / arm.requests if arm.requests else None for arm in arms]
    if not all(arm.apart for arm in arms):
        return _row("error-rate", "lower", values)
    mine, its = errors(evidence, challenger)
    independent = evidence.design != "shadow"
    # The champion's rate less the challenger's.
    row = _row(
        "error-rate",
        "lower",
        values,
        interval=Interval(*rates.difference_interval(its, mine, alpha, independent)),
        log_e=float(rates.log_e_value_of_difference(its, mine, 0.0, independent).sum()),
        note=BY_PERIODS if np.size(mine[0]) > 1 else "",
    )
    return replace(row, difference=rates.difference(its, mine))


def _share(metric: str) -> float:
    """Of which requests a latency is the quantile, in (0, 1)."""
    found = LATENCY.fullmatch(metric)
    assert found
    return float(found[1]) / 100


def _latency(arms: list[Arm], metric: str, alpha: float) -> Row:
    q = _share(metric)
    values = [quantiles.estimate(arm.latencies, q) for arm in arms]
    ends = [Interval(*quantiles.interval(arm.latencies, q, alpha)) for arm in arms]
    # Whatever both have to do with each other: each at half of alpha (Bonferroni).
    (low, high), (its_low, its_high) = (quantiles.interval(arm.latencies, q, alpha / 2) for arm in arms)
    difference = Interval(
        None if low is None or its_high is None else low - its_high,
        None if high is None or its_low is None else high - its_low,
    )
    return _row(metric, "lower", values, ends, interval=difference, note="ms")


def _area(evidence: Evidence, challenger: str, alpha: float) -> Row:
    """The areas under the curve: in pairs with the interval of their difference, for one look.

    None where the bins of the scores are too wide to tell.
    """
    note = "a diagnostic, for one look"
    joint = evidence.pair(challenger).joint
    paired = discrimination.paired_areas(joint)
    if paired and all(
        discrimination.blur(*each) <= discrimination.BLUR for each in discrimination.sides(joint)
    ):
        difference, radius = paired.one - paired.other, float(ndtri(1 - alpha / 2)) * paired.error
        fixed = Interval(difference - radius, difference + radius) if math.isfinite(radius) else NO_INTERVAL
        return _row("auc", "higher", [paired.one, paired.other], fixed=fixed, note=note)
    arms = [evidence.arm(each) for each in (evidence.champion, challenger)]
    # Variants' own bins are narrower. Of pairs they serve where these are all rows.
    if paired and arms[0].labelled != arms[1].labelled:
        return _row("auc", "higher", [None, None], note=TOO_CLOSE)
    scores = [(arm.negative_scores, arm.positive_scores) for arm in arms]
    told = [discrimination.blur(*each) <= discrimination.BLUR for each in scores]
    values = [discrimination.area(*each) if known else None for each, known in zip(scores, told, strict=True)]
    return _row("auc", "higher", values, note=note if all(told) else TOO_CLOSE)


def _row(
    metric: str,
    better: Better,
    values: list[float | None],
    ends: list[Interval] | None = None,
    *,
    interval: Interval = NO_INTERVAL,
    fixed: Interval = NO_INTERVAL,
    log_e: float | None = None,
    note: str = "",
) -> Row:
    one, other = values
    mine, its = ends or (NO_INTERVAL, NO_INTERVAL)
    return Row(
        metric=metric,
        better=better,
        champion=one,
        challenger=other,
        difference=None if one is None or other is None else finite(one - other),
        interval=interval,
        fixed=fixed,
        e_value=None if log_e is None else finite_exp(log_e),
        p=None if log_e is None else min(1.0, math.exp(-max(log_e, 0.0))),
        note=note,
        champion_interval=mine,
        challenger_interval=its,
    )
