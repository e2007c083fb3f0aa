"""The experiment: its variants, their weights, and which of them a request goes to."""

from __future__ import annotations

import os
import random
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, HttpUrl, ValidationError, model_validator

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "experiment.toml"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,40}$")]
ServiceUrl = Annotated[HttpUrl, AfterValidator(lambda url: str(url).rstrip("/"))]


class ExperimentError(Exception):
    """The experiment's document cannot be used; the message names the field and the rule."""


class Variant(BaseModel):
    """One model service, and its part in the experiment. Weights are relative to their sum."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    role: Literal["champion", "challenger"] = "challenger"
    url: ServiceUrl
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Experiment(BaseModel):
    """The document: which variants there are, and which share of the traffic each gets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 2.0
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _variants_agree(self) -> Experiment:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError("two variants have the same name")
        if sum(variant.weight for variant in self.variants) <= 0:
            raise ValueError("at least one weight must be above 0")
        if sum(variant.role == "champion" for variant in self.variants) > 1:
            raise ValueError("at most one variant is the champion")
        return self

    @property
    def shares(self) -> dict[str, float]:
        """The share of the traffic that each variant is to get, by name; they sum to 1."""
        total = sum(variant.weight for variant in self.variants)
        return {variant.name: variant.weight / total for variant in self.variants}

    def assign(self, rng: random.Random) -> Variant:
        """Draw the variant for a request: each with the probability of its share."""
        return rng.choices(self.variants, [variant.weight for variant in self.variants])[0]


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
        text = _expand(path.read_text(encoding="utf-8"), environment)
        return Experiment.model_validate(tomllib.loads(text))
    except OSError as error:
        raise ExperimentError(f"{path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ExperimentError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        rules = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'experiment'}: {each['msg']}, got {each['input']!r}"
            for each in error.errors(include_url=False)
        )
        raise ExperimentError(f"{path}: {rules}") from error


def _expand(text: str, environment: Mapping[str, str]) -> str:
    """Put in environment variables: `${NAME:-default}`, as shells and compose files write them."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: environment.get(found[1]) or found[2], text)
