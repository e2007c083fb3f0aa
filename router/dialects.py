"""What the router understands of requests and answers: which rows were asked about, what was said of each.

A request passes as it came and an answer as it is, byte for byte; the router reads both only for its ledger.
`DIALECTS`, at the end of this page, says how, by the address. It follows the dialects of a model service
(`runoff/dialects.py`), so that a client cannot tell the router from a model.

Only where a variant speaks another dialect than its caller (`SPOKEN`), what our own clients ask is translated
into that, and its answer back.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic_core import from_json, to_json

from runoff import binary_tensors
from runoff.batches import CSV, PARQUET, records_of_parquet
from runoff.dialects import MLFLOW_FORMS, OUTPUT, records_of_csv, refuse_kserve, refuse_mlflow
from runoff.problems import FieldError, Invalid, Problem
from runoff.prototype import Prototype

Rows = list[Any]


class NoPrediction(Exception):
    """An answer does not say what was predicted."""


class NotTranslated(Problem):
    """A variant speaks another dialect than its caller, into which this request cannot be put."""

    status: ClassVar[int] = 501
    slug: ClassVar[str] = "not-translated"
    title: ClassVar[str] = "The variant cannot be asked this"


@dataclass(frozen=True)
class Dialect:
    """How requests at some addresses are read.

    Attributes:
        name: of the dialect.
        addresses: where it is spoken; `<model>` is the experiment's name, or that of the variant's model.
        decode: from a body, its media type and the length that its JSON has if that is told, what it holds.
        rows: from a decoded request, the rows that it asks about.
        predictions: from a decoded answer, the probability of each row.
        ask: from rows, the decoded request that asks about them.
        refuse: how a problem is told; None for RFC 9457.
    """

    name: str
    addresses: tuple[str, ...]
    decode: Callable[[bytes, str, str | None], Any]
    rows: Callable[[Any], Rows]
    predictions: Callable[[Any], Sequence[Any]]
    ask: Callable[[Rows], Any]
    refuse: Callable[[Problem], tuple[Mapping[str, Any], int]] | None = None

    @property
    def path(self) -> str:
        """The path on a model service; an experiment has no versions that a caller could choose from."""
        return self.addresses[0]

    def read(self, content: bytes, media_type: str, json_length: str | None) -> Rows | None:
        """The rows that a request asks about.

        None where they cannot be told: what another system's client sends passes to the model, which knows
        what is wrong with it.
        """
        try:
            return self.rows(self.decode(content, media_type, json_length))
        except (Problem, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return None

    def heard(self, content: bytes, json_length: str | None) -> Any:
        """What an answer holds; raises NoPrediction where it cannot be read."""
        try:
            return self.decode(content, "", json_length)
        except (Problem, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise NoPrediction("something that is no prediction") from None

    def understand(self, answer: Any, rows: int | None) -> tuple[float, ...]:
        """The probabilities in a decoded answer.

        Args:
            answer: what it holds.
            rows: how many were asked about; None where that is not known.

        Raises:
            NoPrediction: there is not one finite number for each row; the message says what there is.
        """
        try:
            found = tuple(map(float, self.predictions(answer)))
        except (ValueError, TypeError, LookupError, AttributeError):
            raise NoPrediction("something that is no prediction") from None
        if not all(map(math.isfinite, found)):
            raise NoPrediction("something that is no prediction")
        if rows is not None and len(found) != rows:
            raise NoPrediction(f"{len(found)} predictions for {rows} rows")
        return found


def named_in(answer: Any) -> dict[str, str | None]:
    """The model and version that a decoded answer names, as the headers of ours do."""
    if not isinstance(answer, dict):
        return {}
    found = {
        "x-model-name": answer.get("model") or answer.get("model_name"),
        "x-model-version": answer.get("version") or answer.get("model_version"),
    }
    return {name: value if isinstance(value, str) else None for name, value in found.items()}


# Ours, the 2020 original's, and vetiver's, which share an address.


def is_batch(body: Any) -> bool:
    """Whether a body at /predict holds rows, and not one record."""
    return isinstance(body, list) or _is_records(body)


def _is_records(body: Any) -> bool:
    return isinstance(body, dict) and body.keys() == {"records"} and isinstance(body["records"], list)


def is_original(row: Any) -> bool:
    """Whether a row is the 2020 original's: numbers in a text, separated by commas."""
    return isinstance(row, dict) and row.keys() == {"input"} and isinstance(row["input"], str)


def our_rows(body: Any) -> Rows:
    """The rows of a decoded body at /predict.

    Raises:
        Invalid: it is neither a record nor records.
    """
    rows = body if isinstance(body, list) else body["records"] if _is_records(body) else [body]
    if not isinstance(body, dict | list) or not rows:
        detail = 'the body is neither a record {"column": value, …} nor a list of one or more'
        raise Invalid(detail, errors=[FieldError("", "type", detail, body)])
    return rows


def _said_by_ours(answer: Any) -> Sequence[Any]:
    """Ours for a record, ours for records, or vetiver's."""
    if "prediction" in answer:
        return [answer["prediction"]]
    found: Sequence[Any] = answer["predictions"] if "predictions" in answer else answer["predict"]
    return found


def _json(content: bytes, _media_type: str, _json_length: str | None) -> Any:
    return from_json(content)


# MLflow


def _of_mlflow(content: bytes, media_type: str, _json_length: str | None) -> Any:
    if media_type == CSV:
        texts = records_of_csv(content.decode(), {})
        return _to_mlflow([{name: guessed(cell) for name, cell in text.items()} for text in texts])
    if media_type == PARQUET:
        return _to_mlflow(records_of_parquet(content, Prototype(())))
    return from_json(content)


# RFC 8259, section 6.
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")


def guessed(cell: str) -> Any:
    """The value of a cell of CSV, for the record, of which nobody has said what its column holds.

    What JSON has for a number is one, so that 007 stays a text; what is empty is null.
    """
    if not cell:
        return None
    return from_json(cell) if NUMBER.fullmatch(cell) else cell


def _mlflow_rows(body: Any) -> Rows:
    form = next((form for form in MLFLOW_FORMS if form in body), "none")
    given = body[form]
    if form == "dataframe_split":
        # Without columns they are the model's.
        return _with_names(given["columns"], given["data"]) if "columns" in given else list(given["data"])
    return _by_row(given) if isinstance(given, dict) else list(given)


def _to_mlflow(rows: Rows) -> Any:
    return {"dataframe_records": rows}


def _predictions(answer: Any) -> Sequence[Any]:
    found: Sequence[Any] = answer["predictions"]
    return found


# KServe V1


def _v1_rows(body: Any) -> Rows:
    return list(body["instances"])


def _to_v1(rows: Rows) -> Any:
    return {"instances": rows}


# The Open Inference Protocol V2


def _of_v2(content: bytes, _media_type: str, json_length: str | None) -> Any:
    """A request or an answer, with the values of its tensors that come after the JSON."""
    if json_length is None:
        return from_json(content)
    text, data = binary_tensors.split(content, json_length)
    body = from_json(text)
    binary_tensors.fill(body if "inputs" in body else {"inputs": body["outputs"]}, data)
    return body


def _v2_rows(body: Any) -> Rows:
    """Tensors of one dimension are columns; one of two has a row in each of its rows."""
    tensors = body["inputs"]
    shape = tensors[0]["shape"]
    if len(tensors) == 1 and len(shape) == 2 and shape[1] > 1:  # noqa: PLR2004
        data, width = _values(tensors[0]), shape[1]
        return [data[at : at + width] for at in range(0, len(data), width)]
    return _by_row({tensor["name"]: _values(tensor) for tensor in tensors})


def _values(tensor: Any) -> list[Any]:
    """The values of a tensor, row by row; they may come nested, or as an array."""
    data: Any = tensor["data"]
    if isinstance(data, np.ndarray):
        data = data.tolist()
    return [value for row in data for value in row] if data and isinstance(data[0], list) else data


def _said_in_v2(answer: Any) -> Sequence[Any]:
    outputs = answer["outputs"]
    return _values(next((each for each in outputs if each["name"] == OUTPUT), outputs[0]))


def _to_v2(rows: Rows) -> Any:
    """A tensor for each column, whose type is that of its values; raises NotTranslated where it has none."""
    if any(not isinstance(row, dict) or row.keys() != rows[0].keys() for row in rows):
        raise NotTranslated("what becomes columns must be records of the same columns")
    return {"inputs": [_tensor(name, [row[name] for row in rows]) for name in rows[0]]}


def _tensor(name: str, values: list[Any]) -> Any:
    kinds = {type(value) for value in values if value is not None}
    datatype = next((each for each, taken in TENSORS.items() if kinds <= taken), None)
    if datatype is None:
        raise NotTranslated(f"the column {name[:40]} does not hold values of one type, as a tensor does")
    return {"name": name, "shape": [len(values)], "datatype": datatype, "data": values}


TENSORS: dict[str, set[type]] = {"BOOL": {bool}, "INT64": {int}, "FP64": {int, float}, "BYTES": {str}}


# What they have in common


def _by_row(columns: Mapping[str, Any]) -> Rows:
    return _with_names(columns, zip(*columns.values(), strict=True))


def _with_names(names: Any, rows: Any) -> Rows:
    return [dict(zip(names, row, strict=True)) for row in rows]


# Translated


def foreign(
    spoken: str, dialect: Dialect, rows: Sequence[Any] | None, *, one: bool, query: bool
) -> Dialect | None:
    """The dialect into which a request is translated; None where it passes as it is.

    Args:
        spoken: what the variant speaks, as the experiment's document has it.
        dialect: in which the request came.
        rows: what it asks about.
        one: whether it is about one record alone, and not about a list.
        query: whether the address has a query, which asks for more than predictions.

    Raises:
        NotTranslated: it cannot be put into what the variant speaks.
    """
    theirs = SPOKEN[spoken]
    if theirs is None or (theirs is dialect and not one):
        return None
    if dialect is not OURS or query or not rows or not all(map(_is_record, rows)):
        raise NotTranslated(
            f"a variant that speaks {spoken} can be asked in that, or for records at /predict, with no query"
        )
    return theirs


def _is_record(row: Any) -> bool:
    # The original names no columns.
    return isinstance(row, dict) and bool(row) and not is_original(row)


def said_as_ours(
    body: bytes, predictions: Sequence[float], *, one: bool, model: str, version: str | None
) -> bytes:
    """An answer to a request at /predict, as a model of ours would give it.

    Args:
        body: of the request.
        predictions: of its rows.
        one: whether it is about one record alone.
        model: who predicted.
        version: of the model, where it is known.
    """
    named = {"model": model} | ({} if version is None else {"version": version})
    if one:
        said = {"prediction": predictions[0], **named}
    elif body.lstrip().startswith(b"["):
        said = {"predict": predictions}
    else:
        said = {"predictions": predictions, **named}
    return to_json(said) + b"\n"


# What clients ask of a model besides predictions

ABOUT = (
    "/prototype",
    "/metadata",
    "/ping",
    "/health",
    "/version",
    "/v1/models",
    "/v1/models/<model>",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/<model>",
    "/v2/models/<model>/ready",
    "/v2/models/<model>/versions/<version>",
    "/v2/models/<model>/versions/<version>/ready",
)
# In these problems are told by RFC 9457, in the others as KServe does.
OURS_TELL = ("/prototype", "/metadata")


def renamed(content: bytes, model: str | None, called: str) -> bytes:
    """What a model says of itself, by the name by which it was called; `model` is its own, where told."""
    try:
        said = json.loads(content)
    except ValueError:
        return content
    if not isinstance(said, dict):
        return content
    if model is not None and said.get("name") == model:
        return to_json({**said, "name": called}) + b"\n"
    if isinstance(said.get("models"), list):
        return to_json({**said, "models": [called]}) + b"\n"
    return content


PREDICT = ("/predict", "/v1/predict")
MLFLOW = ("/invocations",)
V1 = ("/v1/models/<model>:predict",)
V2 = ("/v2/models/<model>/infer", "/v2/models/<model>/versions/<version>/infer")

DIALECTS = (
    #       name              spoken at  decoded by  its rows      what it says   asked by    refused by
    Dialect("ours, vetiver",  PREDICT,   _json,      our_rows,     _said_by_ours, list),
    Dialect("MLflow",         MLFLOW,    _of_mlflow, _mlflow_rows, _predictions,  _to_mlflow, refuse_mlflow),
    Dialect("KServe V1",      V1,        _json,      _v1_rows,     _predictions,  _to_v1,     refuse_kserve),
    Dialect("Open Inference", V2,        _of_v2,     _v2_rows,     _said_in_v2,   _to_v2,     refuse_kserve),
)  # fmt: skip

OURS = DIALECTS[0]

# What a variant understands, as the experiment's document names it; one of ours understands all.
SPOKEN: Mapping[str, Dialect | None] = dict(
    zip(("runoff", "vetiver", "mlflow", "kserve-v1", "open-inference"), (None, *DIALECTS), strict=True)
)
