"""The router's ledger as a notebook reads it: the exported rows, and what the router said of them.

Both come from a running router, or from files that somebody kept:

    curl -H 'Accept: text/csv' "$RUNOFF_ROUTER_URL/v1/predictions" > rows.csv
    runoff verdict --json > verdict.json
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pandas as pd
import urllib3

from verdict.counted import Answers, evidence
from verdict.declared import LIVE, Declared
from verdict.evidence import Evidence

URL, KEY = "RUNOFF_ROUTER_URL", "RUNOFF_DASHBOARD_KEY"
DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT = urllib3.Timeout(connect=5.0, read=60.0)
# Traffic of whatever tag, and that without one.
ALL, REAL = "all", "real"

TEXTS = (
    *("time", "experiment", "variant", "answered_by", "tag", "unit", "request_id", "features"),
    "side_answers",
)
NUMBERS = (
    *("experiment_version", "allocation", "phase", "row", "propensity"),
    *("prediction", "latency_ms", "status", "outcome"),
)
# The columns that live and side answers have.
_ANSWERED = ("status", "prediction", "latency_ms")
# What the router puts before a text that a spreadsheet would take for a formula.
GUARD = "'"


class NotReadable(Exception):
    """What was to be read is not there, or is something else; the message says what and why."""


@dataclass(frozen=True)
class Said:
    """What a router said, and of what.

    Attributes:
        verdict: its answer, as `GET /v1/verdict` gives it.
        declared: what was declared of the experiment.
        as_of: the moment of the verdict.
    """

    verdict: Mapping[str, Any]
    declared: Declared
    as_of: datetime


def said(file: str | None, url: str | None, tag: str) -> Said:
    """The router's own verdict, with what was declared.

    Args:
        file: what `runoff verdict --json` wrote; None asks the router.
        url: of the router; None is RUNOFF_ROUTER_URL, else the one of `make run`.
        tag: of which traffic it is asked.

    Raises:
        NotReadable: there is no such file, no router answers, or it is something else.
    """
    if file:
        where, text = file, _bytes(Path(file))
    else:
        query = urlencode({"tag": tag, "declared": "true"})
        where = f"{_address(url)}/v1/verdict?{query}"
        text = b"".join(_asked(where, "application/json"))
    try:
        told = json.loads(text)
        return Said(told, Declared.from_dict(told["declared"]), datetime.fromisoformat(told["as_of"]))
    except (ValueError, LookupError, TypeError) as error:
        raise NotReadable(f"{where} is no verdict with what was declared: {error}") from None


def rows(file: str | None, url: str | None, told: Said) -> pd.DataFrame:
    """The rows that a verdict counts, a row for each request, by the names of the export's columns.

    Args:
        file: an export as CSV, NDJSON or Parquet, by its ending; None asks the router.
        url: as in `said`.
        told: the verdict. Rows of other experiments, phases and tags do not count, nor what was not
            assigned by chance, nor what was asked after its moment.

    Raises:
        NotReadable: there is no such file, no router answers, or it lacks a column.
    """
    found = _read(Path(file)) if file else _exported(_address(url), told.verdict["tag"])
    missing = [name for name in (*TEXTS, *NUMBERS) if name not in found]
    if missing and len(found):
        raise NotReadable(
            f"{file or 'the router'} is no export of this release: it lacks {', '.join(missing)}"
        )
    found = found.reindex(columns=[*TEXTS, *NUMBERS])
    found = found.astype({**dict.fromkeys(TEXTS, object), **dict.fromkeys(NUMBERS, float)})
    found["time"] = pd.to_datetime(found["time"], utc=True, format="ISO8601")
    declared, tag = told.declared, told.verdict["tag"]
    counts = (
        (found["experiment"] == declared.experiment)
        & (found["phase"] == declared.phase)
        & found["propensity"].notna()
        & (found["time"] <= told.as_of)
    )
    if tag != ALL:
        counts &= found["tag"].isna() if tag == REAL else found["tag"] == tag
    return found[counts].reset_index(drop=True)


def answers(found: pd.DataFrame) -> Answers:
    """What variants answered to the rows: a live answer each, and the side answers."""
    beside = [
        (request, each)
        for request, told in enumerate(found["side_answers"])
        for each in _nested(told) or ()
        # One that failed before another answered is told by the row itself, and what a shadow said that is
        # another model by now is of another phase.
        if each["kind"] != "failed" and each["phase"] == found["phase"][request]
    ]
    of = np.array([request for request, _ in beside], np.int64)
    side = pd.DataFrame([each for _, each in beside], columns=["name", "kind", *_ANSWERED])
    request = np.concatenate([np.arange(len(found)), of])

    def both(live: Any, aside: Any, kind: Any) -> Any:
        return np.concatenate([np.asarray(live, kind), np.asarray(aside, kind)])

    def row(name: str, kind: Any) -> Any:
        return found[name].to_numpy(kind)[request]

    status, prediction, latency = (both(found[name], side[name], float) for name in _ANSWERED)
    saved = (found["status"] < 400) & found["answered_by"].notna()  # noqa: PLR2004
    return Answers(
        request=request,
        time=row("time", "datetime64[ns]").astype(np.int64) / 1e9,
        version=row("experiment_version", np.int64),
        allocation=row("allocation", np.int64),
        variant=both(found["variant"], side["name"], object),
        kind=both([LIVE] * len(found), side["kind"], object),
        status=status.astype(np.int64),
        score=prediction,
        latency=latency,
        outcome=row("outcome", float),
        saved=both(saved, [False] * len(side), bool),
        unit=_numbers(found, found["unit"])[request],
        named=found["unit"].notna().to_numpy()[request],
        row=row("row", np.int64),
        cluster=_numbers(found, found["unit"].fillna("batch " + found["request_id"]))[request],
    )


def _numbers(found: pd.DataFrame, names: pd.Series[Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A number for each name; for what has none, or another tag, one of its own."""
    alone = [f"row {number}" for number in range(len(found))]
    named = found["tag"].fillna("") + "/" + names
    return np.asarray(pd.factorize(named.where(names.notna(), alone))[0], np.int64)


def counted(found: pd.DataFrame, told: Said) -> Evidence:
    """The evidence in the rows, as of the moment of a verdict."""
    records = []
    if any(each.parts for each in told.declared.terms):
        nested = (_nested(each) for each in found["features"])
        records = [each if isinstance(each, dict) else {} for each in nested]
    return evidence(answers(found), told.declared, told.as_of.timestamp(), records)


def _read(file: Path) -> pd.DataFrame:
    """An export, by the ending of its name."""
    if not file.exists():
        raise NotReadable(f"{file} is not there")
    try:
        if file.suffix == ".parquet":
            return pd.read_parquet(file)
        if file.suffix in (".ndjson", ".jsonl"):
            with file.open(encoding="utf-8") as lines:
                return _frame(lines)
        if file.suffix == ".csv":
            found = pd.read_csv(file, dtype=dict.fromkeys(TEXTS, str), keep_default_na=False, na_values=[""])
            return found.assign(
                **{name: found[name].str.removeprefix(GUARD) for name in TEXTS if name in found}
            )
    except (ValueError, ImportError, OSError) as error:
        raise NotReadable(f"{file} cannot be read: {error}") from None
    raise NotReadable(f"{file}: an export ends in .csv, .ndjson or .parquet")


def _exported(url: str, tag: str) -> pd.DataFrame:
    query = "" if tag == ALL else f"?{urlencode({'tag': tag})}"
    return _frame(_lines(_asked(f"{url}/v1/predictions{query}", "application/x-ndjson")))


def _frame(lines: Iterable[str | bytes]) -> pd.DataFrame:
    wanted = (*TEXTS, *NUMBERS)
    return pd.DataFrame(
        [{name: row[name] for name in wanted if name in row} for row in map(json.loads, lines)]
    )


def _nested(value: Any) -> Any:
    """What a column holds as JSON, in a file as a text; None where it is empty."""
    found = json.loads(value) if isinstance(value, str) else value
    return found if isinstance(found, dict | list) else None


def _address(url: str | None) -> str:
    return (url or os.environ.get(URL) or DEFAULT_URL).rstrip("/")


def _asked(address: str, accept: str) -> Iterable[bytes]:
    """What a router answers, in pieces; a key that may read is in the environment, where it wants one."""
    key = os.environ.get(KEY)
    headers = {"Accept": accept} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        response = urllib3.request(
            "GET", address, headers=headers, timeout=TIMEOUT, retries=False, preload_content=False
        )
        if response.status != 200:  # noqa: PLR2004
            raise NotReadable(f"{address} answers {response.status}: {response.data.decode()[:500]}")
        yield from response.stream()
    except urllib3.exceptions.HTTPError as error:
        raise NotReadable(f"{address} does not answer: {error}") from None


def _lines(pieces: Iterable[bytes]) -> Iterable[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise NotReadable(f"{file} cannot be read: {error.strerror}") from None
