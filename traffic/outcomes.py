"""What became of those who were predicted, reported late: out of order, in batches, again where it failed."""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

from traffic.send import ALL_WELL, Sent

Delays = Literal["fixed", "exponential", "by-outcome"]

AT_ONCE = 500
PAUSE_SECONDS = 0.25
MAX_BACKOFF_SECONDS = 5.0
# A default shows when it happens; that there was none is known only when the term is over.
EARLY_SHARE = 0.25
TRY_AGAIN = (429, 500, 502, 503, 504)


class OutcomesRefused(Exception):
    """The router will not take outcomes from us; the message says why."""


@dataclass
class Outcomes:
    """Reports the true outcome of each request that was answered, some time later.

    Args:
        url: of the router, without a path.
        delays: how long it takes: "fixed" for all alike, "exponential" with that mean, "by-outcome"
            exponential with a quarter of it for a default and all of it for none.
        mean: seconds.
        seed: the same seed gives the same request the same delay, by its number in the order of answers.
    """

    url: str
    delays: Delays = "exponential"
    mean: float = 10.0
    seed: int = 1
    # What the router said of the reports, by status; "recorded" is what counts.
    told: Counter[str] = field(default_factory=Counter, init=False)
    retries: int = field(default=0, init=False)
    _rng: random.Random = field(init=False)
    _waiting: list[tuple[float, str, int]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._rng = random.Random(f"outcomes {self.seed}")

    @property
    def waiting(self) -> int:
        """How many are known and not reported yet."""
        return len(self._waiting)

    def know(self, sent: Sent) -> None:
        """Take note of an answered request; what was not answered is on no record to report of."""
        if sent.status == ALL_WELL and sent.request_id:
            outcome = sent.request.outcome
            heapq.heappush(
                self._waiting, (time.perf_counter() + self._delay(outcome), sent.request_id, outcome)
            )

    def _delay(self, outcome: int) -> float:
        if self.delays == "fixed":
            return self.mean
        mean = self.mean * (EARLY_SHARE if self.delays == "by-outcome" and outcome else 1)
        return self._rng.expovariate(1.0) * mean

    async def report(self, session: aiohttp.ClientSession, over: asyncio.Event) -> None:
        """Report what is due, until `over` is set and nothing waits; whoever stops before cancels this.

        Raises:
            OutcomesRefused: the router takes none, and would not later.
        """
        while not (over.is_set() and not self._waiting):
            batch: list[tuple[float, str, int]] = []
            while self._waiting and self._waiting[0][0] <= time.perf_counter() and len(batch) < AT_ONCE:
                batch.append(heapq.heappop(self._waiting))
            if not batch:
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            self._rng.shuffle(batch)
            try:
                await self._deliver(session, [{"id": id_, "outcome": outcome} for _, id_, outcome in batch])
            except BaseException:
                # They were not told of; whoever asks how many are left is to know.
                self._waiting.extend(batch)
                heapq.heapify(self._waiting)
                raise

    async def _deliver(self, session: aiohttp.ClientSession, reports: list[dict[str, Any]]) -> None:
        """Report until somebody takes it: a report that comes twice is told as "repeated" and counts once."""
        backoff = PAUSE_SECONDS
        while True:
            try:
                async with session.post(f"{self.url}/v1/outcomes", json=reports) as response:
                    if response.status not in TRY_AGAIN:
                        answer = await response.json()
                        if "outcomes" not in answer:
                            raise OutcomesRefused(answer.get("detail") or f"status {response.status}")
                        self.told.update(each["status"] for each in answer["outcomes"])
                        return
            except (aiohttp.ContentTypeError, ValueError, AttributeError) as error:
                raise OutcomesRefused(f"what answers at {self.url} is no router") from error
            except (aiohttp.ClientError, TimeoutError, OSError):
                pass
            self.retries += 1
            await asyncio.sleep(backoff * (0.5 + self._rng.random() / 2))
            backoff = min(2 * backoff, MAX_BACKOFF_SECONDS)
