"""The OpenAPI 3.1 document of a service, made from its code, and a page that shows it.

`build` walks an app's addresses. What a view answers is the type that it is annotated to return, a
TypedDict, to which mypy holds it; what it is for is its docstring. `describe` adds what neither says. So an
address cannot be missing, and a document cannot promise what the code does not give.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from importlib.resources import files
from typing import Any, get_args, get_origin, get_type_hints

from flask import Blueprint, Flask, Response, current_app, request, send_from_directory

from runoff import __version__
from runoff.operations import JSON, Operation, Schema, describe
from runoff.problems import PROBLEM_JSON, Malformed, NotFound, Problem, ProblemDetails, Unauthorized
from runoff.web import REQUEST_ID

COMPONENT = "#/components/schemas/{model}"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
ASSETS_SECONDS = 86_400
# The names of the security schemes: of those who change something, and of all who need a key.
OPERATOR, KEY = "operator", "key"

REQUEST_ID_HEADER = {
    "description": "The request's id: the caller's, or one that was made for it.",
    "schema": {"type": "string"},
}
# Read of every request.
EVERYWHERE: dict[str, Schema] = {
    "X-Request-ID": {
        "type": "string",
        "pattern": f"^{REQUEST_ID.pattern}$",
        "description": "An id for the request, which the answer and the log repeat.",
    },
    "traceparent": {
        "type": "string",
        "description": "The trace that the request is a part of (W3C Trace Context); both repeat it, too.",
    },
}
# Read where an answer may be that nothing has changed.
IF_NONE_MATCH: Schema = {"type": "string", "description": "The ETag of an answer that the caller has."}


@dataclass(frozen=True)
class Service:
    """What a document says of a service as a whole.

    Args:
        title: of the document.
        about: what the service is, in Markdown.
        schemas: gives those that views name by reference, and that may change while the service runs.
        examples: gives those of the parameters in addresses, by name.
    """

    title: str
    about: str
    schemas: Callable[[], Mapping[str, Schema]] = dict
    examples: Callable[[], Mapping[str, str]] = dict


def blueprint(service: Service) -> Blueprint:
    """The addresses of the document and of its page."""
    pages = Blueprint("openapi", __name__)
    assets = str(files("flask_swagger_ui") / "dist")

    @pages.get("/openapi.json")
    def document() -> dict[str, Any]:
        """This document."""
        return build(current_app, service)

    @pages.get("/docs")
    @describe(media_type="text/html", answer=str)
    def page() -> str:
        """A page that shows this document, and from which one can ask the service; it works offline."""
        # Relative, so that it works below any prefix, with a slash at its end or without.
        up = "../" if request.path.endswith("/") else ""
        return PAGE.format(title=service.title, up=up)

    @pages.get("/docs/<file>")
    @describe(NotFound, media_type="*/*", answer=bytes, statuses=(200, 304))
    def asset(file: str) -> Response:
        """A part of that page."""
        # Without parts of it, which nobody asks for.
        sent = send_from_directory(assets, file, max_age=ASSETS_SECONDS, conditional=False)
        return sent.make_conditional(request)  # type: ignore[return-value]

    return pages


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<link rel="icon" href="{up}docs/favicon-32x32.png">
<link rel="stylesheet" href="{up}docs/swagger-ui.css">
<div id="page"></div>
<script src="{up}docs/swagger-ui-bundle.js"></script>
<script>
SwaggerUIBundle({{url: "{up}openapi.json", dom_id: "#page", deepLinking: true, validatorUrl: null}})
</script>
"""


def build(app: Flask, service: Service) -> dict[str, Any]:
    """The document of an app, as it and the live version are now."""
    if "openapi" not in app.extensions:
        # The types of what is taken and answered stay as they are, and their schemas take long to make.
        views = list(_views(app))
        app.extensions["openapi"] = (
            views,
            _Schemas(
                [
                    ProblemDetails,
                    *(each.answer for each in views),
                    *(each.operation.refusal for each in views),
                ],
                [each.operation.takes for each in views],
            ),
        )
    views, schemas = app.extensions["openapi"]
    examples = service.examples()
    paths: dict[str, Any] = {}
    for view in views:
        paths.setdefault(view.path, {})[view.method.lower()] = _told(view, schemas, examples)
    components: dict[str, Any] = {
        "schemas": {**schemas.components, **service.schemas()},
        "parameters": {name: _parameter("header", name, schema) for name, schema in EVERYWHERE.items()},
        "headers": {"RequestId": REQUEST_ID_HEADER},
    }
    if schemes := {name for view in views for each in _security(view.operation) for name in each}:
        components["securitySchemes"] = {key: {"type": "http", "scheme": "bearer"} for key in sorted(schemes)}
    return {
        "openapi": "3.1.0",
        "info": {"title": service.title, "description": service.about, "version": __version__},
        # Where the document is, whatever prefix that is below.
        "servers": [{"url": "."}],
        "paths": dict(sorted(paths.items())),
        "components": components,
    }


@dataclass(frozen=True)
class _View:
    """A view at one of its addresses, asked by one method."""

    path: str
    method: str
    arguments: tuple[tuple[str, str], ...]
    function: Callable[..., Any]
    operation: Operation

    @property
    def answer(self) -> Any:
        """The type of what it answers: of the body, where it is annotated to return a status, too."""
        if self.operation.answer is not None:
            return self.operation.answer
        annotated = get_type_hints(self.function).get("return", Any)
        return get_args(annotated)[0] if get_origin(annotated) is tuple else annotated


def _views(app: Flask) -> Iterator[_View]:
    for rule in app.url_map.iter_rules():
        view = app.view_functions[rule.endpoint]
        operation = getattr(view, "operation", Operation())
        function = view.func if isinstance(view, partial) else view
        # A rule writes a parameter as <name> or <converter:name>.
        arguments = tuple((name, kind) for kind, name in re.findall(r"<(?:(\w+):)?(\w+)>", rule.rule))
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        for method in METHODS:
            if method in (rule.methods or ()):
                yield _View(path, method, arguments, function, operation)


class _Schemas:
    """The JSON Schemas of types, by pydantic; those that have a name are components.

    What is taken of a type may be less than what is told of it: fields that have a default need not be there.
    """

    def __init__(self, told: Iterable[Any], taken: Iterable[Any]) -> None:
        # Imported here: a service that is not asked for its document does without.
        from pydantic import TypeAdapter  # noqa: PLC0415
        from pydantic.json_schema import GenerateJsonSchema  # noqa: PLC0415

        class Untitled(GenerateJsonSchema):
            """Fields without titles that repeat their names."""

            def field_title_should_be_set(self, _schema: Any) -> bool:
                return False

        adapters: list[Any] = [
            (each, mode, TypeAdapter(each))
            for mode, types in (("serialization", told), ("validation", taken))
            for each in dict.fromkeys(types)
            if each is not None
        ]
        found, more = TypeAdapter.json_schemas(adapters, ref_template=COMPONENT, schema_generator=Untitled)
        self._of: Mapping[tuple[Any, str], Schema] = found  # type: ignore[assignment]
        self.components = more.get("$defs", {})

    def told(self, type_: Any) -> Schema:
        """That of an answer."""
        return self._of[type_, "serialization"]

    def taken(self, type_: Any) -> Schema:
        """That of a request's body."""
        return self._of[type_, "validation"]


def _told(view: _View, schemas: _Schemas, examples: Mapping[str, str]) -> dict[str, Any]:
    """One operation, as OpenAPI has it."""
    operation = view.operation
    summary, _, rest = (operation.about or inspect.getdoc(view.function) or "").partition("\n")
    told: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{view.method.lower()} {view.path}").strip("_"),
        "tags": [operation.tag],
        "summary": summary.rstrip("."),
        "description": re.split(r"\n(?:Args|Returns|Raises):\n", rest)[0].strip(),
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in EVERYWHERE],
        "responses": _responses(view, schemas),
    }
    for name, kind in view.arguments:
        schema = {"type": "integer" if kind == "int" else "string"}
        example = {"example": examples[name]} if name in examples else {}
        told["parameters"].append(_parameter("path", name, schema, required=True) | example)
    headers = dict(operation.request_headers())
    if HTTPStatus.NOT_MODIFIED in operation.statuses:
        headers["If-None-Match"] = IF_NONE_MATCH
    told["parameters"] += [
        _parameter(where, name, schema, required=name in operation.required)
        for where, parameters in (("query", operation.query), ("header", headers))
        for name, schema in parameters.items()
    ]
    if content := _content(operation, schemas):
        told["requestBody"] = {"required": True, "content": content}
    if security := _security(operation):
        told["security"] = security
    return told


def _parameter(where: str, name: str, schema: Schema, *, required: bool = False) -> Schema:
    return {"name": name, "in": where, "required": required, "schema": schema}


def _content(operation: Operation, schemas: _Schemas) -> Mapping[str, Schema]:
    """The content of a request's body, by media type."""
    if operation.takes is None:
        return operation.request() if operation.request else {}
    examples = {"examples": {"usual": {"value": operation.example}}} if operation.example else {}
    return {JSON: {"schema": schemas.taken(operation.takes), **examples}}


def _security(operation: Operation) -> list[dict[str, list[str]]]:
    """The schemes, one of which a request follows; an empty one is none."""
    if operation.secured:
        return [{OPERATOR: []}]
    return [{KEY: []}, {}] if Unauthorized in operation.problems else []


def _responses(view: _View, schemas: _Schemas) -> dict[str, Any]:
    operation = view.operation
    content = {operation.media_type: {"schema": schemas.told(view.answer)}, **operation.more}
    headers = {"X-Request-ID": {"$ref": "#/components/headers/RequestId"}}
    own = {
        name: {"description": about, "schema": {"type": "string"}}
        for name, about in operation.headers.items()
    }
    responses: dict[str, Any] = {
        str(status): {
            "description": HTTPStatus(status).phrase,
            "headers": headers | own,
            "content": {} if status == HTTPStatus.NOT_MODIFIED else content,
        }
        for status in operation.statuses
    }
    refused = {PROBLEM_JSON: {"schema": schemas.told(ProblemDetails)}}
    # What is refused before the view is reached is refused as everywhere.
    if operation.refusal is not None:
        refused = {JSON: {"schema": schemas.told(operation.refusal)}, **refused}
    problems: tuple[type[Problem], ...] = (Malformed, *operation.problems)
    for problem in problems:
        told = responses.setdefault(
            str(problem.status), {"description": problem.title, "headers": headers, "content": {}}
        )
        told["content"] = refused | told["content"]
    return responses
