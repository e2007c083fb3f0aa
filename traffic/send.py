"""How requests are sent: a number at a time, each with a bounded wait, and none lost without a word."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import urllib3

TIMEOUT = urllib3.Timeout(connect=2.0, read=10.0)


@dataclass(frozen=True)
class Sent:
    """What came of one request; `status` is 0 where no answer came, and `problem` says why.

    `seconds` is the time from sending to the whole answer.
    """

    status: int
    seconds: float
    request_id: str | None = None
    variant: str | None = None
    version: str | None = None
    prediction: float | None = None
    problem: str | None = None


def send(
    records: Iterable[dict[str, Any]],
    router_url: str,
    *,
    concurrency: int,
    tag: str | None,
    stop: threading.Event | None = None,
) -> Iterator[Sent]:
    """Send records to the router, at most `concurrency` at a time; yield what came of each as it comes.

    Args:
        records: drawn one by one, as there is room to send them.
        router_url: without a path.
        concurrency: how many requests are under way at once.
        tag: names simulated traffic in the record; None for real traffic.
        stop: when it is set, no further request is sent; those under way are still yielded.
    """
    http = urllib3.PoolManager(retries=False, maxsize=concurrency, timeout=TIMEOUT)
    headers = {"Content-Type": "application/json"} | ({"X-Traffic-Tag": tag} if tag else {})

    def ask(record: dict[str, Any]) -> Sent:
        return _ask(http, f"{router_url}/predict", json.dumps(record).encode(), headers)

    with ThreadPoolExecutor(concurrency) as pool:
        under_way: set[Future[Sent]] = set()
        for record in records:
            if stop and stop.is_set():
                break
            under_way.add(pool.submit(ask, record))
            if len(under_way) == concurrency:
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                yield from (each.result() for each in done)
        while under_way:
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            yield from (each.result() for each in done)


def _ask(http: urllib3.PoolManager, url: str, body: bytes, headers: dict[str, str]) -> Sent:
    began = time.perf_counter()
    try:
        response = http.request("POST", url, body=body, headers=headers)
    except urllib3.exceptions.HTTPError as error:
        return Sent(0, time.perf_counter() - began, problem=f"the router did not answer: {_reason(error)}")
    seconds = time.perf_counter() - began
    try:
        answer = json.loads(response.data)
        prediction, detail = answer.get("prediction"), answer.get("detail")
    except (ValueError, AttributeError):
        prediction, detail = None, None
    return Sent(
        status=response.status,
        seconds=seconds,
        request_id=response.headers.get("X-Request-ID"),
        variant=response.headers.get("X-Variant"),
        version=response.headers.get("X-Model-Version"),
        prediction=prediction,
        problem=None if response.status == 200 else detail or f"status {response.status}",  # noqa: PLR2004
    )


def _reason(error: urllib3.exceptions.HTTPError) -> str:
    if isinstance(error, urllib3.exceptions.NewConnectionError):  # which is a TimeoutError, too
        return "no connection"
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "no answer in time"
    return "the connection broke"
