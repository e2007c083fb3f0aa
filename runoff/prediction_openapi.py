"""What the OpenAPI document says of predictions: each dialect's bodies, made of the live version's columns.

What is answered, and how it is refused, the document has from the functions in `runoff.dialects`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from runoff import batches, binary_tensors
from runoff.dialects import (
    CLASS,
    DIALECTS,
    MLFLOW,
    MLFLOW_FORMS,
    OUTPUT,
    PREDICT,
    TENSOR_TYPES,
    V2,
    Dialect,
)
from runoff.openapi import Service
from runoff.operations import JSON, Operation, Schema
from runoff.problems import (
    Invalid,
    NotAcceptable,
    NotFound,
    Problem,
    TooLarge,
    Unavailable,
    UnsupportedMediaType,
)
from runoff.prototype import Feature, Prototype
from runoff.records import EXACT_INTEGER, UNSEEN

if TYPE_CHECKING:
    # A router tells of predictions, too, and has no models.
    from runoff.live import Live

CLASS_PARAMETER = {
    "enum": ["true", "false"],
    "default": "false",
    "description": "Whether to tell the class, too: 1 where the probability reaches the version's threshold.",
}
JSON_LENGTH: Schema = {
    "type": "integer",
    "minimum": 0,
    "description": "Where tensors are binary, the length of the JSON before them in bytes.",
}
HEADERS = {
    "X-Model-Name": "The model that answered.",
    "X-Model-Version": "Its version.",
    "X-Model-Digest": "The SHA-256 of the version's file.",
}
# Gives the columns of the model that answers, None where there is none now.
Columns = Callable[[], Prototype | None]


def service(live: Live) -> Service:
    """What the document says of a prediction service as a whole."""
    return Service(
        f"Predictions of {live.name}",
        "The probability of the outcome, for one record or many, in the dialects that clients of several"
        " systems speak. The schema of a record is that of the version that is live.",
        schemas=lambda: components(columns(live)()),
        examples=lambda: _examples(live),
    )


def columns(live: Live) -> Columns:
    """The columns of the version that is live."""
    return lambda: live.current.reader.prototype if live.current else None


def operation(address: str, columns: Columns) -> Operation:
    """What the document says of an address at which dialects are spoken."""
    spoken = [dialect for dialect in DIALECTS if address in dialect.addresses]
    names = ", ".join(dialect.name for dialect in spoken)
    answers = [get_type_hints(dialect.answer)["return"] for dialect in spoken]
    problems: list[type[Problem]] = [TooLarge, UnsupportedMediaType, Unavailable]
    if address not in MLFLOW:  # which knows 400 alone
        problems.append(Invalid)
    if "<" in address:
        problems.append(NotFound)
    if address in PREDICT:
        problems.append(NotAcceptable)
    refuse = spoken[0].refuse
    return Operation(
        about=f"Predict ({names}).",
        tag="predictions",
        problems=tuple(problems),
        refusal=get_args(get_type_hints(refuse)["return"])[0] if refuse else None,
        answer=functools.reduce(operator.or_, answers),
        request=lambda: _request(address, spoken, columns()),
        more=_not_json(address),
        query={"class": CLASS_PARAMETER},
        request_headers=lambda: {binary_tensors.HEADER: JSON_LENGTH} if address in V2 else {},
        headers=HEADERS | {UNSEEN: "Columns with values that training never saw, and in how many rows."},
    )


def _request(address: str, spoken: list[Dialect], prototype: Prototype | None) -> dict[str, Schema]:
    """The content of a request's body at an address, by media type."""
    schemas = [BODIES[dialect.name][0] for dialect in spoken]
    content: dict[str, Schema] = {JSON: {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}}
    if prototype:
        content[JSON]["examples"] = {
            dialect.name: {"value": BODIES[dialect.name][1](prototype)} for dialect in reversed(spoken)
        }
    if address in MLFLOW:
        content[batches.CSV] = {"schema": {"type": "string"}}
        content[batches.PARQUET] = {"schema": {}}
    return content | _not_json(address)


def _not_json(address: str) -> dict[str, Schema]:
    """What is no JSON, of which OpenAPI can only tell whether it is text: batches, and binary tensors."""
    if address in V2:
        return {binary_tensors.MEDIA_TYPE: {"schema": {}}}
    if address not in PREDICT:
        return {}
    text = (batches.NDJSON, batches.CSV)
    return {
        form.media_type: {"schema": {"type": "string"} if form.media_type in text else {}}
        for form in batches.FORMS
    }


def _examples(live: Live) -> dict[str, str]:
    examples = {"model": live.name, "file": "swagger-ui.css"}
    if live.current:
        examples |= {"model": live.current.served.model, "version": live.current.served.version}
    return examples


def components(prototype: Prototype | None) -> dict[str, Schema]:
    """Records and rows as a model takes them, and what is made of them."""
    if prototype is None:
        anything: dict[str, Schema] = {
            "Record": {"type": "object"},
            "WiderRecord": {"type": "object"},
            "Row": {"type": "array"},
        }
        return anything | OBJECTS
    columns = {feature.name: _column(feature) for feature in prototype.features}
    record: Schema = {"type": "object", "properties": columns, "required": list(columns)}
    count = len(columns)
    row: Schema = {
        "type": "array",
        "prefixItems": list(columns.values()),
        "minItems": count,
        "maxItems": count,
    }
    made: dict[str, Schema] = {
        "Record": record | {"additionalProperties": False, "examples": [prototype.example]},
        "WiderRecord": record | {"description": "A record that may have more columns, which are ignored."},
        "Row": row | {"description": "The values of a record, in the order of the columns."},
    }
    return made | OBJECTS


def _column(feature: Feature) -> Schema:
    schema = feature.to_json()
    if feature.type == "integer" and feature.codes is None:
        schema = {"minimum": -EXACT_INTEGER, "maximum": EXACT_INTEGER} | schema
    return schema | {"examples": [schema.pop("example")]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


RECORD, WIDER, ROW, TEXT = _ref("Record"), _ref("WiderRecord"), _ref("Row"), {"type": "string"}
OBJECTS = {
    "Records": _object(records=_list(RECORD)) | {"additionalProperties": False},
    "Original": _object(input=TEXT) | {"additionalProperties": False},
}
WIDER_ROWS = _list({"anyOf": [WIDER, ROW]})
VALUES = _list({"type": "array"})

MLFLOW_PROPERTIES: dict[str, Schema] = {
    "dataframe_split": {
        "type": "object",
        "properties": {"columns": _list(TEXT), "data": VALUES},
        "required": ["data"],
    },
    "dataframe_records": WIDER_ROWS,
    "instances": WIDER_ROWS,
    "inputs": {"anyOf": [WIDER_ROWS, {"type": "object", "additionalProperties": {"type": "array"}}]},
}
TENSOR: Schema = _object(
    name=TEXT,
    shape={"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1, "maxItems": 2},
    datatype={"enum": ["BOOL", "BYTES", "FP32", "FP64", "INT8", "INT16", "INT32", "INT64"]},
    data=_list({}),
)
V2_BODY: Schema = {
    "type": "object",
    "properties": {
        "id": TEXT,
        "inputs": _list(TENSOR),
        "outputs": {"type": "array", "items": _object(name={"enum": [OUTPUT, CLASS]})},
    },
    "required": ["inputs"],
}


def _split(prototype: Prototype) -> dict[str, Any]:
    return {"dataframe_split": {"columns": list(prototype.names), "data": [list(prototype.example.values())]}}


def _tensors(prototype: Prototype) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": each.name, "shape": [1], "datatype": TENSOR_TYPES[each.type], "data": [each.example]}
            for each in prototype.features
        ]
    }


def _text(prototype: Prototype) -> dict[str, Any]:
    return {"input": ",".join(map(str, prototype.example.values()))}


# By a dialect's name: the schema of its bodies, and what makes an example.
BODIES: dict[str, tuple[Schema, Callable[[Prototype], Any]]] = {
    "record": (RECORD, lambda prototype: prototype.example),
    "records": (
        _ref("Records"),
        lambda prototype: {"records": [prototype.example]},
    ),
    "vetiver": (_list(WIDER), lambda prototype: [prototype.example]),
    "2020 original": (_ref("Original"), _text),
    "MLflow": (
        {
            "type": "object",
            "properties": MLFLOW_PROPERTIES,
            "oneOf": [{"required": [form]} for form in MLFLOW_FORMS],
        },
        _split,
    ),
    "KServe V1": (
        _object(instances=_list({"anyOf": [RECORD, ROW]})),
        lambda prototype: {"instances": [prototype.example]},
    ),
    "Open Inference": (V2_BODY, _tensors),
}
