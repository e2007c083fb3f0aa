"""What a service counts, for Prometheus, over all of its workers.

`runoff.server` sets PROMETHEUS_MULTIPROC_DIR before its workers start, and empties that directory: each
worker then counts in files of its own there, and `/metrics` of any of them adds up all. Under a server that
does not set it, a process tells its own counts.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from flask import Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from runoff.operations import describe

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"

REQUESTS = Counter("runoff_requests", "Requests answered, by endpoint and status.", ("endpoint", "status"))
SECONDS = Histogram(
    "runoff_request_seconds",
    "Time from a request's arrival at the app to its answer, in seconds.",
    ("endpoint",),
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
ROWS = Histogram(
    "runoff_batch_rows",
    "Rows predicted at once.",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 100_000),
)
IN_FLIGHT = Gauge(
    "runoff_requests_in_flight",
    "Predictions at work, as each worker saw it within the last half second.",
    multiprocess_mode="livesum",
)
UNSEEN = Counter(
    "runoff_unseen_values", "Values that are allowed and were never seen in training.", ("column",)
)
WORKERS = Gauge(
    "runoff_model_workers",
    "Workers that answer from a version.",
    ("model", "version", "digest", "evaluator"),
    multiprocess_mode="livesum",
)
SELF_TEST_FAILURES = Counter(
    "runoff_self_test_failures",
    "Versions that were to be served and failed their test.",
    ("service", "version"),
)


@describe(media_type="text/plain", answer=str)
def exposition() -> Response:
    """All counts in Prometheus' text format, https://prometheus.io/docs/instrumenting/exposition_formats/."""
    directory = os.environ.get(DIRECTORY)
    registry = REGISTRY
    if directory:
        _forget_the_dead(Path(directory))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, directory)
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def _forget_the_dead(directory: Path) -> None:
    """Drop the gauges of workers that are gone, however they went; what they have counted stays."""
    for pid in {path.stem.rpartition("_")[2] for path in directory.glob("gauge_live*_*.db")}:
        if not _lives(int(pid)):
            # Another worker may be at it, too.
            with contextlib.suppress(FileNotFoundError):
                mark_process_dead(pid)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
