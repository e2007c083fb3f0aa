"""Asking a model service, with a bounded wait."""

from __future__ import annotations

import builtins
import json
import math
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import urllib3
from urllib3.exceptions import ConnectTimeoutError, HTTPError, MaxRetryError, NewConnectionError, TimeoutError

from router.experiment import Variant
from runoff.problems import Problem

CONNECT_SECONDS = 1.0
# A model answers a few numbers for each row that it was sent.
MAX_ANSWER_BYTES = 8_000_000
CHUNK_BYTES = 65_536

# Headers of the model's answer that reach the caller.
PASSED_HEADERS = ("Content-Type", "X-Model-Name", "X-Model-Version", "X-Model-Digest", "Retry-After")


class UpstreamProblem(Problem):
    """A model could not be asked, or did not answer as it should."""


class BadGateway(UpstreamProblem):
    status: ClassVar[int] = 502
    slug: ClassVar[str] = "model-unreachable"
    title: ClassVar[str] = "The model did not give a usable answer"


class GatewayTimeout(UpstreamProblem):
    status: ClassVar[int] = 504
    slug: ClassVar[str] = "model-timeout"
    title: ClassVar[str] = "The model did not answer in time"


@dataclass(frozen=True)
class Answer:
    """What a model service answered, byte for byte, and what the record needs of it.

    `predictions` holds one probability for each row that was asked for, and is empty where the model
    refused the request or failed.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    predictions: tuple[float, ...]
    model: str | None
    version: str | None


class _Deadline(threading.local):
    """Until when the exchange that this thread is at may last, on the monotonic clock."""

    at = math.inf

    def remaining(self) -> float:
        """Seconds left; a TimeoutError where none are."""
        seconds = self.at - time.monotonic()
        if seconds <= 0:
            raise builtins.TimeoutError("the deadline of the exchange has passed")
        return seconds


_deadline = _Deadline()


class _Socket(socket.socket):
    """A socket whose every read must end by the deadline of the exchange.

    A timeout bounds one read alone: a service that drips a byte of its headers at a time outlasts it.
    """

    def recv_into(self, *arguments: Any) -> int:
        self.settimeout(_deadline.remaining())
        return super().recv_into(*arguments)


class _Connection(urllib3.connection.HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _Socket(fileno=super()._new_conn().detach())


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class Upstream:
    """Keep-alive connections to the model services."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout = timeout_seconds
        self._pool = urllib3.PoolManager(num_pools=32, maxsize=32, retries=False)
        self._pool.pool_classes_by_scheme = {**self._pool.pool_classes_by_scheme, "http": _Pool}

    def ask(self, variant: Variant, body: bytes, *, rows: int, headers: dict[str, str]) -> Answer:
        """Forward a request to a variant.

        Args:
            variant: whose service is asked.
            body: the JSON body, as it came.
            rows: how many predictions the answer must hold.
            headers: what is sent along.

        Raises:
            BadGateway: no connection, a broken answer, or one without the predictions.
            GatewayTimeout: no whole answer within the experiment's timeout.
        """
        _deadline.at = time.monotonic() + self._timeout
        try:
            response = self._pool.request(
                "POST",
                f"{variant.url}/predict",
                body=body,
                headers={"Content-Type": "application/json", **headers},
                timeout=urllib3.Timeout(connect=min(CONNECT_SECONDS, self._timeout), read=self._timeout),
                redirect=False,
                preload_content=False,
            )
            content = self._read(response, variant)
        except (NewConnectionError, ConnectTimeoutError, MaxRetryError) as error:
            raise BadGateway(f"variant {variant.name} cannot be reached", variant=variant.name) from error
        except (TimeoutError, builtins.TimeoutError) as error:
            raise self._too_slow(variant) from error
        except HTTPError as error:
            raise BadGateway(f"variant {variant.name} broke off its answer", variant=variant.name) from error
        return _understand(variant, response, content, rows)

    def _read(self, response: urllib3.BaseHTTPResponse, variant: Variant) -> bytes:
        """Read the answer piece by piece, so that neither its length nor its time goes out of bounds."""
        content = bytearray()
        try:
            while piece := response.read1(CHUNK_BYTES):
                content += piece
                # Behind TLS the socket is another, whose timeout bounds one read alone.
                _deadline.remaining()
                if len(content) > MAX_ANSWER_BYTES:
                    raise BadGateway(f"variant {variant.name} answered too much", variant=variant.name)
        except BaseException:
            response.close()
            raise
        response.release_conn()
        return bytes(content)

    def _too_slow(self, variant: Variant) -> GatewayTimeout:
        detail = f"variant {variant.name} did not answer within {self._timeout:g} seconds"
        return GatewayTimeout(detail, variant=variant.name)


def _understand(variant: Variant, response: urllib3.BaseHTTPResponse, content: bytes, rows: int) -> Answer:
    answered: dict[str, Any] = {}
    predictions: tuple[float, ...] = ()
    if response.status == 200:  # noqa: PLR2004
        try:
            answered = json.loads(content)
            predictions = _predictions(answered)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise BadGateway(
                f"variant {variant.name} answered something that is no prediction", variant=variant.name
            ) from None
        if len(predictions) != rows:
            raise BadGateway(
                f"variant {variant.name} answered {len(predictions)} predictions for {rows} rows",
                variant=variant.name,
            )
    elif response.status < 400:  # noqa: PLR2004
        raise BadGateway(f"variant {variant.name} answered {response.status}", variant=variant.name)
    headers = {name: response.headers[name] for name in PASSED_HEADERS if name in response.headers}
    return Answer(
        status=response.status,
        headers=headers,
        body=content,
        predictions=predictions,
        model=headers.get("X-Model-Name") or answered.get("model"),
        version=headers.get("X-Model-Version") or answered.get("version"),
    )


def _predictions(answered: dict[str, Any]) -> tuple[float, ...]:
    """The probabilities in an answer: ours for a record, ours for records, or vetiver's."""
    if "prediction" in answered:
        found = [answered["prediction"]]
    else:
        found = answered["predictions"] if "predictions" in answered else answered["predict"]
    numbers = tuple(float(each) for each in found)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("a prediction is not finite")
    return numbers
