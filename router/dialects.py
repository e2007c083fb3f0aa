"""What the router understands of requests and answers: which rows were asked about, what was said of each.

A request passes as it came and an answer as it is, byte for byte; the router reads both only for its ledger.
The table at the end says how, by the address. It follows the dialects of a model service
(`runoff/dialects.py`), so that a client cannot tell the router from a model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from runoff.dialects import MLFLOW_FORMS, OUTPUT, refuse_kserve, refuse_mlflow
from runoff.problems import FieldError, Invalid, Problem

Rows = list[Any]


class NoPrediction(Exception):
    """An answer does not say what was predicted."""


@dataclass(frozen=True)
class Dialect:
    """How requests at some addresses are read.

    Attributes:
        name: of the dialect.
        addresses: where it is spoken; `<model>` is the experiment's name, or that of the variant's model.
        rows: from a decoded body, the rows that it asks about.
        predictions: from a decoded answer, the probability of each row.
        refuse: how a problem is told; None for RFC 9457.
    """

    name: str
    addresses: tuple[str, ...]
    rows: Callable[[Any], Rows]
    predictions: Callable[[Any], Sequence[Any]]
    refuse: Callable[[Problem], tuple[Mapping[str, Any], int]] | None = None

    def understand(self, content: bytes, rows: int) -> tuple[float, ...]:
        """The probabilities in an answer to so many rows.

        Raises:
            NoPrediction: there is not one finite number for each row; the message says what there is.
        """
        try:
            found = tuple(map(float, self.predictions(from_json(content))))
            if not all(map(math.isfinite, found)):
                raise NoPrediction("something that is no prediction")
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise NoPrediction("something that is no prediction") from None
        if len(found) != rows:
            raise NoPrediction(f"{len(found)} predictions for {rows} rows")
        return found


def is_batch(body: Any) -> bool:
    """Whether a body at /predict holds rows, and not one record."""
    return isinstance(body, list) or _is_records(body)


def _is_records(body: Any) -> bool:
    return isinstance(body, dict) and body.keys() == {"records"} and isinstance(body["records"], list)


def _ours(body: Any) -> Rows:
    rows = body if isinstance(body, list) else body["records"] if _is_records(body) else [body]
    if not isinstance(body, dict | list) or not rows:
        raise _refused('the body is neither a record {"column": value, …} nor a list of one or more', body)
    return rows


def _said_by_ours(answer: Any) -> Sequence[Any]:
    """Ours for a record, ours for records, or vetiver's."""
    if "prediction" in answer:
        return [answer["prediction"]]
    found: Sequence[Any] = answer["predictions"] if "predictions" in answer else answer["predict"]
    return found


def _mlflow(body: Any) -> Rows:
    form = next((form for form in MLFLOW_FORMS if isinstance(body, dict) and form in body), None)
    if form is None:
        raise _refused(f"the body must hold one of {', '.join(MLFLOW_FORMS)}", body)
    given = body[form]
    if form == "dataframe_split":
        columns, data = given["columns"], given["data"]
        return [dict(zip(columns, row, strict=True)) for row in data]
    return _by_row(given) if isinstance(given, dict) else list(given)


def _v1(body: Any) -> Rows:
    return list(body["instances"])


def _v2(body: Any) -> Rows:
    """Tensors of one dimension are columns; one of two has a row in each of its rows."""
    tensors = body["inputs"]
    shape = tensors[0]["shape"]
    if len(tensors) == 1 and len(shape) == 2 and shape[1] > 1:  # noqa: PLR2004
        data, width = _flat(tensors[0]["data"]), shape[1]
        return [data[at : at + width] for at in range(0, len(data), width)]
    return _by_row({tensor["name"]: _flat(tensor["data"]) for tensor in tensors})


def _flat(data: list[Any]) -> list[Any]:
    return [value for row in data for value in row] if data and isinstance(data[0], list) else data


def _by_row(columns: Mapping[str, Any]) -> Rows:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _predictions(answer: Any) -> Sequence[Any]:
    found: Sequence[Any] = answer["predictions"]
    return found


def _said_in_v2(answer: Any) -> Sequence[Any]:
    outputs = answer["outputs"]
    found: Sequence[Any] = next(
        (each["data"] for each in outputs if each["name"] == OUTPUT), outputs[0]["data"]
    )
    return found


def _refused(detail: str, body: Any) -> Invalid:
    return Invalid(detail, errors=[FieldError("", "type", detail, body)])


# What another system's client sends passes to the model, which knows what is wrong with it.
def read_rows(dialect: Dialect, body: Any) -> Rows | None:
    """The rows of a body; None where they cannot be told, which the model will refuse.

    Raises:
        Invalid: in our own dialect, what is neither a record nor records.
    """
    try:
        return dialect.rows(body)
    except (ValueError, TypeError, LookupError, AttributeError):
        return None


def as_json(row: Any) -> str:
    """A row as the ledger keeps it."""
    return json.dumps(row)


PREDICT = ("/predict", "/v1/predict")

DIALECTS = (
    #       name              addresses                            rows     predictions     refused as
    Dialect("ours, vetiver",  PREDICT,                             _ours,   _said_by_ours),
    Dialect("MLflow",         ("/invocations",),                   _mlflow, _predictions,   refuse_mlflow),
    Dialect("KServe V1",      ("/v1/models/<model>:predict",),     _v1,     _predictions,   refuse_kserve),
    Dialect("Open Inference", ("/v2/models/<model>/infer",
                               "/v2/models/<model>/versions/<version>/infer"),
                                                                   _v2,     _said_in_v2,    refuse_kserve),
)  # fmt: skip
