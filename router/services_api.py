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
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

from flask import Blueprint, Response, request

from router.experiment import Variant
from router.experiment_api import CHANGES, WHY, Authorize, PreconditionRequired, Text, Why, signed, valid
from router.experiments import Following
from router.keys import OPERATOR_KEY
from router.openapi import CALLERS, IDEMPOTENCY_KEY, REPLAYED, SERVICES
from router.routing import limits_of
from router.upstream import Answer, Limits, Upstream
from runoff import web
from runoff.management_api import IF_MATCH, TAGGED
from runoff.operations import JSON, describe
from runoff.problems import Invalid, NotAcceptable, NotFound, PreconditionFailed

# A release is tested before it is made, which takes a while.
SECONDS = Limits(connect=1.0, first_byte=30.0, total=30.0)

_describe = partial(describe, *(*CALLERS, *SERVICES, NotFound), tag="versions", answer=dict[str, Any])
_describe_change = partial(
    describe,
    *(*CHANGES, *SERVICES, PreconditionFailed, PreconditionRequired),
    tag="versions",
    secured=True,
    answer=dict[str, Any],
    headers=REPLAYED,
    request_headers=lambda: {"If-Match": IF_MATCH, "Idempotency-Key": IDEMPOTENCY_KEY},
    required=("If-Match",),
)


class Release(Why):
    """The version that is to be served: its id, how that begins, or newest."""

    version: Text


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

    def change(variant: str, path: str, form: type[Why]) -> Response:
        caller = authorize("operator")
        asked = valid(form, web.json_body(), Invalid)
        expected = request.headers.get("If-Match")
        if not expected:
            raise PreconditionRequired(
                "say which release was the newest by the header If-Match: the ETag of"
                f" GET /v1/variants/{variant[:40]}/releases"
            )
        service, model = named(variant)
        headers = {"Content-Type": JSON, "If-Match": expected}
        if key := os.environ.get(OPERATOR_KEY):
            headers["Authorization"] = f"Bearer {key}"
        body = json.dumps(asked.model_dump() | {"by": signed(asked, caller)}).encode()
        return _passed_on(service.ask(model + path, body, headers, SECONDS))

    @api.get("/versions")
    @_describe()
    def versions(variant: str) -> Response:
        """The versions of the model behind a variant."""
        return ask(variant, "/versions")

    @api.get("/versions/<version>")
    @_describe(statuses=(200, 304))
    def version(variant: str, version: str) -> Response:
        """One version: its training record, what it takes, the digests of its files."""
        return ask(variant, f"/versions/{quote(version, safe='')}")

    @api.get("/versions/<version>/card")
    @_describe(
        NotAcceptable,
        statuses=(200, 304),
        answer=str,
        media_type="text/html",
        more={"text/markdown": {"schema": {"type": "string"}}},
    )
    def card(variant: str, version: str) -> Response:
        """The model card of a version."""
        return ask(variant, f"/versions/{quote(version, safe='')}/card")

    @api.get("/versions/<version>/reference")
    @_describe(statuses=(200, 304))
    def reference(variant: str, version: str) -> Response:
        """How the training data of a version were spread."""
        return ask(variant, f"/versions/{quote(version, safe='')}/reference")

    @api.get("/diff")
    @_describe(
        query={"from": {"type": "string"}, "to": {"type": "string", "default": "newest"}},
        required=("from",),
    )
    def diff(variant: str) -> Response:
        """What tells two versions of a variant's model apart."""
        return ask(variant, "/diff")

    @api.get("/releases")
    @_describe(query={"at": {"type": "string", "format": "date-time"}}, headers=TAGGED)
    def releases(variant: str) -> Response:
        """What a variant's service serves, and what was ever released to it."""
        return ask(variant, "/releases")

    @api.post("/releases")
    @_describe_change(takes=Release, example={"version": "newest", **WHY})
    def release(variant: str) -> Response:
        """Let a variant's service serve a version from now on, after a self-test."""
        return change(variant, "/releases", Release)

    @api.post("/rollback")
    @_describe_change(takes=Why, example=WHY)
    def rollback(variant: str) -> Response:
        """Let a variant's service serve what it served before."""
        return change(variant, "/rollback", Why)

    return api


def _passed_on(answer: Answer) -> Response:
    kept = ("content-type", "etag", "cache-control", "www-authenticate")
    headers = [(name, value) for name, value in answer.headers if name.lower() in kept]
    return Response(answer.body, answer.status, headers)
