"""Where standard errors mislead: the short form of what `make validate` says of equally good models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from verdict.counted import paired, scored
from verdict.decision import judge
from verdict.evidence import Evidence, Guardrail, Period, Rules
from verdict.harness import ALPHA, NEARLY, losses, sharpness
from verdict.moments import ClusteredMoments, Swings
from verdict.settings import ERRORS, FURTHER, GUARDRAILS, WEIGHTS, Setting, wrong
from verdict.simulate import Rows, Summed

MISLEAD = (*ERRORS, *GUARDRAILS, *WEIGHTS[:2])


def named(setting: Setting) -> str:
    return setting.name


@pytest.mark.parametrize("setting", [*ERRORS, *GUARDRAILS, *WEIGHTS, *FURTHER], ids=named)
def test_no_winner_is_named_between_equally_good_models(setting: Setting) -> None:
    assert setting.advantage == pytest.approx(0, abs=1e-12)
    before, now = wrong(replace(setting, looks=50, batch=4 * setting.batch), 200)
    # So few streams only say that it is not clearly more; `make validate` runs 2,000.
    assert now.ends[0] <= ALPHA
    if setting in MISLEAD:
        assert before.share > now.share


def few_that_tell(n: int, defaults: int) -> Rows:
    """Rows on which both models say the same, but for a tenth, where .02 and .005 are said."""
    y = np.zeros(n)
    rest, tenth = np.arange(n) >= n // 10, np.arange(n) < defaults
    y[rest & (np.arange(n) % 5 == 0)] = 1
    y[tenth] = 1
    return Rows(np.where(rest, 0.2, 0.02), np.where(rest, 0.2, 0.005), y)


def evidence(rows: Rows) -> Evidence:
    """Of pairs."""
    one, other, y = rows
    pairs = replace(paired(one, other, y, (0.5, 0.5)), mature=len(y))
    arms = {
        name: replace(scored(p, y, 0.5), requests=len(y), mature=len(y))
        for name, p in (("A", one), ("B", other))
    }
    return Evidence("shadow", "A", ("B",), arms, {"B": pairs}, first=0.0, last=1.0)


def test_rows_on_which_models_agree_tell_nothing_of_their_difference() -> None:
    # 900 outcomes are the rarer one, none of them where the models differ: B seems the better one.
    verdict = judge(evidence(few_that_tell(5000, 0)), Rules())
    [compared] = verdict.comparisons
    assert verdict.decision == "keep collecting"
    assert verdict.sentence == (
        "Keep collecting: the pairs of A and B tell as much as 0 of the rarer outcome, of the 16 that a "
        "decision takes at least."
    )
    row = compared.rows[0]
    assert row.difference is not None
    assert row.difference > 0
    # Nothing that rests on a standard error is shown: the interval is exact, and wide.
    assert (row.fixed.lower, row.note) == (None, "exact, as long as outcomes tell too little")
    assert row.interval.lower is not None
    assert row.interval.upper is not None
    assert row.interval.lower < 0 < row.interval.upper
    assert row.p == 1
    # Of the log loss, which has no bound, there is none.
    other = next(each for each in compared.rows if each.metric == "log-loss")
    assert (other.interval.lower, other.fixed.lower, other.e_value, other.p) == (None, None, 1.0, 1.0)
    # Five defaults where they differ are five of the rarer outcome.
    told = evidence(few_that_tell(5000, 5)).pair("B").brier.effective
    assert told == pytest.approx(5, rel=0.02)


def test_the_funnel_and_parts_of_the_traffic_begin_where_a_standard_error_is_one() -> None:
    cells = {float(end): evidence(few_that_tell(2000, 3)) for end in range(1, 9)}
    whole = sum(list(cells.values())[1:], cells[1.0])
    part = replace(whole, history={}, segments={})
    whole = replace(whole, history=cells, segments={("SEX", "1"): cells[1.0], ("SEX", "2"): part})
    [compared] = judge(whole, Rules(metric="log-loss", segments=("SEX",))).comparisons
    ends = [point.interval.lower is None for point in compared.history]
    assert ends == [True] * 5 + [False] * 3
    assert [point.e_value == 1 for point in compared.history] == ends
    assert [each.row.interval.lower is None for each in compared.segments] == [True, False]


def test_outcomes_count_by_what_hangs_on_them() -> None:
    # Where all swing by the same, rarer outcomes are counted: n·q(1 − q).
    assert Swings.alike(90, 10, 0.4).effective(0.4**2 * 100 * 0.1 * 0.9) == pytest.approx(9)
    # A row on which ten times as much hangs, and nothing has come yet, makes them few.
    more = Swings.alike(90, 10, 0.4) + Swings.alike(10, 0, 4.0)
    assert more.effective(0.4**2 * 9) < 0.2
    assert Swings().effective(0.0) == float("inf")
    # Rows of a unit that are all the same tell as one.
    y = np.repeat([1.0, 0, 0, 0, 0], 20)
    plain = scored(np.full(100, 0.2), y, 0.5).brier
    apart = ClusteredMoments.apart(plain)
    units = ClusteredMoments(5, 100, plain.total, 5 * 400.0, 20 * plain.total, 20 * plain.squares, plain)
    assert units.effective == pytest.approx(apart.effective / 20)
    assert (apart.independent, units.independent) == (100, 5)


def test_a_guardrail_of_scores_waits_for_ten_of_the_rarer_outcome_in_each_arm() -> None:
    def state(defaults: int, metric: str) -> str:
        arms = {}
        for name, ones in (("A", 200), ("B", defaults)):
            y = (np.arange(2000) < ones).astype(float)
            arms[name] = replace(scored(np.full(2000, 0.1), y, 0.5), requests=2000, mature=2000)
        guarded = Rules(guardrails=(Guardrail("scores", metric),))
        period = Period({"A": 0.5, "B": 0.5}, {"A": 2000, "B": 2000})
        verdict = judge(Evidence("split", "A", ("B",), arms, periods=(period,)), guarded)
        [found] = verdict.comparisons[0].guardrails
        return "unknown" if found.harm is None else found.state

    # Of 2,000 that were to default in one of ten, ten are too few to say that scores are off.
    assert [state(defaults, "calibration") for defaults in (5, 10, 11)] == ["unknown", "unknown", "breached"]
    assert [state(defaults, "brier") for defaults in (5, 11)] == ["unknown", "clear"]


def test_counts_of_alike_rows_are_summed_as_the_rows_are_by_any_weight() -> None:
    rng = np.random.default_rng(1)
    p, y = np.array([0.02, 0.3, 0.9]), np.array([0.0, 1.0, 1.0])
    times = rng.integers(1, 9, (2, 3)).astype(float)
    weight = np.array([0.3, 1.7])
    one, other = Summed(2), Summed(2)
    one.count(losses("log-loss", p), y, times, weight)
    zero, positive = (np.tile(each, (2, 1)) for each in losses("log-loss", p))
    other.add((zero, positive), np.tile(y, (2, 1)), times, weight)
    for stream in range(2):
        repeated = np.repeat(np.arange(3), times[stream].astype(int))
        rows = scored(p[repeated], y[repeated], 0.5).log_loss.weighted(1 / weight[stream])
        for sums in (one, other):
            found = [sums.mean, sums.error, sums.independent, sums.effective]
            wanted = [rows.mean, rows.standard_error, rows.independent, rows.effective]
            assert [each[stream] for each in found] == pytest.approx(wanted)


def test_with_the_spread_and_the_number_declared_an_exact_interval_is_nearly_as_narrow_as_betting() -> None:
    widths = {each.name: each.width for each in sharpness(5)}
    assert widths["both are declared"] <= NEARLY * widths["hedged betting"]
    assert (
        widths["both are declared"] < 0.7 * widths["neither the spread nor the number of pairs is declared"]
    )
