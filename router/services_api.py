"""What the services behind the variants tell of their models, asked over their own REST API.

| address | what it tells |
| --- | --- |
| `GET /v1/variants/<variant>/versions` | the versions of the model, and which one is live |
| `GET /v1/variants/<variant>/versions/<version>` | one version |
| `GET /v1/variants/<variant>/versions/<version>/card` | its model card, HTML |
| `GET /v1/variants/<variant>/versions/<version>/reference` | how its training data were spread |
| `GET /v1/variants/<variant>/diff?from=…&to=…` | what tells two versions apart |
| `GET /v1/variants/<variant>/releases` | what was released, when, by whom and why |
| `POST /v1/variants/<variant>/releases`, `/rollback` | releases a version, or the one before |

The services themselves say who may release: by RUNOFF_OPERATOR_KEY. The router passes on the key with which
it was started, for callers whose key is an operator's here, and names them. They say by `If-Match` which
release was the newest when they looked: the ETag of `GET …/releases`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

from flask import Blueprint, Response, request

from router.experiment import Variant
from router.experiment_api import Authorize, Caller, PreconditionRequired
from router.experiments import Following
from router.keys import OPERATOR_KEY
from router.routing import limits_of
from router.upstream import Answer, Limits, Upstream
from runoff import web
from runoff.operations import JSON, describe
from runoff.problems import (
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    PreconditionFailed,
    Unauthorized,
    Unavailable,
)

# A release is tested before it is made, which takes a while.
SECONDS = Limits(connect=1.0, first_byte=30.0, total=30.0)
MAX_BY = 500

CHANGES = (
    *(Unauthorized, Forbidden, NotFound, Conflict, PreconditionFailed),
    *(Invalid, PreconditionRequired, Unavailable),
)


def blueprint(
    following: Following, upstream: Callable[[Variant], Upstream], authorize: Authorize
) -> Blueprint:
    """The addresses above.

    Args:
        following: the experiment in force.
        upstream: the service of a variant.
        authorize: lets callers in.
    """
    api = Blueprint("services", __name__, url_prefix="/v1/variants/<variant>")

    def named(variant: str) -> tuple[Upstream, str]:
        """The service of a variant, and the address of its model there."""
        document = following.now().document
        try:
            found = document.variant(variant)
        except KeyError:
            raise NotFound(f"the experiment has no variant named {variant[:40]}") from None
        service = upstream(found)
        return service, f"/v1/models/{quote(service.model(found.model, limits_of(document)), safe='')}"

    def ask(variant: str, path: str) -> Response:
        authorize("read")
        service, model = named(variant)
        query = f"?{urlencode(request.args)}" if request.args else ""
        passed_on = {
            name: value for name in ("Accept", "If-None-Match") if (value := request.headers.get(name))
        }
        limits = limits_of(following.now().document)
        return _passed_on(service.ask(model + path + query, b"", passed_on, limits, method="GET"))

    def change(variant: str, path: str) -> Response:
        caller = authorize("operator")
        expected = request.headers.get("If-Match")
        if not expected:
            raise PreconditionRequired(
                "say by the header If-Match which release was the newest: the ETag of GET …/releases"
            )
        asked = web.json_body()
        if not isinstance(asked, dict):
            raise Invalid("the body must be an object")
        service, model = named(variant)
        headers = {"Content-Type": JSON, "If-Match": expected}
        if key := os.environ.get(OPERATOR_KEY):
            headers["Authorization"] = f"Bearer {key}"
        body = json.dumps(asked | {"by": _by(asked.get("by"), caller)}).encode()
        return _passed_on(service.ask(model + path, body, headers, SECONDS))

    @api.get("/versions")
    @describe(Unauthorized, Forbidden, NotFound, Unavailable, tag="versions", answer=dict[str, Any])
    def versions(variant: str) -> Response:
        """The versions of the model behind a variant."""
        return ask(variant, "/versions")

    @api.get("/versions/<version>")
    @describe(Unauthorized, Forbidden, NotFound, Unavailable, tag="versions", answer=dict[str, Any])
    def version(variant: str, version: str) -> Response:
        """One version: its training record, what it takes, the digests of its files."""
        return ask(variant, f"/versions/{quote(version, safe='')}")

    @api.get("/versions/<version>/card")
    @describe(
        *(Unauthorized, Forbidden, NotFound, Unavailable), tag="versions", answer=str, media_type="text/html"
    )
    def card(variant: str, version: str) -> Response:
        """The model card of a version."""
        return ask(variant, f"/versions/{quote(version, safe='')}/card")

    @api.get("/versions/<version>/reference")
    @describe(Unauthorized, Forbidden, NotFound, Unavailable, tag="versions", answer=dict[str, Any])
    def reference(variant: str, version: str) -> Response:
        """How the training data of a version were spread."""
        return ask(variant, f"/versions/{quote(version, safe='')}/reference")

    @api.get("/diff")
    @describe(Unauthorized, Forbidden, NotFound, Unavailable, tag="versions", answer=dict[str, Any])
    def diff(variant: str) -> Response:
        """What tells two versions of a variant's model apart."""
        return ask(variant, "/diff")

    @api.get("/releases")
    @describe(Unauthorized, Forbidden, NotFound, Unavailable, tag="versions", answer=dict[str, Any])
    def releases(variant: str) -> Response:
        """What a variant's service serves, and what was ever released to it."""
        return ask(variant, "/releases")

    @api.post("/releases")
    @describe(
        *CHANGES,
        tag="versions",
        secured=True,
        answer=dict[str, Any],
    )
    def release(variant: str) -> Response:
        """Let a variant's service serve a version from now on, after a self-test."""
        return change(variant, "/releases")

    @api.post("/rollback")
    @describe(
        *CHANGES,
        tag="versions",
        secured=True,
        answer=dict[str, Any],
    )
    def rollback(variant: str) -> Response:
        """Let a variant's service serve what it served before."""
        return change(variant, "/rollback")

    return api


def _by(said: Any, caller: Caller) -> str:
    told = f"{said} ({caller.name})" if isinstance(said, str) and said.strip() else caller.name
    return told[:MAX_BY]


def _passed_on(answer: Answer) -> Response:
    kept = ("content-type", "etag", "cache-control", "www-authenticate")
    headers = [(name, value) for name, value in answer.headers if name.lower() in kept]
    return Response(answer.body, answer.status, headers)
