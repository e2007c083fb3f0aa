"""What the OpenAPI document says of a view beyond its signature and its docstring, said beside the view."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from runoff.problems import Problem

Schema = dict[str, Any]
View = TypeVar("View", bound=Callable[..., Any])

JSON = "application/json"


@dataclass(frozen=True)
class Operation:
    """What the document says of a view beyond its signature and docstring.

    Args:
        about: what it is for, where the docstring does not tell: a line, and more after it.
        tag: the heading under which it stands.
        problems: what may be wrong with a request, besides a malformed id.
        refusal: the form of errors in another dialect than RFC 9457's.
        statuses: those of an answer in its usual form.
        media_type: of the answer.
        answer: the type of the answer, where the view's annotation does not tell.
        request: gives the content of a request's body: by media type, a schema and examples.
        takes: the type of a body in JSON, where `request` does not tell.
        example: a body of that type.
        more: content of the answer in other media types, likewise.
        query: parameters of the query, by name.
        request_headers: gives the headers that are read of a request, by name, besides those of all requests.
        required: those of both that must be there.
        headers: what the answer's own headers say, by name.
        secured: whether it takes an operator's key; where a problem is that there is none, one may be needed.
    """

    about: str = ""
    tag: str = "service"
    problems: tuple[type[Problem], ...] = ()
    refusal: Any = None
    statuses: tuple[int, ...] = (200,)
    media_type: str = JSON
    answer: Any = None
    request: Callable[[], Mapping[str, Schema]] | None = None
    takes: Any = None
    example: Mapping[str, Any] | None = None
    more: Mapping[str, Schema] = field(default_factory=dict)
    query: Mapping[str, Schema] = field(default_factory=dict)
    request_headers: Callable[[], Mapping[str, Schema]] = dict
    required: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    secured: bool = False


def describe(*problems: type[Problem], **more: Any) -> Callable[[View], View]:
    """Say of a view what its signature and docstring do not; the arguments are those of Operation."""

    def described(view: View) -> View:
        view.operation = Operation(problems=problems, **more)  # type: ignore[attr-defined]
        return view

    return described
