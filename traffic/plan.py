"""What is sent, decided before anything is: arrivals, clients and units follow from a seed alone."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from traffic.arrivals import arrivals
from traffic.clients import DRIFTS, population

Shape = Literal["steady", "bursts", "ramp", "even"]
Kind = Literal["held-out clients", "on time", "2-4 months late", "7-9 months late"]
Drift = Literal["two-months-late", "half-limits"]
TAG = "simulation"
# A load test says nothing of models, not even of simulated clients.
LOAD_TAG = "load-test"
MAX_SEED = 999_999


@dataclass(frozen=True)
class Request:
    """A request that is due `at` seconds after the beginning. `outcome` is the truth, told to nobody yet."""

    at: float
    id: str
    unit: str
    body: bytes
    outcome: int


class Plan(BaseModel):
    """Which traffic. With the same plan come the same clients, as the same units, at the same moments.

    `rate` is in requests per second, times are in seconds. With `users` there are so many units, who come
    again and again; without, each request is a unit of its own, though the data's clients come again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate: Annotated[float, Field(gt=0, le=5000)] = 10.0
    seconds: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    shape: Shape = "steady"
    ramp: Annotated[float, Field(ge=0)] = 0.0
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 1
    kind: Kind = "held-out clients"
    users: Annotated[int, Field(ge=1, le=100_000)] | None = None
    drift: Drift | None = None
    drift_at: Annotated[float, Field(ge=0)] = 0.0

    def requests(self, run: str | None = None) -> Iterator[Request]:
        """The requests in the order in which they are due.

        Args:
            run: what their ids begin with; a name of its own for each run where None, since a ledger holds
                an id once.
        """
        due = arrivals(self.shape, self.rate, self.seconds, self.seed, min(self.ramp, self.seconds))
        return self._requests(due, run)

    def at_once(self, count: int) -> Iterator[Request]:
        """So many requests that are all due now, for a sender that waits."""
        return islice(self._requests(repeat(0.0), None), count)

    def _requests(self, due: Iterable[float], run: str | None) -> Iterator[Request]:
        run = run or secrets.token_hex(6)
        changed = DRIFTS[self.drift] if self.drift else None
        for number, (at, client) in enumerate(zip(due, population(self.kind, self.seed), strict=False)):
            record = changed(client.record) if changed and at >= self.drift_at else client.record
            unit = number % self.users if self.users else number
            body = json.dumps(record, separators=(",", ":")).encode()
            yield Request(at, f"{run}-{number}", f"{self.seed}-{unit}", body, client.outcome)
