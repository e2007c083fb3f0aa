"""The router's front door: what a request for predictions passes before Flask, and mostly instead of it.

Flask's dispatch costs more than routing does. So requests for predictions are read, routed and answered here,
in every dialect; Flask has the same addresses for its document, and sends them here.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from prometheus_client import Counter, Histogram
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header
from werkzeug.wsgi import get_input_stream

from router.database import NOT_RECORDED, DatabaseDown
from router.dialects import DIALECTS, OURS, Dialect, is_batch, our_rows
from router.entries import checked_key
from router.keys import Guard
from router.routing import JSON_LENGTH, PASSED_ON, Answered, Asked, Router, told
from runoff import web
from runoff.batches import Form, accepted, form_of
from runoff.problems import (
    Malformed,
    Problem,
    TooLarge,
    Unavailable,
    UnsupportedMediaType,
    wrong_parameter,
)
from runoff.web import MAX_BODY_BYTES, REQUEST_ID, new_request_id

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

MAX_UNIT = 256
TAG = re.compile(r"[a-z0-9-]{1,40}")

OUR_FAULT = "this is a fault of the router, not of the request; its log says more"

# In the environment of a request: that nothing of its body is left to be read.
READ = "runoff.read"

# The dialect, the path to ask a model at, and the model that an address names.
Spoken = tuple[Dialect, str, str | None]

log = logging.getLogger(__name__)

ROUTED = Counter("runoff_routed", "Requests routed, by variant and status.", ("variant", "status"))
SECONDS = Histogram(
    "runoff_routed_seconds",
    "Time from a request's arrival at the router to its answer, in seconds.",
    ("variant",),
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


class Front:
    """WSGI middleware around the router's app."""

    def __init__(self, app: WSGIApplication, router: Router, guard: Guard, begin: Callable[[], None]) -> None:
        """Put it before an app; `begin` is called with each request, for what a process does beside them."""
        self._app = app
        self._router = router
        self._guard = guard
        self._begin = begin

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self._begin()
        if environ["REQUEST_METHOD"] != "POST":
            return self._app(environ, start_response)
        found = spoken(environ["PATH_INFO"])
        if found is None or environ.get("runoff.refused"):
            return self._app(environ, start_response)
        began = time.perf_counter()
        answered = self.answer(environ, found)
        variant = next((value for name, value in answered.headers if name == "X-Variant"), "none")
        routed, timed = _children(variant, answered.status)
        routed.inc()
        timed.observe(time.perf_counter() - began)
        body = answered.body
        headers = answered.headers
        if isinstance(body, bytes):
            headers = [*headers, ("Content-Length", str(len(body)))]
        if traceparent := environ.get("HTTP_TRACEPARENT"):
            headers.append(("traceparent", traceparent))
        start_response(_status(answered.status), headers)
        return [body] if isinstance(body, bytes) else body

    def answer(self, environ: WSGIEnvironment, found: Spoken) -> Answered:
        """Route a request, and tell what is wrong in its dialect where it cannot be."""
        sent = environ.get("HTTP_X_REQUEST_ID")
        request_id = sent if sent and REQUEST_ID.fullmatch(sent) else new_request_id()
        try:
            if sent is not None and sent != request_id:
                raise web.wrong_request_id(sent)
            form = form_of(_media_type(environ)) if found[0] is OURS else None
            asked = self._read(environ, request_id, found, form)
            return self._batch(environ, asked, form) if form else self._router.route(asked)
        except Problem as problem:
            status, headers, body = told(problem, request_id, found[0])
        except DatabaseDown:
            status, headers, body = told(Unavailable(NOT_RECORDED), request_id, found[0])
        except Exception:
            log.exception("request %s failed", request_id)
            status, headers, body = told(Problem(OUR_FAULT), request_id, found[0])
        if web.has_body(environ) and not environ.get(READ):
            headers = [*headers, ("Connection", "close")]
        return Answered(status, [*headers, ("X-Request-ID", request_id)], body)

    def _batch(self, environ: WSGIEnvironment, asked: Asked, form: Form) -> Answered:
        """Route a file or a stream of rows; raises Problem where it cannot be."""
        answered = accepted(parse_accept_header(environ.get("HTTP_ACCEPT"), MIMEAccept), form)
        classes = "true" in parse_qs(environ.get("QUERY_STRING", "")).get("class", ())
        # Not by what it declares to be long: it is read as it comes.
        return self._router.route_batch(asked, get_input_stream(environ), form, answered, classes=classes)

    def _read(self, environ: WSGIEnvironment, request_id: str, found: Spoken, form: Form | None) -> Asked:
        """What a request asks, of a batch all but its rows; raises Problem where it cannot be told."""
        dialect, path, model = found
        guard = self._guard
        authorization = environ.get("HTTP_AUTHORIZATION")
        guard.admit(authorization, "predict")
        forced = environ.get("HTTP_X_FORCE_VARIANT")
        if forced is not None:
            guard.admit(authorization, "operator")
        key = checked_key(environ.get("HTTP_IDEMPOTENCY_KEY"))
        tag = checked_tag(environ.get("HTTP_X_TRAFFIC_TAG"), "X-Traffic-Tag")
        body, rows, batch = (b"", None, True) if form else _content(environ, dialect)
        passed_on = {name: value for name, cgi in PASSED_ON if (value := environ.get(cgi))}
        passed_on.setdefault("Content-Type", "application/json")
        passed_on["X-Request-ID"] = request_id
        query = environ.get("QUERY_STRING")
        unit = self._router.following.now().document.unit
        return Asked(
            request_id,
            dialect,
            f"{path}?{query}" if query else path,
            body,
            rows,
            batch,
            passed_on,
            _unit(environ.get(_cgi(unit)), unit),
            tag,
            forced,
            key,
            model,
        )


def checked_tag(value: str | None, name: str) -> str | None:
    """A tag of traffic, if there is one.

    Args:
        value: the tag.
        name: of the parameter or the header that it stood in.

    Raises:
        Malformed: it is none.
    """
    if value is not None and not TAG.fullmatch(value):
        raise wrong_parameter(name, "pattern", "1 to 40 lower-case letters, digits and dashes", value)
    return value


def _unit(value: str | None, header: str) -> str | None:
    """A unit's id; raises Malformed where it is empty, which servers make of what is not ASCII."""
    if value is not None and not (0 < len(value) <= MAX_UNIT and value.isascii()):
        takes = f"1 to {MAX_UNIT} characters of ASCII, others percent-encoded"
        raise wrong_parameter(header, "pattern", takes, value)
    return value


def _content(environ: WSGIEnvironment, dialect: Dialect) -> tuple[bytes, list[Any] | None, bool]:
    """A body, its rows, and whether they have ids of their own."""
    body = _body(environ)
    media_type = _media_type(environ)
    if dialect is not OURS:
        return body, dialect.read(body, media_type, environ.get(_cgi(JSON_LENGTH))), True
    if media_type not in ("", "application/json"):
        raise UnsupportedMediaType(
            f"Content-Type is {media_type}; send JSON with 'Content-Type: application/json'"
        )
    decoded = web.from_json(body)
    return body, our_rows(decoded), is_batch(decoded)


def _media_type(environ: WSGIEnvironment) -> str:
    declared: str = environ.get("CONTENT_TYPE", "")
    return declared if declared == "application/json" else declared.partition(";")[0].strip().lower()


def _body(environ: WSGIEnvironment) -> bytes:
    length = environ.get("CONTENT_LENGTH") or ""
    stream = environ["wsgi.input"]
    if length.isdecimal():
        if int(length) > MAX_BODY_BYTES:
            raise TooLarge(f"the body is longer than {MAX_BODY_BYTES:,} bytes; send fewer rows at a time")
        body: bytes = stream.read(int(length))
        environ[READ] = True
        if len(body) < int(length):
            raise Malformed("the body is shorter than its Content-Length says")
        return body
    body = stream.read(MAX_BODY_BYTES + 1)
    environ[READ] = len(body) <= MAX_BODY_BYTES
    if len(body) > MAX_BODY_BYTES:
        raise TooLarge(f"the body is longer than {MAX_BODY_BYTES:,} bytes; send fewer rows at a time")
    return body


def _addresses() -> Iterator[tuple[re.Pattern[str], Dialect, str]]:
    for dialect in DIALECTS:
        for address in dialect.addresses:
            pattern = re.sub(r"<(\w+)>", r"(?P<\1>[^/:]{1,200})", address)
            yield re.compile(f"{pattern}/?"), dialect, dialect.path


ADDRESSES = tuple(_addresses())


def spoken(path: str) -> Spoken | None:
    """The dialect that is spoken at an address, the path to ask a model at, and the model that it names."""
    for pattern, dialect, asked in ADDRESSES:
        if found := pattern.fullmatch(path):
            return dialect, asked, found.groupdict().get("model")
    return None


@cache
def _cgi(header: str) -> str:
    return "HTTP_" + header.upper().replace("-", "_")


@cache
def _children(variant: str, status: int) -> tuple[Any, Any]:
    return ROUTED.labels(variant, status), SECONDS.labels(variant)


@cache
def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Unknown"
