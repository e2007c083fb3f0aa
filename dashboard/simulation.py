"""The classic simulation: a bounded number of queries, sent in the background, one run at a time.

The run lives in the server, so that a tab that is reloaded, and any other tab, finds it again.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field, replace

from traffic.clients import HELD_OUT, KINDS
from traffic.plan import MAX_SEED, TAG, Plan
from traffic.send import Sender, Sent, send_now

MAX_QUERIES = 2000
MAX_CONCURRENCY = 16

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What to send. Numbers beyond the bounds are brought within them."""

    kind: str = HELD_OUT
    queries: int = 100
    concurrency: int = 4
    seed: int = 1

    def bounded(self) -> Order:
        return replace(
            self,
            kind=self.kind if self.kind in KINDS else HELD_OUT,
            queries=min(max(self.queries, 1), MAX_QUERIES),
            concurrency=min(max(self.concurrency, 1), MAX_CONCURRENCY),
            seed=min(max(self.seed, 0), MAX_SEED),
        )


@dataclass(frozen=True)
class Progress:
    """How far the run of an order is. `problem` is the first thing that went wrong."""

    order: Order | None = None
    done: int = 0
    failed: int = 0
    running: bool = False
    stopped: bool = False
    problem: str | None = None


@dataclass
class Simulator:
    """Runs one order at a time against a router."""

    router_url: str
    progress: Progress = field(default_factory=Progress)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    def start(self, order: Order) -> bool:
        """Start a run in the background; false, and nothing is done, while another one runs."""
        order = order.bounded()
        with self._lock:
            if self.progress.running:
                return False
            self.progress = Progress(order, running=True)
            self._stop.clear()
        threading.Thread(target=self._run, args=(order,), name="simulation", daemon=True).start()
        return True

    def stop(self) -> None:
        """Send no further query; those under way are still waited for."""
        self._stop.set()

    def _run(self, order: Order) -> None:
        try:
            plan = Plan.model_validate({"kind": order.kind, "seed": order.seed})
            sender = Sender(
                self.router_url, tag=TAG, max_in_flight=order.concurrency, waits=True, stop=self._stop
            )
            send_now(plan.at_once(order.queries), sender, self._count)
        except Exception as error:
            # Nobody waits for this thread: what ends it must be said on the page.
            log.exception("the simulation broke off")
            self.progress = replace(self.progress, problem=f"the run broke off: {type(error).__name__}")
            self._stop.set()
        finally:
            self.progress = replace(
                self.progress,
                running=False,
                stopped=self._stop.is_set() and self.progress.done < order.queries,
            )

    def _count(self, sent: Sent) -> None:
        self.progress = replace(
            self.progress,
            done=self.progress.done + 1,
            failed=self.progress.failed + (sent.problem is not None),
            problem=self.progress.problem or sent.problem,
        )
