"""Asking a model service over HTTP/1.1, with bounded waits, and as little work as possible.

Sockets are ours, and parsing is httptools', which is Node's llhttp: of all clients that were measured this
costs least (`docs/decisions/0014-forwarding.md`). Connections are kept, and used by one exchange at a time.
One whose answer was not whole, or was followed by anything, is never used again, so that no answer can be
taken for another request's.

Life of an exchange: `ask` waits for its place, is refused where the service is ejected, takes a connection or
makes one, sends, receives, understands what came, and gives the connection back.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import urlsplit

import httptools

from runoff.problems import Problem, Unavailable

# A model answers a few numbers for each row that it was sent.
MAX_ANSWER_BYTES = 8_000_000
MAX_HEADER_BYTES = 65_536
CHUNK_BYTES = 65_536
# Connections that are kept for the next exchange; and for how long, since services close them by themselves.
KEPT, KEPT_SECONDS = 64, 50.0
# Exchanges with one service at a time, in one process: more would wait in its queue, where nobody sees them.
MOST_AT_WORK = 64
# For how long a service that fails is left alone: doubling, with a random part, so that not all processes
# come back at once.
BACKOFF_SECONDS, MOST_BACKOFF_SECONDS = 1.0, 30.0
# A retry for every ten requests, and a few for those who have just begun.
RETRY_SHARE, FREE_RETRIES = 0.1, 3.0

# RFC 9110, section 7.6.1: what is said between two hops, and not passed on; a length is said anew.
HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
        *("content-length", "date", "server"),
    }
)

Headers = list[tuple[str, str]]


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
    """What a model service answered: its status, its end-to-end headers, its body byte for byte."""

    status: int
    headers: Headers
    body: bytes

    def header(self, name: str) -> str | None:
        """The first header of a name, which is written in lower case."""
        return next((value for key, value in self.headers if key.lower() == name), None)


@dataclass(frozen=True)
class Limits:
    """What is borne of a service.

    How long is waited, in seconds: for a connection, for the first byte, for the whole exchange; and how many
    failures in a row, until it is left alone for a while.
    """

    connect: float = 1.0
    first_byte: float = 2.0
    total: float = 2.0
    failures: int = 5


class _Cut(Exception):
    """The other side hung up; `begun` says whether any of the answer had come."""

    def __init__(self, *, begun: bool) -> None:
        super().__init__()
        self.begun = begun


class _TooMuch(Exception):
    """The answer is longer than any answer is."""


class _Exchange:
    """One request and what is received of its answer: httptools calls back into this."""

    __slots__ = ("_parser", "answered", "body", "headers", "keeps", "size", "status")

    def __init__(self) -> None:
        self.headers: Headers = []
        self.body: list[bytes] = []
        self.size = 0
        self.answered = False
        # Whether the connection can be used again.
        self.keeps = False
        self.status = 0
        self._parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        if self.answered:
            # Whatever it is, nobody asked for it.
            self.keeps = False
            return
        self.status = self._parser.get_status_code()
        # An interim answer (1xx) is none; the next one is.
        if self.status >= 200:  # noqa: PLR2004
            self.answered = True
            self.keeps = self._parser.should_keep_alive()
        else:
            self.headers.clear()

    def feed(self, piece: bytes) -> None:
        """Take what was received.

        Raises:
            httptools.HttpParserError: it is no HTTP.
            _TooMuch: it is too long.
        """
        self.size += len(piece)
        if self.size > (MAX_ANSWER_BYTES if self.body else MAX_HEADER_BYTES + CHUNK_BYTES):
            raise _TooMuch
        if self.answered:
            raise httptools.HttpParserError("more than one answer")
        self._parser.feed_data(piece)

    def ended(self) -> bool:
        """Whether the end of the connection was the end of the answer, which had no length."""
        if self.answered or not self.size:
            return self.answered
        named = {name.lower() for name, _ in self.headers}
        # RFC 9112, section 6.3: neither a length nor chunks; then it ends where the connection does.
        self.status = self._parser.get_status_code()
        return bool(named) and not named & {"content-length", "transfer-encoding"}


class _Connection:
    """A connection to a service, for one exchange at a time."""

    __slots__ = ("since", "socket", "used")

    def __init__(self, made: socket.socket) -> None:
        self.socket = made
        self.used = False
        self.since = 0.0

    def exchange(self, request: bytes, first_byte: float, deadline: float) -> _Exchange:
        """Send a request and receive its answer.

        Args:
            request: as HTTP has it.
            first_byte: until when the answer must have begun, on the monotonic clock.
            deadline: until when it must be whole.

        Raises:
            TimeoutError: it was not.
            _Cut: the other side hung up before.
            httptools.HttpParserError, _TooMuch: what came is no answer.
        """
        exchange = _Exchange()
        made = self.socket
        try:
            made.settimeout(_until(deadline))
            made.sendall(request)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError) as error:
            raise _Cut(begun=False) from error
        until = min(first_byte, deadline)
        while not exchange.answered:
            made.settimeout(_until(until))
            try:
                piece = made.recv(CHUNK_BYTES)
            except (ConnectionResetError, ssl.SSLError) as error:
                raise _Cut(begun=exchange.size > 0) from error
            if not piece:
                if exchange.ended():
                    break
                raise _Cut(begun=exchange.size > 0)
            exchange.feed(piece)
            until = deadline
        return exchange

    def is_quiet(self) -> bool:
        """Whether nothing came after the answer: neither more bytes nor the end of the connection."""
        try:
            self.socket.settimeout(0)
            return not self.socket.recv(1) and False
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.close()


def _until(deadline: float) -> float:
    """Seconds left; a TimeoutError where none are."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


class RetryBudget:
    """How often may be asked again: so seldom that a dying service is not stormed."""

    def __init__(self) -> None:
        self._left = FREE_RETRIES

    def asked(self) -> None:
        """Count a request."""
        # Threads may lose one of these to each other: it is a budget, no account.
        self._left = min(self._left + RETRY_SHARE, 10 * FREE_RETRIES)

    def take(self) -> bool:
        """Whether one may ask again."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Outlier:
    """Whether a service is left alone since it has failed too often in a row (a circuit breaker)."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._failures = 0
        self._backoff = 0.0
        self._until = 0.0
        self._probing = False
        self._ejected = False

    def admit(self) -> float:
        """0 where one may ask, else seconds to wait. When they are over, one request may probe."""
        if not self._ejected:
            return 0.0
        with self._lock:
            left = self._until - self._now()
            if left > 0 or self._probing:
                return max(left, 1.0)
            self._probing = True
            return 0.0

    def worked(self) -> None:
        if self._failures:
            with self._lock:
                self._failures, self._backoff = 0, 0.0
                self._ejected = self._probing = False

    def failed(self, most: int) -> None:
        """Count a failure, of which so many in a row are borne."""
        with self._lock:
            self._failures += 1
            self._probing = False
            if self._failures >= most:
                self._ejected = True
                self._backoff = min(max(2 * self._backoff, BACKOFF_SECONDS), MOST_BACKOFF_SECONDS)
                self._until = self._now() + self._backoff * random.uniform(0.8, 1.2)


class Upstream:
    """A model service, as one process asks it."""

    def __init__(self, name: str, url: str) -> None:
        """Make it; no connection is opened before it is needed, so that processes may be forked.

        Args:
            name: of the variant, for those who read what is wrong.
            url: where the service is, perhaps below a path.
        """
        parts = urlsplit(url)
        self.name = name
        self._host = parts.hostname or ""
        self._tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/")
        self._head = f"Host: {parts.netloc.rpartition('@')[2]}\r\n".encode()
        self._idle: deque[_Connection] = deque()
        self._places = deque(range(MOST_AT_WORK))
        self._context: ssl.SSLContext | None = None
        self._model: str | None = None
        self.budget = RetryBudget()
        self.outlier = Outlier()

    def ask(
        self,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        limits: Limits,
        *,
        method: str = "POST",
    ) -> Answer:
        """Forward a request.

        Args:
            path: below the service's URL, with its query.
            body: as it came.
            headers: what is sent along, besides the host and the length.
            limits: how long is waited.
            method: of the request.

        Raises:
            BadGateway: no connection, or something that is no whole answer.
            GatewayTimeout: no whole answer in time.
            Unavailable: the service is left alone for a while, or too many ask it already.
        """
        if seconds := self.outlier.admit():
            raise Unavailable(
                f"variant {self.name} has failed too often in a row, and is left alone for a while",
                variant=self.name,
                headers={"Retry-After": str(max(1, round(seconds)))},
            )
        try:
            place = self._places.pop()
        except IndexError:
            raise Unavailable(
                f"too many ask variant {self.name} already", variant=self.name, headers={"Retry-After": "1"}
            ) from None
        try:
            answer = self._ask(self._request(method, path, body, headers), limits)
        except UpstreamProblem:
            self.outlier.failed(limits.failures)
            raise
        finally:
            self._places.append(place)
        # What a gateway says before a service that is away; its own errors are answers.
        if answer.status in (502, 504):
            self.outlier.failed(limits.failures)
        else:
            self.outlier.worked()
        return answer

    def model(self, declared: str | None, limits: Limits) -> str:
        """The name by which the service knows its model: as declared, or the first that it tells, once.

        Raises:
            UpstreamProblem, Unavailable: it cannot be asked, or does not tell.
        """
        known = declared or self._model
        if known is None:
            answer = self.ask("/v1/models", b"", {}, limits, method="GET")
            try:
                known = self._model = str(json.loads(answer.body)["models"][0])
            except (ValueError, LookupError, TypeError):
                raise self._bad("does not tell the name of its model at /v1/models") from None
        return known

    def _request(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n"
        return b"%b%b\r\n%b" % (head.encode("latin-1"), self._head, body)

    def _ask(self, request: bytes, limits: Limits) -> Answer:
        self.budget.asked()
        now = time.monotonic()
        deadline, first_byte = now + limits.total, now + limits.first_byte
        connection = self._take()
        try:
            while True:
                if connection is None:
                    connection = self._connect(min(deadline, now + limits.connect))
                try:
                    exchange = connection.exchange(request, first_byte, deadline)
                    break
                except _Cut as cut:
                    connection.close()
                    # RFC 9112, section 9.3.1: the service may have closed it while it was idle, and then has
                    # not seen the request. It is asked once more, over a connection that is new.
                    if cut.begun or not connection.used or not self.budget.take():
                        raise self._bad("broke off its answer" if cut.begun else "hung up") from cut
                    connection = None
        except TimeoutError as error:
            if connection:
                connection.close()
            detail = f"variant {self.name} did not answer within {limits.total:g} seconds"
            raise GatewayTimeout(detail, variant=self.name) from error
        except httptools.HttpParserError as error:
            if connection:
                connection.close()
            raise self._bad("answered something that is no HTTP") from error
        except _TooMuch as error:
            if connection:
                connection.close()
            raise self._bad("answered too much") from error
        self._give_back(connection, exchange)
        headers = [(name, value) for name, value in exchange.headers if name.lower() not in HOP_BY_HOP]
        return Answer(exchange.status, headers, b"".join(exchange.body))

    def _take(self) -> _Connection | None:
        """A connection that was kept and is open still, as far as one can see."""
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if time.monotonic() - connection.since < KEPT_SECONDS and connection.is_quiet():
                return connection
            connection.close()
        return None

    def _give_back(self, connection: _Connection, exchange: _Exchange) -> None:
        if exchange.keeps and len(self._idle) < KEPT:
            connection.used, connection.since = True, time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()

    def _connect(self, deadline: float) -> _Connection:
        try:
            made = socket.create_connection((self._host, self._port), _until(deadline))
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls:
                self._context = self._context or ssl.create_default_context()
                made.settimeout(_until(deadline))
                made = self._context.wrap_socket(made, server_hostname=self._host)
        except OSError as error:
            raise self._bad("cannot be reached") from error
        return _Connection(made)

    def _bad(self, what: str) -> BadGateway:
        return BadGateway(f"variant {self.name} {what}", variant=self.name)


class Upstreams:
    """The model services of an experiment, which keep their connections when it changes."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Upstream] = {}

    def of(self, name: str, url: str) -> Upstream:
        """The service of a variant."""
        known = self._known.get((name, url))
        return known or self._known.setdefault((name, url), Upstream(name, url))
