"""POST / and POST /predict, where the clients of text-embeddings-inference and of Hugging Face Inference meet.

Those of Hugging Face always send `parameters`, be it empty, and want a list of lists for one text too; those of TEI
never do, and want a flat one. So that key decides.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pydantic import RootModel, create_model
from starlette.routing import Route

from service.dialects import huggingface, tei
from service.dialects.common import either_type
from service.http import counted
from service.openapi import operation
from service.schemas import parse_request

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from service.routes import Service
    from service.settings import Settings

PATHS = ("/predict", "/")


def routes(service: Service) -> list[Route]:
    """Both paths."""
    model = _request(service.settings)

    async def post(http: Request) -> Response:
        started = time.perf_counter()
        request: Any = parse_request(model, await service.body(http)).root
        dialect: Any = huggingface if isinstance(request, huggingface.PipelineRequest) else tei
        response: Response = await dialect.answer(service, http, request, started)
        return response

    return [
        Route(path, counted(service, path, post, tei.error_body, tei.error_status), methods=["POST"]) for path in PATHS
    ]


def paths(service: Service) -> dict[str, Any]:
    """What /openapi.json says of them."""
    errors = dict.fromkeys(tei.CODES, tei.PredictError)
    summary = "text-embeddings-inference, or Hugging Face Inference where the body has parameters"
    post = operation(summary, tei.Predictions, errors, _request(service.settings))
    return {path: {"post": post} for path in PATHS}


def _request(settings: Settings) -> type[RootModel[Any]]:
    branches = {
        "<tei>": tei.predict_request(settings),
        "<hub>": huggingface.pipeline_request(settings, has_parameters=True),
    }
    either = either_type(branches, _which, "")
    return create_model("PredictOrPipelineRequest", __base__=RootModel[either])  # type: ignore[valid-type]


def _which(body: object) -> str:
    return "<hub>" if isinstance(body, dict) and "parameters" in body else "<tei>"
