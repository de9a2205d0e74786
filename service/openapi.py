"""GET /openapi.json and GET /docs, made from the schemas that validate."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

from service.schemas import ClassifyResponse, ErrorResponse, Health, ModelList

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel
    from pydantic.json_schema import JsonSchemaMode

    from service.schemas import ClassifyRequest

    Schema = tuple[type[BaseModel], JsonSchemaMode]

REF = "#/components/schemas/{model}"
CLASSIFY_ERRORS = {
    400: "not JSON",
    404: "no such model or version",
    413: "body over the limit",
    422: "fields or lengths",
    429: "overloaded; Retry-After says when to send again",
    500: "the server failed",
    503: "not ready, or stopping",
    504: "past the deadline",
}
# The files of Swagger UI; found without importing the package, which would load FastAPI.
_spec = importlib.util.find_spec("fastapi_offline")
assert _spec is not None
assert _spec.submodule_search_locations
DOCS_ASSETS = Path(_spec.submodule_search_locations[0]) / "static"

DOCS_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Heed</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="/docs/assets/swagger-ui.css"></head>
<body><div id="swagger-ui"></div><script src="/docs/assets/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger-ui"})</script></body></html>
"""


def openapi(
    request: type[ClassifyRequest], others: dict[str, Any] | None = None, schemas: Sequence[Schema] = ()
) -> dict[str, Any]:
    """The OpenAPI 3.1 document. `request` carries this service's limits; others are the paths of the dialects."""
    models: list[type[BaseModel]] = [ClassifyResponse, ErrorResponse, Health, ModelList]
    _, components = models_json_schema(
        [(request, "validation"), *((m, "serialization") for m in models), *schemas], ref_template=REF
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Heed",
            "version": importlib.metadata.version("heed"),
            "description": "Text classification; a forward pass is whatever waits when the device becomes free.",
        },
        "paths": {
            "/v1/classify": {"post": _classify(request)},
            "/v1/models": {"get": _get("what is served, and the limits", ModelList)},
            "/info": {"get": _get("the same", ModelList)},
            "/health/live": {"get": _get("whether the compute loop turns", Health, 503)},
            "/health/ready": {"get": _get("whether requests are answered", Health, 503)},
            "/health": {"get": _get("live and ready", Health, 503)},
            "/metrics": {
                "get": {
                    "summary": "Prometheus text",
                    "responses": {
                        "200": {
                            "description": "metrics",
                            "content": {"text/plain": {"schema": {"type": "string"}}},
                        }
                    },
                }
            },
            **(others or {}),
        },
        "components": {"schemas": components["$defs"]},
    }


def _classify(request: type[BaseModel]) -> dict[str, Any]:
    answers = {"200": answer("an answer per text, in order", ClassifyResponse)}
    answers |= {str(code): answer(text, ErrorResponse) for code, text in CLASSIFY_ERRORS.items()}
    answers["429"]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return {
        "summary": "label texts",
        "requestBody": {"required": True, "content": {"application/json": {"schema": ref(request)}}},
        "responses": answers,
    }


def _get(summary: str, model: type[BaseModel], *others: int) -> dict[str, Any]:
    codes = {code: answer("not so", model) for code in map(str, others)}
    return {"summary": summary, "responses": {"200": answer("so", model), **codes}}


def answer(description: str, model: type[BaseModel]) -> dict[str, Any]:
    """A response with a JSON body."""
    return {"description": description, "content": {"application/json": {"schema": ref(model)}}}


def ref(model: type[BaseModel]) -> dict[str, str]:
    """Where its schema stands."""
    return {"$ref": REF.format(model=model.__name__)}
