"""How many outcomes and days a decision takes, by each design, from what was seen so far or is assumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, get_args

from flask import Blueprint, request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import TypedDict  # typing's own is not read by pydantic before Python 3.12

from router.experiment import field_errors, told
from router.experiments import Current, Following
from router.keys import Scope
from router.openapi import CALLERS
from router.verdicts import Verdicts, rules
from runoff.operations import describe
from runoff.problems import Conflict, Malformed, Unavailable
from verdict import plan
from verdict.contrast import FIELDS
from verdict.evidence import Design, Evidence
from verdict.moments import Moments

DAY = 86_400.0
# Points of the curve of a design, by outcomes.
POINTS = 40


class Asked(BaseModel):
    """What is planned for. What is not given is taken from what was seen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    difference: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    metric: Literal["brier", "log-loss", "profit"] | None = None
    power: Annotated[float, Field(gt=0.5, lt=1)] = 0.8
    tag: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$")] = "real"
    per_day: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    labelled: Annotated[float, Field(gt=0, le=1)] | None = None
    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    variance: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    pair_variance: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class Planned(TypedDict):
    """What a decision takes by one design: outcomes, and days until they have matured.

    `fixed` is for one look at the end, and the number to declare as planned_outcomes; `expected` on average,
    looking all the time; `likely` what suffices with the power asked for. `chances` are of having decided, by
    outcomes and by days.
    """

    design: str
    fixed: int
    expected: int
    likely: int
    days_fixed: float
    days_expected: float
    days_likely: float
    chances: list[tuple[float, float, float]]


class Plans(TypedDict):
    """What was assumed, and what a decision takes by each design of which enough is known.

    `share` is the challenger's of what it and the champion get in a split; of several the least. `alpha` is
    that of one challenger: several share it.
    """

    metric: str
    difference: float
    power: float
    alpha: float
    per_day: float
    labelled: float
    maturity_days: float
    share: float
    variance: float | None
    pair_variance: float | None
    designs: list[Planned]
    missing: list[str]


def plans(asked: Asked, current: Current, evidence: Evidence) -> Plans:
    """The plan of each design.

    Raises:
        Conflict: too little was seen, and it is not given.
    """
    document = current.document
    metric = asked.metric or document.decision.metric
    per_day, labelled = asked.per_day or _per_day(evidence), asked.labelled or _labelled(evidence)
    if not per_day or not labelled:
        lacking = "requests" if not per_day else "outcomes"
        option = "per_day" if not per_day else "labelled"
        raise Conflict(f"there are no {lacking} yet to plan by: say {option}")
    single = asked.variance or _variance(evidence, metric)
    paired = asked.pair_variance if asked.pair_variance is not None else _pair_variance(evidence, metric)
    variances: Mapping[Design, float | None] = {"shadow": paired, "split": single, "bandit": single}
    maturity = document.matures_after.total_seconds() / DAY
    sample = document.shadow.sample if document.mode == "shadow" else 1.0
    # As the verdict judges: each challenger at its share of the risk (Bonferroni).
    alpha = rules(document, current.attempt).alpha / max(len(evidence.challengers), 1)
    champion, challenger = (1 - asked.share, asked.share) if asked.share else _shares(current, evidence)
    both = champion + challenger
    parts: Mapping[Design, float] = {"shadow": sample, "split": both, "bandit": 1.0}
    found: list[Planned] = []
    for design in get_args(Design):
        variance = variances[design]
        if variance is None:
            continue
        rate = per_day * labelled * parts[design]
        planned = plan.plan(
            design,
            asked.difference,
            (variance, variance),
            outcomes_per_day=rate,
            maturity_days=maturity,
            share=challenger / both,
            floor=document.bandit.floor,
            alpha=alpha,
            power=asked.power,
        )
        found.append(_told(planned, rate, maturity, alpha, asked.power))
    missing = [
        f"{design}: no outcomes of {'pairs' if design == 'shadow' else 'a variant'} were seen, and no"
        f" {'pair_variance' if design == 'shadow' else 'variance'} is given"
        for design, variance in variances.items()
        if variance is None
    ]
    if not found:
        raise Conflict("; ".join(missing))
    return {
        "metric": metric,
        "difference": asked.difference,
        "power": asked.power,
        "alpha": alpha,
        "per_day": per_day,
        "labelled": labelled,
        "maturity_days": maturity,
        "share": challenger / both,
        "variance": single,
        "pair_variance": paired,
        "designs": found,
        "missing": missing,
    }


def blueprint(following: Following, verdicts: Verdicts, admit: Callable[[Scope], Any]) -> Blueprint:
    """The address of the plan; the arguments are those of the verdict's."""
    api = Blueprint("plan", __name__)

    @api.get("/v1/plan")
    @describe(
        *(*CALLERS, Conflict, Unavailable),
        tag="verdict",
        answer=Plans,
        query={
            name: {key: value for key, value in schema.items() if key != "title"}
            for name, schema in Asked.model_json_schema()["properties"].items()
        },
        required=("difference",),
    )
    def tell() -> Plans:
        """How many outcomes and days a difference worth having takes to be found, by each design."""
        admit("read")
        try:
            asked = Asked.model_validate(request.args.to_dict())
        except ValidationError as error:
            errors = field_errors(error)
            raise Malformed(told(errors), errors=errors) from None
        current = following.now()
        tag = None if asked.tag == "all" else asked.tag
        return plans(asked, current, verdicts.evidence(current, tag, now=datetime.now(UTC)))

    return api


def _told(planned: plan.Plan, rate: float, maturity: float, alpha: float, power: float) -> Planned:
    stops = plan.stopping(alpha, power)
    curve: list[tuple[float, float, float]] = []
    for point in range(1, POINTS + 1):
        outcomes = planned.fixed * plan.FURTHEST * point / POINTS
        curve.append((outcomes, outcomes / rate + maturity, stops.chance(outcomes / planned.fixed)))
    return {
        "design": planned.design,
        "fixed": planned.fixed,
        "expected": planned.expected,
        "likely": planned.likely,
        "days_fixed": planned.days_fixed or 0.0,
        "days_expected": planned.days_expected or 0.0,
        "days_likely": planned.days_likely or 0.0,
        "chances": curve,
    }


def _shares(current: Current, evidence: Evidence) -> tuple[float, float]:
    """What the champion gets in a split, and the challenger with the least: as it is, or equal parts."""
    champion, *others = (current.weights[name] for name in (evidence.champion, *evidence.challengers))
    if current.document.mode in ("split", "canary") and champion and others and min(others):
        return champion, min(others)
    equal = 1 / max(len(others) + 1, 2)
    return equal, equal


def _per_day(evidence: Evidence) -> float:
    """Requests that callers sent, by day."""
    if evidence.first is None or evidence.last is None or evidence.last <= evidence.first:
        return 0.0
    names = (evidence.champion,) if evidence.design == "shadow" else tuple(evidence.arms)
    return sum(evidence.arm(name).requests for name in names) * DAY / (evidence.last - evidence.first)


def _labelled(evidence: Evidence) -> float:
    """Of the matured requests, those whose outcome is known."""
    mature = sum(arm.mature for arm in evidence.arms.values())
    return min(sum(arm.labelled for arm in evidence.arms.values()) / mature, 1.0) if mature else 0.0


def _variance(evidence: Evidence, metric: str) -> float | None:
    """Of one variant's score: the greatest that was seen."""
    seen = [getattr(arm, FIELDS[metric]) for arm in evidence.arms.values()]
    return _greatest(seen)


def _pair_variance(evidence: Evidence, metric: str) -> float | None:
    """Of the difference in score on one request: the greatest that was seen."""
    return _greatest([getattr(pair, FIELDS[metric]) for pair in (evidence.pairs or {}).values()])


def _greatest(seen: list[Moments | None]) -> float | None:
    return max((each.variance for each in seen if each and each.n >= 2), default=None)  # noqa: PLR2004
