"""Sums of how much of the scores the outcomes decide, and units by the weights of overlap.

All sums are made anew from the rows, but where rows were pruned: there these are of the rows from now on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from router.migrations.versions.v0002_repeats import SUMS
from router.migrations.versions.v0003_assigned import REPEATED

revision = "0005"
down_revision = "0004"

SWINGS = tuple(
    f"{score}_swing{power}_{outcome}"
    for score in ("brier", "log_loss")
    for outcome in (0, 1)
    for power in (2, 3)
)


def upgrade() -> None:
    """Add the columns, and let everything be counted again that can be."""
    for table in ("labels", "pairs"):
        for column in SWINGS:
            op.add_column(table, sa.Column(column, sa.Float(), nullable=False, server_default="0"))
    connection = op.get_bind()
    if connection.execute(sa.text("SELECT 1 FROM folds WHERE pruned <> ''")).first() is None:
        for table in (*SUMS, *REPEATED):
            connection.execute(sa.text(f"DELETE FROM {table}"))  # noqa: S608 (our own names)
        connection.execute(sa.text("DELETE FROM folds WHERE name = 'ledger'"))
