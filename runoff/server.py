"""Run an app of ours under granian: `python -m runoff.server model_a.app:app --port 8001`.

The apps are ordinary WSGI apps, and any server runs them. This is the one that costs least (a decision page
says how much), set up once for all of them:

- Threads, started as they are needed: the router and the dashboard mostly wait for others, and a slow client
  holds a thread while it sends its body.
- A worker that dies is replaced. At SIGTERM the workers finish what is in flight before they end.
- OMP_NUM_THREADS=1: one row is predicted faster by one thread than a pool of them can be woken.
- One heap for all threads: glibc would keep one for each, and the memory of a batch many times.
- The directory in which workers count for Prometheus is emptied before they start.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import gc
import importlib
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

from granian import Granian
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels

from runoff import logs, processes
from runoff.web import BOUND_TO

# Where prometheus-client lets workers count; it is read when that is imported, and so not imported here.
COUNTS = "PROMETHEUS_MULTIPROC_DIR"
THREADS = 64
M_ARENA_MAX = -8  # as glibc's malloc.h has it
# Connections that wait in the kernel to be accepted, and those that a worker has open at a time.
BACKLOG = 1024
CONNECTIONS = 1024
HEADER_TIMEOUT_MS = 10_000
DRAIN_SECONDS = 10


def serve(target: str, *, host: str, port: int, workers: int, factory: bool = False) -> None:
    """Serve an app until SIGTERM or Ctrl-C.

    Args:
        target: `module:name` of a WSGI app.
        host: the address to listen at.
        port: the port to listen at.
        workers: how many processes.
        factory: whether the name is a function that makes the app.

    Raises:
        SystemExit: another program has the port, and would get a part of the requests.
    """
    if _is_taken(host, port):
        sys.exit(f"port {port} of {host} is taken by another program")
    logs.configure()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ[BOUND_TO] = host
    _share_one_heap()
    default = Path(tempfile.gettempdir()) / f"runoff-{host}-{port}"
    counts = Path(os.environ.setdefault(COUNTS, str(default)))
    counts.mkdir(parents=True, exist_ok=True)
    # Not the directory itself: whoever names one may keep other things there.
    for file in counts.glob("*.db"):
        file.unlink()
    values = importlib.import_module("prometheus_client.values")
    # It looks for a fork at each count.
    setattr(values, "ValueClass", values.MultiProcessValue(processes.number))  # noqa: B010 (mypy: not typed)
    # Loaded before the workers are forked, they share its memory; and what cannot start says so at once.
    sys.path.insert(0, str(Path.cwd()))
    importlib.import_module(target.partition(":")[0])
    gc.freeze()
    # A worker is forked with its parent's handler of SIGTERM. Until it has one of its own it is to end at
    # once: a stop that came so early would be lost, and it be killed when its time to drain is over.
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    Granian(
        target,
        address=host,
        port=port,
        interface=Interfaces.WSGI,
        factory=factory,
        workers=workers,
        blocking_threads=THREADS,
        backlog=BACKLOG,
        backpressure=CONNECTIONS,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=HEADER_TIMEOUT_MS),
        websockets=False,
        respawn_failed_workers=True,
        workers_kill_timeout=DRAIN_SECONDS,
        log_level=LogLevels.error,
        # As all else that is logged, by the handler of the root.
        log_dictconfig={"loggers": {"_granian": {"handlers": []}}},
    ).serve()


def _is_taken(host: str, port: int) -> bool:
    """Whether another program has the port: the sockets of workers would share it, and its callers."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As the workers bind: a port that only waits out its last connections is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _share_one_heap() -> None:
    """Tell glibc what MALLOC_ARENA_MAX=1 would, had it been set before Python began."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def main() -> None:
    """Read the command line, and serve."""
    parser = argparse.ArgumentParser(prog="python -m runoff.server", description="Serve an app of Runoff.")
    parser.add_argument("target", help="the app, as module:name, for instance model_a.app:app")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, required=True, help="port to listen at")
    parser.add_argument(
        "--workers",
        type=int,
        default=int(os.environ.get("WEB_CONCURRENCY") or 2),
        help="processes (default: WEB_CONCURRENCY, else 2)",
    )
    given = parser.parse_args()
    serve(given.target, host=given.host, port=given.port, workers=given.workers)


if __name__ == "__main__":
    main()
