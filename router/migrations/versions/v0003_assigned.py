"""Sums over what chance assigned for itself, over failures that are alike, and of y − p over units.

All sums are made anew from the rows, but where rows were pruned: there each request counts as one of its own.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from router.migrations.versions.v0002_repeats import SUMS

revision = "0003"
down_revision = "0002"

REPEATED = ("repeats", "repeat_decisions")
# What the new columns hold of sums whose rows are gone.
OLD = {
    "sums": {
        "assigned": "requests",
        "served": "answered - saved",
        "apart": "requests",
        "apart_failed": "failed + saved",
        "together": "0",
        "timed": "requests - failed",
    },
    "labels": {"assigned": "labelled"},
}


def upgrade() -> None:
    """Add the columns and the index, and let everything be counted again that can be."""
    connection = op.get_bind()
    for table, columns in OLD.items():
        for column in columns:
            zero = sa.Column(column, sa.BigInteger(), nullable=False, server_default="0")
            op.add_column(table, zero)
    for column in ("residual_cross", "residual_product"):
        op.add_column("repeats", sa.Column(column, sa.Float(), nullable=False, server_default="0"))
    failed = sa.text("unit IS NOT NULL AND (status >= 500 OR answered_by IS NOT NULL)")
    op.create_index(
        "predictions_failed_by_unit",
        "predictions",
        ["unit", "cursor"],
        sqlite_where=failed,
        postgresql_where=failed,
    )
    if connection.execute(sa.text("SELECT 1 FROM folds WHERE pruned <> ''")).first() is None:
        for table in (*SUMS, *REPEATED, "folds"):
            connection.execute(sa.text(f"DELETE FROM {table}"))  # noqa: S608 (our own names)
        return
    for table, columns in OLD.items():
        told = ", ".join(f"{column} = {value}" for column, value in columns.items())
        connection.execute(sa.text(f"UPDATE {table} SET {told}"))  # noqa: S608 (our own names)
