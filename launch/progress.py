"""How the launcher talks: bars where somebody watches a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from runoff.processes import INTERRUPTED

# Plain progress speaks this many times, so that a log stays short.
PLAIN_STEPS = 4

# Takes how many are done.
Advance = Callable[[int], None]


class Voice:
    """Says what the launcher does, on standard output."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self._bars = self.console.is_terminal and not os.environ.get("NO_COLOR")

    def say(self, text: str = "") -> None:
        self.console.print(text, markup=False)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Advance]:
        """Show how far a step is; yields a function that takes the count done so far."""
        if not self._bars:
            self.say(f"{what} …")
            yield self._plain(what, total)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as bars:
            task = bars.add_task(what, total=total)
            yield lambda done: bars.update(task, completed=done)

    def _plain(self, what: str, total: int) -> Advance:
        step = max(1, total // PLAIN_STEPS)
        said = 0

        def advance(done: int) -> None:
            nonlocal said
            if done > said and (done % step == 0 or done == total):
                said = done
                self.say(f"{what}: {done} of {total}")

        return advance


def stopped(voice: Voice, *, smoke: bool) -> int:
    """Say that it stops since somebody wants it to, and return the exit code of that."""
    voice.say("\nStopping …")
    return INTERRUPTED if smoke else 0
