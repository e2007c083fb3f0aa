"""A load test: requests are offered to a service at a rate of our choice, and what comes of them is measured.

At a rate the loop is open, and latency counts from when a request was due (`traffic/send.py`). Users wait for
their answers instead: what they would have asked meanwhile, and how long it would have taken, the histogram
adds ("coordinated omission", Gil Tene, *How NOT to Measure Latency*, 2013). Either way a service that stalls
is seen to stall.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Literal

from hdrh.histogram import HdrHistogram
from pydantic import BaseModel, ConfigDict, Field, model_validator

from traffic.clients import HELD_OUT
from traffic.plan import LOAD_TAG, MAX_SEED, Kind, Plan
from traffic.send import LATE_SECONDS, STILL_WAITING, TIMED_OUT, TIMEOUT_SECONDS, Sender, Sent

MAX_RATE = 2000
MAX_USERS = 500
MAX_SECONDS = 600
# Each user asks once in so many seconds, if answers come soon enough.
USER_SECONDS = 1.0
MAX_UNDER_WAY = 500
# Whatever happens, a test is over so long after its last request was due.
GRACE_SECONDS = TIMEOUT_SECONDS + 5.0
# How often its state is told while it runs.
TELL_SECONDS = 0.5
# A run has about so many moments, and no more.
MOMENTS = 200

# The histogram holds 1 µs to 60 s, each to three digits; a moment's one to two.
LOWEST, HIGHEST, DIGITS, FEW_DIGITS = 1, 60_000_000, 3, 2
QUANTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9}
# Points of the percentile curve in each halving of the distance to 100 %.
CURVE_TICKS = 5

State = Literal["running", "finished", "stopped", "broken off"]


class Load(BaseModel):
    """What is offered, to which target: `rate` requests a second, or what so many `users` ask.

    The rate, or the number of those who ask, grows to its full height in the first `ramp` of the `seconds`.

    Raises:
        ValidationError: a field is out of its bounds, or there are both a rate and users.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: str = "router"
    rate: Annotated[float, Field(gt=0, le=MAX_RATE)] | None = None
    users: Annotated[int, Field(ge=1, le=MAX_USERS)] | None = None
    ramp: Annotated[float, Field(ge=0, le=MAX_SECONDS)] = 0.0
    seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS)] = 30.0
    kind: Kind = HELD_OUT  # type: ignore[assignment]
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 1

    @model_validator(mode="after")
    def _one_of_both(self) -> Load:
        if (self.rate is None) == (self.users is None):
            raise ValueError("either a rate or a number of users is needed, and not both")
        return self

    @property
    def per_second(self) -> float:
        """Requests a second that are offered, once it is at its full height."""
        return self.rate if self.rate is not None else (self.users or 0) / USER_SECONDS

    @property
    def plan(self) -> Plan:
        """Which requests are due when."""
        return Plan(
            rate=self.per_second,
            seconds=self.seconds,
            shape="even" if self.users else "steady",
            ramp=min(self.ramp, self.seconds),
            seed=self.seed,
            kind=self.kind,
            users=self.users,
        )


class Moment(BaseModel):
    """What was offered and what came in a stretch of a run that begins `at` so many seconds.

    `offered` and `achieved` are per second: what was due, and what was answered well. Quantiles, in ms, are
    of what was answered in it.
    """

    at: float
    offered: float
    achieved: float
    errors: dict[str, int] = {}
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class Run(BaseModel):
    """A load test and what was measured so far.

    Attributes:
        id: by which it is kept; begins with the time at which it began.
        updated: when this was written.
        ran: seconds so far, of those in which requests are due.
        offered: requests that were due.
        answered: those that were answered well.
        errors: those that were not, by kind.
        omitted: those that no user asked, since they still waited for the one before.
        late: requests that left later than they were due by the fault of this very program; if they are many,
            it is the bound, not the service.
        latency: quantiles and maximum in ms, from when a request was due.
        service: the same from when it left: what is told where nobody corrects for coordinated omission.
        curve: (percentile, ms) of the latency, ever denser towards 100; once it is over.
        histogram: of the latency, in µs, as HdrHistogram encodes it (version 2, compressed, base64).
        variants: answers by variant, where the target names them.
        problem: the first thing that went wrong.
    """

    id: str
    load: Load
    url: str
    began: str
    updated: str
    state: State = "running"
    ran: float = 0.0
    offered: int = 0
    answered: int = 0
    errors: dict[str, int] = {}
    omitted: int = 0
    late: int = 0
    latency: dict[str, float] = {}
    service: dict[str, float] = {}
    curve: list[tuple[float, float]] = []
    histogram: str = ""
    moments: list[Moment] = []
    variants: dict[str, int] = {}
    processors: int = 0
    problem: str | None = None

    @property
    def failed(self) -> int:
        """Requests that were sent and not answered well, or could not even be sent."""
        return sum(self.errors.values())


class Recorder:
    """Counts what comes of requests.

    Latency is that of requests that were answered well, and of those that waited in vain for as long as
    anybody waits. Those that failed at once would make a broken service look fast.
    """

    def __init__(self, load: Load, url: str, id_: str | None = None) -> None:
        """Begin a run.

        Args:
            load: what is offered.
            url: of the target.
            id_: of the run, where it has one already.
        """
        now = datetime.now(UTC)
        self.run = Run(
            id=id_ or f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}",
            load=load,
            url=url,
            began=_stamp(now),
            updated=_stamp(now),
            processors=os.cpu_count() or 0,
        )
        self._step = max(1.0, load.seconds / MOMENTS)
        self._latency, self._service = _histogram(), _histogram()
        self._moments: dict[int, _Stretch] = {}
        self._offered: Counter[int] = Counter()
        self._achieved: Counter[int] = Counter()
        self._errors: dict[int, Counter[str]] = {}
        self._kinds: Counter[str] = Counter()
        self._variants: Counter[str] = Counter()
        self._late = self._omitted = 0
        self._problem: str | None = None

    def count(self, sent: Sent) -> None:
        """Take note of what came of a request."""
        ended = int((sent.request.at + sent.seconds) / self._step)
        self._offered[int(sent.request.at / self._step)] += 1
        if sent.error == STILL_WAITING:
            self._omitted += 1
            return
        self._late += sent.late > LATE_SECONDS
        if sent.error:
            self._kinds[sent.error] += 1
            self._errors.setdefault(ended, Counter())[sent.error] += 1
            self._problem = self._problem or sent.problem
        else:
            self._achieved[ended] += 1
            self._variants[sent.variant or ""] += 1
        if sent.error in (None, TIMED_OUT):
            self._time(sent, ended)

    def _time(self, sent: Sent, ended: int) -> None:
        taken = min(max(round(1e6 * sent.seconds), LOWEST), HIGHEST)
        left = min(max(round(1e6 * (sent.seconds - sent.late)), LOWEST), HIGHEST)
        # Who waits does not ask: the histogram adds what they would have seen.
        between = round(1e6 * USER_SECONDS) if self.run.load.users else 0
        for histogram in (self._latency, self._moments.setdefault(ended, _Stretch()).histogram):
            histogram.record_corrected_value(taken, between)
        self._service.record_value(left)

    def told(self, seconds: float, state: State = "running", problem: str | None = None) -> Run:
        """What is known after so many seconds."""
        return self.run.model_copy(
            update={
                "updated": _stamp(datetime.now(UTC)),
                "state": state,
                "ran": round(min(seconds, self.run.load.seconds), 3),
                "offered": sum(self._offered.values()),
                "answered": sum(self._achieved.values()),
                "errors": dict(self._kinds.most_common()),
                "omitted": self._omitted,
                "late": self._late,
                "latency": _figures(self._latency),
                "service": _figures(self._service),
                # It takes some milliseconds, in which nothing is sent.
                "curve": _curve(self._latency) if state != "running" else [],
                "histogram": self._latency.encode().decode("ascii"),
                "moments": self._told_moments(),
                "variants": dict(sorted((name, n) for name, n in self._variants.items() if name)),
                "problem": problem or self._problem,
            }
        )

    def _told_moments(self) -> list[Moment]:
        known = (self._offered, self._achieved, self._errors)
        last = max((number for each in known for number in each), default=-1)
        return [
            Moment(
                at=round(number * self._step, 3),
                offered=round(self._offered[number] / self._step, 3),
                achieved=round(self._achieved[number] / self._step, 3),
                errors=dict(self._errors.get(number, {})),
                **self._moments[number].quantiles if number in self._moments else {},
            )
            for number in range(last + 1)
        ]


@dataclass
class _Stretch:
    """The latencies of a moment, whose quantiles are computed anew only where something came."""

    histogram: HdrHistogram = field(default_factory=lambda: HdrHistogram(LOWEST, HIGHEST, FEW_DIGITS))
    _known: tuple[int, dict[str, float]] = (0, {})

    @property
    def quantiles(self) -> dict[str, float]:
        count = self.histogram.get_total_count()
        if self._known[0] != count:
            self._known = count, _quantiles(self.histogram, ("p50", "p95", "p99"))
        return self._known[1]


def measure(
    recorder: Recorder,
    *,
    key: str | None = None,
    stop: threading.Event | None = None,
    on_told: Callable[[Run], None] = lambda _: None,
) -> Run:
    """Run a load test to its end, and return what was measured.

    It ends by itself, GRACE_SECONDS after its last request was due at the latest.

    Args:
        recorder: of the test; its run names target and load.
        key: for a target that asks for one.
        stop: when it is set, no further request is sent.
        on_told: is given the state now and then, and once more at the end.
    """
    load, stop = recorder.run.load, stop or threading.Event()
    sender = Sender(
        recorder.run.url,
        LOAD_TAG,
        key,
        max_in_flight=MAX_UNDER_WAY,
        in_turn=load.users is not None,
        stop=stop,
    )
    on_told(recorder.run)
    began = time.perf_counter()

    async def tell() -> None:
        while True:
            await asyncio.sleep(TELL_SECONDS)
            on_told(recorder.told(time.perf_counter() - began))

    async def send() -> None:
        nonlocal began
        async with asyncio.timeout(load.seconds + GRACE_SECONDS), sender.session() as session:
            await sender.learn_unit_header(session)
            began = time.perf_counter()
            telling = asyncio.create_task(tell())
            try:
                await sender.send(load.plan.requests(), session, recorder.count)
            finally:
                telling.cancel()

    state: State = "finished"
    problem = None
    try:
        asyncio.run(send())
    except TimeoutError:
        state, problem = "broken off", "it did not end in time: this program is too slow for the load"
    seconds = time.perf_counter() - began
    if stop.is_set():
        state = "stopped"
    last = recorder.told(seconds, state, problem)
    on_told(last)
    return last


def _histogram() -> HdrHistogram:
    return HdrHistogram(LOWEST, HIGHEST, DIGITS)


def _figures(histogram: HdrHistogram) -> dict[str, float]:
    """Quantiles and maximum in ms; nothing of an empty histogram."""
    if not histogram.get_total_count():
        return {}
    return {**_quantiles(histogram, tuple(QUANTILES)), "max": histogram.get_max_value() / 1000}


def _quantiles(histogram: HdrHistogram, names: tuple[str, ...]) -> dict[str, float]:
    """Quantiles in ms, by name."""
    found = histogram.get_percentile_to_value_dict([QUANTILES[name] for name in names])
    return {name: found[QUANTILES[name]] / 1000 for name in names}


def _curve(histogram: HdrHistogram) -> list[tuple[float, float]]:
    if not histogram.get_total_count():
        return []
    return [
        (round(each.percentile_level_iterated_to, 6), each.value_iterated_to / 1000)
        for each in histogram.get_percentile_iterator(CURVE_TICKS)
    ]


def _stamp(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
