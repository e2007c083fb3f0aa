"""Sums by phase: a time in which the split, the rules of decision and the models were what they are.

All sums are made anew from the rows, but where rows were pruned: there what was recorded before is one phase
for each series of versions, whichever models answered.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from router.migrations.versions.v0002_repeats import SUMS
from router.migrations.versions.v0003_assigned import REPEATED

revision = "0004"
down_revision = "0003"

BINNED = ("latencies", "scores")
# A series is known by its versions, and rows of an older ledger by theirs alone.
SERIES = "COALESCE((SELECT series FROM experiments WHERE version = experiment_version), experiment_version)"
PHASES = """
INSERT INTO phases (number, experiment, series, begun, models)
SELECT ROW_NUMBER() OVER (ORDER BY series), MIN(experiment), series, MIN(hour) || ':00:00.000000Z', '{{}}'
FROM (SELECT experiment, hour, {series} AS series FROM sums WHERE hour <> '') AS those
GROUP BY series
"""


def upgrade() -> None:
    """Add the tables and the key, and let everything be counted again that can be."""
    connection = op.get_bind()
    op.add_column("experiments", sa.Column("attempt", sa.Integer(), nullable=False, server_default="1"))
    op.create_table(
        "phases",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("experiment", sa.String(length=40), nullable=False),
        sa.Column("series", sa.Integer(), nullable=False),
        sa.Column("begun", sa.String(length=27), nullable=False),
        sa.Column("models", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    cursor = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "spans",
        sa.Column("series", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("cursor", cursor, autoincrement=False, nullable=False),
        sa.Column("phase", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("series", "cursor"),
    )
    pruned = connection.execute(sa.text("SELECT 1 FROM folds WHERE pruned <> ''")).first() is not None
    if pruned:
        for statement in (
            PHASES.format(series=SERIES),
            "INSERT INTO spans SELECT series, 0, number FROM phases",
            "INSERT INTO folds (name, predictions, side_answers, outcomes, recounts, pruned)"
            " SELECT 'phases', predictions, side_answers, 0, 0, '' FROM folds WHERE name = 'ledger'",
        ):
            connection.execute(sa.text(statement))
    else:
        connection.execute(sa.text("DELETE FROM folds"))
    for table in (*SUMS, *REPEATED):
        _with_phase(connection, table, kept=pruned)


def _with_phase(connection: sa.Connection, name: str, *, kept: bool) -> None:
    """Make a table of sums anew, with the phase in its key, and if so with what it holds."""
    inspector = sa.inspect(connection)
    key = inspector.get_pk_constraint(name)["constrained_columns"]
    columns = inspector.get_columns(name)
    op.rename_table(name, f"old_{name}")
    made = [sa.Column(each["name"], each["type"], nullable=False, autoincrement=False) for each in columns]
    made.insert(4, sa.Column("phase", sa.Integer(), nullable=False, autoincrement=False))
    op.create_table(name, *made, sa.PrimaryKeyConstraint(*key[:4], "phase", *key[4:]))
    if kept:
        names = ", ".join(each["name"] for each in columns)
        phase = f"COALESCE((SELECT number FROM phases WHERE series = {SERIES}), 0)"  # noqa: S608
        if name in BINNED:
            phase = f"CASE WHEN hour = '' THEN 0 ELSE {phase} END"
        copied = f"INSERT INTO {name} ({names}, phase) SELECT {names}, {phase} FROM old_{name}"  # noqa: S608
        connection.execute(sa.text(copied))
    op.drop_table(f"old_{name}")
