"""Forgetting: rows older than a time go, and their sums stay."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from router import database
from router.database import DatabaseDown, stamp
from router.fold import Fold
from router.tables import clusters, folds, outcomes, predictions, replies, side_answers

# Predictions that are deleted in one transaction: others write meanwhile.
AT_ONCE = 500


def prune(engine: sa.Engine, before: datetime) -> int:
    """Delete the predictions of the hours before a time, with all that is known of each; returns how many.

    They are in the sums then, for good; an outcome that comes later does not count any more.

    Raises:
        DatabaseDown: the database did not do it; what was deleted until then is.
    """
    folded = Fold(engine).catch_up()
    hour = stamp(before)[:13]
    # In the order of the index, at whose end those go that are deleted.
    old = (
        sa.select(predictions.c.id)
        .where(predictions.c.time < hour, predictions.c.cursor <= folded)
        .order_by(predictions.c.time)
        .limit(AT_ONCE)
    )
    # What was said of a prediction that never came.
    lost = [
        (table, sa.and_(time < hour, table.c.prediction_id.not_in(sa.select(predictions.c.id))))
        for table, time in ((side_answers, side_answers.c.time), (outcomes, outcomes.c.reported))
    ]
    # Whoever has not been seen since is forgotten, and begins anew. Batches and records do not come again.
    gone = clusters.c.cluster.not_in(sa.select(predictions.c.unit).where(predictions.c.unit.is_not(None)))
    deleted = 0
    try:
        with database.writing(engine) as connection:
            # From now on their sums cannot be made anew.
            connection.execute(folds.update().where(folds.c.pruned < hour).values(pruned=hour))
        while True:
            with database.writing(engine) as connection:
                ids = connection.scalars(old).all()
                for table in (side_answers, outcomes):
                    connection.execute(table.delete().where(table.c.prediction_id.in_(ids)))
                connection.execute(predictions.delete().where(predictions.c.id.in_(ids)))
                if not ids:
                    for table, where in lost:
                        connection.execute(table.delete().where(where))
                    connection.execute(replies.delete().where(replies.c.time < hour))
                    connection.execute(clusters.delete().where(clusters.c.hour < hour, gone))
                    return deleted
            deleted += len(ids)
    except sa.exc.SQLAlchemyError as error:
        raise DatabaseDown(error) from error
