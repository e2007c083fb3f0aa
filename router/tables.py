"""The tables of the router's database, each with what one row of it is.

Rows are added and never changed, except for sums, which are made of rows and can be made anew. Times are
texts, RFC 3339 in UTC with microseconds: they sort as they are, and read the same in every database.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()

TIME = sa.String(27)
NAME = sa.String(40)
MODEL = sa.String(128)
# SQLite counts up an INTEGER alone; elsewhere a ledger may outgrow one of 32 bits.
CURSOR = sa.BigInteger().with_variant(sa.Integer, "sqlite")

# One routed row: who was shown what, and what came of it.
predictions = sa.Table(
    "predictions",
    metadata,
    # The order in which rows were committed, and so the cursor by which readers page.
    sa.Column("cursor", CURSOR, primary_key=True, autoincrement=True),
    # What an outcome will name: the request id, or in a batch `<request id>/<row>`.
    sa.Column("id", sa.String(140), nullable=False, unique=True),
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("row", sa.Integer, nullable=False),
    sa.Column("time", TIME, nullable=False),
    sa.Column("experiment", NAME, nullable=False),
    # The version of the experiment's document by which it was assigned, and of the weights within: 0 for the
    # document's own, else the number of an allocation.
    sa.Column("experiment_version", sa.Integer, nullable=False),
    sa.Column("allocation", sa.Integer, nullable=False),
    # The variant that it was assigned to. Where that failed another may have answered: `answered_by`.
    sa.Column("variant", NAME, nullable=False),
    sa.Column("answered_by", NAME),
    # The probability with which it was assigned there. None where it was forced, or the experiment was
    # paused: that is never counted.
    sa.Column("propensity", sa.Float),
    # The unit that it was assigned by, hashed; None where each request is its own.
    sa.Column("unit", sa.String(64)),
    sa.Column("model", MODEL),
    sa.Column("version", MODEL),
    sa.Column("digest", sa.String(64)),
    # The record that was asked about, JSON.
    sa.Column("features", sa.Text),
    # None where the model refused it (status 4xx) or failed (5xx); then `problem` says why.
    sa.Column("prediction", sa.Float),
    sa.Column("latency_ms", sa.Float, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("problem", sa.Text),
    # What kind of traffic it is; None for real traffic.
    sa.Column("tag", NAME),
    sqlite_autoincrement=True,
)
sa.Index("predictions_by_time", predictions.c.time)
_has_unit = predictions.c.unit.is_not(None)
sa.Index(
    "predictions_by_unit",
    *(predictions.c.unit, predictions.c.cursor),
    sqlite_where=_has_unit,
    postgresql_where=_has_unit,
)

# Those that got no answer from their variant, which failed or refused, are few: how many of a unit there are
# is asked when one comes.
NO_ANSWER = sa.or_(predictions.c.status >= 400, predictions.c.answered_by.is_not(None))  # noqa: PLR2004
_failed = sa.and_(_has_unit, NO_ANSWER)
sa.Index(
    "predictions_failed_by_unit",
    *(predictions.c.unit, predictions.c.cursor),
    sqlite_where=_failed,
    postgresql_where=_failed,
)

# What another variant said of a row: a shadow, one that failed before a fallback answered, or a replay.
side_answers = sa.Table(
    "side_answers",
    metadata,
    sa.Column("cursor", CURSOR, primary_key=True, autoincrement=True),
    sa.Column("prediction_id", sa.String(140), nullable=False),
    sa.Column("kind", sa.Enum("shadow", "failed", "replay", native_enum=False, length=8), nullable=False),
    # Of a shadow or one that failed the variant, of a replay the name of the set.
    sa.Column("name", NAME, nullable=False),
    sa.Column("time", TIME, nullable=False),
    sa.Column("model", MODEL),
    sa.Column("version", MODEL),
    sa.Column("digest", sa.String(64)),
    sa.Column("prediction", sa.Float),
    sa.Column("latency_ms", sa.Float),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("problem", sa.Text),
    sa.UniqueConstraint("prediction_id", "kind", "name"),
    sqlite_autoincrement=True,
)

# What became of a row in the world. A correction is a further row: the last one counts.
outcomes = sa.Table(
    "outcomes",
    metadata,
    sa.Column("cursor", CURSOR, primary_key=True, autoincrement=True),
    sa.Column("prediction_id", sa.String(140), nullable=False, index=True),
    sa.Column("outcome", sa.Float, nullable=False),
    # When it became known, as the reporter says, and when it was reported.
    sa.Column("time", TIME, nullable=False),
    sa.Column("reported", TIME, nullable=False),
    sa.Column("correction", sa.Boolean, nullable=False),
    sqlite_autoincrement=True,
)

# One version of an experiment's document, and by whose word it came: with `allocations` the audit.
experiments = sa.Table(
    "experiments",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("time", TIME, nullable=False),
    sa.Column("action", sa.String(20), nullable=False),
    sa.Column("by", sa.String(128), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    # The first version that splits traffic and decides as this one does: what was recorded by any of them may
    # be pooled.
    sa.Column("series", sa.Integer, nullable=False),
    # The how many-th rules of decision these are for the same split: each further one has half the risk.
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)

# Weights that an operator, a canary or a bandit put in the place of the document's, and the evidence.
allocations = sa.Table(
    "allocations",
    metadata,
    sa.Column("experiment_version", sa.Integer, sa.ForeignKey(experiments.c.version), primary_key=True),
    # 1, 2, … within a version of the document: of two that decide at once, one is first.
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("time", TIME, nullable=False),
    sa.Column("action", sa.String(20), nullable=False),
    sa.Column("by", sa.String(128), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    # JSON: weights by the name of the variant, and what the decision was made from.
    sa.Column("weights", sa.Text, nullable=False),
    sa.Column("evidence", sa.Text),
)

# A caller's key. Only its hash is kept.
keys = sa.Table(
    "keys",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("scope", sa.String(8), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    # How many requests a second each worker lets through; None for any number.
    sa.Column("per_second", sa.Float),
    sa.Column("added", TIME, nullable=False),
    sa.Column("revoked", TIME),
)

# The first answer to a request that came with an Idempotency-Key, for when it comes again.
replies = sa.Table(
    "replies",
    metadata,
    sa.Column("idempotency_key", sa.String(128), primary_key=True),
    # Of the request: another one with the same key is refused.
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("time", TIME, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("headers", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)

# A time in which the split, the rules of decision, and the models behind the variants were what they are:
# what was recorded in it is the evidence of one verdict. Whenever all of them are the same again, it is the
# same phase.
phases = sa.Table(
    "phases",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("experiment", NAME, nullable=False),
    # Of the experiment's versions, by which split and rules are known.
    sa.Column("series", sa.Integer, nullable=False),
    # Of the first row that is in it.
    sa.Column("begun", TIME, nullable=False),
    # JSON: by variant who answers for it, as [model, version, digest]. It lacks those who have not yet.
    sa.Column("models", sa.Text, nullable=False),
)

# From which row on those of a series of versions are of a phase, until the next such row.
spans = sa.Table(
    "spans",
    metadata,
    sa.Column("series", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("cursor", CURSOR, primary_key=True, autoincrement=False),
    sa.Column("phase", sa.Integer, nullable=False),
)

# Up to which cursors rows are in the sums ("ledger"), and in phases ("phases").
folds = sa.Table(
    "folds",
    metadata,
    sa.Column("name", sa.String(20), primary_key=True),
    sa.Column("predictions", CURSOR, nullable=False),
    sa.Column("side_answers", CURSOR, nullable=False),
    sa.Column("outcomes", CURSOR, nullable=False),
    # How often the sums were made anew, and the hour before which rows were pruned: their sums stay.
    sa.Column("recounts", sa.Integer, nullable=False),
    sa.Column("pruned", sa.String(13), nullable=False),
)

# Sums over the rows of an hour and a phase that were assigned by the same weights. What is NULL in a row is
# '' here. The hour '' is all hours together, and in tables with bins all weights and phases, too (version 0,
# allocation 0, phase 0): what is read most often is few rows, however long an experiment runs.
_PERIOD = (
    ("experiment", NAME),
    # The first 13 letters of the time.
    ("hour", sa.String(13)),
    ("experiment_version", sa.Integer),
    ("allocation", sa.Integer),
    ("phase", sa.Integer),
    ("variant", NAME),
    # '' for the answers that callers got; else the kind of side answer, and `variant` is its name.
    ("kind", sa.String(8)),
    ("tag", NAME),
)
# A declared part of the traffic as COLUMN=value; '' is all of it.
_SEGMENT = ("segment", sa.String(256))


def _key(*more: tuple[str, Any]) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, primary_key=True, autoincrement=False) for name, kind in (*_PERIOD, *more)]


def _sum(name: str, kind: Any = sa.Float) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False)


# requests = answered + refused (4xx) + failed (5xx). Of the answered, `saved` are those that another variant
# answered since this one failed. Chance assigned units, and batches as a whole: `assigned` are the first rows
# of these in a phase of the experiment, and `served` those of them that the variant answered itself. What
# fails for one client fails for it again: the first row of a batch tells of errors, and of a unit the first
# in ten minutes. These are `apart`, `apart_failed` of them got no answer from the variant, and `together` is
# Σ over those of in how many ten minutes before, by the same weights, their unit got none. Of side answers
# `assigned` are those to such first rows that the live variant answered itself, and `served` the answered of
# them. Of the answered Σp and Σp². A batch has one latency, that of its first row: of the `timed`, which were
# answered, Σln(milliseconds) and its squares.
sums = sa.Table(
    "sums",
    metadata,
    *_key(("model", MODEL), ("version", MODEL)),
    *(_sum(name, sa.BigInteger) for name in ("requests", "answered", "refused", "failed", "saved")),
    *(_sum(name, sa.BigInteger) for name in ("assigned", "served")),
    *(_sum(name, sa.BigInteger) for name in ("apart", "apart_failed", "together", "timed")),
    *(_sum(name) for name in ("sum_p", "sum_p2", "log_latency", "log_latency2")),
)

# How many answered requests took about as long: bin b holds those of [g^b, g^(b+1)) ms with g = 1.01.
latencies = sa.Table("latencies", metadata, *_key(("bin", sa.Integer)), _sum("requests", sa.BigInteger))

# How many rows got about the same prediction from the variant itself: bin b holds those of [b/50, (b+1)/50).
# `assigned` are those of them that were assigned for themselves.
scores = sa.Table(
    "scores",
    metadata,
    *_key(("bin", sa.Integer)),
    *(_sum(name, sa.BigInteger) for name in ("requests", "assigned")),
)


def _swings() -> Iterator[sa.Column[Any]]:
    """Of c, by which a score would be another one with the other outcome, Σc² and Σc³, by the outcome."""
    for score in ("brier", "log_loss"):
        for outcome in (0, 1):
            yield from (_sum(f"{score}_swing{power}_{outcome}") for power in (2, 3))


# Of the rows that a variant answered itself and whose outcome is known, 0 or 1: how many, how many are 1,
# what its threshold made of them (true and false positives and negatives), how many were assigned for
# themselves, and how many of those are 1; of how many the outcome was not the same when it had matured, and
# how many of those are 1; the sums and squares of the Brier score (p − y)², of the log loss, and of y − p;
# and how much of the scores the outcomes decide.
labels = sa.Table(
    "labels",
    metadata,
    *_key(_SEGMENT),
    *(_sum(name, sa.BigInteger) for name in ("labelled", "positives", "tp", "fp", "tn", "fn")),
    *(_sum(name, sa.BigInteger) for name in ("assigned", "assigned_positives", "late", "late_positives")),
    *(_sum(name) for name in ("brier", "brier2", "log_loss", "log_loss2", "residual", "residual2")),
    *_swings(),
)

# How many of them got about the same prediction, by outcome; bins as in `scores`.
outcome_scores = sa.Table(
    "outcome_scores",
    metadata,
    *_key(("outcome", sa.Integer), ("bin", sa.Integer)),
    *(_sum(name, sa.BigInteger) for name in ("labelled", "assigned")),
)

# Of the same rows, where a side answer is there too: how many pairs, the sums and squares of the differences
# in score, the live answer's less the other's, and of |p − p'|; the rows that only one of the two decided to
# be positive, by outcome; how many were assigned for themselves, and how many of those are 1; and how much of
# the differences the outcomes decide.
pairs = sa.Table(
    "pairs",
    metadata,
    *_key(("beside", NAME), _SEGMENT),
    _sum("pairs", sa.BigInteger),
    *(_sum(name) for name in ("brier", "brier2", "log_loss", "log_loss2", "gap", "gap2")),
    *(_sum(name, sa.BigInteger) for name in ("live_only_1", "live_only_0", "other_only_1", "other_only_0")),
    *(_sum(name, sa.BigInteger) for name in ("assigned", "assigned_positives")),
    *_swings(),
)

# How many pairs by |p − p'|: bin b holds those of [b/100, (b+1)/100).
gaps = sa.Table("gaps", metadata, *_key(("beside", NAME), ("bin", sa.Integer)), _sum("pairs", sa.BigInteger))

# How many pairs by outcome and both predictions, in bins of 1/20: the live one's and the other's.
joint_scores = sa.Table(
    "joint_scores",
    metadata,
    *_key(("beside", NAME), ("outcome", sa.Integer), ("bin", sa.Integer), ("other_bin", sa.Integer)),
    _sum("pairs", sa.BigInteger),
)

# Rows of one cluster are not independent of each other: those of a unit, or of a batch
# (`labelling.cluster_of`). Over those of a cluster in an hour whose outcome is known, of the live answers of
# a variant (`beside` is ''), or of pairs: how many, Σw of their weights, and of each score Σx and Σwx. A fold
# reads them to tell what further rows add together with these: `repeats`.
clusters = sa.Table(
    "clusters",
    metadata,
    sa.Column("cluster", sa.String(128), primary_key=True, autoincrement=False),
    *_key(("beside", NAME), _SEGMENT),
    _sum("labelled", sa.BigInteger),
    *(_sum(name) for name in ("w", "brier", "log_loss", "profit", "residual")),
    *(_sum(f"{score}_w") for score in ("brier", "log_loss", "profit")),
    sqlite_with_rowid=False,
)

# What rows of a cluster add together, beyond what each adds by itself: those of an hour with each other, and
# with those of the hours before. How many rows have others before them, how many pairs of rows i, j that
# makes (twins), Σw_i·w_j over these, and of each score Σ(x_i + x_j) (cross) and Σx_i·x_j (product), also with
# each pair weighted by w_i·w_j. From these follows how means spread over clusters (`verdict/moments.py`).
repeats = sa.Table(
    "repeats",
    metadata,
    *_key(("beside", NAME), _SEGMENT),
    *(_sum(name, sa.BigInteger) for name in ("repeats", "twins")),
    _sum("twins_w"),
    *(
        _sum(f"{score}_{what}")
        for score in ("brier", "log_loss", "profit")
        for what in ("cross", "product", "cross_w", "product_w")
    ),
    *(_sum(f"residual_{what}") for what in ("cross", "product")),
)

# How a variant stands now: who answered for it last, and what is wrong where its newest request failed.
standings = sa.Table(
    "standings",
    metadata,
    sa.Column("experiment", NAME, primary_key=True),
    sa.Column("variant", NAME, primary_key=True),
    sa.Column("model", MODEL),
    sa.Column("version", MODEL),
    sa.Column("problem", sa.Text),
)
