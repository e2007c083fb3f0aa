"""What the ledger keeps of a caller's data: units by a keyed hash; columns hashed or left out where asked."""

from __future__ import annotations

import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from router.dialects import is_original
from router.experiment import Privacy

SECRET = "RUNOFF_SECRET"  # noqa: S105 (the name of a variable)


class NoSecret(Exception):
    """There is no secret to hash by; the message says what to set."""


def secret(engine: sa.Engine) -> bytes:
    """The secret by which units and columns are hashed: RUNOFF_SECRET, or beside SQLite a file that is made.

    Whoever has the ledger and not the secret cannot try out ids. All replicas need the same one.

    Raises:
        NoSecret: the database is on another machine, and the variable is not set.
    """
    if given := os.environ.get(SECRET):
        return given.encode()
    if engine.dialect.name != "sqlite" or not engine.url.database:
        raise NoSecret(f"set {SECRET} to a text that all routers of this database have, and nobody else")
    path = Path(f"{engine.url.database}.secret")
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        pass
    return path.read_bytes()


def hashed(value: str, key: bytes) -> str:
    """HMAC-SHA-256 (RFC 2104) of a text, in hexadecimal."""
    return hmac.digest(key, value.encode(), "sha256").hex()


def kept(row: Any, privacy: Privacy, key: bytes) -> Any:
    """What is kept of a record; of one whose columns have no names, nothing."""
    if not isinstance(row, dict) or is_original(row):
        return None
    return {
        name: hashed(json.dumps(value), key) if name in privacy.hashed else value
        for name, value in row.items()
        if name not in privacy.omitted
    }
