"""What every Flask app of ours has in common: request ids, problem answers, health, the reading of JSON."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import pydantic_core
import structlog
from flask import Flask, Response, g, jsonify, request
from typing_extensions import TypedDict  # typing's own is not read by pydantic before Python 3.12
from werkzeug.exceptions import ClientDisconnected, HTTPException, RequestEntityTooLarge

from runoff import problems
from runoff.operations import describe
from runoff.problems import PROBLEM_JSON, Malformed, Problem

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

# Far above any record or batch that belongs into one JSON body.
MAX_BODY_BYTES = 1_000_000

# The variable by which our server tells an app at which address it listens.
BOUND_TO = "RUNOFF_BOUND_TO"

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

# A check returns nothing when all is well and raises with the reason when it is not.
Check = Callable[[], None]

log = logging.getLogger(__name__)


class Liveness(TypedDict):
    status: Literal["live"]


class Readiness(TypedDict):
    """`checks` holds "ok", or the reason why not, by the name of the check."""

    status: Literal["ready", "not ready"]
    checks: dict[str, str]


def equip(app: Flask, *, checks: Mapping[str, Check]) -> None:
    """Give an app, before its own routes, its request ids, problem answers and health endpoints.

    Args:
        app: the app to equip.
        checks: what must hold for the app to be ready, by name, as `/readyz` tells.
    """
    # One more than is taken: a body of unknown length is cut off there, and is seen to be too long.
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES + 1
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.url_map.strict_slashes = False
    app.before_request(_identify)
    app.after_request(_sign)
    app.register_error_handler(Problem, answer_problem)
    app.register_error_handler(HTTPException, _answer_http_error)
    app.register_error_handler(Exception, _answer_unexpected)

    @app.get("/livez")
    def livez() -> Liveness:
        """Whether the process is up."""
        return {"status": "live"}

    @app.get("/readyz")
    @app.get("/healthz")
    @describe(statuses=(200, 503))
    def readyz() -> tuple[Readiness, int]:
        """Whether the service can do its work: each check, and the reason where it fails."""
        results = {name: _outcome(check) for name, check in checks.items()}
        ready = all(result == "ok" for result in results.values())
        return {"status": "ready" if ready else "not ready", "checks": results}, 200 if ready else 503


def whole_body() -> bytes:
    """The request's body.

    Raises:
        problems.TooLarge: it is longer than MAX_BODY_BYTES.
    """
    body = request.get_data(cache=True)
    if len(body) > MAX_BODY_BYTES:
        raise RequestEntityTooLarge
    return body


def text_body() -> str:
    """The request's body as text.

    Raises:
        problems.TooLarge: it is longer than MAX_BODY_BYTES.
        problems.Malformed: it is empty, or not UTF-8.
    """
    return _text(whole_body())


def _text(body: bytes) -> str:
    if not body.strip():
        raise problems.Malformed("the body is empty")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise problems.Malformed(f"the body is not UTF-8: byte {error.start} cannot be decoded") from None


def json_body() -> Any:
    """Decode the request's JSON body, as `from_json` does.

    Raises:
        problems.UnsupportedMediaType: the body is declared as something else. One without a declaration is
            taken for JSON: that is how vetiver's client sends a data frame.
        problems.TooLarge: it is longer than MAX_BODY_BYTES.
        problems.Malformed: it is empty, cut off, or otherwise not JSON.
    """
    if request.mimetype and not request.is_json:
        raise problems.UnsupportedMediaType(
            f"Content-Type is {request.mimetype}; send JSON with 'Content-Type: application/json'"
        )
    return from_json(whole_body())


def from_json(body: bytes) -> Any:
    """Decode JSON.

    NaN and Infinity are let through, though RFC 8259 has no such numbers: the rule that refuses them can
    name the field.

    Raises:
        problems.Malformed: it is empty, cut off, or otherwise not JSON.
    """
    try:
        return pydantic_core.from_json(body)
    except ValueError:
        pass  # The standard library's reader, several times slower, says where it is broken.
    try:
        return json.loads(_text(body))
    except json.JSONDecodeError as error:
        raise problems.Malformed(
            f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except ValueError:
        raise problems.Malformed("the body holds a number of too many digits") from None
    except RecursionError:
        raise problems.Malformed("the body is nested too deeply") from None


def answer_problem(problem: Problem) -> Response:
    """Answer a request with a problem: RFC 9457, unless `g.refuse` holds the form of another dialect."""
    if refuse := g.get("refuse"):
        body, status = refuse(problem)
        response = jsonify(body)
        response.status_code = status
        response.headers.update(problem.headers)
        return response
    response = jsonify(problem.to_json(g.request_id))
    response.status_code = problem.status
    response.mimetype = PROBLEM_JSON
    response.headers.update(problem.headers)
    return response


def new_request_id() -> str:
    """An id for a request that came without one: the time in ms in 48 bits, and 80 random bits, as 32 digits.

    Ids that come one after another lie together in an index, and a database touches few of its pages.
    """
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"


def wrong_request_id(sent: str) -> Malformed:
    """What is wrong with a request's id that is none."""
    takes = "1 to 128 letters, digits, dots, dashes and underscores"
    return problems.wrong_parameter("X-Request-ID", "pattern", takes, sent)


def _identify() -> None:
    sent = request.headers.get("X-Request-ID")
    g.request_id = sent if sent and REQUEST_ID.fullmatch(sent) else new_request_id()
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(
        request_id=g.request_id, traceparent=request.headers.get("traceparent")
    )
    # For those who count requests: whatever else callers ask for is one kind.
    request.environ["runoff.endpoint"] = request.url_rule.rule if request.url_rule else "unknown"
    if refused := request.environ.get("runoff.refused"):
        raise refused
    if request.content_length is not None:
        # A server may end the stream where a connection broke off: Flask has to see that bytes are missing.
        request.environ.pop("wsgi.input_terminated", None)
    if sent is not None and g.request_id != sent:
        raise wrong_request_id(sent)


def _sign(response: Response) -> Response:
    response.headers["X-Request-ID"] = g.request_id
    if not response.is_streamed and _is_unread():
        response.headers["Connection"] = "close"
    if traceparent := request.headers.get("traceparent"):
        response.headers["traceparent"] = traceparent
    return response


def has_body(environ: WSGIEnvironment) -> bool:
    """Whether a request says that it has a body.

    The server closes the connection after an answer to a request whose body nobody has read. An answer that
    does not say so (`Connection: close`, RFC 9112 section 9.6) leaves the caller to ask again in vain.
    """
    return environ.get("CONTENT_LENGTH", "") not in ("", "0") or "HTTP_TRANSFER_ENCODING" in environ


def _is_unread() -> bool:
    if not has_body(request.environ):
        return False
    stream = vars(request).get("stream")
    # Who reads a body of unknown length reads it to its end.
    return stream is None or (request.content_length is not None and not stream.is_exhausted)


def _answer_http_error(error: HTTPException) -> Response:
    """Flask's own refusals in our form."""
    if isinstance(error, RequestEntityTooLarge):
        return answer_problem(
            problems.TooLarge(f"the body is longer than {MAX_BODY_BYTES:,} bytes; send fewer rows at a time")
        )
    if isinstance(error, ClientDisconnected):
        return answer_problem(problems.Malformed("the body is shorter than its Content-Length says"))
    if error.code == problems.NotFound.status:
        return answer_problem(problems.NotFound(f"{request.path} is not an address of this service"))
    if error.code == problems.MethodNotAllowed.status:
        allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        detail = f"{request.path} does not take {request.method}; it takes {allowed}"
        return answer_problem(problems.MethodNotAllowed(detail, headers={"Allow": allowed}))
    if error.code is not None and error.code < 400:  # noqa: PLR2004
        return Response(error.get_response().response, error.code, dict(error.get_headers()))
    return answer_problem(problems.Malformed(error.description or error.name))


def _answer_unexpected(error: Exception) -> Response:
    log.error("request %s failed", g.get("request_id"), exc_info=error)
    return answer_problem(Problem("this is a fault of the service, not of the request; its log says more"))


def _outcome(check: Check) -> str:
    try:
        check()
    except Exception as error:
        return str(error) or type(error).__name__
    return "ok"
