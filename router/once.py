"""A change that is asked for several times is made once, if it comes with an `Idempotency-Key`.

Who lost the answer asks again with the same key, and gets the first answer, marked by `Idempotency-Replayed`
(draft-ietf-httpapi-idempotency-key-header-07, section 2.6). The key is claimed in the database before the
change is begun, so that of several workers one makes it.

What was refused may be asked for again with the same key. Where nobody knows if it was done, since the worker
or the service behind it fell silent, the key stays claimed, and is answered with 409.
"""

from __future__ import annotations

import hashlib
import json
import logging
from datetime import UTC, datetime

import sqlalchemy as sa
from flask import Blueprint, Response, g, request

from router.database import DatabaseDown, stamp
from router.entries import checked_key
from router.experiment_api import Authorize
from router.store import reply_of
from router.tables import replies
from runoff.problems import Conflict, Unavailable

CHANGING = ("POST", "PUT")
# In the place of a status, while there is no answer yet.
BEGUN = 0
REFUSED, FAILED = 400, 500
KEPT = ("Content-Type", "ETag", "Cache-Control")

log = logging.getLogger(__name__)


class Once:
    """The answers to changes, by the keys that they came with; `runoff prune` forgets them."""

    def __init__(self, engine: sa.Engine, authorize: Authorize) -> None:
        """Make it.

        Args:
            engine: of the router's database.
            authorize: lets callers in: each has keys of its own, and only an operator has any.
        """
        self._engine = engine
        self._authorize = authorize

    def watch(self, api: Blueprint) -> Blueprint:
        """Let the changes of a blueprint be made once; the blueprint."""
        api.before_request(self._begin)
        api.after_request(self._end)
        return api

    def _begin(self) -> Response | None:
        """Claim the key, if the request has one; the first answer, if it came before.

        Raises:
            Malformed: it is no key.
            Conflict: it came with another change, or with this one, whose result is not known yet.
            Unavailable: the database cannot be reached.
        """
        if request.method not in CHANGING:
            return None
        key = checked_key(request.headers.get("Idempotency-Key"))
        if key is None:
            return None
        caller = self._authorize("operator")
        name = f"change-{_digest(caller.name, key)}"
        asked = _digest(request.method, request.full_path, request.get_data())
        row = {
            "idempotency_key": name,
            "fingerprint": asked,
            "request_id": g.request_id,
            "time": stamp(datetime.now(UTC)),
            "status": BEGUN,
            "headers": "[]",
            "body": b"",
        }
        try:
            with self._engine.begin() as connection:
                connection.execute(replies.insert(), row)
        except sa.exc.IntegrityError:
            return self._again(name, asked)
        except sa.exc.SQLAlchemyError:
            raise _down() from None
        g.claimed = name
        return None

    def _again(self, name: str, asked: str) -> Response:
        try:
            known = reply_of(self._engine, name)
        except DatabaseDown:
            raise _down() from None
        if known and known.fingerprint != asked:
            raise Conflict("this Idempotency-Key came with another change before")
        if known is None or known.status == BEGUN:
            raise Conflict(
                "this change is still under way, or its result is unknown: look at what is in force, and"
                " send another Idempotency-Key if it is still to be made"
            )
        response = Response(known.body, known.status, json.loads(known.headers))
        response.headers["Idempotency-Replayed"] = "true"
        return response

    def _end(self, response: Response) -> Response:
        """Keep the answer to a change that was made; let go of the key of one that was refused."""
        name = g.pop("claimed", None)
        if name is None or response.status_code >= FAILED:
            return response
        mine = replies.c.idempotency_key == name
        headers = [[each, response.headers[each]] for each in KEPT if each in response.headers]
        answer = {
            "status": response.status_code,
            "headers": json.dumps(headers),
            "body": response.get_data(),
        }
        refused = response.status_code >= REFUSED
        try:
            with self._engine.begin() as connection:
                kept = replies.update().where(mine).values(answer)
                connection.execute(replies.delete().where(mine) if refused else kept)
        except sa.exc.SQLAlchemyError as error:
            # What was asked for is done, or refused, and the caller is told so.
            log.warning("the answer to a change could not be kept for when it is asked again: %s", error)
        return response


def _digest(*parts: str | bytes) -> str:
    told = hashlib.sha256()
    for part in parts:
        told.update(part.encode() if isinstance(part, str) else part)
        told.update(b"\n")
    return told.hexdigest()


def _down() -> Unavailable:
    return Unavailable("the database cannot be reached", headers={"Retry-After": "1"})
