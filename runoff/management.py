"""Versions as people manage them: seen, compared, released, rolled back.

The command line and the REST API are two ways to the functions of this one class.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from runoff import card
from runoff.live import load_tested
from runoff.releases import Action, Release, Releases, Served
from runoff.store import ModelVersion, NoSuchVersion, Store, StoreError

NEWEST = "newest"
# In the place of a release's id, where there is none yet.
NONE = "none"


class NotReleased(StoreError):
    """There is nothing to go back to, or nothing to swap."""


class Superseded(StoreError):
    """Another release came meanwhile."""


@dataclass(frozen=True)
class Change:
    """What is different between two versions in one thing; None where a version does not have it."""

    name: str
    before: Any
    after: Any

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "before": self.before, "after": self.after}


@dataclass(frozen=True)
class Difference:
    """What tells two versions apart: only what differs is listed."""

    before: ModelVersion
    after: ModelVersion
    about: tuple[Change, ...]
    parameters: tuple[Change, ...]
    metrics: tuple[Change, ...]
    importance: tuple[Change, ...]
    schema: tuple[Change, ...]

    def to_json(self) -> dict[str, Any]:
        parts = ("about", "parameters", "metrics", "importance", "schema")
        return {
            "before": {"model": self.before.name, "version": self.before.id},
            "after": {"model": self.after.name, "version": self.after.id},
            **{part: [change.to_json() for change in getattr(self, part)] for part in parts},
        }


class Management:
    """The versions and releases of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.releases = Releases(store)

    def models(self) -> dict[str, list[ModelVersion]]:
        """All models with their versions, oldest first."""
        return {name: self.store.versions(name) for name in self.store.names()}

    def version(self, model: str, wanted: str = NEWEST) -> ModelVersion:
        """A version by its id, by how its id begins, or the newest.

        Raises:
            NoSuchVersion: there is none, or there are several that begin so.
        """
        if wanted == NEWEST:
            return self.store.version(model)
        found = [version for version in self.store.versions(model) if version.id.startswith(wanted)]
        if len(found) > 1:
            raise NoSuchVersion(
                f"{len(found)} versions of {model!r} begin with {wanted!r}: give more of the id"
            )
        return found[0] if found else self.store.version(model, wanted)

    def diff(self, before: ModelVersion, after: ModelVersion) -> Difference:
        """What tells two versions apart, of one model or of two."""
        old, new = before.record, after.record
        about = (
            "algorithm",
            "library",
            "versions",
            "data_digest",
            "code_digest",
            "seed",
            "rows",
            "threshold",
        )
        return Difference(
            before,
            after,
            about=_changes({key: old.get(key) for key in about}, {key: new.get(key) for key in about}),
            parameters=_changes(card.part(before, "parameters"), card.part(after, "parameters")),
            metrics=_changes(card.part(before, "metrics"), card.part(after, "metrics")),
            importance=_changes(
                *(
                    {name: card.number(each) for name, each in card.part(version, "importance").items()}
                    for version in (before, after)
                )
            ),
            schema=_changes(
                {feature.name: feature.to_json() for feature in before.prototype.features},
                {feature.name: feature.to_json() for feature in after.prototype.features},
            ),
        )

    def live(self, service: str, at: datetime | None = None) -> Served | None:
        """What a service serves, or served at a time; None before its first release."""
        return self.releases.live(service, at)

    def history(self, service: str | None = None) -> list[Release]:
        """All releases, or those of a service, oldest first."""
        return self.releases.all(service)

    def newest(self, service: str) -> str:
        """The id of a service's newest release, "none" before its first: who changes something names it."""
        last = self.releases.last(service)
        return last.id if last else NONE

    def release(
        self,
        service: str,
        version: ModelVersion,
        *,
        by: str,
        reason: str,
        expected: Container[str] | None = None,
    ) -> Release:
        """Let a service serve a version from now on.

        The version is loaded and tested first, as the service will do; what fails is not recorded.

        Args:
            service: its name.
            version: what it is to serve.
            by: who says so.
            reason: why.
            expected: the release that is to be the newest still, as `newest` tells it; None for any.

        Raises:
            StoreError: the version fails its test.
            Superseded: another release is the newest.
        """
        self._check(service, expected)
        changes = {service: _served(version)}
        return self._record(changes, by=by, reason=reason, action="release", expected=expected)

    def rollback(
        self, service: str, *, by: str, reason: str, expected: Container[str] | None = None
    ) -> Release:
        """Let a service serve what it served before what it serves now.

        A rollback is itself a release. Another one goes back one further: what was rolled back from is passed
        over, so that two rollbacks do not end where they began. A version that was released twice in a row
        counts once. It is tested like any other, but not by what callers have begun to send since.

        The arguments are those of `release`.

        Raises:
            NotReleased: there is nothing before it.
            StoreError: what was before fails its test today.
            Superseded: another release is the newest.
        """
        self._check(service, expected)
        past: list[Served] = []
        for release in self.releases.all(service):
            if release.action == "rollback":
                past.pop()
            elif past[-1:] != [release.changes[service]]:
                past.append(release.changes[service])
        if len(past) < 2:  # noqa: PLR2004
            raise NotReleased(
                f"nothing was released to {service!r} before what it serves now: release the version you want"
            )
        changes = {service: past[-2]}
        return self._record(changes, by=by, reason=reason, action="rollback", expected=expected)

    def swap(self, one: str, other: str, *, by: str, reason: str) -> Release:
        """Let two services exchange what they serve, both with one record.

        Raises:
            NotReleased: one of them has had no release yet, or both are the same.
            StoreError: a version fails its test.
        """
        served = {service: self.releases.live(service) for service in (one, other)}
        missing = [service for service, each in served.items() if each is None]
        if missing or one == other:
            why = f"nothing was released to {missing[0]!r} yet" if missing else f"{one!r} is one"
            raise NotReleased(f"a swap needs two services with a release: {why}")
        exchanged = dict(zip((one, other), (served[other], served[one]), strict=True))
        return self._record(
            {service: each for service, each in exchanged.items() if each},
            by=by,
            reason=reason,
            action="swap",
        )

    def card(self, version: ModelVersion, form: card.Form) -> str:
        """The model card of a version, in Markdown or HTML."""
        served = _served(version)
        releases = [release for release in self.releases.all() if served in release.changes.values()]
        golden, reference = self.store.golden_rows(version), self.store.reference(version)
        return card.render(version, golden, reference, releases, form)

    def _check(self, service: str, expected: Container[str] | None) -> None:
        """See that no other release came meanwhile; raises Superseded."""
        if expected is not None and (newest := self.newest(service)) not in expected:
            raise Superseded(f"the newest release of {service!r} is another one by now: {newest}")

    def _record(
        self,
        changes: Mapping[str, Served],
        *,
        by: str,
        reason: str,
        action: Action,
        expected: Container[str] | None = None,
    ) -> Release:
        for service, served in changes.items():
            # What answered before may come back even where callers have begun to send more than it takes.
            callers_of = None if action == "rollback" else self.releases.live(service)
            load_tested(self.store, served, callers_of)
            # A test takes a while: who was faster is seen after it.
            self._check(service, expected)
        return self.releases.record(changes, by=by, reason=reason, action=action)


def _served(version: ModelVersion) -> Served:
    return Served(version.name, version.id, version.digest)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Change, ...]:
    names = dict.fromkeys([*before, *after])
    return tuple(
        Change(name, before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    )


def parse_time(text: str) -> datetime:
    """A time as people write it, ISO 8601; without a zone it is that of the place.

    Raises:
        ValueError: it is none.
    """
    return datetime.fromisoformat(text).astimezone(UTC)
