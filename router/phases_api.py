"""Phases over REST: which models answered since when, and what a change would end.

| address | what it tells |
| --- | --- |
| `GET /v1/phases` | all phases, with what was recorded in each; `?tag=` narrows the counts |
| `POST /v1/phases/next` | what a change would end, and what goes on or begins by it; nothing is changed |

`GET /v1/verdict?phase=` has the verdict on each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from flask import Blueprint
from pydantic import Field
from typing_extensions import TypedDict  # typing's own is not read by pydantic before Python 3.12

from router import query
from router.answers import ModelDetails, Next
from router.experiment import Experiment, ExperimentError, Name, Part, read
from router.experiment_api import CHANGES, Authorize, valid
from router.experiments import Current, Experiments, Following, NotPossible, promoting
from router.fold import Fold
from router.openapi import CALLERS
from router.phases import Book, Model, Phase, serving_on
from runoff import web
from runoff.operations import describe
from runoff.problems import Conflict, Invalid, NotFound, Unavailable

# A change that is only asked about names nothing in its address that could be missing.
ERRORS = tuple(each for each in CHANGES if each is not NotFound)


class PhaseDetails(TypedDict):
    """A phase: since when, which models, by which versions of the document, and what was recorded in it.

    `because` is what was another in the phase before. Requests are those that count; `outcomes` are those of
    them whose outcome is known.
    """

    phase: int
    experiment: str
    begun: str
    in_force: bool
    versions: list[int]
    mode: str | None
    metric: str | None
    models: dict[str, ModelDetails]
    because: list[str]
    requests: int
    outcomes: int


class PhaseList(TypedDict):
    """All phases, oldest first; `in_force` is the number of the present one, null until it has a row."""

    in_force: int | None
    phases: list[PhaseDetails]


class Serving(Part):
    """A version that a variant's service is to serve."""

    model: Annotated[str, Field(max_length=128)] | None = None
    version: Annotated[str, Field(max_length=128)] | None = None
    digest: Annotated[str, Field(max_length=64)] | None = None


class Asked(Part):
    """A change: another document, a variant that is promoted, versions that are released by variant."""

    document: dict[str, Any] | None = None
    promote: Name | None = None
    models: Mapping[Name, Serving] = Field(default_factory=dict)


class History:
    """The phases of a router, with what was recorded in them, and what would come next."""

    def __init__(self, experiments: Experiments, fold: Fold) -> None:
        self._experiments = experiments
        self._fold = fold

    def now(self) -> Current | None:
        """The experiment in force, read from the database; raises DatabaseDown."""
        return self._experiments.current()

    def listed(self, current: Current, tag: str | None) -> PhaseList:
        """All phases; raises DatabaseDown."""
        self._fold.catch_up()
        now = self._fold.phases.of_series(current.series)
        counts = self._fold.by_phase(tag)
        documents = self._experiments.by_series()
        every = self._fold.phases.all()
        before: list[Phase | None] = [None, *every[:-1]]
        return {
            "in_force": now.number if now else None,
            "phases": [
                _told(each, now, earlier, documents, counts.get(each.number, (0, 0)))
                for each, earlier in zip(every, before, strict=True)
            ],
        }

    def foreseen(
        self, current: Current, document: Experiment | None = None, models: Mapping[str, Model] | None = None
    ) -> Next:
        """What becomes of the phase in force where a document comes into force, or models are released.

        Raises:
            DatabaseDown: the database cannot be read.
        """
        self._fold.catch_up()
        every = self._fold.phases.all()
        now = self._fold.phases.of_series(current.series)
        document = document or current.document
        series, attempt = self._experiments.series_of(document)
        serving = dict(now.models) if now else {}
        if series != current.series:
            last = self._fold.phases.of_series(series) if series else None
            goes_on = serving_on(serving, current.document.services, document.services)
            serving = {**(last.models if last else {}), **goes_on}
        found = Book(every).find(series, {**serving, **(models or {})}) if series else None
        counts = self._fold.by_phase(None)
        left, entered = (counts.get(each.number, (0, 0))[1] if each else 0 for each in (now, found))
        stays = bool(now and found and now.number == found.number)
        return {
            "leaves": None if stays or now is None else now.number,
            "outcomes": left,
            "enters": found.number if found else None,
            "enters_outcomes": entered,
            "says": _says(now, found, left, entered, attempt if series is None else 1),
        }


def _says(now: Phase | None, found: Phase | None, left: int, entered: int, attempt: int) -> str:
    if now is None:
        return "Nothing was recorded yet that this could end."
    if found and found.number == now.number:
        return f"Phase {now.number} goes on, with its {_outcomes(left)}."
    told = f"{_outcomes(left)[:1].upper()}{_outcomes(left)[1:]} {'stays' if left == 1 else 'stay'}"
    told += f" with phase {now.number}, "
    if found:
        return told + f"and phase {found.number} goes on, with its {_outcomes(entered)}."
    told += "and a new phase begins."
    if attempt > 1:
        told += f" It is judged at half of the risk of the rules before, the {attempt - 1}. for this split."
    return told


def _outcomes(count: int) -> str:
    return f"{count:,} outcome" + ("" if count == 1 else "s")


def blueprint(following: Following, history: History, authorize: Authorize) -> Blueprint:
    """The addresses above.

    Args:
        following: the experiment in force.
        history: its phases.
        authorize: lets callers in.
    """
    api = Blueprint("phases", __name__)

    @api.get("/v1/phases")
    @describe(*CALLERS, Unavailable, tag="verdict", query={"tag": {"type": "string"}})
    def phases() -> tuple[PhaseList, dict[str, str]]:
        """Which models answered since when, by which split and rules, and what was recorded."""
        authorize("read")
        return history.listed(following.now(), query.tag()), {"Cache-Control": "no-cache"}

    @api.post("/v1/phases/next")
    @describe(*ERRORS, tag="verdict", takes=Asked, example={"promote": "B"})
    def foresee() -> Next:
        """What a change would end, and what it would go on with; nothing is changed."""
        authorize("read")
        asked = valid(Asked, web.json_body(), Invalid)
        # Whoever has just changed something sees it, whichever process answers.
        current = history.now() or following.now()
        try:
            document = read(asked.document) if asked.document is not None else current.document
            if asked.promote is not None:
                document = promoting(document, asked.promote)
        except ExperimentError as error:
            raise Invalid(str(error), errors=error.errors) from None
        except NotPossible as error:
            raise Conflict(str(error)) from None
        models = {name: Model(**each.model_dump()) for name, each in asked.models.items()}
        return history.foreseen(current, document, models)

    return api


def _told(
    phase: Phase,
    now: Phase | None,
    before: Phase | None,
    documents: Mapping[int, tuple[Experiment | None, Sequence[int]]],
    counts: tuple[int, int],
) -> PhaseDetails:
    document, versions = documents.get(phase.series, (None, ()))
    return {
        "phase": phase.number,
        "experiment": phase.experiment,
        "begun": phase.begun,
        "in_force": now is not None and now.number == phase.number,
        "versions": list(versions),
        "mode": document.mode if document else None,
        "metric": document.decision.metric if document else None,
        "models": models_told(phase),
        "because": _because(phase, before, documents),
        "requests": counts[0],
        "outcomes": counts[1],
    }


def models_told(phase: Phase | None) -> dict[str, ModelDetails]:
    """Who answers for each variant in a phase."""
    return {
        name: {"model": each.model, "version": each.version, "digest": each.digest}
        for name, each in sorted(phase.models.items() if phase else ())
    }


def _because(
    phase: Phase,
    before: Phase | None,
    documents: Mapping[int, tuple[Experiment | None, Sequence[int]]],
) -> list[str]:
    """What is another in a phase than in the one before it."""
    if before is None:
        return ["the first one"]
    found = []
    if phase.series != before.series:
        (mine, _), (its, _) = (documents.get(each.series, (None, ())) for each in (phase, before))
        if mine and its and mine.splits_like(its):
            found.append("other rules of decision")
        else:
            found.append("another split")
    for name, model in sorted(phase.models.items()):
        old = before.models.get(name)
        if old and old.identity != model.identity:
            found.append(f"{name} serves {named(model)} instead of {named(old)}")
    return found


def named(model: Model) -> str:
    """A model in words."""
    return model.version or (model.digest or "")[:12] or model.model or "what tells no version"
