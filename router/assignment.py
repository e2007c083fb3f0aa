"""Which variant a request goes to, and which requests are shadowed.

Weighted rendezvous hashing (Thaler & Ravishankar 1998, doi:10.1109/90.663936) in the logarithmic form of
Schindelhauer & Schomaker (2005, section 3.2, doi:10.1007/11533719_35): each variant draws −ln(u) / weight
with u hashed from salt, variant and unit, and the smallest wins. These are exponential variables of rates
that are the weights, so each variant wins with its share; and where one's weight grows, its own draws alone
become smaller, so units move to it, from each other one in proportion, and nowhere else.

`docs/assignment.md` specifies it for other languages, with test vectors.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from math import log
from typing import NamedTuple

from router.experiment import Experiment, Variant

# Two kinds of draws that know nothing of each other.
ASSIGN = "assign"
SHADOW = "shadow"

# Of the hash the first 52 bits: with the half that is added, 53, which is what a double holds exactly.
STEPS = 2**52

# What the system would draw costs more than all else that an assignment does. Each process has its own draws.
OWN = random.Random()
os.register_at_fork(after_in_child=OWN.seed)


class Assignment(NamedTuple):
    """The variant that a request goes to, and the probability with which it was to go there.

    The propensity is None where the request is not to count: it was forced, or the experiment is paused.
    """

    variant: Variant
    propensity: float | None


def assign(
    document: Experiment, weights: Mapping[str, float], unit: str | None = None, rng: random.Random = OWN
) -> Assignment:
    """The variant of a unit, the same at any time and place; or one drawn for a request without a unit.

    Args:
        document: the experiment.
        weights: those in force, by the name of the variant, relative to their sum; 0 for one not named.
        unit: the unit's id; None for a request that is its own unit.
        rng: what is drawn from without a unit.

    Raises:
        ValueError: no variant has a weight above 0.
    """
    chosen: Variant | None = None
    least = total = 0.0
    for variant in document.variants:
        weight = weights.get(variant.name, 0.0)
        if weight > 0:
            u = rng.random() if unit is None else uniform(ASSIGN, document.salt, variant.name, unit)
            total += weight
            draw = -log(u or 2**-54) / weight
            if chosen is None or draw < least:
                chosen, least = variant, draw
    if chosen is None:
        raise ValueError("no variant has a weight above 0")
    return Assignment(chosen, weights[chosen.name] / total)


def shadowed(document: Experiment, key: str) -> bool:
    """Whether a request is one of the sample that all challengers are asked as well.

    Args:
        document: the experiment, in the mode shadow.
        key: the request's id.
    """
    return document.mode == "shadow" and uniform(SHADOW, document.salt, key) < document.shadow.sample


def uniform(*texts: str) -> float:
    """A number between 0 and 1, neither of them, hashed from texts."""
    *first, last = texts
    digest = sha256(_netstrings(*first) + _netstring(last)).digest()
    return ((int.from_bytes(digest[:7]) >> 4) + 0.5) / STEPS


# Of most requests all but the unit is what it was in the last one.
@lru_cache(1024)
def _netstrings(*texts: str) -> bytes:
    return b"".join(map(_netstring, texts))


def _netstring(text: str) -> bytes:
    """A text such that several in a row cannot be mistaken for others (Bernstein 1997)."""
    data = text.encode()
    return b"%d:%b," % (len(data), data)
