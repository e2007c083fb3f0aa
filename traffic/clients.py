"""Who asks: real clients that no model was trained on, as they are or with another payment history."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

from data import credit

Record = dict[str, int]

# The payment histories of the classic simulation: the codes of the six payment columns are drawn from
# these (−1 paid duly, 0 revolving credit, n ≥ 1 months late).
PROFILES: dict[str, tuple[int, ...]] = {
    "on time": (-1, 0),
    "2-4 months late": (2, 3, 4),
    "7-9 months late": (7, 8, 9),
}


def held_out(count: int, seed: int) -> Iterator[Record]:
    """Held-out clients in random order; once each has come, they come again.

    Args:
        count: how many records.
        seed: the same seed gives the same records.
    """
    rng = random.Random(seed)
    clients = _held_out_clients()
    while count > 0:
        for number in rng.sample(range(len(clients)), min(count, len(clients))):
            yield dict(clients[number])
        count -= len(clients)


def profile(kind: str, count: int, seed: int) -> Iterator[Record]:
    """Held-out clients whose payment history is replaced by one of PROFILES.

    Raises:
        KeyError: there is no such profile.
    """
    codes = PROFILES[kind]
    rng = random.Random(seed)
    for client in held_out(count, seed):
        yield client | {name: rng.choice(codes) for name in credit.PAYMENTS}


@cache
def _held_out_clients() -> list[Record]:
    _, frame = credit.split(credit.load())
    rows = frame[list(credit.FEATURES)].to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]
