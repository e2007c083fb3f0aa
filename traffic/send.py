"""How requests are sent: each when it is due, whatever became of those before it.

That is an open loop. A sender that waits for answers sends less just when the service is slow, and measures
the rest only ("coordinated omission", Gil Tene, *How NOT to Measure Latency*, 2013). So latency is counted
from the moment when a request was due; and where too many are under way, the next is not delayed but counted
as not sent.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import aiohttp

from traffic.plan import Request

TIMEOUT_SECONDS = 10.0
CONNECT_SECONDS = 2.0
MAX_IN_FLIGHT = 256
# A request that leaves later than this after it was due is late by the sender's fault.
LATE_SECONDS = 0.05
# How soon a stop is seen, and how soon others get the thread while all is due at once.
NAP_SECONDS = 0.05
ALL_WELL = 200

# Kinds of what goes wrong. An answer of another status than 200 is of the kind "status <code>".
NOT_SENT = "not sent in time"
STILL_WAITING = "its user still waited"
TIMED_OUT = "no answer in time"
UNCONNECTED = "no connection"
BROKEN = "the connection broke"
# A connection that was idle for longer is not used again: gunicorn, for one, closes it after two seconds,
# and a request that comes just then would be counted as failed.
IDLE_SECONDS = 1.0


@dataclass(frozen=True)
class Sent:
    """What came of one request; `status` is 0 where no answer came.

    `seconds` is the time from when it was due to the whole answer, or to the end of waiting; `late` how long
    after it was due it left. `error` is a kind, and `problem` says more, where it was not answered well.
    """

    request: Request
    status: int
    seconds: float
    late: float = 0.0
    request_id: str | None = None
    variant: str | None = None
    version: str | None = None
    prediction: float | None = None
    error: str | None = None
    problem: str | None = None


@dataclass
class Sender:
    """Sends requests to one address, each when it is due.

    Args:
        url: of the service, without a path.
        tag: names simulated traffic in the record; None for real traffic.
        key: for a service that asks for one.
        unit_header: by which the experiment knows units.
        max_in_flight: how many requests may be under way; one that is due beyond that is not sent.
        waits: send it when there is room, instead, and count from then: a closed loop, for those who want a
            number of requests and no rate.
        in_turn: a unit asks nothing while it waits for an answer, as people do; what was due meanwhile is not
            sent.
        timeout: seconds that each waits for its whole answer.
        stop: when it is set, no further request is sent; those under way are still waited for.
    """

    url: str
    tag: str | None = None
    key: str | None = None
    unit_header: str = "X-Unit-ID"
    max_in_flight: int = MAX_IN_FLIGHT
    waits: bool = False
    in_turn: bool = False
    timeout: float = TIMEOUT_SECONDS
    stop: threading.Event = field(default_factory=threading.Event)
    under_way: int = field(default=0, init=False)

    def session(self) -> aiohttp.ClientSession:
        """A session with the connections, headers and patience of this sender."""
        headers = {"Content-Type": "application/json"}
        if self.tag:
            headers["X-Traffic-Tag"] = self.tag
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS),
            timeout=aiohttp.ClientTimeout(total=self.timeout, connect=CONNECT_SECONDS),
            headers=headers,
            # Nothing of one answer may change the next request, nor may it lead to another address.
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def learn_unit_header(self, session: aiohttp.ClientSession) -> None:
        """Take the header by which a router's experiment knows units; keep ours where none tells."""
        try:
            async with session.get(f"{self.url}/v1/experiment") as response:
                self.unit_header = str((await response.json())["unit"])
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, LookupError, TypeError):
            return

    async def send(
        self, requests: Iterable[Request], session: aiohttp.ClientSession, on_sent: Callable[[Sent], None]
    ) -> None:
        """Send requests, and tell what came of each as it comes, until all are told.

        Args:
            requests: in the order in which they are due.
            session: from `session`.
            on_sent: called in this thread.
        """
        # What it takes to read the clients must not make the first requests late.
        every = iter(requests)
        first = list(islice(every, 1))
        began = time.perf_counter()
        tasks: set[asyncio.Task[None]] = set()
        asking: set[str] = set()

        async def ask(request: Request, due: float) -> None:
            try:
                sent = await self._ask(session, request, due)
            finally:
                asking.discard(request.unit)
            on_sent(sent)

        def done(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            self.under_way -= 1

        breathed = began
        for request in chain(first, every):
            due = began + request.at
            while not self.stop.is_set() and (
                (wait := due - time.perf_counter()) > 0
                or (self.waits and self.under_way >= self.max_in_flight)
            ):
                if wait > 0:
                    await asyncio.sleep(min(wait, NAP_SECONDS))
                else:
                    await asyncio.wait(tasks, timeout=NAP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                breathed = time.perf_counter()
            if self.stop.is_set():
                break
            if self.in_turn and request.unit in asking:
                on_sent(Sent(request, 0, 0.0, error=STILL_WAITING))
            elif self.under_way >= self.max_in_flight:
                why = f"{self.under_way} requests were under way"
                on_sent(Sent(request, 0, 0.0, error=NOT_SENT, problem=f"{NOT_SENT}: {why}"))
            else:
                self.under_way += 1
                asking.add(request.unit)
                task = asyncio.create_task(ask(request, time.perf_counter() if self.waits else due))
                tasks.add(task)
                task.add_done_callback(done)
            # Whoever is behind still lets answers in.
            if time.perf_counter() - breathed > NAP_SECONDS / 10:
                await asyncio.sleep(0)
                breathed = time.perf_counter()
        if tasks:
            await asyncio.gather(*tasks)

    async def _ask(self, session: aiohttp.ClientSession, request: Request, due: float) -> Sent:
        headers = {"X-Request-ID": request.id, self.unit_header: request.unit}
        late = time.perf_counter() - due
        try:
            async with session.post(
                f"{self.url}/predict", data=request.body, headers=headers, allow_redirects=False
            ) as response:
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            kind = _kind(error)
            return Sent(
                request,
                0,
                time.perf_counter() - due,
                late,
                error=kind,
                problem=f"{self.url} did not answer: {kind}",
            )
        seconds = time.perf_counter() - due
        answer = _decoded(content)
        well = response.status == ALL_WELL
        return Sent(
            request,
            response.status,
            seconds,
            late,
            request_id=response.headers.get("X-Request-ID"),
            variant=response.headers.get("X-Variant"),
            version=response.headers.get("X-Model-Version"),
            prediction=answer.get("prediction"),
            error=None if well else f"status {response.status}",
            problem=None if well else answer.get("detail") or f"status {response.status}",
        )


def send_now(
    requests: Iterable[Request], sender: Sender, on_sent: Callable[[Sent], None] = lambda _: None
) -> None:
    """Send requests from a thread without a loop of its own, and return when what came of all is told."""

    async def run() -> None:
        async with sender.session() as session:
            await sender.send(requests, session, on_sent)

    asyncio.run(run())


def _decoded(content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _kind(error: BaseException) -> str:
    if isinstance(error, aiohttp.ConnectionTimeoutError | aiohttp.ClientConnectorError):
        return UNCONNECTED
    return TIMED_OUT if isinstance(error, TimeoutError) else BROKEN
