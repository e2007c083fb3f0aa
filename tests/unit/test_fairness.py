"""Groups are compared with the greatest one, of which the most outcomes are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from verdict.counted import scored
from verdict.decision import judge
from verdict.evidence import Evidence, Rules
from verdict.report import markdown


def test_the_greatest_group_is_the_reference_also_where_outcomes_alone_are_counted_by_groups() -> None:
    rng = np.random.default_rng(1)
    nothing = Evidence("split", "A", ("B",))

    def group(n: int) -> Evidence:
        """As the ledger has it: of parts of the traffic it counts the rows whose outcome is known."""
        y = (rng.random(n) < 0.3).astype(float)
        return replace(nothing, arms={name: scored(rng.random(n), y, 0.5) for name in "AB"})

    groups = {"1": group(200), "2": group(900), "3": group(300)}
    whole = replace(nothing, segments={("SEX", name): each for name, each in groups.items()})
    verdict = judge(whole, Rules(sensitive=("SEX",)))
    assert {gap.reference for gap in verdict.gaps} == {"2"}
    [first, *_] = [gap for gap in verdict.gaps if gap.group == "1"]
    assert (first.n, first.reference_n) == (200, 900)
    assert "| SEX 1 | 200 | 2 | 900 |" in markdown(verdict)
