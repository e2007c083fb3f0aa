"""The router: bounded waits, honest errors, a record of everything, whatever stands behind it."""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from router import experiment
from tests.house import House, running

# An answer is awaited for this long in these tests; anything beyond a few times that is a hang.
TIMEOUT_SECONDS = 1.5
PATIENCE_SECONDS = 60.0

Behave = Callable[[BaseHTTPRequestHandler], None]


def answer(body: bytes, status: int = 200, length: int | None = None) -> Behave:
    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)
        # One that promised more than it sends must hang up, or the router waits for the rest.
        handler.close_connection = length is not None

    return behave


def sleep(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(4 * TIMEOUT_SECONDS)
    answer(b'{"prediction": 0.5}')(handler)


def drip(handler: BaseHTTPRequestHandler) -> None:
    """Never idle for long, and never done."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(TIMEOUT_SECONDS / 5)


def drip_headers(handler: BaseHTTPRequestHandler) -> None:
    """Never even done with its headers."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    for _ in range(100):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(TIMEOUT_SECONDS / 5)


def redirect(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(302)
    handler.send_header("Location", "http://127.0.0.1:1/elsewhere")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


class Elsewhere(ThreadingHTTPServer):
    """Somebody else's model service, which behaves as a test tells it to."""

    behaves: Behave = staticmethod(sleep)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """Say nothing: the router hangs up on what dawdles."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Elsewhere

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.behaves(self)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    with Elsewhere(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@contextmanager
def a_router_before(url: str, folder: Path, board: Path) -> Iterator[House]:
    """A router whose only variant is at a URL."""
    document = folder / "experiment.toml"
    document.write_text(
        f'name = "one"\ntimeout_seconds = {TIMEOUT_SECONDS}\neject_after_failures = 1000\n'
        f'[[variants]]\nname = "only"\nrole = "champion"\nurl = "{url}"\nweight = 1\n'
    )
    with running(folder, board, "router", RUNOFF_EXPERIMENT=str(document)) as house:
        yield house


@pytest.fixture(scope="module")
def outpost(elsewhere: Elsewhere, board: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A router before the service of somebody else."""
    with a_router_before(elsewhere.url, tmp_path_factory.mktemp("outpost"), board) as house:
        yield house


BAD_SERVICES = [
    ("sleeps", sleep, 504, "did not answer within 1.5 seconds"),
    ("drips", drip, 504, "did not answer within 1.5 seconds"),
    ("drips headers", drip_headers, 504, "did not answer within 1.5 seconds"),
    ("hangs up", hang_up, 502, "hung up"),
    ("cuts its answer short", answer(b'{"prediction": 0.5}', length=500), 502, "broke off its answer"),
    ("redirects", redirect, 502, "answered 302"),
    ("answers no JSON", answer(b"<html>hello</html>"), 502, "no prediction"),
    ("answers no prediction", answer(b'{"score": 0.5}'), 502, "no prediction"),
    ("answers NaN", answer(b'{"prediction": NaN}'), 502, "no prediction"),
    ("answers a word", answer(b'{"prediction": "high"}'), 502, "no prediction"),
    ("answers a list", answer(b"[0.5]"), 502, "no prediction"),
    ("answers too many", answer(b'{"predict": [0.5, 0.5]}'), 502, "2 predictions for 1 rows"),
    (
        "answers nine megabytes",
        answer(b'{"prediction": 0.5, "x": "' + b"x" * 9_000_000 + b'"}'),
        502,
        "too much",
    ),
]


@pytest.mark.parametrize(
    ("behaves", "status", "detail"),
    [case[1:] for case in BAD_SERVICES],
    ids=[case[0] for case in BAD_SERVICES],
)
def test_a_bad_service_gets_the_caller_an_honest_error_in_bounded_time_on_record(
    outpost: House, elsewhere: Elsewhere, behaves: Behave, status: int, detail: str
) -> None:
    elsewhere.behaves = behaves
    before = outpost.stats()["cursor"]
    began = time.monotonic()
    reply = outpost.router.asks({"AGE": 34})
    assert time.monotonic() - began < PATIENCE_SECONDS
    assert reply.status == status
    assert detail in reply.json["detail"]
    assert reply.json["variant"] == "only"
    [row] = outpost.record(before)
    assert (row["status"], row["prediction"], row["features"]) == (status, None, {"AGE": 34})
    assert row["problem"] == reply.json["detail"]
    assert row["request_id"] == reply.headers["X-Request-ID"]


def test_a_service_that_is_not_there_is_named(tmp_path: Path, board: Path) -> None:
    with a_router_before("http://127.0.0.1:1", tmp_path, board) as house:
        reply = house.router.asks({"AGE": 34})
        assert (reply.status, reply.json["detail"]) == (502, "variant only cannot be reached")
        assert [row["status"] for row in house.record()] == [502]


def test_the_answer_of_a_service_of_others_passes_byte_for_byte(outpost: House, elsewhere: Elsewhere) -> None:
    body = b'{ "prediction":0.25 ,\n "why": "because" }'
    elsewhere.behaves = answer(body)
    before = outpost.stats()["cursor"]
    reply = outpost.router.asks({"anything": ["at", "all"]})
    assert (reply.status, reply.body) == (200, body)
    [row] = outpost.record(before)
    assert (row["prediction"], row["model"], row["version"]) == (0.25, None, None)


def test_an_error_of_the_model_passes_byte_for_byte_and_is_on_record(
    outpost: House, elsewhere: Elsewhere
) -> None:
    body = b'{"error": "busy"}'
    elsewhere.behaves = answer(body, 503)
    before = outpost.stats()
    reply = outpost.router.asks({"AGE": 34})
    assert (reply.status, reply.body) == (503, body)
    [row] = outpost.record(before["cursor"])
    assert (row["status"], row["prediction"]) == (503, None)
    assert outpost.stats()["variants"]["only"]["failed"] == before["variants"]["only"]["failed"] + 1


def test_the_answer_says_who_gave_it_and_how_long_it_took(house: House, client: dict[str, int]) -> None:
    reply = house.router.asks(client, X_Request_ID="who-and-how-long")
    assert reply.headers["X-Request-ID"] == "who-and-how-long"
    assert reply.headers["X-Experiment"] == "credit-default"
    assert reply.headers["X-Variant"] in ("A", "B")
    assert reply.headers["X-Model-Name"] == {"A": "model-a", "B": "model-b"}[reply.headers["X-Variant"]]
    assert reply.headers["X-Model-Version"] == reply.json["version"]
    assert "router;dur=" in reply.headers["Server-Timing"]
    assert "model;dur=" in reply.headers["Server-Timing"]


def test_a_request_id_is_taken_once(house: House, client: dict[str, int]) -> None:
    assert house.router.asks(client, X_Request_ID="only-once").status == 200
    again = house.router.asks(client, X_Request_ID="only-once")
    assert again.status == 409
    assert again.json["type"] == "urn:runoff:problem:conflict"
    assert [row["id"] for row in house.on_disk()].count("only-once") == 1


@pytest.mark.parametrize("form", ["vetiver", "records"])
def test_each_row_of_a_batch_is_on_record_by_an_id_of_its_own(
    house: House, clients: list[dict[str, int]], form: str
) -> None:
    before = house.stats()["cursor"]
    batch = clients[:3]
    reply = house.router.asks(batch if form == "vetiver" else {"records": batch})
    answered = reply.json["predict" if form == "vetiver" else "predictions"]
    request_id = reply.headers["X-Request-ID"]
    rows = house.record(before)
    assert [row["id"] for row in rows] == [f"{request_id}/{number}" for number in range(3)]
    assert [row["features"] for row in rows] == batch
    assert [row["prediction"] for row in rows] == answered
    assert len({row["variant"] for row in rows}) == 1


def test_the_original_request_passes_the_router(
    house: House, client: dict[str, int], features: tuple[str, ...]
) -> None:
    text = ",".join(str(client[name]) for name in features)
    reply = house.router.asks({"input": f"4711,{text}"})
    model = {"A": house.model_a, "B": house.model_b}[reply.headers["X-Variant"]]
    assert reply.json == model.asks(client).json


def test_paging_gives_every_record_once_in_order(house: House, clients: list[dict[str, int]]) -> None:
    before = house.stats()["cursor"]
    sent = [house.router.asks(client).headers["X-Request-ID"] for client in clients[:25]]
    found: list[str] = []
    cursor, more = before, True
    while more:
        page = house.router.gets(f"/predictions?since={cursor}&limit=10").json
        assert len(page["predictions"]) <= 10
        found += [row["request_id"] for row in page["predictions"]]
        cursor, more = page["next"], page["more"]
    assert found == sent
    assert house.router.gets(f"/predictions?since={cursor}").json == {
        "predictions": [],
        "next": cursor,
        "more": False,
    }
    newest = house.router.gets("/predictions?last=5").json
    assert [row["request_id"] for row in newest["predictions"]] == sent[-5:]


def test_simulated_traffic_is_told_from_real_traffic(house: House, clients: list[dict[str, int]]) -> None:
    tag = "a-test-of-tags"
    before = house.stats("real")["requests"]
    for client in clients[:7]:
        house.router.asks(client, X_Traffic_Tag=tag)
    house.router.asks(clients[0])
    assert house.stats(tag)["requests"] == 7
    assert house.stats("real")["requests"] == before + 1
    assert house.stats()["tags"][tag] == 7
    rows = house.router.gets(f"/predictions?tag={tag}&limit=1000").json["predictions"]
    assert len(rows) == 7
    assert {row["tag"] for row in rows} == {tag}


def test_latency_quantiles_are_those_of_the_record(house: House, clients: list[dict[str, int]]) -> None:
    tag = "a-test-of-latency"
    for client in clients[:40]:
        house.router.asks(client, X_Traffic_Tag=tag)
    rows = house.router.gets(f"/predictions?tag={tag}&limit=1000").json["predictions"]
    told = house.stats(tag)["variants"]["A"]["latency_ms"]
    mine = sorted(row["latency_ms"] for row in rows if row["variant"] == "A")
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        # The least value that at least this share of all values does not exceed, within one per cent.
        right = next(x for x in mine if sum(y <= x for y in mine) >= share * len(mine))
        assert told[name] == pytest.approx(right, rel=0.01)


def test_many_callers_at_once_lose_nothing(own_router: House, clients: list[dict[str, int]]) -> None:
    house = own_router
    with ThreadPoolExecutor(32) as pool:
        replies = list(pool.map(house.router.asks, clients * 2))
    assert {reply.status for reply in replies} == {200}
    assert {row["id"] for row in house.on_disk()} == {reply.headers["X-Request-ID"] for reply in replies}
    assert house.stats()["requests"] == len(replies)


def test_what_cannot_be_recorded_is_not_answered(own_router: House, client: dict[str, int]) -> None:
    house = own_router
    assert house.router.asks(client).status == 200
    with closing(sqlite3.connect(house.var / "ledger.sqlite", isolation_level=None)) as somebody:
        somebody.execute("BEGIN IMMEDIATE")  # and does not end it: nobody else can write
        reply = house.router.asks(client)
        somebody.execute("ROLLBACK")
    assert reply.status == 503
    assert "the ledger cannot be reached" in reply.json["detail"]
    assert b"prediction" not in reply.body
    assert house.router.asks(client).status == 200
    assert len(house.on_disk()) == 2


def test_the_same_is_found_with_and_without_v1(house: House) -> None:
    for path in ("/predictions?last=1", "/"):
        assert house.router.gets(path).json == house.router.gets(f"/v1{path}").json
    assert house.router.gets("/stats").json["requests"] == house.router.gets("/v1/stats").json["requests"]


BROKEN_DOCUMENTS = [
    ("no TOML", "name = ", "is not TOML"),
    ("no variants", 'name = "x"\nvariants = []', "variants: "),
    (
        "an unknown key",
        'name = "x"\ncolour = 1\n[[variants]]\nname="A"\nurl="http://h"\nweight=1',
        "colour: ",
    ),
    (
        "a negative weight",
        'name = "x"\n[[variants]]\nname="A"\nurl="http://h"\nweight=-1',
        "variants.0.weight: ",
    ),
    ("all weights 0", 'name = "x"\n[[variants]]\nname="A"\nurl="http://h"\nweight=0', "above 0"),
    ("no URL", 'name = "x"\n[[variants]]\nname="A"\nurl="hello"\nweight=1', "variants.0.url: "),
    (
        "a name twice",
        'name = "x"\n' + 2 * '[[variants]]\nname="A"\nurl="http://h"\nweight=1\n',
        "same name",
    ),
]


@pytest.mark.parametrize(
    ("text", "message"), [case[1:] for case in BROKEN_DOCUMENTS], ids=[case[0] for case in BROKEN_DOCUMENTS]
)
def test_a_broken_document_is_refused_by_field_and_rule(tmp_path: Path, text: str, message: str) -> None:
    document = tmp_path / "experiment.toml"
    document.write_text(text)
    with pytest.raises(experiment.ExperimentError, match=r"experiment\.toml") as raised:
        experiment.load(document)
    assert message in str(raised.value)


def test_a_url_comes_from_the_environment_where_it_says_so(tmp_path: Path) -> None:
    document = tmp_path / "experiment.toml"
    document.write_text(
        'name = "x"\n[[variants]]\nname = "A"\nurl = "${A_URL:-http://a.example:1}"\nweight = 3\n'
        '[[variants]]\nname = "B"\nurl = "${B_URL:-http://b.example:2}"\nweight = 1\n'
    )
    loaded = experiment.load(document, {"B_URL": "https://elsewhere.example/b/"})
    assert [variant.url for variant in loaded.variants] == [
        "http://a.example:1",
        "https://elsewhere.example/b",
    ]
    assert loaded.shares == {"A": 0.75, "B": 0.25}
