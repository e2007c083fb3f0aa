"""Asking a model service: whatever it does, one honest end in bounded time, and never another's answer."""

from __future__ import annotations

import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from router import upstream
from router.upstream import (
    Answer,
    BadGateway,
    GatewayTimeout,
    Limits,
    Outlier,
    RetryBudget,
    Upstream,
    Upstreams,
)
from runoff.problems import Unavailable

# An answer is awaited for this long in these tests; anything beyond a few times that is a hang.
LIMITS = Limits(connect=1.5, first_byte=1.5, total=1.5, failures=1000)
PATIENCE_SECONDS = 60.0
LARGE = 9_000_000

Behave = Callable[["Line"], None]


class Line:
    """A connection to a service of these tests, from the side of the service."""

    def __init__(self, made: socket.socket) -> None:
        self.socket = made
        self.requests = 0
        self.body = b""
        self._file = made.makefile("rb")

    def reads(self) -> bytes:
        """A request, head and body."""
        head = b""
        while line := self._file.readline():
            head += line
            if line == b"\r\n":
                break
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        self.body = self._file.read(int(lengths[0].partition(b":")[2])) if lengths else b""
        self.requests += 1
        return head + self.body

    def says(self, *pieces: bytes, pause: float = 0.0) -> None:
        for piece in pieces:
            self.socket.sendall(piece)
            time.sleep(pause)

    def resets(self) -> None:
        """Hang up with RST instead of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._file.close()
        self.socket.close()


class Service:
    """Somebody's model service, on a plain socket, which behaves as a test tells it to."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.behaves: Behave = answering()
        self.serves: Callable[[socket.socket], object] = self._serve
        self.connections = 0
        self.requests: list[bytes] = []
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lines: list[Line] = []
        scheme = "https" if context else "http"
        self.url = f"{scheme}://localhost:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                made, _ = self._listener.accept()
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.connections += 1
                threading.Thread(target=self.serves, args=(made,), daemon=True).start()

    def _serve(self, made: socket.socket) -> None:
        with suppress(OSError, ValueError):
            line = Line(self._context.wrap_socket(made, server_side=True) if self._context else made)
            self._lines.append(line)
            while request := line.reads():
                self.requests.append(request)
                self.behaves(line)

    def hangs_up(self) -> None:
        """Close all connections, from this side."""
        for line in self._lines:
            with suppress(OSError):
                line.socket.shutdown(socket.SHUT_RDWR)
        self._lines.clear()

    def closes(self) -> None:
        # What waits in accept is woken by it; close alone would not.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hangs_up()


def response(body: bytes = b"{}", *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def answering(*pieces: bytes, pause: float = 0.0, hangs_up: bool = False) -> Behave:
    """Say something to each request."""

    def behave(line: Line) -> None:
        line.says(*(pieces or (response(),)), pause=pause)
        if hangs_up:
            line.socket.shutdown(socket.SHUT_RDWR)

    return behave


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.closes()


@pytest.fixture
def model(service: Service) -> Upstream:
    return Upstream("A", service.url)


def ask(model: Upstream, limits: Limits = LIMITS, body: bytes = b"{}", **headers: str) -> Answer:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return model.ask("/predict", body, {"Content-Type": "application/json"} | sent, limits)


def chunked(*pieces: bytes, headers: str = "") -> bytes:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + headers.encode() + b"\r\n" + chunks + b"0\r\n"
    )


# What is asked, and how it is answered


def test_a_request_is_sent_as_it_came_below_the_services_path(service: Service) -> None:
    model = Upstream("A", f"{service.url}/below/here/")
    body = b'{ "AGE" :34}\n'
    ask(model, body=body, X_Request_ID="one", traceparent="00-ab-cd-01")
    head, _, sent = service.requests[0].partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    assert first == "POST /below/here/predict HTTP/1.1"
    assert sent == body
    host = service.url.removeprefix("http://")
    assert dict(line.split(": ") for line in lines) == {
        "Content-Type": "application/json",
        "X-Request-ID": "one",
        "traceparent": "00-ab-cd-01",
        "Content-Length": str(len(body)),
        "Host": host,
    }


WHOLE = [
    ("in one piece", (response(b'{"a": 1}'),), b'{"a": 1}'),
    ("byte by byte", tuple(bytes([each]) for each in response(b'{"a": 1}')), b'{"a": 1}'),
    ("in chunks", (chunked(b'{"a"', b": 1}") + b"\r\n",), b'{"a": 1}'),
    ("in chunks over many packets", tuple(bytes([b]) for b in chunked(b"{", b"}") + b"\r\n"), b"{}"),
    ("after 100 Continue", (b"HTTP/1.1 100 Continue\r\nX-Interim: yes\r\n\r\n", response(b"{}")), b"{}"),
    ("after 103 in the same packet", (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + response(),), b"{}"),
    ("without a body", (response(b"", status="204 No Content"),), b""),
    ("with trailers", (chunked(b"{}", headers="Trailer: X-After\r\n") + b"X-After: 1\r\n\r\n",), b"{}"),
]


@pytest.mark.parametrize(("pieces", "body"), [case[1:] for case in WHOLE], ids=[case[0] for case in WHOLE])
def test_a_whole_answer_is_taken_however_it_comes_and_its_connection_used_again(
    service: Service, model: Upstream, pieces: tuple[bytes, ...], body: bytes
) -> None:
    service.behaves = answering(*pieces)
    for _ in range(3):
        answer = ask(model)
        assert answer.body == body
        assert not {name.lower() for name, _ in answer.headers} & {"x-interim", "link", "x-after"}
    assert service.connections == 1


@pytest.mark.parametrize(
    "said",
    [
        response(b"{}", "Connection: close"),
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_an_answer_that_ends_the_connection_is_taken_and_the_next_gets_another(
    service: Service, model: Upstream, said: bytes
) -> None:
    service.behaves = answering(said, hangs_up=True)
    assert [ask(model).body for _ in range(3)] == [b"{}"] * 3
    assert service.connections == 3


def test_what_is_said_between_two_hops_is_not_passed_on(service: Service, model: Upstream) -> None:
    headers = ("Connection: keep-alive, X-Hop", "Keep-Alive: timeout=5", "X-Hop: 1", "X-End: 2", "Date: now")
    service.behaves = answering(response(b"{}", *headers))
    assert ask(model).headers == [("X-End", "2")]


def test_errors_of_the_model_pass_byte_for_byte(service: Service, model: Upstream) -> None:
    service.behaves = answering(response(b"{ no }", "Retry-After: 7", status="503 Busy"))
    answer = ask(model)
    assert (answer.status, answer.body, answer.header("retry-after")) == (503, b"{ no }", "7")


def test_an_answer_that_comes_before_all_was_read_is_taken(service: Service, model: Upstream) -> None:
    too_large = response(b"too large", "Connection: close", status="413 Content Too Large")

    def serve(made: socket.socket) -> None:
        made.recv(100)
        made.sendall(too_large)
        made.shutdown(socket.SHUT_WR)
        with suppress(OSError):
            while made.recv(65_536):
                pass

    service.serves = serve
    answer = ask(model, body=b"x" * 20_000_000)
    assert (answer.status, answer.body) == (413, b"too large")


# What is no answer


def dawdle(line: Line) -> None:
    time.sleep(4 * LIMITS.total)
    line.says(response())


def drip(line: Line) -> None:
    line.says(*(bytes([byte]) for byte in response(b"x" * 100)), pause=LIMITS.total / 5)


def reset(line: Line) -> None:
    line.resets()


def reset_midway(line: Line) -> None:
    line.says(response(b"{}", length=50))
    time.sleep(0.05)
    line.resets()


def talk_for_ever(line: Line) -> None:
    """Interim answers, and never the one."""
    while True:
        line.says(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)


def head_for_ever(line: Line) -> None:
    line.says(b"HTTP/1.1 200 OK\r\n")
    while True:
        line.says(b"X-More: " + b"x" * 10_000 + b"\r\n")


def hang_up(line: Line) -> None:
    line.socket.shutdown(socket.SHUT_RDWR)


NO_ANSWERS: list[tuple[str, Behave, type[Exception], str]] = [
    ("never answers", dawdle, GatewayTimeout, "did not answer within 1.5 seconds"),
    ("drips", drip, GatewayTimeout, "did not answer within 1.5 seconds"),
    ("hangs up", hang_up, BadGateway, "hung up"),
    ("resets", reset, BadGateway, "hung up"),
    ("resets midway", reset_midway, BadGateway, "broke off"),
    ("promises more", answering(response(b"{}", length=50), hangs_up=True), BadGateway, "broke off"),
    ("cuts its head", answering(b"HTTP/1.1 200 OK\r\nA: b\r\n", hangs_up=True), BadGateway, "broke off"),
    ("cuts its status", answering(b"HTTP/1.1 20", hangs_up=True), BadGateway, "broke off"),
    ("cuts its chunks", answering(chunked(b"{}")[:-3], hangs_up=True), BadGateway, "broke off"),
    ("100 alone", answering(b"HTTP/1.1 100 Continue\r\n\r\n", hangs_up=True), BadGateway, "broke off"),
    ("100 for ever", talk_for_ever, BadGateway, "too much"),
    ("a head for ever", head_for_ever, BadGateway, "too much"),
    ("nine megabytes", answering(response(b"x" * LARGE)), BadGateway, "too much"),
    ("nine in chunks", answering(chunked(*[b"x" * 9_000] * 1_000)), BadGateway, "too much"),
    ("garbage", answering(b"\x16\x03\x01 hello\r\n\r\n"), BadGateway, "no HTTP"),
    ("garbage in its head", answering(b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n"), BadGateway, "no HTTP"),
    ("bare line feeds", answering(b"HTTP/1.1 200 OK\nContent-Length: 0\n\n"), BadGateway, "no HTTP"),
    ("folded headers", answering(b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n"), BadGateway, "no HTTP"),
    ("no number for a length", answering(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"), BadGateway, "no"),
    ("two lengths", answering(response(b"{}", "Content-Length: 3")), BadGateway, "no HTTP"),
    ("length and chunks", answering(response(b"{}", "Transfer-Encoding: chunked")), BadGateway, "no HTTP"),
    (
        "a broken chunk",
        answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        BadGateway,
        "no HTTP",
    ),
    (
        "a chunk of another length",
        answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nlong\r\n"),
        BadGateway,
        "no HTTP",
    ),
    (
        "another protocol",
        answering(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nx"),
        BadGateway,
        "answered 101",
    ),
]


@pytest.mark.parametrize(
    ("behaves", "problem", "detail"), [case[1:] for case in NO_ANSWERS], ids=[case[0] for case in NO_ANSWERS]
)
def test_what_is_no_answer_is_told_as_such_in_bounded_time_and_never_kept(
    service: Service, model: Upstream, behaves: Behave, problem: type[Exception], detail: str
) -> None:
    service.behaves = behaves
    began = time.monotonic()
    with pytest.raises(problem, match=f"variant A .*{detail}"):
        ask(model)
    assert time.monotonic() - began < PATIENCE_SECONDS
    service.behaves = answering(response(b"the right one"))
    assert ask(model).body == b"the right one"
    assert service.connections == 2


def test_one_that_accepts_and_never_reads_is_given_up(model: Upstream, service: Service) -> None:
    service.serves = lambda _made: time.sleep(PATIENCE_SECONDS)
    began = time.monotonic()
    with pytest.raises(GatewayTimeout):
        ask(model, body=b"x" * 50_000_000)
    assert time.monotonic() - began < PATIENCE_SECONDS


def test_the_first_byte_has_a_time_of_its_own(service: Service, model: Upstream) -> None:
    service.behaves = dawdle
    with pytest.raises(GatewayTimeout, match=r"within 0\.1 seconds"):
        ask(model, Limits(first_byte=0.1, total=60.0))


def test_nobody_there_is_a_502_and_nobody_who_accepts_a_504() -> None:
    with pytest.raises(BadGateway, match="cannot be reached"):
        ask(Upstream("A", "http://127.0.0.1:1"))
    with pytest.raises(BadGateway, match="cannot be reached"):
        ask(Upstream("A", "http://no-such-host.invalid"))
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        with pytest.raises(GatewayTimeout, match="took no connection"):
            ask(Upstream("A", url))
        for each in waiting:
            each.close()


# Never another's answer


EXTRA = [
    ("a second answer at once", (response(b"one") + response(b"two"),)),
    ("a part of one", (response(b"one") + response(b"two")[:20],)),
    ("garbage at once", (response(b"one") + b"garbage",)),
    ("a longer body than it says", (response(b"one and more", length=3),)),
]


@pytest.mark.parametrize("pieces", [case[1] for case in EXTRA], ids=[case[0] for case in EXTRA])
def test_what_follows_an_answer_is_discarded_with_the_connection(
    service: Service, model: Upstream, pieces: tuple[bytes, ...]
) -> None:
    service.behaves = answering(*pieces)
    first = ask(model)
    assert (first.body, len(first.headers)) == (b"one", 0)
    service.behaves = answering(response(b"mine"))
    assert ask(model).body == b"mine"
    assert service.connections == 2


def test_an_answer_that_comes_while_nobody_asks_is_nobodys(service: Service, model: Upstream) -> None:
    said = threading.Event()

    def behave(line: Line) -> None:
        line.says(response(b"one"))
        time.sleep(0.05)
        line.says(response(b"nobody's"))
        said.set()

    service.behaves = behave
    assert ask(model).body == b"one"
    assert said.wait(PATIENCE_SECONDS)
    service.behaves = answering(response(b"mine"))
    assert ask(model).body == b"mine"


def test_the_answer_to_the_request_before_is_known_by_its_id(service: Service, model: Upstream) -> None:
    service.behaves = answering(response(b"one", "X-Request-ID: one"))
    assert ask(model, X_Request_ID="one").body == b"one"
    with pytest.raises(BadGateway, match="answered another request"):
        ask(model, X_Request_ID="two")
    service.behaves = answering(response(b"three", "X-Request-ID: three"))
    assert ask(model, X_Request_ID="three").body == b"three"


def test_many_at_once_get_each_their_own(service: Service, model: Upstream) -> None:
    service.behaves = lambda line: line.says(response(line.body))
    asked = [str(number).encode() for number in range(500)]
    with ThreadPoolExecutor(16) as pool:
        assert [answer.body for answer in pool.map(lambda body: ask(model, body=body), asked)] == asked
    assert service.connections <= 16


# Asked again


def breaking_when_used(breaks: Behave) -> Behave:
    """Answer the first request of each connection, and break at the second, as if it had been idle."""
    return lambda line: breaks(line) if line.requests > 1 else line.says(response())


def test_a_connection_that_was_closed_while_it_was_idle_costs_nobody_an_error(
    service: Service, model: Upstream
) -> None:
    for number in range(5):
        assert ask(model).status == 200
        service.hangs_up()
        # The end of the connection takes a moment to get here.
        time.sleep(0.02 * (number % 2))
    assert len(service.requests) == 5


@pytest.mark.parametrize("breaks", [hang_up, reset])
def test_a_kept_connection_that_breaks_before_any_of_the_answer_is_replaced_once(
    service: Service, model: Upstream, breaks: Behave
) -> None:
    service.behaves = breaking_when_used(breaks)
    assert [ask(model).status for _ in range(3)] == [200] * 3
    assert service.connections == 3


@pytest.mark.parametrize("said", [b"H", response(length=50)])
def test_nothing_is_asked_again_once_an_answer_has_begun(
    service: Service, model: Upstream, said: bytes
) -> None:
    ask(model)
    service.behaves = answering(said, hangs_up=True)
    with pytest.raises(BadGateway, match="broke off"):
        ask(model)
    assert len(service.requests) == 2


def test_nothing_is_asked_again_that_a_new_connection_broke_at(service: Service, model: Upstream) -> None:
    service.behaves = hang_up
    with pytest.raises(BadGateway, match="hung up"):
        ask(model)
    assert len(service.requests) == 1


def test_nothing_is_asked_again_that_was_late(service: Service, model: Upstream) -> None:
    ask(model)
    service.behaves = dawdle
    with pytest.raises(GatewayTimeout):
        ask(model)
    assert len(service.requests) == 2


def test_a_dying_service_is_not_stormed_by_retries(service: Service, model: Upstream) -> None:
    service.behaves = breaking_when_used(hang_up)
    failed = 0
    for _ in range(200):
        try:
            ask(model)
        except BadGateway:
            failed += 1
    # Every second request finds a kept connection, which breaks: a retry for every tenth, and the first few.
    assert len(service.requests) - 200 <= 200 * upstream.RETRY_SHARE + upstream.FREE_RETRIES
    assert failed > 0


def test_the_budget_grows_with_what_is_asked_up_to_a_bound() -> None:
    budget = RetryBudget()
    taken = [budget.take() for _ in range(4)]
    assert taken == [True, True, True, False]
    for _ in range(21):
        budget.asked()
    assert [budget.take() for _ in range(3)] == [True, True, False]
    for _ in range(10_000):
        budget.asked()
    assert sum(budget.take() for _ in range(100)) == upstream.MOST_RETRIES


# Left alone, and shed


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def ejected(clock: Clock) -> Outlier:
    outlier = Outlier(clock)
    for _ in range(5):
        assert outlier.admit(2.0) == 0
        outlier.failed(5)
    return outlier


def test_failures_in_a_row_eject_and_others_do_not() -> None:
    clock = Clock()
    outlier = Outlier(clock)
    for _ in range(100):
        for _ in range(4):
            outlier.failed(5)
        outlier.worked()
    assert outlier.admit(2.0) == 0
    assert 0.8 <= ejected(clock).admit(2.0) <= 1.2


def test_one_request_probes_when_the_time_is_over() -> None:
    clock = Clock()
    outlier = ejected(clock)
    clock.now = 1.2
    assert outlier.admit(2.0) == 0
    assert [outlier.admit(2.0) for _ in range(3)] == [2.0, 2.0, 2.0]
    outlier.worked()
    assert [outlier.admit(2.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    # And all is forgotten: it takes as many failures again.
    for _ in range(4):
        outlier.failed(5)
    assert outlier.admit(2.0) == 0


def test_each_probe_that_fails_doubles_the_time_up_to_a_bound() -> None:
    clock = Clock()
    outlier = ejected(clock)
    for backoff in (1, 2, 4, 8, 16, 30, 30):
        left = outlier.admit(2.0)
        assert 0.8 * backoff <= left <= 1.2 * backoff
        clock.now += left
        assert outlier.admit(2.0) == 0
        outlier.failed(5)


def test_those_who_were_at_work_when_it_was_ejected_make_it_no_longer() -> None:
    clock = Clock()
    outlier = ejected(clock)
    for _ in range(50):
        outlier.failed(5)
    assert outlier.admit(2.0) <= 1.2


def test_a_probe_of_which_nothing_is_heard_is_followed_by_another() -> None:
    clock = Clock()
    outlier = ejected(clock)
    clock.now = 1.2
    assert outlier.admit(2.0) == 0
    clock.now += 2.0
    assert outlier.admit(2.0) == 0


def test_a_service_that_fails_is_left_alone_and_comes_back_by_a_probe(
    service: Service, model: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "BACKOFF_SECONDS", 0.2)
    limits = Limits(total=5.0, failures=3)
    service.behaves = hang_up
    for _ in range(3):
        with pytest.raises(BadGateway):
            ask(model, limits)
    with pytest.raises(Unavailable, match="variant A has failed too often") as raised:
        ask(model, limits)
    assert raised.value.headers == {"Retry-After": "1"}
    assert raised.value.extensions == {"variant": "A"}
    assert len(service.requests) == 3
    service.behaves = answering()
    time.sleep(0.3)
    assert [ask(model, limits).status for _ in range(3)] == [200] * 3


@pytest.mark.parametrize(
    ("said", "fails"),
    [
        (response(status="502 Bad Gateway"), True),
        (response(status="504 Gateway Timeout"), True),
        (response(status="503 Service Unavailable"), True),
        (response(b"{}", "Retry-After: 1", status="503 Service Unavailable"), False),
        (response(status="500 Internal Server Error"), False),
        (response(status="422 Unprocessable Content"), False),
    ],
)
def test_what_a_gateway_says_is_a_failure_and_what_the_service_says_is_an_answer(
    service: Service, model: Upstream, said: bytes, fails: bool
) -> None:
    service.behaves = answering(said)
    ask(model, Limits(failures=1))
    if fails:
        with pytest.raises(Unavailable):
            ask(model, Limits(failures=1))
    else:
        ask(model, Limits(failures=1))


def test_more_than_so_many_at_once_are_refused_at_once_and_the_rest_served(
    service: Service, model: Upstream
) -> None:
    go_on = threading.Event()

    def wait(line: Line) -> None:
        go_on.wait(PATIENCE_SECONDS)
        line.says(response())

    service.behaves = wait
    with ThreadPoolExecutor(upstream.MOST_AT_WORK) as pool:
        served = [
            pool.submit(ask, model, Limits(total=60.0, first_byte=60.0)) for _ in range(upstream.MOST_AT_WORK)
        ]
        while len(service.requests) < upstream.MOST_AT_WORK:
            time.sleep(0.01)
        with pytest.raises(Unavailable, match="too many ask variant A") as raised:
            ask(model)
        assert raised.value.headers == {"Retry-After": "1"}
        go_on.set()
        assert {each.result().status for each in served} == {200}
    assert ask(model).status == 200


def test_a_request_that_is_shed_is_not_the_one_that_probes(model: Upstream) -> None:
    model.outlier.failed(1)
    model.outlier._until = 0.0
    places, model._places = model._places, type(model._places)()
    with pytest.raises(Unavailable, match="too many"):
        ask(model)
    model._places = places
    assert ask(model).status == 200


# Names, and the registry


def test_the_name_of_a_model_is_asked_for_once(service: Service, model: Upstream) -> None:
    service.behaves = answering(response(b'{"models": ["their-model", "another"]}'))
    assert [model.model(None, LIMITS) for _ in range(3)] == ["their-model"] * 3
    assert model.model("declared", LIMITS) == "declared"
    [request] = service.requests
    assert request.startswith(b"GET /v1/models HTTP/1.1\r\n")


@pytest.mark.parametrize("said", [b"[]", b'{"models": []}', b"no JSON", b'{"models": null}'])
def test_a_service_that_does_not_tell_the_name_of_its_model_is_a_502(
    service: Service, model: Upstream, said: bytes
) -> None:
    service.behaves = answering(response(said))
    with pytest.raises(BadGateway, match="does not tell the name of its model"):
        model.model(None, LIMITS)


def test_a_service_keeps_its_connections_as_long_as_its_name_and_url_stay() -> None:
    known = Upstreams()
    assert known.of("A", "http://h:1") is known.of("A", "http://h:1")
    assert known.of("A", "http://h:1") is not known.of("A", "http://h:2")


# Behind TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate that signs itself, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed, which makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = (
        "openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 2 -subj /CN=localhost"
    )
    more: list[str | Path] = ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run([*command.split(), *more], check=True, capture_output=True)
    return certificate, key


@pytest.fixture
def secured(certificate: tuple[Path, Path]) -> Iterator[Service]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    made = Service(context)
    yield made
    made.closes()


def test_behind_tls_the_same_connection_serves_again(
    secured: Service, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    model = Upstream("A", secured.url)
    body = b"x" * 300_000
    assert [ask(model, body=body).body for _ in range(5)] == [b"{}"] * 5
    assert secured.connections == 1
    assert secured.requests[4].endswith(body)


def test_a_certificate_that_nobody_vouches_for_is_refused(secured: Service) -> None:
    with pytest.raises(BadGateway, match="cannot be reached over TLS"):
        ask(Upstream("A", secured.url))
    assert secured.requests == []


@pytest.mark.parametrize(
    ("behaves", "problem", "detail"),
    [
        (dawdle, GatewayTimeout, "did not answer"),
        (drip, GatewayTimeout, "did not answer"),
        (answering(response(length=50), hangs_up=True), BadGateway, "broke off"),
        (reset_midway, BadGateway, "broke off"),
        (answering(b"garbage\r\n\r\n"), BadGateway, "no HTTP"),
    ],
)
def test_behind_tls_what_is_no_answer_is_told_in_bounded_time(
    secured: Service,
    certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    behaves: Behave,
    problem: type[Exception],
    detail: str,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    model = Upstream("A", secured.url)
    secured.behaves = behaves
    began = time.monotonic()
    with pytest.raises(problem, match=detail):
        ask(model)
    assert time.monotonic() - began < PATIENCE_SECONDS
    secured.behaves = answering(response(b"mine"))
    assert ask(model).body == b"mine"


def test_behind_tls_a_connection_that_was_closed_while_it_was_idle_costs_nobody_an_error(
    secured: Service, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    model = Upstream("A", secured.url)
    for _ in range(3):
        assert ask(model).status == 200
        secured.hangs_up()
        time.sleep(0.02)


def test_one_that_never_shakes_hands_is_given_up(service: Service) -> None:
    service.serves = lambda _made: time.sleep(PATIENCE_SECONDS)
    began = time.monotonic()
    with pytest.raises(GatewayTimeout, match="took no connection"):
        ask(Upstream("A", service.url.replace("http:", "https:")))
    assert time.monotonic() - began < PATIENCE_SECONDS
