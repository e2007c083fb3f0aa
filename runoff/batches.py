"""Batches in files and streams: NDJSON, CSV, Parquet and Arrow, in and out, in constant memory.

Rows are read, predicted and answered a thousand at a time. Each has an id of its own, `<request id>/<row>`,
and what is wrong with one is told in its place; the rest goes on. Where nothing more can be read, that is
told in the place of the row that would have come next. The whole batch is answered from one version.
`FORMS`, at the end of this page, is the table of what is spoken.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import IO, TYPE_CHECKING, Any

from pydantic_core import from_json
from werkzeug.datastructures import MIMEAccept

from runoff.dialects import of_csv
from runoff.problems import (
    Invalid,
    Malformed,
    NotAcceptable,
    Problem,
    ProblemDetails,
    TooLarge,
    UnsupportedMediaType,
)
from runoff.prototype import Prototype

if TYPE_CHECKING:
    import pyarrow as pa

    from runoff.live import Ready

CHUNK_ROWS = 1000
BLOCK_BYTES = 65_536
# One row of text must not be longer than this, or a body without line breaks would have to be kept.
MAX_LINE_BYTES = 1_000_000
# A Parquet file is read from its end, and so kept whole, on disk.
MAX_FILE_BYTES = 100_000_000

NDJSON = "application/x-ndjson"
CSV = "text/csv"
PARQUET = "application/vnd.apache.parquet"
ARROW = "application/vnd.apache.arrow.stream"

# What a spreadsheet would run as a formula, https://owasp.org/www-community/attacks/CSV_Injection
FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Unread:
    """A row that could not even be read."""

    problem: Problem


@dataclass(frozen=True)
class Outcome:
    """What came of one row: a probability, or a problem."""

    id: str
    prediction: float | None
    class_: int | None
    problem: ProblemDetails | None


@dataclass(frozen=True)
class Form:
    """One form of a batch.

    `read` gives the rows of a body in chunks, `write` the bytes of an answer from those of its outcomes.
    """

    media_type: str
    read: Callable[[ReadAhead, Prototype], Iterator[list[Any]]]
    write: Callable[[Iterable[list[Outcome]], bool], Iterator[bytes]]


def form_of(media_type: str) -> Form | None:
    """The form that a Content-Type names; None where it is none of a batch."""
    return next((form for form in FORMS if form.media_type == media_type), None)


def accepted(accept: MIMEAccept, asked: Form) -> Form:
    """The form of the answer, by the Accept header: that of the request, where the caller takes it.

    Raises:
        NotAcceptable: the caller takes none that there is.
    """
    if not accept or accept.quality(asked.media_type):
        return asked
    chosen = form_of(accept.best_match([form.media_type for form in FORMS]) or "")
    if chosen is None:
        raise NotAcceptable(f"a batch can be answered as {', '.join(form.media_type for form in FORMS)}")
    return chosen


def answer(
    body: IO[bytes], ready: Ready, asked: Form, answered: Form, *, request_id: str, threshold: float | None
) -> Iterator[bytes]:
    """Predict the rows of a body, and give the bytes of the answer as they are known.

    Args:
        body: the request's body, not read yet.
        ready: the version to answer from.
        asked: the form of the body.
        answered: the form of the answer.
        request_id: of which the rows' ids are made.
        threshold: of the class; None where no classes are asked for.

    Raises:
        Malformed: the body cannot be read at all.
        UnsupportedMediaType: a form needs pyarrow, which is not installed.
        TooLarge: a file is longer than MAX_FILE_BYTES.
    """
    chunks = asked.read(ReadAhead(body), ready.reader.prototype)
    # The first chunk is read now: what is wrong with the whole of a body is a problem of the request.
    first = next(chunks, None)
    if first is None:
        raise Malformed("the body holds no rows")

    def outcomes() -> Iterator[list[Outcome]]:
        row = 0
        chunk: list[Any] | None = first
        while chunk is not None:
            yield _predict(chunk, ready, request_id, row, threshold)
            row += len(chunk)
            try:
                chunk = next(chunks, None)
            except Problem as problem:
                yield [_refused(f"{request_id}/{row}", problem)]
                return

    return answered.write(outcomes(), threshold is not None)


def _predict(
    rows: list[Any], ready: Ready, request_id: str, first: int, threshold: float | None
) -> list[Outcome]:
    """Predict a chunk at once, or if something is wrong with it, row by row."""

    def outcome(number: int, prediction: float) -> Outcome:
        class_ = None if threshold is None else int(prediction >= threshold)
        return Outcome(f"{request_id}/{first + number}", prediction, class_, None)

    try:
        if not any(type(row) is Unread for row in rows):
            predictions, _ = ready.predict(ready.reader.read(rows, at=""))
            return [outcome(number, prediction) for number, prediction in enumerate(predictions)]
    except Invalid:
        pass
    found = []
    for number, row in enumerate(rows):
        try:
            if isinstance(row, Unread):
                raise row.problem
            (prediction,), _ = ready.predict(ready.reader.read([row], at=""))
            found.append(outcome(number, prediction))
        except Problem as problem:
            found.append(_refused(f"{request_id}/{first + number}", problem))
    return found


def _refused(row_id: str, problem: Problem) -> Outcome:
    return Outcome(row_id, None, None, problem.to_json(row_id))


class ReadAhead:
    """A body that is taken in as fast as it comes, by a thread, and kept on disk until it is read.

    Many clients send all that they have before they read anything. If the answer were written while they do
    not read, and the body not taken in while the answer is written, both sides would wait for ever.
    """

    def __init__(self, body: IO[bytes]) -> None:
        self._body = body
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the last reference to it)
        self._changed = threading.Condition()
        self._written = self._taken = 0
        self._ended = False
        self._error: Exception | None = None
        threading.Thread(target=self._take_in, name="read-ahead", daemon=True).start()

    def read(self, size: int) -> bytes:
        """Up to so many bytes, as soon as there are any; none at the end.

        Raises:
            Malformed: the body broke off.
        """
        with self._changed:
            while self._taken == self._written and not self._ended:
                self._changed.wait()
            if self._taken == self._written:
                if self._error:
                    raise Malformed(f"the body broke off: {self._error}")
                return b""
            self._file.seek(self._taken)
            block = self._file.read(min(size, self._written - self._taken))
            self._taken += len(block)
            if self._taken == self._written:
                # All is read: the file begins anew, and stays as small as the reader is quick.
                self._file.truncate(0)
                self._taken = self._written = 0
            return block

    def _take_in(self) -> None:
        try:
            while block := self._body.read(BLOCK_BYTES):
                with self._changed:
                    self._file.seek(self._written)
                    self._file.write(block)
                    self._written += len(block)
                    self._changed.notify()
        # Whatever a server raises for a connection that is gone.
        except Exception as error:
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify()


def _lines(body: ReadAhead) -> Iterator[bytes]:
    """The lines of a body, without their ends, in the memory that a block and a line take."""
    rest = b""
    while block := body.read(BLOCK_BYTES):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
        if len(rest) > MAX_LINE_BYTES:
            raise TooLarge(f"a row is longer than {MAX_LINE_BYTES:,} bytes; nothing after it is read")
    if rest:
        yield rest


def _chunked(rows: Iterable[Any]) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    try:
        for row in rows:
            chunk.append(row)
            if len(chunk) == CHUNK_ROWS:
                yield chunk
                chunk = []
    except Problem:
        # What was read before it is answered first.
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


# NDJSON, https://github.com/ndjson/ndjson-spec


def _read_ndjson(body: ReadAhead, _prototype: Prototype) -> Iterator[list[Any]]:
    return _chunked(_from_json(line) for line in _lines(body) if line.strip())


def _from_json(line: bytes) -> Any:
    try:
        return from_json(line)
    except ValueError as error:
        return Unread(Malformed(f"the row is not JSON: {error}"))


def _write_ndjson(chunks: Iterable[list[Outcome]], classes: bool) -> Iterator[bytes]:
    for chunk in chunks:
        yield b"".join(_json_line(outcome, classes) for outcome in chunk)


def _json_line(outcome: Outcome, classes: bool) -> bytes:
    said: dict[str, Any] = {"id": outcome.id}
    if outcome.problem:
        said["problem"] = outcome.problem
    else:
        said["prediction"] = outcome.prediction
        if classes:
            said["class"] = outcome.class_
    return json.dumps(said).encode() + b"\n"


# CSV, RFC 4180, with a header; a row is a line


def _read_csv(body: ReadAhead, prototype: Prototype) -> Iterator[list[Any]]:
    features = {feature.name: feature for feature in prototype.features}

    def rows() -> Iterator[Any]:
        lines = (line for line in _lines(body) if line.strip())
        first = next(lines, b"")
        header = _cells(first.removeprefix(codecs.BOM_UTF8))
        if isinstance(header, Unread):
            raise header.problem
        for line in lines:
            cells = _cells(line)
            if isinstance(cells, list) and len(cells) != len(header):
                cells = Unread(Malformed(f"the row has {len(cells)} values, the header {len(header)}"))
            if isinstance(cells, Unread):
                yield cells
                continue
            yield {
                name: of_csv(cell, features[name]) if name in features else cell
                for name, cell in zip(header, cells, strict=True)
            }

    return _chunked(rows())


def _cells(line: bytes) -> list[str] | Unread:
    try:
        return next(csv.reader([line.decode().rstrip("\r")], strict=True), [])
    except (csv.Error, UnicodeDecodeError) as error:
        return Unread(Malformed(f"the row is not CSV: {error}"))


def _write_csv(chunks: Iterable[list[Outcome]], classes: bool) -> Iterator[bytes]:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(["id", "prediction", *(["class"] if classes else []), "problem"])
    for chunk in chunks:
        for each in chunk:
            problem = no_formula(each.problem["detail"]) if each.problem else ""
            writer.writerow(
                [no_formula(each.id), each.prediction, *([each.class_] if classes else []), problem]
            )
        yield text.getvalue().encode()
        text.seek(0)
        text.truncate()


def no_formula(text: str) -> str:
    """A text as a cell of CSV; an apostrophe keeps a spreadsheet from taking it for a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


# Parquet and Arrow, by pyarrow


def _pyarrow() -> Any:
    try:
        import pyarrow  # noqa: PLC0415 (an extra)
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError:
        raise UnsupportedMediaType(
            "this service was installed without pyarrow: send NDJSON or CSV, or install runoff[arrow]"
        ) from None
    return pyarrow


def _read_parquet(body: ReadAhead, _prototype: Prototype) -> Iterator[list[Any]]:
    pa = _pyarrow()
    with tempfile.TemporaryFile() as file:
        while block := body.read(BLOCK_BYTES):
            file.write(block)
            if file.tell() > MAX_FILE_BYTES:
                raise TooLarge(f"a Parquet file may have {MAX_FILE_BYTES:,} bytes; Arrow and NDJSON stream")
        file.seek(0)
        try:
            for batch in pa.parquet.ParquetFile(file).iter_batches(CHUNK_ROWS):
                yield batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise Malformed(f"the body is not Parquet: {error}") from None


def records_of_parquet(content: bytes, prototype: Prototype) -> list[Any]:
    """The records of a Parquet file that is in memory.

    Raises:
        Malformed: it is none.
        UnsupportedMediaType: pyarrow is not installed.
    """
    return list(chain.from_iterable(_read_parquet(ReadAhead(io.BytesIO(content)), prototype)))


def _read_arrow(body: ReadAhead, _prototype: Prototype) -> Iterator[list[Any]]:
    pa = _pyarrow()
    try:
        with pa.ipc.open_stream(pa.PythonFile(_Readable(body), "r")) as stream:
            for batch in stream:
                for start in range(0, batch.num_rows, CHUNK_ROWS):
                    yield batch.slice(start, CHUNK_ROWS).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise Malformed(f"the body is no Arrow stream: {error}") from None


class _Readable(io.RawIOBase):
    """A request's body as the file object that pyarrow asks for."""

    def __init__(self, body: ReadAhead) -> None:
        self._body = body

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """So many bytes, fewer only at the end: pyarrow does not ask again."""
        content = bytearray()
        while len(content) != size and (
            block := self._body.read(size - len(content) if size > 0 else BLOCK_BYTES)
        ):
            content += block
        return bytes(content)


def _table(chunk: list[Outcome], classes: bool) -> pa.RecordBatch:
    pa = _pyarrow()
    columns: dict[str, Any] = {
        "id": pa.array([each.id for each in chunk], pa.string()),
        "prediction": pa.array([each.prediction for each in chunk], pa.float64()),
    }
    if classes:
        columns["class"] = pa.array([each.class_ for each in chunk], pa.int64())
    problems = [each.problem["detail"] if each.problem else None for each in chunk]
    columns["problem"] = pa.array(problems, pa.string())
    return pa.RecordBatch.from_pydict(columns)


def _write_parquet(chunks: Iterable[list[Outcome]], classes: bool) -> Iterator[bytes]:
    pa = _pyarrow()
    return _written(
        chunks,
        classes,
        lambda sink, schema: pa.parquet.ParquetWriter(sink, schema),  # noqa: PLW0108
    )


def _write_arrow(chunks: Iterable[list[Outcome]], classes: bool) -> Iterator[bytes]:
    pa = _pyarrow()
    return _written(chunks, classes, pa.ipc.new_stream)


def _written(
    chunks: Iterable[list[Outcome]], classes: bool, open_writer: Callable[[Any, Any], Any]
) -> Iterator[bytes]:
    """What a writer of pyarrow writes, as it writes it."""
    sink = io.BytesIO()
    writer: Any = None
    for chunk in chunks:
        batch = _table(chunk, classes)
        writer = writer or open_writer(sink, batch.schema)
        writer.write_batch(batch)
        yield _taken(sink)
    if writer:
        writer.close()
    yield _taken(sink)


def _taken(sink: io.BytesIO) -> bytes:
    content = sink.getvalue()
    sink.seek(0)
    sink.truncate()
    return content


FORMS = (
    #    Content-Type  read by         written by
    Form(NDJSON,       _read_ndjson,   _write_ndjson),
    Form(CSV,          _read_csv,      _write_csv),
    Form(PARQUET,      _read_parquet,  _write_parquet),
    Form(ARROW,        _read_arrow,    _write_arrow),
)  # fmt: skip
