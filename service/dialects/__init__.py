"""Clients that were written for other servers: a file each, which translates in, and out, and nothing else.

A dialect turns a foreign body into a ClassifyRequest, has it answered by Service.answer(), as every other, and shapes
the reply and the errors as its clients know them. Called by service/routes.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.routing import Route

    from service.routes import Service


def routes(service: Service) -> list[Route]:
    """Those of every dialect."""
    return []
