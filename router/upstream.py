"""Asking a model service over HTTP/1.1, with bounded waits, and as little work as possible.

Sockets are ours, and parsing is httptools', which is Node's llhttp: of all clients that were measured this
costs least (`docs/decisions/0014-forwarding.md`). Connections are kept, and used by one exchange at a time.
One whose answer was not whole, or was followed by anything, is never used again, so that no answer can be
taken for another request's.

Life of an exchange: `ask` takes one of the places that there are, is refused where the service is left alone,
takes a connection or makes one, sends, receives, and gives connection and place back.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple
from urllib.parse import urlsplit

import httptools

from runoff.problems import Problem, Unavailable

# A model answers a few numbers for each row that it was sent.
MAX_ANSWER_BYTES = 8_000_000
MAX_HEAD_BYTES = 65_536
CHUNK_BYTES = 65_536
# For how long an idle connection is kept: services close theirs by themselves.
KEPT_SECONDS = 8.0
# By how much at most a socket waits too long.
STEP_SECONDS = 1 / 64
# Exchanges with one service at a time, in one process: more would wait in its queue, where nobody sees them.
# It is less than the threads of a process, so that a service that hangs leaves some of them for the others.
MOST_AT_WORK = 48
# For how long a service that fails is left alone: doubling, with a random part, so that not all processes
# come back at once.
BACKOFF_SECONDS, MOST_BACKOFF_SECONDS = 1.0, 30.0
# A retry for every ten requests, and a few for those who have just begun.
RETRY_SHARE, FREE_RETRIES, MOST_RETRIES = 0.1, 3.0, 30.0

OK, UNAVAILABLE = 200, 503
# What a gateway says before a service that is away.
GATEWAYS_SAY = (502, 504)

# RFC 9110, section 7.6.1: what is said between two hops, and not passed on. The length is said anew, and so
# are the date and the server.
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
    """It could not be reached, or its answer is no HTTP."""

    status: ClassVar[int] = 502
    slug: ClassVar[str] = "model-unreachable"
    title: ClassVar[str] = "The model did not give a usable answer"


class GatewayTimeout(UpstreamProblem):
    """It had no whole answer when the time was up."""

    status: ClassVar[int] = 504
    slug: ClassVar[str] = "model-timeout"
    title: ClassVar[str] = "The model did not answer in time"


class Answer(NamedTuple):
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

    How long is waited, in seconds: for a connection, for the first byte, for the whole exchange, which the
    others are a part of; and how many failures in a row, until it is left alone for a while.
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


class _Unusable(Exception):
    """What came is no answer; the message says what the service did."""


class _Exchange:
    """What is received of an answer: httptools calls back into this."""

    __slots__ = ("_in_head", "_parser", "_size", "answered", "body", "headers", "keeps", "status")

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = []
        self.body: list[bytes] = []
        self.answered = False
        # Whether the connection can be used again.
        self.keeps = False
        self._in_head = True
        self._size = 0
        self._parser = httptools.HttpResponseParser(self)

    def on_message_begin(self) -> None:
        if self.answered:
            # Whatever it is, nobody asked for it.
            self.keeps = False

    def on_header(self, name: bytes, value: bytes) -> None:
        # RFC 9110, section 6.5.1: trailers are no headers.
        if self._in_head:
            self.headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        if not self.answered:
            self._in_head = False
            self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if not self.answered:
            self.body.append(body)

    def on_message_complete(self) -> None:
        if self.answered:
            return
        if self.status >= OK:
            self.answered = True
            self.keeps = self._parser.should_keep_alive()
        else:
            # An interim answer (1xx) is none; the next one is.
            self.headers.clear()
            self._in_head = True

    @property
    def begun(self) -> bool:
        """Whether anything was received."""
        return self._size > 0

    def feed(self, piece: bytes) -> None:
        """Take what was received; raises _Unusable where that is no answer."""
        self._size += len(piece)
        if self._size > (MAX_ANSWER_BYTES if self.body else MAX_HEAD_BYTES + CHUNK_BYTES):
            raise _Unusable("answered too much")
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            raise _Unusable(f"answered {self.status}") from None
        except httptools.HttpParserError:
            # RFC 9112, section 6.3: what follows a whole answer may be discarded, and must not be taken for
            # another one.
            if not self.answered:
                raise _Unusable("answered something that is no HTTP") from None
            self.keeps = False

    def end(self) -> None:
        """Take the end of the connection, which ends an answer without a length; raises _Cut for others."""
        # RFC 9112, section 6.3, the last case: neither a length nor chunks.
        if self._in_head or any(
            name.lower() in ("content-length", "transfer-encoding") for name, _ in self.headers
        ):
            raise _Cut(begun=self.begun)
        self.answered = True


class _Connection:
    """A connection to a service, for one exchange at a time."""

    __slots__ = ("_timeout", "last_id", "plain", "since", "socket", "used")

    def __init__(self, made: socket.socket) -> None:
        self.socket = made
        # Python's own timeouts cost two system calls more whenever one sends or receives. TLS needs them.
        self.plain = not isinstance(made, ssl.SSLSocket)
        self._timeout = 0.0
        if self.plain:
            made.settimeout(None)
        self.used = False
        self.since = 0.0
        self.last_id: str | None = None

    def exchange(self, request: bytes, first_byte: float, deadline: float) -> _Exchange:
        """Send a request and receive its answer.

        Args:
            request: as HTTP has it.
            first_byte: until when the answer must have begun, on the monotonic clock.
            deadline: until when it must be whole.

        Raises:
            TimeoutError: it was not.
            _Cut: the other side hung up before.
            _Unusable: what came is no answer.
        """
        exchange = _Exchange()
        made = self.socket
        refused = False
        try:
            rest = memoryview(request)
            while rest:
                self._wait_until(deadline)
                rest = rest[made.send(rest) :]
        except (TimeoutError, BlockingIOError):
            raise TimeoutError from None
        except OSError:
            # RFC 9112, section 9.6: it may have answered before it had read everything, and hung up.
            refused = True
        until = min(first_byte, deadline)
        while not exchange.answered:
            self._wait_until(until)
            try:
                piece = made.recv(CHUNK_BYTES)
            except (TimeoutError, BlockingIOError):
                raise TimeoutError from None
            except OSError as error:
                raise _Cut(begun=exchange.begun) from error
            if piece:
                exchange.feed(piece)
            else:
                exchange.end()
            until = deadline
        if refused:
            exchange.keeps = False
        return exchange

    def _wait_until(self, deadline: float) -> None:
        """Let the next system call wait no longer; a TimeoutError where no time is left."""
        seconds = _until(deadline)
        if not self.plain:
            self.socket.settimeout(seconds)
            return
        # In steps, so that the next exchange finds it as it is to be.
        seconds = math.ceil(seconds / STEP_SECONDS) * STEP_SECONDS
        if seconds != self._timeout:
            self._timeout = seconds
            # As C has it, struct timeval.
            value = struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def is_quiet(self) -> bool:
        """Whether nothing came after the answer: neither more bytes nor the end of the connection."""
        try:
            if self.plain:
                self.socket.recv(1, socket.MSG_DONTWAIT)
            else:
                self.socket.settimeout(0)
                self.socket.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            pass
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
        self._left = min(self._left + RETRY_SHARE, MOST_RETRIES)

    def take(self) -> bool:
        """Whether one may ask again."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Outlier:
    """Whether a service is left alone since it has failed too often in a row (a circuit breaker).

    Closed, everybody asks it. Ejected, nobody does until a time; then one request probes, and what comes of
    that closes it, or ejects it for twice as long.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """Make it closed; `now` is a clock in seconds."""
        self._now = now
        self._lock = threading.Lock()
        self._failures = 0
        self._ejected = self._probing = False
        self._backoff = 0.0
        self._until = 0.0

    def admit(self, probe_seconds: float) -> float:
        """0 where one may ask, else seconds to wait.

        Args:
            probe_seconds: how long whoever asks may take. Should it be the one who probes, the next may when
                that time is over, whatever became of the first.
        """
        if not self._ejected:
            return 0.0
        with self._lock:
            left = self._until - self._now()
            if not self._ejected or left <= 0:
                self._probing, self._until = self._ejected, self._now() + probe_seconds
                return 0.0
            return left

    def worked(self) -> None:
        """Close it."""
        if self._failures:
            with self._lock:
                self._failures, self._backoff = 0, 0.0
                self._ejected = self._probing = False

    def failed(self, most: int) -> None:
        """Count a failure, of which so many in a row are borne."""
        with self._lock:
            # Those who asked before it was ejected say nothing new.
            if self._ejected and not self._probing:
                return
            self._failures += 1
            if self._failures >= most:
                self._ejected, self._probing = True, False
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
        # Of those that are idle the one used last is used next; never more than there are places.
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
            limits: what is borne.
            method: of the request.

        Raises:
            BadGateway: no connection, or something that is no whole answer.
            GatewayTimeout: no whole answer in time.
            Unavailable: the service is left alone for a while, or too many ask it already.
        """
        try:
            place = self._places.pop()
        except IndexError:
            raise self._unavailable(f"too many ask variant {self.name} already", 1.0) from None
        try:
            if seconds := self.outlier.admit(limits.total):
                raise self._unavailable(
                    f"variant {self.name} has failed too often in a row, and is left alone for a while",
                    seconds,
                )
            answer = self._ask(self._request(method, path, body, headers), limits, headers)
        except UpstreamProblem:
            self.outlier.failed(limits.failures)
            raise
        finally:
            self._places.append(place)
        # A service's own errors are answers; and one that says when to come back is there.
        if answer.status in GATEWAYS_SAY or (
            answer.status == UNAVAILABLE and answer.header("retry-after") is None
        ):
            self.outlier.failed(limits.failures)
        else:
            self.outlier.worked()
        return answer

    def model(self, declared: str | None, limits: Limits) -> str:
        """The name by which the service knows its model: as declared, or the first that it tells, asked once.

        Raises:
            UpstreamProblem, Unavailable: it cannot be asked, or does not tell.
        """
        known = declared or self._model
        if known is None:
            answer = self.ask("/v1/models", b"", {}, limits, method="GET")
            try:
                if answer.status != OK:
                    raise ValueError
                known = self._model = str(json.loads(answer.body)["models"][0])
            except (ValueError, LookupError, TypeError):
                raise self._bad("does not tell the name of its model at /v1/models") from None
        return known

    def _request(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n"
        return b"%b%b\r\n%b" % (head.encode("latin-1"), self._head, body)

    def _ask(self, request: bytes, limits: Limits, headers: Mapping[str, str]) -> Answer:
        self.budget.asked()
        now = time.monotonic()
        deadline, first_byte = now + limits.total, now + limits.first_byte
        connection = self._take()
        while True:
            connection = connection or self._connect(min(deadline, now + limits.connect))
            try:
                exchange = connection.exchange(request, first_byte, deadline)
                break
            except _Cut as cut:
                connection.close()
                # RFC 9112, section 9.3.1: the service may have closed it while it was idle, and then has not
                # seen the request. It is asked once more, over a connection that is new.
                if cut.begun or not connection.used or not self.budget.take():
                    raise self._bad("broke off its answer" if cut.begun else "hung up") from cut
                connection = None
            except TimeoutError as error:
                connection.close()
                late = limits.total if time.monotonic() >= deadline else limits.first_byte
                raise self._late(f"did not answer within {late:g} seconds") from error
            except _Unusable as error:
                connection.close()
                raise self._bad(str(error)) from error
        answer = Answer(exchange.status, _end_to_end(exchange.headers), b"".join(exchange.body))
        self._give_back(connection, exchange, headers.get("X-Request-ID"), answer)
        return answer

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

    def _give_back(
        self, connection: _Connection, exchange: _Exchange, request_id: str | None, answer: Answer
    ) -> None:
        """Keep a connection, or close it.

        Raises:
            BadGateway: it answered the request before this one a second time.
        """
        before = connection.last_id
        if before is not None and before != request_id and answer.header("x-request-id") == before:
            connection.close()
            raise self._bad("answered another request")
        if exchange.keeps:
            connection.used, connection.since, connection.last_id = True, time.monotonic(), request_id
            self._idle.append(connection)
        else:
            connection.close()

    def _connect(self, deadline: float) -> _Connection:
        """A new connection, to the first of the host's addresses that takes one.

        Raises:
            BadGateway: none does.
            GatewayTimeout: none did in time.
        """
        made: socket.socket | None = None
        why: OSError | None = None
        try:
            for family, kind, protocol, _, address in socket.getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM
            ):
                made = socket.socket(family, kind, protocol)
                try:
                    made.settimeout(_until(deadline))
                    made.connect(address)
                    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    return _Connection(self._secured(made, deadline))
                except OSError as error:
                    made.close()
                    why = error
        except OSError as error:
            why = error
        if isinstance(why, TimeoutError):
            raise self._late("took no connection in time") from why
        raise self._bad("cannot be reached" + " over TLS" * isinstance(why, ssl.SSLError)) from why

    def _secured(self, made: socket.socket, deadline: float) -> socket.socket:
        """A connection behind TLS, where the URL says so; raises OSError."""
        if not self._tls:
            return made
        # SSL_CERT_FILE names authorities of one's own.
        self._context = self._context or ssl.create_default_context()
        made.settimeout(_until(deadline))
        return self._context.wrap_socket(made, server_hostname=self._host)

    def _bad(self, what: str) -> BadGateway:
        return BadGateway(f"variant {self.name} {what}", variant=self.name)

    def _late(self, what: str) -> GatewayTimeout:
        return GatewayTimeout(f"variant {self.name} {what}", variant=self.name)

    def _unavailable(self, detail: str, seconds: float) -> Unavailable:
        headers = {"Retry-After": str(max(1, math.ceil(seconds)))}
        return Unavailable(detail, variant=self.name, headers=headers)


def _end_to_end(headers: Headers) -> Headers:
    """Without those that are said between two hops: the usual ones, and those that Connection names."""
    dropped: set[str] | frozenset[str] = HOP_BY_HOP
    for name, value in headers:
        if name.lower() == "connection":
            dropped = dropped | {each.strip().lower() for each in value.split(",")}
    return [(name, value) for name, value in headers if name.lower() not in dropped]


class Upstreams:
    """The model services of an experiment, which keep their connections when it changes."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Upstream] = {}

    def of(self, name: str, url: str) -> Upstream:
        """The service of a variant."""
        known = self._known.get((name, url))
        return known or self._known.setdefault((name, url), Upstream(name, url))
