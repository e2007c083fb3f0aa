"""The ledger as a file, in constant memory: NDJSON, CSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from runoff.batches import no_formula
from runoff.problems import NotAcceptable

Rows = Iterator[Sequence[Mapping[str, Any]]]

# Of the columns of a file, in their order; features stay JSON in one, since models differ in theirs, and so
# does what others said of the row, since there may be any number of them.
COLUMNS = (
    *("cursor", "id", "request_id", "row", "time", "experiment", "experiment_version", "allocation"),
    "phase",
    *("variant", "answered_by", "propensity", "unit", "model", "version", "digest", "features"),
    *("prediction", "latency_ms", "status", "problem", "tag", "outcome", "side_answers"),
)
NESTED = ("features", "side_answers")
NUMBERS = {"propensity", "prediction", "latency_ms", "outcome"}
WHOLE = {"cursor", "row", "experiment_version", "allocation", "phase", "status"}


def ndjson(pages: Rows) -> Iterator[bytes]:
    """A line of JSON for each record."""
    for page in pages:
        yield "".join(json.dumps(row) + "\n" for row in page).encode()


def in_csv(pages: Rows) -> Iterator[bytes]:
    """A line for each record, after one of the columns' names."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for page in pages:
        for row in page:
            writer.writerow([_cell(row[name]) for name in COLUMNS])
        yield text.getvalue().encode()
        text.seek(0)
        text.truncate()
    yield text.getvalue().encode()


def _cell(value: Any) -> Any:
    if isinstance(value, dict | list):
        return json.dumps(value)
    return no_formula(value) if isinstance(value, str) else value


def parquet(pages: Rows) -> Iterator[bytes]:
    """One file, of which each page is a row group.

    Raises:
        NotAcceptable: pyarrow is not installed.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 (an extra)
        from pyarrow import parquet as files  # noqa: PLC0415
    except ImportError:
        raise NotAcceptable("Parquet needs pyarrow, which is not installed here") from None
    types = {name: pa.float64() if name in NUMBERS else pa.int64() for name in NUMBERS | WHOLE}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])
    return _row_groups(pages, schema, pa, files)


def _row_groups(pages: Rows, schema: Any, pa: Any, files: Any) -> Iterator[bytes]:
    sink = _Sink()
    with files.ParquetWriter(sink, schema) as writer:
        for page in pages:
            rows = [
                {name: json.dumps(row[name]) if name in NESTED else row[name] for name in COLUMNS}
                for row in page
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema))
            yield sink.taken()
    yield sink.taken()


class _Sink(io.RawIOBase):
    """A file whose content is taken away while it is written."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        self._pieces.append(bytes(piece))
        self._size += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._size

    def close(self) -> None:
        """The writer closes it, and what it wrote last is still to be taken."""

    def taken(self) -> bytes:
        content, self._pieces = b"".join(self._pieces), []
        return content


# By media type, how a file is written.
FORMS: Mapping[str, Callable[[Rows], Iterator[bytes]]] = {
    "application/x-ndjson": ndjson,
    "text/csv": in_csv,
    "application/vnd.apache.parquet": parquet,
}
