"""Batches as files and streams: each row has an id and an answer, and a bad one stops nothing."""

from __future__ import annotations

import csv
import io
import json
import socket
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import urllib3

from runoff.store import Store
from tests.house import House, Reply, Visitor, running

NDJSON = "application/x-ndjson"
CSV = "text/csv"
PARQUET = "application/vnd.apache.parquet"
ARROW = "application/vnd.apache.arrow.stream"


def written(form: str, records: list[dict[str, Any]]) -> bytes:
    """Records as a client would send them."""
    table = pa.Table.from_pylist(records)
    sink = io.BytesIO()
    if form == NDJSON:
        return "\n".join(json.dumps(record) for record in records).encode()
    if form == CSV:
        return pd.DataFrame(records).to_csv(index=False).encode()
    if form == PARQUET:
        pq.write_table(table, sink)
    else:
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table, max_chunksize=700)
    return sink.getvalue()


def rows_of(reply: Reply) -> list[dict[str, Any]]:
    """The rows of an answer, whatever its form."""
    form = reply.headers["Content-Type"].partition(";")[0]
    if form == NDJSON:
        return [json.loads(line) for line in reply.body.splitlines()]
    if form == CSV:
        found = csv.DictReader(io.StringIO(reply.body.decode(), newline=""))
        return [
            row | {"prediction": float(row["prediction"]) if row["prediction"] else None} for row in found
        ]
    table = (
        pq.read_table(io.BytesIO(reply.body))
        if form == PARQUET
        else pa.ipc.open_stream(reply.body).read_all()
    )
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def sends(house: House, form: str, body: bytes, path: str = "/v1/predict", **headers: str) -> Reply:
    return house.model_a.sends(body, path, **{"Content_Type": form, **headers})


@pytest.fixture(scope="module")
def many(clients: list[dict[str, int]]) -> list[dict[str, int]]:
    """More rows than are predicted at a time."""
    return [clients[n % len(clients)] for n in range(2_500)]


@pytest.fixture(scope="module")
def expected(store: Store, many: list[dict[str, int]]) -> list[float]:
    found: list[float] = store.load("model-a").probabilities(pd.DataFrame(many)).tolist()
    return found


@pytest.mark.parametrize("form", [NDJSON, CSV, PARQUET, ARROW])
def test_each_row_is_answered_in_order_with_an_id_of_its_own(
    house: House, many: list[dict[str, int]], expected: list[float], store: Store, form: str
) -> None:
    reply = sends(house, form, written(form, many), X_Request_ID="night-run")
    assert reply.status == 200
    assert reply.headers["Content-Type"].partition(";")[0] == form
    assert reply.headers["X-Model-Version"] == store.version("model-a").id
    rows = rows_of(reply)
    assert [row["id"] for row in rows] == [f"night-run/{n}" for n in range(len(many))]
    assert [row["prediction"] for row in rows] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("asked", [NDJSON, CSV, PARQUET, ARROW])
@pytest.mark.parametrize("accepted", [NDJSON, CSV, PARQUET, ARROW])
def test_the_answer_comes_in_the_form_that_is_accepted(
    house: House, many: list[dict[str, int]], expected: list[float], asked: str, accepted: str
) -> None:
    reply = sends(house, asked, written(asked, many[:5]), Accept=accepted)
    assert reply.headers["Content-Type"].partition(";")[0] == accepted
    assert [row["prediction"] for row in rows_of(reply)] == pytest.approx(expected[:5], abs=1e-12)


def test_classes_are_added_where_they_are_asked_for(
    house: House, store: Store, many: list[dict[str, int]], expected: list[float]
) -> None:
    threshold = store.version("model-a").record["threshold"]
    for form in (NDJSON, CSV, ARROW):
        reply = sends(house, form, written(form, many[:300]), "/v1/predict?class=true")
        classes = [int(row["class"]) for row in rows_of(reply)]
        assert classes == [int(p >= threshold) for p in expected[:300]]
    assert set(classes) == {0, 1}


def test_a_bad_row_gets_a_problem_in_its_place_and_the_rest_goes_on(
    house: House, many: list[dict[str, int]], expected: list[float]
) -> None:
    lines = written(NDJSON, many[:6]).split(b"\n")
    lines[1] = b'{"LIMIT_BAL": 1'
    lines[3] = json.dumps(many[3] | {"SEX": 3}).encode()
    lines[4] = b"[]"
    reply = sends(house, NDJSON, b"\n\n".join(lines), X_Request_ID="r")
    rows = rows_of(reply)
    assert reply.status == 200
    assert [row["id"] for row in rows] == [f"r/{n}" for n in range(6)]
    good = [rows[n]["prediction"] for n in (0, 2, 5)]
    assert good == pytest.approx([expected[n] for n in (0, 2, 5)], abs=1e-12)
    assert [rows[n]["problem"]["status"] for n in (1, 3, 4)] == [400, 422, 422]
    assert rows[3]["problem"]["errors"][0]["pointer"] == "/SEX"
    assert rows[3]["problem"]["request_id"] == "r/3"


def test_a_bad_row_of_a_file_is_told_in_a_column(house: House, many: list[dict[str, int]]) -> None:
    records = [*many[:3], many[3] | {"SEX": 3}, many[4]]
    for form in (CSV, PARQUET, ARROW):
        rows = rows_of(sends(house, form, written(form, records)))
        assert [row["prediction"] is None for row in rows] == [False, False, False, True, False]
        assert rows[3]["problem"] == "SEX must be one of 1, 2"


def test_a_row_of_csv_with_too_few_values_is_told_and_quotes_are_read(
    house: House, many: list[dict[str, int]]
) -> None:
    header, *lines = written(CSV, many[:3]).decode().splitlines()
    quoted = ",".join(f'"{cell}"' for cell in lines[1].split(","))
    body = "\ufeff" + "\r\n".join([header, lines[0], quoted, "1,2,3", lines[2], '"unclosed'])
    rows = rows_of(sends(house, CSV, body.encode()))
    assert [bool(row["problem"]) for row in rows] == [False, False, True, False, True]
    assert "3 values, the header 23" in rows[2]["problem"]


def test_no_spreadsheet_takes_an_answer_for_a_formula(house: House, many: list[dict[str, int]]) -> None:
    bad = {"=HYPERLINK(1)": 1, **many[0]}
    reply = sends(house, CSV, written(CSV, [bad]), X_Request_ID="-1")
    (row,) = rows_of(reply)
    assert row["id"] == "'-1/0"
    assert row["problem"].startswith("'=HYPERLINK(1) is not a column")


@pytest.mark.parametrize(
    ("form", "body", "status", "detail"),
    [
        (NDJSON, b"", 400, "holds no rows"),
        (NDJSON, b"\n\n\n", 400, "holds no rows"),
        (CSV, b"A,B\n", 400, "holds no rows"),
        (CSV, b'"A', 400, "is not CSV"),
        (PARQUET, b"PAR1 it is not", 400, "is not Parquet"),
        (ARROW, b"it is not", 400, "is no Arrow stream"),
        (NDJSON, b'{"a": "' + 1_100_000 * b"x" + b'"}', 413, "longer than 1,000,000 bytes"),
    ],
)
def test_what_cannot_be_read_at_all_is_refused_as_a_whole(
    house: House, form: str, body: bytes, status: int, detail: str
) -> None:
    reply = sends(house, form, body)
    assert reply.status == status
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert detail in reply.json["detail"]


def test_what_comes_before_an_unreadable_part_is_answered(
    house: House, many: list[dict[str, int]], expected: list[float]
) -> None:
    body = written(NDJSON, many[:2]) + b"\n" + 1_100_000 * b"x"
    rows = rows_of(sends(house, NDJSON, body))
    assert [row.get("prediction") for row in rows[:2]] == pytest.approx(expected[:2], abs=1e-12)
    assert rows[2]["problem"]["status"] == 413
    cut = written(ARROW, many)[:-60_000]
    *rows, last = rows_of(sends(house, ARROW, cut, Accept=NDJSON))
    assert [row["prediction"] for row in rows] == pytest.approx(expected[: len(rows)], abs=1e-12)
    assert "is no Arrow stream" in last["problem"]["detail"]


def test_no_form_that_is_accepted_is_a_406(house: House, many: list[dict[str, int]]) -> None:
    refused = sends(house, CSV, written(CSV, many[:1]), Accept="image/png")
    assert refused.status == 406
    assert NDJSON in refused.json["detail"]


def test_a_client_may_send_everything_before_it_reads_and_nobody_waits_for_ever(
    board: Path, tmp_path: Path, client: dict[str, int]
) -> None:
    """Sixty megabytes one way and as many rows the other, in the memory that a thousand rows take."""
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
        return sum(block.count(b"\n") for block in reply.stream(1_000_000))

    with running(tmp_path, board, "model_a", WEB_CONCURRENCY="1") as house:
        assert answered(house.model_a, 5) == 5_000
        before = peak_megabytes(house.model_a)
        assert answered(house.model_a, 160) == 160_000
        assert peak_megabytes(house.model_a) < before + 20


def peak_megabytes(service: Visitor) -> float:
    """The most memory that a process of a service ever had, in MB."""
    port = service.url.rpartition(":")[2]
    peaks = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if port.encode() in (process / "cmdline").read_bytes().split(b"\0"):
                peaks.append(int((process / "status").read_text().split("VmHWM:")[1].split()[0]) / 1024)
        except (OSError, IndexError):
            continue
    return max(peaks)


def test_answers_come_while_the_body_is_still_being_sent(house: House, client: dict[str, int]) -> None:
    """Both ways at once: a client that reads as it sends gets its first rows before it has sent the last."""
    host, port = house.model_a.url.removeprefix("http://").split(":")
    line = (json.dumps(client) + "\n").encode()
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = f"POST /v1/predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: {NDJSON}\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        chunk = line * 2_000
        connection.sendall(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        got = b""
        while b"prediction" not in got:
            got += connection.recv(65_536)
        assert got.startswith(b"HTTP/1.1 200")
        connection.sendall(b"0\r\n\r\n")
        while not got.endswith(b"0\r\n\r\n"):
            got += connection.recv(65_536)
        assert got.count(b'"prediction"') == 2_000


def test_a_client_that_goes_away_midway_leaves_no_prediction_at_work(
    house: House, client: dict[str, int]
) -> None:
    host, port = house.model_a.url.removeprefix("http://").split(":")
    for _ in range(3):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            head = f"POST /v1/predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: {NDJSON}\r\n"
            connection.sendall(f"{head}Content-Length: 1000000\r\n\r\n".encode())
            connection.sendall((json.dumps(client) + "\n").encode() * 20)
    done = threading.Event()
    for _ in range(100):
        told = house.model_a.gets("/metrics").body.decode()
        (at_work,) = [line for line in told.splitlines() if line.startswith("runoff_requests_in_flight")]
        if float(at_work.split()[-1]) == 0:
            break
        done.wait(0.1)
    assert float(at_work.split()[-1]) == 0
    assert house.model_a.asks(client).status == 200


@pytest.mark.parametrize("form", [CSV, PARQUET])
def test_mlflows_clients_may_send_files_too_and_get_its_form_of_an_answer(
    house: House, many: list[dict[str, int]], expected: list[float], form: str
) -> None:
    reply = house.model_a.sends(written(form, many[:20]), "/invocations", Content_Type=form)
    assert reply.json == {"predictions": pytest.approx(expected[:20], abs=1e-12)}
    broken = house.model_a.sends(b"PAR1 or not", "/invocations", Content_Type=PARQUET)
    assert broken.status == 400
    assert set(broken.json) == {"error_code", "message"}
