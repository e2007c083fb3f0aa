"""A simulation: which traffic is sent to a router, and what is told of it afterwards.

The truth is known beforehand, and told late: so one sees what the router says of it come true.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Annotated

import aiohttp
from pydantic import BaseModel, ConfigDict, Field

from traffic.faults import Break, CannotBreak, broken, mend_all
from traffic.outcomes import Delays, Outcomes, OutcomesRefused
from traffic.plan import TAG, Plan, Request
from traffic.send import MAX_IN_FLIGHT, NAP_SECONDS, NOT_SENT, Sender, Sent

LOCKED = (401, 403)

log = logging.getLogger(__name__)


class Late(BaseModel):
    """When outcomes are told: so many seconds after the answer in the mean, see `Outcomes`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: Annotated[float, Field(ge=0, le=86_400)] = 10.0
    delays: Delays = "exponential"


class Order(BaseModel):
    """What is simulated.

    With `requests` so many requests are sent, `at_once` at a time, whatever the plan's rate and length are;
    without, each comes when the plan says. Outcomes are told of where `outcomes` is set.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    plan: Plan = Plan()
    requests: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    at_once: Annotated[int, Field(ge=1, le=MAX_IN_FLIGHT)] = 4
    outcomes: Late | None = None
    broken: Break | None = None


@dataclass(frozen=True)
class Progress:
    """How far a simulation is.

    `answers` counts answered requests by variant; `seconds` were sent in so far. `told` and `untold` are
    outcomes: while it is `running` and not `sending`, it tells the rest of them. `problem` is the first thing
    that went wrong.
    """

    done: int = 0
    failed: int = 0
    not_sent: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    told: int = 0
    untold: int = 0
    running: bool = False
    sending: bool = False
    stopped: bool = False
    problem: str | None = None


class Simulation:
    """One run of an order against a router, in the thread that calls `run`; others may look and stop it."""

    def __init__(self, order: Order, url: str, key: str | None = None) -> None:
        """Prepare it.

        Args:
            order: what is simulated.
            url: of the router.
            key: which opens it, where it asks for one: an operator's, or for requests alone one that may
                predict.
        """
        self.order = order
        self._url = url.rstrip("/")
        self._stop = threading.Event()
        self._sender = Sender(self._url, TAG, key, stop=self._stop)
        if order.requests:
            self._sender.max_in_flight, self._sender.waits = order.at_once, True
        self._reports = (
            Outcomes(self._url, order.outcomes.delays, order.outcomes.mean, order.plan.seed)
            if order.outcomes
            else None
        )
        self._kinds: Counter[str] = Counter()
        self._answers: Counter[str] = Counter()
        self._problem: str | None = None
        self._began: float | None = None
        self._ended: float | None = None
        self._over = threading.Event()

    @property
    def progress(self) -> Progress:
        """How far it is now."""
        began = self._began or time.perf_counter()
        done = sum(self._kinds.values())
        return Progress(
            done=done,
            failed=done - self._kinds["answered"] - self._kinds[NOT_SENT],
            not_sent=self._kinds[NOT_SENT],
            answers=dict(sorted(self._answers.items())),
            seconds=(self._ended or time.perf_counter()) - began,
            told=sum(self._reports.told.values()) if self._reports else 0,
            untold=self._reports.waiting if self._reports else 0,
            running=not self._over.is_set(),
            sending=self._ended is None,
            stopped=self._over.is_set() and self._stop.is_set(),
            problem=self._problem,
        )

    def stop(self) -> None:
        """Send nothing more, and tell no more outcomes; requests under way are still waited for."""
        if not self._over.is_set():
            self._stop.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is over, or so long; whether it is over."""
        return self._over.wait(seconds)

    def run(self) -> None:
        """Send everything, and return when all is answered and told of."""
        try:
            asyncio.run(self._run())
        except CannotBreak as error:
            self._break_off(str(error))
        except Exception as error:
            # Nobody may wait for this thread: what ends it must be seen by who looks.
            log.exception("the simulation broke off")
            self._break_off(f"the run broke off: {type(error).__name__}")
        finally:
            self._ended = self._ended or time.perf_counter()
            self._over.set()

    async def _run(self) -> None:
        over = asyncio.Event()
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(self._sender.session())
            # A router that is away, or does not let us, is told of by what is sent.
            with suppress(CannotBreak, aiohttp.ClientError, OSError):
                await mend_all(session, self._url)
            order = self.order
            requests = order.plan.at_once(order.requests) if order.requests else order.plan.requests()
            if order.broken:
                breaking = broken(order.broken, self._url, session, order.plan.seed)
                requests = _telling(requests, await stack.enter_async_context(breaking))
            await self._sender.learn_unit_header(session)
            self._began = time.perf_counter()
            telling = asyncio.create_task(self._tell(session, over))
            try:
                await self._sender.send(requests, session, self._count)
            finally:
                self._ended = time.perf_counter()
                over.set()
                await telling

    async def _tell(self, session: aiohttp.ClientSession, over: asyncio.Event) -> None:
        """Report outcomes until all are told, or it is stopped."""
        if self._reports is None:
            return
        reporting = asyncio.create_task(self._reports.report(session, over))
        while not reporting.done() and not self._stop.is_set():
            await asyncio.wait({reporting}, timeout=NAP_SECONDS)
        reporting.cancel()
        try:
            await reporting
        except asyncio.CancelledError:
            pass
        except OutcomesRefused as error:
            self._trouble(f"outcomes are not taken: {error}")

    def _count(self, sent: Sent) -> None:
        answered = sent.error is None
        self._kinds["answered" if answered else sent.error or ""] += 1
        if sent.status in LOCKED:
            self._trouble("the router asks for a key that may predict")
        elif sent.problem:
            self._trouble(sent.problem)
        if answered:
            self._answers[sent.variant or "?"] += 1
            if self._reports:
                self._reports.know(sent)

    def _trouble(self, what: str) -> None:
        self._problem = self._problem or what

    def _break_off(self, why: str) -> None:
        # It matters more than that a request failed before.
        self._problem = why
        self._stop.set()


def _telling(requests: Iterable[Request], begun: Callable[[], None]) -> Iterator[Request]:
    """The requests; `begun` is called when the first is there, since it may take long to read the clients."""
    for number, request in enumerate(requests):
        if number == 0:
            begun()
        yield request
