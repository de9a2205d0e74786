"""GET /openapi.json and GET /docs, made from the schemas that validate."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic.json_schema import models_json_schema

from service.schemas import ClassifyResponse, ErrorResponse, Health

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel
    from pydantic.json_schema import JsonSchemaMode

    from service.schemas import ClassifyRequest

    Documented: TypeAlias = "tuple[type[BaseModel], JsonSchemaMode]"

REF = "#/components/schemas/{model}"
ERRORS = {
    400: "not JSON",
    401: "the API key is missing or wrong",
    404: "no such model, version or answer",
    413: "body over the limit",
    422: "fields or lengths",
    424: "the model failed on a text",
    429: "overloaded, or the key has sent as many texts as it may; Retry-After says when to send again",
    500: "the server failed",
    503: "not ready, or stopping",
    504: "past the deadline",
}
BEARER = {"key": {"type": "http", "scheme": "bearer"}}
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


def openapi(request: type[ClassifyRequest], dialects: dict[str, Any], *, wants_keys: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 document: the native API, with this service's limits in `request`, and the dialects' paths."""
    found: set[Documented] = set()
    keyed = _with_keys if wants_keys else _without_keys
    paths = {
        path: {method: keyed(one) for method, one in methods.items()}
        for path, methods in (_native(request) | dialects).items()
    }
    paths = _resolved(paths, "serialization", found)
    classes = {model for model, _ in found}
    assert len({model.__name__ for model in classes}) == len(classes), "two schemas of one name"
    _, schemas = models_json_schema(sorted(found, key=lambda pair: pair[0].__name__), ref_template=REF)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Heed",
            "version": importlib.metadata.version("heed"),
            "description": "Text classification; a forward pass is whatever waits when the device becomes free.",
        },
        "paths": paths,
        "components": {"schemas": schemas["$defs"], **({"securitySchemes": BEARER} if wants_keys else {})},
    }


def _with_keys(one: dict[str, Any]) -> dict[str, Any]:
    """An operation that says how it is asked with a key, where it knows a 401."""
    return one | {"security": [{name: []} for name in BEARER]} if "401" in one["responses"] else one


def _without_keys(one: dict[str, Any]) -> dict[str, Any]:
    return one | {"responses": {code: said for code, said in one["responses"].items() if code != "401"}}


def operation(
    summary: str,
    answer: type[BaseModel],
    errors: Mapping[int, type[BaseModel]],
    request: type[BaseModel] | None = None,
    status: int = 200,
    **more: Any,
) -> dict[str, Any]:
    """One method of a path. Schemas stay the classes that validate and answer: openapi() refers to them."""
    responses = {str(status): said("the answer", answer)}
    responses |= {str(code): said(ERRORS[code], model) for code, model in errors.items()}
    if "429" in responses:
        responses["429"]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    body = {} if request is None else {"requestBody": {"required": True, "content": _json(request)}}
    return {"summary": summary, **body, "responses": responses, **more}


def _native(request: type[BaseModel]) -> dict[str, Any]:
    metrics = {"200": {"description": "metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}}
    unwell = {503: Health}
    errors = dict.fromkeys((400, 401, 404, 413, 422, 429, 500, 503, 504), ErrorResponse)
    return {
        "/v1/classify": {"post": operation("label texts", ClassifyResponse, errors, request)},
        "/health/live": {"get": operation("whether the compute loop turns", Health, unwell)},
        "/health/ready": {"get": operation("whether requests are answered", Health, unwell)},
        "/health": {"get": operation("live and ready", Health, unwell)},
        "/metrics": {"get": {"summary": "Prometheus text", "responses": metrics}},
    }


def said(description: str, model: type[BaseModel]) -> dict[str, Any]:
    """A response with a JSON body."""
    return {"description": description, "content": _json(model)}


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": model}}


def _resolved(node: Any, mode: JsonSchemaMode, found: set[Documented]) -> Any:
    """The node with a reference in place of each class; which classes, and which way they are read, goes to found."""
    if isinstance(node, type):
        found.add((node, mode))
        return {"$ref": REF.format(model=node.__name__)}
    if isinstance(node, dict):
        modes: dict[str, JsonSchemaMode] = {"requestBody": "validation"}
        return {key: _resolved(value, modes.get(key, mode), found) for key, value in node.items()}
    return node
