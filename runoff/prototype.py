"""What a model takes: its input columns, what is allowed in them, and what training saw in them.

A prototype travels with a model version. It is kept, and answered on `/prototype`, as one JSON Schema
object in the form that vetiver reads (`title`, `type`, `properties` with `example` and `type`, `required`);
what vetiver has no word for is added under standard keywords (`enum`, `minimum`, `maximum`) and `x-seen`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

Scalar = bool | int | float | str
FeatureType = Literal["boolean", "integer", "number", "string"]
Bounds = tuple[float | None, float | None]

# The type of a column by that of an example.
TYPES: dict[type, FeatureType] = {bool: "boolean", int: "integer", float: "number", str: "string"}
DTYPES = {"boolean": "bool", "integer": "int64", "number": "float64", "string": "str"}


@dataclass(frozen=True)
class Seen:
    """What training saw in a column: the values, where it is coded, else the range."""

    values: tuple[Scalar, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class Feature:
    """One input column.

    `codes` lists the only values allowed; `minimum` and `maximum` bound what is possible at all. What is
    allowed is wider than what was seen: a limit above every limit in training is unusual, not wrong.
    """

    name: str
    type: FeatureType
    example: Scalar
    codes: tuple[Scalar, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    nullable: bool = False
    seen: Seen = Seen()

    @property
    def dtype(self) -> str | None:
        """The type of the column in a data frame; None where pandas has to find one that holds nulls."""
        if not self.nullable:
            return DTYPES[self.type]
        return "float64" if self.type in ("integer", "number") else None

    def to_json(self) -> dict[str, Any]:
        """The column's JSON Schema; what training saw stands in `x-seen`."""
        schema: dict[str, Any] = {
            "example": self.example,
            "type": [self.type, "null"] if self.nullable else self.type,
        }
        if self.codes is not None:
            schema["enum"] = [*self.codes, None] if self.nullable else list(self.codes)
        if self.minimum is not None:
            schema["minimum"] = self.minimum
        if self.maximum is not None:
            schema["maximum"] = self.maximum
        seen = {
            "values": None if self.seen.values is None else list(self.seen.values),
            "minimum": self.seen.minimum,
            "maximum": self.seen.maximum,
        }
        if seen := {key: value for key, value in seen.items() if value is not None}:
            schema["x-seen"] = seen
        return schema

    @classmethod
    def from_json(cls, name: str, schema: Mapping[str, Any]) -> Feature:
        """The column that `to_json` told."""
        declared = schema["type"]
        nullable = isinstance(declared, list)
        codes = schema.get("enum")
        seen = schema.get("x-seen", {})
        return cls(
            name=name,
            type=declared[0] if nullable else declared,
            example=schema["example"],
            codes=None if codes is None else tuple(code for code in codes if code is not None),
            minimum=schema.get("minimum"),
            maximum=schema.get("maximum"),
            nullable=nullable,
            seen=Seen(
                values=tuple(seen["values"]) if "values" in seen else None,
                minimum=seen.get("minimum"),
                maximum=seen.get("maximum"),
            ),
        )


@dataclass(frozen=True)
class Prototype:
    """The input columns of a model, in the order in which it was trained on them."""

    features: tuple[Feature, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features)

    @property
    def is_numeric(self) -> bool:
        """Whether rows are matrices of float64: every column holds numbers or truth values."""
        return all(feature.dtype not in (None, "str") for feature in self.features)

    @property
    def example(self) -> dict[str, Scalar]:
        """A record that the model takes: the first row that it was trained on."""
        return {feature.name: feature.example for feature in self.features}

    @classmethod
    def from_frame(
        cls,
        X: pd.DataFrame,
        *,
        codes: Mapping[str, Sequence[Scalar]] | None = None,
        bounds: Mapping[str, Bounds] | None = None,
    ) -> Prototype:
        """Describe the training rows.

        Args:
            X: training rows, shape (n, features), n ≥ 1, the columns in the model's order.
            codes: for each coded column, every value that is allowed in it.
            bounds: for other columns, the least and the greatest value that is possible, either may be None.

        Raises:
            ValueError: a frame without rows, a column named twice, or a column of dates or other objects.
        """
        codes, bounds = codes or {}, bounds or {}
        if X.empty or X.columns.has_duplicates:
            raise ValueError("a prototype needs at least one row, and each column once")
        return cls(
            tuple(
                _describe(str(name), X[name], codes.get(str(name)), bounds.get(str(name), (None, None)))
                for name in X.columns
            )
        )

    @classmethod
    def from_examples(cls, examples: Mapping[str, Scalar]) -> Prototype:
        """Describe a model of which only one example record is known, as in a pin that vetiver wrote."""
        return cls(tuple(Feature(name, TYPES[type(example)], example) for name, example in examples.items()))

    def to_json(self) -> dict[str, Any]:
        """As a JSON Schema object in vetiver's form."""
        return {
            "properties": {feature.name: feature.to_json() for feature in self.features},
            "required": list(self.names),
            "title": "prototype",
            "type": "object",
        }

    @classmethod
    def from_json(cls, schema: Mapping[str, Any]) -> Prototype:
        """Read what `to_json` wrote.

        The order of the columns is that of `required`: YAML, in which pins keeps it, sorts `properties`.
        """
        return cls(tuple(Feature.from_json(name, schema["properties"][name]) for name in schema["required"]))


def _describe(name: str, column: pd.Series, codes: Sequence[Scalar] | None, bounds: Bounds) -> Feature:
    import pandas as pd  # noqa: PLC0415 (a service has no data frame to describe)

    kind = _type_of(column, name)
    present = column.dropna()
    if codes is None and isinstance(column.dtype, pd.CategoricalDtype):
        codes = [plain(code) for code in column.cat.categories]
    if codes is not None or kind in ("boolean", "string"):
        seen = Seen(values=tuple(sorted({plain(value) for value in present})))
    else:
        seen = Seen(minimum=_number(present.min()), maximum=_number(present.max()))
    return Feature(
        name=name,
        type=kind,
        example=plain(present.iloc[0]),
        codes=None if codes is None else tuple(codes),
        minimum=bounds[0],
        maximum=bounds[1],
        nullable=bool(column.isna().any()),
        seen=seen,
    )


def _type_of(column: pd.Series, name: str) -> FeatureType:
    import pandas as pd  # noqa: PLC0415

    values = column.cat.categories.to_series() if isinstance(column.dtype, pd.CategoricalDtype) else column
    if pd.api.types.is_bool_dtype(values):
        return "boolean"
    if pd.api.types.is_integer_dtype(values):
        return "integer"
    if pd.api.types.is_float_dtype(values):
        return "number"
    if pd.api.types.is_string_dtype(values):
        return "string"
    raise ValueError(f"column {name!r} holds {column.dtype}: a model takes numbers, strings and booleans")


def plain(value: Any) -> Scalar:
    """Make a Python scalar of a numpy one, so that JSON and YAML can say it."""
    plain: Scalar = value.item() if hasattr(value, "item") else value
    return plain


def _number(value: Any) -> float | int | None:
    number = plain(value)
    return number if isinstance(number, int | float) and math.isfinite(number) else None
