"""Ports that nobody listens on, and that no other test is given."""

from __future__ import annotations

import fcntl
import random
import socket
import tempfile
from pathlib import Path
from typing import IO

# Below those that the kernel gives to connections that go out: one of these would take a port that is free
# now before the service that is to have it has started.
PORTS = range(11_000, 32_000)
# Whoever holds the lock of a port has it until this process ends, in this run and in any other.
LOCKS = Path(tempfile.gettempdir()) / "runoff-test-ports"
_held: list[IO[str]] = []


def free_port() -> int:
    """One that is free now, and that is this process's from now on.

    Raises:
        RuntimeError: all are taken.
    """
    LOCKS.mkdir(exist_ok=True)
    for port in random.sample(PORTS, k=1000):
        file = (LOCKS / str(port)).open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            file.close()
            continue
        _held.append(file)
        return port
    raise RuntimeError("no port is free")
