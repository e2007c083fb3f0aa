"""The router in every dialect: a client cannot tell it from a model, and its record has each row."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.credit import FEATURES
from router.dialects import (
    DIALECTS,
    OURS,
    SPOKEN,
    Dialect,
    NoPrediction,
    NotTranslated,
    foreign,
    guessed,
    named_in,
    renamed,
    said_as_ours,
)
from runoff.binary_tensors import HEADER
from tests.house import House, Reply, running
from tests.integration.test_dialects import ASKED, REFUSED, each_column, flat, tensor

Clients = list[dict[str, int]]

_, MLFLOW, V1, V2 = DIALECTS
JSON = "application/json"

# What is read of requests and answers

TWO = [{"a": 1, "b": "x"}, {"a": 2, "b": None}]

ROWS: list[tuple[str, Dialect, Any, Any]] = [
    ("a record", OURS, TWO[0], [TWO[0]]),
    ("a list", OURS, TWO, TWO),
    ("records", OURS, {"records": TWO}, TWO),
    ("the original", OURS, {"input": "1,2"}, [{"input": "1,2"}]),
    ("a column of that name", OURS, {"records": 3}, [{"records": 3}]),
    ("split", MLFLOW, {"dataframe_split": {"columns": ["a", "b"], "data": [[1, "x"], [2, None]]}}, TWO),
    ("split, no columns", MLFLOW, {"dataframe_split": {"data": [[1, "x"]]}}, [[1, "x"]]),
    ("dataframe records", MLFLOW, {"dataframe_records": TWO}, TWO),
    ("rows", MLFLOW, {"instances": [[1, 2], [3, 4]]}, [[1, 2], [3, 4]]),
    ("columns", MLFLOW, {"inputs": {"a": [1, 2], "b": ["x", None]}}, TWO),
    ("columns of other lengths", MLFLOW, {"inputs": {"a": [1, 2], "b": ["x"]}}, None),
    ("none of the forms", MLFLOW, {"a": [1, 2]}, None),
    ("instances", V1, {"instances": TWO}, TWO),
    ("no instances", V1, {"rows": TWO}, None),
    ("a list for an object", V1, TWO, None),
    ("[n]", V2, {"inputs": [tensor("a", [1, 2], [2]), tensor("b", ["x", None], [2])]}, TWO),
    ("[n, 1], nested", V2, {"inputs": [tensor("a", [[1], [2]], [2, 1])]}, [{"a": 1}, {"a": 2}]),
    ("[n, m]", V2, {"inputs": [tensor("x", [1, 2, 3, 4], [2, 2])]}, [[1, 2], [3, 4]]),
    ("[n, m], nested", V2, {"inputs": [tensor("x", [[1, 2], [3, 4]], [2, 2])]}, [[1, 2], [3, 4]]),
    ("no tensors", V2, {"inputs": []}, None),
    ("no shape", V2, {"inputs": [{"name": "a", "data": [1]}]}, None),
]


@pytest.mark.parametrize(
    ("dialect", "body", "rows"), [case[1:] for case in ROWS], ids=[case[0] for case in ROWS]
)
def test_each_row_of_a_request_is_told_in_every_shape(dialect: Dialect, body: Any, rows: Any) -> None:
    assert dialect.read(json.dumps(body).encode(), JSON, None) == rows


SAID: list[tuple[Dialect, Any]] = [
    (OURS, {"predict": [0.25, 0.5]}),
    (OURS, {"predictions": [0.25, 0.5], "model": "m"}),
    (MLFLOW, {"predictions": [0.25, 0.5]}),
    (V1, {"predictions": [0.25, 0.5]}),
    (V2, {"outputs": [tensor("predict", [0.25, 0.5], [2], "FP64")]}),
    (V2, {"outputs": [tensor("class", [0, 1], [2]), tensor("predict", [[0.25], [0.5]], [2, 1], "FP64")]}),
    (V2, {"outputs": [tensor("whatever", [0.25, 0.5], [2], "FP64")]}),
]


@pytest.mark.parametrize(("dialect", "answer"), SAID)
def test_each_prediction_of_an_answer_is_told_in_every_shape(dialect: Dialect, answer: Any) -> None:
    said = dialect.heard(json.dumps(answer).encode(), None)
    assert dialect.understand(said, 2) == (0.25, 0.5)
    assert dialect.understand(said, None) == (0.25, 0.5)
    with pytest.raises(NoPrediction, match="2 predictions for 3 rows"):
        dialect.understand(said, 3)


NOTHING_SAID = (
    *(b"", b"[", b"[0.5]", b"null", b"{}", b'{"predictions": 0.5}', b'{"predictions": [null]}', b"\xff"),
    *(b'{"predictions": [[0.5]]}', b'{"predictions": [NaN]}', b'{"outputs": []}', b'{"outputs": [1]}'),
    *(b'{"outputs": [{"name": "predict"}]}', b'{"predictions": ["high"]}', b'{"predict": {"a": 1}}'),
)


@pytest.mark.parametrize("answer", NOTHING_SAID)
@pytest.mark.parametrize("dialect", DIALECTS, ids=[each.name for each in DIALECTS])
def test_what_holds_no_prediction_is_none(dialect: Dialect, answer: bytes) -> None:
    with pytest.raises(NoPrediction):
        dialect.understand(dialect.heard(answer, None), 1)


def test_tensors_are_read_from_what_comes_after_the_json() -> None:
    a, b = np.array([1, 2], "<i8").tobytes(), np.array([0.5, 0.25], "<f8").tobytes()

    def sized(name: str, datatype: str, data: bytes) -> dict[str, Any]:
        size = {"binary_data_size": len(data)}
        return {"name": name, "shape": [2], "datatype": datatype, "parameters": size}

    head = json.dumps({"inputs": [sized("a", "INT64", a), sized("b", "FP64", b)]}).encode()
    assert V2.read(head + a + b, "application/octet-stream", str(len(head))) == [
        {"a": 1, "b": 0.5},
        {"a": 2, "b": 0.25},
    ]
    head = json.dumps({"outputs": [sized("predict", "FP64", b)]}).encode()
    assert V2.understand(V2.heard(head + b, str(len(head))), 2) == (0.5, 0.25)
    for length in ("0", "999999", "-1", "x"):
        with pytest.raises(NoPrediction):
            V2.heard(head + b, length)


def test_a_cell_of_csv_is_a_number_where_json_would_have_it_so() -> None:
    cells = ["1", "-2.5", "1e3", "", "007", "1_000", "nan", ".5", "x", " 1"]
    assert [guessed(cell) for cell in cells] == [
        1,
        -2.5,
        1000.0,
        None,
        "007",
        "1_000",
        "nan",
        ".5",
        "x",
        " 1",
    ]


def test_an_answer_may_name_its_model_and_version() -> None:
    assert named_in({"model": "m", "version": "v"}) == {"x-model-name": "m", "x-model-version": "v"}
    assert named_in({"model_name": "m"}) == {"x-model-name": "m", "x-model-version": None}
    assert named_in({"version": 3})["x-model-version"] is None
    assert named_in([0.5]) == {}


def test_a_model_is_told_by_the_name_that_it_was_asked_by() -> None:
    assert json.loads(renamed(b'{"name": "own", "ready": true}', "own", "ours")) == {
        "name": "ours",
        "ready": True,
    }
    assert json.loads(renamed(b'{"models": ["own", "other"]}', None, "ours")) == {"models": ["ours"]}
    for other in (b'{"name": "runoff"}', b"1.0", b"not JSON", b"[1]"):
        assert renamed(other, "own", "ours") == other


# What is translated


def test_what_a_variant_speaks_passes_as_it_is() -> None:
    for name, dialect in SPOKEN.items():
        for asked in DIALECTS:
            if name == "runoff" or dialect is asked:
                assert foreign(name, asked, TWO, one=False, query=True) is None


@pytest.mark.parametrize("spoken", [name for name in SPOKEN if name != "runoff"])
def test_a_request_is_put_into_what_a_variant_speaks_or_refused(spoken: str) -> None:
    theirs = foreign(spoken, OURS, TWO[:1], one=True, query=False)
    assert theirs is not None
    assert theirs is SPOKEN[spoken]
    # What it is asked in is what it would read.
    assert theirs.read(json.dumps(theirs.ask(TWO)).encode(), JSON, None) == TWO
    unfit: list[list[Any] | None] = [[{"input": "1,2,3"}], [[1, 2]], [{}], [], None]
    for rows in unfit:
        with pytest.raises(NotTranslated, match=f"speaks {spoken}"):
            foreign(spoken, OURS, rows, one=True, query=False)
    with pytest.raises(NotTranslated):
        foreign(spoken, OURS, TWO, one=True, query=True)
    other = next(each for each in DIALECTS[1:] if each is not theirs)
    with pytest.raises(NotTranslated):
        foreign(spoken, other, TWO, one=False, query=False)


def test_a_column_becomes_a_tensor_by_the_type_of_its_values() -> None:
    rows = [
        {"i": 1, "f": 1, "b": True, "s": "x", "n": None},
        {"i": 2, "f": 0.5, "b": False, "s": "y", "n": None},
    ]
    tensors = {each["name"]: each for each in V2.ask(rows)["inputs"]}
    assert {name: each["datatype"] for name, each in tensors.items()} == {
        **{"i": "INT64", "f": "FP64", "b": "BOOL", "s": "BYTES", "n": "BOOL"}
    }
    assert tensors["f"] == {"name": "f", "shape": [2], "datatype": "FP64", "data": [1, 0.5]}
    for mixed in ([{"a": 1}, {"a": "x"}], [{"a": [1]}], [{"a": True}, {"a": 1}]):
        with pytest.raises(NotTranslated, match="the column a"):
            V2.ask(mixed)


def test_an_answer_comes_back_in_the_form_that_was_asked_in() -> None:
    def said(body: Any, predictions: Sequence[float], *, one: bool, version: str | None = None) -> Any:
        content = json.dumps(body).encode()
        return json.loads(said_as_ours(content, predictions, one=one, model="m", version=version))

    assert said({"a": 1}, [0.5], one=True) == {"prediction": 0.5, "model": "m"}
    assert said([{"a": 1}], [0.5], one=False) == {"predict": [0.5]}
    assert said({"records": [{"a": 1}]}, [0.5], one=False, version="v") == {
        **{"predictions": [0.5], "model": "m", "version": "v"}
    }


# Through the router


def named(reply: Reply) -> dict[str, str]:
    """The headers by which a client knows what it got."""
    names = (
        "content-type",
        "x-model-name",
        "x-model-version",
        "x-model-digest",
        "x-unseen-values",
        HEADER.lower(),
    )
    return {name.lower(): value for name, value in reply.headers.items() if name.lower() in names}


def sends(house: House, body: bytes, path: str, **headers: str) -> tuple[Reply, Reply]:
    """What model A answers through the router, and directly."""
    through = house.router.sends(body, path, X_Force_Variant="A", **headers)
    assert through.headers["X-Variant"] == "A"
    return through, house.model_a.sends(body, path, **headers)


ONES: list[tuple[str, str, Callable[[Clients], Any]]] = [
    ("a record", "/predict", lambda c: c[0]),
    ("a record, /v1", "/v1/predict", lambda c: c[0]),
    ("the original", "/predict/", lambda c: {"input": ",".join(str(c[0][name]) for name in FEATURES)}),
    ("a record and its class", "/predict?class=true", lambda c: c[0]),
    ("a value never seen", "/predict", lambda c: c[0] | {"AGE": 119}),
    ("KServe and its class", "/v1/models/model-a:predict?class=true", lambda c: {"instances": c[:2]}),
]


@pytest.mark.parametrize(
    ("path", "ask"), [case[1:] for case in ONES + ASKED], ids=[case[0] for case in ONES + ASKED]
)
@pytest.mark.parametrize("called", ["credit-default", "model-a"])
def test_a_client_cannot_tell_the_router_from_a_model(
    house: House, clients: Clients, called: str, path: str, ask: Callable[[Clients], Any]
) -> None:
    body = json.dumps(ask(clients[:7])).encode()
    direct = house.model_a.sends(body, path)
    before = house.stats()["cursor"]
    through = house.router.sends(body, path.replace("model-a", called), X_Force_Variant="A")
    assert (through.status, through.body) == (200, direct.body)
    assert named(through) == named(direct)
    rows = house.record(before)
    told = direct.json
    if "outputs" in told:
        told = {"predict": told["outputs"][0]["data"]}
    assert [row["prediction"] for row in rows] == (
        told.get("predictions") or told.get("predict") or [told["prediction"]]
    )
    assert all(row["features"] for row in rows)


BAD = [
    ("/predict", {"AGE": 34}),
    ("/predict", [{"AGE": 34}]),
    ("/predict", {"records": [3]}),
    ("/predict", {"input": "1,2"}),
    *((path, body) for _, path, body, *_ in REFUSED if "model-z" not in path and "versions" not in path),
]


@pytest.mark.parametrize(("path", "body"), BAD)
def test_a_refusal_of_the_model_passes_byte_for_byte(house: House, path: str, body: Any) -> None:
    through, direct = sends(house, json.dumps(body).encode(), path, X_Request_ID=new_id())
    assert (through.status, through.body) == (direct.status, direct.body)
    assert 400 <= through.status < 500


def new_id() -> str:
    return f"refused-{next(NUMBERS)}"


NUMBERS = iter(range(10_000))


def test_files_for_mlflow_pass_and_each_row_is_on_record(house: House, clients: Clients) -> None:
    frame = pd.DataFrame(clients[:5])
    parquet = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(frame), parquet)
    for media_type, body in (
        ("text/csv", frame.to_csv(index=False).encode()),
        ("application/vnd.apache.parquet", parquet.getvalue()),
    ):
        before = house.stats()["cursor"]
        through, direct = sends(house, body, "/invocations", Content_Type=media_type)
        assert (through.status, through.body) == (200, direct.body)
        rows = house.record(before)
        assert [row["features"] for row in rows] == clients[:5]
        assert [row["prediction"] for row in rows] == direct.json["predictions"]


def test_binary_tensors_pass_both_ways_and_each_row_is_on_record(house: House, clients: Clients) -> None:
    data = np.array(flat(clients[:5]), "<f8").tobytes()
    whole = tensor("x", None, [5, len(FEATURES)], "FP64") | {"parameters": {"binary_data_size": len(data)}}
    del whole["data"]
    head = json.dumps({"inputs": [whole], "parameters": {"binary_data_output": True}}).encode()
    sent = {"Content_Type": "application/octet-stream", HEADER.replace("-", "_"): str(len(head))}
    before = house.stats()["cursor"]
    through, direct = sends(house, head + data, "/v2/models/model-a/infer", **sent)
    assert (through.status, through.body) == (200, direct.body)
    assert named(through) == named(direct)
    assert HEADER.lower() in named(through)
    told = house.model_a.asks(clients[:5]).json["predict"]
    assert [row["prediction"] for row in house.record(before)] == told


ABOUT = (
    *(
        "/prototype",
        "/metadata",
        "/ping",
        "/health",
        "/version",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
    ),
    *("/v1/models", "/v1/models/model-a", "/v2/models/model-a", "/v2/models/model-a/ready"),
)


@pytest.mark.parametrize("path", ABOUT)
def test_the_champion_says_what_clients_ask_besides_by_the_name_of_the_experiment(
    house: House, path: str
) -> None:
    direct = house.model_a.gets(path)
    through = house.router.gets(path.replace("model-a", "credit-default"))
    assert through.status == direct.status == 200
    assert through.headers["Content-Type"] == direct.headers["Content-Type"]
    # What it says of where it comes from stays as it is.
    called = direct.body if path == "/metadata" else direct.body.replace(b'"model-a"', b'"credit-default"')
    assert through.body == called


@pytest.mark.parametrize("path", ["/v1/models/model-z", "/v2/models/model-z", "/v2/models/model-z/ready"])
def test_a_model_that_is_not_here_is_not_found(house: House, path: str) -> None:
    reply = house.router.gets(path)
    assert (reply.status, set(reply.json)) == (404, {"error"})
    asked = house.router.sends(b"{}", "/v1/models/model-z:predict")
    assert (asked.status, set(asked.json)) == (404, {"error"})


OTHERS = ("vetiver", "mlflow", "kserve-v1", "open-inference")


@pytest.fixture(scope="module")
def babel(board: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A router whose variants are one model, each said to speak another dialect."""
    folder = tmp_path_factory.mktemp("babel")
    document = folder / "experiment.toml"
    url = "${MODEL_A_URL:-http://127.0.0.1:1}"
    variants = (
        f'[[variants]]\nname = "{name}"\ndialect = "{name}"\nurl = "{url}"\nweight = 1\n' for name in OTHERS
    )
    document.write_text('name = "babel"\n' + "".join(variants))
    with running(folder, board, "model_a", "router", RUNOFF_EXPERIMENT=str(document)) as house:
        yield house


@pytest.mark.parametrize("spoken", OTHERS)
@pytest.mark.parametrize(
    "ask", [lambda c: c[0], lambda c: c, lambda c: {"records": c}], ids=["record", "list", "records"]
)
def test_a_variant_that_speaks_another_dialect_answers_as_one_of_ours(
    babel: House, clients: Clients, spoken: str, ask: Callable[[Clients], Any]
) -> None:
    body = json.dumps(ask(clients[:5])).encode()
    before = babel.stats()["cursor"]
    direct: Mapping[str, Any] = babel.model_a.sends(body).json
    reply = babel.router.sends(body, X_Force_Variant=spoken)
    assert reply.status == 200, reply.body
    assert reply.json == direct
    assert reply.headers["Content-Type"] == JSON
    rows = babel.record(before)
    assert {row["variant"] for row in rows} == {spoken}
    assert [row["prediction"] for row in rows] == (
        direct.get("predictions") or direct.get("predict") or [direct["prediction"]]
    )
    assert [row["features"] for row in rows] == clients[: len(rows)]


def test_what_cannot_be_translated_is_a_501_that_names_the_variant(babel: House, clients: Clients) -> None:
    before = babel.stats()["cursor"]
    original = json.dumps({"input": ",".join(str(clients[0][name]) for name in FEATURES)}).encode()
    reply = babel.router.sends(original, X_Force_Variant="mlflow")
    assert (reply.status, reply.json["type"]) == (501, "urn:runoff:problem:not-translated")
    assert reply.headers["X-Variant"] == "mlflow"
    tensors = json.dumps({"inputs": each_column(clients[:1], [])}).encode()
    reply = babel.router.sends(tensors, "/v2/models/babel/infer", X_Force_Variant="kserve-v1")
    assert (reply.status, set(reply.json)) == (501, {"error"})
    assert [row["status"] for row in babel.record(before)] == [501, 501]
