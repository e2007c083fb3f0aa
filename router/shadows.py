"""Shadows: challengers score what the champion answers, off the caller's path.

A request that is in the sample is put into a queue, and threads of their own ask every challenger, the same
requests all of them. The queue is bounded, by rows: where it is full a request, or a piece of a batch, is
shed and counted, and nobody waits.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from prometheus_client import Counter

from runoff import processes

# Rows that wait for their shadows, in one process, and threads that ask.
WAITING = 5_000
THREADS = 4

SHED = Counter("runoff_shadows_shed", "Requests without shadows, since too many rows waited already.")

log = logging.getLogger(__name__)

Job = Callable[[], None]


class Shadows:
    """A queue of work that nobody waits for, and the threads that do it."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Job, int]] = queue.SimpleQueue()
        self._waiting = 0
        self._process: int | None = None
        self._lock = threading.Lock()

    def offer(self, job: Job, rows: int) -> bool:
        """Do something soon, or where too many rows wait already shed it; whether it will be done."""
        with self._lock:
            if self._waiting and self._waiting + rows > WAITING:
                SHED.inc()
                return False
            self._waiting += rows
        self._queue.put((job, rows))
        # Threads would not survive the fork by which a server may have made this process.
        if self._process != processes.number():
            self._begin()
        return True

    def _begin(self) -> None:
        with self._lock:
            if self._process != processes.number():
                for number in range(THREADS):
                    threading.Thread(target=self._work, name=f"shadow-{number}", daemon=True).start()
                self._process = processes.number()

    def _work(self) -> None:
        while True:
            job, rows = self._queue.get()
            with self._lock:
                self._waiting -= rows
            try:
                job()
            except Exception:
                log.exception("a shadow failed")
