"""The verdict over REST: which model stays, as JSON or as a page of Markdown."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NotRequired

from flask import Blueprint, Response, request
from typing_extensions import TypedDict  # typing's own is not read by pydantic before Python 3.12

from router import query
from router.answers import ModelDetails
from router.experiments import Following
from router.keys import Scope
from router.openapi import CALLERS
from router.phases_api import models_told
from router.verdicts import Verdicts
from runoff.operations import JSON, describe
from runoff.problems import NotFound, Unavailable
from verdict import report

MARKDOWN = "text/markdown"
# What is judged unless somebody asks for more: nobody is to take a simulation for the world.
REAL = "real"
ALL = "all"
MAX_PHASE = 2**31 - 1


class Told(TypedDict):
    """The verdict, which is explained in `docs/verdict.md`; `tag` is the traffic that it is on.

    `declared`, where it is asked for, is all that a verdict takes besides the rows: who has those of
    `GET /v1/predictions` can count again.
    """

    experiment: str
    version: int
    phase: int | None
    models: dict[str, ModelDetails]
    as_of: str
    tag: str
    replay: str | None
    decision: str
    variant: str | None
    sentence: str
    reasons: list[str]
    design: str
    champion: str
    metric: str
    alpha: float
    margin: float
    estimand: str
    risk: str
    checks: list[Any]
    comparisons: list[Any]
    gaps: list[Any]
    reliability: list[Any]
    traffic: list[Any]
    requests: int
    labelled: int
    other_traffic: dict[str, int]
    declared: NotRequired[dict[str, Any]]


def blueprint(
    following: Following,
    verdicts: Verdicts,
    tags: Callable[[str], dict[str, int]],
    admit: Callable[[Scope], Any],
) -> Blueprint:
    """The address of the verdict.

    Args:
        following: the experiment in force.
        verdicts: judges it.
        tags: how many requests an experiment has of each tag.
        admit: raises where the caller's key does not open a scope.
    """
    api = Blueprint("verdict", __name__)

    @api.get("/v1/verdict")
    @describe(
        *CALLERS,
        NotFound,
        Unavailable,
        tag="verdict",
        answer=Told,
        more={MARKDOWN: {"schema": {"type": "string"}}},
        query={
            "tag": {"type": "string", "default": REAL, "description": "of which traffic; all for any"},
            "phase": {
                "type": "integer",
                "minimum": 1,
                "description": "one of /v1/phases; else that in force",
            },
            "replay": {"type": "string", "description": "a replay set, to compare with the champion"},
            "declared": {"type": "boolean", "description": "true adds all that it takes besides the rows"},
        },
    )
    def verdict() -> Response | tuple[dict[str, Any], dict[str, str]]:
        """Which variant stays, and what that rests on."""
        admit("read")
        tag = query.tag() or REAL
        replay = request.args.get("replay")
        number = query.whole("phase", 1, MAX_PHASE, default=0)
        current, phase = verdicts.of_phase(number) if number else (following.now(), None)
        if phase is None:
            phase = verdicts.in_force(current)
        now = datetime.now(UTC)
        # As it is told: who counts again does so as of the same moment.
        now = now.replace(microsecond=now.microsecond // 1000 * 1000)
        judged, evidence = verdicts.verdict(
            current, None if tag == ALL else tag, replay=replay, phase=phase, now=now
        )
        if request.accept_mimetypes.best_match([JSON, MARKDOWN], JSON) == MARKDOWN:
            return Response(report.markdown(judged), mimetype=MARKDOWN)
        name = current.document.name
        others = {} if tag == ALL else {other: n for other, n in tags(name).items() if other != tag}
        # What callers sent: in shadow mode challengers score the champion's requests once more.
        asked = [evidence.champion] if evidence.design == "shadow" else [*evidence.arms]
        arms = [evidence.arm(each) for each in asked]
        told = {
            "experiment": name,
            "version": current.version,
            "phase": phase.number if phase else None,
            "models": models_told(phase),
            "as_of": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "tag": tag,
            "replay": replay,
            **judged.to_dict(),
            "requests": sum(arm.requests for arm in arms),
            "labelled": sum(arm.labelled for arm in arms),
            "other_traffic": others,
        }
        if request.args.get("declared") == "true":
            told["declared"] = verdicts.declared(current, replay=replay, phase=phase).to_dict()
        return told, {"Cache-Control": "no-cache"}

    return api
