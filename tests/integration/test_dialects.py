"""One model, whichever dialect it is asked in: the same probabilities, in the form that clients expect."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from data.credit import FEATURES
from runoff.store import Store
from tests.house import House, Reply

Clients = list[dict[str, int]]

V1 = "/v1/models/model-a:predict"
V2 = "/v2/models/model-a/infer"


def rows(clients: Clients) -> list[list[int]]:
    return [[client[name] for name in FEATURES] for client in clients]


def columns(clients: Clients) -> dict[str, list[int]]:
    return {name: [client[name] for client in clients] for name in reversed(FEATURES)}


def tensor(name: str, data: Any, shape: list[int], kind: str = "INT64") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": kind, "data": data}


def flat(clients: Clients) -> list[int]:
    return [value for row in rows(clients) for value in row]


def each_column(clients: Clients, shape: list[int]) -> list[dict[str, Any]]:
    return [tensor(name, data, [len(clients), *shape]) for name, data in columns(clients).items()]


def split(clients: Clients) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(pd.DataFrame(clients).to_json(orient="split"))
    return told


# The dialect, where it is spoken, what is asked for the clients.
ASKED: list[tuple[str, str, Callable[[Clients], Any]]] = [
    ("ours", "/predict", lambda c: {"records": c}),
    ("vetiver", "/predict", lambda c: c),
    ("MLflow dataframe_split", "/invocations", lambda c: {"dataframe_split": split(c)}),
    ("MLflow dataframe_records", "/invocations", lambda c: {"dataframe_records": c}),
    ("MLflow instances, records", "/invocations", lambda c: {"instances": c}),
    ("MLflow instances, rows", "/invocations", lambda c: {"instances": rows(c)}),
    ("MLflow inputs, columns", "/invocations", lambda c: {"inputs": columns(c)}),
    ("MLflow inputs, rows", "/invocations", lambda c: {"inputs": rows(c)}),
    ("MLflow, unknown columns", "/invocations", lambda c: {"instances": [each | {"ID": 7} for each in c]}),
    ("KServe V1 records", V1, lambda c: {"instances": c}),
    ("KServe V1 rows", V1, lambda c: {"instances": rows(c)}),
    ("V2 a tensor a column, [n]", V2, lambda c: {"inputs": each_column(c, [])}),
    ("V2 a tensor a column, [n, 1]", V2, lambda c: {"inputs": each_column(c, [1])}),
    ("V2 one tensor, nested", V2, lambda c: {"inputs": [tensor("x", rows(c), [len(c), 23])]}),
    ("V2 one tensor, flat", V2, lambda c: {"inputs": [tensor("x", flat(c), [len(c), 23])]}),
]

# The dialect, where it is spoken, a broken request, the status, a part of what is said.
REFUSED: list[tuple[str, str, Any, int, str]] = [
    ("MLflow", "/invocations", {}, 400, "exactly one of dataframe_split"),
    ("MLflow", "/invocations", {"instances": [{}], "inputs": []}, 400, "exactly one of"),
    ("MLflow", "/invocations", {"instances": []}, 400, "instances must be a list of one or more"),
    ("MLflow", "/invocations", {"instances": [[1, 2]]}, 400, "must be a list of 23 values"),
    ("MLflow", "/invocations", {"instances": [{"AGE": 1}]}, 400, "LIMIT_BAL is missing"),
    ("MLflow", "/invocations", {"dataframe_split": [1]}, 400, "an object with columns and data"),
    (
        "MLflow",
        "/invocations",
        {"dataframe_split": {"columns": [1], "data": [[1]]}},
        400,
        "list of column names",
    ),
    (
        "MLflow",
        "/invocations",
        {"dataframe_split": {"columns": ["a"], "data": [1]}},
        400,
        "a list of 1 values",
    ),
    ("MLflow", "/invocations", {"inputs": {"a": [1], "b": [1, 2]}}, 400, "columns of equal length"),
    ("MLflow", "/invocations", {"inputs": {"a": 1}}, 400, "lists of values"),
    ("KServe", V1, [], 422, "instances must be a list"),
    ("KServe", V1, {"instances": "all"}, 422, "instances must be a list"),
    ("KServe", V1, {"instances": [{"AGE": "old"}]}, 422, "LIMIT_BAL is missing"),
    ("KServe", "/v1/models/model-z:predict", {"instances": []}, 404, "has the model model-a, not model-z"),
    ("V2", V2, {}, 422, "inputs must be a list"),
    ("V2", V2, {"inputs": [1]}, 422, "a tensor with name"),
    ("V2", V2, {"inputs": [tensor("AGE", [1], [10**400])]}, 422, "as many values as the shape"),
    ("V2", V2, {"inputs": [tensor("AGE", [1], [-1])]}, 422, "whole numbers above 0"),
    ("V2", V2, {"inputs": [tensor("AGE", [1], [1, 1, 1])]}, 422, "one or two whole numbers"),
    ("V2", V2, {"inputs": [tensor("AGE", [[[1]]], [1])]}, 422, "AGE must be a whole number"),
    ("V2", V2, {"inputs": [tensor("AGE", [1, 2], [1])]}, 422, "as many values as the shape"),
    ("V2", V2, {"inputs": [tensor("x", [1, 2, 3, 4], [2, 2])]}, 422, "[n, 23]"),
    ("V2", V2, {"inputs": [tensor("AGE", [1], [1]), tensor("SEX", [1, 2], [2])]}, 422, "equal length"),
    ("V2", V2, {"inputs": [tensor("AGE", [30], [1], "FP64")]}, 422, "LIMIT_BAL is missing"),
    ("V2", "/v2/models/model-a/versions/1/infer", {"inputs": []}, 404, "no version '1' of 'model-a'"),
]


def offline(store: Store, clients: Clients) -> list[float]:
    found: list[float] = store.load("model-a").probabilities(pd.DataFrame(clients)).tolist()
    return found


def predictions(reply: Reply) -> list[float]:
    """The probabilities in an answer of any dialect."""
    told = reply.json
    if "outputs" in told:
        [output] = told["outputs"]
        assert (output["datatype"], output["shape"]) == ("FP64", [len(output["data"])])
        return list(output["data"])
    return list(told.get("predictions", told.get("predict")))


@pytest.mark.parametrize(("path", "ask"), [case[1:] for case in ASKED], ids=[case[0] for case in ASKED])
def test_every_dialect_gets_the_same_probabilities(
    house: House, store: Store, clients: Clients, path: str, ask: Callable[[Clients], Any]
) -> None:
    reply = house.model_a.sends(json.dumps(ask(clients[:7])).encode(), path)
    assert reply.status == 200, reply.body
    assert predictions(reply) == offline(store, clients[:7])
    assert reply.headers["X-Model-Version"] == store.version("model-a").id


@pytest.mark.parametrize(
    ("path", "body", "status", "detail"),
    [case[1:] for case in REFUSED],
    ids=[f"{case[0]} {str(case[2])[:30]} {case[4]}" for case in REFUSED],
)
def test_every_dialect_is_refused_in_its_own_form(
    house: House, path: str, body: Any, status: int, detail: str
) -> None:
    reply = house.model_a.sends(json.dumps(body).encode(), path)
    assert reply.status == status, reply.body
    form = {"error_code", "message"} if path == "/invocations" else {"error"}
    assert set(reply.json) == form
    assert detail in reply.json["message" if path == "/invocations" else "error"]


def test_mlflow_takes_csv(house: House, store: Store, clients: Clients) -> None:
    text = pd.DataFrame(clients[:7]).to_csv(index=False)
    reply = house.model_a.sends(text.encode(), "/invocations", Content_Type="text/csv")
    assert reply.json == {"predictions": offline(store, clients[:7])}
    for broken in ("", "AGE\n1,2\n", "AGE\nold\n", '"'):
        refused = house.model_a.sends(broken.encode(), "/invocations", Content_Type="text/csv")
        assert refused.status == 400
        assert refused.json["error_code"] == "BAD_REQUEST"
    # Elsewhere CSV is no request.
    assert house.model_a.sends(text.encode(), V1, Content_Type="text/csv").status == 415


def test_open_inference_echoes_the_id_and_names_the_version(
    house: House, store: Store, clients: Clients
) -> None:
    version = store.version("model-a").id
    body = {"id": "mine", "inputs": each_column(clients[:1], [])}
    path = f"/v2/models/model-a/versions/{version}/infer"
    told = house.model_a.sends(json.dumps(body).encode(), path).json
    assert (told["id"], told["model_name"], told["model_version"]) == ("mine", "model-a", version)


def test_open_inference_tells_the_tensors_of_the_model(house: House, store: Store) -> None:
    version = store.version("model-a").id
    told = house.model_a.gets("/v2/models/model-a").json
    assert told == house.model_a.gets(f"/v2/models/model-a/versions/{version}").json
    assert told["name"] == "model-a"
    assert told["versions"] == [version]
    assert [tensor["name"] for tensor in told["inputs"]] == list(FEATURES)
    assert told["inputs"][0] == {"name": "LIMIT_BAL", "datatype": "INT64", "shape": [-1]}
    assert [tensor["name"] for tensor in told["outputs"]] == ["predict", "class"]


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/ping", {"ping": "pong"}),
        ("/health", {"status": "ready"}),
        ("/v1/models", {"models": ["model-a"]}),
        ("/v1/models/model-a", {"name": "model-a", "ready": True}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/model-a/ready", {"name": "model-a", "ready": True}),
    ],
)
def test_clients_find_out_whether_a_model_is_ready(house: House, path: str, answer: dict[str, Any]) -> None:
    reply = house.model_a.gets(path)
    assert (reply.status, reply.json) == (200, answer)


@pytest.mark.parametrize("path", ["/v1/models/model-z", "/v2/models/model-z", "/v2/models/model-z/ready"])
def test_a_model_that_is_not_here_is_not_found(house: House, path: str) -> None:
    reply = house.model_a.gets(path)
    assert (reply.status, set(reply.json)) == (404, {"error"})
