"""Callers who come at once share one commit.

The first to come leads: it commits what was put down until then, wakes those whose it was, and lets the first
of those who came meanwhile lead next. A caller who is alone commits by itself: no thread waits for another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")

# Items in one commit: a transaction is not to hold up others for long.
MOST = 200
# How long one waits for others' commits: so long that only who is stuck for good is given up.
PATIENCE_SECONDS = 30.0


class _Entry(Generic[Item]):
    """An item, and the caller who waits until it is done, or is to lead."""

    __slots__ = ("done", "error", "item", "woken")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.done = False
        self.error: Exception | None = None
        self.woken = threading.Lock()
        self.woken.acquire()


class GroupCommit(Generic[Item]):
    """Commits items in groups, by a function that takes a group and says what failed of it."""

    def __init__(self, write: Callable[[Sequence[Item]], Sequence[Exception | None]]) -> None:
        """Make it.

        Args:
            write: commits items, and returns for each None or why it is not committed. It is called by one
                thread at a time. What it raises is told to everybody in the group.
        """
        self._write = write
        self._lock = threading.Lock()
        self._waiting: list[_Entry[Item]] = []
        self._led = False

    def commit(self, item: Item) -> None:
        """Return when an item is committed.

        Raises:
            TimeoutError: whoever leads is stuck; the item is perhaps committed later.
            Exception: what `write` said of it.
        """
        entry = _Entry(item)
        with self._lock:
            self._waiting.append(entry)
            leads, self._led = not self._led, True
        if not leads and not entry.woken.acquire(timeout=PATIENCE_SECONDS):
            with self._lock:
                # Unless it is woken at this very moment, and perhaps is to lead.
                if not entry.woken.acquire(blocking=False):
                    self._waiting = [each for each in self._waiting if each is not entry]
                    raise TimeoutError("those who write are stuck")
        if not entry.done:
            self._lead()
        if entry.error:
            raise entry.error

    def _lead(self) -> None:
        """Commit what waits, from the first on, which is the leader's own."""
        with self._lock:
            group, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
        try:
            errors = self._write([entry.item for entry in group])
        except Exception as error:
            errors = [error] * len(group)
        for entry, failed in zip(group, errors, strict=True):
            entry.error, entry.done = failed, True
        with self._lock:
            self._led = bool(self._waiting)
            for entry in (*group[1:], *self._waiting[:1]):
                entry.woken.release()
