"""The spool: what is to be written waits on this machine's disk while the database is away.

Each process appends to a file of its own, a line for each entry, and holds a lock on it for as long as it
does: so others see whether it lives. A line counts when it is on disk with its end; one that is torn was
never acknowledged. When the database is back whoever comes first takes what has no owner: a file that was
closed, or one whose owner was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from prometheus_client import Counter
from pydantic_core import to_json

from router.entries import Entry, Record, SideAnswer

# Entries that are read, and written to the database, at once.
AT_ONCE = 200

SPOOLED = Counter("runoff_spooled", "Entries of the ledger that were spooled since the database was away.")

log = logging.getLogger(__name__)


class Spool:
    """The files of a folder in which entries wait."""

    def __init__(self, folder: Path) -> None:
        """Make it; the folder is made when it is needed."""
        self.folder = folder
        self._lock = threading.Lock()
        self._file: int | None = None
        self._size = 0

    @property
    def is_open(self) -> bool:
        """Whether this process has a file to append to."""
        return self._file is not None

    def append(self, lines: Sequence[bytes]) -> None:
        """Keep entries, as `line` has them; when this returns they are on disk.

        Raises:
            OSError: they are not; the disk is full, say.
        """
        with self._lock:
            file = self._file = self._open() if self._file is None else self._file
            content = memoryview(b"".join(lines))
            try:
                written = 0
                while written < len(content):
                    written += os.write(file, content[written:])
                os.fsync(file)
            except OSError:
                # Nothing may follow a line that is torn.
                with contextlib.suppress(OSError):
                    os.ftruncate(file, self._size)
                self._close()
                raise
            self._size += written
        SPOOLED.inc(len(lines))

    def close(self) -> None:
        """Append no more to this process's file, and leave it to whoever takes it."""
        with self._lock:
            self._close()

    def take(self, store: Callable[[Sequence[bytes]], None]) -> int:
        """Store what waits in files that have no owner; they are deleted then. Returns how many entries.

        Args:
            store: stores a group of lines for good. What it raises ends this; all of the file is taken again
                another time.
        """
        taken = 0
        for path in sorted(self.folder.glob("*.ndjson")):
            with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Somebody else may have taken it before the lock was ours.
                if os.fstat(file.fileno()).st_nlink:
                    for lines in _groups(file):
                        store(lines)
                        taken += len(lines)
                    path.unlink()
        return taken

    def put_aside(self, line: bytes) -> None:
        """Keep a line that cannot be stored at all, in a file for people to look at."""
        with (self.folder / "refused").open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def _open(self) -> int:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            path = self.folder / f"{os.getpid()}-{secrets.token_hex(4)}.ndjson"
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX)
            # Before the lock was ours somebody may have taken it for one without an owner.
            if os.fstat(file).st_nlink:
                break
            os.close(file)
        self._size = 0
        _sync(self.folder)
        log.warning("the database is away: entries wait in %s", path)
        return file

    def _close(self) -> None:
        if self._file is not None:
            # With it goes the lock.
            os.close(self._file)
            self._file = None


def line(entry: Entry) -> bytes:
    """An entry as a line of JSON; raises ValueError where it cannot be one."""
    return to_json([entry.records, entry.side_answers]) + b"\n"


def entry(line: bytes) -> Entry:
    """The entry of a line; raises ValueError, TypeError where it is none."""
    records, side_answers = json.loads(line)
    return Entry([Record(*values) for values in records], [SideAnswer(*values) for values in side_answers])


def _groups(file: Iterator[bytes]) -> Iterator[list[bytes]]:
    group: list[bytes] = []
    for each in file:
        if each.endswith(b"\n"):
            group.append(each)
        if len(group) == AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _sync(folder: Path) -> None:
    """See that a file's name is on disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
