"""The experiment: one document that says which variants there are, and how requests are split between them.

Document: validated, and never changed; a change is a further version of it (`router/experiments.py`). Which
variant a request goes to by it is said in `router/assignment.py`, what moves its weights in
`router/controllers.py`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    HttpUrl,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from runoff.problems import FieldError
from verdict import evidence, money
from verdict.bandit import Weighting

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "experiment.toml"
DEFAULT_UNIT = "X-Unit-ID"

UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
SHORT_DURATION = re.compile(r"(\d+(?:\.\d+)?) ?([wdhms])")


def _spelt_out(value: Any) -> Any:
    if isinstance(value, str) and (found := SHORT_DURATION.fullmatch(value)) and len(found[1]) < 10:  # noqa: PLR2004
        return timedelta(**{UNITS[found[2]]: float(found[1])})
    return value


def _service_url(text: str) -> str:
    try:
        url = HttpUrl(text)
    except ValidationError as error:
        raise PydanticCustomError("format", "{detail}", {"detail": error.errors()[0]["msg"]}) from None
    if url.query is not None or url.fragment is not None:
        raise PydanticCustomError("format", "A service's URL takes no query and no fragment")
    return str(url).rstrip("/")


# Pydantic's own rule counts the valid items alone: one that is wrong would be told to be missing as well.
def _some(items: tuple[Any, ...]) -> tuple[Any, ...]:
    if not items:
        raise PydanticCustomError("minItems", "Needs at least one item")
    return items


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,40}$")]
# What stands in an address, or in a header: visible ASCII.
Visible = Annotated[str, Field(pattern=r"^[!-~]{1,128}$")]
Column = Annotated[str, Field(min_length=1, max_length=200)]
ServiceUrl = Annotated[str, AfterValidator(_service_url)]
Share = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=60)]
# "30d", "12h", "15m", or ISO 8601: "P30D", "PT12H".
Duration = Annotated[timedelta, BeforeValidator(_spelt_out), Field(ge=timedelta(0), le=timedelta(days=3650))]
Finite = Annotated[float, Field(allow_inf_nan=False)]
SomeTime = Annotated[Duration, Field(gt=timedelta(0))]

Mode = Literal["split", "shadow", "canary", "bandit"]

# Which traffic moves a canary or a bandit: that without a tag, that of any, or that of the tag of this name.
REAL, ALL = "real", "all"


class ExperimentError(Exception):
    """The experiment's document cannot be used; the message names the field and the rule.

    `errors` has each broken rule with a JSON pointer into the document; it is empty where there is none.
    """

    def __init__(self, message: str, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(message)
        self.errors = tuple(errors)


class Part(BaseModel):
    """A table of the document: it has no fields but its own, and does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Variant(Part):
    """One model service, and its part in the experiment.

    Weights are relative to their sum, and are those of the mode split: the other modes set them themselves.
    """

    name: Name
    role: Literal["champion", "challenger"] = "challenger"
    url: ServiceUrl
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    # What the service understands. One of Runoff understands all of them.
    dialect: Literal["runoff", "vetiver", "mlflow", "kserve-v1", "open-inference"] = "runoff"
    # The name by which the service knows its model, where a dialect's addresses hold it.
    model: Visible | None = None


class Shadow(Part):
    """Mode shadow: on which share of the requests the challengers are asked as well."""

    sample: Share = 1.0


class Gates(Part):
    """What a challenger may be worse by than the champion before a canary without guardrails goes back.

    Of the error rates the difference, of the latencies the ratio of their geometric means.
    """

    max_error_rate_difference: Annotated[float, Field(ge=0, le=1)] = 0.01
    max_latency_ratio: Annotated[float, Field(ge=1, le=1000)] = 1.5


class Canary(Part):
    """Mode canary: the shares that the challenger gets one after the other.

    Each is held for a while, and until both variants have had a number of requests in it.
    """

    steps: Annotated[tuple[Share, ...], Field(max_length=100), AfterValidator(_some)] = (
        0.01,
        0.05,
        0.25,
        0.5,
        1.0,
    )
    hold: SomeTime = timedelta(hours=1)
    min_requests: Annotated[int, Field(ge=1)] = 500
    traffic: Name = REAL
    gates: Gates = Gates()
    # Only say in the log what would be done.
    dry_run: bool = False


class Bandit(Part):
    """Mode bandit: Thompson sampling over the share of successes, in batches."""

    # The least share that each variant gets, whatever its chances.
    floor: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    update_interval: SomeTime = timedelta(hours=1)
    # The outcome that is a success: its reward is 1, that of the other 0.
    success: Literal[0, 1] = 1
    traffic: Name = REAL


class Guardrail(Part):
    """What must not become worse, by more than a margin in units of the metric."""

    name: Name
    # Of latency-p99 and the like, the ratio less 1.
    metric: Annotated[
        str, Field(pattern=r"^(error-rate|latency-p[1-9][0-9]?|calibration|brier|log-loss|profit)$")
    ]
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Costs(Part):
    """What a decision brings, by what becomes of it, in a unit of one's own; a cost is negative.

    Positive (p) is a decision where the score reaches the variant's threshold; it is true where the outcome
    is 1.
    """

    tp: Finite
    fp: Finite
    tn: Finite
    fn: Finite


class Segment(Part):
    """A part of the traffic by a column of the record: by its codes, or between cuts."""

    column: Column
    cuts: Annotated[tuple[Finite, ...], Field(max_length=20)] = ()


class Decision(Part):
    """By what it is decided which variant stays, declared before the start.

    | field | what it is |
    | --- | --- |
    | metric | brier, log-loss, or profit, which needs costs |
    | margin | differences below it do not matter, in units of the metric |
    | alpha | the probability that a winner is ever named where there is none |
    | planned_outcomes | for how many one plans: there intervals are tightest; they hold at any number |
    | weighting | where shares change, how times count: overlap, or inverse (docs/verdict.md) |
    | max_gap | by how much scores of a row can differ, checked to 0.01: intervals of pairs are exact by it |
    | spread | the standard deviation of differences that one plans for: exact intervals are tightest there |
    | thresholds | by variant, the score from which on a decision is positive; else by the costs, else 0.5 |
    | segments, sensitive | parts for which the difference is shown, and between which rates are compared |
    | selective | whether the served score decides who can ever have an outcome |
    """

    metric: Literal["brier", "log-loss", "profit"] = "brier"
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    alpha: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    planned_outcomes: Annotated[int, Field(ge=1)] = 10_000
    weighting: Weighting = "overlap"
    max_gap: Share | None = None
    spread: Annotated[float, Field(gt=0, le=2)] | None = None
    costs: Costs | None = None
    thresholds: dict[Name, Annotated[float, Field(ge=0, le=1)]] = {}
    segments: Annotated[tuple[Segment, ...], Field(max_length=10)] = ()
    sensitive: Annotated[tuple[Segment, ...], Field(max_length=5)] = ()
    selective: bool = False

    def __hash__(self) -> int:
        # Of a dict there is none.
        return hash(self.model_dump_json())

    def threshold(self, variant: str) -> float:
        """The score from which on a decision of a variant is positive."""
        if variant in self.thresholds:
            return self.thresholds[variant]
        if self.costs is None:
            return 0.5
        return money.threshold(evidence.Costs(**self.costs.model_dump()))


class Privacy(Part):
    """What of a record's columns is not kept: left out, or hashed."""

    omitted: tuple[Column, ...] = ()
    hashed: tuple[Column, ...] = ()


class Experiment(Part):
    """The document.

    | mode | who answers |
    | --- | --- |
    | split | each variant its share, by the weights |
    | shadow | the champion; the challengers score a sample of the same requests, unseen by the caller |
    | canary | the champion, and one challenger with a share that grows by steps while its guardrails agree |
    | bandit | each variant by the probability that it is the best, and at least a floor |
    """

    name: Name
    mode: Mode = "split"
    # The header with the id of the unit that is to see one variant alone.
    unit: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")] = DEFAULT_UNIT
    # Two experiments with different salts assign independently of each other.
    salt: Annotated[str, Field(min_length=1, max_length=128, default_factory=lambda data: data["name"])]
    # How old a request must be for its outcome to count: until then, those that come early mislead. 0 says
    # that all are known at once. As long as it is not declared no verdict is trusted.
    maturity: Duration | None = None
    # What a caller waits at most; within that, for a connection and for the first byte of the answer.
    timeout_seconds: Seconds = 2.0
    connect_timeout_seconds: Seconds = 1.0
    first_byte_timeout_seconds: Seconds = 60.0
    # After so many failures in a row a service is left alone for a while, and is then probed.
    eject_after_failures: Annotated[int, Field(ge=1)] = 5
    # The variant that answers where the assigned one fails.
    fallback: Name | None = None
    # While the database is away: refuse, or answer and keep the record on disk until it is back.
    on_ledger_down: Literal["refuse", "spool"] = "refuse"
    variants: Annotated[tuple[Variant, ...], Field(max_length=100), AfterValidator(_some)]
    shadow: Shadow = Shadow()
    canary: Canary = Canary()
    bandit: Bandit = Bandit()
    guardrails: tuple[Guardrail, ...] = ()
    decision: Decision = Decision()
    privacy: Privacy = Privacy()

    @model_validator(mode="after")
    def _fields_agree(self) -> Experiment:
        self._check_variants()
        self._check_weights()
        if self.fallback is not None and not any(each.name == self.fallback for each in self.variants):
            raise _broken("/fallback", "enum", "names no variant of this experiment", self.fallback)
        if list(self.canary.steps) != sorted(set(self.canary.steps)):
            raise _broken("/canary/steps", "order", "each step must be greater than the one before it", None)
        if self.mode == "bandit" and self.bandit.floor * len(self.variants) >= 1:
            rule = f"times the number of variants, {len(self.variants)}, must stay below 1"
            raise _broken("/bandit/floor", "maximum", rule, self.bandit.floor)
        names = [guardrail.name for guardrail in self.guardrails]
        if len(set(names)) < len(names):
            raise _broken("/guardrails", "uniqueItems", "two guardrails have the same name", None)
        self._check_decision()
        if both := set(self.privacy.omitted) & set(self.privacy.hashed):
            raise _broken("/privacy", "not", "a column cannot be both omitted and hashed", min(both))
        return self

    def _check_decision(self) -> None:
        decision = self.decision
        for name in decision.thresholds:
            if not any(each.name == name for each in self.variants):
                raise _broken("/decision/thresholds", "enum", "names no variant of this experiment", name)
        if decision.metric == "profit" and decision.costs is None:
            raise _broken("/decision/costs", "required", "is needed where profit decides", None)
        if any(each.metric == "profit" for each in self.guardrails) and decision.costs is None:
            raise _broken("/decision/costs", "required", "is needed where a guardrail is of profit", None)
        if decision.costs and not (
            decision.costs.tn > decision.costs.fp and decision.costs.tp > decision.costs.fn
        ):
            rule = "being right must bring more than being wrong: tn more than fp, tp more than fn"
            raise _broken("/decision/costs", "minimum", rule, None)
        for where in ("segments", "sensitive"):
            for place, segment in enumerate(getattr(decision, where)):
                if list(segment.cuts) != sorted(set(segment.cuts)):
                    rule = "each cut must be greater than the one before it"
                    raise _broken(f"/decision/{where}/{place}/cuts", "order", rule, None)

    def _check_variants(self) -> None:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            twice = max(names, key=names.count)
            raise _broken("/variants", "uniqueItems", "two variants have the same name", twice)
        champions = sum(variant.role == "champion" for variant in self.variants)
        if champions > 1:
            raise _broken("/variants", "maxContains", "at most one variant is the champion", champions)
        if self.mode in ("shadow", "canary") and not champions:
            raise _broken("/variants", "contains", f"the mode {self.mode} needs a champion", 0)
        if self.mode != "split" and len(names) < 2:  # noqa: PLR2004
            rule = f"the mode {self.mode} needs at least two variants"
            raise _broken("/variants", "minItems", rule, len(names))
        if self.mode == "canary" and len(names) > 2:  # noqa: PLR2004
            rule = "the mode canary takes one champion and one challenger"
            raise _broken("/variants", "maxItems", rule, len(names))

    def _check_weights(self) -> None:
        if self.mode != "split":
            return
        for place, variant in enumerate(self.variants):
            if variant.weight is None:
                raise _broken(f"/variants/{place}/weight", "required", "is needed in the mode split", None)
        if sum(variant.weight or 0 for variant in self.variants) <= 0:
            raise _broken("/variants", "contains", "at least one weight must be above 0", 0)

    @property
    def champion(self) -> Variant | None:
        """The variant that the others must beat; None where the document names none."""
        return next((variant for variant in self.variants if variant.role == "champion"), None)

    @property
    def challengers(self) -> tuple[Variant, ...]:
        """All others."""
        return tuple(variant for variant in self.variants if variant.role == "challenger")

    def variant(self, name: str) -> Variant:
        """A variant by its name; raises KeyError where there is none."""
        return {variant.name: variant for variant in self.variants}[name]

    @property
    def matures_after(self) -> timedelta:
        """How old a request must be for its outcome to count; not declared, it counts at once."""
        return self.maturity or timedelta(0)

    @property
    def moving(self) -> str | None:
        """The tag of the traffic that moves a canary or a bandit, "real" for none; None is any traffic."""
        traffic = self.bandit.traffic if self.mode == "bandit" else self.canary.traffic
        return None if traffic == ALL else traffic

    @property
    def shares(self) -> dict[str, float]:
        """The share of the traffic that each variant gets to begin with, by name; they sum to 1."""
        if self.mode == "split":
            weights = {variant.name: variant.weight or 0.0 for variant in self.variants}
        elif self.mode == "bandit":
            weights = dict.fromkeys((variant.name for variant in self.variants), 1.0)
        else:
            first = self.canary.steps[0] if self.mode == "canary" else 0.0
            weights = {each.name: 1 - first if each == self.champion else first for each in self.variants}
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}

    @property
    def services(self) -> dict[str, list[str | None]]:
        """By variant what answers for it: another one there is another model, whatever it says."""
        return {each.name: [each.url, each.dialect, each.model] for each in self.variants}

    def splits_like(self, other: Experiment) -> bool:
        """Whether it splits traffic between the same services in the same way.

        What was recorded under the one may be pooled with what is recorded under the other.
        """
        return all(getattr(self, each) == getattr(other, each) for each in SPLITTING)

    def decides_like(self, other: Experiment) -> bool:
        """Whether it is decided by the same rules; segments are shown, and decide nothing.

        A maturity that one of both does not declare makes no difference: without it no verdict is trusted.
        """
        undeclared = self.maturity is None or other.maturity is None
        return self._deciding == other._deciding and (undeclared or self.maturity == other.maturity)

    @property
    def _deciding(self) -> tuple[Any, ...]:
        shown: dict[str, Any] = {"segments": (), "sensitive": (), "thresholds": {}}
        thresholds = {each.name: self.decision.threshold(each.name) for each in self.variants}
        guardrails = sorted((each.metric, each.margin) for each in self.guardrails)
        return self.decision.model_copy(update=shown), thresholds, guardrails

    def promoting(self, name: str) -> Experiment:
        """The document in which a variant is the champion, and has all the traffic.

        A shadow experiment stays one; of the others a split is made. Raises KeyError where there is no such
        variant.
        """
        chosen = self.variant(name)
        variants = tuple(
            each.model_copy(
                update={
                    "role": "champion" if each == chosen else "challenger",
                    "weight": float(each == chosen),
                }
            )
            for each in self.variants
        )
        mode: Mode = "shadow" if self.mode == "shadow" else "split"
        return self.model_copy(update={"variants": variants, "mode": mode})


# The fields by which traffic is split, and between whom.
SPLITTING = ("name", "mode", "unit", "salt", "variants", "shadow", "canary", "bandit")

# Pydantic's names of rules, as JSON Schema calls them.
KEYWORDS = {
    "missing": "required",
    "extra_forbidden": "additionalProperties",
    "literal_error": "enum",
    "string_pattern_mismatch": "pattern",
    "string_too_short": "minLength",
    "string_too_long": "maxLength",
    "too_short": "minItems",
    "too_long": "maxItems",
    "greater_than": "exclusiveMinimum",
    "greater_than_equal": "minimum",
    "less_than": "exclusiveMaximum",
    "less_than_equal": "maximum",
    "time_delta_parsing": "format",
}


def load(path: Path | None = None, environment: Mapping[str, str] = os.environ) -> Experiment:
    """Read the experiment's document.

    Args:
        path: a TOML file, by default what RUNOFF_EXPERIMENT says, else `experiment.toml` in this checkout.
        environment: where `${NAME:-default}` in the file is looked up.

    Raises:
        ExperimentError: the file is not there, is not TOML, or breaks a rule.
    """
    path = path or Path(environment.get("RUNOFF_EXPERIMENT") or DEFAULT_CONFIG)
    try:
        return read(tomllib.loads(_expand(path.read_text(encoding="utf-8"), environment)))
    except OSError as error:
        raise ExperimentError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ExperimentError(f"{path} is not TOML: {error}") from error
    except ExperimentError as error:
        raise ExperimentError(f"{path}: {error}", error.errors) from error


def read(document: Any) -> Experiment:
    """Validate a document that was decoded from JSON or TOML.

    Raises:
        ExperimentError: it breaks a rule, or several.
    """
    try:
        return Experiment.model_validate(document)
    except ValidationError as error:
        errors = field_errors(error)
        raise ExperimentError(told(errors), errors) from error


def field_errors(error: ValidationError) -> list[FieldError]:
    """What pydantic found wrong, in the form that all our errors have."""
    # Of a document without a name the salt, which is the name by default, is wrong as well.
    every = error.errors(include_url=False)
    return [_field_error(each) for each in every if each["type"] != "default_factory_not_called"]


def told(errors: Sequence[FieldError]) -> str:
    """Broken rules in a line."""
    fields = (each.pointer[1:].replace("/", ".") for each in errors)
    rules = (f"{each.detail}, got {each.to_json()['value']!r}" for each in errors)
    return "; ".join(f"{field}: {rule}" if field else rule for field, rule in zip(fields, rules, strict=True))


def _broken(pointer: str, rule: str, detail: str, value: Any) -> PydanticCustomError:
    """A rule between fields that is broken."""
    context = {"pointer": pointer, "detail": detail, "value": value}
    return PydanticCustomError(rule, "{detail}", context)


def _field_error(error: ErrorDetails) -> FieldError:
    """One of pydantic's errors, or of those between fields."""
    context = error.get("ctx", {})
    if "pointer" in context:
        return FieldError(context["pointer"], error["type"], context["detail"], context["value"])
    escaped = (str(place).replace("~", "~0").replace("/", "~1") for place in error["loc"])
    pointer = "".join(f"/{place}" for place in escaped)
    rule = KEYWORDS.get(
        error["type"], "type" if error["type"].endswith(("_type", "_parsing")) else error["type"]
    )
    value = None if error["type"] == "missing" else error["input"]
    return FieldError(pointer, rule, error["msg"], value)


def _expand(text: str, environment: Mapping[str, str]) -> str:
    """Put in environment variables: `${NAME:-default}`, as shells and compose files write them."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: environment.get(found[1]) or found[2], text)
