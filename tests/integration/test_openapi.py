"""The OpenAPI document: it tells all that the services answer, and nothing that they do not."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from jsonschema import Draft202012Validator
from playwright.sync_api import Page, expect
from werkzeug.test import TestResponse

from runoff.management import Management
from runoff.management_api import KEY
from runoff.prediction import create_app
from runoff.prototype import Prototype
from runoff.store import Store
from runoff.web import MAX_BODY_BYTES
from tests.house import served

PREFIX = "/model-management-python/model-a-predict"
METHODS = ("get", "post", "put", "patch", "delete")
OPERATOR = {"Authorization": "Bearer open sesame"}


@pytest.fixture(scope="module", params=["model-a", "model-b"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def app(name: str, board: Path, tmp_path_factory: pytest.TempPathFactory) -> Flask:
    """A service on a board of its own, on which all that can be done with versions can be done."""
    folder = tmp_path_factory.mktemp("own") / "board"
    shutil.copytree(board, folder)
    management = Management(Store.open(folder))
    models = ("model-a", "model-b")
    for service, model in (*zip(models, reversed(models), strict=True), *zip(models, models, strict=True)):
        management.release(service, management.version(model), by="a test", reason="to have a past")
    return create_app(name, store=management.store)


@pytest.fixture(scope="module")
def unable(name: str, board: Path, tmp_path_factory: pytest.TempPathFactory) -> Flask:
    """The same service, whose versions are damaged."""
    folder = tmp_path_factory.mktemp("damaged") / "board"
    shutil.copytree(board, folder)
    for file in [*folder.glob("*/*/*.joblib"), *folder.glob("*/*/golden.json")]:
        file.write_bytes(b"")
    return create_app(name, store=Store.open(folder))


@pytest.fixture(scope="module")
def busy(name: str, board: Path, tmp_path_factory: pytest.TempPathFactory) -> Flask:
    """The same service, to which no more may be sent, and whose versions were written by a later release."""
    folder = tmp_path_factory.mktemp("later") / "board"
    shutil.copytree(board, folder)
    for file in folder.glob("model-*/*/data.txt"):
        file.write_text(re.sub(r"\bformat: \d+", "format: 99", file.read_text("utf-8")), encoding="utf-8")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RUNOFF_MAX_IN_FLIGHT", "0")
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


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "open sesame")


def test_every_example_of_a_request_is_answered(app: Flask, document: dict[str, Any]) -> None:
    asked = 0
    for path, method, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        for name, example in content.get("examples", {}).items():
            reply = app.test_client().open(
                at(path, operation),
                method=method.upper(),
                json=example["value"],
                headers=OPERATOR,
                buffered=True,
            )
            assert reply.status_code == 200, (path, name, reply.text)
            asked += 1
    assert asked == 3 * 4 + 1 + 1 + 2 + 3


def test_every_answer_in_the_document_occurs_and_is_as_it_says(
    app: Flask, unable: Flask, busy: Flask, document: dict[str, Any]
) -> None:
    shared = {"components": closed(document["components"])}
    for path, method, operation in operations(document):
        for status, told in operation["responses"].items():
            asked = {409: unable, 503: busy}.get(int(status), app)
            reply = provoked(asked, path, method, operation, int(status))
            assert reply.status_code == int(status), (path, status, reply.text)
            assert reply.headers["X-Request-ID"]
            if status == "304":
                continue
            content = told["content"].get(reply.mimetype, told["content"].get("*/*"))
            assert content is not None, (path, status, reply.mimetype)
            if reply.is_json:
                validator = Draft202012Validator(closed(content["schema"]) | shared)
                assert not list(validator.iter_errors(reply.get_json())), (path, status, reply.text)


def at(path: str, operation: dict[str, Any], **values: str) -> str:
    """An address with its parameters as in their examples, or others."""
    query = []
    for parameter in operation["parameters"]:
        if parameter.get("in") == "path":
            name = parameter["name"]
            path = path.replace(f"{{{name}}}", values.get(name, parameter["example"]))
        elif parameter.get("required"):
            query.append(f"{parameter['name']}=newest")
    return f"{path}?{'&'.join(query)}"


def provoked(app: Flask, path: str, method: str, operation: dict[str, Any], status: int) -> TestResponse:
    """What a service answers to a request that ought to get this status."""
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    address = at(path, operation)
    headers = dict(OPERATOR) if "security" in operation else {}
    sent: dict[str, Any] = {"json": next(iter(body["examples"].values()))["value"]} if body else {}
    if status == 304:
        headers["If-None-Match"] = app.test_client().get(address).headers["ETag"]
    elif status == 400:
        headers["X-Request-ID"] = "not an id"
    elif status == 401:
        del headers["Authorization"]
    elif status == 403:
        headers["Authorization"] = "Bearer of bad news"
    elif status == 404:
        address = at(path, operation, model="nobody", file="nothing", version="nothing")
    elif status == 406:
        headers["Accept"] = "image/png"
        sent = {"data": "{}", "content_type": "text/csv"} if body else {}
    elif status == 409 and path == "/v1/swap":
        sent["json"] |= {"one": sent["json"]["other"]}
    elif status == 412:
        headers["If-Match"] = '"another"'
    elif status == 413:
        sent = {"data": b" " * (MAX_BODY_BYTES + 1), "content_type": "application/json"}
    elif status == 415:
        sent = {"data": "{}", "content_type": "text/plain"}
    elif status == 422:
        sent["json"] = {}
    return app.test_client().open(address, method=method.upper(), headers=headers, buffered=True, **sent)


def closed(schema: Any) -> Any:
    """A schema by which nothing may be answered that it does not name."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(each) for key, each in schema.items()}
    return {"additionalProperties": False, **inner} if "properties" in schema else inner


@pytest.mark.slow
def test_the_page_shows_the_document_and_asks_the_service_below_any_prefix(store: Store, page: Page) -> None:
    with served(create_app("model-a", store=store), PREFIX) as url:
        page.goto(f"{url}/docs")
        page.get_by_role("button", name="post /predict", exact=False).first.click()
        page.get_by_role("button", name="Try it out").click()
        page.get_by_role("button", name="Execute").click()
        answered = page.locator(".live-responses-table .response").first
        expect(answered.locator(".response-col_status")).to_contain_text("200")
        expect(answered).to_contain_text(store.version("model-a").id)
        expect(page.locator(".request-url")).to_contain_text(f"{PREFIX}/predict")
