"""KServe's V1 protocol: POST /v1/models/NAME:predict and :explain, GET /v1/models/NAME.

GET /v1/models stays the native list, which has the names too: {"models": [{"name": ...}]}. KServe's client does not ask
for it. An instance is a text, or {"text", "text_pair"}; all of a request are of one kind.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.dialects.oip import Strict
from service.dialects.tensors import bad
from service.dialects.v2 import answering_400, asked, error_body
from service.dialects.v2_openapi import NAME, Answer, ModelReady, get_operation, infer_operation
from service.http import counted
from service.schemas import (
    Explanation,
    LabelScore,
    OnLong,
    Priority,
    TextError,
    explained_result,
    parse_request,
    text_result,
)

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.routing import BaseRoute

    from service.http import Handler
    from service.routes import Reply, Service
    from service.schemas import ClassifyRequest, TextResult

MODEL = "/v1/models/{name}"


class Instance(Strict):
    """A text, or a pair of texts read together."""

    text: str
    text_pair: str | None = None


class V1Parameters(Strict):
    """The same as of POST /v1/classify."""

    top_k: Annotated[int | None, Field(ge=1, description="Labels per text, best first; null: all.")] = None
    raw_scores: Annotated[bool, Field(description="Logits in place of probabilities.")] = False
    on_long: Annotated[OnLong, Field(description="What to do with a text that is longer than the model reads.")] = (
        "truncate"
    )
    timeout_ms: Annotated[int | None, Field(ge=1, le=600_000, description="Answer within this time.")] = None
    priority: Priority | None = None


class V1Request(Strict):
    """POST /v1/models/NAME:predict and :explain."""

    instances: Annotated[list[str | Instance], Field(min_length=1)]
    parameters: V1Parameters | None = None


class Prediction(Answer):
    """What the model says of one instance: its labels, or error in their place."""

    label: Annotated[str | None, Field(description="The best.")] = None
    score: float | None = None
    labels: Annotated[list[LabelScore] | None, Field(description="Best first.")] = None
    label_set: list[str] | None = None
    explanation: Annotated[Explanation | None, Field(description="Of :explain alone.")] = None
    error: TextError | None = None


class V1Predictions(Answer):
    """The answer of :predict."""

    predictions: list[Prediction]
    model_name: str
    model_version: str


class V1Explanations(Answer):
    """The answer of :explain."""

    explanations: list[Prediction]
    model_name: str
    model_version: str


def paths(service: Service) -> dict[str, Any]:
    """As OpenAPI has them."""
    return {
        f"{MODEL}:predict": {"post": infer_operation("label texts (KServe V1)", V1Request, V1Predictions, NAME)},
        f"{MODEL}:explain": {"post": infer_operation("say why (KServe V1)", V1Request, V1Explanations, NAME)},
        MODEL: {"get": get_operation("whether it answers (KServe V1)", ModelReady, NAME, errors=(401, 404, 503))},
    }


def routes(service: Service) -> list[BaseRoute]:
    """Those of V1."""
    v1 = V1(service)

    def route(path: str, handler: Handler, method: str) -> Route:
        return Route(path, counted(service, path, answering_400(handler), error_body), methods=[method])

    return [  # in this order: the last matches the paths of the others too
        route(f"{MODEL}:predict", v1.predict, "POST"),
        route(f"{MODEL}:explain", v1.explain, "POST"),
        route(MODEL, v1.ready, "GET"),
    ]


class V1:
    """The handlers."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def ready(self, http: Request) -> Response:
        """GET /v1/models/NAME."""
        model = self._service.models.find(asked(http))
        self._service.check_ready()
        return JSONResponse({"name": model.name, "ready": True})

    async def predict(self, http: Request) -> Response:
        """POST /v1/models/NAME:predict."""
        return await self._answer(http, "predictions", explain=False)

    async def explain(self, http: Request) -> Response:
        """POST /v1/models/NAME:explain."""
        return await self._answer(http, "explanations", explain=True)

    async def _answer(self, http: Request, key: str, *, explain: bool) -> Response:
        started = time.perf_counter()
        request = parse_request(V1Request, await self._service.body(http))
        options = request.parameters or V1Parameters()
        fields = inputs_of(request.instances) | options.model_dump() | {"model": asked(http), "explain": explain}
        classify = self._service.request(fields)
        reply = await self._service.answer(http, classify, started)
        listed = [prediction(one).model_dump(exclude_none=True) for one in results(reply, classify)]
        return JSONResponse({key: listed, "model_name": reply.model.name, "model_version": reply.model.bundle.version})


def inputs_of(instances: list[str | Instance]) -> dict[str, Any]:
    """Texts or pairs of a ClassifyRequest. Raises InvalidRequest where some are the one and some the other."""
    sides = [(one, None) if isinstance(one, str) else (one.text, one.text_pair) for one in instances]
    pairs = [(text, text_pair) for text, text_pair in sides if text_pair is not None]
    if pairs and len(pairs) < len(sides):
        raise bad("instances", "some have a text_pair and some have none: send them in two requests")
    return {"pairs": pairs} if pairs else {"texts": [text for text, _ in sides]}


def results(reply: Reply, request: ClassifyRequest) -> list[TextResult]:
    """As POST /v1/classify has them."""
    labels = reply.model.bundle.labels
    found = [text_result(labels, text, request.top_k, raw_scores=request.raw_scores) for text in reply.answers]
    for i, why in enumerate(reply.explained):
        found[i] = explained_result(found[i], labels, request.inputs[i], why)
    return found


def prediction(result: TextResult) -> Prediction:
    """One result with its best label in front."""
    best = result.labels[0] if result.labels else None
    return Prediction(
        label=best.label if best else None,
        score=best.score if best else None,
        labels=result.labels,
        label_set=result.label_set,
        explanation=result.explanation,
        error=result.error,
    )
