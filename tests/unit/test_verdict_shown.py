"""What the figures of a verdict show, held against the rows that they are from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata

from verdict import bernstein, discrimination
from verdict.counted import Answers, evidence, score
from verdict.decision import Verdict, judge
from verdict.declared import LIVE, Declared, Roles, Terms
from verdict.evidence import Evidence, Rules
from verdict.report import markdown, number
from verdict.results import Row
from verdict.simulate import Credit, Rows

NOW = 1_700_000_000.0


def answered(request: Any, outcome: Any, variant: Any, score: Any, **more: Any) -> Answers:
    """Answers that all went well, a request each."""
    n = len(request)
    columns = {
        "time": np.full(n, NOW - 10.0),
        "version": np.ones(n, np.int64),
        "allocation": np.zeros(n, np.int64),
        "kind": np.full(n, LIVE, object),
        "status": np.full(n, 200),
        "latency": np.full(n, 20.0),
        "saved": np.zeros(n, bool),
        "unit": request,
        "named": np.full(n, "unit" in more),
        "row": np.zeros(n, np.int64),
        "cluster": more.get("unit", request),
    }
    variant = np.asarray(variant, object)
    return Answers(request=request, outcome=outcome, variant=variant, score=score, **columns | more)


def shadowed(rows: Rows, scored: Any = True, rules: Rules | None = None) -> Evidence:
    """What is counted where A answered everybody, and B scored those besides of whom that is said."""
    n, mine = len(rows.outcome), np.broadcast_to(scored, len(rows.outcome))
    request = np.concatenate([np.arange(n), np.flatnonzero(mine)])
    beside = len(request) - n
    answers = answered(
        request,
        rows.outcome[request],
        ["A"] * n + ["B"] * beside,
        np.concatenate([rows.champion, rows.challenger[mine]]),
        kind=np.array([LIVE] * n + ["shadow"] * beside, object),
    )
    who = Roles("shadow", "A", ("B",), "shadow")
    declared = Declared("e", 1, who, rules or Rules(), (Terms(1, 0, {"A": 1.0}),))
    return evidence(answers, declared, NOW)


def parted(rows: Rows, shares: tuple[float, ...] = (0.5,), latency: Any = 20.0) -> Evidence:
    """What is counted where each got one answer: B's share was first one of these, later the others."""
    n, rng = len(rows.outcome), np.random.default_rng(2)
    allocation = np.arange(n) * len(shares) // n
    mine = rng.random(n) < np.array(shares)[allocation]
    answers = answered(
        np.arange(n),
        rows.outcome,
        np.where(mine, "B", "A"),
        np.where(mine, rows.challenger, rows.champion),
        allocation=allocation,
        latency=np.broadcast_to(latency, n) * np.where(mine, 1.5, 1.0),
    )
    terms = tuple(Terms(1, number, {"A": 1 - share, "B": share}) for number, share in enumerate(shares))
    declared = Declared("e", 1, Roles("split", "A", ("B",), LIVE), Rules(), terms)
    return evidence(answers, declared, NOW)


def clients(n: int, **more: Any) -> Rows:
    return Credit(**more).draw(np.random.default_rng(1), (n,))


def shown(verdict: Verdict, metric: str) -> Row:
    return next(row for row in verdict.comparisons[0].rows if row.metric == metric)


def area(p: np.ndarray, y: np.ndarray) -> float:
    """The area under the curve of scores that are not in bins."""
    ranks, ones = rankdata(p), y == 1
    m, n = ones.sum(), (~ones).sum()
    return float((ranks[ones].sum() - m * (m + 1) / 2) / (m * n))


@pytest.mark.parametrize(("rate", "told"), [(0.01, False), (0.08, True), (0.2, True)])
def test_an_area_is_shown_where_bins_can_tell_it_and_right_then(rate: float, told: bool) -> None:
    rows = clients(40_000, rate=rate, champion=0.73, challenger=0.745)
    row = shown(judge(shadowed(rows), Rules()), "auc")
    if told:
        wanted = [area(p, rows.outcome) for p in (rows.champion, rows.challenger)]
        assert [row.champion, row.challenger] == pytest.approx(wanted, abs=0.01)
        assert row.difference == pytest.approx(wanted[0] - wanted[1], abs=0.003)
        assert row.note == "a diagnostic, for one look"
    else:
        assert (row.champion, row.challenger, row.difference) == (None, None, None)
        assert row.note == "scores lie too close together for this figure"
    # The pairs' own bins are wider than those of all rows of a variant.
    some = shown(judge(shadowed(rows, np.arange(40_000) % 2 == 0), Rules()), "auc")
    assert (some.champion is None) == (rate < 0.2)
    assert (some.fixed.lower is None) == (rate < 0.2)


@pytest.mark.parametrize("rate", [0.02, 0.08, 0.2, 0.5])
@pytest.mark.slow
def test_bins_blur_an_area_by_no_more_than_is_said(rate: float) -> None:
    rows = clients(40_000, rate=rate)
    for p, arm in ((rows.champion, "A"), (rows.challenger, "B")):
        sums = shadowed(rows).arm(arm)
        scores = sums.negative_scores, sums.positive_scores
        seen = discrimination.area(*scores)
        assert seen is not None
        assert 0 < area(p, rows.outcome) - seen < discrimination.blur(*scores) < 0.15
    # Of scores in one bin nothing is known.
    assert discrimination.blur({3: 10}, {3: 4}) == 0.5
    assert discrimination.blur({3: 10}, {4: 4}) == 0


def test_where_a_part_was_scored_besides_both_means_are_over_the_pairs() -> None:
    rows = clients(4000)
    # Those who pay are scored besides more often.
    scored = np.arange(4000) % np.where(rows.outcome == 1, 5, 2) == 0
    verdict = judge(shadowed(rows, scored), Rules())
    for metric in ("brier", "log-loss"):
        row = shown(verdict, metric)
        wanted = [score(metric, p, rows.outcome)[scored].mean() for p in (rows.champion, rows.challenger)]
        assert [row.champion, row.challenger] == pytest.approx(wanted)
        assert row.difference == pytest.approx(wanted[0] - wanted[1])
    told = f"there are pairs of {scored.sum():,} of the 4,000 matured requests"
    assert f"B answered {scored.sum():,} of the {scored.sum():,} requests it was asked; {told}" in markdown(
        verdict
    )
    assert "there are pairs of" not in markdown(judge(shadowed(rows), Rules()))
    assert shown(verdict, "calibration").note == "also of rows without pairs"


@pytest.mark.parametrize("replayed", [1, 2])
def test_the_means_of_a_replay_are_over_those_whom_the_champion_answered(replayed: int) -> None:
    rows = clients(4000)
    mine = rows.outcome == np.arange(4000) % 2
    again = np.arange(4000) % replayed == 0
    live, request = np.flatnonzero(mine), np.flatnonzero(again)
    its = np.flatnonzero(~mine)
    answers = answered(
        np.concatenate([live, its, request]),
        rows.outcome[np.concatenate([live, its, request])],
        ["A"] * len(live) + ["B"] * len(its) + ["later"] * len(request),
        np.concatenate([rows.champion[live], rows.champion[its], rows.challenger[request]]),
        kind=np.array([LIVE] * 4000 + ["replay"] * len(request), object),
    )
    who = Roles("shadow", "A", ("later",), "replay")
    declared = Declared("e", 1, who, Rules(), (Terms(1, 0, {"A": 0.5, "B": 0.5}),))
    row = shown(judge(evidence(answers, declared, NOW), Rules()), "brier")
    both = mine & again
    wanted = [score("brier", p, rows.outcome)[both].mean() for p in (rows.champion, rows.challenger)]
    assert row.difference == pytest.approx(wanted[0] - wanted[1])
    if replayed == 1:
        assert [row.champion, row.challenger] == pytest.approx(wanted)
    else:
        # Of neither the mean over these pairs alone is known.
        assert (row.champion, row.challenger) == (None, None)


@pytest.mark.parametrize(
    ("gap", "declared", "state"),
    [
        (0.0, 0.005, "passed"),
        (0.022, 0.025, "passed"),
        (0.5, 0.5, "passed"),
        (0.29, 0.29, "passed"),
        (1.0, 1.0, "passed"),
        # Of what the bins do not tell apart: see below.
        (0.029, 0.025, "passed"),
        (0.031, 0.025, "failed"),
        (0.52, 0.5, "failed"),
    ],
)
def test_scores_that_differ_as_declared_are_trusted_and_others_are_not(
    gap: float, declared: float, state: str
) -> None:
    y = np.array([0.0, 1.0] * 100)
    rules = Rules(max_gap=declared)
    rows = Rows(np.full(200, gap), np.zeros(200), y)
    [check] = [
        each
        for each in judge(shadowed(rows, rules=rules), rules).comparisons[0].checks
        if each.name == "disagreement"
    ]
    assert check.state == state
    assert f"; {declared:g} is declared, and checked to 0.01" in check.seen


@pytest.mark.parametrize(("declared", "bound"), [(0.025, 0.03), (0.2, 0.21), (0.29, 0.3), (1.0, 1.0)])
def test_the_exact_interval_holds_for_all_that_the_check_lets_pass(declared: float, bound: float) -> None:
    rows = clients(2000, correlation=0.9999)
    evidence, rules = shadowed(rows), Rules(max_gap=declared)
    row = shown(judge(evidence, rules), "brier")
    assert row.interval.lower is not None
    assert row.difference is not None
    squares, c = evidence.pair("B").brier.squares, 2 * bound
    rho = bernstein.best_rho(rules.n_star * (c / 8) ** 2, rules.alpha)
    radius = float(bernstein.radius(2000, squares, rho, c, rules.alpha))
    assert row.difference - row.interval.lower == pytest.approx(radius)


def test_a_page_shows_each_variants_own_interval_and_that_of_the_difference_where_there_is_one() -> None:
    latency = np.random.default_rng(3).lognormal(3, 0.3, 20_000)
    verdict = judge(parted(clients(20_000, challenger_shift=0.3), latency=latency), Rules())
    page = markdown(verdict)
    calibration, slow = shown(verdict, "calibration"), shown(verdict, "latency-p50")
    for row, name in ((calibration, "calibration (mean of y − p)"), (slow, "latency-p50 (ms)")):
        line = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
        for value, ends in (
            (row.champion, row.champion_interval),
            (row.challenger, row.challenger_interval),
        ):
            assert f" {number(value)} ({number(ends.lower)} to {number(ends.upper)}) |" in line
        assert f"| {number(row.interval.lower)} to {number(row.interval.upper)} |" in line
        assert row.difference is not None
        assert row.interval.lower is not None
        assert row.interval.upper is not None
        assert row.interval.lower < row.difference < row.interval.upper
    # B's scores are too high, by about 0.02, and so its y − p are lower; it takes half as long again.
    assert calibration.interval.lower is not None
    assert calibration.interval.lower > 0.005
    assert calibration.e_value is not None
    assert calibration.e_value > 20
    assert slow.interval.lower is not None
    assert slow.interval.upper is not None
    assert slow.interval.lower < -0.5 * np.exp(3) < slow.interval.upper < 0
    # What both said of the same rows is not apart.
    paired = shown(judge(shadowed(clients(500)), Rules()), "calibration")
    assert paired.champion_interval.lower is not None
    assert paired.interval.lower is None


def test_what_is_not_weighted_says_so_where_shares_changed() -> None:
    rows = clients(2000)
    notes = {row.metric: row.note for row in judge(parted(rows, (0.2, 0.5)), Rules()).comparisons[0].rows}
    assert notes["brier"] == notes["log-loss"] == ""
    assert notes["calibration"] == "not weighted by propensity"
    assert notes["error-rate"] == "by periods of the same shares"
    assert notes["latency-p50"] == "ms; not weighted by propensity"
    assert notes["auc"].endswith("not weighted by propensity")
    constant = markdown(judge(parted(rows), Rules()))
    assert "not weighted by propensity" not in constant
