"""Releases: which version each service is to answer from, since when, by whose word, and why.

A release is a record that is added and never changed; the last one of a service's name says what it serves.
The records are one pin of the board, `releases`, of which each record is a version, so that they are kept
wherever the models are. One record may change several services at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from runoff.store import RELEASES, Store, StoreError

Action = Literal["release", "rollback", "swap"]


@dataclass(frozen=True)
class Served:
    """What a service answers from: a version, and the model that it is of.

    After a swap that is another model than the one that the service is named after. `digest` is the SHA-256
    of the model file; None where another tool wrote the version.
    """

    model: str
    version: str
    digest: str | None

    def to_json(self) -> dict[str, Any]:
        return {"model": self.model, "version": self.version, "digest": self.digest}


@dataclass(frozen=True)
class Release:
    """One record. `changes` holds, by the name of the service, what it serves from `time` on."""

    id: str
    time: datetime
    by: str
    reason: str
    action: Action
    changes: Mapping[str, Served]

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "time": self.time.isoformat().replace("+00:00", "Z"),
            "by": self.by,
            "reason": self.reason,
            "action": self.action,
            "changes": {service: served.to_json() for service, served in self.changes.items()},
        }

    @classmethod
    def from_json(cls, id_: str, record: Mapping[str, Any]) -> Release:
        return cls(
            id=id_,
            time=datetime.fromisoformat(record["time"]),
            by=record["by"],
            reason=record["reason"],
            action=record["action"],
            changes={service: Served(**served) for service, served in record["changes"].items()},
        )


class Releases:
    """The releases on a board."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # Records never change, so each is read once.
        self._known: dict[str, Release] = {}

    def all(self, service: str | None = None) -> list[Release]:
        """All releases, or those of a service, oldest first."""
        self._read_new()
        found = sorted(self._known.values(), key=lambda release: (release.time, release.id))
        return [release for release in found if service is None or service in release.changes]

    def live(self, service: str, at: datetime | None = None) -> Served | None:
        """What a service is to serve, now or at a time (with a time zone); None before its first release."""
        last = self.last(service, at)
        return last.changes[service] if last else None

    def last(self, service: str, at: datetime | None = None) -> Release | None:
        """The last release of a service until now, or until a time; None before its first."""
        found = [release for release in self.all(service) if at is None or release.time <= at]
        return found[-1] if found else None

    def record(self, changes: Mapping[str, Served], *, by: str, reason: str, action: Action) -> Release:
        """Add a release. Whether the versions can be served is for the caller to know.

        Args:
            changes: by the name of the service, what it is to serve.
            by: who says so.
            reason: why.
            action: what kind of change it is.
        """
        past = self.all()
        now = datetime.now(UTC)
        # Times tell the order: a clock that was set back must not put this one before the last.
        time = max(now, past[-1].time + timedelta(microseconds=1)) if past else now
        release = Release("", time, by, reason, action, changes)
        id_ = self._store.append_document(RELEASES, {k: v for k, v in release.to_json().items() if k != "id"})
        self._read_new()
        return self._known[id_]

    def token(self) -> str:
        """A text that changes exactly when there is a new release. It costs a listing of one folder."""
        self._read_new()
        return f"{len(self._known)} {max(self._known, default='')}"

    def _read_new(self) -> None:
        for id_ in self._store.document_ids(RELEASES):
            if id_ not in self._known:
                record = self._store.document(RELEASES, id_)
                # One that is still being written is looked at again the next time.
                if record is not None:
                    try:
                        self._known[id_] = Release.from_json(id_, record)
                    except (LookupError, TypeError, ValueError, AttributeError) as error:
                        raise StoreError(f"release {id_} is in no form that is known here") from error
