"""Batches in files and streams through the router, in constant memory: NDJSON, CSV, Parquet and Arrow.

A batch is assigned to one variant as a whole. It is read in pieces; each is asked of the variant, or of the
fallback where that fails, put on record, and only then answered. A bad row has its problem in its place, and
the rest goes on; so have the rows of a piece that nobody answers. Reading and writing is what a model service
does itself (`runoff/batches.py`), so that a client cannot tell the router from it.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import IO, Any

from pydantic_core import from_json, to_json

from router.database import NOT_RECORDED, DatabaseDown
from router.dialects import Dialect, NoPrediction, NotTranslated, guessed
from router.upstream import Answer, BadGateway
from runoff.batches import ARROW, CSV, NDJSON, PARQUET, Form, Outcome, ReadAhead, Unread
from runoff.operations import JSON
from runoff.problems import Invalid, Malformed, Problem, Unavailable
from runoff.prototype import Prototype

OK, FAILED = 200, 500
# By what a service says that something is wrong with what it was sent: malformed, too much, invalid.
OF_ITS_ROWS = (400, 413, 422)
# How often a piece is halved to find its bad rows. When they are found, or it was too often, the rows that
# are left share a problem.
MOST_HALVINGS = 100
# Whoever asks with it gets what Form.read makes of each form, and of CSV nothing but texts.
NO_COLUMNS = Prototype(())

Rows = list[Any]
# What was said of one row: as a line of NDJSON has it, a prediction or a problem.
Said = Mapping[str, Any]
# Sends a body of a media type to the variant, and receives its answer; raises Problem.
Send = Callable[[bytes, str], Answer]


class Refused(Exception):
    """A variant refused all of a piece; `answer` is how."""

    def __init__(self, variant: str, answer: Answer) -> None:
        super().__init__(variant, answer.status)
        self.variant = variant
        self.answer = answer


@dataclass(frozen=True)
class Piece:
    """Some rows of a batch, and what came of them.

    Attributes:
        variant: the name of whom was asked.
        first: the number of its first row.
        rows: as they are kept; None for one that could not be read.
        outcomes: of each row.
        statuses: of each row.
        headers: what the variant says of itself, by names in lower case.
        milliseconds: how long it took to ask.
        before: what came of asking the one who failed, where it is another's answer.
    """

    variant: str
    first: int
    rows: Rows
    outcomes: list[Outcome]
    statuses: list[int]
    headers: Mapping[str, str]
    milliseconds: float
    before: Piece | None = None


class Asking:
    """Asks a variant about the pieces of a batch."""

    def __init__(self, variant: str, theirs: Dialect | None, form: Form, send: Send) -> None:
        """Make it.

        Args:
            variant: the name of the variant.
            theirs: the dialect that it speaks; None for one of ours, which takes batches.
            form: in which the batch came.
            send: sends something to it.
        """
        self._variant = variant
        self._theirs = theirs
        self._is_csv = form.media_type == CSV
        self._send = send
        self._halvings = 0

    def ask(self, rows: Rows) -> tuple[list[Said], Mapping[str, str]]:
        """What the variant says of each row, and its headers.

        Raises:
            Refused: it refuses all of them at once.
            Problem: it does not answer, or not to what was asked.
        """
        if self._theirs:
            self._halvings = MOST_HALVINGS
            return self._translated(self._theirs, rows)
        if self._is_csv:
            # What a cell is the model knows.
            answer = self._send(_as_csv(rows), CSV)
        else:
            answer = self._send(b"\n".join(_as_json(row) for row in rows), NDJSON)
        if answer.status != OK:
            raise Refused(self._variant, answer)
        try:
            said = [_heard(line) for line in answer.body.splitlines()]
        except (ValueError, TypeError, LookupError, AttributeError):
            raise self._bad("answered something that is no prediction") from None
        if len(said) != len(rows):
            raise self._bad(f"answered {len(said)} predictions for {len(rows)} rows")
        return said, _told(answer)

    def _translated(self, theirs: Dialect, rows: Rows) -> tuple[list[Said], Mapping[str, str]]:
        """Ask in another dialect, which has no word for one bad row: such are found by halving."""
        problem: Problem
        headers: Mapping[str, str] = {}
        try:
            asked = theirs.ask([self.kept(row) for row in rows])
            answer = self._send(_as_json(asked), JSON)
            headers = _told(answer)
            if answer.status == OK:
                found = theirs.understand(theirs.heard(answer.body, None), len(rows))
                return [{"prediction": each} for each in found], headers
            if answer.status not in OF_ITS_ROWS:
                raise Refused(self._variant, answer)
            problem = Invalid(f"variant {self._variant} refuses it: {answer.status}")
        except NotTranslated as error:
            problem = error
        except NoPrediction as error:
            raise self._bad(f"answered {error}") from None
        if len(rows) == 1 or not self._halvings:
            return [{"problem": problem}] * len(rows), headers
        self._halvings -= 1
        half = len(rows) // 2
        first, headers = self._translated(theirs, rows[:half])
        second, _ = self._translated(theirs, rows[half:])
        return [*first, *second], headers

    def kept(self, row: Any) -> Any:
        """A row as the ledger keeps it: in CSV nobody but the model knows the types of columns."""
        return {name: guessed(cell) for name, cell in row.items()} if self._is_csv else row

    def _bad(self, what: str) -> BadGateway:
        return BadGateway(f"variant {self._variant} {what}", variant=self._variant)

    def piece(self, rows: Rows, first: int, request_id: str) -> tuple[Piece, Problem | Refused | None]:
        """Ask about a piece of a batch; with what came of it why it failed as a whole, if it did."""
        began = time.perf_counter()
        readable = [row for row in rows if type(row) is not Unread]
        failed: Problem | Refused | None = None
        said: list[Said] = []
        headers: Mapping[str, str] = {}
        try:
            if readable:
                said, headers = self.ask(readable)
        except Problem as problem:
            failed = problem
            said = [{"problem": problem}] * len(readable)
        except Refused as refused:
            failed, headers = refused, _told(refused.answer)
            said = [{"problem": self._bad(f"answered {refused.answer.status}")}] * len(readable)
        answers = iter(said)
        outcomes: list[Outcome] = []
        statuses: list[int] = []
        for number, row in enumerate(rows, first):
            each = {"problem": row.problem} if type(row) is Unread else next(answers)
            outcome, status = _outcome(each, f"{request_id}/{number}")
            outcomes.append(outcome)
            statuses.append(status)
        kept = [None if type(row) is Unread else self.kept(row) for row in rows]
        milliseconds = 1000 * (time.perf_counter() - began)
        return Piece(self._variant, first, kept, outcomes, statuses, headers, milliseconds), failed


def answer(
    body: IO[bytes],
    asked: Form,
    answered: Form,
    asking: Asking,
    fallback: Asking | None = None,
    *,
    request_id: str,
    record: Callable[[Piece], None],
    classes: bool,
) -> tuple[Piece, Iterator[bytes]]:
    """Let a variant predict the rows of a body, and give the bytes of the answer as they are known.

    Args:
        body: the request's body, not read yet.
        asked: the form of the body.
        answered: the form of the answer.
        asking: asks the variant.
        fallback: asks another one, where that fails.
        request_id: of which the rows' ids are made.
        record: puts a piece on record; raises DatabaseDown.
        classes: whether classes are asked for.

    Returns:
        The first piece, and the answer.

    Raises:
        Malformed: the body cannot be read at all.
        TooLarge: a file is too long.
        UnsupportedMediaType: a form needs pyarrow, which is not installed.
        Refused: the variant refuses the first piece as a whole; that is on record.
        Problem: it fails at the first piece; that is on record.
        DatabaseDown: the first piece cannot be put on record.
    """

    def ask(rows: Rows, first: int) -> tuple[Piece, Problem | Refused | None]:
        piece, failed = asking.piece(rows, first, request_id)
        if fallback and failed and _status(failed) >= FAILED:
            instead, failed = fallback.piece(rows, first, request_id)
            piece = replace(instead, before=piece)
        return piece, failed

    chunks = _plain(asked.read(ReadAhead(body), NO_COLUMNS), asked)
    # The first piece is asked about now: what is wrong with the whole of a batch is a problem of the request.
    rows = next(chunks, None)
    if rows is None:
        raise Malformed("the body holds no rows")
    begun, failed = ask(rows, 0)
    record(begun)
    if failed:
        raise failed

    def outcomes() -> Iterator[list[Outcome]]:
        piece = begun
        while True:
            yield piece.outcomes
            number = piece.first + len(piece.rows)
            try:
                rows = next(chunks, None)
                if rows is None:
                    return
                piece, _ = ask(rows, number)
                record(piece)
            # Nothing more can be read, or put on record: that is told in the place of the next row.
            except Problem as problem:
                yield [_outcome({"problem": problem}, f"{request_id}/{number}")[0]]
                return
            except DatabaseDown:
                lost = Unavailable(NOT_RECORDED)
                yield [_outcome({"problem": lost}, f"{request_id}/{number}")[0]]
                return

    return begun, answered.write(outcomes(), classes)


def _status(failed: Problem | Refused) -> int:
    return failed.answer.status if isinstance(failed, Refused) else failed.status


def _heard(line: bytes) -> Said:
    """What a model of ours says of a row; raises ValueError, and others, where that is nothing."""
    said: Said = from_json(line)
    if isinstance(problem := said.get("problem"), dict):
        int(problem.get("status", 0))
    elif not math.isfinite(float(said["prediction"])):
        raise ValueError
    return said


def _outcome(said: Said, row_id: str) -> tuple[Outcome, int]:
    """What came of a row, with its id here, and its status."""
    problem = said.get("problem")
    if problem is None:
        return Outcome(row_id, float(said["prediction"]), said.get("class"), None), OK
    if isinstance(problem, Problem):
        return Outcome(row_id, None, None, problem.to_json(row_id)), problem.status
    details: Any = {
        "status": Invalid.status,
        "detail": "the model refuses it",
        **problem,
        "request_id": row_id,
    }
    return Outcome(row_id, None, None, details), int(details["status"])


def _plain(chunks: Iterator[Rows], form: Form) -> Iterator[Rows]:
    """Rows as JSON has them: in Parquet and Arrow there are dates, decimals and bytes."""
    if form.media_type in (PARQUET, ARROW):
        return (from_json(_as_json(chunk)) for chunk in chunks)
    return chunks


def _as_json(value: Any) -> bytes:
    # What is no number is told as such to the model, whose rule for it can name the column.
    return to_json(value, inf_nan_mode="constants", bytes_mode="base64", fallback=str)


def _as_csv(rows: Rows) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return text.getvalue().encode()


def _told(answer: Answer) -> Mapping[str, str]:
    return {name.lower(): value for name, value in answer.headers}
