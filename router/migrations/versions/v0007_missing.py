"""Sums of what is missing: by score, of outcomes that came late, and of requests that were refused.

All sums are made anew from the rows, but where rows were pruned: there what was refused is no error, and
nothing is known of what came late.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from router.migrations.versions.v0002_repeats import SUMS

revision = "0007"
down_revision = "0006"

# What the new columns hold of sums whose rows are gone.
OLD = {
    "scores": {"assigned": "requests"},
    "outcome_scores": {"assigned": "labelled"},
    "pairs": {"assigned": "0", "assigned_positives": "0"},
    "labels": {"assigned_positives": "positives", "late": "0", "late_positives": "0"},
}


def upgrade() -> None:
    """Add the columns, make the index anew, and let everything be counted again that can be."""
    for table, columns in OLD.items():
        for column in columns:
            op.add_column(table, sa.Column(column, sa.BigInteger(), nullable=False, server_default="0"))
    op.drop_index("predictions_failed_by_unit", "predictions")
    failed = sa.text("unit IS NOT NULL AND (status >= 400 OR answered_by IS NOT NULL)")
    op.create_index(
        "predictions_failed_by_unit",
        "predictions",
        ["unit", "cursor"],
        sqlite_where=failed,
        postgresql_where=failed,
    )
    connection = op.get_bind()
    if connection.execute(sa.text("SELECT 1 FROM folds WHERE pruned <> ''")).first() is None:
        for table in (*SUMS, "repeats", "clusters"):
            connection.execute(sa.text(f"DELETE FROM {table}"))  # noqa: S608 (our own names)
        connection.execute(sa.text("DELETE FROM folds WHERE name = 'ledger'"))
        return
    for table, columns in OLD.items():
        told = ", ".join(f"{column} = {value}" for column, value in columns.items())
        connection.execute(sa.text(f"UPDATE {table} SET {told}"))  # noqa: S608 (our own names)
