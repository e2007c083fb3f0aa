"""Units and batches are clusters: short forms of what `make validate` simulates of rows that depend."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from verdict.harness import ALPHA, RULES
from verdict.moments import ClusteredMoments, Moments
from verdict.witnesses import UNNAMED, WITNESSES, Crowd, distrusted, looks, wrong


def named(crowd: Crowd) -> str:
    return crowd.name


@pytest.mark.parametrize("crowd", WITNESSES, ids=named)
def test_what_belongs_together_names_no_winner_between_equally_good_models(crowd: Crowd) -> None:
    before, now = wrong(replace(crowd, looks=50, batch=4 * crowd.batch), 200)
    # So few streams only say that it is not clearly more; `make validate` runs 2,000.
    assert now.ends[0] <= ALPHA
    assert before.share >= now.share
    if crowd.of == "batches" or crowd.tried:
        assert before.ends[0] > ALPHA or before.share > now.share


def test_one_unit_carried_a_verdict_when_its_last_rows_alone_were_counted_together() -> None:
    [unit] = [each for each in WITNESSES if each.heavy == 1 and each.design == "shadow"]
    before, now = wrong(replace(unit, looks=50, batch=4 * unit.batch), 200)
    assert before.share > 0.5
    assert now.count == 0


def test_batches_are_no_reason_to_doubt_propensities() -> None:
    before, now = distrusted(replace(WITNESSES[0], looks=50, batch=400), 200)
    assert before.share > 0.5
    assert now.ends[0] <= RULES.trust_alpha


def test_who_asks_again_without_a_unit_is_taken_for_somebody_else() -> None:
    [crowd] = UNNAMED
    before, now = wrong(crowd, 200)
    assert before.count == now.count
    assert now.ends[0] > ALPHA


def test_what_is_simulated_is_what_clusters_add_up_to() -> None:
    for crowd in WITNESSES:
        *_, last = looks(np.random.default_rng(1), replace(crowd, looks=3), 2)
        for sums in last.now:
            plain = Moments(int(sums.n[0]), float(sums.total[0]), float(sums.rows[2][0]))
            n2, cross, squares = (float(each[0]) for each in sums.squares)
            units = ClusteredMoments(int(sums.units[0]), plain.n, plain.total, n2, cross, squares, plain)
            assert units.standard_error == pytest.approx(sums.error[0])
            assert units.independent == pytest.approx(sums.independent[0])
