"""What clients ask of a model besides predictions: the champion says it, by the experiment's name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from flask import Blueprint, Response, g

from router.dialects import ABOUT, OURS_TELL
from router.keys import Scope
from router.openapi import CALLERS
from router.routing import Router
from router.upstream import BadGateway, GatewayTimeout
from runoff.dialects import refuse_kserve
from runoff.operations import Operation
from runoff.problems import NotFound, Problem, Unavailable

SAID = "What the champion says of itself."


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
        problems: tuple[type[Problem], ...] = (*CALLERS, NotFound, Unavailable, BadGateway, GatewayTimeout)
        view.operation = Operation(SAID, "model", problems, answer=dict[str, Any])
        about.add_url_rule(address, f"about {address}".replace(".", " "), view)
    return about
