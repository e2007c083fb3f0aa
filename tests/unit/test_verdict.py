"""The verdict: what it decides and says, from evidence of any size, however that was cut into buckets."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verdict import bernstein, counted, guardrails, rates, sequence
from verdict.counted import score, scored
from verdict.decision import Verdict, judge
from verdict.evidence import (
    CELLS,
    HOUR,
    Arm,
    Costs,
    Design,
    Evidence,
    Grid,
    Guardrail,
    Period,
    Rules,
    gathered,
)
from verdict.moments import ClusteredMoments, Moments, WeightedMoments
from verdict.money import of, paired
from verdict.plan import plan
from verdict.quantiles import GROWTH
from verdict.report import markdown
from verdict.simulate import Credit, Rows

DAY = 86_400.0
COSTS = Costs(tp=0, fp=-1, tn=1, fn=-10)


def arm(p: np.ndarray, y: np.ndarray, errors: int = 0, ms: float = 20.0) -> Arm:
    """The sums of a variant that scored some clients."""
    n = len(y)
    return replace(
        scored(p, y, 0.1, COSTS),
        requests=n + errors,
        errors=errors,
        apart=n + errors,
        apart_failed=errors,
        mature=n,
        latencies={math.floor(math.log(ms) / GROWTH): n} if n else {},
    )


def shadowed(rows: Rows, **more: Any) -> Evidence:
    """The evidence of clients that both models scored, A and its challenger B."""
    one, other, y = rows
    pairs = replace(counted.paired(one, other, y, (0.1, 0.1)), mature=len(y))
    arms = {"A": arm(one, y), "B": arm(other, y, **more)}
    return Evidence("shadow", "A", ("B",), arms, {"B": pairs}, first=0.0, last=10 * DAY)


def parted(rows: Rows, share: float = 0.5, design: Design = "split", **more: Any) -> Evidence:
    """The evidence of clients of whom B scored a share, and A the others."""
    one, other, y = rows
    mine = np.random.default_rng(3).random(len(y)) < share
    arms = {"A": arm(one[~mine], y[~mine]), "B": arm(other[mine], y[mine], **more)}
    counts = {name: each.labelled for name, each in arms.items()}
    period = Period({"A": 1 - share, "B": share}, counts, counts, counts, counts)
    return Evidence(design, "A", ("B",), arms, None, (period,), 0.0, 10 * DAY)


def failing(requests: int, errors: int) -> Arm:
    """A variant that gave no answer to some requests, each of somebody else."""
    return Arm(requests=requests, errors=errors, apart=requests, apart_failed=errors)


def clients(n: int = 20_000, champion: float = 0.70, challenger: float = 0.76, seed: int = 1) -> Rows:
    return Credit(champion=champion, challenger=challenger).draw(np.random.default_rng(seed), (n,))


def swapped(rows: Rows) -> Rows:
    return Rows(rows.challenger, rows.champion, rows.outcome)


def said(verdict: Verdict) -> str:
    json.dumps(verdict.to_dict(), allow_nan=False)
    return verdict.sentence


def test_a_better_challenger_is_promoted_in_words_that_can_be_read_aloud() -> None:
    verdict = judge(shadowed(clients()), Rules())
    assert (verdict.decision, verdict.variant) == ("promote", "B")
    assert said(verdict).startswith("Promote B: its Brier score is lower than A's by 0.00")
    assert "and surely by 0.00" in verdict.sentence


def test_a_worse_challenger_is_not() -> None:
    verdict = judge(shadowed(swapped(clients())), Rules())
    assert (verdict.decision, verdict.variant) == ("keep", "A")
    assert said(verdict).startswith("Keep A: B's Brier score is higher by 0.00")


def test_models_that_differ_by_less_than_matters_are_practically_equivalent() -> None:
    rows = Credit(correlation=0.999).draw(np.random.default_rng(2), (20_000,))
    verdict = judge(shadowed(rows), Rules(margin=0.001))
    assert (verdict.decision, verdict.variant) == ("equivalent", "A")
    assert (
        said(verdict) == "A and B are practically equivalent: in Brier score they differ by less than 0.001."
    )


def test_while_it_is_open_the_verdict_says_about_how_long_it_will_be() -> None:
    verdict = judge(shadowed(clients(2000, 0.73, 0.74)), Rules())
    assert (verdict.decision, verdict.variant) == ("keep collecting", None)
    assert "more outcomes" in said(verdict)
    assert "days" in verdict.sentence
    more = verdict.comparisons[0].more_outcomes
    days = verdict.comparisons[0].more_days
    assert more is not None
    # 2,000 outcomes in 10 days.
    assert days == pytest.approx(more / 200)


@pytest.mark.parametrize("design", ["shadow", "split"])
def test_days_are_counted_from_the_outcomes_of_those_that_have_matured(design: Design) -> None:
    # 400 requests a day, of which half get an outcome, known after 30 days: at day 40 ten days' are known.
    rows = clients(2000, 0.73, 0.74)
    whole = shadowed(rows) if design == "shadow" else parted(rows)
    arms = {
        name: replace(each, requests=8 * each.labelled, mature=2 * each.labelled)
        for name, each in whole.arms.items()
    }
    late = replace(whole, arms=arms, last=40 * DAY)
    [compared] = judge(late, Rules(maturity=30 * DAY)).comparisons
    assert compared.more_outcomes is not None
    assert compared.more_days == pytest.approx(compared.more_outcomes / 200)


def test_a_split_that_is_not_as_configured_is_not_trusted() -> None:
    evidence = parted(clients(), share=0.5)
    wrong = replace(evidence, periods=(replace(evidence.periods[0], assigned={"A": 11_000, "B": 9_000}),))
    verdict = judge(wrong, Rules())
    assert (verdict.decision, verdict.variant) == ("don't trust", None)
    assert said(verdict) == (
        "Don't trust this: the requests do not follow the configured shares "
        "(A 11,000 where 10,000 are expected, B 9,000 where 10,000 are expected)."
    )
    check = next(each for each in verdict.checks if each.name == "sample ratio")
    assert check.e_value is not None
    assert check.e_value > 100


def test_outcomes_that_go_missing_on_one_side_are_not_trusted() -> None:
    evidence = parted(clients())
    wrong = replace(evidence, periods=(replace(evidence.periods[0], labels={"A": 9_000, "B": 7_500}),))
    verdict = judge(wrong, Rules())
    assert verdict.decision == "don't trust"
    told = "the outcomes that are missing do not follow the answers (A 962 of 9,962, B 2,538 of 10,038)"
    assert told in said(verdict)


def test_what_got_no_answer_is_no_outcome_that_is_missing() -> None:
    """A challenger that fails one request in five is broken, and not a case of lost outcomes."""
    evidence = parted(clients())
    failing = replace(evidence.periods[0], served={"A": 10_000, "B": 8_000}, labels={"A": 10_000, "B": 8_000})
    checks = {each.name: each for each in judge(replace(evidence, periods=(failing,)), Rules()).checks}
    assert checks["label ratio"].state == "passed"
    assert "the outcomes that are known follow the answers" in checks["label ratio"].seen


def test_errors_that_come_with_time_are_nobodys_where_shares_moved() -> None:
    """Both fail in 1 % of all requests while B has 5 % of them, and both in 5 % while it has half of them."""
    before = Period({"A": 0.95, "B": 0.05}, apart={"A": 19_000, "B": 1_000}, apart_failed={"A": 190, "B": 10})
    after = Period({"A": 0.5, "B": 0.5}, apart={"A": 10_000, "B": 10_000}, apart_failed={"A": 500, "B": 500})
    arms = {"A": failing(29_000, 690), "B": failing(11_000, 510)}
    rules = Rules(guardrails=(Guardrail("errors", "error-rate", 0.01),))
    [seen] = guardrails.results(Evidence("split", "A", ("B",), arms, periods=(before, after)), "B", rules)
    assert seen.state != "breached"
    assert seen.harm == pytest.approx(0, abs=1e-12)
    [row] = [
        row
        for row in judge(Evidence("split", "A", ("B",), arms, periods=(before, after)), rules)
        .comparisons[0]
        .rows
        if row.metric == "error-rate"
    ]
    assert row.difference == pytest.approx(0, abs=1e-12)
    assert row.interval.lower is not None
    assert row.interval.upper is not None
    assert -0.03 < row.interval.lower < 0 < row.interval.upper < 0.03
    worse = replace(after, apart_failed={"A": 500, "B": 900})
    [seen] = guardrails.results(Evidence("split", "A", ("B",), arms, periods=(before, worse)), "B", rules)
    assert seen.state == "breached"


@pytest.mark.parametrize("design", ["shadow", "split", "bandit"])
def test_without_any_outcome_there_is_a_verdict_too(design: Design) -> None:
    rules = Rules(
        guardrails=(Guardrail("errors", "error-rate"), Guardrail("slow", "latency-p99", 0.1)),
        segments=("region",),
        sensitive=("region",),
        max_gap=0.2,
    )
    verdict = judge(Evidence(design, "A", ("B",)), rules)
    assert said(verdict) == "Keep collecting: no outcome has matured yet."
    assert [each.state for each in verdict.comparisons[0].guardrails] == ["watching", "watching"]


@pytest.mark.parametrize("design", ["shadow", "split", "bandit"])
@pytest.mark.parametrize("metric", ["brier", "log-loss", "profit"])
@settings(max_examples=5, deadline=None)
@given(
    data=st.lists(
        st.tuples(*[st.sampled_from([0.0, 0.1, 0.5, 1.0])] * 2, st.sampled_from([0.0, 1.0])), max_size=4
    )
)
def test_the_tiniest_evidence_holds_no_nan(
    design: Design, metric: Any, data: list[tuple[float, ...]]
) -> None:
    rows = Rows(*np.array(data, float).reshape(-1, 3).T)
    rules = Rules(
        metric=metric,
        margin=0.01,
        min_outcomes=0,
        min_each=0,
        max_gap=1.0,
        guardrails=tuple(
            Guardrail(each, each, 0.01)
            for each in ("error-rate", "latency-p95", "calibration", "brier", "log-loss", "profit")
        ),
    )
    for evidence in (shadowed(rows), parted(rows, design=design)):
        said(judge(evidence, rules))


def test_identical_models_differ_by_exactly_nothing() -> None:
    rows = clients()
    verdict = judge(shadowed(Rows(rows.champion, rows.champion, rows.outcome)), Rules())
    assert verdict.decision == "equivalent"
    assert "the same score on all 20,000 pairs" in said(verdict)
    row = verdict.comparisons[0].rows[0]
    assert (row.difference, row.interval.lower, row.interval.upper) == (0, 0, 0)
    assert row.e_value is not None
    assert row.e_value < 1


def test_few_outcomes_name_no_winner_however_far_apart_models_seem() -> None:
    y = np.array([0.0, 1.0] * 40)
    verdict = judge(shadowed(Rows(np.full(80, 0.5), np.clip(y, 0.1, 0.9), y)), Rules())
    assert "80 of the 100 pairs of A and B" in said(verdict)
    rare = np.array([0.0] * 990 + [1.0] * 10)
    verdict = judge(
        shadowed(Rows(np.full(1000, 0.5), np.clip(rare, 0.1, 0.9), rare)), Rules(metric="log-loss")
    )
    assert "tell as much as 0 of the rarer outcome" in said(verdict)


def test_an_exact_interval_decides_on_few_outcomes_however_rare_one_kind_is() -> None:
    y = np.array([0.0] * 55 + [1.0] * 5)
    few = Rows(np.where(y == 1, 0.55, 0.45), np.where(y == 1, 0.9, 0.1), y)
    [by_default] = judge(shadowed(few), Rules(n_star=60)).comparisons
    assert by_default.sentence.startswith("Keep collecting: 60 of the 100 pairs")
    exact = Rules(max_gap=0.4, n_star=60)
    assert judge(shadowed(few), exact).decision == "promote"
    assert judge(shadowed(swapped(few)), exact).decision == "keep"
    # A single pair of the same scores is no proof that both are the same.
    same = Rows(few.champion[:1], few.champion[:1], y[:1])
    assert judge(shadowed(same), exact).decision == "keep collecting"


# What differs is a fraction of powers of two, so that sums are exact in whatever order.
EXACT = st.tuples(st.integers(0, 64), st.integers(0, 64), st.integers(0, 1))


def evidence_of(rows: list[tuple[int, int, int]], design: str) -> Evidence:
    p, q, y = np.array(rows, float).reshape(-1, 3).T
    whole = shadowed(Rows(p / 64, q / 64, y)) if design == "shadow" else parted(Rows(p / 64, q / 64, y))
    # Sums of logarithms are not exact.
    arms = {name: replace(each, log_loss=Moments()) for name, each in whole.arms.items()}
    pairs = None if whole.pairs is None else {"B": replace(whole.pairs["B"], log_loss=Moments())}
    return replace(whole, arms=arms, pairs=pairs)


@pytest.mark.parametrize("design", ["shadow", "split"])
@settings(max_examples=12, deadline=None)
@given(st.lists(EXACT, max_size=60), st.lists(EXACT, max_size=60), st.lists(EXACT, max_size=60))
def test_evidence_adds_in_any_order_and_the_verdict_knows_no_buckets(
    design: str, a: list[Any], b: list[Any], c: list[Any]
) -> None:
    one, two, three = (evidence_of(each, design) for each in (a, b, c))
    assert (one + two) + three == one + (two + three)
    rules = Rules(min_outcomes=10, min_each=2)
    assert judge((one + two) + three, rules) == judge(three + (one + two), rules)
    if design == "shadow":
        assert judge(one + two + three, rules) == judge(evidence_of(a + b + c, design), rules)


def test_it_is_said_how_much_has_matured_of_each_variant() -> None:
    evidence = parted(clients(1000))
    [seen] = [each.seen for each in judge(evidence, Rules(maturity=DAY)).checks if each.name == "maturity"]
    assert seen.endswith("A 100% and 100%, B 100% and 100%")


def test_a_page_shows_how_the_interval_came_about_in_a_dozen_lines() -> None:
    rows = clients(3000)
    cells = {
        DAY * (day + 1): shadowed(Rows(*(each[day * 100 : (day + 1) * 100] for each in rows)))
        for day in range(30)
    }
    page = markdown(judge(gathered(Evidence("shadow", "A", ("B",)), cells), Rules()))
    table = page.split("### Over time\n\n")[1].split("\n\n")[0].splitlines()[2:]
    assert len(table) == 10
    assert table[-1].startswith("| 1970-01-31 00:00 | 3,000 |")
    assert "Over time" not in markdown(judge(shadowed(rows), Rules()))


def test_the_funnel_is_over_a_grid_of_time_and_the_anytime_p_value_over_its_peak() -> None:
    rows = clients(4000)
    cells = {
        DAY * (day + 1): shadowed(Rows(*(each[day * 400 : (day + 1) * 400] for each in rows)))
        for day in range(10)
    }
    verdict = judge(gathered(Evidence("shadow", "A", ("B",)), cells), Rules())
    comparison = verdict.comparisons[0]
    whole = judge(shadowed(rows), Rules()).comparisons[0]
    assert [point.time / DAY for point in comparison.history] == list(range(1, 11))
    assert [point.n for point in comparison.history] == [400 * day for day in range(1, 11)]
    assert comparison.history[-1].interval.lower == pytest.approx(whole.rows[0].interval.lower)
    assert comparison.rows[0].p == pytest.approx(1 / max(1, *(point.e_value for point in comparison.history)))
    # Two halves of a cell are the same as the cell.
    first = shadowed(Rows(*(each[:100] for each in rows)))
    rest = shadowed(Rows(*(each[100:400] for each in rows)))
    halves = [gathered(Evidence("shadow", "A", ("B",)), {DAY: each}) for each in (first, rest)]
    point = judge(halves[0] + halves[1], Rules()).comparisons[0].history[0]
    assert point.n == 400
    assert point.difference == pytest.approx(comparison.history[0].difference)


@settings(max_examples=100, deadline=None)
@given(
    st.floats(-5, 5), st.floats(0.01, 10), st.integers(1, 10**9), st.integers(1, 10**9), st.floats(0.001, 0.9)
)
def test_intervals_and_e_values_agree_on_what_they_reject(
    excess: float, error: float, n: int, n_star: int, alpha: float
) -> None:
    out = abs(excess) > sequence.radius(error, n, n_star, alpha)
    log_e = sequence.log_e_value(excess, error, n, n_star, alpha)
    assert out == (log_e > -math.log(alpha)) or log_e == pytest.approx(-math.log(alpha), abs=1e-6)
    above = excess > sequence.radius_above(error, n, n_star, alpha)
    log_e = sequence.log_e_value_above(excess, error, n, n_star, alpha)
    assert above == (log_e > -math.log(alpha)) or log_e == pytest.approx(-math.log(alpha), abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.floats(-1, 1), st.integers(1, 10**6), st.floats(0.01, 2), st.floats(0.001, 0.2))
def test_exact_intervals_and_their_e_values_agree_too(mean: float, n: int, c: float, alpha: float) -> None:
    mean *= c
    squares = n * mean * mean * 1.5
    rho = bernstein.best_rho(1000 * (c / 8) ** 2, alpha)
    out = abs(mean) > bernstein.radius(n, squares, rho, c, alpha)
    log_e = float(bernstein.log_e_value(mean * n, squares, rho, c))
    assert out == (log_e > -math.log(alpha)) or log_e == pytest.approx(-math.log(alpha), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300), st.floats(0.001, 0.2), st.floats(-0.5, 0.5), st.booleans())
def test_the_interval_of_a_difference_of_rates_agrees_with_its_e_value(
    k: int, m: int, alpha: float, difference: float, independent: bool
) -> None:
    lower, upper = rates.difference_interval((k, 300), (m, 300), alpha, independent)
    log_e = float(rates.log_e_value_of_difference((k, 300), (m, 300), difference, independent))
    out = not lower <= difference <= upper
    assert out == (log_e > -math.log(alpha)) or log_e == pytest.approx(-math.log(alpha), abs=1e-4)


@pytest.mark.parametrize("design", ["shadow", "split"])
@pytest.mark.parametrize("exact", [None, 0.9])
def test_swapping_the_variants_turns_the_verdict_around(design: str, exact: float | None) -> None:
    make = shadowed if design == "shadow" else parted
    rows = clients(60_000, 0.65, 0.80)
    rules = Rules(max_gap=exact, n_star=60_000)
    one = judge(make(rows), rules).comparisons[0]
    mine = make(rows)
    pairs = None
    if mine.pairs is not None:
        pair = mine.pairs["B"]
        pairs = {"A": replace(pair, brier=-pair.brier, log_loss=-pair.log_loss)}
    other = judge(replace(mine, champion="B", challengers=("A",), pairs=pairs), rules).comparisons[0]
    assert (one.decision, other.decision) == ("promote", "keep")
    for row, its in zip(one.rows[:2], other.rows[:2], strict=True):
        assert row.difference == pytest.approx(-its.difference)  # type: ignore[operator]
        assert row.interval.lower == pytest.approx(-its.interval.upper)  # type: ignore[operator]
        assert row.e_value == its.e_value


def test_a_guardrail_that_trips_keeps_the_champion_whatever_the_scores_say() -> None:
    evidence = shadowed(clients(), errors=400)
    verdict = judge(evidence, Rules(guardrails=(Guardrail("errors", "error-rate", 0.005),)))
    assert (verdict.decision, verdict.variant) == ("keep", "A")
    assert said(verdict).startswith("Keep A: B breaks the guardrail errors, worse by at least 0.01")
    (result,) = verdict.comparisons[0].guardrails
    assert (result.state, result.bound) == ("breached", 20)
    assert result.e_value > 20


def test_a_challenger_is_not_promoted_before_its_guardrails_are_clear() -> None:
    verdict = judge(
        shadowed(clients(2000, 0.6, 0.8)), Rules(guardrails=(Guardrail("errors", "error-rate", 1e-4),))
    )
    assert verdict.decision == "keep collecting"
    assert said(verdict).endswith("but it is not sure yet that it stays within the guardrail errors.")
    wide = judge(
        shadowed(clients(2000, 0.6, 0.8)), Rules(guardrails=(Guardrail("errors", "error-rate", 0.05),))
    )
    assert wide.decision == "promote"


@pytest.mark.parametrize("design", ["shadow", "split"])
def test_whoever_is_not_known_to_be_as_good_is_doubted_in_words(design: Design) -> None:
    make = shadowed if design == "shadow" else parted

    def doubt(rows: Rows, margin: float = 0.0) -> str:
        return judge(make(rows), Rules(margin=margin, n_star=60_000)).comparisons[0].doubt

    better = clients(60_000, 0.65, 0.80)
    assert doubt(better) == ""
    assert doubt(swapped(better)).startswith("B may be worse than A in Brier score by 0.0")
    alike = clients(4000, 0.73, 0.73)
    assert doubt(alike).endswith(", where 0 is allowed")
    assert doubt(alike, 0.05) == ""
    assert "that a decision takes at least are there" in doubt(clients(50), 0.5)


@pytest.mark.parametrize(
    ("guardrail", "evidence"),
    [
        (Guardrail("slow", "latency-p95", 0.5), parted(clients(4000), ms=60)),
        (Guardrail("brier", "brier"), parted(swapped(clients(60_000, 0.6, 0.85)))),
        (Guardrail("money", "profit"), parted(swapped(clients(60_000, 0.6, 0.85)))),
        (
            Guardrail("calibrated", "calibration", 0.01),
            shadowed(Credit(challenger_shift=0.5).draw(np.random.default_rng(1), (9000,))),
        ),
    ],
    ids=lambda each: each.metric if isinstance(each, Guardrail) else "",
)
def test_each_kind_of_guardrail_trips_on_its_harm(guardrail: Guardrail, evidence: Evidence) -> None:
    (result,) = judge(evidence, Rules(guardrails=(guardrail,))).comparisons[0].guardrails
    assert result.state == "breached"
    assert result.at_least is not None
    assert result.at_least > guardrail.margin


def test_guardrails_share_the_risk() -> None:
    two = (Guardrail("errors", "error-rate", 0.01), Guardrail("slow", "latency-p95", 0.1))
    found = judge(shadowed(clients(500)), Rules(guardrails=two)).comparisons[0].guardrails
    assert [each.bound for each in found] == [40, 40]


def test_of_several_challengers_each_is_judged_at_its_share_of_alpha() -> None:
    rows = clients()
    third = np.clip(rows.challenger + 0.05, 0, 1)
    both = shadowed(rows)
    worse = shadowed(Rows(rows.champion, third, rows.outcome))
    assert both.pairs is not None
    assert worse.pairs is not None
    evidence = replace(
        both,
        challengers=("C", "B"),
        arms={**both.arms, "C": worse.arms["B"]},
        pairs={"B": both.pairs["B"], "C": worse.pairs["B"]},
    )
    verdict = judge(evidence, Rules())
    assert (verdict.decision, verdict.variant) == ("promote", "B")
    alone = judge(both, Rules(alpha=0.025)).comparisons[0].rows[0].interval
    shared = next(each for each in verdict.comparisons if each.challenger == "B").rows[0].interval
    assert shared == alone


def test_the_estimand_warns_where_the_score_decides_who_has_an_outcome() -> None:
    told = judge(shadowed(clients(500)), Rules(maturity=30 * DAY, selective=True)).estimand
    assert told == (
        "The mean difference in Brier score between A and B on the same request, over all requests whose "
        "outcome is known 30 days after it. The served score decides who can ever have an outcome: nothing "
        "is said of those who were turned away."
    )


@pytest.mark.parametrize("design", ["split", "bandit"])
def test_where_each_variant_chooses_whose_outcomes_are_known_no_difference_is_trusted(design: Design) -> None:
    evidence = parted(clients(60_000, 0.65, 0.80), design=design)
    weighted = {
        name: replace(each, weighted={"brier": each.brier.weighted(0.5)})
        for name, each in evidence.arms.items()
    }
    evidence = replace(evidence, arms=weighted)
    assert judge(evidence, Rules(n_star=60_000)).decision == "promote"
    verdict = judge(evidence, Rules(n_star=60_000, selective=True))
    assert (verdict.decision, verdict.variant) == ("don't trust", None)
    assert said(verdict) == (
        "Don't trust this: the served score decides who has an outcome, so those of A and B are of different "
        "clients: compare them in mode shadow, where one approves and both score."
    )
    assert verdict.estimand == (
        "The mean difference in Brier score between A and B, each over those of its own requests whose "
        "outcome is known. The served score decides who can ever have an outcome: these are different "
        "clients, and no variant answered for all."
    )
    # Before any outcome is known it is said, too.
    early = judge(Evidence(design, "A", ("B",)), Rules(selective=True))
    assert early.decision == "keep collecting"
    assert [each.state for each in early.checks if each.name == "selection"] == ["not yet"]
    # In pairs both are judged by the same clients, whoever was approved.
    pairs = judge(shadowed(clients()), Rules(selective=True))
    assert pairs.decision == "promote"
    assert "selection" not in [each.name for each in pairs.checks]


def test_money_decides_where_it_is_the_metric() -> None:
    rows = clients(60_000, 0.6, 0.85)
    y = rows.outcome
    decided = [p >= 0.1 for p in (rows.champion, rows.challenger)]
    counts: dict[tuple[bool, bool, int], int] = {}
    for one, other, outcome in zip(*decided, y, strict=True):
        key = (bool(one), bool(other), int(outcome))
        counts[key] = counts.get(key, 0) + 1
    evidence = shadowed(rows)
    assert evidence.pairs is not None
    difference = paired(COSTS, counts)
    evidence = replace(evidence, pairs={"B": replace(evidence.pairs["B"], profit=difference)})
    profits = [[of(COSTS, bool(d), int(o)) for d, o in zip(each, y, strict=True)] for each in decided]
    assert difference.mean == pytest.approx(np.mean(profits[0]) - np.mean(profits[1]))
    verdict = judge(evidence, Rules(metric="profit"))
    assert verdict.decision == "promote"
    assert said(verdict).startswith("Promote B: its profit per decision is higher than A's by")
    row = verdict.comparisons[0].rows[0]
    assert (row.metric, row.better) == ("profit", "higher")
    assert row.challenger == pytest.approx(np.mean(profits[1]))


def test_segments_share_the_risk_and_gaps_between_groups_are_shown() -> None:
    rows = clients(8000)
    north = np.arange(8000) % 3 > 0
    parts = {
        ("region", name): shadowed(Rows(*(each[mask] for each in rows)))
        for name, mask in (("north", north), ("south", ~north))
    }
    evidence = replace(shadowed(rows), segments=parts)
    verdict = judge(evidence, Rules(segments=("region",), sensitive=("region",)))
    found = verdict.comparisons[0].segments
    assert [(each.value, each.n) for each in found] == [
        ("north", int(north.sum())),
        ("south", int((~north).sum())),
    ]
    alone = judge(parts["region", "south"], Rules(alpha=0.025)).comparisons[0].rows[0].interval
    assert found[1].row.interval == alone
    rate = "positive decisions among known outcomes"
    gap = next(each for each in verdict.gaps if each.variant == "B" and each.rate == rate)
    # Of three parts that are declared one was not seen yet: later it takes nothing from the others.
    declared = Rules(segments=("region",), sensitive=("region",), parts={"region": 3})
    three = judge(evidence, declared)
    alone = judge(parts["region", "south"], Rules(alpha=0.05 / 3)).comparisons[0].rows[0].interval
    assert three.comparisons[0].segments[1].row.interval == alone
    # Two variants, three rates, two groups beside the greatest.
    counts = [(int((rows.challenger >= 0.1)[mask].sum()), int(mask.sum())) for mask in (north, ~north)]
    its = next(each for each in three.gaps if each.variant == "B" and each.rate == rate)
    wanted = rates.difference_interval(counts[0], counts[1], 0.05 / 12)
    assert (its.interval.lower, its.interval.upper) == wanted
    flagged = rows.challenger >= 0.1
    assert (gap.group, gap.reference) == ("south", "north")
    assert gap.gap == pytest.approx(flagged[~north].mean() - flagged[north].mean())
    assert gap.interval.lower is not None
    assert gap.interval.upper is not None
    assert gap.interval.lower < 0 < gap.interval.upper


def test_under_weights_that_changed_rows_count_by_their_inverse_propensity() -> None:
    rng = np.random.default_rng(5)
    # The base rate rises while B's share does: pooled, B looks worse than A, though it is the same.
    weighted = {"A": WeightedMoments(), "B": WeightedMoments()}
    whole = Evidence("split", "A", ("B",))
    for rate, share in ((0.05, 0.2), (0.4, 0.8)):
        rows = Credit(rate=rate).draw(rng, (10_000,))
        part = parted(Rows(rows.champion, rows.champion, rows.outcome), share)
        for name, propensity in (("A", 1 - share), ("B", share)):
            weighted[name] += part.arms[name].brier.weighted(propensity)
        whole = whole + part
    pooled = judge(whole, Rules())
    assert pooled.decision == "don't trust"
    assert "shares changed" in said(pooled)
    assert pooled.comparisons[0].rows[0].interval.upper < 0  # type: ignore[operator]
    arms = {name: replace(each, weighted={"brier": weighted[name]}) for name, each in whole.arms.items()}
    verdict = judge(replace(whole, arms=arms), Rules())
    assert verdict.decision == "keep collecting"
    row = verdict.comparisons[0].rows[0]
    assert row.interval.lower < 0 < row.interval.upper  # type: ignore[operator]


def test_propensities_that_are_not_those_of_the_traffic_are_found() -> None:
    evidence = parted(clients(), design="bandit")
    wrong = {
        name: replace(each, weighted={"brier": each.brier.weighted({"A": 0.4, "B": 0.6}[name])})
        for name, each in evidence.arms.items()
    }
    verdict = judge(replace(evidence, arms=wrong), Rules())
    assert verdict.decision == "don't trust"
    assert "the weights sum to" in said(verdict)


def test_units_that_are_seen_often_count_once() -> None:
    rows = clients(4000)
    many = Rows(*(np.repeat(each, 25) for each in rows))
    d = score("brier", rows.champion, rows.outcome) - score("brier", rows.challenger, rows.outcome)
    units = ClusteredMoments(
        4000, 100_000, float(25 * d.sum()), 4000 * 625.0, float(625 * d.sum()), float(625 * (d * d).sum())
    )
    evidence = shadowed(many)
    assert evidence.pairs is not None
    units = replace(units, plain=evidence.pairs["B"].brier)
    evidence = replace(evidence, pairs={"B": replace(evidence.pairs["B"], by_unit={"brier": units})})
    fixed = judge(evidence, Rules()).comparisons[0].rows[0].fixed
    plain = judge(shadowed(rows), Rules()).comparisons[0].rows[0].fixed
    assert fixed.lower == pytest.approx(plain.lower)
    assert fixed.upper == pytest.approx(plain.upper)


def test_a_greater_disagreement_than_declared_is_not_trusted() -> None:
    verdict = judge(shadowed(clients()), Rules(max_gap=0.05))
    assert verdict.decision == "don't trust"
    assert "0.05 is declared" in said(verdict)


def test_the_exact_interval_is_wider_and_says_so() -> None:
    rows = Credit(correlation=0.999).draw(np.random.default_rng(2), (5_000,))
    asymptotic = judge(shadowed(rows), Rules()).comparisons[0].rows[0]
    exact = judge(shadowed(rows), Rules(max_gap=0.2, spread=0.01)).comparisons[0].rows[0]
    assert exact.note == "exact, for |p − p′| as declared"
    assert exact.interval.lower < asymptotic.interval.lower  # type: ignore[operator]
    assert exact.interval.upper > asymptotic.interval.upper  # type: ignore[operator]


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"alpha": 0}, "alpha"),
        ({"metric": "auc"}, "metric"),
        ({"margin": -1.0}, "margin"),
        ({"n_star": 0}, "n_star"),
        ({"max_gap": 0.0}, "max_gap"),
        ({"guardrails": (Guardrail("x", "happiness"),)}, "guardrails"),
        ({"guardrails": (Guardrail("x", "error-rate", math.nan),)}, "guardrails"),
    ],
)
def test_a_rule_that_is_out_of_its_range_is_named(wrong: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        judge(Evidence("shadow", "A", ("B",)), Rules(**wrong))


def test_traffic_is_told_by_cells_of_time_with_the_propensities_in_force() -> None:
    def cell(first: float, *periods: tuple[float, int, int]) -> Evidence:
        each = tuple(Period({"A": 1 - share, "B": share}, {"A": a, "B": b}) for share, a, b in periods)
        arms = {name: Arm(requests=sum(period.requests[name] for period in each)) for name in ("A", "B")}
        return Evidence("split", "A", ("B",), arms, periods=each, first=first)

    cells = {DAY: cell(0.0, (0.2, 80, 20)), 3 * DAY: cell(2 * DAY, (0.2, 70, 30), (0.5, 160, 140))}
    one, other = judge(gathered(Evidence("split", "A", ("B",)), cells), Rules()).traffic
    assert (one.begin, one.end, one.requests) == (0.0, DAY, {"A": 80, "B": 20})
    assert dict(one.shares) == pytest.approx({"A": 0.8, "B": 0.2})
    assert other.requests == {"A": 230, "B": 170}
    # Of 400 requests a hundred had 20 %, the others 50 %.
    assert dict(other.shares) == pytest.approx({"A": 0.575, "B": 0.425})
    # Whom a shadow scores is nobody's choice.
    shadow = judge(gathered(Evidence("shadow", "A", ("B",)), {DAY: shadowed(clients(50))}), Rules())
    assert [(each.requests, each.shares) for each in shadow.traffic] == [({"A": 50, "B": 50}, {})]


def test_reliability_is_told_in_tenths_of_what_was_said() -> None:
    scored = Arm(negative_scores={0: 3, 4: 1, 49: 1}, positive_scores={4: 1, 5: 2})
    mine, its = judge(Evidence("split", "A", ("B",), {"A": scored}), Rules()).reliability
    assert [(each.lower, each.upper, each.count, each.positives) for each in mine.bins] == [
        (0.0, 0.1, 5, 1),
        (0.1, 0.2, 2, 2),
        (0.9, 1.0, 1, 0),
    ]
    assert [each.sum_p for each in mine.bins] == pytest.approx([3 * 0.01 + 2 * 0.09, 2 * 0.11, 0.99])
    assert (its.variant, its.bins) == ("B", ())


def test_pairs_say_how_many_times_fewer_outcomes_they_take_than_a_split() -> None:
    rows = clients(2000)
    one, other, y = rows
    difference = score("brier", one, y) - score("brier", other, y)
    variances = [np.var(score("brier", each, y), ddof=1) for each in (one, other)]
    fewer = judge(shadowed(rows), Rules()).comparisons[0].fewer
    # Either half of a split has half of the outcomes.
    wanted = 2 * sum(variances) / np.var(difference, ddof=1)
    assert fewer == pytest.approx(wanted)
    page = markdown(judge(shadowed(rows), Rules()))
    assert f"A split would take {wanted:.4g} times as many outcomes as these pairs." in page
    for other_evidence in (shadowed(clients(50)), parted(rows), shadowed(Rows(one, one, y))):
        assert judge(other_evidence, Rules()).comparisons[0].fewer is None


def test_evidence_of_different_experiments_does_not_add() -> None:
    with pytest.raises(ValueError, match="design"):
        _ = Evidence("shadow", "A", ("B",)) + Evidence("split", "A", ("B",))


def test_a_plan_says_what_each_design_takes() -> None:
    shadow = plan("shadow", 0.0007, (6e-5, 6e-5), outcomes_per_day=100, maturity_days=30)
    split = plan("split", 0.0007, (0.04, 0.04), outcomes_per_day=100, maturity_days=30)
    assert shadow.fixed * 1000 < split.fixed
    assert shadow.fixed < shadow.expected < shadow.likely
    assert shadow.days_expected == pytest.approx(shadow.expected / 100 + 30)
    assert plan("bandit", 0.0007, (0.04, 0.04), outcomes_per_day=0).days_fixed is None
    with pytest.raises(ValueError, match="effect"):
        plan("split", 0.0, (1, 1), outcomes_per_day=1)


def test_arms_on_the_same_requests_are_not_taken_for_independent() -> None:
    rule = Rules(guardrails=(Guardrail("errors", "error-rate"),))
    counts = []
    for design in ("shadow", "split"):
        arms = {"A": failing(1000, 10), "B": failing(1000, 40)}
        (result,) = judge(Evidence(design, "A", ("B",), arms), rule).comparisons[0].guardrails
        expected = rates.log_e_value_of_excess((10, 1000), (40, 1000), 0.0, independent=design == "split")
        assert result.e_value == pytest.approx(math.exp(float(expected)))
        counts.append(result.e_value)
    assert counts[0] != counts[1]


def test_sums_by_inverse_propensity_give_hajeks_mean_and_its_error() -> None:
    rng = np.random.default_rng(6)
    weighted, means, errors = {}, [], []
    for name in "AB":
        w, s = 1 / rng.uniform(0.1, 0.9, 500), rng.random(500)
        w1, w2, ws, w2s, w2s2 = (float(x.sum()) for x in (w, w * w, w * s, w * w * s, w * w * s * s))
        weighted[name] = WeightedMoments(500, w1, w2, ws, w2s, w2s2)
        means.append(float(np.average(s, weights=w)))
        errors.append(float(np.sqrt((w**2 * (s - means[-1]) ** 2).sum() * 500 / 499) / w.sum()))
    arms = {name: Arm(500, 0, 500, 500, 100, weighted={"brier": each}) for name, each in weighted.items()}
    row = judge(Evidence("bandit", "A", ("B",), arms), Rules()).comparisons[0].rows[0]
    assert (row.champion, row.challenger) == pytest.approx(tuple(means))
    assert row.difference == pytest.approx(means[0] - means[1])
    half = (row.fixed.upper - row.fixed.lower) / 2  # type: ignore[operator]
    assert half == pytest.approx(1.959964 * math.hypot(*errors))


def test_the_right_propensities_are_trusted_by_the_weights_of_both_arms() -> None:
    evidence = parted(clients(4000), 0.48, design="bandit")
    arms = {
        name: replace(each, weighted={"brier": each.brier.weighted(0.5)})
        for name, each in evidence.arms.items()
    }
    check = next(
        each for each in judge(replace(evidence, arms=arms), Rules()).checks if each.name == "propensities"
    )
    assert check.state == "passed"
    # Of all 4,000 rows each weighs 2 where it came to A, and −2 where to B.
    n = arms["A"].labelled
    excess = Moments.of([2.0] * n + [-2.0] * (4000 - n))
    log_e = float(sequence.log_e_value(excess.mean, excess.standard_error, 4000, Rules().n_star, 0.01))
    assert check.e_value == pytest.approx(math.exp(log_e))


def test_differences_that_are_all_the_same_are_not_taken_for_certain() -> None:
    assert Moments.of([0.1] * 1000).variance == 0
    y = np.array([0.0, 1.0] * 500)
    # B is nearer to the outcome by the same in every pair: nothing says how much that varies.
    rows = Rows(np.full(1000, 0.5), np.where(y == 1, 0.75, 0.25), y)
    verdict = judge(shadowed(rows), Rules(metric="log-loss"))
    assert verdict.decision == "keep collecting"
    assert verdict.comparisons[0].rows[0].interval.lower is None
    assert "tell as much as 0 of the rarer outcome" in said(verdict)


def test_the_grid_of_the_history_is_fixed_whatever_ends_a_cell_has_ended_one_before() -> None:
    def ends(hours: int) -> set[float]:
        grid = Grid.over([hour * HOUR for hour in range(hours)])
        return {grid.end(hour * HOUR) for hour in range(hours)}

    grown = [ends(hours) for hours in range(1, 500)]
    assert max(map(len, grown)) == CELLS
    for younger, older in itertools.pairwise(grown):
        # The newest end may lie ahead; of the others none is new.
        assert {end for end in older if end <= max(younger)} <= younger


@given(
    st.integers(0, 40), st.integers(0, 400), st.integers(0, 40), st.integers(0, 4000), st.floats(-0.99, 0.99)
)
def test_no_pair_of_rates_contradicts_a_difference_less_than_the_one_that_is_told(
    k: int, more: int, m: int, others: int, difference: float
) -> None:
    one, other = (k, k + more + 1), (m, m + others + 1)
    told = float(rates.log_e_value_of_difference(one, other, difference))
    p = np.linspace(max(0.0, -difference), min(1.0, 1 - difference), 2001)
    q = np.clip(p + difference, 0, 1)
    each = rates.log_e_value(*one, p) + rates.log_e_value(*other, q)
    assert told <= each.min() + 1e-6
