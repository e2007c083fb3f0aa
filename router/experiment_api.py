"""The experiment over REST: seen, changed, paused, held, ramped, and who did so.

| address | what it does |
| --- | --- |
| `GET /v1/experiment` | the document, with its version as `ETag` |
| `PUT /v1/experiment?reason=…` | makes the body the next version |
| `GET /v1/experiment/state` | the version and weights in force, by whom and why, and what a canary would do |
| `POST /v1/experiment/{pause,hold,resume,ramp,promote}` | what they say, with the reason in the body |
| `GET /v1/audit` | every version and every change of weights, in pages |

Who changes something holds an operator's key, and names the version that it is a change of, `If-Match`: what
was decided by the look of another version is refused (RFC 9110 section 13.1.1, RFC 6585 section 3). A change
of the weights within a version, by a controller, say, does not hold an operator up. With an
`Idempotency-Key` a change is made once: `router/once.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

from flask import Blueprint, Response, jsonify, request
from pydantic import Field, StringConstraints, ValidationError
from typing_extensions import TypedDict  # typing's own is not read by pydantic before Python 3.12

from router.answers import Next
from router.controllers import Judgement
from router.database import DatabaseDown
from router.experiment import Experiment, ExperimentError, Name, Part, field_errors, read, told
from router.experiments import Current, Entry, Experiments, NotPossible, Place, Stale, promoting
from router.keys import Scope
from router.openapi import CALLERS, IDEMPOTENCY_KEY, REPLAYED
from runoff import web
from runoff.operations import JSON, Schema, describe
from runoff.problems import (
    Conflict,
    Invalid,
    Malformed,
    NotFound,
    PreconditionFailed,
    Problem,
    TooLarge,
    Unavailable,
    UnsupportedMediaType,
)

MAX_PAGE = 1000
MAX_BY = 128


class Caller(Protocol):
    """Who was let in."""

    @property
    def name(self) -> str:
        """By which the audit knows them."""


# Lets the caller of this request in for what a scope allows, or raises Unauthorized, Forbidden,
# TooManyRequests or Unavailable.
Authorize = Callable[[Scope], Caller]


class PreconditionRequired(Problem):
    """It is not said of which version this is a change."""

    status: ClassVar[int] = 428
    slug: ClassVar[str] = "precondition-required"
    title: ClassVar[str] = "The version that is to be changed must be named"


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]


class Why(Part):
    """Why something is done, and by whom of those who hold the key."""

    reason: Text
    by: Annotated[Text, Field(max_length=60)] | None = None


class Ramp(Why):
    """A variant, by default the only challenger, and the share that it is to get."""

    share: Annotated[float, Field(ge=0, le=1)]
    variant: Name | None = None


class Promotion(Why):
    """The variant that is to be the champion; its name again as `override`, where the evidence has doubts."""

    variant: Name
    override: Name | None = None


class Page(Part):
    """The entries after a place, or the last ones."""

    since: Annotated[str, Field(pattern=r"^\d{1,9}\.\d{1,9}$")] = "0.0"
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = 100
    last: Annotated[int, Field(ge=1, le=MAX_PAGE)] | None = None


class Judged(TypedDict):
    """What the gate of a canary says: advance, hold or regress, why, and from which figures."""

    says: str
    reason: str
    evidence: Any


class State(TypedDict):
    """What is in force: weights, by the version of the document and the allocation within it (0 for none).

    `judged` is what a canary would do by its guardrails, also while it is held or in a dry run; it is null in
    other modes, and for some seconds after a change. `phases` is what a change of the document, as the answer
    to it, has left and goes on with.
    """

    experiment: str
    mode: str
    version: int
    allocation: int
    series: int
    paused: bool
    held: bool
    weights: dict[str, float]
    since: str
    action: str
    by: str
    reason: str
    evidence: Any
    judged: Judged | None
    phases: Next | None


class AuditEntry(TypedDict):
    """A version with its document, or an allocation with its weights and what they were decided from."""

    cursor: str
    version: int
    allocation: int
    time: str
    action: str
    by: str
    reason: str
    document: Any
    weights: Any
    evidence: Any


class Audit(TypedDict):
    """A page of the audit, oldest first. `next` is the `since` of the next page."""

    entries: list[AuditEntry]
    next: str
    more: bool


Body = TypeVar("Body", bound=Part)


# What may be wrong with a change, of whatever it is one.
CHANGES: tuple[type[Problem], ...] = (
    *CALLERS,
    NotFound,
    Conflict,
    TooLarge,
    UnsupportedMediaType,
    Invalid,
    Unavailable,
)
WHY = {"reason": "better calibrated", "by": "ada"}
TAGGED = {"ETag": "The version of the experiment."}
IF_MATCH: Schema = {
    "type": "string",
    "description": "The version that is changed: the ETag of GET /v1/experiment.",
}
_describe_change = partial(
    describe,
    *(*CHANGES, PreconditionFailed, PreconditionRequired),
    tag="experiment",
    secured=True,
    answer=State,
    headers=TAGGED | REPLAYED,
    request_headers=lambda: {"If-Match": IF_MATCH, "Idempotency-Key": IDEMPOTENCY_KEY},
    required=("If-Match",),
)


def blueprint(
    experiments: Experiments,
    authorize: Authorize,
    changed: Callable[[], None] = lambda: None,
    *,
    doubts: Callable[[Current, str], Sequence[str]] = lambda _current, _variant: (),
    judged: Callable[[Current], Judgement | None] = lambda _current: None,
    foreseen: Callable[[Current, Experiment], Next | None] = lambda _current, _document: None,
) -> Blueprint:
    """The addresses under which the experiment is seen and changed.

    Args:
        experiments: its versions.
        authorize: lets callers in.
        changed: is called after each change, so that this worker need not wait to see it.
        doubts: says what speaks against promoting a variant of the experiment in force.
        judged: what the gate of a canary last said.
        foreseen: says what another document ends, and what it goes on with.
    """
    api = Blueprint("experiment", __name__)
    api.register_error_handler(NotPossible, lambda error: web.answer_problem(Conflict(str(error))))
    api.register_error_handler(Stale, lambda error: web.answer_problem(PreconditionFailed(str(error))))
    api.register_error_handler(DatabaseDown, _answer_down)
    api.register_error_handler(ExperimentError, lambda error: web.answer_problem(Unavailable(str(error))))

    @api.get("/v1/experiment")
    @describe(
        *(*CALLERS, NotFound, Unavailable),
        tag="experiment",
        answer=Experiment,
        statuses=(200, 304),
        headers=TAGGED,
    )
    def show() -> Response:
        """The experiment's document; its version is the ETag."""
        authorize("read")
        current = _in_force(experiments)
        response = Response(current.document.model_dump_json(), mimetype=JSON)
        return _tagged(response, current).make_conditional(request)  # type: ignore[return-value]

    @api.put("/v1/experiment")
    @_describe_change(
        takes=Experiment,
        query={"reason": {"type": "string"}, "by": {"type": "string"}},
        required=("reason", "If-Match"),
    )
    def replace() -> Response:
        """Make a document the next version, in force within a second."""
        caller = authorize("operator")
        why = valid(Why, request.args.to_dict(), Malformed)
        try:
            document = read(web.json_body())
        except ExperimentError as error:
            raise Invalid(str(error), errors=error.errors) from None
        return change(why, caller, lambda who: experiments.set(document, **who), document)

    @api.get("/v1/experiment/state")
    @describe(*CALLERS, NotFound, Unavailable, tag="experiment", answer=State, headers=TAGGED)
    def state() -> Response:
        """The weights in force, by which version, since when, by whom and why; what a canary would do."""
        authorize("read")
        return _state(_in_force(experiments), judged)

    @api.post("/v1/experiment/pause")
    @_describe_change(takes=Why, example=WHY)
    def pause() -> Response:
        """Send all traffic to the champion, and let nothing count until it is resumed."""
        return decide(experiments.pause)

    @api.post("/v1/experiment/hold")
    @_describe_change(takes=Why, example=WHY)
    def hold() -> Response:
        """Keep a canary or a bandit at the weights that it has until it is resumed."""
        return decide(experiments.hold)

    @api.post("/v1/experiment/resume")
    @_describe_change(takes=Why, example=WHY)
    def resume() -> Response:
        """End a pause or a hold, with the weights of before."""
        return decide(experiments.resume)

    @api.post("/v1/experiment/ramp")
    @_describe_change(takes=Ramp, example={"share": 0.3, **WHY})
    def ramp() -> Response:
        """Give a variant another share; the others share the rest in proportion."""
        caller = authorize("operator")
        asked = valid(Ramp, web.json_body(), Invalid)
        return change(asked, caller, lambda who: experiments.ramp(asked.share, asked.variant, **who))

    @api.post("/v1/experiment/promote")
    @_describe_change(takes=Promotion, example={"variant": "B", **WHY})
    def promote() -> Response:
        """Make a variant the champion, with all of the traffic.

        A trust check or a guardrail that is not met refuses it, and so do outcomes by which it is not surely
        as good as the champion, but for the margin, unless its name is sent again, as `override`.
        """
        caller = authorize("operator")
        asked = valid(Promotion, web.json_body(), Invalid)
        current = _expected(experiments)
        _check(asked, () if asked.override == asked.variant else doubts(current, asked.variant))
        return change(
            *(asked, caller, lambda who: experiments.promote(asked.variant, **who)),
            promoting(current.document, asked.variant),
        )

    @api.get("/v1/audit")
    @describe(
        *(*CALLERS, Unavailable),
        tag="experiment",
        query={
            "since": {"type": "string", "default": "0.0"},
            "limit": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 100},
            "last": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE},
        },
    )
    def audit() -> Audit:
        """Every version and every change of weights, oldest first: when, by whom, why, and what."""
        authorize("read")
        return _audit(experiments, valid(Page, request.args.to_dict(), Malformed))

    def decide(make: Callable[..., Current]) -> Response:
        """Change what takes nothing but a reason."""
        caller = authorize("operator")
        return change(valid(Why, web.json_body(), Invalid), caller, lambda who: make(**who))

    def change(
        why: Why,
        caller: Caller,
        make: Callable[[dict[str, Any]], Current],
        document: Experiment | None = None,
    ) -> Response:
        current = _expected(experiments)
        phases = foreseen(current, document) if document else None
        made = make({"expected": current.version, "by": signed(why, caller), "reason": why.reason})
        changed()
        return _state(made, phases=phases)

    return api


def _check(asked: Promotion, against: Sequence[str]) -> None:
    """Raise Conflict where anything speaks against a promotion."""
    if against:
        raise Conflict(
            f"the evidence has doubts: {'; '.join(against)}. To promote it all the same send its name"
            f" again, as override: {asked.variant}"
        )


def signed(why: Why, caller: Caller) -> str:
    """Who does something: the name that they give, and that of their key."""
    return (f"{why.by} ({caller.name})" if why.by else caller.name)[:MAX_BY]


def valid(model: type[Body], given: Any, problem: type[Problem]) -> Body:
    """What was sent, as a model has it; raises the problem, with each field, rule and value."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        errors = field_errors(error)
        raise problem(told(errors), errors=errors) from None


def _in_force(experiments: Experiments) -> Current:
    current = experiments.current()
    if current is None:
        raise NotFound("there is no experiment yet")
    return current


def _expected(experiments: Experiments) -> Current:
    """The experiment in force, if it is the version that the caller means to change."""
    if not request.if_match:
        raise PreconditionRequired(
            "say which version you change by the header If-Match: the ETag of GET /v1/experiment"
        )
    current = _in_force(experiments)
    if not request.if_match.contains(str(current.version)):
        raise PreconditionFailed(
            f"version {current.version} is in force, not {request.if_match.to_header()[:40]}",
            version=current.version,
        )
    return current


def _tagged(response: Response, current: Current) -> Response:
    response.set_etag(str(current.version))
    response.headers["Cache-Control"] = "no-cache"
    return response


def _state(
    current: Current,
    judged: Callable[[Current], Judgement | None] = lambda _: None,
    phases: Next | None = None,
) -> Response:
    last = current.allocation or current
    judgement = judged(current)
    state: State = {
        "experiment": current.document.name,
        "mode": current.document.mode,
        "version": current.version,
        "allocation": current.place.number,
        "series": current.series,
        "paused": current.paused,
        "held": current.held,
        "weights": current.weights,
        "since": _time(current.since),
        "action": last.action,
        "by": last.by,
        "reason": last.reason,
        "evidence": current.allocation.evidence if current.allocation else None,
        "judged": {"says": judgement.says, "reason": judgement.reason, "evidence": judgement.evidence}
        if judgement
        else None,
        "phases": phases,
    }
    return _tagged(jsonify(state), current)


def _audit(experiments: Experiments, page: Page) -> Audit:
    if page.last:
        found, more = experiments.last(page.last), False
    else:
        found = experiments.audit(Place(*map(int, page.since.split("."))), page.limit + 1)
        found, more = found[: page.limit], len(found) > page.limit
    entries = [_entry(each) for each in found]
    return {"entries": entries, "next": entries[-1]["cursor"] if entries else page.since, "more": more}


def _entry(entry: Entry) -> AuditEntry:
    version, number = entry.place
    return {
        "cursor": f"{version}.{number}",
        "version": version,
        "allocation": number,
        "time": entry.time,
        "action": entry.action,
        "by": entry.by,
        "reason": entry.reason,
        "document": entry.document,
        "weights": entry.weights,
        "evidence": entry.evidence,
    }


def _time(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")


def _answer_down(_error: DatabaseDown) -> Response:
    return web.answer_problem(Unavailable("the database cannot be reached", headers={"Retry-After": "1"}))
