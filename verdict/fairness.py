"""Whether a variant treats groups differently: differences of rates between groups, with intervals."""

from __future__ import annotations

from collections.abc import Callable

from verdict import rates
from verdict.evidence import Decisions, Evidence, Rules
from verdict.results import NO_INTERVAL, Gap, Interval

# Hardt, Price & Srebro (NeurIPS 2016): demographic parity compares the first, equalized odds the others. All
# are over the requests whose outcome is known, so the first is of those alone, too.
RATES: dict[str, Callable[[Decisions], tuple[int, int]]] = {
    "positive decisions among known outcomes": lambda seen: (
        seen.tp + seen.fp,
        seen.tp + seen.fp + seen.tn + seen.fn,
    ),
    "true positive rate": lambda seen: (seen.tp, seen.tp + seen.fn),
    "false positive rate": lambda seen: (seen.fp, seen.fp + seen.tn),
}


def gaps(evidence: Evidence, rules: Rules) -> tuple[Gap, ...]:
    """Each group's rates less those of the greatest group, by variant; all intervals hold together.

    The greatest is the one of which the most outcomes are known, since rates are over these.
    """
    variants = (evidence.champion, *evidence.challengers)
    wanted = []
    count = 0
    for field in rules.sensitive:
        groups = {value: part for (name, value), part in evidence.segments.items() if name == field}
        count += len(variants) * len(RATES) * max(rules.parts_of(field, len(groups)) - 1, 0)
        sizes = {value: sum(arm.labelled for arm in part.arms.values()) for value, part in groups.items()}
        if len(groups) < 2:  # noqa: PLR2004
            continue
        reference = max(sorted(sizes), key=lambda value: sizes[value])
        wanted += [
            (variant, field, rate, group, reference, groups)
            for variant in variants
            for rate in RATES
            for group in sorted(groups)
            if group != reference
        ]
    found = []
    for variant, field, rate, group, reference, groups in wanted:
        one, other = (
            RATES[rate](groups[value].arm(variant).decisions or Decisions()) for value in (reference, group)
        )
        known = one[1] > 0 and other[1] > 0
        interval = (
            Interval(*rates.difference_interval(one, other, rules.alpha / count)) if known else NO_INTERVAL
        )
        gap = other[0] / other[1] - one[0] / one[1] if known else None
        found.append(Gap(variant, field, rate, group, reference, gap, interval, other[1], one[1]))
    return tuple(found)
