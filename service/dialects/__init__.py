"""Clients that were written for other servers: a file each, which translates in, and out, and nothing else.

A dialect turns a foreign body into a ClassifyRequest, has it answered by Service.answer(), as every other, and shapes
the reply and the errors as its clients know them. Called by service/routes.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.dialects import (
    kserve_v1,
    v2,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.routing import BaseRoute

    from service.openapi import Schema
    from service.routes import Service

MODULES = (
    kserve_v1,
    v2,
)


def routes(service: Service) -> list[BaseRoute]:
    """Those of every dialect."""
    return [route for module in MODULES for route in module.routes(service)]


def paths() -> dict[str, Any]:
    """The same, as OpenAPI has them."""
    return {path: operations for module in MODULES for path, operations in module.paths().items()}


def schemas() -> Sequence[Schema]:
    """What validates the requests of every dialect, and makes its answers."""
    return [schema for module in MODULES for schema in module.SCHEMAS]
