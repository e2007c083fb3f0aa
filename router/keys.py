"""Keys: who may do what at the router.

A key has one scope: `predict` may ask for predictions, `outcome` may report what became of them, `read` may
look at what is on record, `operator` may do all that and change the experiment. Of a key only the SHA-256 is
kept: it holds 256 random bits, so that nothing slower is needed to keep it from being guessed.

Without any key everybody may do everything, which is for one machine alone: `must_have_keys` says where not.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, get_args

import sqlalchemy as sa

from router import database, tables
from router.database import DatabaseDown, stamp
from runoff.problems import Forbidden, TooManyRequests, Unauthorized, Unavailable

Scope = Literal["predict", "outcome", "read", "operator"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

# The operator's key from the environment, as the model services take it.
OPERATOR_KEY = "RUNOFF_OPERATOR_KEY"
# The dashboard's key from the environment, which may read.
DASHBOARD_KEY = "RUNOFF_DASHBOARD_KEY"
PREFIX = "runoff_"
# A burst that a key with a rate may send at once, as seconds of that rate.
BURST_SECONDS = 2.0


class KeyTrouble(Exception):
    """A key cannot be added or revoked; the message says why."""


@dataclass(frozen=True)
class Key:
    """A key as it is listed: never the key itself. `per_second` is the rate that each worker lets through."""

    name: str
    scope: Scope
    per_second: float | None
    added: str
    revoked: str | None


class Keys:
    """The keys in the router's database."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, name: str, scope: Scope, per_second: float | None = None) -> str:
        """Add a key, and tell it: it cannot be told again.

        Args:
            name: by which it is listed and revoked, and which the audit names.
            scope: what it may do.
            per_second: requests that each worker lets through, None for any number.

        Raises:
            KeyTrouble: the name is taken.
            DatabaseDown: the database did not take it.
        """
        key = PREFIX + secrets.token_urlsafe(32)
        row = {
            "name": name,
            "scope": scope,
            "digest": digest(key),
            "per_second": per_second,
            "added": stamp(datetime.now(UTC)),
        }
        try:
            with self._engine.begin() as connection:
                connection.execute(tables.keys.insert(), row)
        except sa.exc.IntegrityError:
            raise KeyTrouble(f"there is a key named {name} already; revoked ones keep their name") from None
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseDown(error) from error
        return key

    def revoke(self, name: str) -> None:
        """Let a key open nothing any more; every worker knows within a second.

        Raises:
            KeyTrouble: there is no such key, or it is revoked already.
            DatabaseDown: the database did not take it.
        """
        valid = (tables.keys.c.name == name, tables.keys.c.revoked.is_(None))
        change = tables.keys.update().where(*valid).values(revoked=stamp(datetime.now(UTC)))
        try:
            with self._engine.begin() as connection:
                done = connection.execute(change).rowcount
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseDown(error) from error
        if not done:
            raise KeyTrouble(f"there is no key named {name} that could be revoked")

    def all(self) -> list[Key]:
        """All keys, oldest first; raises DatabaseDown."""
        return list(self.by_digest().values())

    def by_digest(self) -> dict[str, Key]:
        """All keys by what is kept of them, oldest first; raises DatabaseDown."""
        rows = database.read(self._engine, sa.select(tables.keys).order_by(tables.keys.c.added))
        return {row.digest: Key(row.name, row.scope, row.per_second, row.added, row.revoked) for row in rows}


@dataclass
class Bucket:
    """A token bucket: what a key may still send. Each worker has its own."""

    per_second: float
    tokens: float = field(init=False)
    at: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.tokens = self.size

    @property
    def size(self) -> float:
        return max(1.0, self.per_second * BURST_SECONDS)

    def take(self) -> float:
        """Take one token; returns 0, or if there is none the seconds until there is."""
        with self.lock:
            now = time.monotonic()
            self.tokens = min(self.size, self.tokens + (now - self.at) * self.per_second)
            self.at = now
            if self.tokens < 1:
                return (1 - self.tokens) / self.per_second
            self.tokens -= 1
            return 0.0


ANYBODY = Key("anybody", "operator", None, "", None)


class Guard:
    """Lets in who may do what they ask for. The keys are those of the last `refresh`."""

    def __init__(self, keys: Keys, environment: Mapping[str, str] = os.environ) -> None:
        self._keys = keys
        # None until they were read: who cannot be known is not let in.
        self._valid: dict[str, Key] | None = None
        self._open = False
        self._buckets: dict[str, Bucket] = {}
        scopes: dict[str, Scope] = {DASHBOARD_KEY: "read", OPERATOR_KEY: "operator"}
        self._own = {
            digest(key): Key(name, scope, None, "", None)
            for name, scope in scopes.items()
            if (key := environment.get(name))
        }

    @property
    def is_open(self) -> bool:
        """Whether there never were keys, so that everybody may do everything."""
        return self._open

    def refresh(self) -> None:
        """Read the keys anew; raises DatabaseDown."""
        every = self._keys.by_digest()
        stored = {digest_: key for digest_, key in every.items() if key.revoked is None}
        self._buckets = {
            digest_: self._buckets.get(digest_) or Bucket(key.per_second)
            for digest_, key in stored.items()
            if key.per_second is not None
        }
        self._valid = stored | self._own
        # Whoever revokes the last key does not mean to let everybody in.
        self._open = not every and not self._own

    def admit(self, authorization: str | None, scope: Scope) -> Key:
        """The key by which a caller is let in.

        Args:
            authorization: the request's header of that name, `Bearer <key>` (RFC 6750).
            scope: what the caller wants to do.

        Raises:
            Unauthorized: no key was sent, though one is needed, or one that is not known.
            Forbidden: it is of another scope.
            TooManyRequests: it has sent as many as it may for now.
            Unavailable: the keys could not be read yet.
        """
        if self.is_open:
            return ANYBODY
        scheme, _, sent = (authorization or "").partition(" ")
        challenge = {"WWW-Authenticate": "Bearer"}
        if scheme.lower() != "bearer" or not sent.strip():
            raise Unauthorized("send a key: 'Authorization: Bearer <key>'", headers=challenge)
        if self._valid is None:
            raise Unavailable("the keys could not be read yet", headers={"Retry-After": "1"})
        told = digest(sent.strip())
        key = self._valid.get(told)
        if key is None:
            raise Unauthorized("this key is not known here, or was revoked", headers=challenge)
        if key.scope not in (scope, "operator"):
            raise Forbidden(f"the key {key.name} may {key.scope}, and this takes one that may {scope}")
        if (bucket := self._buckets.get(told)) and (seconds := bucket.take()):
            raise TooManyRequests(
                f"the key {key.name} may send {key.per_second:g} requests a second to each worker",
                headers={"Retry-After": str(max(1, round(seconds)))},
            )
        return key


def digest(key: str) -> str:
    """What is kept of a key. Looking that up leaks by its time nothing that helps to guess the key."""
    return hashlib.sha256(key.encode()).hexdigest()


def must_have_keys(host: str) -> bool:
    """Whether a router that listens at this address must not run without keys: others can reach it."""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"
