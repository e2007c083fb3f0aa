"""Batches through the router: as from a model, each row on record, whatever becomes of the model."""

from __future__ import annotations

import json
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import urllib3
from flask import Flask, Response, request

from router import batches
from router.batches import Asking
from router.dialects import SPOKEN
from router.upstream import Answer
from runoff.batches import FORMS as FORMS_OF_OURS
from tests.house import House, Reply, Visitor, running, running_without_dashboard, served, until
from tests.integration.test_batches import ARROW, CSV, NDJSON, PARQUET, peak_megabytes, rows_of, written
from tests.integration.test_routing import a_house, a_router_by

Clients = list[dict[str, int]]

FORMS = (NDJSON, CSV, PARQUET, ARROW)
FORM = FORMS_OF_OURS[0]
OTHERS = ("vetiver", "mlflow", "kserve-v1", "open-inference")


@pytest.fixture(scope="module")
def many(clients: Clients) -> Clients:
    """More rows than are asked about at a time."""
    return [clients[n % len(clients)] for n in range(2_300)]


def sends(visitor: Visitor, form: str, body: bytes, path: str = "/v1/predict", **headers: str) -> Reply:
    return visitor.sends(body, path, **{"Content_Type": form, **headers})


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_is_answered_as_by_the_model_and_each_row_is_on_record(
    house: House, many: Clients, form: str
) -> None:
    body = written(form, many)
    before = house.stats()["cursor"]
    request_id = f"night-run-{FORMS.index(form)}"
    through = sends(house.router, form, body, X_Force_Variant="A", X_Request_ID=request_id)
    direct = sends(house.model_a, form, body, X_Request_ID=request_id)
    assert through.status == 200
    assert rows_of(through) == rows_of(direct)
    for name in ("Content-Type", "X-Model-Name", "X-Model-Version", "X-Model-Digest"):
        assert through.headers[name].partition(";")[0] == direct.headers[name].partition(";")[0]
    assert through.headers["X-Variant"] == "A"
    rows = house.record(before)
    assert [row["id"] for row in rows] == [f"{request_id}/{n}" for n in range(len(many))]
    assert [row["row"] for row in rows] == [*range(len(many))]
    assert [row["features"] for row in rows] == many
    assert [row["prediction"] for row in rows] == [row["prediction"] for row in rows_of(through)]
    assert {row["version"] for row in rows} == {through.headers["X-Model-Version"]}
    assert house.router.gets(f"/v1/predictions/{request_id}/2299").json["features"] == many[2299]


@pytest.mark.parametrize("accepted", FORMS)
def test_the_answer_comes_in_the_form_that_is_accepted_with_classes_where_they_are_asked_for(
    house: House, many: Clients, accepted: str
) -> None:
    asked = (house.router, house.model_a)
    sent = {"X_Request_ID": f"forms-{FORMS.index(accepted)}", "X_Force_Variant": "A", "Accept": accepted}
    through, direct = (
        sends(each, CSV, written(CSV, many[:5]), "/predict?class=true", **sent) for each in asked
    )
    assert rows_of(through) == rows_of(direct)
    assert all("class" in row for row in rows_of(through))


def test_one_variant_answers_the_whole_batch(house: House, many: Clients) -> None:
    before = house.stats()["cursor"]
    seen = set()
    for number in range(4):
        reply = sends(house.router, NDJSON, written(NDJSON, many), X_Unit_ID=f"unit-{number}")
        rows = house.record(before)
        before = rows[-1]["cursor"]
        assert {row["variant"] for row in rows} == {reply.headers["X-Variant"]}
        assert len({row["unit"] for row in rows}) == 1
        seen.add(reply.headers["X-Variant"])
    assert seen <= {"A", "B"}


def test_a_bad_row_has_the_models_problem_in_its_place_and_is_no_record_of_anybody(
    house: House, many: Clients
) -> None:
    lines = written(NDJSON, many[:7]).split(b"\n")
    lines[1] = b'{"LIMIT_BAL": 1'
    lines[3] = json.dumps(many[3] | {"SEX": 3}).encode()
    lines[4] = b"[]"
    lines[5] = json.dumps(many[5] | {"AGE": float("nan")}).encode()
    body = b"\n\n".join(lines)
    before = house.stats()["cursor"]
    through = sends(house.router, NDJSON, body, X_Force_Variant="A", X_Request_ID="bad-rows")
    direct = sends(house.model_a, NDJSON, body, X_Request_ID="bad-rows")
    assert rows_of(through) == rows_of(direct)
    rows = house.record(before)
    assert [row["status"] for row in rows] == [200, 400, 200, 422, 422, 422, 200]
    assert [row["features"] for row in rows] == [
        *(many[0], None, many[2], None, None, None, many[6]),
    ]
    assert rows[3]["problem"] == "the model answered 422"
    assert [row["prediction"] is None for row in rows] == [row["status"] != 200 for row in rows]


@pytest.mark.parametrize("form", [CSV, PARQUET, ARROW])
def test_a_bad_row_of_a_file_is_told_as_the_model_tells_it(house: House, many: Clients, form: str) -> None:
    records = [*many[:3], many[3] | {"SEX": 3}, many[4]]
    body = written(form, records)
    if form == CSV:
        body += b'1,2,3\n"unclosed\n'
    sent = {"X_Request_ID": f"bad-file-{FORMS.index(form)}", "X_Force_Variant": "A"}
    through, direct = (sends(each, form, body, **sent) for each in (house.router, house.model_a))
    assert rows_of(through) == rows_of(direct)
    assert "SEX must be one of 1, 2" in rows_of(through)[3]["problem"]


@pytest.mark.parametrize(
    ("form", "body", "path", "status"),
    [
        (NDJSON, b"", "/predict", 400),
        (CSV, b"A,B\n", "/predict", 400),
        (CSV, b'"A', "/predict", 400),
        (PARQUET, b"PAR1 it is not", "/predict", 400),
        (ARROW, b"it is not", "/predict", 400),
        (NDJSON, b'{"a": "' + 1_100_000 * b"x" + b'"}', "/predict", 413),
        (NDJSON, b"{}", "/predict?class=perhaps", 400),
    ],
)
def test_what_the_model_refuses_as_a_whole_the_router_does(
    house: House, form: str, body: bytes, path: str, status: int
) -> None:
    asked = (house.router, house.model_a)
    through, direct = (sends(each, form, body, path, X_Request_ID=new_id()) for each in asked)
    assert (through.status, direct.status) == (status, status)
    assert through.json["detail"] == direct.json["detail"]


def new_id() -> str:
    return f"whole-{next(NUMBERS)}"


NUMBERS = iter(range(10_000))


def test_no_form_that_is_accepted_is_a_406_and_a_repeated_id_a_409(house: House, many: Clients) -> None:
    body = written(NDJSON, many[:3])
    assert sends(house.router, NDJSON, body, Accept="image/png").status == 406
    assert sends(house.router, NDJSON, body, X_Request_ID="twice").status == 200
    again = sends(house.router, NDJSON, body, X_Request_ID="twice")
    assert (again.status, again.json["type"]) == (409, "urn:runoff:problem:conflict")
    assert sends(house.router, NDJSON, body, Idempotency_Key="k").status == 422


def test_what_comes_before_an_unreadable_part_is_answered(house: House, many: Clients) -> None:
    before = house.stats()["cursor"]
    body = written(NDJSON, many[:2]) + b"\n" + 1_100_000 * b"x"
    rows = rows_of(sends(house.router, NDJSON, body))
    assert [row.get("problem", {}).get("status") for row in rows] == [None, None, 413]
    assert len(house.record(before)) == 2


# Whatever becomes of the model


@contextmanager
def a_router_before(url: str, folder: Path, board: Path) -> Iterator[House]:
    document = folder / "experiment.toml"
    only = f'[[variants]]\nname = "only"\nurl = "{url}"\nweight = 1\n'
    document.write_text(f'name = "one"\neject_after_failures = 1000\n{only}')
    with running(folder, board, "router", RUNOFF_EXPERIMENT=str(document)) as house:
        yield house


Says = Callable[[list[bytes]], Response]


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[tuple[str, list[Says]]]:
    """A service that answers as a test says, the next time by the next of a list; and its address."""
    app = Flask(__name__)
    says: list[Says] = []

    @app.post("/predict")
    def predict() -> Response:
        said: Response = says.pop(0)(request.get_data().splitlines())
        return said

    with served(app) as url:
        yield url, says


@pytest.fixture(scope="module")
def outpost(
    elsewhere: tuple[str, list[Says]], board: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    with a_router_before(elsewhere[0], tmp_path_factory.mktemp("outpost"), board) as house:
        yield house


def halves(lines: list[bytes]) -> Response:
    return Response(b"".join(b'{"prediction": 0.5}\n' for _ in lines))


def one_too_few(lines: list[bytes]) -> Response:
    return halves(lines[1:])


def nonsense(lines: list[bytes]) -> Response:
    return Response(b"".join(b'{"prediction": NaN}\n' for _ in lines))


def busy(_lines: list[bytes]) -> Response:
    return Response(b'{"busy": true}', 503, {"Retry-After": "3", "Content-Type": "application/json"})


LATER: list[tuple[str, Says, str]] = [
    ("too few", one_too_few, "999 predictions for 1000 rows"),
    ("nonsense", nonsense, "no prediction"),
    ("busy", busy, "answered 503"),
]


@pytest.mark.parametrize(("says", "detail"), [case[1:] for case in LATER], ids=[case[0] for case in LATER])
def test_a_model_that_fails_midway_gives_problems_for_the_rows_concerned(
    outpost: House, elsewhere: tuple[str, list[Says]], says: Says, detail: str
) -> None:
    elsewhere[1][:] = [halves, says, halves]
    before = outpost.stats()["cursor"]
    reply = sends(outpost.router, NDJSON, b'{"a": 1}\n' * 2_500)
    rows = rows_of(reply)
    assert (reply.status, len(rows)) == (200, 2_500)
    assert [row.get("prediction") for row in rows] == [0.5] * 1000 + [None] * 1000 + [0.5] * 500
    for row in rows[1000:2000]:
        assert (row["problem"]["status"], row["problem"]["request_id"]) == (502, row["id"])
        assert detail in row["problem"]["detail"]
        assert row["problem"]["variant"] == "only"
    recorded = outpost.record(before)
    assert [row["id"] for row in recorded] == [row["id"] for row in rows]
    assert [row["status"] for row in recorded] == [200] * 1000 + [502] * 1000 + [200] * 500
    assert all(row["features"] == {"a": 1} for row in recorded)


def test_a_model_that_fails_at_once_fails_the_request_and_that_is_on_record(
    outpost: House, elsewhere: tuple[str, list[Says]]
) -> None:
    before = outpost.stats()["cursor"]
    elsewhere[1][:] = [nonsense]
    reply = sends(outpost.router, NDJSON, b'{"a": 1}\n' * 3)
    assert (reply.status, reply.json["variant"], reply.headers["X-Variant"]) == (502, "only", "only")
    elsewhere[1][:] = [busy]
    reply = sends(outpost.router, NDJSON, b'{"a": 1}\n' * 3)
    assert (reply.status, reply.body, reply.headers["Retry-After"]) == (503, b'{"busy": true}', "3")
    assert [row["status"] for row in outpost.record(before)] == [502] * 6


def test_a_model_that_is_not_there_is_named(board: Path, tmp_path: Path) -> None:
    with a_router_before("http://127.0.0.1:1", tmp_path, board) as house:
        reply = sends(house.router, NDJSON, b'{"a": 1}\n' * 3)
        assert (reply.status, reply.json["detail"]) == (502, "variant only cannot be reached")
        assert [row["status"] for row in house.record()] == [502] * 3


class Caller:
    """One who sends a batch in parts, and reads as it sends."""

    def __init__(self, house: House, line: bytes) -> None:
        host, port = house.router_url.removeprefix("http://").split(":")
        self._line = line
        self._connection = socket.create_connection((host, int(port)), timeout=60)
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {NDJSON}\r\nX-Force-Variant: A\r\n"
        self._connection.sendall(f"{head}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        self.got = b""

    def sends(self, rows: int) -> None:
        content = rows * self._line
        self._connection.sendall(b"%x\r\n%b\r\n" % (len(content), content))

    def reads(self, predictions: int) -> None:
        """Read until there are so many predictions."""
        while self.got.count(b'"prediction"') < predictions:
            self.got += self._connection.recv(65_536)

    def ends(self) -> None:
        """Send the end, and read the rest."""
        self._connection.sendall(b"0\r\n\r\n")
        while piece := self._connection.recv(65_536):
            self.got += piece
        self._connection.close()


@pytest.fixture
def caller(own_house: House, client: dict[str, int]) -> Caller:
    return Caller(own_house, (json.dumps(client) + "\n").encode())


@pytest.mark.slow
def test_a_model_that_is_killed_midway_takes_no_more_than_its_rows(own_house: House, caller: Caller) -> None:
    caller.sends(1_500)
    caller.reads(1_000)
    own_house.services.kill("model_a")
    caller.sends(1_500)
    caller.ends()
    assert caller.got.startswith(b"HTTP/1.1 200")
    assert caller.got.count(b'"prediction"') == 1_000
    assert caller.got.count(b'"problem"') == 2_000
    assert [row["status"] for row in own_house.record()] == [200] * 1_000 + [502] * 2_000


@pytest.mark.parametrize(
    "form", [NDJSON, *(pytest.param(form, marks=pytest.mark.slow) for form in FORMS if form != NDJSON)]
)
def test_the_rows_of_a_batch_have_shadows_too(
    board: Path, models: House, tmp_path: Path, many: Clients, form: str
) -> None:
    with a_router_by(tmp_path, board, models, 'mode = "shadow"') as house:
        body = written(form, [*many[:1_200], many[0] | {"SEX": 3}])
        reply = sends(house.router, form, body, X_Request_ID="shadowed")
        assert (reply.status, reply.headers["X-Variant"]) == (200, "A")
        last = "/v1/predictions/shadowed/1199"
        until(lambda: bool(house.router.gets(last).json["side_answers"]), "the challenger has scored all")
        scored = rows_of(sends(house.model_b, form, body))
        for number in (0, 999, 1_199):
            row = house.router.gets(f"/v1/predictions/shadowed/{number}").json
            [shadow] = row["side_answers"]
            assert (shadow["kind"], shadow["name"], shadow["status"]) == ("shadow", "B", 200)
            assert shadow["prediction"] == pytest.approx(scored[number]["prediction"], abs=1e-6)
            assert shadow["prediction"] != row["prediction"]
        # What the champion refuses is no request of the experiment's.
        assert not house.router.gets("/v1/predictions/shadowed/1200").json["side_answers"]


def test_where_a_batchs_variant_fails_the_fallback_answers_and_both_are_on_record(
    board: Path, tmp_path: Path, many: Clients
) -> None:
    with a_house(tmp_path, board, 'fallback = "A"', "model_a", "router") as house:
        reply = sends(house.router, NDJSON, written(NDJSON, many), X_Force_Variant="B", X_Request_ID="saved")
        assert (reply.status, reply.headers["X-Variant"]) == (200, "A")
        assert all("prediction" in row for row in rows_of(reply))
        for number in (0, 2_299):
            row = house.router.gets(f"/v1/predictions/saved/{number}").json
            assert (row["variant"], row["answered_by"], row["status"]) == ("B", "A", 200)
            [failed] = row["side_answers"]
            assert (failed["kind"], failed["name"], failed["status"]) == ("failed", "B", 502)
            assert failed["prediction"] is None


def test_where_the_fallback_fails_too_it_is_the_one_who_is_named(
    board: Path, tmp_path: Path, many: Clients
) -> None:
    with a_house(tmp_path, board, 'fallback = "A"', "router") as house:
        reply = sends(house.router, NDJSON, written(NDJSON, many[:3]), X_Force_Variant="B")
        assert (reply.status, reply.json["variant"], reply.headers["X-Variant"]) == (502, "A", "A")
        assert [(row["variant"], row["answered_by"]) for row in house.record()] == [("B", "A")] * 3


@pytest.mark.slow
def test_a_ledger_that_goes_away_midway_ends_the_answer_with_what_is_on_record(
    own_house: House, caller: Caller
) -> None:
    caller.sends(1_500)
    caller.reads(1_000)
    with closing(sqlite3.connect(own_house.var / "ledger.sqlite", isolation_level=None)) as somebody:
        somebody.execute("BEGIN IMMEDIATE")  # and does not end it: nobody else can write
        caller.sends(1_500)
        caller.ends()
        somebody.execute("ROLLBACK")
    assert caller.got.count(b'"prediction"') == 1_000
    assert caller.got.count(b'"problem"') == 1
    assert b"the ledger cannot be reached" in caller.got
    assert len(own_house.record()) == 1_000


@pytest.fixture(scope="module")
def babel(board: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A router whose variants are one model, each said to speak another dialect."""
    folder = tmp_path_factory.mktemp("babel")
    document = folder / "experiment.toml"
    url = "${MODEL_A_URL:-http://127.0.0.1:1}"
    variants = (
        f'[[variants]]\nname = "{each}"\ndialect = "{each}"\nurl = "{url}"\nweight = 1\n' for each in OTHERS
    )
    document.write_text('name = "babel"\n' + "".join(variants))
    with running(folder, board, "model_a", "router", RUNOFF_EXPERIMENT=str(document)) as house:
        yield house


@pytest.mark.parametrize("spoken", OTHERS)
@pytest.mark.parametrize(
    "form", [NDJSON, *(pytest.param(each, marks=pytest.mark.slow) for each in (CSV, ARROW))]
)
def test_a_variant_of_another_dialect_takes_batches_too_and_bad_rows_are_found(
    babel: House, many: Clients, spoken: str, form: str
) -> None:
    records = [each | {"SEX": 3} if number in (3, 1_700) else each for number, each in enumerate(many)]
    body = written(form, records)
    through = rows_of(sends(babel.router, form, body, X_Force_Variant=spoken))
    direct = rows_of(sends(babel.model_a, form, body))
    # Sums of other lengths may end in another digit.
    assert [row.get("prediction") for row in through] == pytest.approx(
        [row.get("prediction") for row in direct], abs=1e-12
    )
    assert [number for number, row in enumerate(through) if row.get("problem")] == [3, 1_700]
    assert "refuses it: 4" in str(through[3]["problem"])


class Theirs:
    """A variant of another dialect, which refuses some rows."""

    def __init__(self, spoken: str, bad: Callable[[Any], bool], status: int = 422) -> None:
        self.asked = 0
        self._dialect = SPOKEN[spoken]
        self._bad = bad
        self._status = status
        self.asking = Asking("only", self._dialect, FORM, self._answer)

    def _answer(self, content: bytes, _media_type: str) -> Answer:
        assert self._dialect
        self.asked += 1
        rows = self._dialect.read(content, "application/json", None)
        assert rows
        if any(map(self._bad, rows)):
            return Answer(self._status, [], b"no")
        if self._dialect is SPOKEN["open-inference"]:
            said: Any = {"outputs": [{"name": "predict", "data": [0.5] * len(rows)}]}
        else:
            said = {"predictions": [0.5] * len(rows)}
        return Answer(200, [], json.dumps(said).encode())

    def statuses(self, rows: list[Any]) -> list[int]:
        piece, _ = self.asking.piece(rows, 0, "r")
        assert [outcome.id for outcome in piece.outcomes] == [f"r/{n}" for n in range(len(rows))]
        return piece.statuses


@pytest.mark.parametrize("spoken", OTHERS)
def test_bad_rows_are_found_by_halving(spoken: str) -> None:
    theirs = Theirs(spoken, lambda row: row["a"] == 2)
    rows = [{"a": 2 if number in (0, 500, 999) else 1} for number in range(1_000)]
    assert theirs.statuses(rows) == [422 if row["a"] == 2 else 200 for row in rows]
    assert theirs.asked < 70


def test_a_row_that_cannot_be_translated_stops_no_other() -> None:
    rows: list[Any] = [{"a": 1}, 3, {"a": "x"}, [], {"a": 1, "b": 2}, {"a": 2}]
    theirs = Theirs("open-inference", lambda row: row.keys() != {"a"} or isinstance(row["a"], str))
    assert theirs.statuses(rows) == [200, 501, 422, 501, 422, 200]


def test_a_variant_that_refuses_everything_is_not_stormed() -> None:
    theirs = Theirs("mlflow", lambda _: True)
    assert theirs.statuses([{"a": 1}] * 1_000) == [422] * 1_000
    assert theirs.asked <= 2 * batches.MOST_HALVINGS + 1
    lost = Theirs("mlflow", lambda _: True, status=404)
    assert lost.statuses([{"a": 1}] * 1_000) == [502] * 1_000
    assert lost.asked == 1


@pytest.mark.slow
def test_a_client_may_send_everything_before_it_reads_in_the_memory_of_a_few_pieces(
    board: Path, tmp_path: Path, client: dict[str, int]
) -> None:
    block = (json.dumps(client) + "\n").encode() * 1_000

    def answered(service: Visitor, thousands: int) -> int:
        reply = urllib3.request(
            "POST",
            f"{service.url}/v1/predict",
            body=(block for _ in range(thousands)),
            headers={"Content-Type": NDJSON},
            timeout=120.0,
            preload_content=False,
        )
        assert reply.status == 200
        return sum(block.count(b'"prediction"') for block in reply.stream(1_000_000))

    with running_without_dashboard(tmp_path, board, WEB_CONCURRENCY="1") as house:
        assert answered(house.router, 5) == 5_000
        before = peak_megabytes(house.router)
        assert answered(house.router, 60) == 60_000
        assert peak_megabytes(house.router) < before + 20
        assert house.stats()["requests"] == 65_000


def test_answers_come_while_the_body_is_still_being_sent(house: House, client: dict[str, int]) -> None:
    host, port = house.router_url.removeprefix("http://").split(":")
    chunk = (json.dumps(client) + "\n").encode() * 2_000
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = f"POST /v1/predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: {NDJSON}\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        connection.sendall(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        got = b""
        while b"prediction" not in got:
            got += connection.recv(65_536)
        connection.sendall(b"0\r\n\r\n")
        while not got.endswith(b"0\r\n\r\n"):
            got += connection.recv(65_536)
    assert got.count(b'"prediction"') == 2_000
