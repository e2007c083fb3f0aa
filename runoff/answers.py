"""The forms of what a prediction service tells besides predictions.

mypy holds the views to them, and the OpenAPI document shows them.
"""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict  # typing's own is not read by pydantic before Python 3.12

Index = TypedDict("Index", {"what": str, "model": str, "version": str | None, "try": dict[str, str]})


class Evaluator(TypedDict):
    """What computes probabilities, and why it is scikit-learn, where it is."""

    name: str
    reason: str | None


class OurMetadata(TypedDict):
    """What Runoff knows of the version that answers."""

    model: str
    digest: str
    created: str
    evaluator: Evaluator
    release: dict[str, Any]
    record: dict[str, Any]


class Metadata(TypedDict):
    """What vetiver's clients read of a model."""

    user: OurMetadata
    version: str
    url: str | None
    required_pkgs: list[str]
    python_version: list[int | str]


class Ping(TypedDict):
    ping: Literal["pong"]


class Health(TypedDict):
    status: Literal["ready"]


class ModelNames(TypedDict):
    models: list[str]


class ModelReadiness(TypedDict):
    name: str
    ready: bool


class Server(TypedDict):
    """The server, as the Open Inference Protocol tells of it."""

    name: str
    version: str
    extensions: list[str]


class ServerLiveness(TypedDict):
    live: bool


class ServerReadiness(TypedDict):
    ready: bool
