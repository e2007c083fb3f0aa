"""Sums of clusters, by which all rows of a unit or of a batch count together; and what these bring.

All sums are made anew from the rows, but where rows were pruned: there clusters begin now, until
`runoff recount` makes their sums of the rows that are left.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

from router.migrations.versions.v0002_repeats import SUMS

revision = "0006"
down_revision = "0005"

KEY = (
    ("cluster", sa.String(length=128)),
    ("experiment", sa.String(length=40)),
    ("hour", sa.String(length=13)),
    ("experiment_version", sa.Integer()),
    ("allocation", sa.Integer()),
    ("phase", sa.Integer()),
    ("variant", sa.String(length=40)),
    ("kind", sa.String(length=8)),
    ("tag", sa.String(length=40)),
    ("beside", sa.String(length=40)),
    ("segment", sa.String(length=256)),
)
SCORES = ("brier", "log_loss", "profit")
PROFIT = tuple(f"profit_{what}" for what in ("cross", "product", "cross_w", "product_w"))


def upgrade() -> None:
    """Make the table and the columns, and let everything be counted again that can be."""
    op.create_table(
        "clusters",
        *(sa.Column(name, kind, autoincrement=False, nullable=False) for name, kind in KEY),
        sa.Column("labelled", sa.BigInteger(), nullable=False),
        *(
            sa.Column(name, sa.Float(), nullable=False)
            for name in ("w", *SCORES, "residual", *(f"{score}_w" for score in SCORES))
        ),
        sa.PrimaryKeyConstraint(*(name for name, _ in KEY)),
        sqlite_with_rowid=False,
    )
    for column in PROFIT:
        op.add_column("repeats", sa.Column(column, sa.Float(), nullable=False, server_default="0"))
    connection = op.get_bind()
    if connection.execute(sa.text("SELECT 1 FROM folds WHERE pruned <> ''")).first() is None:
        for table in (*SUMS, "repeats"):
            connection.execute(sa.text(f"DELETE FROM {table}"))  # noqa: S608 (our own names)
        connection.execute(sa.text("DELETE FROM folds WHERE name = 'ledger'"))
    else:
        _bring_over_profit(connection)
    op.drop_table("repeat_decisions")


def _bring_over_profit(connection: sa.Connection) -> None:
    """Add the profit of rows that are gone, by what was decided of them and what that was to bring."""
    told = connection.execute(sa.text("SELECT version, document FROM experiments"))
    costs: dict[int, Any] = {
        version: (json.loads(document).get("decision") or {}).get("costs") for version, document in told
    }
    key = [name for name, _ in KEY[1:]]
    added = ", ".join(f"{name} = {name} + :{name}" for name in PROFIT)
    same = " AND ".join(f"{name} = :{name}" for name in key)
    add = sa.text(f"UPDATE repeats SET {added} WHERE {same}")  # noqa: S608 (our own names)
    for row in connection.execute(sa.text("SELECT * FROM repeat_decisions")).mappings().all():
        if its := costs.get(row["experiment_version"]):
            one, other = (_profit(its, row["beside"], row[cell]) for cell in ("cell", "other_cell"))
            values = (one + other, one * other)
            profit = [row[twins] * value for twins in ("twins", "twins_w") for value in values]
            where = {name: row[name] for name in key}
            connection.execute(add, where | dict(zip(PROFIT, profit, strict=True)))


def _profit(costs: Any, beside: str, cell: int) -> float:
    """What a decision brought, by the numbers of revision 0002; of pairs the difference."""
    if not beside:
        return float(costs[("tp", "fp", "tn", "fn")[cell]])
    positive, negative = (("tp", "fn"), ("fp", "tn"))[not cell & 1]
    one, other = (costs[positive if cell & bit else negative] for bit in (4, 2))
    return float(one - other)
