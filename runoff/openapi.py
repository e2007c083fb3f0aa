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
from runoff.problems import Malformed, NotFound, Problem, ProblemDetails
from runoff.web import REQUEST_ID

PROBLEM_JSON = "application/problem+json"
COMPONENT = "#/components/schemas/{model}"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
ASSETS_SECONDS = 86_400
# The name of the security scheme of those who manage versions.
OPERATOR = "operator"

REQUEST_ID_HEADER = {
    "description": "The request's id: the caller's, or one that was made for it.",
    "schema": {"type": "string"},
}
REQUEST_ID_PARAMETER = {
    "name": "X-Request-ID",
    "in": "header",
    "description": "An id for the request, which the answer and the log repeat.",
    "schema": {"type": "string", "pattern": f"^{REQUEST_ID.pattern}$"},
}


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
    @describe(NotFound, media_type="*/*", answer=bytes)
    def asset(file: str) -> Response:
        """A part of that page."""
        return send_from_directory(assets, file, max_age=ASSETS_SECONDS)

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
    views = list(_views(app))
    schemas = _Schemas(
        [ProblemDetails, *(each.answer for each in views), *(each.operation.refusal for each in views)]
    )
    examples = service.examples()
    paths: dict[str, Any] = {}
    for view in views:
        paths.setdefault(view.path, {})[view.method.lower()] = _told(view, schemas, examples)
    components: dict[str, Any] = {
        "schemas": {**schemas.components, **service.schemas()},
        "parameters": {"RequestId": REQUEST_ID_PARAMETER},
        "headers": {"RequestId": REQUEST_ID_HEADER},
    }
    if any(view.operation.secured for view in views):
        components["securitySchemes"] = {OPERATOR: {"type": "http", "scheme": "bearer"}}
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
    """The JSON Schemas of types, by pydantic; those that have a name are components."""

    def __init__(self, types: Iterable[Any]) -> None:
        # Imported here: a service that is not asked for its document does without.
        from pydantic import TypeAdapter  # noqa: PLC0415
        from pydantic.json_schema import GenerateJsonSchema  # noqa: PLC0415

        class Untitled(GenerateJsonSchema):
            """Fields without titles that repeat their names."""

            def field_title_should_be_set(self, _schema: Any) -> bool:
                return False

        distinct = list(dict.fromkeys(each for each in types if each is not None))
        adapters: list[Any] = [(each, "serialization", TypeAdapter(each)) for each in distinct]
        found, more = TypeAdapter.json_schemas(adapters, ref_template=COMPONENT, schema_generator=Untitled)
        self._of = {each: schema for (each, _), schema in found.items()}
        self.components = more.get("$defs", {})

    def __getitem__(self, type_: Any) -> Schema:
        return self._of[type_]


def _told(view: _View, schemas: _Schemas, examples: Mapping[str, str]) -> dict[str, Any]:
    """One operation, as OpenAPI has it."""
    operation = view.operation
    summary, _, rest = (operation.about or inspect.getdoc(view.function) or "").partition("\n")
    told: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{view.method.lower()} {view.path}").strip("_"),
        "tags": [operation.tag],
        "summary": summary.rstrip("."),
        "description": re.split(r"\n(?:Args|Returns|Raises):\n", rest)[0].strip(),
        "parameters": [{"$ref": "#/components/parameters/RequestId"}],
        "responses": _responses(view, schemas),
    }
    for name, kind in view.arguments:
        schema = {"type": "integer" if kind == "int" else "string"}
        example = {"example": examples[name]} if name in examples else {}
        told["parameters"].append({"name": name, "in": "path", "required": True, "schema": schema, **example})
    for name, schema in operation.query.items():
        required = name in operation.required
        told["parameters"].append({"name": name, "in": "query", "required": required, "schema": schema})
    if operation.request:
        told["requestBody"] = {"required": True, "content": operation.request()}
    if operation.secured:
        told["security"] = [{OPERATOR: []}]
    return told


def _responses(view: _View, schemas: _Schemas) -> dict[str, Any]:
    operation = view.operation
    content = {operation.media_type: {"schema": schemas[view.answer]}, **operation.more}
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
    refused = {PROBLEM_JSON: {"schema": schemas[ProblemDetails]}}
    # What is refused before the view is reached is refused as everywhere.
    if operation.refusal is not None:
        refused = {JSON: {"schema": schemas[operation.refusal]}, **refused}
    problems: tuple[type[Problem], ...] = (Malformed, *operation.problems)
    for problem in problems:
        told = responses.setdefault(
            str(problem.status), {"description": problem.title, "headers": headers, "content": {}}
        )
        told["content"] = refused | told["content"]
    return responses
