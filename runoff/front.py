"""The front door of a prediction service: what each request passes before Flask.

- It is counted, timed and, at the level DEBUG, logged.
- Where too many predictions are at work already it is refused at once, with 503 and Retry-After: a queue
  would only make everybody wait.
- `POST /predict` with one plain record is answered here. Flask's dispatch costs several times what the model
  does. Whatever is not such a request goes on to Flask, which answers the same and can say what is wrong.
"""

from __future__ import annotations

import io
import logging
import os
import time
from collections import deque
from collections.abc import Iterable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json
from werkzeug.wsgi import ClosingIterator

from runoff import metrics
from runoff.live import Live
from runoff.problems import Problem, Unavailable
from runoff.web import REQUEST_ID, new_request_id

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

FAST = ("/predict", "/v1/predict")
MAX_FAST_BYTES = 65_536
# Predictions at work at a time in one worker; beyond it callers are told to come back.
MAX_IN_FLIGHT = 32

log = logging.getLogger(__name__)


class Front:
    """WSGI middleware around the prediction app."""

    def __init__(self, app: WSGIApplication, live: Live) -> None:
        self._app = app
        self._live = live
        # Each request at work holds one. A deque gives and takes atomically, for less than a semaphore does.
        self._limit = int(os.environ.get("RUNOFF_MAX_IN_FLIGHT", MAX_IN_FLIGHT))
        self._slots = deque(range(self._limit))
        live.at_each_look = self._tell

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        began = time.perf_counter()
        self._live.watch()

        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            _account(environ, status[:3], headers, began)
            return start_response(status, headers, *more)

        if environ["REQUEST_METHOD"] != "POST":
            return self._app(environ, start)
        try:
            slot = self._slots.pop()
        except IndexError:
            full = "too many predictions are at work already"
            environ["runoff.refused"] = Unavailable(full, headers={"Retry-After": "1"})
            return self._app(environ, start)
        try:
            answer = self._answer(environ)
            if answer is None:
                return ClosingIterator(self._app(environ, start), partial(self._slots.append, slot))
        except BaseException:
            self._slots.append(slot)
            raise
        self._slots.append(slot)
        headers, content = answer
        start("200 OK", headers)
        return [content]

    def _tell(self) -> None:
        """Tell how many are at work. Counting each in and out would cost 4 µs, as much as half a model."""
        metrics.IN_FLIGHT.set(self._limit - len(self._slots))

    def _answer(self, environ: WSGIEnvironment) -> tuple[list[tuple[str, str]], bytes] | None:
        """The answer to one plain record, as Flask would give it; None for anything else."""
        length = environ.get("CONTENT_LENGTH") or ""
        request_id = environ.get("HTTP_X_REQUEST_ID")
        if (
            environ["PATH_INFO"] not in FAST
            or environ.get("CONTENT_TYPE") != "application/json"
            or environ.get("QUERY_STRING")
            or not length.isdecimal()
            or int(length) > MAX_FAST_BYTES
            or (request_id is not None and not REQUEST_ID.fullmatch(request_id))
        ):
            return None
        body = environ["wsgi.input"].read(int(length))
        # Should Flask have to look at it, it finds the body as it came.
        environ["wsgi.input"] = io.BytesIO(body)
        ready = self._live.current
        row = ready.reader.read_json(body) if ready and len(body) == int(length) else None
        if ready is None or row is None:
            return None
        try:
            (probability,), headers = ready.predict(row, seen=True)
        except Problem:
            return None
        environ["runoff.endpoint"] = environ["PATH_INFO"]
        content = b'{"prediction":%b,%b' % (to_json(probability), ready.signature)
        headers += [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(content))),
            ("X-Request-ID", request_id or new_request_id()),
        ]
        if traceparent := environ.get("HTTP_TRACEPARENT"):
            headers.append(("traceparent", traceparent))
        return headers, content


def _account(environ: WSGIEnvironment, status: str, headers: list[tuple[str, str]], began: float) -> None:
    """Count a request that is answered, and log it where that is asked for."""
    seconds = time.perf_counter() - began
    requests, timed = _children(environ.get("runoff.endpoint", "unknown"), status)
    requests.inc()
    timed.observe(seconds)
    if log.isEnabledFor(logging.DEBUG):
        told = dict(headers)
        log.debug(
            "request",
            extra={
                "request_id": told.get("X-Request-ID"),
                "method": environ["REQUEST_METHOD"],
                "path": environ["PATH_INFO"],
                "status": int(status),
                "milliseconds": round(1000 * seconds, 3),
                "model": told.get("X-Model-Name"),
                "version": told.get("X-Model-Version"),
                "traceparent": environ.get("HTTP_TRACEPARENT"),
            },
        )


@cache
def _children(endpoint: str, status: str) -> tuple[Any, Any]:
    return metrics.REQUESTS.labels(endpoint, status), metrics.SECONDS.labels(endpoint)
