"""Sums over units that are seen more than once.

All sums are made anew from the rows, but where rows were pruned: there the units count from now on.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

SUMS = ("sums", "latencies", "scores", "labels", "outcome_scores", "pairs", "gaps", "joint_scores")
PERIOD = (
    ("experiment", sa.String(length=40)),
    ("hour", sa.String(length=13)),
    ("experiment_version", sa.Integer()),
    ("allocation", sa.Integer()),
    ("variant", sa.String(length=40)),
    ("kind", sa.String(length=8)),
    ("tag", sa.String(length=40)),
    ("beside", sa.String(length=40)),
    ("segment", sa.String(length=256)),
)
CELLS = (("cell", sa.Integer()), ("other_cell", sa.Integer()))
FLOATS = (
    *("twins_w", "brier_cross", "brier_product", "brier_cross_w", "brier_product_w"),
    *("log_loss_cross", "log_loss_product", "log_loss_cross_w", "log_loss_product_w"),
)


def upgrade() -> None:
    """Make the tables, and let everything be counted again that can be."""
    _make("repeats", PERIOD, ("repeats", "twins"), FLOATS)
    _make("repeat_decisions", (*PERIOD, *CELLS), ("twins",), ("twins_w",))
    op.drop_index("predictions_by_unit", "predictions")
    has_unit = sa.text("unit IS NOT NULL")
    op.create_index(
        "predictions_by_unit",
        "predictions",
        ["unit", "cursor"],
        sqlite_where=has_unit,
        postgresql_where=has_unit,
    )
    connection = op.get_bind()
    if connection.execute(sa.text("SELECT 1 FROM folds WHERE pruned <> ''")).first() is None:
        for table in (*SUMS, "folds"):
            connection.execute(sa.text(f"DELETE FROM {table}"))  # noqa: S608 (our own names)


def _make(
    name: str, key: tuple[tuple[str, Any], ...], counts: tuple[str, ...], floats: tuple[str, ...]
) -> None:
    op.create_table(
        name,
        *(sa.Column(each, kind, autoincrement=False, nullable=False) for each, kind in key),
        *(sa.Column(each, sa.BigInteger(), nullable=False) for each in counts),
        *(sa.Column(each, sa.Float(), nullable=False) for each in floats),
        sa.PrimaryKeyConstraint(*(each for each, _ in key)),
    )
