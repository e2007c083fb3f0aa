"""Outcomes: what became of the rows that were predicted, reported later, one or many, in any order.

A report is kept as a row of its own. The first of a prediction counts; who reports another outcome for it is
told so, unless it is declared a correction, which then counts instead. A report of a prediction that is not
there yet is kept and counts when it comes: a spool may be folded in later.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from router import database
from router.database import DatabaseDown, stamp
from router.tables import outcomes, predictions

Status = Literal["recorded", "repeated", "pending", "contradicts", "invalid"]

MAX_ID = 140
# Reports that are written in one transaction.
AT_ONCE = 500


class Report(BaseModel):
    """What somebody reports of a prediction. `time` is when it became known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(min_length=1, max_length=MAX_ID)]
    outcome: Annotated[float, Field(allow_inf_nan=False)]
    time: datetime | None = None
    correction: bool = False


@dataclass(frozen=True)
class Told:
    """What came of a report; `detail` says what is wrong where it is not kept."""

    id: str | None
    status: Status
    detail: str | None = None

    def to_json(self) -> dict[str, Any]:
        told: dict[str, Any] = {"id": self.id, "status": self.status}
        return told | {"detail": self.detail} if self.detail else told


class Outcomes:
    """The outcomes in the router's database."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def append(self, reports: Iterable[Any]) -> Iterator[list[Told]]:
        """Take reports, each an object with id, outcome and perhaps time and correction.

        They are written in pieces, and what came of each piece is told when it is on disk.

        Raises:
            DatabaseDown: the database did not take a piece.
        """
        piece: list[Any] = []
        for report in reports:
            piece.append(report)
            if len(piece) >= AT_ONCE:
                yield self._write(piece)
                piece = []
        if piece:
            yield self._write(piece)

    def of(self, id_: str) -> list[dict[str, Any]]:
        """All that was reported of a prediction, oldest first."""
        query = sa.select(outcomes).where(outcomes.c.prediction_id == id_).order_by(outcomes.c.cursor)
        return [dict(row._mapping) for row in database.read(self._engine, query)]

    def _write(self, given: Sequence[Any]) -> list[Told]:
        now = stamp(datetime.now(UTC))
        read = [_read(each) for each in given]
        ids = [report.id for report in read if isinstance(report, Report)]
        try:
            with self._engine.begin() as connection:
                # Two reports of one prediction, at once, must see each other.
                if connection.dialect.name == "sqlite":
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                else:
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(REPORTING)))
                there = set(connection.scalars(sa.select(predictions.c.id).where(predictions.c.id.in_(ids))))
                query = sa.select(outcomes.c.prediction_id, outcomes.c.outcome)
                known: dict[str, float] = dict(
                    map(
                        tuple,
                        connection.execute(
                            query.where(outcomes.c.prediction_id.in_(ids)).order_by(outcomes.c.cursor)
                        ),
                    )
                )
                told, rows = [], []
                for report in read:
                    if isinstance(report, Told):
                        told.append(report)
                        continue
                    before = known.get(report.id)
                    if before == report.outcome:
                        told.append(Told(report.id, "repeated"))
                    elif before is not None and not report.correction:
                        why = f"{before:g} is on record; send correction: true if that was wrong"
                        told.append(Told(report.id, "contradicts", why))
                    else:
                        known[report.id] = report.outcome
                        rows.append(
                            {
                                "prediction_id": report.id,
                                "outcome": report.outcome,
                                "time": stamp(report.time) if report.time else now,
                                "reported": now,
                                "correction": report.correction and before is not None,
                            }
                        )
                        told.append(Told(report.id, "recorded" if report.id in there else "pending"))
                if rows:
                    connection.execute(outcomes.insert(), rows)
                return told
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseDown(error) from error


# Of PostgreSQL's advisory locks, that of those who report.
REPORTING = 7_461_002


def _read(given: Any) -> Report | Told:
    """A report, or what is wrong with it."""
    try:
        return Report.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        id_ = given.get("id") if isinstance(given, dict) else None
        return Told(id_ if isinstance(id_, str) else None, "invalid", f"{where or 'report'}: {first['msg']}")


def of_csv(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Reports from CSV with a header; raises ValueError where it is none."""
    reader = csv.DictReader(lines, strict=True)
    if reader.fieldnames is None or not {"id", "outcome"} <= set(reader.fieldnames):
        raise ValueError("the first line must name the columns, id and outcome among them")
    for row in reader:
        yield {name: value for name, value in row.items() if name and value != ""}


def of_ndjson(lines: Iterable[str]) -> Iterator[Any]:
    """Reports from lines of JSON; one that is none is told as such."""
    for line in lines:
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError:
                yield None


def text_lines(stream: Any) -> Iterator[str]:
    """The lines of a body; raises UnicodeDecodeError, a ValueError."""
    return iter(io.TextIOWrapper(stream, "utf-8", newline=""))
