"""The router's OpenAPI document tells what the router answers, and its page works."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
from flask import Flask
from jsonschema import Draft202012Validator
from werkzeug.test import TestResponse

from router.dialects import ABOUT, DIALECTS
from router.keys import OPERATOR_KEY
from runoff.web import MAX_BODY_BYTES
from tests.house import House, Reply, running, until

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

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


# Everything is asked of a router that runs in the test itself, so that one sees which headers it looks for;
# the models behind it are services.

KEY = "open sesame"
ON_RECORD = "on-record"
REPORTED = {"id": ON_RECORD, "outcome": 1}
# What is sent where the document says that something must be, or that it stands in the address.
GIVEN = {"reason": "so", "difference": "0.001", "from": "newest", "version": "newest", "id_": ON_RECORD}

Way = dict[str, Any]


def sends(**headers: str | None) -> Way:
    """Header names are written with underscores; None takes one away that is needed."""
    return {"headers": {name.replace("_", "-"): value for name, value in headers.items()}}


# How else an operation can be asked than as the document says.
WAYS: dict[str, Way] = {
    "as it says": {},
    "without a key": sends(Authorization=None),
    "with a key that nobody knows": sends(Authorization="Bearer of bad news"),
    "with a request's id that is none": sends(X_Request_ID="not an id"),
    "with a request's id that is on record": sends(X_Request_ID=ON_RECORD),
    "for what is not there": {"named": "nothing"},
    "with nothing in the query": {"query": {}},
    "with nonsense in the query": {"nonsense": True},
    "with an empty body": {"body": b"{}"},
    "with a number": {"body": b"42"},
    "with half a body": {"body": b"{"},
    "with too long a body": {"body": b" " * (MAX_BODY_BYTES + 1)},
    "with text": {"media_type": "text/plain"},
    "with rows, for a picture": {"media_type": "application/x-ndjson"} | sends(Accept="image/png"),
    "for a picture": sends(Accept="image/png"),
    "for a page": sends(Accept="text/markdown"),
    "for a table": sends(Accept="text/csv"),
    "for what has changed": sends(If_None_Match="*"),
    "by a variant that there is not": sends(X_Force_Variant="nobody"),
    "for a replay that there is not": {"query": {"replay": "nothing"}},
    "with an outcome": {"body": json.dumps(REPORTED).encode()},
    "with another outcome": {"body": json.dumps(REPORTED | {"outcome": 0}).encode()},
    "by promoting nobody": {"body": b'{"promote": "nobody"}'},
    "once": sends(Idempotency_Key="once"),
    "once more, and something else": {"body": b"[]"} | sends(Idempotency_Key="once"),
}
# How else the experiment can be changed. Others, too, answer 412 to these, as HTTP has it.
VERSIONS = {"of no version": sends(If_Match=None), "of another version": sends(If_Match='"0"')}
# Said of Parquet where pyarrow is not installed.
NOT_HERE = {("get", "/predictions", 406), ("get", "/v1/predictions", 406)}
# Read by the libraries for the sake of HTTP itself, or told elsewhere in a document (OpenAPI 3.1, section
# 4.8.12.1).
OF_HTTP = {
    *("Accept", "Authorization", "Connection", "Host", "Transfer-Encoding"),
    *("If-Match", "If-Modified-Since", "Range", "If-Range"),
}
# Passed on to a service by more addresses than those at which it knows what to do with it.
PASSED_ON = {"Inference-Header-Content-Length", "If-None-Match"}


class Noting(dict[str, Any]):
    """A request as WSGI has it, that notes what is looked for in it."""

    def __init__(self, environ: dict[str, Any], looked_for: set[str]) -> None:
        super().__init__(environ)
        self._looked_for = looked_for

    def __getitem__(self, name: str) -> Any:
        self._looked_for.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._looked_for.add(name)
        return super().get(name, default)


class Asking:
    """Somebody who asks for all that the document has, in all ways, and keeps what came of it."""

    def __init__(self, app: Flask) -> None:
        self.looked_for: set[str] = set()
        inner = app.wsgi_app

        def noted(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            return inner(Noting(environ, self.looked_for), start_response)

        app.wsgi_app = noted  # type: ignore[method-assign]
        self.client = app.test_client()
        self.document: dict[str, Any] = self.gets("/openapi.json").get_json()
        self.variant = "B"
        self.experiment: Any = None
        # What came of it, by operation: all statuses, that of a request as the document says it must be, the
        # headers that were read; and what is not as told.
        self.seen: set[tuple[str, str, int]] = set()
        self.usual: dict[tuple[str, str], int] = {}
        self.read: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.untold: list[str] = []

    def gets(self, path: str) -> TestResponse:
        return self.client.get(path, headers={"Authorization": f"Bearer {KEY}"})

    def everything(self, ways: dict[str, Way], header: str = "X-Request-ID") -> None:
        """Ask for everything that takes a header, in each of some ways."""
        for path, item in self.document["paths"].items():
            for method, operation in item.items():
                if any(each["name"] == header for each in parameters(self.document, operation)):
                    for name, way in ways.items():
                        self._note(method, path, name, self._asks(method, path, **way))

    def puts_on_record(self) -> None:
        """Let each variant answer once, and be counted."""
        record = self.document["components"]["schemas"]["Record"]["examples"][0]
        for variant, id_ in (("A", ON_RECORD), ("B", f"{ON_RECORD}-too")):
            headers = {"Authorization": f"Bearer {KEY}", "X-Force-Variant": variant, "X-Request-ID": id_}
            assert self.client.post("/predict", json=record, headers=headers).status_code == 200
        assert self.gets("/stats").get_json()["cursor"] == 2

    def changes(self, document: dict[str, Any]) -> None:
        """Put another document of the experiment in force."""
        etag = self.gets("/v1/experiment").headers["ETag"]
        headers = {"Authorization": f"Bearer {KEY}", "If-Match": etag}
        put = self.client.put("/v1/experiment?reason=so", json=document, headers=headers)
        assert put.status_code == 200, put.text

    def _asks(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str | None] | None = None,
        named: str | None = None,
        query: dict[str, str] | None = None,
        nonsense: bool = False,
        body: bytes | None = None,
        media_type: str = "application/json",
    ) -> TestResponse:
        """Ask as the document says, but for what is said otherwise."""
        operation = self.document["paths"][path][method]
        taken = list(parameters(self.document, operation))
        given = GIVEN | {"variant": self.variant}
        if any(each["name"] == "If-Match" for each in taken):
            looked = in_force = self.gets("/v1/experiment")
            if in_force.status_code == 200:
                # What is got can be put back.
                self.experiment = in_force.get_json()
            if path.startswith("/v1/variants/"):
                looked = self.gets(f"/v1/variants/{self.variant}/releases")
            given["If-Match"] = looked.headers.get("ETag", '"1"')
        sent: dict[str, dict[str, str]] = {"path": {}, "query": {}, "header": {}}
        for each in taken:
            name = each["name"]
            if each["required"]:
                sent[each["in"]][name] = given.get(name) or each["example"]
            elif nonsense and each["in"] == "query":
                sent["query"][name] = "!"
        if nonsense:
            sent["query"] = dict.fromkeys(sent["query"], "!")
        address = path
        for name, value in sent["path"].items():
            address = address.replace(f"{{{name}}}", named or value)
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content and body is None:
            examples = content.get("examples", {"usual": {"value": self.experiment}})
            body = json.dumps(next(iter(examples.values()))["value"]).encode()
        every = {"Authorization": f"Bearer {KEY}"} | sent["header"] | (headers or {})
        self.looked_for.clear()
        reply = self.client.open(
            f"{address}?{urlencode(sent['query'] if query is None else query)}",
            method=method.upper(),
            headers={name: value for name, value in every.items() if value is not None},
            data=body if content else None,
            content_type=media_type if content else None,
            buffered=True,
        )
        self.read[method, path] |= {name for name in self.looked_for if name.startswith("HTTP_")}
        return reply

    def _note(self, method: str, path: str, way: str, reply: TestResponse) -> None:
        status = reply.status_code
        self.seen.add((method, path, status))
        self.usual.setdefault((method, path), status)
        told = self.document["paths"][path][method]["responses"].get(str(status))
        about = f"{method} {path}, {way}: {status} {reply.mimetype} {reply.text[:200]}"
        content = told and told["content"].get(reply.mimetype, told["content"].get("*/*"))
        if told is None or (content is None and status != 304):
            self.untold.append(about)
        elif content and reply.is_json:
            schema = content["schema"] | {"components": self.document["components"]}
            if not Draft202012Validator(schema).is_valid(reply.get_json()):
                self.untold.append(f"in another form: {about}")


def parameters(document: dict[str, Any], operation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for each in operation["parameters"]:
        _, _, shared = each.get("$ref", "").rpartition("/")
        yield document["components"]["parameters"][shared] if shared else each


def experiment(urls: dict[str, str], **more: Any) -> dict[str, Any]:
    """An experiment of two variants, of which the champion gets all; with what is said of both, or of it."""
    ours = {name: more.pop(name) for name in ("url", "dialect") if name in more}
    first = {"name": "A", "role": "champion", "weight": 1, "url": urls["model_a"]} | ours
    second = {"name": "B", "weight": 0, "url": urls["model_b"]} | ours
    return {"name": "ours", "maturity": "0d", "unit": "X-Customer", "variants": [first, second], **more}


@contextmanager
def without_tables(ledger: Path) -> Iterator[None]:
    """A database in which nothing is found where it was, for the length of a `with`."""
    with sqlite3.connect(ledger) as connection:
        mine = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        tables = [name for (name,) in connection.execute(mine)]
        for name in tables:
            connection.execute(f"ALTER TABLE {name} RENAME TO hidden_{name}")
    yield
    with sqlite3.connect(ledger) as connection:
        for name in tables:
            connection.execute(f"ALTER TABLE hidden_{name} RENAME TO {name}")


@dataclass(frozen=True)
class Asked:
    """Somebody who asks a router, in this process, and the models that it asks."""

    asking: Asking
    app: Flask
    house: House
    ledger: Path


@contextmanager
def a_router_to_ask(board: Path, folder: Path) -> Iterator[Asked]:
    """A router with a record of each variant, before models of its own, for the length of a `with`."""
    shutil.copytree(board, folder / "board")
    ledger, configured = folder / "ledger.sqlite", folder / "experiment.toml"
    services = running(folder, folder / "board", "model_a", "model_b", **{OPERATOR_KEY: KEY})
    with services as house, pytest.MonkeyPatch.context() as environment:
        champion = f'[[variants]]\nname = "A"\nurl = "{house.model_a.url}"\nweight = 1\n'
        configured.write_text(f'name = "ours"\n{champion}', encoding="utf-8")
        environment.setenv("RUNOFF_EXPERIMENT", str(configured))
        environment.setenv("RUNOFF_LEDGER", f"sqlite:///{ledger}")
        environment.setenv(OPERATOR_KEY, KEY)
        from router.app import create_app  # noqa: PLC0415 (it makes an app when it is imported)

        app = create_app()
        asking = Asking(app)
        asking.changes(experiment(house.services.urls))
        asking.document = asking.gets("/openapi.json").get_json()
        asking.puts_on_record()
        yield Asked(asking, app, house, ledger)


def test_every_address_answers_as_the_document_says(board: Path, tmp_path: Path) -> None:
    with a_router_to_ask(board, tmp_path) as asked:
        asked.asking.everything({"as the document says": {}})
        assert asked.asking.untold == []
        assert {status for _, _, status in asked.asking.seen} <= {200, 202, 409}
        told = {(method, path) for path, item in asked.asking.document["paths"].items() for method in item}
        assert {(method, path) for method, path, _ in asked.asking.seen} == told


@pytest.fixture(scope="module")
def asked(board: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    """Who has asked for everything, in all ways, also while all sorts of things were away."""
    with (
        a_router_to_ask(board, tmp_path_factory.mktemp("asked")) as usual,
        socket.create_server(("127.0.0.1", 0), backlog=128) as silent,
    ):
        asking, urls, ledger = usual.asking, usual.house.services.urls, usual.ledger
        parts = usual.app.extensions["router"]
        keys = {scope: parts.keys.add(scope, scope) for scope in ("predict", "outcome")}
        keys["one request"] = parts.keys.add("one request", "operator", per_second=0.001)
        parts.guard.refresh()

        wrong = {f"with a key for {name}": sends(Authorization=f"Bearer {key}") for name, key in keys.items()}
        asking.everything(WAYS | wrong | {f"{name}, again": way for name, way in wrong.items()})
        asking.everything(VERSIONS, header="If-Match")
        # What B was trained on is known by now, and is not asked for again.
        asking.variant = "A"
        troubles: dict[str, dict[str, Any]] = {
            "gone": {"url": "http://127.0.0.1:1", "eject_after_failures": 1000},
            "left alone": {"url": "http://127.0.0.1:1", "eject_after_failures": 1},
            "silent": {
                "url": f"http://127.0.0.1:{silent.getsockname()[1]}",
                "timeout_seconds": 0.05,
                "eject_after_failures": 1000,
            },
            "of another system": {"dialect": "vetiver"},
        }
        for name, trouble in troubles.items():
            asking.changes(experiment(urls, **trouble))
            more = {f"{name}, with classes": {"query": {"class": "true"}}}
            asking.everything({name: {}, f"{name}, again": {}} | more)
        with without_tables(ledger):
            asking.everything({"without a database": {}})
        with sqlite3.connect(ledger) as connection:
            connection.execute("DELETE FROM experiments")
        until(lambda: asking.gets("/").status_code == 503, "there is no experiment")
        asking.everything({"without an experiment": {}})
        yield asking


@pytest.mark.slow
def test_every_answer_that_occurs_is_in_the_document_in_its_form(asked: Asking) -> None:
    assert asked.untold == []


@pytest.mark.slow
def test_every_error_in_the_document_occurs(asked: Asking) -> None:
    told = {
        (method, path, int(status))
        for path, item in asked.document["paths"].items()
        for method, operation in item.items()
        for status in operation["responses"]
        if int(status) >= 300
    }
    assert told - asked.seen == NOT_HERE


@pytest.mark.slow
def test_every_header_that_is_read_is_in_the_document_and_no_other(asked: Asking) -> None:
    def cgi(names: set[str]) -> set[str]:
        return {"HTTP_" + name.upper().replace("-", "_") for name in names}

    for path, item in asked.document["paths"].items():
        for method, operation in item.items():
            headers = [each for each in parameters(asked.document, operation) if each["in"] == "header"]
            told = cgi({each["name"] for each in headers})
            read = asked.read[method, path]
            assert read - cgi(OF_HTTP | PASSED_ON) <= told <= read, (method, path)


@pytest.mark.slow
def test_what_the_document_says_must_be_sent_is_all_that_is_needed(asked: Asking) -> None:
    # There may be a conflict with what was done before.
    wrong = {operation: status for operation, status in asked.usual.items() if status not in (200, 202, 409)}
    assert wrong == {}


@pytest.mark.slow
def test_the_body_of_every_change_is_in_the_document(asked: Asking) -> None:
    shared = {"components": asked.document["components"]}
    for item in asked.document["paths"].values():
        for method in {"post", "put"} & item.keys():
            for content in item[method]["requestBody"]["content"].values():
                Draft202012Validator.check_schema(content["schema"] | shared)
                for example in content.get("examples", {}).values():
                    Draft202012Validator(content["schema"] | shared).validate(example["value"])


@pytest.mark.slow
def test_every_reference_in_the_document_leads_somewhere(asked: Asking) -> None:
    def references(part: Any) -> Iterator[str]:
        for each in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            yield from references(each)
        if isinstance(part, dict) and isinstance(part.get("$ref"), str):
            yield part["$ref"]

    for reference in set(references(asked.document)):
        found = asked.document
        for name in reference.removeprefix("#/").split("/"):
            assert name in found, reference
            found = found[name]
