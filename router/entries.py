"""What the ledger is given to write: rows that belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from runoff.problems import wrong_parameter

MAX_KEY = 128


class Record(NamedTuple):
    """One routed row, in the order of the table's columns; they are described there."""

    id: str
    request_id: str
    row: int
    time: str
    experiment: str
    experiment_version: int
    allocation: int
    variant: str
    answered_by: str | None
    propensity: float | None
    unit: str | None
    model: str | None
    version: str | None
    digest: str | None
    features: str | None
    prediction: float | None
    latency_ms: float
    status: int
    problem: str | None
    tag: str | None


class SideAnswer(NamedTuple):
    """What another variant said of a row, in the order of the table's columns."""

    prediction_id: str
    kind: str
    name: str
    time: str
    model: str | None
    version: str | None
    digest: str | None
    prediction: float | None
    latency_ms: float | None
    status: int
    problem: str | None


class Reply(NamedTuple):
    """The whole answer to a request with an Idempotency-Key, in the order of the table's columns."""

    idempotency_key: str
    fingerprint: str
    request_id: str
    time: str
    status: int
    headers: str
    body: bytes


@dataclass(frozen=True)
class Entry:
    """What is written together or not at all.

    `on_down` is what is done with it while the database is away: it is refused, or waits on this machine's
    disk. One with a reply is refused in any case: nobody can tell then whether its key came before.
    """

    records: Sequence[Record] = ()
    side_answers: Sequence[SideAnswer] = ()
    reply: Reply | None = None
    on_down: Literal["refuse", "spool"] = "refuse"

    def renamed(self, number: int) -> Entry:
        """The same under other ids, `<id>~<number>`."""
        ids = {record.id: f"{record.id}~{number}" for record in self.records}
        return replace(
            self,
            records=[record._replace(id=ids[record.id]) for record in self.records],
            side_answers=[
                answer._replace(prediction_id=ids.get(answer.prediction_id, answer.prediction_id))
                for answer in self.side_answers
            ],
        )


def checked_key(text: str | None) -> str | None:
    """An Idempotency-Key, as a header tells it, if there is one; raises Malformed where it is none."""
    if text is not None and not (0 < len(text) <= MAX_KEY and text.isprintable()):
        raise wrong_parameter("Idempotency-Key", "pattern", f"1 to {MAX_KEY} characters", text)
    return text
