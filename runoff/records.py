"""From decoded JSON values to rows that a model takes, checked against the model's prototype."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
from pydantic_core import ErrorDetails, PydanticKnownError, SchemaValidator, ValidationError
from pydantic_core import core_schema as cs

from runoff.evaluators import Matrix, to_matrix
from runoff.problems import MAX_VALUE_LENGTH, FieldError, Invalid
from runoff.prototype import Feature, Prototype

# Beyond this, JSON readers disagree on which integer was meant (RFC 8259, section 6).
EXACT_INTEGER = 2**53 - 1
# The header that warns of values that training never saw, a list in the form of RFC 9651.
UNSEEN = "X-Unseen-Values"

JSON_NAMES = {
    "boolean": "a boolean",
    "integer": "a whole number",
    "number": "a number",
    "string": "a string",
}
LARGEST = np.finfo(np.float64).max
NUMBERS = {int, float}

Row = dict[str, Any]


class RecordReader:
    """Reads records by the prototype of a model: by name, in any order of the columns.

    Records of numbers are checked all at once, as a matrix. Where that finds a fault, or cannot be done, they
    are checked one by one by a validator that can say which rule is broken.
    """

    def __init__(self, prototype: Prototype) -> None:
        self.prototype = prototype
        self._features = {feature.name: feature for feature in prototype.features}
        fields = {feature.name: cs.typed_dict_field(_schema(feature)) for feature in prototype.features}
        self._strict = SchemaValidator(cs.typed_dict_schema(fields, extra_behavior="forbid"))
        self._lenient = SchemaValidator(cs.typed_dict_schema(fields, extra_behavior="ignore"))
        plain = {feature.name: cs.typed_dict_field(_plain_schema(feature)) for feature in prototype.features}
        self._plain = (
            SchemaValidator(cs.typed_dict_schema(plain, extra_behavior="forbid"))
            if all(feature.type in ("integer", "number") for feature in prototype.features)
            else None
        )
        self._width = len(prototype.features)
        self._rules = _MatrixRules.of(prototype.features)
        self._seen = [_SeenColumn(number, each) for number, each in enumerate(prototype.features)]
        names = prototype.names
        # itemgetter gives a tuple only of two or more.
        self._values = itemgetter(*names) if len(names) > 1 else lambda record: (record[names[0]],)

    def read(self, records: Sequence[Any], *, at: str, ignore_extra: bool = False) -> Matrix:
        """Check records and make the model's input of them.

        Args:
            records: decoded JSON values, each of which ought to be an object.
            at: the JSON pointer of a record, with `{}` for its number.
            ignore_extra: whether columns that the model does not know are ignored, instead of refused.

        Returns:
            A matrix of shape (len(records), features), columns in the model's order: of float64 where they
            are all numbers or truth values, else of objects.

        Raises:
            Invalid: one or more fields break a rule; each is named with its rule and value.
        """
        if self._rules:
            try:
                rows = [self._values(record) for record in records]
            except (LookupError, TypeError):
                rows = []
            if rows and (ignore_extra or all(len(record) == self._width for record in records)):
                matrix = self.read_values(chain.from_iterable(rows), len(rows))
                if matrix is not None:
                    return matrix
        return self._read_each(records, at, ignore_extra)

    def read_json(self, body: bytes) -> Matrix | None:
        """Make the model's input of one plain record in JSON, in the fastest way.

        Returns:
            As `read`, of shape (1, features); None where something is wrong, unusual, or was never seen in
            training.
        """
        if self._plain is None:
            return None
        try:
            # The validator gives the fields in the order of its schema, which is that of the columns.
            record = self._plain.validate_json(body)
        except ValidationError:
            return None
        return np.array([[*record.values()]], np.float64)

    def read_values(
        self, values: Iterable[Any], rows: int, columns: Sequence[str] | None = None
    ) -> Matrix | None:
        """Make the model's input of values that stand row by row, without looking at each row.

        Args:
            values: of all rows, one row after the other.
            rows: how many rows.
            columns: what the values of a row are, where that is not the model's own order.

        Returns:
            As `read`; None where something is wrong or unusual, so that `read` has to look at each row.
        """
        if self._rules is None or rows == 0:
            return None
        found = _numbers(values if isinstance(values, list | np.ndarray) else list(values))
        width = self._width if columns is None else len(columns)
        if found is None or found.size != rows * width:
            return None
        matrix = found.reshape(rows, width)
        if columns is not None and tuple(columns) != self.prototype.names:
            places = {name: place for place, name in enumerate(columns)}
            if len(places) != width or not places.keys() >= self._features.keys():
                return None
            matrix = matrix[:, [places[name] for name in self.prototype.names]]
        return matrix if self._rules.allow(matrix) else None

    def read_columns(self, columns: Mapping[str, Any]) -> Matrix | None:
        """Make the model's input of the values of each column, n of each.

        Returns:
            As `read`; None where something is wrong or unusual, so that `read` has to look at each row.
        """
        if self._rules is None or columns.keys() != self._features.keys():
            return None
        found = [
            _numbers(values) if isinstance(values, list | np.ndarray) else None for values in columns.values()
        ]
        arrays = [each for each in found if each is not None and each.size]
        if len(arrays) != self._width or len({each.size for each in arrays}) != 1:
            return None
        ordered = dict(zip(columns, arrays, strict=True))
        matrix = np.column_stack([ordered[name] for name in self._features])
        return matrix if self._rules.allow(matrix) else None

    def unseen(self, matrix: Matrix) -> Counter[str]:
        """How many rows hold, in which column, what is allowed and was never seen in training."""
        if self._rules:
            return Counter(self._rules.unseen(matrix))
        found = ((column.name, column.unseen(matrix)) for column in self._seen)
        return Counter({name: count for name, count in found if count})

    def _read_each(self, records: Sequence[Any], at: str, ignore_extra: bool) -> Matrix:
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
        return to_matrix(rows, self.prototype)

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


class _MatrixRules:
    """The rules of columns of numbers, in a form in which a whole matrix is held against them at once."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self._names = [feature.name for feature in features]
        whole = np.array([feature.type == "integer" for feature in features])
        self._whole: Any = slice(None) if whole.all() else whole
        self._allowed = _Ranges([(f.codes, _least(f), _most(f)) for f in features])
        self._seen = _Ranges([_seen_and_allowed(feature) for feature in features])

    @classmethod
    def of(cls, features: Sequence[Feature]) -> _MatrixRules | None:
        """The rules, if all columns hold numbers, and all codes are whole ones."""
        numbers = all(feature.type in ("integer", "number") for feature in features)
        codes = [code for feature in features for code in feature.codes or ()]
        return cls(features) if features and numbers and all(type(code) is int for code in codes) else None

    def allow(self, matrix: Matrix) -> bool:
        """Whether no value of a matrix breaks a rule."""
        return self._are_whole(matrix) and self._allowed.hold(matrix)

    def seen(self, matrix: Matrix) -> bool:
        """Whether training saw, column by column, everything that is in a matrix."""
        return self._are_whole(matrix) and self._seen.hold(matrix)

    def unseen(self, matrix: Matrix) -> dict[str, int]:
        """How many rows of an allowed matrix hold, in which column, what training never saw."""
        if self._seen.hold(matrix):
            return {}
        counts = self._seen.outside(matrix).sum(axis=0)
        return {self._names[column]: int(counts[column]) for column in np.flatnonzero(counts)}

    def _are_whole(self, matrix: Matrix) -> bool:
        whole = matrix[:, self._whole]
        return bool((np.floor(whole) == whole).all())


def _numbers(values: Sequence[Any] | np.ndarray[Any, Any]) -> Matrix | None:
    """Numbers as an array of float64, shape (n,); None if a value is none."""
    if isinstance(values, np.ndarray):
        return values.astype(np.float64) if values.dtype.kind in "iuf" else None
    # Asked of the values, since numpy would take true for 1 and null for NaN.
    if not set(map(type, values)) <= NUMBERS:
        return None
    try:
        return np.array(values, np.float64)
    except OverflowError:
        return None


class _Ranges:
    """For each column a least and a greatest value, and where values are listed, which lie between."""

    def __init__(self, columns: Sequence[tuple[tuple[Any, ...] | None, float | None, float | None]]) -> None:
        """Take, for each column, the whole numbers that are listed, else its limits."""
        self.width = len(columns)
        self._least = np.array([_bound(values, least, min, -LARGEST) for values, least, _ in columns])
        self._most = np.array([_bound(values, most, max, LARGEST) for values, _, most in columns])
        listed = {number: values for number, (values, _, _) in enumerate(columns) if values}
        with_gaps = {n: values for n, values in listed.items() if len(values) <= max(values) - min(values)}
        self._columns = np.array(list(with_gaps), np.intp)
        self._first = self._least[self._columns]
        size = max((int(max(values) - min(values)) for values in with_gaps.values()), default=0) + 1
        self._table = np.zeros((len(with_gaps), size), bool)
        for row, values in enumerate(with_gaps.values()):
            self._table[row, [int(value - min(values)) for value in values]] = True
        self._rows = np.arange(len(with_gaps))

    def hold(self, matrix: Matrix) -> bool:
        """Whether all values lie in their columns' ranges. A NaN lies in none."""
        if not ((matrix >= self._least) & (matrix <= self._most)).all():
            return False
        if not self._rows.size:
            return True
        # Where a value is not whole, it has been refused before; where it is, it is a place in the table.
        places = (matrix[:, self._columns] - self._first).astype(np.intp)
        return bool(self._table[self._rows, places].all())

    def outside(self, matrix: Matrix) -> Matrix:
        """Which values lie outside of their columns' ranges, as truth values; a NaN lies nowhere."""
        outside = (matrix < self._least) | (matrix > self._most)
        values = matrix[:, self._columns]
        listed = ~(outside[:, self._columns] | np.isnan(values))
        places = np.where(listed, values - self._first, 0).astype(np.intp)
        outside[:, self._columns] |= listed & ~self._table[self._rows, places]
        return outside


class _SeenColumn:
    """What training saw in one column."""

    def __init__(self, number: int, feature: Feature) -> None:
        self.name = feature.name
        self._number = number
        self._seen = feature.seen

    def unseen(self, matrix: Matrix) -> int:
        """How many rows hold something else; a null counts as seen where it is allowed at all."""
        column = matrix[:, self._number]
        present = [value for value in column.tolist() if value is not None and value == value]  # noqa: PLR0124
        if self._seen.values is not None:
            return sum(value not in self._seen.values for value in present)
        least = _bound(None, self._seen.minimum, min, -LARGEST)
        most = _bound(None, self._seen.maximum, max, LARGEST)
        return sum(not least <= value <= most for value in present)


def _seen_and_allowed(feature: Feature) -> tuple[tuple[Any, ...] | None, float | None, float | None]:
    """What training saw in a column, as far as it is allowed there."""
    seen, codes = feature.seen, feature.codes
    values = seen.values and tuple(value for value in seen.values if codes is None or value in codes)
    least = [limit for limit in (seen.minimum, _least(feature)) if limit is not None]
    most = [limit for limit in (seen.maximum, _most(feature)) if limit is not None]
    return values, max(least, default=None), min(most, default=None)


def _bound(
    values: tuple[Any, ...] | None, limit: float | None, best: Callable[..., Any], default: float
) -> float:
    """The least or greatest of the values, where they are listed, else the limit."""
    bound = best(values) if values else limit
    return default if bound is None else float(bound)


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
        schema = cs.float_schema(strict=True, allow_inf_nan=False, ge=_least(feature), le=_most(feature))
        if feature.type == "integer":
            schema = cs.no_info_after_validator_function(_whole, schema)
    if feature.codes is not None:
        schema = cs.chain_schema([schema, cs.literal_schema(list(feature.codes))])
    return cs.nullable_schema(schema) if feature.nullable else schema


def _whole(value: float) -> float:
    """Exactly whole, where the library's `multiple_of` lets 1.0000000001 pass for 1."""
    if not value.is_integer():
        raise PydanticKnownError("int_from_float")
    return value


def _plain_schema(feature: Feature) -> cs.CoreSchema:
    """A rule that only lets through what is written as usual, and what training saw."""
    values, least, most = _seen_and_allowed(feature)
    if values:
        # The type is asked first: a literal alone takes true for 1.
        return cs.chain_schema([cs.int_schema(strict=True), cs.literal_schema(list(values))])
    if feature.type == "integer" and least is not None and most is not None:
        return cs.int_schema(strict=True, ge=math.ceil(least), le=math.floor(most))
    return cs.float_schema(strict=True, allow_inf_nan=False, ge=least, le=most)
