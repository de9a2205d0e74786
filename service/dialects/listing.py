"""GET /info and GET /v1/models, where several clients ask what is served: the native answer, and their keys beside it.

No key means two things: text-embeddings-inference and OpenAI (so vLLM) have other names than the native API.
"""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field
from starlette.routing import Route

from service.dialects.common import STARTED
from service.http import as_json, counted
from service.openapi import operation
from service.schemas import ErrorResponse, ModelList

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from service.routes import Service

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}  # as TEI names precisions


class Classifier(BaseModel):
    """Label ids and their names, both ways."""

    id2label: dict[str, str]
    label2id: dict[str, int]


class ModelType(BaseModel):
    """What kind of model it is, in text-embeddings-inference's way: by the key."""

    classifier: Classifier


class Info(ModelList):
    """What is served, and the limits; and of the first model what text-embeddings-inference says of its one."""

    model_id: str
    model_sha: str
    model_dtype: str
    served_model_name: str
    model_type: ModelType
    max_concurrent_requests: Annotated[int, Field(description="More cannot wait: each has a token at least.")]
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: None = None
    max_client_batch_size: int
    auto_truncate: Literal[True] = True
    tokenization_workers: Literal[1] = 1
    version: str
    sha: None = None
    docker_label: None = None


class OpenAIModel(BaseModel):
    """A model as OpenAI's clients know it."""

    id: str
    object: Literal["model"] = "model"
    created: int = STARTED
    owned_by: Literal["heed"] = "heed"
    max_model_len: int


class Listed(ModelList):
    """What is served, and the limits; and in data the models as OpenAI's clients, so vLLM's, know them."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]


def routes(service: Service) -> list[Route]:
    """Both listings."""

    async def get_info(http: Request) -> Response:
        return as_json(info(service))

    async def get_models(http: Request) -> Response:
        return as_json(listed(service))

    handlers = {"/info": get_info, "/v1/models": get_models}
    return [Route(path, counted(service, path, get)) for path, get in handlers.items()]


def paths(service: Service) -> dict[str, Any]:
    """What /openapi.json says of them."""
    errors = dict.fromkeys((401, 500), ErrorResponse)
    return {
        "/info": {"get": operation("what is served; with the keys of text-embeddings-inference", Info, errors)},
        "/v1/models": {"get": operation("what is served, and the limits; with the keys of OpenAI", Listed, errors)},
    }


def info(service: Service) -> Info:
    """What is served, and more of the first model."""
    native = service.model_list()
    first = native.models[0]
    return Info(
        **dict(native),
        model_id=first.name,
        model_sha=first.version,
        model_dtype=DTYPES.get(first.precision, first.precision),
        served_model_name=first.name,
        model_type=ModelType(
            classifier=Classifier(
                id2label={str(i): label for i, label in enumerate(first.labels)},
                label2id={label: i for i, label in enumerate(first.labels)},
            )
        ),
        max_concurrent_requests=service.settings.max_queue_tokens,
        max_input_length=first.max_tokens,
        max_batch_tokens=service.models.versions(first.name)[0].batcher.max_batch_tokens,
        max_client_batch_size=native.max_texts_per_request,
        version=importlib.metadata.version("heed"),
    )


def listed(service: Service) -> Listed:
    """What is served, in both ways."""
    native = service.model_list()
    data = [OpenAIModel(id=model.name, max_model_len=model.max_tokens) for model in native.models]
    return Listed(**dict(native), data=data)
