"""Errors as a client sees them: RFC 9457 problem details. Each class carries its status.

The classes here are the problems that every app of ours has; a room adds its own beside its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NotRequired

from typing_extensions import TypedDict  # typing's own is not read by pydantic before Python 3.12

PROBLEM_JSON = "application/problem+json"

# Errors listed in one answer. A batch of a thousand broken rows is told with the first of them.
MAX_ERRORS = 20
MAX_VALUE_LENGTH = 40


class FieldDetails(TypedDict):
    """One rule that one value breaks."""

    pointer: str
    rule: str
    detail: str
    value: bool | int | float | str | None


@dataclass(frozen=True)
class FieldError:
    """One rule broken by one value.

    `pointer` is an RFC 6901 JSON pointer into the request's body, or to a parameter of its query or a header
    by its name; `rule` is the JSON Schema keyword of the rule (of a record `/prototype` is the schema);
    `value` is what the caller sent there, shortened.
    """

    pointer: str
    rule: str
    detail: str
    value: Any = None

    def to_json(self) -> FieldDetails:
        return {
            "pointer": self.pointer,
            "rule": self.rule,
            "detail": self.detail,
            "value": _shown(self.value),
        }


class ProblemDetails(TypedDict):
    """What is wrong with a request, RFC 9457; a kind of problem may have more fields."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: NotRequired[list[FieldDetails]]
    error_count: NotRequired[int]


class Problem(Exception):
    """What went wrong with a request, as its caller is told."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Something went wrong here"

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: dict[str, str] | None = None,
        **extensions: str | int | float | None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = headers or {}
        self.extensions = extensions

    def to_json(self, request_id: str) -> ProblemDetails:
        """The body, RFC 9457 section 3; the type is a URN, since the project has no address of its own."""
        body: ProblemDetails = {
            "type": f"urn:runoff:problem:{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "request_id": request_id,
            **self.extensions,  # type: ignore[typeddict-item]
        }
        if self.errors:
            body["errors"] = [error.to_json() for error in self.errors[:MAX_ERRORS]]
            body["error_count"] = len(self.errors)
        return body


class Malformed(Problem):
    """The request cannot be read at all."""

    status = 400
    slug = "malformed-request"
    title = "The request cannot be read"


def wrong_parameter(name: str, rule: str, takes: str, value: str | None) -> Malformed:
    """What is wrong with a parameter of a query or a header.

    Args:
        name: of the parameter.
        rule: that it breaks, as in a FieldError.
        takes: what it takes, for a reader.
        value: what was sent; None where it is missing.
    """
    if value is None:
        detail = f"{name} is missing; it takes {takes}"
    else:
        detail = f"{name} takes {takes}, not {value[:MAX_VALUE_LENGTH]!r}"
    return Malformed(detail, errors=[FieldError(f"/{name}", rule, detail, value)])


class Unauthorized(Problem):
    """Nobody could be known: no key was sent, or one that opens nothing."""

    status = 401
    slug = "unauthorized"
    title = "A key is needed"


class Forbidden(Problem):
    """The key does not open this, or there is none that would."""

    status = 403
    slug = "forbidden"
    title = "This key does not open it"


class NotFound(Problem):
    """The address, or what it names, is not there."""

    status = 404
    slug = "not-found"
    title = "What is asked for is not there"


class MethodNotAllowed(Problem):
    """The address is there for other methods."""

    status = 405
    slug = "method-not-allowed"
    title = "This address does not take that method"


class NotAcceptable(Problem):
    """The caller takes no form in which there is an answer."""

    status = 406
    slug = "not-acceptable"
    title = "There is no answer in a form that is accepted"


class Conflict(Problem):
    """The request does not go with what is there already."""

    status = 409
    slug = "conflict"
    title = "The request contradicts what is recorded"


class PreconditionFailed(Problem):
    """What was to be changed has changed meanwhile."""

    status = 412
    slug = "precondition-failed"
    title = "Another version is in force"


class TooLarge(Problem):
    """The body is larger than is taken."""

    status = 413
    slug = "too-large"
    title = "The request is too large"


class UnsupportedMediaType(Problem):
    """The body is of a type that is not read here."""

    status = 415
    slug = "unsupported-media-type"
    title = "The request is not JSON"


class Invalid(Problem):
    """The request can be read, and breaks a rule."""

    status = 422
    slug = "invalid-request"
    title = "The request breaks a rule"


class TooManyRequests(Problem):
    """The caller has sent as many as it may for now."""

    status = 429
    slug = "too-many-requests"
    title = "These are too many requests"


class Unavailable(Problem):
    """It cannot be done now; it may be later."""

    status = 503
    slug = "unavailable"
    title = "This cannot be done right now"


def _shown(value: Any) -> Any:
    """The caller's value, short, and such that JSON can say it."""
    if isinstance(value, dict):
        return "(an object)"
    if isinstance(value, list | tuple):
        return "(an array)"
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and abs(value) < 1e15:  # noqa: PLR2004 (false for NaN, too)
        return value
    # An integer of thousands of digits has no decimal form in Python (CVE-2020-10735).
    text = f"an integer of {value.bit_length()} bits" if isinstance(value, int) else str(value)
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]}…"
