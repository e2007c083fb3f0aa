"""From decoded JSON values to rows that a model takes, checked against the model's prototype."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from pydantic_core import ErrorDetails, SchemaValidator, ValidationError
from pydantic_core import core_schema as cs

from runoff.problems import MAX_VALUE_LENGTH, FieldError, Invalid
from runoff.prototype import Feature, Prototype

# Beyond this, JSON readers disagree on which integer was meant (RFC 8259, section 6).
EXACT_INTEGER = 2**53 - 1

JSON_NAMES = {
    "boolean": "a boolean",
    "integer": "a whole number",
    "number": "a number",
    "string": "a string",
}
DTYPES = {"boolean": "bool", "integer": "int64", "number": "float64", "string": "str"}

Row = dict[str, Any]


class RecordReader:
    """Reads records by the prototype of a model: by name, in any order of the columns."""

    def __init__(self, prototype: Prototype) -> None:
        self.prototype = prototype
        self._features = {feature.name: feature for feature in prototype.features}
        self._dtypes = {
            feature.name: "float64"
            if feature.type == "integer" and feature.nullable
            else DTYPES[feature.type]
            for feature in prototype.features
            if feature.type in ("integer", "number") or not feature.nullable
        }
        kinds = {self._dtypes.get(name) for name in self._features}
        self._one_dtype = kinds.pop() if len(kinds) == 1 else None
        fields = {feature.name: cs.typed_dict_field(_schema(feature)) for feature in prototype.features}
        self._strict = SchemaValidator(cs.typed_dict_schema(fields, extra_behavior="forbid"))
        self._lenient = SchemaValidator(cs.typed_dict_schema(fields, extra_behavior="ignore"))

    def read(self, records: Sequence[Any], *, at: str, ignore_extra: bool = False) -> pd.DataFrame:
        """Check records and make the model's input of them.

        Args:
            records: decoded JSON values, each of which ought to be an object.
            at: the JSON pointer of a record, with `{}` for its number.
            ignore_extra: whether columns that the model does not know are ignored, instead of refused.

        Returns:
            A frame of shape (len(records), features), columns in the model's order and types.

        Raises:
            Invalid: one or more fields break a rule; each is named with its rule and value.
        """
        validator = self._lenient if ignore_extra else self._strict
        rows: list[Row] = []
        errors: list[FieldError] = []
        for number, record in enumerate(records):
            try:
                rows.append(validator.validate_python(record))
            except ValidationError as error:
                errors += [
                    self._explain(each, at.format(number), record)
                    for each in error.errors(include_url=False, include_context=False)
                ]
        if errors:
            more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
            raise Invalid(f"{errors[0].detail}{more}", errors=errors)
        return self._frame(rows)

    def _frame(self, rows: Sequence[Row]) -> pd.DataFrame:
        if self._one_dtype:
            # One array at once: a column at a time costs more than a small model's prediction.
            values = np.array([[row[name] for name in self._features] for row in rows], self._one_dtype)
            return pd.DataFrame(values, columns=list(self._features))
        return pd.DataFrame(rows, columns=list(self._features)).astype(self._dtypes)

    def _explain(self, error: ErrorDetails, record_at: str, record: Any) -> FieldError:
        """Say an error of the validator in the words of the prototype's JSON Schema."""
        kind, value = error["type"], error["input"]
        if kind == "dict_type":
            return FieldError(record_at, "type", "a record is an object of column names and values", value)
        name = str(error["loc"][0])
        pointer = f"{record_at}/{name.replace('~', '~0').replace('/', '~1')}"
        if kind == "missing":
            return FieldError(pointer, "required", f"{name} is missing")
        if kind == "extra_forbidden":
            shown = name if len(name) <= MAX_VALUE_LENGTH else f"{name[:MAX_VALUE_LENGTH]}…"
            detail = f"{shown} is not a column of this model{self._guess(name, record)}"
            return FieldError(pointer, "additionalProperties", detail, value)
        rule, must = _broken_rule(kind, self._features[name])
        return FieldError(pointer, rule, f"{name} must be {must}", value)

    def _guess(self, name: str, record: Row) -> str:
        missing = [known for known in self._features if known not in record]
        near = difflib.get_close_matches(name, missing or self._features, n=1)
        return f"; did you mean {near[0]}?" if near else ""


def _broken_rule(kind: str, feature: Feature) -> tuple[str, str]:
    """The JSON Schema keyword for a validator's kind of error, and what the value must be."""
    if kind == "literal_error":
        return "enum", f"one of {', '.join(map(str, feature.codes or ()))}"
    if kind == "greater_than_equal":
        return "minimum", f"at least {_least(feature)}"
    if kind == "less_than_equal":
        return "maximum", f"at most {_most(feature)}"
    if kind == "finite_number":
        return "type", "a finite number"
    return "type", JSON_NAMES[feature.type]


def _least(feature: Feature) -> float | None:
    return -EXACT_INTEGER if feature.minimum is None and feature.type == "integer" else feature.minimum


def _most(feature: Feature) -> float | None:
    return EXACT_INTEGER if feature.maximum is None and feature.type == "integer" else feature.maximum


def _schema(feature: Feature) -> cs.CoreSchema:
    """The rule for one column; strict, so that "1" and true are no numbers."""
    schema: cs.CoreSchema
    if feature.type == "boolean":
        schema = cs.bool_schema(strict=True)
    elif feature.type == "string":
        schema = cs.str_schema(strict=True)
    else:
        # Whole numbers are read as floats, too: clients that pass through a data frame write 1.0 for 1.
        schema = cs.float_schema(
            strict=True,
            allow_inf_nan=False,
            multiple_of=1 if feature.type == "integer" else None,
            ge=_least(feature),
            le=_most(feature),
        )
    if feature.codes is not None:
        schema = cs.chain_schema([schema, cs.literal_schema(list(feature.codes))])
    return cs.nullable_schema(schema) if feature.nullable else schema
