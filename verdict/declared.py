"""What was declared of an experiment: all that its verdict takes besides the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from verdict.evidence import Costs, Design, Evidence, Guardrail, Rules

# The kind of the answers that callers got; side answers are "shadow" or "replay".
LIVE = ""

# A version of the document, and an allocation in it.
Place = tuple[int, int]


@dataclass(frozen=True)
class Roles:
    """Who is compared with whom, and by which kind of answers."""

    design: Design
    champion: str
    challengers: tuple[str, ...]
    # Of the challengers' answers.
    kind: str

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.champion, *self.challengers)

    def kind_of(self, variant: str) -> str:
        """Of a variant's answers."""
        return LIVE if variant == self.champion else self.kind

    def has(self, variant: str, kind: str) -> bool:
        """Whether answers of this kind are of one of those that are compared."""
        return variant in self.variants and kind == self.kind_of(variant)

    @property
    def nothing(self) -> Evidence:
        """Evidence of this design and these variants in which nothing is counted."""
        pairs: Any = {} if self.design == "shadow" else None
        return Evidence(self.design, self.champion, self.challengers, pairs=pairs)

    def chances(self, weights: Mapping[str, float]) -> bool:
        """Whether rows may count by weights."""
        # Where one of them had no chance at all, there is nothing to compare.
        return self.design != "shadow" and all(weights.get(each, 0.0) > 0 for each in self.variants)


@dataclass(frozen=True)
class Terms:
    """By what the rows of a version and an allocation were assigned, and what was declared of them.

    Attributes:
        version: of the experiment's document.
        allocation: of the weights within it; 0 for the document's own.
        weights: the shares in force; they sum to 1. Empty where they are not known.
        thresholds: by variant, the score from which on a decision is positive.
        parts: of the traffic, by a column and the cuts between them; without cuts each code is one.
        tilt: by the weighting that was declared, of the weights tilt / share by which rows count.
    """

    version: int
    allocation: int
    weights: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    parts: tuple[tuple[str, tuple[float, ...]], ...] = ()
    tilt: float = 1.0


@dataclass(frozen=True)
class Declared:
    """What was declared of an experiment.

    Attributes:
        experiment: its name.
        phase: whose rows count.
        who: is compared.
        rules: by which it is judged.
        terms: those of each version and allocation.
    """

    experiment: str
    phase: int
    who: Roles
    rules: Rules
    terms: tuple[Terms, ...]

    def at(self, place: Place) -> Terms:
        """The terms of a version and an allocation; empty ones where nothing is known of them."""
        return self._by_place.get(place, Terms(*place))

    @cached_property
    def _by_place(self) -> dict[Place, Terms]:
        return {(each.version, each.allocation): each for each in self.terms}

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON takes it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Declared:
        """What `to_dict` gave, after JSON.

        Raises:
            ValueError: it is something else; the message says what is missing or too much.
        """
        try:
            who, rules = told["who"], told["rules"]
            return cls(
                experiment=told["experiment"],
                phase=told["phase"],
                who=Roles(**{**who, "challengers": tuple(who["challengers"])}),
                rules=Rules(
                    **{
                        **rules,
                        "costs": Costs(**rules["costs"]) if rules["costs"] else None,
                        "guardrails": tuple(Guardrail(**each) for each in rules["guardrails"]),
                        "segments": tuple(rules["segments"]),
                        "sensitive": tuple(rules["sensitive"]),
                        "same": tuple(rules["same"]),
                    }
                ),
                terms=tuple(
                    Terms(**{**each, "parts": tuple((name, tuple(cuts)) for name, cuts in each["parts"])})
                    for each in told["terms"]
                ),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"this is not what was declared of an experiment: {type(error).__name__}: {error}"
            ) from None
