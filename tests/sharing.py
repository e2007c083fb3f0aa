"""Things that are made once for a whole run, whichever worker of pytest-xdist needs them first."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# The folder of this run. The process that starts the workers makes it; they inherit the variable.
RUN = "RUNOFF_TESTS_RUN"


def folder() -> Path:
    """The folder that all workers of this run share; it is removed when the run ends."""
    return Path(os.environ[RUN])


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a lock file, which the kernel releases whatever becomes of this process."""
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def once(name: str, make: Callable[[Path], object], within: Path | None = None) -> Path:
    """A folder that is made once; a worker that comes second waits until it is there.

    Args:
        name: of the folder.
        make: fills the folder, which is there and empty.
        within: where it lies, for what outlives a run; else it ends with the run.
    """
    place = (within or folder()) / name
    done = place.with_name(f"{name}.made")
    with alone(place.with_name(f"{name}.lock")):
        if not done.exists():
            place.mkdir(exist_ok=True)
            make(place)
            done.touch()
    return place
