"""What the OpenAPI document says of the router as a whole, and of predictions through it in every dialect.

A record is what the champion says that it is: the document has its columns as they are when it is asked for.
"""

from __future__ import annotations

import json
from dataclasses import replace

from router.routing import Router
from router.upstream import BadGateway, GatewayTimeout
from runoff import prediction_openapi
from runoff.openapi import Service
from runoff.operations import Operation
from runoff.problems import Conflict, Forbidden, Problem, TooManyRequests, Unauthorized
from runoff.prototype import Prototype

HEADERS = {
    "X-Experiment": "The experiment by which it was assigned.",
    "X-Variant": "The variant that answered.",
}
# What may be wrong with a caller, whatever they ask.
CALLERS = (Unauthorized, Forbidden, TooManyRequests)


def service(router: Router) -> Service:
    """What the document says of the router as a whole."""
    return Service(
        "Runoff's router",
        "One of several models answers each request, and it is on record before it is answered. Predictions"
        " are asked for as of a model, in the dialects that clients of several systems speak; outcomes are"
        " reported by the id of a prediction.",
        schemas=lambda: prediction_openapi.components(_columns(router)),
        examples=lambda: {"model": router.following.now().document.name, "file": "swagger-ui.css"},
    )


def prediction(address: str, router: Router) -> Operation:
    """What the document says of an address at which dialects are spoken."""
    asked = prediction_openapi.operation(address, lambda: _columns(router))
    problems = (*asked.problems, *CALLERS, Conflict, BadGateway, GatewayTimeout)
    return replace(asked, problems=problems, headers={**asked.headers, **HEADERS})


def _columns(router: Router) -> Prototype | None:
    """Those of the champion; None where it does not tell, since it is away or speaks another dialect."""
    try:
        told = router.about("/prototype", None)
        if isinstance(told.body, bytes):
            return Prototype.from_json(json.loads(told.body))
    except (Problem, ValueError, LookupError, TypeError):
        pass
    return None
