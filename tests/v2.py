"""Requests of the Open Inference Protocol over HTTP, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.dialects.v2_openapi import InferResponse

if TYPE_CHECKING:
    import httpx

INFER = "/v2/models/mood/infer"
TEXTS = ["a lovely film", "the dull town"]


def tensor(*texts: str, **fields: Any) -> dict[str, Any]:
    return {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)} | fields


def infer(client: httpx.Client, *texts: str, **fields: Any) -> dict[str, Any]:
    """The outputs by name, of an answer that is as documented."""
    response = client.post(INFER, json={"inputs": [tensor(*texts)], **fields})
    assert response.status_code == 200, response.text
    InferResponse.model_validate_json(response.text, strict=True)
    return {output["name"]: output for output in response.json()["outputs"]}


def native(client: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = client.post("/v1/classify", json=body).json()["results"]
    return results
