"""Load the data set "default of credit card clients", and say what may stand in it.

The data card is `data/README.md`. The loader takes the sample in this folder unless CREDIT_DATA names
another file: `python -m data.fetch` gets the whole set from its publisher.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pandera.pandas as pa

SAMPLE = Path(__file__).resolve().parent / "credit_default_sample.csv"

TARGET = "default payment next month"
PAYMENTS = ("PAY_0", "PAY_2", "PAY_3", "PAY_4", "PAY_5", "PAY_6")
BILLS = tuple(f"BILL_AMT{month}" for month in range(1, 7))
PAID = tuple(f"PAY_AMT{month}" for month in range(1, 7))

# In the order of the file. The client's ID is none of them: it says nothing of anybody.
FEATURES = ("LIMIT_BAL", "SEX", "EDUCATION", "MARRIAGE", "AGE", *PAYMENTS, *BILLS, *PAID)

# Every code that may stand in a coded column, documented by the publisher or not; see the card.
CODES: dict[str, tuple[int, ...]] = {
    "SEX": (1, 2),
    "EDUCATION": tuple(range(7)),
    "MARRIAGE": tuple(range(4)),
    **dict.fromkeys(PAYMENTS, tuple(range(-2, 10))),
}

# What is possible at all in the others: NT dollars and years. Wider than what was ever seen.
DOLLARS = 100_000_000.0
BOUNDS: dict[str, tuple[float, float]] = {
    "LIMIT_BAL": (1, DOLLARS),
    "AGE": (18, 120),
    **dict.fromkeys(BILLS, (-DOLLARS, DOLLARS)),
    **dict.fromkeys(PAID, (0, DOLLARS)),
}

# Columns by which a decision must not be made, or only with a reason: see the card.
SENSITIVE = ("SEX", "EDUCATION", "MARRIAGE", "AGE")

# Which clients are held out is a matter of the data, not of a training run: with a seed of its own, a
# second run would train on clients whose classes the traffic of the first still holds out.
SPLIT_SEED = 20090101
HELD_OUT_SHARE = 0.25

MAX_ERRORS = 10


class BadData(ValueError):
    """A file that is not the data set; the message names columns, rows and rules."""


def load(path: Path | None = None) -> pd.DataFrame:
    """Load and validate the clients.

    Args:
        path: a CSV file, by default what CREDIT_DATA says, else the sample.

    Returns:
        A frame of shape (clients, 25): ID, the 23 features and the target, all int64.

    Raises:
        BadData: a column, a type or a value breaks a rule.
        FileNotFoundError: there is no such file.
    """
    path = path or Path(os.environ.get("CREDIT_DATA") or SAMPLE)
    try:
        frame = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise BadData(f"{path} cannot be read as CSV: {error}") from error
    if frame.empty:
        raise BadData(f"{path} holds no clients")
    try:
        return SCHEMA.validate(frame, lazy=True).astype("int64")
    except pa.errors.SchemaErrors as error:
        raise BadData(f"{path} is not the data set:\n{_explain(error.failure_cases)}") from error


def digest(frame: pd.DataFrame) -> str:
    """The SHA-256 of a data set: of its CSV with a header, commas, and line feeds."""
    return hashlib.sha256(frame.to_csv(index=False, lineterminator="\n").encode()).hexdigest()


def split(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split the clients into those to train on and those held out, three to one, stratified by class.

    The same frame is always split alike, and the traffic that the services see comes from the held out.
    """
    # Imported where it is needed: whoever only sends traffic need not wait for scikit-learn.
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    training, held_out = train_test_split(
        frame, test_size=HELD_OUT_SHARE, stratify=frame[TARGET], random_state=SPLIT_SEED
    )
    return training, held_out


def _rule(text: str, holds: Callable[[pd.Series], pd.Series]) -> pa.Check:
    """A rule for the numbers of a column; what is no number is left to the rule that says so."""

    def check(column: pd.Series) -> pd.Series:
        numbers = pd.to_numeric(column, errors="coerce")
        return holds(numbers) | numbers.isna()

    return pa.Check(check, error=text, ignore_na=False)


def _column(rule: pa.Check, *, unique: bool = False) -> pa.Column:
    def whole(column: pd.Series) -> pd.Series:
        return pd.to_numeric(column, errors="coerce").mod(1).eq(0)

    whole_number = pa.Check(whole, error="must be a whole number", ignore_na=False)
    return pa.Column(None, [whole_number, rule], nullable=True, unique=unique)


def _coded(codes: tuple[int, ...]) -> pa.Column:
    return _column(_rule(f"must be one of {', '.join(map(str, codes))}", lambda x: x.isin(codes)))


def _bounded(least: float, most: float) -> pa.Column:
    return _column(_rule(f"must be from {least:,.0f} to {most:,.0f}", lambda x: x.between(least, most)))


SCHEMA = pa.DataFrameSchema(
    {
        "ID": _column(_rule("must be 1 or more", lambda x: x >= 1), unique=True),
        **{name: _coded(CODES[name]) if name in CODES else _bounded(*BOUNDS[name]) for name in FEATURES},
        TARGET: _coded((0, 1)),
    },
    strict=True,
    ordered=True,
)

# What pandera's own checks are called, in words.
WORDS = {
    "column_in_dataframe": "is missing",
    "column_in_schema": "is not a column of the data set",
    "column_ordered": "is not in its place",
    "field_uniqueness": "stands in more than one row",
}


def _explain(failures: pd.DataFrame) -> str:
    """The first failures, one a line: the column, the line in the file, the rule, the value."""
    lines = []
    for failure in failures.head(MAX_ERRORS).to_dict("records"):
        rule = WORDS.get(failure["check"], failure["check"])
        if pd.isna(failure["index"]):
            lines.append(f"  column {failure['failure_case']} {rule}")
        else:
            # The header is line 1.
            line = int(failure["index"]) + 2
            lines.append(f"  {failure['column']} {rule}: line {line} has {failure['failure_case']}")
    if len(failures) > MAX_ERRORS:
        lines.append(f"  … and {len(failures) - MAX_ERRORS:,} more")
    return "\n".join(lines)
