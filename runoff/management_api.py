"""Versions and releases over REST, by the functions of `runoff.management`.

Anybody may look. Who changes what is served needs the operator's key, RUNOFF_OPERATOR_KEY:
`Authorization: Bearer <key>`. Who says with `If-Match` by the look of which release they decided, the ETag of
`GET /v1/models/<model>/releases`, is refused where another one came meanwhile (RFC 9110 section 13.1.1).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from flask import Blueprint, Response, jsonify, request
from typing_extensions import TypedDict

from runoff import web
from runoff.management import Management, NotReleased, Superseded, parse_time
from runoff.operations import JSON, Schema, describe
from runoff.problems import (
    Conflict,
    FieldError,
    Forbidden,
    Invalid,
    NotAcceptable,
    NotFound,
    PreconditionFailed,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
    wrong_parameter,
)
from runoff.releases import Release
from runoff.store import ModelVersion, NoSuchVersion, StoreError

KEY = "RUNOFF_OPERATOR_KEY"
MAX_TEXT = 500


class ServedDetails(TypedDict):
    """A version that a service serves."""

    model: str
    version: str
    digest: str | None


class ReleaseDetails(TypedDict):
    """A release; `changes` holds what is served from `time` on, by the name of the service."""

    id: str
    time: str
    by: str
    reason: str
    action: str
    changes: dict[str, ServedDetails]


class History(TypedDict):
    """What a service serves, or did at the time asked for, and all of its releases, oldest first."""

    service: str
    live: ServedDetails | None
    releases: list[ReleaseDetails]


class VersionSummary(TypedDict):
    """A version, in a line; `notebook` is where it is published, `size` that of the model's file in bytes."""

    version: str
    created: str
    digest: str | None
    algorithm: str | None
    metrics: dict[str, Any]
    parameters: dict[str, Any]
    trained_at: str | None
    data_digest: str | None
    notebook: str | None
    size: int | None


class Spreads(TypedDict):
    """How the columns and the model's probabilities were spread in training, over `rows` rows.

    Of each column `counts`, by `values` or between `edges`, and how many were `missing`.
    """

    rows: int
    features: dict[str, dict[str, Any]]
    prediction: dict[str, Any]


class Versions(TypedDict):
    """The versions of a model, oldest first."""

    model: str
    versions: list[VersionSummary]


class VersionDetails(VersionSummary):
    """Everything that is known of a version."""

    model: str
    record: dict[str, Any]
    prototype: dict[str, Any]
    files: dict[str, str]
    untranslated: str | None


class ChangeDetails(TypedDict):
    """One thing in which two versions differ."""

    name: str
    before: Any
    after: Any


class DifferenceDetails(TypedDict):
    """What tells two versions apart."""

    before: dict[str, str]
    after: dict[str, str]
    about: list[ChangeDetails]
    parameters: list[ChangeDetails]
    metrics: list[ChangeDetails]
    importance: list[ChangeDetails]
    schema: list[ChangeDetails]


def _texts_like(**examples: str) -> Callable[[], Mapping[str, Schema]]:
    """The content of a body that holds these texts, all of them needed."""
    text = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
    schema = {
        "type": "object",
        "properties": dict.fromkeys(examples, text),
        "required": list(examples),
        "additionalProperties": False,
    }
    return lambda: {JSON: {"schema": schema, "examples": {"usual": {"value": examples}}}}


CHANGES = (Unauthorized, Forbidden, Conflict, TooLarge, UnsupportedMediaType, Invalid, Unavailable)
WHY = {"reason": "better calibrated", "by": "ada"}
TAGGED = {"ETag": "The id of the newest release, none before the first."}
IF_MATCH: Schema = {
    "type": "string",
    "description": "The release that is the newest still: the ETag of what was released.",
}


def blueprint(management: Management) -> Blueprint:
    """The addresses under which versions are managed."""
    api = Blueprint("management", __name__)
    # A version of which a file is damaged, or which is of a form that this release does not know.
    api.register_error_handler(StoreError, lambda error: web.answer_problem(Unavailable(str(error))))

    @api.get("/v1/models/<model>/versions")
    @describe(NotFound, Unavailable, tag="versions")
    def versions(model: str) -> Versions:
        """The versions of a model."""
        found = management.store.versions(model)
        if not found:
            raise NotFound(f"the store holds no version of {model!r}")
        return {"model": model, "versions": [summary(version) for version in found]}

    @api.get("/v1/models/<model>/versions/<version>")
    @describe(NotFound, Unavailable, tag="versions", answer=VersionDetails, statuses=(200, 304))
    def version(model: str, version: str) -> Response:
        """One version: its training record, what it takes, the digests of its files."""
        return _cached(jsonify(details(_found(management, model, version))))

    @api.get("/v1/models/<model>/versions/<version>/card")
    @describe(
        NotFound,
        NotAcceptable,
        Unavailable,
        tag="versions",
        media_type="text/html",
        answer=str,
        statuses=(200, 304),
        more={"text/markdown": {"schema": {"type": "string"}}},
    )
    def card(model: str, version: str) -> Response:
        """The model card, in HTML or, where that is what is accepted, in Markdown."""
        forms = {"text/html": "html", "text/markdown": "md"}
        accepted = request.accept_mimetypes
        chosen = accepted.best_match(list(forms)) if accepted else "text/html"
        if chosen is None:
            raise NotAcceptable("a card is answered as text/html or text/markdown")
        form: Any = forms[chosen]
        return _cached(Response(management.card(_found(management, model, version), form), mimetype=chosen))

    @api.get("/v1/models/<model>/versions/<version>/reference")
    @describe(NotFound, Unavailable, tag="versions", answer=Spreads, statuses=(200, 304))
    def reference(model: str, version: str) -> Response:
        """How its training data were spread: what live traffic is compared with."""
        found = _found(management, model, version)
        spreads = management.store.reference(found)
        if spreads is None:
            raise NotFound(f"{model} {found.id} was stored without examples, and so without their spread")
        return _cached(jsonify(spreads))

    @api.get("/v1/models/<model>/diff")
    @describe(
        NotFound,
        Unavailable,
        tag="versions",
        query={"from": {"type": "string"}, "to": {"type": "string", "default": "newest"}},
        required=("from",),
    )
    def diff(model: str) -> DifferenceDetails:
        """What tells two versions apart: what of training, metrics, importance and schema differs."""
        if "from" not in request.args:
            raise wrong_parameter("from", "required", "the id of a version", None)
        before, after = (
            _found(management, model, request.args.get(name, "newest")) for name in ("from", "to")
        )
        told: Any = management.diff(before, after).to_json()
        return told  # type: ignore[no-any-return]

    @api.get("/v1/models/<model>/releases")
    @describe(
        tag="versions",
        query={"at": {"type": "string", "format": "date-time"}},
        answer=History,
        headers=TAGGED,
    )
    def releases(model: str) -> Response:
        """What a service serves, or served at a time, and all that was ever released to it."""
        given = request.args.get("at")
        try:
            # The plus of a zone, where nobody escaped it, arrives as a space.
            at = parse_time(re.sub(r"(T.*) (\d\d:?\d\d)$", r"\1+\2", given)) if given is not None else None
        except (ValueError, OverflowError):
            raise wrong_parameter("at", "format", "a time such as 2026-11-23T14:05Z", given) from None
        newest = management.newest(model)
        live: Any = management.live(model, at)
        told: History = {
            "service": model,
            "live": live.to_json() if live else None,
            "releases": [_told(release) for release in management.history(model)],
        }
        response = jsonify(told)
        response.set_etag(newest)
        response.headers["Cache-Control"] = "no-cache"
        return response

    _add_changes(api, management)
    return api


def _add_changes(api: Blueprint, management: Management) -> None:
    """The addresses under which what is served is changed."""

    @api.post("/v1/models/<model>/releases")
    @describe(
        *CHANGES,
        NotFound,
        PreconditionFailed,
        tag="operation",
        secured=True,
        request=_texts_like(version="newest", **WHY),
        request_headers=lambda: {"If-Match": IF_MATCH},
    )
    def release(model: str) -> ReleaseDetails:
        """Let a service serve a version from now on, after a self-test."""
        _authorize()
        asked = _texts("version", "reason", "by")
        chosen = _found(management, model, asked["version"])
        why = {"by": asked["by"], "reason": asked["reason"]}
        return _done(lambda: management.release(model, chosen, **why, expected=request.if_match or None))

    @api.post("/v1/models/<model>/rollback")
    @describe(
        *CHANGES,
        PreconditionFailed,
        tag="operation",
        secured=True,
        request=_texts_like(**WHY),
        request_headers=lambda: {"If-Match": IF_MATCH},
    )
    def rollback(model: str) -> ReleaseDetails:
        """Let a service serve what it served before."""
        _authorize()
        asked = _texts("reason", "by")
        why = {"by": asked["by"], "reason": asked["reason"]}
        return _done(lambda: management.rollback(model, **why, expected=request.if_match or None))

    @api.post("/v1/swap")
    @describe(
        *CHANGES,
        tag="operation",
        secured=True,
        request=_texts_like(one="model-a", other="model-b", **WHY),
    )
    def swap() -> ReleaseDetails:
        """Let two services exchange what they serve."""
        _authorize()
        asked = _texts("one", "other", "reason", "by")
        return _done(
            lambda: management.swap(asked["one"], asked["other"], by=asked["by"], reason=asked["reason"])
        )


def _found(management: Management, model: str, wanted: str) -> ModelVersion:
    try:
        return management.version(model, wanted)
    except NoSuchVersion as error:
        raise NotFound(str(error)) from None


def summary(version: ModelVersion) -> VersionSummary:
    """A version in a line, in JSON types."""
    return {
        "version": version.id,
        "created": version.created.isoformat().replace("+00:00", "Z"),
        "digest": version.digest,
        "algorithm": version.record.get("algorithm"),
        "metrics": version.record.get("metrics", {}),
        "parameters": version.record.get("parameters", {}),
        "trained_at": version.record.get("trained_at"),
        "data_digest": version.record.get("data_digest"),
        "notebook": version.record.get("notebook"),
        "size": version.size,
    }


def details(version: ModelVersion) -> VersionDetails:
    """All that is known of a version, in JSON types."""
    return {
        **summary(version),
        "model": version.name,
        "record": dict(version.record),
        "prototype": version.prototype.to_json(),
        "files": dict(version.files),
        "untranslated": version.untranslated,
    }


def _told(release: Release) -> ReleaseDetails:
    told: Any = release.to_json()
    return told  # type: ignore[no-any-return]


def _done(change: Any) -> ReleaseDetails:
    """What came of a change; a version that fails its test is a conflict with what is wanted."""
    try:
        return _told(change())
    except Superseded as error:
        raise PreconditionFailed(str(error)) from None
    except NotReleased as error:
        raise Conflict(str(error)) from None
    except StoreError as error:
        raise Conflict(f"not released: {error}") from None


def _authorize() -> None:
    """See that the operator asks.

    Raises:
        Unauthorized: no key was sent.
        Forbidden: it is not the operator's, or no key is configured.
    """
    key = os.environ.get(KEY)
    if not key:
        raise Forbidden(f"nothing can be changed over REST: this service was started without {KEY}")
    scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not sent:
        raise Unauthorized(
            "send the operator's key: 'Authorization: Bearer <key>'", headers={"WWW-Authenticate": "Bearer"}
        )
    if not hmac.compare_digest(sent.strip().encode(), key.encode()):
        raise Forbidden("this is not the operator's key")


def _texts(*names: str) -> dict[str, str]:
    """The texts of a JSON body, all of them needed.

    Raises:
        Invalid: one is missing, is no text, is empty or too long, or there are others.
    """
    body = web.json_body()
    if not isinstance(body, dict):
        raise Invalid(
            f"the body must be an object with {', '.join(names)}",
            errors=[FieldError("", "type", "the body must be an object", body)],
        )
    errors = [
        FieldError(f"/{name}", "type", f"{name} must be a text of 1 to {MAX_TEXT} characters", body.get(name))
        for name in names
        if not isinstance(body.get(name), str) or not 0 < len(body[name].strip()) <= MAX_TEXT
    ]
    errors += [
        FieldError(f"/{name}", "additionalProperties", f"{name[:40]} is not known here", body[name])
        for name in body
        if name not in names
    ]
    if errors:
        raise Invalid(errors[0].detail, errors=errors)
    return body


def _cached(response: Response) -> Response:
    """What changes seldom, with a tag by which a caller need not get it twice."""
    response.headers["Cache-Control"] = "no-cache"
    response.set_etag(hashlib.sha256(response.get_data()).hexdigest()[:32])
    return response.make_conditional(request)  # type: ignore[return-value]
