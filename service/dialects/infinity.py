"""infinity, under a prefix of its own: its /classify and vLLM's answer the same request differently.

Formats: https://github.com/michaelfeil/infinity, infinity_emb/fastapi_schemas/pymodels.py.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model
from starlette.routing import Route

from service.dialects.common import STARTED, Foreign, Prediction, list_type, message, predictions, scored, text_type
from service.errors import NotJSON, ServiceError
from service.http import as_json, counted
from service.openapi import operation
from service.schemas import ClassifyRequest, ModelInfo, parse_request

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from service.routes import Reply, Service
    from service.settings import Settings

CLASSIFY, MODELS, HEALTH = "/infinity/classify", "/infinity/models", "/infinity/health"
DEFAULT = "default/not-specified"  # what its clients send where no model was chosen


class InfinityRequest(Foreign):
    """What the clients of infinity send; the limits are set by classify_request()."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": ["a gorgeous movie", "paper thin"]}]})

    input: list[str]
    model: Annotated[str, Field(description="NAME or NAME@VERSION.")] = DEFAULT
    raw_scores: Annotated[bool, Field(description="Logits in place of probabilities.")] = False


class InfinityUsage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class InfinityResponse(BaseModel):
    """All labels of each text, best first."""

    object: Literal["classify"] = "classify"
    data: list[list[Prediction]]
    model: str
    usage: InfinityUsage
    id: str
    created: int


class InfinityStats(BaseModel):
    """What waits in the replica that answers, in texts; queue_fraction of the tokens that may wait."""

    queue_fraction: float
    queue_absolute: int
    results_pending: int
    batch_size: Annotated[int, Field(description="Texts of a request, at most: a pass is bounded in tokens.")]


class InfinityModel(BaseModel):
    """A model, and how busy it is."""

    id: str
    stats: InfinityStats
    object: Literal["model"] = "model"
    owned_by: Literal["infinity"] = "infinity"  # its client refuses any other
    created: int = STARTED
    backend: Literal["torch"] = "torch"
    capabilities: list[Literal["classify"]] = ["classify"]
    revision: str
    dtype: str
    device: str


class InfinityModels(BaseModel):
    """What is served."""

    data: list[InfinityModel]
    object: Literal["list"] = "list"


class InfinityHealth(BaseModel):
    """Unix time."""

    unix: float


class InfinityInvalid(BaseModel):
    """What is wrong with one field."""

    loc: list[str]
    msg: str
    type: str


class InfinityValidationError(BaseModel):
    """The fields that are wrong."""

    detail: list[InfinityInvalid]


class InfinityUnauthorized(BaseModel):
    """No key, or a wrong one."""

    detail: Literal["Unauthorized"]


class InfinityErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: None
    param: None
    code: int


class InfinityError(BaseModel):
    """Every other answer that is not 200."""

    error: InfinityErrorBody


def classify_request(settings: Settings) -> type[InfinityRequest]:
    """InfinityRequest with the limits of this service."""
    fields: dict[str, Any] = {"input": (list_type(text_type(settings), settings.max_texts_per_request), ...)}
    return create_model("InfinityRequest", __base__=InfinityRequest, **fields)


def routes(service: Service) -> list[Route]:
    """Its classification, models and health."""
    model = classify_request(service.settings)

    async def classify(http: Request) -> Response:
        started = time.perf_counter()
        request = parse_request(model, await service.body(http))
        name = None if request.model == DEFAULT else request.model
        reply = await service.answer(http, ClassifyRequest(texts=request.input, model=name), started)
        return as_json(_response(request, reply, http.state.request_id))

    async def models(http: Request) -> Response:
        return as_json(InfinityModels(data=[_model(service, info) for info in service.model_list().models]))

    async def health(http: Request) -> Response:
        return as_json(InfinityHealth(unix=time.time()), (await service.health(http)).status_code)

    return [
        Route(CLASSIFY, counted(service, CLASSIFY, classify, error_body, error_status), methods=["POST"]),
        Route(MODELS, counted(service, MODELS, models, error_body, error_status)),
        Route(HEALTH, counted(service, HEALTH, health, error_body, error_status, is_open=True)),
    ]


def paths(service: Service) -> dict[str, Any]:
    """What /openapi.json says of them."""
    request = classify_request(service.settings)
    unauthorized: dict[int, type[BaseModel]] = {401: InfinityUnauthorized}
    errors = unauthorized | dict.fromkeys((404, 413, 429, 500, 503, 504), InfinityError)
    errors |= {422: InfinityValidationError}
    failed = unauthorized | {500: InfinityError}
    return {
        CLASSIFY: {"post": operation("infinity's classification", InfinityResponse, errors, request)},
        MODELS: {"get": operation("what is served, for infinity's clients", InfinityModels, failed)},
        HEALTH: {"get": operation("live and ready", InfinityHealth, {503: InfinityHealth})},
    }


def _response(request: InfinityRequest, reply: Reply, request_id: str) -> InfinityResponse:
    labels = reply.model.bundle.labels
    tokens = sum(answer.tokens for answer in reply.answers)
    return InfinityResponse(
        data=[predictions(labels, text.logits if request.raw_scores else text.scores) for text in scored(reply)],
        model=reply.model.name,
        usage=InfinityUsage(prompt_tokens=tokens, total_tokens=tokens),
        id=f"infinity-{request_id}",
        created=int(time.time()),
    )


def _model(service: Service, info: ModelInfo) -> InfinityModel:
    batchers = [version.batcher for version in service.models.versions(info.name)]
    texts, tokens = sum(b.queue_texts for b in batchers), sum(b.queue_tokens for b in batchers)
    return InfinityModel(
        id=info.name,
        stats=InfinityStats(
            queue_fraction=tokens / service.settings.max_queue_tokens,
            queue_absolute=texts,
            results_pending=texts,
            batch_size=service.settings.max_texts_per_request,
        ),
        revision=info.version,
        dtype=info.precision,
        device=info.device,
    )


def error_body(error: ServiceError) -> dict[str, Any]:
    """FastAPI's {"detail": [...]} for a body that is not as it should be, OpenAI's {"error": {...}} for the rest."""
    status = error_status(error)
    if status == 401:
        return {"detail": "Unauthorized"}  # in its own word
    if status == 422:
        details = error.details or [{"field": "", "message": message(error)}]
        wrong = [
            {"loc": ["body", d["field"]] if d["field"] else ["body"], "msg": d["message"], "type": error.code}
            for d in details
        ]
        return {"detail": wrong}
    return {"error": {"message": message(error), "type": None, "param": None, "code": status}}


def error_status(error: ServiceError) -> int:
    """As in the native API, but for a body that is not JSON: FastAPI counts it among those that do not validate."""
    return 422 if isinstance(error, NotJSON) else error.status
