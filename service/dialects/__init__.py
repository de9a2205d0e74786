"""Clients that were written for other servers: a file each, which translates in, and out, and nothing else.

A dialect turns a foreign body into a ClassifyRequest, has it answered by Service.answer(), as every other, and shapes
the reply and the errors as its clients know them. Called by service/routes.py.

Each of these modules has routes(service), and paths(service) for /openapi.json, where a schema is the pydantic class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.dialects import (
    huggingface,
    infinity,
    kserve_v1,
    listing,
    predict,
    tei,
    v2,
    vllm,
)
from service.errors import ServiceError

if TYPE_CHECKING:
    from starlette.routing import Route

    from service.http import ErrorBody
    from service.routes import Service

DIALECTS = (
    huggingface,
    infinity,
    kserve_v1,
    listing,
    predict,
    v2,
    vllm,
)
# How the errors of a path look that has no such route, or no such method; the native way elsewhere.
ERROR_BODIES: dict[str, ErrorBody] = {
    vllm.PATH: vllm.error_body,
    "/infinity/": infinity.error_body,
    "/models/": tei.error_body,
    "/predict": tei.error_body,
    "/v1/models/": v2.error_body,
    v2.PREFIX: v2.error_body,
}


def error_body(path: str) -> ErrorBody:
    """How the errors of a path look, whether there is such a route or not."""
    found = (body for prefix, body in ERROR_BODIES.items() if path.startswith(prefix))
    return next(found, ServiceError.body)


def routes(service: Service) -> list[Route]:
    """Those of every dialect."""
    return [route for dialect in DIALECTS for route in dialect.routes(service)]


def paths(service: Service) -> dict[str, Any]:
    """What /openapi.json says of them; a path may have methods of several."""
    found: dict[str, Any] = {}
    for dialect in DIALECTS:
        for path, methods in dialect.paths(service).items():
            found.setdefault(path, {}).update(methods)
    return found
