"""What the router answers, as its OpenAPI document tells it."""

from __future__ import annotations

from typing import Any, NotRequired

from typing_extensions import TypedDict  # typing's own is not read by pydantic before Python 3.12

# "try" is no name in Python, and this form takes any.
Index = TypedDict(
    "Index", {"what": str, "experiment": str, "variants": dict[str, float], "try": dict[str, str]}
)


class RoutedPrediction(TypedDict):
    """A row that was routed; what it would not count with has no propensity.

    `phase` is 0 until the row was counted; `assigned` are the rows that chance assigned for themselves, the
    first of units in a phase, and of batches. `variant` is the one it was assigned to; `answered_by` is
    another one, where that failed. `outcome` is the one that holds.
    """

    cursor: int
    id: str
    request_id: str
    row: int
    time: str
    experiment: str
    experiment_version: int
    allocation: int
    phase: int
    assigned: bool
    variant: str
    answered_by: str | None
    propensity: float | None
    unit: str | None
    model: str | None
    version: str | None
    digest: str | None
    features: Any
    prediction: float | None
    latency_ms: float
    status: int
    problem: str | None
    tag: str | None
    outcome: float | None


class SideAnswer(TypedDict):
    """What a shadow said of a row, a variant that failed before another answered, or a replay.

    `phase` is the row's, or where a shadow's model is another one than that knows, its own.
    """

    cursor: int
    prediction_id: str
    phase: int
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


class ReportedOutcome(TypedDict):
    """What somebody reported of a row; the last one holds."""

    outcome: float
    time: str
    reported: str
    correction: bool


class WholePrediction(RoutedPrediction):
    """A row with all that belongs to it."""

    side_answers: list[SideAnswer]
    outcomes: list[ReportedOutcome]


class Page(TypedDict):
    """Some rows, oldest first. `next` is the `since` of the next page."""

    predictions: list[RoutedPrediction]
    next: int
    more: bool


class ToldOfOutcome(TypedDict):
    """What came of one report."""

    id: str | None
    status: str
    detail: NotRequired[str]


class ToldOfOutcomes(TypedDict):
    """What came of each report."""

    outcomes: list[ToldOfOutcome]


class Latency(TypedDict):
    """Quantiles in ms, within 1 %."""

    p50: float
    p95: float
    p99: float


class ShadowStats(TypedDict):
    """What a variant answered in the shadow of another, which callers never saw."""

    requests: int
    answered: int
    refused: int
    failed: int
    mean_prediction: float | None
    latency_ms: Latency | None


class VariantStats(TypedDict):
    """What happened to the requests of a variant.

    Its share is of the `share_of` units, batches and single requests that chance assigned by the weights in
    force; the interval holds however often one looks. Where its newest request failed, `failing` says why,
    and `failing_request` is the id of that request. What it answered unseen is in `shadow`, if it did.
    """

    name: str
    role: str | None
    url: str
    weight: float
    configured_share: float
    model: str | None
    version: str | None
    requests: int
    share: float | None
    share_interval: tuple[float, float] | None
    share_of: int
    answered: int
    refused: int
    failed: int
    failing: str | None
    failing_request: str | None
    mean_prediction: float | None
    latency_ms: Latency | None
    labelled: int
    shadow: ShadowStats | None


class Stats(TypedDict):
    """What the ledger holds, in numbers. `cursor` is that of the newest row which they count.

    `since` is the hour from which on they count; None where they count all. `tags` always does.
    """

    as_of: str
    experiment: str
    version: int
    allocation: int
    mode: str
    paused: bool
    held: bool
    since: str | None
    requests: int
    cursor: int
    variants: list[VariantStats]
    tags: dict[str, int]


class ModelDetails(TypedDict):
    """The model that answers for a variant, as far as its service tells."""

    model: str | None
    version: str | None
    digest: str | None


class Next(TypedDict):
    """What a change leaves, and what it goes on with: numbers of phases, and the outcomes in them.

    `leaves` is null where there is nothing to leave, or the phase stays the same; `enters` is the phase that
    goes on then, null where a new one begins. `says` is that in a sentence.
    """

    leaves: int | None
    outcomes: int
    enters: int | None
    enters_outcomes: int
    says: str
