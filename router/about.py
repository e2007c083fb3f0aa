"""What clients ask of a model besides predictions: the champion says it, by the experiment's name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from flask import Blueprint, Response, g

from router.dialects import ABOUT, OURS_TELL
from router.keys import Scope
from router.openapi import CALLERS, SERVICES
from router.routing import Router
from runoff.dialects import KServeError, refuse_kserve
from runoff.operations import Operation
from runoff.problems import NotFound

SAID = """What the champion says of itself.

A service that is not Runoff's may not know this address, and says so in its own form.
"""


def blueprint(router: Router, admit: Callable[[Scope], Any]) -> Blueprint:
    """The addresses of a model that are none of the router's own.

    Args:
        router: which forwards.
        admit: raises where the caller's key does not open a scope.
    """
    about = Blueprint("about", __name__)

    def tell(address: str, model: str | None = None, **_version: str) -> Response:
        if address not in OURS_TELL:
            g.refuse = refuse_kserve
        admit("predict")
        # An experiment has no versions that a caller could choose from: each variant has its own.
        answered = router.about(address.replace("/versions/<version>", ""), model)
        return Response(answered.body, answered.status, answered.headers)

    for address in ABOUT:
        view: Any = partial(tell, address)
        view.operation = _told_of(address)
        about.add_url_rule(address, f"about {address}".replace(".", " "), view)
    return about


def _told_of(address: str) -> Operation:
    """What the document says of such an address."""
    said: dict[str, Any] = {"answer": dict[str, Any]}
    if address == "/version":
        said = {"answer": str, "media_type": "text/plain"}
    if address == "/v2/health/ready":
        said["statuses"] = (200, 503)
    if address not in OURS_TELL:
        said["refusal"] = KServeError
    # Nobody is called by a name where the address has none.
    named = (NotFound,) if "<" in address else ()
    return Operation(SAID, "model", (*CALLERS, *SERVICES, *named), **said)
