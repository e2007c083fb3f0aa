"""The router's OpenAPI document tells what the router answers, and its page works."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import pytest
from jsonschema import Draft202012Validator

from router.dialects import ABOUT, DIALECTS
from tests.conftest import House, Reply

METHODS = ("get", "post", "put", "patch", "delete")


@pytest.fixture(scope="module")
def document(house: House) -> dict[str, Any]:
    told: dict[str, Any] = house.router.gets("/openapi.json").json
    return told


def is_as_told(document: dict[str, Any], reply: Reply, path: str, method: str = "get") -> None:
    """An answer is one that the document has, in its form."""
    told = document["paths"][path][method]["responses"][str(reply.status)]["content"]
    schema = told[reply.headers["Content-Type"].partition(";")[0]]["schema"]
    Draft202012Validator({**schema, "components": document["components"]}).validate(reply.json)


def test_it_has_what_the_router_has(document: dict[str, Any]) -> None:
    paths = document["paths"]
    dialects = {address for dialect in DIALECTS for address in dialect.addresses}
    for address in dialects:
        assert "post" in paths[address.replace("<", "{").replace(">", "}")]
    for address in ABOUT:
        assert "get" in paths[address.replace("<", "{").replace(">", "}")]
    for path in ("/predictions", "/stats", "/outcomes", "/v1/predictions/{id_}", "/v1/experiment", "/readyz"):
        assert paths[path]
    told = [each for path in paths.values() for name, each in path.items() if name in METHODS]
    assert all(each["summary"] for each in told)
    assert len({each["operationId"] for each in told}) == len(told)


def test_a_record_is_told_by_the_columns_of_the_champion(house: House, document: dict[str, Any]) -> None:
    prototype = house.model_a.gets("/prototype").json
    record = document["components"]["schemas"]["Record"]
    assert list(record["properties"]) == prototype["required"]
    assert record["properties"]["SEX"]["enum"] == prototype["properties"]["SEX"]["enum"]


def test_every_example_is_answered_as_the_document_says(house: House, document: dict[str, Any]) -> None:
    asked = 0
    for path, item in document["paths"].items():
        if "post" not in item or "predictions" not in item["post"]["tags"]:
            continue
        for name, example in item["post"]["requestBody"]["content"]["application/json"]["examples"].items():
            asked += 1
            address = path.replace("{model}", "credit-default").replace("{version}", "1")
            reply = house.router.sends(json.dumps(example["value"]).encode(), address)
            assert reply.status == 200, (path, name, reply.body)
            is_as_told(document, reply, path, "post")
    assert asked >= 8


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/", {}),
        ("/stats", {}),
        ("/v1/stats", {"tag": "real"}),
        ("/stats", {"tag": "NO"}),
        ("/predictions", {"last": 3}),
        ("/predictions", {"last": "x"}),
        ("/v1/predictions", {"limit": 2, "outcome": "unknown"}),
        ("/livez", {}),
        ("/readyz", {}),
        ("/prototype", {}),
        ("/metadata", {}),
        ("/v1/models", {}),
        ("/v1/experiment", {}),
        ("/v1/experiment/state", {}),
        ("/v1/audit", {}),
    ],
)
def test_what_is_read_is_in_the_form_that_the_document_tells(
    house: House, document: dict[str, Any], client: dict[str, int], path: str, query: dict[str, Any]
) -> None:
    assert house.router.asks(client).status == 200
    is_as_told(document, house.router.gets(f"{path}?{urlencode(query)}"), path)


def test_a_prediction_and_its_outcomes_are_in_the_form_that_the_document_tells(
    house: House, document: dict[str, Any], client: dict[str, int]
) -> None:
    id_ = house.router.asks(client).headers["X-Request-ID"]
    for body, status in (
        ({"id": id_, "outcome": 1}, 201),
        ({"id": id_, "outcome": 1}, 200),
        ({"id": id_, "outcome": 0}, 409),
        ({"id": "not-yet", "outcome": 0}, 202),
        ({"id": id_, "outcome": "x"}, 422),
        ([{"id": id_, "outcome": 1}], 200),
    ):
        reply = house.router.sends(json.dumps(body).encode(), "/v1/outcomes")
        assert reply.status == status
        is_as_told(document, reply, "/v1/outcomes", "post")
    is_as_told(document, house.router.gets(f"/predictions/{id_}"), "/predictions/{id_}")
    is_as_told(document, house.router.gets("/predictions/nobody"), "/predictions/{id_}")


def test_the_page_loads_nothing_from_elsewhere(house: House) -> None:
    page = house.router.gets("/docs")
    assert page.status == 200
    assert page.headers["Content-Type"].startswith("text/html")
    assert b"http" not in page.body
    for file in ("swagger-ui.css", "swagger-ui-bundle.js"):
        assert file.encode() in page.body
        assert house.router.gets(f"/docs/{file}").status == 200
