"""The simulation that the live page runs: in the background, one at a time, and within bounds.

It lives in the server, so that a tab that is reloaded, and any other tab, finds it again.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field, replace
from multiprocessing.util import Finalize
from typing import Literal, get_args

import aiohttp

from traffic import faults
from traffic.clients import DRIFTS, HELD_OUT, KINDS
from traffic.faults import FAULTS, Break, CannotBreak
from traffic.plan import MAX_SEED, Plan, Shape
from traffic.simulation import Late, Order, Progress, Simulation

MAX_REQUESTS = 2000
MAX_CONCURRENCY = 16
MAX_RATE = 100
MAX_SECONDS = 3600
MAX_LATE = 600
# How often a router is looked for that does not answer yet.
RETRY_SECONDS = 2.0

# Requests that come as soon as others are answered, or a stream of the traffic's shapes.
REQUESTS = "requests"
Pace = Literal["requests", "steady", "bursts", "ramp"]
NONE = "none"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wish:
    """What somebody asks for by the page's form. What is beyond the bounds is brought within them.

    `late` is after how many seconds outcomes are told in the mean, None for never. Drift and faults begin
    with the first of a number of requests, and at half time of a stream.
    """

    kind: str = HELD_OUT
    pace: str = REQUESTS
    requests: int = 100
    concurrency: int = 4
    rate: int = 10
    seconds: int = 60
    seed: int = 1
    late: int | None = None
    drift: str = NONE
    fault: str = NONE

    def bounded(self) -> Wish:
        return replace(
            self,
            kind=self.kind if self.kind in KINDS else HELD_OUT,
            pace=self.pace if self.pace in get_args(Pace) else REQUESTS,
            requests=min(max(self.requests, 1), MAX_REQUESTS),
            concurrency=min(max(self.concurrency, 1), MAX_CONCURRENCY),
            rate=min(max(self.rate, 1), MAX_RATE),
            seconds=min(max(self.seconds, 1), MAX_SECONDS),
            seed=min(max(self.seed, 0), MAX_SEED),
            late=None if self.late is None else min(max(self.late, 0), MAX_LATE),
            drift=self.drift if self.drift in DRIFTS else NONE,
            fault=self.fault if self.fault in FAULTS else NONE,
        )

    def order(self, challenger: str | None = None, version: int | None = None) -> Order:
        """What is sent for it; `challenger` is the variant that breaks, if one does.

        It breaks where this `version` of the experiment is in force still; None for any.
        """
        it = self.bounded()
        shape = get_args(Shape)
        streams = it.pace in shape
        half = it.seconds / 2 if streams else 0.0
        plan = {
            "kind": it.kind,
            "seed": it.seed,
            "rate": it.rate,
            "seconds": it.seconds,
            "shape": it.pace if streams else "steady",
            "drift": None if it.drift == NONE else it.drift,
            "drift_at": half,
        }
        broken = {"variant": challenger, "fault": it.fault, "at": half, "version": version}
        return Order(
            plan=Plan.model_validate(plan),
            requests=None if streams else it.requests,
            at_once=it.concurrency,
            outcomes=None if it.late is None else Late(mean=it.late),
            broken=None if challenger is None or it.fault == NONE else Break.model_validate(broken),
        )


@dataclass
class Simulator:
    """Runs one simulation at a time against a router.

    Args:
        router_url: of the router.
        key: the dashboard's own at a router that asks for keys. Simulations take the operator's.
    """

    router_url: str
    key: str | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _begun: bool = False
    _now: Simulation | None = None
    _thread: threading.Thread | None = None

    def begin(self) -> None:
        """See from now on, in this process, that nothing is left broken: now, and when the process ends."""
        with self._lock:
            if self._begun:
                return
            self._begun = True
        # Unlike atexit's, it is called in the processes of our server, too, when they are told to end.
        Finalize(None, self.close, exitpriority=1)
        threading.Thread(target=self._mend, name="mending", daemon=True).start()

    def close(self) -> None:
        """Stop, and return when nothing is under way, and what was broken is mended."""
        self.stop()
        if self._thread:
            self._thread.join()

    @property
    def order(self) -> Order | None:
        """What was ordered last; None before the first time."""
        return self._now.order if self._now else None

    @property
    def progress(self) -> Progress:
        """How far that is."""
        return self._now.progress if self._now else Progress()

    def start(self, order: Order, key: str | None = None) -> bool:
        """Start a run in the background; false, and nothing is done, while another one runs."""
        with self._lock:
            if self.progress.running:
                return False
            self._now = Simulation(order, self.router_url, key)
            self._thread = threading.Thread(target=self._now.run, name="simulation", daemon=True)
            self._thread.start()
        return True

    def stop(self) -> None:
        """Send nothing further; what is under way is still waited for."""
        if self._now:
            self._now.stop()

    def _mend(self) -> None:
        """Mend what a dashboard left broken that was killed, as soon as the router answers."""
        while True:
            try:
                for name in faults.mend(self.router_url, self.key):
                    log.warning("variant %s was left broken by a simulation, and is mended", name)
            except CannotBreak as error:
                log.warning("what a simulation may have left broken cannot be mended: %s", error)
            except (aiohttp.ClientError, OSError):
                time.sleep(RETRY_SECONDS)
                continue
            return
