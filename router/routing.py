"""Routing one request: assigned, forwarded, recorded, answered.

`route` is the way of every request that asks for predictions, whatever its dialect. An answer is given when
it is in the ledger, and only then.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, Any
from urllib.parse import quote

from pydantic_core import to_json

from router import batches, privacy
from router.assignment import Assignment
from router.batches import Asking, Piece, Refused
from router.database import stamp
from router.dialects import SPOKEN, Dialect, NoPrediction, foreign, named_in, renamed, said_as_ours
from router.entries import Entry, Record, Reply, SideAnswer
from router.experiment import Experiment, Variant
from router.experiments import Current, Following
from router.ledger import Ledger
from router.shadows import Shadows
from router.store import DuplicateRequest, Repeated
from router.upstream import Answer, BadGateway, Limits, Upstream, UpstreamProblem, Upstreams
from runoff.batches import NDJSON, Form, form_of
from runoff.problems import (
    PROBLEM_JSON,
    Conflict,
    FieldError,
    Invalid,
    NotFound,
    Problem,
    ProblemDetails,
    Unavailable,
)

Headers = list[tuple[str, str]]

# What is passed on to a model, by the name that WSGI has for it; with a request's id, and its length.
PASSED_ON = (
    ("Content-Type", "CONTENT_TYPE"),
    ("Accept", "HTTP_ACCEPT"),
    ("traceparent", "HTTP_TRACEPARENT"),
    ("tracestate", "HTTP_TRACESTATE"),
    ("X-Traffic-Tag", "HTTP_X_TRAFFIC_TAG"),
    ("Inference-Header-Content-Length", "HTTP_INFERENCE_HEADER_CONTENT_LENGTH"),
)
# What the router says itself.
OURS = frozenset({"x-request-id", "x-variant", "x-experiment", "server-timing", "cache-control"})
# What no longer holds of an answer that was translated.
OF_A_BODY = frozenset({"content-type", "content-encoding", "etag"})
JSON_LENGTH = "inference-header-content-length"
OK, REFUSED, FAILED = 200, 400, 500


@dataclass(frozen=True)
class Asked:
    """A request for predictions.

    Attributes:
        request_id: the caller's, or one that was made.
        dialect: in which it is asked.
        path: below the service, with the query; `<model>` in the place of a model's name.
        body: as it came.
        rows: what is asked about, one decoded record each; None where that cannot be told.
        batch: whether the rows have ids of their own.
        passed_on: headers for the model.
        unit: the id of the unit, None for a request of its own.
        tag: what kind of traffic it is, None for real traffic.
        forced: the name of the variant that is to answer, None where it is assigned.
        idempotency_key: by which a repetition gets the first answer.
        model: by which name the caller calls the model, where the address has one.
    """

    request_id: str
    dialect: Dialect
    path: str
    body: bytes
    rows: Sequence[Any] | None
    batch: bool
    passed_on: Mapping[str, str]
    unit: str | None = None
    tag: str | None = None
    forced: str | None = None
    idempotency_key: str | None = None
    model: str | None = None


@dataclass
class Outcome:
    """What came of asking a variant: the answer to pass on, and what the ledger is told of it."""

    variant: Variant
    status: int
    headers: Headers
    body: bytes
    predictions: tuple[float, ...] = ()
    problem: str | None = None
    milliseconds: float = 0.0
    served: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Answered:
    """What the caller gets."""

    status: int
    headers: Headers
    body: bytes | Iterator[bytes]


class Router:
    """Assigns, forwards, records."""

    def __init__(self, following: Following, ledger: Ledger, secret: bytes) -> None:
        self.following = following
        self.ledger = ledger
        self.upstreams = Upstreams()
        self.shadows = Shadows()
        self._secret = secret

    def route(self, asked: Asked) -> Answered:
        """Route one request. Whatever came of it is on record before this returns.

        Raises:
            Conflict: its id is on record already, or its Idempotency-Key with another request.
            Invalid: it forces a variant that there is not.
            NotFound: it names a model that is neither the experiment nor a variant's.
            Unavailable: there is no experiment yet.
            DatabaseDown: it cannot be recorded, and is not answered.
        """
        began = time.perf_counter()
        current = self.following.now()
        document = current.document
        if asked.idempotency_key and (known := self.ledger.reply(asked.idempotency_key)):
            return replayed(known, asked)
        assigned = _assigned(current, asked)
        asked_at = stamp(datetime.now(UTC))
        outcome = first = self._ask(document, assigned.variant, asked)
        if outcome.status >= FAILED and document.fallback not in (None, assigned.variant.name):
            outcome = self._ask(document, document.variant(str(document.fallback)), asked)
        records = self._records(current, asked, asked_at, assigned, outcome)
        headers = [
            *outcome.headers,
            ("X-Request-ID", asked.request_id),
            ("X-Experiment", document.name),
            ("X-Variant", outcome.variant.name),
            ("Cache-Control", "no-store"),
        ]
        entry = Entry(
            records,
            side_answers(records, first, "failed") if first is not outcome else (),
            _reply(asked, asked_at, outcome, headers) if asked.idempotency_key else None,
            document.on_ledger_down,
        )
        try:
            self._append(entry, asked.request_id)
        except Repeated as repeated:
            # The same request was at work at the same time, and was answered first.
            return replayed(repeated.reply, asked)
        if document.mode == "shadow" and asked.rows and current.shadowed(asked.request_id):
            self._shadow(document, asked, records, outcome.variant)
        total = 1000 * (time.perf_counter() - began)
        model = outcome.milliseconds + (first.milliseconds if first is not outcome else 0)
        headers.append(("Server-Timing", f"router;dur={total - model:.2f}, model;dur={model:.2f}"))
        return Answered(outcome.status, headers, outcome.body)

    def route_batch(
        self, asked: Asked, body: IO[bytes], form: Form, answered: Form, *, classes: bool
    ) -> Answered:
        """Route a batch, as a stream. Whatever is answered of it is on record before that.

        Args:
            asked: the request, without its body and rows.
            body: the request's body, not read yet.
            form: of the body.
            answered: the form of the answer.
            classes: whether classes are asked for.

        Raises:
            Malformed, TooLarge, UnsupportedMediaType: the body cannot be read at all.
            Conflict, Invalid, Unavailable, DatabaseDown: as `route` does.
        """
        if asked.idempotency_key:
            raise Invalid(
                "a batch takes no Idempotency-Key: its rows have ids, by which one sees what is done"
            )
        current = self.following.now()
        document = current.document
        assigned = _assigned(current, asked)
        variant = assigned.variant
        asking = self._asking(document, variant, asked, form)
        fallback = None
        if document.fallback not in (None, variant.name):
            fallback = self._asking(document, document.variant(str(document.fallback)), asked, form)

        def record(piece: Piece) -> None:
            records = self._records_of(piece, current, asked, assigned)
            before = _side_answers_of(piece.before, records, "failed") if piece.before else ()
            self._append(Entry(records, before, on_down=document.on_ledger_down), asked.request_id)
            if current.shadowed(asked.request_id):
                self._shadow_batch(document, asked, piece, records)

        headers = [
            ("X-Request-ID", asked.request_id),
            ("X-Experiment", document.name),
            ("Cache-Control", "no-store"),
        ]
        try:
            begun, stream = batches.answer(
                body,
                form,
                answered,
                asking,
                fallback,
                request_id=asked.request_id,
                record=record,
                classes=classes,
            )
        except Refused as refused:
            theirs_too = [each for each in refused.answer.headers if each[0].lower() not in OURS]
            headers.append(("X-Variant", refused.variant))
            return Answered(refused.answer.status, [*theirs_too, *headers], refused.answer.body)
        except (UpstreamProblem, Unavailable) as problem:
            status, told_with, content = told(problem, asked.request_id)
            headers.append(("X-Variant", str(problem.extensions["variant"])))
            return Answered(status, [*told_with, *headers], content)
        named = [
            (name.title(), value) for name, value in begun.headers.items() if name.startswith("x-model-")
        ]
        headers.append(("X-Variant", begun.variant))
        return Answered(OK, [("Content-Type", answered.media_type), *named, *headers], stream)

    def _asking(self, document: Experiment, variant: Variant, asked: Asked, form: Form) -> Asking:
        """What asks a variant about the pieces of a batch."""
        theirs = SPOKEN[variant.dialect]

        def send(content: bytes, media_type: str) -> Answer:
            path = theirs.path if theirs else asked.path
            if "<model>" in path:
                own = self.upstream(variant).model(variant.model, limits_of(document))
                path = path.replace("<model>", quote(own, safe=""))
            headers = {
                **asked.passed_on,
                "Content-Type": media_type,
                "Accept": "application/json" if theirs else NDJSON,
            }
            return self.upstream(variant).ask(path, content, headers, limits_of(document))

        return Asking(variant.name, theirs, form, send)

    def _shadow_batch(
        self, document: Experiment, asked: Asked, piece: Piece, records: Sequence[Record]
    ) -> None:
        """Let all challengers score the rows of a piece that were answered, later."""
        answered = [
            (row, record) for row, record in zip(piece.rows, records, strict=True) if record.status == OK
        ]
        if not answered:
            return
        rows, mine = zip(*answered, strict=True)
        # They are as they are kept, whatever they came as.
        as_json = form_of(NDJSON)
        assert as_json

        def job() -> None:
            answers = []
            for challenger in document.variants:
                if challenger.name != piece.variant:
                    said, _ = self._asking(document, challenger, asked, as_json).piece(
                        [*rows], 0, asked.request_id
                    )
                    answers += _side_answers_of(said, mine, "shadow")
            self.ledger.append(Entry(side_answers=answers, on_down=document.on_ledger_down))

        self.shadows.offer(job, len(rows))

    def _records_of(self, piece: Piece, current: Current, asked: Asked, assigned: Assignment) -> list[Record]:
        """The rows of a piece of a batch as the ledger has them; what was refused is no record of anybody."""
        answered_by = current.document.variant(piece.variant)
        whole = Outcome(answered_by, OK, [], b"", milliseconds=piece.milliseconds, served=piece.headers)
        [usual] = self._records(current, asked, stamp(datetime.now(UTC)), assigned, whole)
        return [
            usual._replace(
                id=outcome.id,
                row=number,
                features=None if REFUSED <= status < FAILED else self._kept(current.document, asked, row),
                prediction=outcome.prediction,
                status=status,
                problem=_told_of(outcome.problem, status),
            )
            for number, (row, outcome, status) in enumerate(
                zip(piece.rows, piece.outcomes, piece.statuses, strict=True), piece.first
            )
        ]

    def _append(self, entry: Entry, request_id: str) -> None:
        """Put an entry on record; raises Conflict, Repeated, DatabaseDown."""
        try:
            self.ledger.append(entry)
        except DuplicateRequest:
            raise Conflict(
                f"request id {request_id} is on record already; each request needs one of its own"
            ) from None

    def hashed(self, unit: str) -> str:
        """How a unit is on record."""
        return privacy.hashed(unit, self._secret)

    def upstream(self, variant: Variant) -> Upstream:
        """The service of a variant."""
        return self.upstreams.of(variant.name, variant.url)

    def _ask(self, document: Experiment, variant: Variant, asked: Asked) -> Outcome:
        """Ask a variant; whatever goes wrong is an outcome, too."""
        began = time.perf_counter()
        try:
            outcome = self._forward(document, variant, asked)
        except NotFound:
            raise
        except Problem as problem:
            outcome = _failed(variant, asked, problem)
        outcome.milliseconds = 1000 * (time.perf_counter() - began)
        return outcome

    def _forward(self, document: Experiment, variant: Variant, asked: Asked) -> Outcome:
        """Ask a variant, in its own dialect where it has one; raises Problem where it does not answer."""
        limits = limits_of(document)
        dialect, path, body, rows = asked.dialect, asked.path, asked.body, asked.rows
        theirs: Dialect | None = None
        if variant.dialect != "runoff":
            query = "?" in path
            theirs = foreign(variant.dialect, dialect, rows, one=not asked.batch, query=query)
        if theirs:
            dialect, path = theirs, theirs.path
            body = to_json(theirs.ask([*(rows or ())]), inf_nan_mode="constants")
        if "<model>" in path:
            own = self._model_of(document, variant, asked.model or document.name)
            path = path.replace("<model>", quote(own, safe=""))
        answer = self.upstream(variant).ask(path, body, asked.passed_on, limits)
        outcome = _understood(variant, dialect, None if rows is None else len(rows), answer)
        if theirs and outcome.status == OK:
            model = outcome.served.get("x-model-name") or variant.model or variant.name
            version = outcome.served.get("x-model-version")
            outcome.body = said_as_ours(
                asked.body, outcome.predictions, one=not asked.batch, model=model, version=version
            )
            outcome.headers = [each for each in outcome.headers if each[0].lower() not in OF_A_BODY]
            outcome.headers.append(("Content-Type", "application/json"))
        return outcome

    def about(self, path: str, called: str | None) -> Answered:
        """What the champion says of itself, or the first variant where none is the champion.

        Args:
            path: of a GET, with `<model>` in the place of a model's name.
            called: by which name the caller calls the model, where the address has one.

        Raises:
            NotFound: by that name nobody here is known.
            Problem: it does not answer.
        """
        document = self.following.now().document
        variant = document.champion or document.variants[0]
        own: str | None = None
        if called is not None:
            own = self._model_of(document, variant, called)
            path = path.replace("<model>", quote(own, safe=""))
        answer = self.upstream(variant).ask(path, b"", {}, limits_of(document), method="GET")
        headers = [each for each in answer.headers if each[0].lower() not in OURS]
        body = renamed(answer.body, own, called or document.name)
        return Answered(answer.status, [*headers, ("X-Variant", variant.name)], body)

    def _model_of(self, document: Experiment, variant: Variant, called: str) -> str:
        """The name by which a variant's service knows its model, for one who calls it by some name.

        Raises:
            NotFound: by that name nobody here is known.
            Problem: the service cannot be asked for it.
        """
        limits = limits_of(document)

        def is_called_so(each: Variant) -> bool:
            # Another one that is away says nothing of this name.
            with suppress(UpstreamProblem, Unavailable):
                return self.upstream(each).model(each.model, limits) == called
            return False

        if called == document.name or any(is_called_so(each) for each in (variant, *document.variants)):
            return self.upstream(variant).model(variant.model, limits)
        raise NotFound(f"this router has the model {document.name}, not {called[:80]}")

    def _records(
        self, current: Current, asked: Asked, asked_at: str, assigned: Assignment, outcome: Outcome
    ) -> list[Record]:
        """A request's rows as the ledger has them. What a model refused is one row, and no record at all."""
        refused = REFUSED <= outcome.status < FAILED
        unknown = [None] * max(1, len(outcome.predictions))
        rows: Sequence[Any] = unknown if refused or asked.rows is None else asked.rows
        unit = None if asked.unit is None else self.hashed(asked.unit)
        batch = asked.batch and not (refused and asked.rows is None)
        version, allocation = current.place
        served = outcome.served
        return [
            Record(
                f"{asked.request_id}/{number}" if batch else asked.request_id,
                asked.request_id,
                number,
                asked_at,
                current.document.name,
                version,
                allocation,
                assigned.variant.name,
                None if outcome.variant is assigned.variant else outcome.variant.name,
                assigned.propensity,
                unit,
                served.get("x-model-name"),
                served.get("x-model-version"),
                served.get("x-model-digest"),
                None if row is None else self._kept(current.document, asked, row),
                outcome.predictions[number] if outcome.predictions else None,
                round(outcome.milliseconds, 3),
                outcome.status,
                outcome.problem,
                asked.tag,
            )
            for number, row in enumerate(rows)
        ]

    def _kept(self, document: Experiment, asked: Asked, row: Any) -> str:
        if document.privacy.omitted or document.privacy.hashed:
            return json.dumps(privacy.kept(row, document.privacy, self._secret))
        # One record is its body.
        return asked.body.decode() if not asked.batch and isinstance(row, dict) else to_json(row).decode()

    def _shadow(self, document: Experiment, asked: Asked, records: Sequence[Record], live: Variant) -> None:
        """Let all challengers score what was asked, later."""

        def job() -> None:
            answers = [
                answer
                for challenger in document.variants
                if challenger.name != live.name
                for answer in side_answers(records, self._ask(document, challenger, asked), "shadow")
            ]
            self.ledger.append(Entry(side_answers=answers, on_down=document.on_ledger_down))

        self.shadows.offer(job, len(records))


def side_answers(records: Sequence[Record], outcome: Outcome, kind: str) -> list[SideAnswer]:
    """What a variant said of rows that are on record as others' answers."""
    now = stamp(datetime.now(UTC))
    return [
        SideAnswer(
            record.id,
            kind,
            outcome.variant.name,
            now,
            outcome.served.get("x-model-name"),
            outcome.served.get("x-model-version"),
            outcome.served.get("x-model-digest"),
            outcome.predictions[number] if outcome.predictions else None,
            round(outcome.milliseconds, 3),
            outcome.status,
            outcome.problem,
        )
        for number, record in enumerate(records)
    ]


def _side_answers_of(piece: Piece, records: Sequence[Record], kind: str) -> list[SideAnswer]:
    """What another variant said of the rows of a piece, which are on record as others' answers."""
    now = stamp(datetime.now(UTC))
    served = (piece.headers.get(f"x-model-{each}") for each in ("name", "version", "digest"))
    name, version, digest = served
    return [
        SideAnswer(
            record.id,
            kind,
            piece.variant,
            now,
            name,
            version,
            digest,
            outcome.prediction,
            round(piece.milliseconds, 3),
            status,
            _told_of(outcome.problem, status),
        )
        for record, outcome, status in zip(records, piece.outcomes, piece.statuses, strict=True)
    ]


def _assigned(current: Current, asked: Asked) -> Assignment:
    """The variant of a request, which may be forced; raises Invalid where that is none."""
    if asked.forced is None:
        return current.assign(asked.unit)
    return Assignment(_forced(current.document, asked.forced), None)


def _told_of(problem: ProblemDetails | None, status: int) -> str | None:
    """A row's problem as the ledger has it; what a model says of its values is not kept."""
    if problem is None:
        return None
    return f"the model answered {status}" if REFUSED <= status < FAILED else problem["detail"]


def _forced(document: Experiment, name: str) -> Variant:
    try:
        return document.variant(name)
    except KeyError:
        names = ", ".join(variant.name for variant in document.variants)
        detail = f"X-Force-Variant takes the name of a variant, of {names}, not {name[:40]!r}"
        raise Invalid(detail, errors=[FieldError("/X-Force-Variant", "enum", detail, name)]) from None


def limits_of(document: Experiment) -> Limits:
    """What an experiment bears of its variants."""
    return Limits(
        document.connect_timeout_seconds,
        document.first_byte_timeout_seconds,
        document.timeout_seconds,
        document.eject_after_failures,
    )


def _understood(variant: Variant, dialect: Dialect, rows: int | None, answer: Answer) -> Outcome:
    """What an answer says; raises BadGateway where it is no answer to what was asked.

    Args:
        variant: that answered.
        dialect: in which it was asked.
        rows: how many it was asked about; None where that could not be told.
        answer: as it came.
    """
    served: dict[str, str | None] = {}
    headers: Headers = []
    json_length: str | None = None
    for name, value in answer.headers:
        lower = name.lower()
        if lower not in OURS:
            headers.append((name, value))
        if lower.startswith("x-model-"):
            served[lower] = value
        elif lower == JSON_LENGTH:
            json_length = value
    outcome = Outcome(variant, answer.status, headers, answer.body, served=served)
    if answer.status == OK:
        try:
            said = dialect.heard(answer.body, json_length)
            outcome.predictions = dialect.understand(said, rows)
        except NoPrediction as error:
            raise _bad(variant, f"answered {error}") from None
        if "x-model-version" not in served:
            outcome.served = served | named_in(said)
    elif answer.status < REFUSED:
        raise _bad(variant, f"answered {answer.status}")
    else:
        outcome.problem = f"the model answered {answer.status}"
    return outcome


def _failed(variant: Variant, asked: Asked, problem: Problem) -> Outcome:
    status, headers, body = told(problem, asked.request_id, asked.dialect)
    return Outcome(variant, status, headers, body, problem=problem.detail)


def told(problem: Problem, request_id: str, dialect: Dialect | None = None) -> tuple[int, Headers, bytes]:
    """A problem as its caller is told: RFC 9457, or as the dialect has it."""
    headers = list(problem.headers.items())
    if dialect and dialect.refuse:
        body, status = dialect.refuse(problem)
        return status, [("Content-Type", "application/json"), *headers], to_json(body) + b"\n"
    body = problem.to_json(request_id)
    return problem.status, [("Content-Type", PROBLEM_JSON), *headers], to_json(body) + b"\n"


def _bad(variant: Variant, what: str) -> BadGateway:
    return BadGateway(f"variant {variant.name} {what}", variant=variant.name)


def fingerprint(asked: Asked) -> str:
    """Of what a request asks: another one must not come with the same Idempotency-Key."""
    return hashlib.sha256(b"%b\n%b" % (asked.path.encode(), asked.body)).hexdigest()


def _reply(asked: Asked, asked_at: str, outcome: Outcome, headers: Headers) -> Reply | None:
    # What failed may be tried again with the same key.
    if outcome.status >= FAILED:
        return None
    return Reply(
        str(asked.idempotency_key),
        fingerprint(asked),
        asked.request_id,
        asked_at,
        outcome.status,
        json.dumps(headers),
        outcome.body,
    )


def replayed(reply: Reply, asked: Asked) -> Answered:
    """The first answer to a request with an Idempotency-Key.

    Raises:
        Conflict: that was another request.
    """
    if reply.fingerprint != fingerprint(asked):
        raise Conflict("this Idempotency-Key came with another request before")
    headers = [(str(name), str(value)) for name, value in json.loads(reply.headers)]
    return Answered(reply.status, [*headers, ("Idempotency-Replayed", "true")], reply.body)
