"""What the OpenAPI document says of the router as a whole, and of predictions through it in every dialect.

A record is what the champion says that it is: the document has its columns as they are when it is asked for.
"""

from __future__ import annotations

import json
from dataclasses import replace

from router.dialects import NotTranslated
from router.entries import MAX_KEY
from router.experiment import DEFAULT_UNIT, Experiment
from router.front import MAX_UNIT, TAG
from router.routing import Router
from router.upstream import BadGateway, GatewayTimeout
from runoff import prediction_openapi
from runoff.openapi import Service
from runoff.operations import Operation, Schema
from runoff.problems import Conflict, Forbidden, Problem, TooManyRequests, Unauthorized, Unavailable
from runoff.prototype import Prototype

HEADERS = {
    "X-Experiment": "The experiment by which it was assigned.",
    "X-Variant": "The variant that answered.",
}
# What may be wrong with a caller, whatever they ask.
CALLERS = (Unauthorized, Forbidden, TooManyRequests)
# What may be wrong with a service that has to be asked.
SERVICES = (Unavailable, BadGateway, GatewayTimeout)

IDEMPOTENCY_KEY: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_KEY,
    "description": "Who asks the same again with the same key gets the first answer: it is done once.",
}
REPLAYED = {"Idempotency-Replayed": "true where it is the first answer to a request that came again."}


def service(router: Router) -> Service:
    """What the document says of the router as a whole."""
    return Service(
        "Runoff's router",
        "One of several models answers each request, and it is on record before it is answered. Predictions"
        " are asked for as of a model, in the dialects that clients of several systems speak; outcomes are"
        " reported by the id of a prediction.",
        schemas=lambda: prediction_openapi.components(_columns(router)),
        examples=lambda: _examples(router),
    )


def prediction(address: str, router: Router) -> Operation:
    """What the document says of an address at which dialects are spoken."""
    asked = prediction_openapi.operation(address, lambda: _columns(router))
    return replace(
        asked,
        problems=(*asked.problems, *CALLERS, *SERVICES, Conflict, NotTranslated),
        headers={**asked.headers, **HEADERS, **REPLAYED},
        request_headers=lambda: {**_read_of(router), **asked.request_headers()},
    )


def _read_of(router: Router) -> dict[str, Schema]:
    """The headers that are read of a request for predictions."""
    document = _document(router)
    return {
        document.unit if document else DEFAULT_UNIT: {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_UNIT,
            "description": "The id of whom it is about, in ASCII: the same one always gets the same variant.",
        },
        "X-Traffic-Tag": {
            "type": "string",
            "pattern": f"^{TAG.pattern}$",
            "description": "The kind of traffic, where it is not real; counts can be narrowed to one.",
        },
        "X-Force-Variant": {
            "type": "string",
            "description": "The variant that is to answer; it takes an operator's key, and does not count.",
        },
        "Idempotency-Key": IDEMPOTENCY_KEY,
        "tracestate": {"type": "string", "description": "Goes with traceparent."},
    }


def _document(router: Router) -> Experiment | None:
    """The experiment's document, None where none is in force yet."""
    try:
        return router.following.now().document
    except Unavailable:
        return None


def _examples(router: Router) -> dict[str, str]:
    document = _document(router)
    examples = {"file": "swagger-ui.css"}
    if document:
        examples |= {"model": document.name, "variant": document.variants[0].name}
    return examples


def _columns(router: Router) -> Prototype | None:
    """Those of the champion; None where it does not tell, since it is away or speaks another dialect."""
    try:
        told = router.about("/prototype", None)
        if isinstance(told.body, bytes):
            return Prototype.from_json(json.loads(told.body))
    except (Problem, ValueError, LookupError, TypeError):
        pass
    return None
