"""How far whoever reads the ledger from the beginning to its end has come: its cursors, in the table `folds`.

Rows are committed in the order of their cursors. What is new is what came after those that are on record, up
to some others; they are moved by whoever comes first, and by nobody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from router.tables import folds, outcomes, predictions, side_answers

ROWS_AT_ONCE = 10_000


class Cursors(NamedTuple):
    """Up to where the ledger's tables have been read."""

    predictions: int = 0
    side_answers: int = 0
    outcomes: int = 0


# The statements are made once: to build one costs more than to execute it.
_MOVE = (
    folds.update()
    .where(
        folds.c.name == sa.bindparam("reader"),
        folds.c.recounts == sa.bindparam("at_recounts"),
        *(folds.c[name] == sa.bindparam(f"at_{name}") for name in Cursors._fields),
    )
    .values({name: sa.bindparam(f"to_{name}") for name in Cursors._fields})
)
_REACHED: Mapping[str, sa.Select[Any]] = {
    table.name: sa.select(sa.func.max(sa.column("cursor"))).select_from(
        sa.select(table.c.cursor)
        .where(table.c.cursor > sa.bindparam("at"))
        .order_by(table.c.cursor)
        .limit(ROWS_AT_ONCE)
        .subquery()
    )
    for table in (predictions, side_answers, outcomes)
}


def of(connection: sa.Connection, reader: str) -> Cursors:
    """How far a reader has come."""
    columns = [folds.c[name] for name in Cursors._fields]
    found = connection.execute(sa.select(*columns).where(folds.c.name == reader)).one_or_none()
    return Cursors._make(found) if found else Cursors()


def moved(connection: sa.Connection, reader: str, at: Cursors, to: Cursors, recounts: int = 0) -> bool:
    """Move a reader's cursors, if nobody has moved them, or counted anew, since; says whether they were."""
    where = {"reader": reader, "at_recounts": recounts, **bounds(at, to)}
    return connection.execute(_MOVE, where).rowcount == 1


def reached(connection: sa.Connection, at: Cursors) -> Cursors:
    """How far what is new goes, at most so many rows of each table."""
    found = (
        connection.scalar(_REACHED[name], {"at": place}) or place for name, place in at._asdict().items()
    )
    return Cursors(*found)


def new_rows(table: sa.Table) -> sa.ColumnElement[bool]:
    """The rows of a table that are new, by the parameters that `bounds` gives."""
    name = table.name
    return sa.and_(table.c.cursor > sa.bindparam(f"at_{name}"), table.c.cursor <= sa.bindparam(f"to_{name}"))


def bounds(at: Cursors, to: Cursors) -> dict[str, int]:
    """Two places in the ledger, as queries take them."""
    return {f"at_{name}": place for name, place in at._asdict().items()} | {
        f"to_{name}": place for name, place in to._asdict().items()
    }
