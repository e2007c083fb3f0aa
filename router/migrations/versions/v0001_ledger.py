"""The ledger: versions of the experiment, predictions, what others said, outcomes, keys, sums.

A ledger from before this had a table `predictions` alone. Its rows are kept; by which weights they were
assigned is not known, so they count for no experiment.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

BEFORE = "predictions_before_0001"
KEPT = (
    *("cursor", "id", "request_id", "row", "time", "experiment", "variant", "model", "version", "features"),
    *("prediction", "latency_ms", "status", "problem", "tag"),
)


def upgrade() -> None:
    """Make all tables, and take over the rows of an older ledger."""
    older = sa.inspect(op.get_bind()).has_table("predictions")
    if older:
        op.drop_index("predictions_by_outcome", "predictions")
        op.rename_table("predictions", BEFORE)
    _make()
    if older:
        columns = ", ".join(f'"{name}"' for name in KEPT)
        op.execute(
            f"INSERT INTO predictions ({columns}, experiment_version, allocation)"  # noqa: S608 (our own names)
            f" SELECT {columns}, 0, 0 FROM {BEFORE}"
        )
        op.drop_table(BEFORE)


def _make() -> None:
    op.create_table(
        "experiments",
        sa.Column("version", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("time", sa.String(length=27), nullable=False),
        sa.Column("action", sa.String(length=20), nullable=False),
        sa.Column("by", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("series", sa.Integer(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("version"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "folds",
        sa.Column("name", sa.String(length=20), nullable=False),
        sa.Column("predictions", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("side_answers", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("outcomes", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("recounts", sa.Integer(), nullable=False),
        sa.Column("pruned", sa.String(length=13), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "gaps",
        sa.Column("experiment", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("hour", sa.String(length=13), autoincrement=False, nullable=False),
        sa.Column("experiment_version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("allocation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("variant", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=8), autoincrement=False, nullable=False),
        sa.Column("tag", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("beside", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("bin", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("pairs", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "experiment",
            "hour",
            "experiment_version",
            "allocation",
            "variant",
            "kind",
            "tag",
            "beside",
            "bin",
        ),
    )
    op.create_table(
        "joint_scores",
        sa.Column("experiment", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("hour", sa.String(length=13), autoincrement=False, nullable=False),
        sa.Column("experiment_version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("allocation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("variant", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=8), autoincrement=False, nullable=False),
        sa.Column("tag", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("beside", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("outcome", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("bin", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("other_bin", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("pairs", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "experiment",
            "hour",
            "experiment_version",
            "allocation",
            "variant",
            "kind",
            "tag",
            "beside",
            "outcome",
            "bin",
            "other_bin",
        ),
    )
    op.create_table(
        "keys",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("scope", sa.String(length=8), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("per_second", sa.Float(), nullable=True),
        sa.Column("added", sa.String(length=27), nullable=False),
        sa.Column("revoked", sa.String(length=27), nullable=True),
        sa.PrimaryKeyConstraint("name"),
        sa.UniqueConstraint("digest"),
    )
    op.create_table(
        "labels",
        sa.Column("experiment", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("hour", sa.String(length=13), autoincrement=False, nullable=False),
        sa.Column("experiment_version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("allocation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("variant", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=8), autoincrement=False, nullable=False),
        sa.Column("tag", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("segment", sa.String(length=256), autoincrement=False, nullable=False),
        sa.Column("labelled", sa.BigInteger(), nullable=False),
        sa.Column("positives", sa.BigInteger(), nullable=False),
        sa.Column("tp", sa.BigInteger(), nullable=False),
        sa.Column("fp", sa.BigInteger(), nullable=False),
        sa.Column("tn", sa.BigInteger(), nullable=False),
        sa.Column("fn", sa.BigInteger(), nullable=False),
        sa.Column("brier", sa.Float(), nullable=False),
        sa.Column("brier2", sa.Float(), nullable=False),
        sa.Column("log_loss", sa.Float(), nullable=False),
        sa.Column("log_loss2", sa.Float(), nullable=False),
        sa.Column("residual", sa.Float(), nullable=False),
        sa.Column("residual2", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint(
            "experiment", "hour", "experiment_version", "allocation", "variant", "kind", "tag", "segment"
        ),
    )
    op.create_table(
        "latencies",
        sa.Column("experiment", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("hour", sa.String(length=13), autoincrement=False, nullable=False),
        sa.Column("experiment_version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("allocation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("variant", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=8), autoincrement=False, nullable=False),
        sa.Column("tag", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("bin", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "experiment", "hour", "experiment_version", "allocation", "variant", "kind", "tag", "bin"
        ),
    )
    op.create_table(
        "outcome_scores",
        sa.Column("experiment", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("hour", sa.String(length=13), autoincrement=False, nullable=False),
        sa.Column("experiment_version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("allocation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("variant", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=8), autoincrement=False, nullable=False),
        sa.Column("tag", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("outcome", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("bin", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("labelled", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "experiment",
            "hour",
            "experiment_version",
            "allocation",
            "variant",
            "kind",
            "tag",
            "outcome",
            "bin",
        ),
    )
    op.create_table(
        "outcomes",
        sa.Column(
            "cursor", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("prediction_id", sa.String(length=140), nullable=False),
        sa.Column("outcome", sa.Float(), nullable=False),
        sa.Column("time", sa.String(length=27), nullable=False),
        sa.Column("reported", sa.String(length=27), nullable=False),
        sa.Column("correction", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("cursor"),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_outcomes_prediction_id"), "outcomes", ["prediction_id"], unique=False)
    op.create_table(
        "pairs",
        sa.Column("experiment", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("hour", sa.String(length=13), autoincrement=False, nullable=False),
        sa.Column("experiment_version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("allocation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("variant", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=8), autoincrement=False, nullable=False),
        sa.Column("tag", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("beside", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("segment", sa.String(length=256), autoincrement=False, nullable=False),
        sa.Column("pairs", sa.BigInteger(), nullable=False),
        sa.Column("brier", sa.Float(), nullable=False),
        sa.Column("brier2", sa.Float(), nullable=False),
        sa.Column("log_loss", sa.Float(), nullable=False),
        sa.Column("log_loss2", sa.Float(), nullable=False),
        sa.Column("gap", sa.Float(), nullable=False),
        sa.Column("gap2", sa.Float(), nullable=False),
        sa.Column("live_only_1", sa.BigInteger(), nullable=False),
        sa.Column("live_only_0", sa.BigInteger(), nullable=False),
        sa.Column("other_only_1", sa.BigInteger(), nullable=False),
        sa.Column("other_only_0", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "experiment",
            "hour",
            "experiment_version",
            "allocation",
            "variant",
            "kind",
            "tag",
            "beside",
            "segment",
        ),
    )
    op.create_table(
        "predictions",
        sa.Column(
            "cursor", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("id", sa.String(length=140), nullable=False),
        sa.Column("request_id", sa.String(length=128), nullable=False),
        sa.Column("row", sa.Integer(), nullable=False),
        sa.Column("time", sa.String(length=27), nullable=False),
        sa.Column("experiment", sa.String(length=40), nullable=False),
        sa.Column("experiment_version", sa.Integer(), nullable=False),
        sa.Column("allocation", sa.Integer(), nullable=False),
        sa.Column("variant", sa.String(length=40), nullable=False),
        sa.Column("answered_by", sa.String(length=40), nullable=True),
        sa.Column("propensity", sa.Float(), nullable=True),
        sa.Column("unit", sa.String(length=64), nullable=True),
        sa.Column("model", sa.String(length=128), nullable=True),
        sa.Column("version", sa.String(length=128), nullable=True),
        sa.Column("digest", sa.String(length=64), nullable=True),
        sa.Column("features", sa.Text(), nullable=True),
        sa.Column("prediction", sa.Float(), nullable=True),
        sa.Column("latency_ms", sa.Float(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("tag", sa.String(length=40), nullable=True),
        sa.PrimaryKeyConstraint("cursor"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("predictions_by_time", "predictions", ["time"], unique=False)
    op.create_index(
        "predictions_by_unit",
        "predictions",
        ["unit"],
        unique=False,
        sqlite_where=sa.text("unit IS NOT NULL"),
        postgresql_where=sa.text("unit IS NOT NULL"),
    )
    op.create_table(
        "replies",
        sa.Column("idempotency_key", sa.String(length=128), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.String(length=128), nullable=False),
        sa.Column("time", sa.String(length=27), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("headers", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("idempotency_key"),
    )
    op.create_table(
        "scores",
        sa.Column("experiment", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("hour", sa.String(length=13), autoincrement=False, nullable=False),
        sa.Column("experiment_version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("allocation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("variant", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=8), autoincrement=False, nullable=False),
        sa.Column("tag", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("bin", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "experiment", "hour", "experiment_version", "allocation", "variant", "kind", "tag", "bin"
        ),
    )
    op.create_table(
        "side_answers",
        sa.Column(
            "cursor", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("prediction_id", sa.String(length=140), nullable=False),
        sa.Column("kind", sa.Enum("shadow", "failed", "replay", native_enum=False, length=8), nullable=False),
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("time", sa.String(length=27), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=True),
        sa.Column("version", sa.String(length=128), nullable=True),
        sa.Column("digest", sa.String(length=64), nullable=True),
        sa.Column("prediction", sa.Float(), nullable=True),
        sa.Column("latency_ms", sa.Float(), nullable=True),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("cursor"),
        sa.UniqueConstraint("prediction_id", "kind", "name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "standings",
        sa.Column("experiment", sa.String(length=40), nullable=False),
        sa.Column("variant", sa.String(length=40), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=True),
        sa.Column("version", sa.String(length=128), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("experiment", "variant"),
    )
    op.create_table(
        "sums",
        sa.Column("experiment", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("hour", sa.String(length=13), autoincrement=False, nullable=False),
        sa.Column("experiment_version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("allocation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("variant", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=8), autoincrement=False, nullable=False),
        sa.Column("tag", sa.String(length=40), autoincrement=False, nullable=False),
        sa.Column("model", sa.String(length=128), autoincrement=False, nullable=False),
        sa.Column("version", sa.String(length=128), autoincrement=False, nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("answered", sa.BigInteger(), nullable=False),
        sa.Column("refused", sa.BigInteger(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=False),
        sa.Column("saved", sa.BigInteger(), nullable=False),
        sa.Column("sum_p", sa.Float(), nullable=False),
        sa.Column("sum_p2", sa.Float(), nullable=False),
        sa.Column("log_latency", sa.Float(), nullable=False),
        sa.Column("log_latency2", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint(
            "experiment",
            "hour",
            "experiment_version",
            "allocation",
            "variant",
            "kind",
            "tag",
            "model",
            "version",
        ),
    )
    op.create_table(
        "allocations",
        sa.Column("experiment_version", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("time", sa.String(length=27), nullable=False),
        sa.Column("action", sa.String(length=20), nullable=False),
        sa.Column("by", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("weights", sa.Text(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["experiment_version"],
            ["experiments.version"],
        ),
        sa.PrimaryKeyConstraint("experiment_version", "number"),
    )
