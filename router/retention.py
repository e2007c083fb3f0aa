"""Forgetting: rows older than a time go, and their sums stay."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from router.database import DatabaseDown, stamp
from router.fold import Fold
from router.tables import outcomes, predictions, replies, side_answers

# Predictions that are deleted in one transaction: others write meanwhile.
AT_ONCE = 500


def prune(engine: sa.Engine, before: datetime) -> int:
    """Delete the predictions of before a time, with all that is known of each; returns how many.

    They are in the sums then, for good; an outcome that comes later does not count any more.

    Raises:
        DatabaseDown: the database did not do it; what was deleted until then is.
    """
    folded = Fold(engine).catch_up()
    old = (predictions.c.time < stamp(before), predictions.c.cursor <= folded)
    query = sa.select(predictions.c.id).where(*old).order_by(predictions.c.cursor).limit(AT_ONCE)
    deleted = 0
    try:
        while True:
            with engine.begin() as connection:
                ids = connection.scalars(query).all()
                for table in (side_answers, outcomes):
                    connection.execute(table.delete().where(table.c.prediction_id.in_(ids)))
                connection.execute(predictions.delete().where(predictions.c.id.in_(ids)))
                if not ids:
                    connection.execute(replies.delete().where(replies.c.time < stamp(before)))
                    return deleted
            deleted += len(ids)
    except sa.exc.SQLAlchemyError as error:
        raise DatabaseDown(str(error)) from error
