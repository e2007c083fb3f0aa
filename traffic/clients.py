"""Who asks: real clients that no model was trained on, as they are or with another payment history.

Each has the outcome that the data set knows of. A client whose history is replaced keeps it: what the models
are told then says something else of default than it did in training, as it does when a population drifts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice

from data import credit

Record = dict[str, int]

HELD_OUT = "held-out clients"

# The payment histories of the classic simulation: the codes of the six payment columns are drawn from
# these (−1 paid duly, 0 revolving credit, n ≥ 1 months late).
PROFILES: dict[str, tuple[int, ...]] = {
    "on time": (-1, 0),
    "2-4 months late": (2, 3, 4),
    "7-9 months late": (7, 8, 9),
}
KINDS = (HELD_OUT, *PROFILES)

# What may happen to everybody from a moment on.
DRIFTS: dict[str, Callable[[Record], Record]] = {
    "two-months-late": lambda record: record | dict.fromkeys(credit.PAYMENTS, 2),
    "half-limits": lambda record: record | {"LIMIT_BAL": max(1, record["LIMIT_BAL"] // 2)},
}


@dataclass(frozen=True)
class Client:
    """A held-out client: what a model is told of them, and if they defaulted (0 or 1)."""

    record: Record
    outcome: int


def population(kind: str, seed: int) -> Iterator[Client]:
    """Clients in random order without end; once each has come, they come again in another order.

    Args:
        kind: one of KINDS.
        seed: the same seed gives the same clients, and the same histories.

    Raises:
        KeyError: there is no such kind.
    """
    codes = None if kind == HELD_OUT else PROFILES[kind]
    order, histories = random.Random(seed), random.Random(f"{kind} {seed}")
    clients = _held_out_clients()
    while True:
        for client in order.sample(clients, len(clients)):
            drawn = {name: histories.choice(codes) for name in credit.PAYMENTS} if codes else {}
            yield Client(client.record | drawn, client.outcome)


def held_out(count: int, seed: int) -> Iterator[Record]:
    """The records of so many held-out clients."""
    return (client.record for client in islice(population(HELD_OUT, seed), count))


@cache
def _held_out_clients() -> list[Client]:
    _, frame = credit.split(credit.load())
    rows = frame[list(credit.FEATURES)].to_dict("records")
    return [
        Client({str(name): value for name, value in row.items()}, outcome)
        for row, outcome in zip(rows, frame[credit.TARGET].tolist(), strict=True)
    ]
