"""Doing something again and again beside the requests, in each process that answers any."""

from __future__ import annotations

import threading
from collections.abc import Callable

from runoff import processes


class Periodic:
    """A function that is called at intervals, in a thread of its own, from the first `begin` on.

    `begin` is called with each request: a server may fork the processes that answer, and a thread would not
    survive that. What the function fails with it has to see to itself.
    """

    def __init__(self, name: str, seconds: float, function: Callable[[], None]) -> None:
        self._name = name
        self._seconds = seconds
        self._function = function
        self._process: int | None = None
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Call the function, and let it be called from now on; in a process that has begun, nothing."""
        if self._process == processes.number():
            return
        with self._lock:
            if self._process != processes.number():
                self._function()
                threading.Thread(target=self._go_on, name=self._name, daemon=True).start()
                self._process = processes.number()

    def _go_on(self) -> None:
        stop = threading.Event()
        while not stop.wait(self._seconds):
            self._function()
