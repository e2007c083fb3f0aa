"""The dialects in which clients ask for predictions: one model, whatever they speak.

`DIALECTS`, at the end of this page, is the whole table: where each dialect is spoken, how its requests are
told from others, how they are read, and in which form it is answered and refused.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NotRequired, TypeVar

import numpy as np
from typing_extensions import TypedDict  # typing's own is not read by pydantic before Python 3.12

from runoff.evaluators import Matrix
from runoff.problems import FieldError, Invalid, Malformed, Problem
from runoff.prototype import Feature
from runoff.records import RecordReader

# Errors told in dialects that have one text for all.
MAX_TOLD = 5


class Classes(TypedDict):
    """What each answer of many rows has if the request asks for classes, too."""

    classes: NotRequired[list[int]]


Answer = TypeVar("Answer", bound=Classes)


@dataclass(frozen=True)
class Said:
    """What is answered: a probability for each row, by which version of which model, to which request.

    `threshold` is None unless the request asks for classes, too.
    """

    probabilities: list[float]
    model: str
    version: str
    request: Any
    threshold: float | None = None

    @property
    def classes(self) -> list[int]:
        """For each row 1, if its probability reaches the threshold, else 0."""
        return [int(self.threshold is not None and p >= self.threshold) for p in self.probabilities]

    def with_classes(self, answer: Answer) -> Answer:
        """Add the classes to an answer, if they were asked for."""
        if self.threshold is not None:
            answer["classes"] = self.classes
        return answer


@dataclass(frozen=True)
class Dialect:
    """One way of asking, and of being answered and refused.

    `refuse` is None where problems are answered as everywhere in Runoff (RFC 9457). The OpenAPI document has
    the answers' types from the functions that make them.
    """

    name: str
    addresses: tuple[str, ...]
    speaks: Callable[[Any], bool]
    read: Callable[[Any, RecordReader], Matrix]
    answer: Callable[[Said], Mapping[str, Any]]
    refuse: Callable[[Problem], tuple[Mapping[str, Any], int]] | None = None


def spoken(address: str, body: Any) -> Dialect:
    """The dialect of a request to an address.

    Raises:
        Invalid: it is in none that is spoken there.
    """
    for dialect in DIALECTS:
        if address in dialect.addresses and dialect.speaks(body):
            return dialect
    raise Invalid(
        'the body is neither a record {"column": value, …} nor a list of records',
        errors=[FieldError("", "type", "a record or a list of records is expected", body)],
    )


# Ours.

Prediction = TypedDict(
    "Prediction", {"prediction": float, "model": str, "version": str, "class": NotRequired[int]}
)


class Predictions(Classes):
    """One probability for each row, and which version of which model gave it."""

    predictions: list[float]
    model: str
    version: str


def _read_record(body: Any, reader: RecordReader) -> Matrix:
    return reader.read([body], at="")


def _read_records(body: Any, reader: RecordReader) -> Matrix:
    return reader.read(_listed(body["records"], "/records"), at="/records/{}")


def _one(said: Said) -> Prediction:
    answer: Prediction = {"prediction": said.probabilities[0], "model": said.model, "version": said.version}
    if said.threshold is not None:
        answer["class"] = said.classes[0]
    return answer


def _many(said: Said) -> Predictions:
    answer = Predictions(predictions=said.probabilities, model=said.model, version=said.version)
    return said.with_classes(answer)


# The 2020 original.


def _read_original(body: Any, reader: RecordReader) -> Matrix:
    """Numbers separated by commas, in the order of the columns; one more in front is the client's ID."""
    names = reader.prototype.names
    values = [_number(text.strip()) for text in body["input"].split(",")]
    if len(values) == len(names) + 1:
        values = values[1:]
    if len(values) != len(names):
        count = f"{len(names)} comma-separated values, or one more with an ID in front"
        raise Invalid(
            f"input holds {len(values)} values; this model takes {count}",
            errors=[FieldError("/input", "type", count, body["input"])],
        )
    try:
        return reader.read([dict(zip(names, values, strict=True))], at="")
    except Invalid as problem:
        # A pointer cannot point into the text: the detail names the column.
        problem.errors = tuple(replace(error, pointer="/input") for error in problem.errors)
        raise


# vetiver 0.2.6.


class VetiverPredictions(Classes):
    """One probability for each row, as vetiver's client expects them."""

    predict: list[float]


def _read_vetiver(body: Any, reader: RecordReader) -> Matrix:
    return reader.read(_listed(body, ""), at="/{}", ignore_extra=True)


def _vetiver(said: Said) -> VetiverPredictions:
    return said.with_classes(VetiverPredictions(predict=said.probabilities))


# MLflow's scoring protocol, https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/

MLFLOW_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")


class MLflowError(TypedDict):
    """What is wrong, as MLflow tells it."""

    error_code: str
    message: str


def _read_mlflow(body: Any, reader: RecordReader) -> Matrix:
    """Exactly one of four forms; columns that the model does not know are ignored."""
    forms = [form for form in MLFLOW_FORMS if isinstance(body, dict) and form in body]
    if len(forms) != 1:
        detail = f"the body must hold exactly one of {', '.join(MLFLOW_FORMS)}"
        raise Invalid(detail, errors=[FieldError("", "oneOf", detail, body)])
    form, given = forms[0], body[forms[0]]
    if form == "dataframe_split":
        return _read_split(given, reader)
    if form == "inputs" and isinstance(given, dict):
        matrix = reader.read_columns(given)
        if matrix is not None:
            return matrix
        return reader.read(_transposed(given, f"/{form}"), at=f"/{form}/{{}}", ignore_extra=True)
    return _read_rows(_listed(given, f"/{form}"), reader, f"/{form}", ignore_extra=True)


def _read_split(given: Any, reader: RecordReader) -> Matrix:
    """`{"columns": […], "data": [[…], …]}`, as pandas writes with `orient="split"`."""
    at = "/dataframe_split"
    if not isinstance(given, dict):
        raise _mistyped(at, "an object with columns and data", given)
    columns = given.get("columns", list(reader.prototype.names))
    rows = _listed(given.get("data"), f"{at}/data")
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        raise _mistyped(f"{at}/columns", "a list of column names", columns)
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(columns):
            raise _mistyped(f"{at}/data/{number}", f"a list of {len(columns)} values", row)
    matrix = reader.read_values(chain.from_iterable(rows), len(rows), columns)
    if matrix is not None:
        return matrix
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    return reader.read(records, at=f"{at}/data/{{}}", ignore_extra=True)


def refuse_mlflow(problem: Problem) -> tuple[MLflowError, int]:
    status = Malformed.status if problem.status == Invalid.status else problem.status
    code = "BAD_REQUEST" if status < 500 else "INTERNAL_ERROR"  # noqa: PLR2004
    return {"error_code": code, "message": _in_a_line(problem)}, status


def records_of_csv(text: str, features: Mapping[str, Feature]) -> list[dict[str, Any]]:
    """Records from CSV with a header; what is empty is null, and numbers are read where columns hold them.

    Raises:
        Malformed: it is not CSV, or has no header.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise Malformed(f"the body is not CSV: {error}") from None
    if any(None in row or None in row.values() for row in rows):
        raise Malformed("the body is not CSV: a row has more or fewer values than the header")
    return [
        {name: of_csv(value, features[name]) if name in features else value for name, value in row.items()}
        for row in rows
    ]


def of_csv(text: str, feature: Feature) -> Any:
    """The value of a cell, by the type of its column; what is none is left for the reader to refuse."""
    if text == "":
        return None
    if feature.type == "boolean":
        return {"true": True, "false": False}.get(text.lower(), text)
    return text if feature.type == "string" else _number(text)


# KServe V1, https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol


class BarePredictions(Classes):
    """One probability for each row, as clients of MLflow and KServe expect them."""

    predictions: list[float]


class KServeError(TypedDict):
    """What is wrong, as KServe tells it."""

    error: str


def _read_v1(body: Any, reader: RecordReader) -> Matrix:
    given = body.get("instances") if isinstance(body, dict) else None
    return _read_rows(_listed(given, "/instances"), reader, "/instances")


def _predictions(said: Said) -> BarePredictions:
    return said.with_classes(BarePredictions(predictions=said.probabilities))


def refuse_kserve(problem: Problem) -> tuple[KServeError, int]:
    """What is wrong, in one text."""
    return {"error": _in_a_line(problem)}, problem.status


# The Open Inference Protocol V2, https://github.com/kserve/open-inference-protocol

# Of a tensor: from JSON, or an array from binary data.
Values = list[Any] | np.ndarray[Any, Any]

TENSOR_TYPES = {"boolean": "BOOL", "integer": "INT64", "number": "FP64", "string": "BYTES"}
OUTPUT, CLASS = "predict", "class"


class Tensor(TypedDict):
    """A tensor of one dimension."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float] | list[int]


class Inference(TypedDict):
    """Which version of which model gave the outputs, and the id that the request may have had."""

    model_name: str
    model_version: str
    outputs: list[Tensor]
    id: NotRequired[str]


class TensorMetadata(TypedDict):
    """A tensor that a model takes or gives; -1 in its shape stands for any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(TypedDict):
    """A model, as the Open Inference Protocol tells of it."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


def _read_v2(body: Any, reader: RecordReader) -> Matrix:
    """One tensor for each column, of shape [n] or [n, 1], or one of all columns, of shape [n, features]."""
    tensors = _listed(body.get("inputs") if isinstance(body, dict) else None, "/inputs")
    _check_outputs(body.get("outputs", []))
    if not isinstance(body.get("id", ""), str):
        raise _mistyped("/id", "a string", body["id"])
    width = len(reader.prototype.names)
    columns: dict[str, Values] = {}
    for number, tensor in enumerate(tensors):
        at = f"/inputs/{number}"
        shape, values = _tensor(tensor, at)
        if len(shape) == 2 and shape[1] == width != 1:  # noqa: PLR2004
            if len(tensors) > 1:
                raise _mistyped(at, "the only tensor, since it holds all columns", tensor)
            matrix = reader.read_values(values, shape[0])
            if matrix is not None:
                return matrix
            columns = {name: values[n::width] for n, name in enumerate(reader.prototype.names)}
        elif shape[1:] in ([], [1]):
            columns[tensor["name"]] = values
        else:
            raise _mistyped(f"{at}/shape", f"[n], [n, 1] or [n, {width}]", shape)
    matrix = reader.read_columns(columns)
    if matrix is not None:
        return matrix
    listed = {
        name: values.tolist() if isinstance(values, np.ndarray) else values
        for name, values in columns.items()
    }
    return reader.read(_transposed(listed, "/inputs"), at="/inputs")


def _check_outputs(outputs: Any) -> None:
    if not isinstance(outputs, list):
        raise _mistyped("/outputs", "a list of outputs", outputs)
    for number, output in enumerate(outputs):
        name = output.get("name") if isinstance(output, dict) else None
        if name not in (OUTPUT, CLASS):
            raise _mistyped(f"/outputs/{number}", f"an output named {OUTPUT} or {CLASS}", name)


def _tensor(tensor: Any, at: str) -> tuple[list[int], Values]:
    """The shape of a tensor, and its values in one list, row by row; they may come nested."""
    if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
        raise _mistyped(at, "a tensor with name, shape, datatype and data", tensor)
    shape, given = tensor.get("shape"), tensor.get("data")
    if (
        not isinstance(shape, list)
        or len(shape) not in (1, 2)
        or not all(type(n) is int and n > 0 for n in shape)
    ):
        raise _mistyped(f"{at}/shape", "a list of one or two whole numbers above 0", shape)
    flat: Values = given if isinstance(given, list | np.ndarray) else []
    if len(shape) > 1 and all(isinstance(row, list) for row in flat):
        flat = list(chain.from_iterable(flat))
    if len(flat) != math.prod(shape):
        raise _mistyped(f"{at}/data", f"a list of as many values as the shape {shape} has", given)
    return shape, flat


def _inferred(said: Said) -> Inference:
    shape = [len(said.probabilities)]
    outputs: list[Tensor] = [{"name": OUTPUT, "shape": shape, "datatype": "FP64", "data": said.probabilities}]
    if said.threshold is not None:
        outputs.append({"name": CLASS, "shape": shape, "datatype": "INT64", "data": said.classes})
    wanted = [each["name"] for each in said.request.get("outputs") or ()]
    answer: Inference = {
        "model_name": said.model,
        "model_version": said.version,
        "outputs": [each for each in outputs if not wanted or each["name"] in wanted],
    }
    if "id" in said.request:
        answer["id"] = said.request["id"]
    return answer


def asks_for_class(body: Any) -> bool:
    """Whether a request's `outputs` name the class, as the Open Inference Protocol lets them."""
    outputs = body.get("outputs") if isinstance(body, dict) else None
    if not isinstance(outputs, list):
        return False
    return any(isinstance(each, dict) and each.get("name") == CLASS for each in outputs)


def model_metadata(model: str, version: str, features: tuple[Feature, ...]) -> ModelMetadata:
    """What the Open Inference Protocol tells of a model: its tensors, -1 for a variable size."""
    inputs: list[TensorMetadata] = [
        {"name": f.name, "datatype": TENSOR_TYPES[f.type], "shape": [-1]} for f in features
    ]
    outputs: list[TensorMetadata] = [
        {"name": OUTPUT, "datatype": "FP64", "shape": [-1]},
        {"name": CLASS, "datatype": "INT64", "shape": [-1]},
    ]
    return {
        "name": model,
        "versions": [version],
        "platform": "scikit-learn",
        "inputs": inputs,
        "outputs": outputs,
    }


# What they have in common.


def _listed(given: Any, pointer: str) -> list[Any]:
    if isinstance(given, list) and given:
        return given
    detail = f"{pointer.rpartition('/')[2] or 'the body'} must be a list of one or more"
    raise Invalid(detail, errors=[FieldError(pointer, "minItems", detail, given)])


def _read_rows(rows: list[Any], reader: RecordReader, at: str, *, ignore_extra: bool = False) -> Matrix:
    """Read records, and lists whose values are in the order of the columns."""
    names = reader.prototype.names
    lists = [isinstance(row, list) for row in rows]
    for number, row in enumerate(rows):
        if lists[number] and len(row) != len(names):
            raise _mistyped(f"{at}/{number}", f"a list of {len(names)} values", row)
    matrix = reader.read_values(chain.from_iterable(rows), len(rows)) if all(lists) else None
    if matrix is not None:
        return matrix
    records = [dict(zip(names, row, strict=True)) if isinstance(row, list) else row for row in rows]
    return reader.read(records, at=f"{at}/{{}}", ignore_extra=ignore_extra)


def _transposed(columns: Mapping[str, Any], at: str) -> list[dict[str, Any]]:
    """Columns of equal length as records."""
    if not all(isinstance(values, list) for values in columns.values()):
        raise _mistyped(at, "an object of column names and lists of values", columns)
    if len({len(values) for values in columns.values()}) != 1:
        raise _mistyped(at, "columns of equal length", columns)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _in_a_line(problem: Problem) -> str:
    """What is wrong, for dialects that have one text for it: the first errors, or the detail."""
    shown, more = problem.errors[:MAX_TOLD], len(problem.errors) - MAX_TOLD
    told = "; ".join(error.detail for error in shown) or problem.detail
    return f"{told}; and {more} more" if more > 0 else told


def _mistyped(pointer: str, expected: str, value: Any) -> Invalid:
    detail = f"{pointer or 'the body'} must be {expected}"
    return Invalid(detail, errors=[FieldError(pointer, "type", detail, value)])


def _number(text: str) -> float | str:
    try:
        return text if "_" in text else float(text)
    except ValueError:
        return text


def _is_list(body: Any) -> bool:
    return isinstance(body, list)


def _is_object(body: Any) -> bool:
    return isinstance(body, dict)


def _is_text(body: Any) -> bool:
    return isinstance(body, dict) and body.keys() == {"input"} and isinstance(body["input"], str)


def _is_batch(body: Any) -> bool:
    return isinstance(body, dict) and body.keys() == {"records"} and isinstance(body["records"], list)


def _is_any(_body: Any) -> bool:
    return True


PREDICT = ("/predict", "/v1/predict", "/v1/models/<model>/versions/<version>/predict")
MLFLOW = ("/invocations",)
V1 = ("/v1/models/<model>:predict",)
V2 = ("/v2/models/<model>/infer", "/v2/models/<model>/versions/<version>/infer")

# At one address the first that recognises a request reads it. The last of those at /predict takes any
# object, so that a misspelt column is told as such.
DIALECTS = (
    #       name              spoken at  told by     read by         answered as   refused as
    Dialect("vetiver",        PREDICT,   _is_list,   _read_vetiver,  _vetiver),
    Dialect("2020 original",  PREDICT,   _is_text,   _read_original, _one),
    Dialect("records",        PREDICT,   _is_batch,  _read_records,  _many),
    Dialect("record",         PREDICT,   _is_object, _read_record,   _one),
    Dialect("MLflow",         MLFLOW,    _is_any,    _read_mlflow,   _predictions, refuse_mlflow),
    Dialect("KServe V1",      V1,        _is_any,    _read_v1,       _predictions, refuse_kserve),
    Dialect("Open Inference", V2,        _is_any,    _read_v2,       _inferred,    refuse_kserve),
)  # fmt: skip
