"""What stands between a prediction service and the world: limits, draining, counts, and broken requests."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.house import PATIENCE_SECONDS, House, Reply, Visitor, running, until


@pytest.fixture(scope="module")
def service(board: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Model A alone, with two workers, whose log tells each request."""
    with running(tmp_path_factory.mktemp("front"), board, "model_a", RUNOFF_LOG_LEVEL="DEBUG") as house:
        yield house


def dial(visitor: Visitor) -> socket.socket:
    address = urlsplit(visitor.url)
    return socket.create_connection((str(address.hostname), address.port or 80), timeout=PATIENCE_SECONDS)


def request_of(body: bytes, *headers: str, path: str = "/predict") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side hangs up."""
    received = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(65_536):
            received += piece
    return received


def told_by(connection: socket.socket) -> HTTPResponse:
    """The next answer of a connection."""
    answer = HTTPResponse(connection)
    answer.begin()
    answer.read()
    return answer


def counted(visitor: Visitor, pattern: str) -> float:
    """The sum of the counts whose line begins with a pattern, over all workers."""
    text = visitor.gets("/metrics").body.decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(pattern, line))


def server_of(visitor: Visitor) -> psutil.Process:
    """The process that listens at a visitor's address, and has the workers."""
    port = str(urlsplit(visitor.url).port)
    [server] = [each for each in psutil.Process().children() if port in each.cmdline()]
    return server


def all_answered(visitor: Visitor, client: dict[str, int]) -> bool:
    """Whether twenty callers, each over a connection of its own, are answered."""
    return {Visitor(visitor.url).asks(client).status for _ in range(20)} == {200}


def test_what_is_answered_ahead_of_flask_is_what_flask_answers(
    service: House, clients: list[dict[str, int]]
) -> None:
    for client in clients[:50]:
        ahead, behind = ahead_and_behind(service, json.dumps(client).encode())
        assert ahead.status == 200
        assert (ahead.status, ahead.body) == (behind.status, behind.body)
        assert named(ahead) == named(behind)
        assert (ahead.headers["X-Request-ID"], ahead.headers["traceparent"]) == ("one", "00-ab-cd-01")


ODD_VALUES = {
    "AGE": ["33.0", "3.3e1", "330E-1", "33.5", "033", "+33", "0x21", "true", '"33"', "null", "119", "120000"],
    "SEX": ["1.0", "true", "0", "3", "-1", "[1]", "99999999999999999999999"],
    "PAY_0": ["-0", "-0.0", "0.0", "-2", "0.00000000000000000001", "NaN"],
    "BILL_AMT1": ["1e400", "-Infinity", "9007199254740993", "-9223372036854775809", "1" * 5000, "1.", "{}"],
}


def odd_bodies(client: dict[str, int]) -> Iterator[bytes]:
    """A client written in ways that are rare, or wrong."""
    text = json.dumps(client)
    for column, values in ODD_VALUES.items():
        for value in values:
            yield text.replace(f'"{column}": {client[column]}', f'"{column}": {value}').encode()
    yield json.dumps(client, indent=1).encode()
    yield json.dumps(dict(reversed(client.items()))).encode()
    yield text.replace('"AGE"', '"\\u0041GE"').encode()
    yield text.replace("{", '{"AGE": 99, ', 1).encode()
    yield text.replace("{", '{"AGE": "x", ', 1).encode()
    yield text.replace("}", ', "AGE": null}').encode()
    yield text.replace("}", ', "ID": 1}').encode()
    yield text.replace("}", ",}").encode()
    yield from (text.encode() + more for more in (b"x", b"\0", b"\n\n", text.encode()))
    yield from (
        text.encode("utf-16"),
        text.encode("utf-8-sig"),
        text[:-1].encode(),
        b"",
        b"[]",
        b"{}",
        b"\xff",
    )


def test_what_is_odd_or_wrong_is_answered_ahead_of_flask_as_flask_does(
    service: House, client: dict[str, int]
) -> None:
    statuses: Counter[int] = Counter()
    for body in odd_bodies(client):
        ahead, behind = ahead_and_behind(service, body)
        assert (ahead.status, ahead.body, named(ahead)) == (behind.status, behind.body, named(behind)), body
        statuses[ahead.status] += 1
    assert statuses.keys() == {200, 400, 422}


def ahead_and_behind(service: House, body: bytes) -> tuple[Reply, Reply]:
    """The answer to what may be answered ahead of Flask, and to the same with what only Flask looks at."""
    sent = {"X_Request_ID": "one", "traceparent": "00-ab-cd-01"}
    by_flask = service.model_a.sends(body, Content_Type="application/json; charset=utf-8", **sent)
    return service.model_a.sends(body, **sent), by_flask


def named(reply: Reply) -> dict[str, str]:
    """The headers of a reply that say something of it."""
    return {name.lower(): value for name, value in reply.headers.items() if name.lower() != "date"}


def test_a_value_that_training_never_saw_is_answered_marked_and_counted(
    service: House, client: dict[str, int]
) -> None:
    before = counted(service.model_a, r'runoff_unseen_values_total\{column="AGE"\}')
    reply = service.model_a.asks(client | {"AGE": 119})
    assert reply.status == 200
    assert reply.headers["X-Unseen-Values"] == "AGE;rows=1"
    assert "X-Unseen-Values" not in service.model_a.asks(client).headers
    assert counted(service.model_a, r'runoff_unseen_values_total\{column="AGE"\}') == before + 1


def test_every_request_is_counted_once_over_all_workers_and_in_the_log(
    service: House, clients: list[dict[str, int]]
) -> None:
    of_predict = r'runoff_requests_total\{endpoint="/predict",status="200"\}'
    before = counted(service.model_a, of_predict)
    with ThreadPoolExecutor(8) as pool:
        replies = list(
            pool.map(
                lambda client: Visitor(service.model_a.url).asks(client, traceparent="00-ef-01-01"), clients
            )
        )
    assert {reply.status for reply in replies} == {200}
    # A worker writes its counts down before it answers.
    assert counted(service.model_a, of_predict) == before + len(clients)
    until(lambda: counted(service.model_a, "runoff_requests_in_flight ") == 0, "none is at work any more")
    log = service.var / "log" / "model_a.log"
    wanted = {reply.headers["X-Request-ID"] for reply in replies}
    until(lambda: all(each in log.read_text() for each in wanted), "each request is in the log")
    told = [json.loads(line) for line in log.read_text().splitlines()]
    mine = [line for line in told if line.get("request_id") in wanted]
    assert len(mine) == len(clients)
    assert {(line["event"], line["path"], line["status"]) for line in mine} == {("request", "/predict", 200)}
    assert {line["traceparent"] for line in mine} == {"00-ef-01-01"}
    assert {line["version"] for line in mine} == {reply.headers["X-Model-Version"] for reply in replies}


def test_a_worker_that_was_killed_is_replaced_and_its_gauges_go_with_it(
    board: Path, tmp_path: Path, client: dict[str, int]
) -> None:
    with running(tmp_path, board, "model_a") as house:
        assert all_answered(house.model_a, client)
        server = server_of(house.model_a)
        workers = server.children()
        assert len(workers) == 2
        os.kill(workers[0].pid, signal.SIGKILL)
        until(
            lambda: (
                {each.pid for each in server.children()}.isdisjoint({workers[0].pid})
                and len(server.children()) == 2
            ),
            "the worker is replaced",
        )
        assert all_answered(house.model_a, client)
        assert 1 <= counted(house.model_a, "runoff_model_workers") <= 2
        files = [path.name for path in (tmp_path / "metrics" / "model_a").glob("gauge_live*")]
        assert not any(str(workers[0].pid) in name for name in files)
    with running(tmp_path, board, "model_a") as house:
        assert counted(house.model_a, r'runoff_requests_total\{endpoint="/predict"') == 0, (
            "who starts begins to count anew"
        )


def test_who_comes_when_too_many_are_at_work_is_told_so_at_once(
    board: Path, tmp_path: Path, client: dict[str, int]
) -> None:
    with running(tmp_path, board, "model_a", RUNOFF_MAX_IN_FLIGHT="1", WEB_CONCURRENCY="1") as house:
        body = json.dumps(client).encode()
        with closing(dial(house.model_a)) as slow:
            slow.sendall(request_of(body[:10], f"Content-Length: {len(body)}"))
            until(lambda: counted(house.model_a, "runoff_requests_in_flight ") == 1, "it is at work")
            turned_away = house.model_a.asks(client)
            assert turned_away.status == 503
            assert turned_away.headers["Retry-After"] == "1"
            assert turned_away.json["detail"] == "too many predictions are at work already"
            assert house.model_a.gets("/livez").status == 200, "looking is always possible"
            # Those whose body nobody has read are not left with a connection that is about to end.
            padded = body + b" " * 200_000
            assert {house.model_a.sends(padded).status for _ in range(200)} == {503}
            slow.sendall(body[10:])
            assert slow.recv(65_536).startswith(b"HTTP/1.1 200 OK")
        assert house.model_a.asks(client).status == 200


def test_a_service_that_is_told_to_stop_answers_what_it_has_begun(
    board: Path, tmp_path: Path, client: dict[str, int]
) -> None:
    with running(tmp_path, board, "model_a") as house:
        server = server_of(house.model_a)
        body = json.dumps(client).encode()
        begun = [dial(house.model_a) for _ in range(6)]
        for connection in begun:
            connection.sendall(request_of(body[:10], f"Content-Length: {len(body)}"))
        idle = [dial(house.model_a) for _ in range(3)]
        until(lambda: counted(house.model_a, r"runoff_requests_in_flight ") == 6, "all are at work")
        server.send_signal(signal.SIGTERM)
        until(lambda: is_refused(house.model_a), "who comes now is refused")
        assert server.is_running(), "it waits for those who came before"
        for connection in begun:
            connection.sendall(body[10:])
        answers = [connection.recv(65_536) for connection in begun]
        assert [answer.split(b"\r\n")[0] for answer in answers] == [b"HTTP/1.1 200 OK"] * 6
        # Not for those who ask nothing.
        assert server.wait(PATIENCE_SECONDS) == 0
        for connection in [*begun, *idle]:
            connection.close()


def is_refused(visitor: Visitor) -> bool:
    try:
        dial(visitor).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_batch_that_is_at_work_when_the_service_is_told_to_stop_is_answered_to_its_last_row(
    board: Path, tmp_path: Path, client: dict[str, int]
) -> None:
    rows = 30_000
    body = (json.dumps(client) + "\n").encode() * rows
    with running(tmp_path, board, "model_a") as house, closing(dial(house.model_a)) as connection:
        server = server_of(house.model_a)
        head = request_of(b"", f"Content-Length: {len(body)}").replace(b"json", b"x-ndjson", 1)
        halfway = len(body) // 2
        connection.sendall(head + body[:halfway])
        received = connection.recv(65_536)
        server.send_signal(signal.SIGTERM)
        until(lambda: is_refused(house.model_a), "who comes now is refused")
        sending = threading.Thread(target=connection.sendall, args=(body[halfway:],))
        sending.start()
        received += read_all(connection)
        sending.join()
        assert received.startswith(b"HTTP/1.1 200 OK")
        assert received.count(b'"prediction":') == rows
        assert server.wait(PATIENCE_SECONDS) == 0


def hidden(client: dict[str, int], name: str = "smuggled") -> bytes:
    """A whole request, to be hidden in what is no request."""
    body = json.dumps(client).encode()
    return request_of(body, f"Content-Length: {len(body)}", f"X-Request-ID: {name}")


def attacks(client: dict[str, int]) -> dict[str, bytes]:
    """Requests that no honest client sends; each holds another one where a confused server would find it."""
    whole, inner = json.dumps(client).encode(), hidden(client)
    chunked = b"0\r\n\r\n" + inner
    in_chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(whole), whole)
    return {
        "garbage": b"\x00\x01\x02 hello \r\n\r\n" + inner,
        "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + inner,
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + inner,
        "no version": b"POST /predict\r\n\r\n" + inner,
        "a negative length": request_of(inner, "Content-Length: -1"),
        "no length where there is to be one": request_of(inner, "Content-Length: "),
        "a length that is none": request_of(inner, "Content-Length: many"),
        "a length in hexadecimal": request_of(inner, "Content-Length: 0x10"),
        "a length with a sign": request_of(whole + inner, f"Content-Length: +{len(whole)}"),
        "a length of other digits": request_of(inner, "Content-Length: \u0663"),
        "a length beyond all numbers": request_of(inner, f"Content-Length: {'9' * 30}"),
        "a length beyond what is taken": request_of(inner, f"Content-Length: {2**40}"),
        "two lengths": request_of(whole + inner, f"Content-Length: {len(whole)}", "Content-Length: 3"),
        "two lengths in a line": request_of(whole + inner, f"Content-Length: {len(whole)}, {len(whole)}"),
        "a length that is too short": request_of(whole + inner, f"Content-Length: {len(whole) - 5}"),
        "a length and chunks": request_of(
            chunked, f"Content-Length: {len(chunked)}", "Transfer-Encoding: chunked"
        ),
        "chunks that are none": request_of(b"zz\r\n" + inner, "Transfer-Encoding: chunked"),
        "a chunk of negative size": request_of(b"-1\r\n" + inner, "Transfer-Encoding: chunked"),
        "a chunk beyond all numbers": request_of(b"f" * 17 + b"1\r\n" + inner, "Transfer-Encoding: chunked"),
        "chunks by another name": request_of(
            chunked, f"Content-Length: {len(chunked)}", "Transfer-Encoding: xchunked"
        ),
        "chunks that are not the last coding": request_of(
            in_chunks + inner, "Transfer-Encoding: chunked, identity"
        ),
        "two codings": request_of(
            in_chunks + inner, "Transfer-Encoding: chunked", "Transfer-Encoding: identity"
        ),
        "chunks in HTTP/1.0": request_of(in_chunks + inner, "Transfer-Encoding: chunked").replace(
            b"HTTP/1.1", b"HTTP/1.0", 1
        ),
        "a space before the colon": request_of(inner, f"Content-Length : {len(inner)}"),
        "a folded header": request_of(
            inner, "X-Long: a", " Content-Length: 5", f"Content-Length: {len(inner)}"
        ),
        "headers without end": b"POST /predict HTTP/1.1\r\nX-Long: " + b"x" * 2_000_000,
        "headers without number": request_of(whole, *(f"X-{number}: a" for number in range(500))),
        "a line break in a header": request_of(
            inner, "X-A: b\nX-C: d", f"Content-Length: {len(inner)}", "Connection: close"
        ),
        "a zero in a header": request_of(inner, "X-A: b\0c", f"Content-Length: {len(inner)}"),
        "bytes in the address": request_of(inner, f"Content-Length: {len(inner)}").replace(
            b"/predict", b"/\xff", 1
        ),
    }


NAMES = list(attacks(dict.fromkeys(["AGE"], 1)))


def test_a_request_that_is_not_hidden_is_answered(service: House, client: dict[str, int]) -> None:
    """Without this, the tests below would show nothing."""
    with closing(dial(service.model_a)) as connection:
        connection.sendall(hidden(client) + last(client))
        assert b"smuggled" in read_all(connection)


def last(client: dict[str, int]) -> bytes:
    """A request after whose answer the connection ends."""
    return hidden(client, "last").replace(b"\r\n", b"\r\nConnection: close\r\n", 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_request_ends_in_an_error_and_hides_no_other(
    service: House, client: dict[str, int], name: str
) -> None:
    # The connection stays open on this side: a server may drop one that is closed by half.
    with closing(dial(service.model_a)) as connection:
        # It may have been hung up on already.
        with suppress(OSError):
            connection.sendall(attacks(client)[name])
        received = read_all(connection)
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", received)]
    # What comes after a body that was too short is broken, too.
    assert len(statuses) <= (2 if name == "a length that is too short" else 1)
    assert all(400 <= status < 500 for status in statuses)
    assert b"smuggled" not in received, "the hidden request was answered"
    assert service.model_a.asks(client).status == 200


@pytest.mark.parametrize(
    ("method", "path", "kind", "status"),
    [
        ("POST", "/predict", "application/json", 400),
        ("POST", "/predict", "text/plain", 415),
        ("POST", "/nowhere", "application/json", 404),
        ("DELETE", "/predict", "application/json", 405),
        ("GET", "/livez", "application/json", 200),
    ],
)
def test_a_request_in_the_body_of_another_is_no_request_whether_the_body_is_read_or_not(
    service: House, client: dict[str, int], method: str, path: str, kind: str, status: int
) -> None:
    inner = hidden(client)
    outer = request_of(inner, f"Content-Length: {len(inner)}", path=path)
    outer = outer.replace(b"POST", method.encode(), 1).replace(b"application/json", kind.encode(), 1)
    with closing(dial(service.model_a)) as connection:
        connection.sendall(outer + last(client))
        received = read_all(connection)
    assert b"smuggled" not in received
    # A connection on which a body was left unread is not used again, and the answer says so.
    is_closed = b"connection: close" in received.lower().partition(b"\r\n\r\n")[0]
    assert is_closed == (status != 400)
    told = [int(each) for each in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]
    assert told == ([status] if is_closed else [status, 200])
    if not is_closed:
        assert received.endswith(service.model_a.asks(client).body), "the one after it is answered as ever"


@pytest.mark.parametrize("who", ["model_a", "router"])
@pytest.mark.parametrize("length", ["Content-Length: 2", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize(
    ("path", "told", "status"),
    [
        ("/nowhere", "", 404),
        ("/livez", "", 405),
        ("/predict", "X-Request-ID: a/b", 400),
        ("/predict", "Content-Type: text/html", 415),
        ("/v1/models/model-a/versions/no-such-version/predict", "", 404),
    ],
)
def test_an_answer_that_does_not_wait_for_the_body_says_that_the_connection_ends(
    house: House, who: str, length: str, path: str, told: str, status: int
) -> None:
    service: Visitor = getattr(house, who)
    lines = [f"POST {path} HTTP/1.1", "Host: x", length, *filter(None, [told]), "", ""]
    body = b"{}" if length.startswith("Content") else b"2\r\n{}\r\n0\r\n\r\n"
    with closing(dial(service)) as connection:
        connection.sendall("\r\n".join(lines).encode())
        # Most answer at once, some read the body first.
        select.select([connection], [], [], 0.5)
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(body)
        answer = told_by(connection)
        assert answer.status == status
        if answer.headers["Connection"] == "close":
            assert read_all(connection) == b""
        else:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert told_by(connection).status == 200


@pytest.mark.parametrize("missing", [5, 0], ids=["cut short", "whole"])
def test_a_caller_who_closes_by_half_gets_an_answer_or_none_but_never_a_wrong_one(
    service: House, client: dict[str, int], missing: int
) -> None:
    body = json.dumps(client).encode()
    with closing(dial(service.model_a)) as connection:
        connection.sendall(request_of(body[: len(body) - missing], f"Content-Length: {len(body)}"))
        connection.shutdown(socket.SHUT_WR)
        received = read_all(connection)
    right = service.model_a.asks(client)
    assert right.status == 200
    if missing:
        assert b" 200 " not in received
    else:
        assert received == b"" or received.endswith(right.body)


def test_requests_in_one_piece_are_answered_in_their_order(
    service: House, clients: list[dict[str, int]]
) -> None:
    bodies = [json.dumps(client).encode() for client in clients[:5]]
    piece = b"".join(
        request_of(
            body, f"Content-Length: {len(body)}", f"Connection: {'keep-alive' if number < 4 else 'close'}"
        )
        for number, body in enumerate(bodies)
    )
    with closing(dial(service.model_a)) as connection:
        connection.sendall(piece)
        answered = re.findall(rb"\r\n\r\n({.*})\n", read_all(connection))
    assert [json.loads(body) for body in answered] == [
        service.model_a.asks(each).json for each in clients[:5]
    ]


def test_slow_and_silent_callers_keep_nobody_waiting(service: House, client: dict[str, int]) -> None:
    silent = [dial(service.model_a) for _ in range(40)]
    for connection in silent[:20]:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost:")
    # Half of the others were answered once, and then asked no more.
    for connection in silent[30:]:
        connection.sendall(hidden(client))
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200 OK")
    replies: list[Reply] = []
    asking = threading.Thread(target=lambda: replies.extend(service.model_a.asks(client) for _ in range(20)))
    asking.start()
    asking.join(PATIENCE_SECONDS)
    assert [reply.status for reply in replies] == [200] * 20
    for connection in silent:
        # Headers must be whole within ten seconds: then it is hung up, with an answer or without.
        assert b" 200 " not in read_all(connection)
        connection.close()
