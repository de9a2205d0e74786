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
    v2,
    vllm,
)

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

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


def routes(service: Service) -> list[BaseRoute]:
    """Those of every dialect."""
    return [route for dialect in DIALECTS for route in dialect.routes(service)]


def paths(service: Service) -> dict[str, Any]:
    """What /openapi.json says of them."""
    return {path: methods for dialect in DIALECTS for path, methods in dialect.paths(service).items()}
