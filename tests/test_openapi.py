"""The OpenAPI document: it tells all that the services answer, and nothing that they do not."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from jsonschema import Draft202012Validator
from playwright.sync_api import Page, expect
from werkzeug.serving import make_server
from werkzeug.test import TestResponse

from runoff.prediction import create_app
from runoff.prototype import Prototype
from runoff.store import Store
from runoff.web import MAX_BODY_BYTES

PREFIX = "/model-management-python/model-a-predict"
METHODS = ("get", "post", "put", "patch", "delete")


@pytest.fixture(scope="module", params=["model-a", "model-b"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def app(name: str, store: Store) -> Flask:
    return create_app(name, store=store)


@pytest.fixture(scope="module")
def unable(name: str, board: Path, tmp_path_factory: pytest.TempPathFactory) -> Flask:
    """The same service, whose version is damaged."""
    folder = tmp_path_factory.mktemp("damaged") / "board"
    shutil.copytree(board / name, folder / name)
    for file in folder.glob("*/*/*.joblib"):
        file.write_bytes(b"")
    return create_app(name, store=Store.open(folder))


@pytest.fixture(scope="module")
def document(app: Flask) -> dict[str, Any]:
    told: dict[str, Any] = app.test_client().get("/openapi.json").get_json()
    return told


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def test_every_address_is_in_the_document_and_no_other(app: Flask, document: dict[str, Any]) -> None:
    there = {
        (re.sub(r"<(\w+:)?(\w+)>", r"{\2}", rule.rule), method)
        for rule in app.url_map.iter_rules()
        for method in map(str.lower, rule.methods or ())
        if method in METHODS
    }
    assert {(path, method) for path, method, _ in operations(document)} == there
    assert all(operation["summary"] for *_, operation in operations(document))


def test_a_record_is_told_by_the_columns_of_the_model(app: Flask, document: dict[str, Any]) -> None:
    prototype = app.test_client().get("/prototype").get_json()
    record = document["components"]["schemas"]["Record"]
    assert list(record["properties"]) == record["required"] == prototype["required"]
    assert record["properties"]["SEX"]["enum"] == prototype["properties"]["SEX"]["enum"]
    assert record["examples"] == [Prototype.from_json(prototype).example]


def test_every_example_of_a_request_is_answered(app: Flask, document: dict[str, Any]) -> None:
    asked = 0
    for path, method, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        for name, example in content.get("examples", {}).items():
            reply = app.test_client().open(at(path, operation), method=method, json=example["value"])
            assert reply.status_code == 200, (path, name, reply.text)
            asked += 1
    assert asked == 3 * 4 + 1 + 1 + 2


def test_every_answer_in_the_document_occurs_and_is_as_it_says(
    app: Flask, unable: Flask, document: dict[str, Any]
) -> None:
    shared = {"components": closed(document["components"])}
    for path, method, operation in operations(document):
        for status, told in operation["responses"].items():
            reply = provoked(app, unable, path, method, operation, int(status))
            assert reply.status_code == int(status), (path, status, reply.text)
            assert reply.headers["X-Request-ID"]
            content = told["content"].get(reply.mimetype, told["content"].get("*/*"))
            assert content is not None, (path, status, reply.mimetype)
            if reply.is_json:
                validator = Draft202012Validator(closed(content["schema"]) | shared)
                assert not list(validator.iter_errors(reply.get_json())), (path, status, reply.text)


def at(path: str, operation: dict[str, Any], **values: str) -> str:
    """A path with its parameters as in their examples, or others."""
    for parameter in operation["parameters"]:
        if parameter.get("in") == "path":
            name = parameter["name"]
            path = path.replace(f"{{{name}}}", values.get(name, parameter["example"]))
    return path


def provoked(
    app: Flask, unable: Flask, path: str, method: str, operation: dict[str, Any], status: int
) -> TestResponse:
    """What a service answers to a request that ought to get this status."""
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    sent: dict[str, Any] = {"method": method}
    if body:
        sent["json"] = next(iter(body["examples"].values()))["value"]
    if status == 400:
        sent["headers"] = {"X-Request-ID": "not an id"}
    if status == 404:
        path = at(path, operation, model="nobody", file="nothing", version="nothing")
    if status == 406:
        sent |= {"json": None, "data": "{}", "content_type": "text/csv", "headers": {"Accept": "image/png"}}
    if status == 413:
        sent |= {"json": None, "data": b" " * (MAX_BODY_BYTES + 1), "content_type": "application/json"}
    if status == 415:
        sent |= {"json": None, "data": "{}", "content_type": "text/plain"}
    if status == 422:
        sent["json"] = {}
    return (unable if status == 503 else app).test_client().open(at(path, operation), **sent)


def closed(schema: Any) -> Any:
    """A schema by which nothing may be answered that it does not name."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(each) for key, each in schema.items()}
    return {"additionalProperties": False, **inner} if "properties" in schema else inner


def test_the_page_shows_the_document_and_asks_the_service_below_any_prefix(store: Store, page: Page) -> None:
    with served(create_app("model-a", store=store)) as url:
        page.goto(f"{url}{PREFIX}/docs")
        page.get_by_role("button", name="post /predict", exact=False).first.click()
        page.get_by_role("button", name="Try it out").click()
        page.get_by_role("button", name="Execute").click()
        answered = page.locator(".live-responses-table .response").first
        expect(answered.locator(".response-col_status")).to_contain_text("200")
        expect(answered).to_contain_text(store.version("model-a").id)
        expect(page.locator(".request-url")).to_contain_text(f"{PREFIX}/predict")


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """An app behind a proxy that takes a prefix from each address, and says nothing of it."""

    def proxied(environ: dict[str, Any], start_response: Any) -> Any:
        assert environ["PATH_INFO"].startswith(PREFIX)
        return app(environ | {"PATH_INFO": environ["PATH_INFO"].removeprefix(PREFIX)}, start_response)

    server = make_server("127.0.0.1", 0, proxied, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
