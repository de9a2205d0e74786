"""KServe's V1 protocol: POST /v1/models/NAME:predict and :explain, GET /v1/models/NAME, and GET / beside the page.

GET /v1/models stays the native list, which has the names too: {"models": [{"name": ...}]}. KServe's client does not ask
for it. An instance is a text, or {"text", "text_pair"}; all of a request are of one kind.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, create_model
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.dialects.common import either_type, list_type, text_type
from service.dialects.oip import Strict
from service.dialects.v2 import answering_400, asked, error_body
from service.dialects.v2_openapi import NAME, Answer, ModelReady, get_operation, infer_operation
from service.errors import NotReady
from service.http import counted, refusal
from service.schemas import (
    Count,
    Explanation,
    LabelScore,
    Milliseconds,
    OnLong,
    Priority,
    TextError,
    explained_result,
    parse_request,
    text_result,
)

if TYPE_CHECKING:
    from starlette.requests import Request

    from service.http import Handler
    from service.routes import Reply, Service
    from service.schemas import ClassifyRequest, TextResult
    from service.settings import Settings

MODEL = "/v1/models/{name}"
KINDS: dict[object, str] = {str: "<text>", dict: "<single>"}


class V1Parameters(Strict):
    """The same as of POST /v1/classify."""

    top_k: Annotated[Count | None, Field(description="Labels per text, best first; null: all.")] = None
    raw_scores: Annotated[bool, Field(description="Logits in place of probabilities.")] = False
    on_long: Annotated[OnLong, Field(description="What to do with a text that is longer than the model reads.")] = (
        "truncate"
    )
    timeout_ms: Annotated[Milliseconds | None, Field(description="Answer within this time.")] = None
    priority: Priority | None = None


class V1ExplainParameters(V1Parameters):
    """Of :explain: what is explained is not read in windows."""

    on_long: Annotated[Literal["truncate", "error"], Field(description="What to do with a text that is too long.")] = (
        "truncate"
    )


class V1Request(Strict):
    """POST /v1/models/NAME:predict; the limits are set by v1_requests()."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"instances": ["a gorgeous movie", "paper thin"]}]})

    instances: Annotated[Any, Field(description="Texts, or {text, text_pair}: pairs, each read together.")]
    parameters: V1Parameters | None = None


class Prediction(Answer):
    """What the model says of one instance: its labels, or error in their place."""

    label: Annotated[str | None, Field(description="The best.")] = None
    score: float | None = None
    labels: Annotated[list[LabelScore] | None, Field(description="Best first.")] = None
    label_set: list[str] | None = None
    abstained: bool | None = None
    explanation: Annotated[Explanation | None, Field(description="Of :explain alone.")] = None
    error: TextError | None = None


class V1Alive(Answer):
    """GET /: the device answers."""

    status: Literal["alive"]


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


def v1_requests(settings: Settings) -> tuple[type[V1Request], type[V1Request]]:
    """Of :predict and :explain, with the limits of this service: all instances are texts, or all are pairs."""
    text = text_type(settings)
    single = create_model("TextInstance", __base__=Strict, text=(text, ...), text_pair=(None, None))
    pair = create_model("PairInstance", __base__=Strict, text=(text, ...), text_pair=(text, ...))
    one = either_type(
        {"<text>": text, "<single>": single},
        lambda given: KINDS.get(type(given)),
        "send a text, or an object with text and text_pair",
    )
    most = settings.max_texts_per_request
    instances = either_type(
        {"<texts>": list_type(one, most), "<pairs>": list_type(pair, most)},
        _kind_of_instances,
        "some have a text_pair and some have none: send them in two requests",
    )
    fields: dict[str, Any] = {"instances": (instances, V1Request.model_fields["instances"])}
    predict = create_model("V1Request", __base__=V1Request, **fields)
    explain = create_model("V1ExplainRequest", __base__=predict, parameters=(V1ExplainParameters | None, None))
    return predict, explain


def _kind_of_instances(instances: object) -> str | None:
    given = instances if isinstance(instances, list) else []
    pairs = [one for one in given if isinstance(one, dict) and one.get("text_pair") is not None]
    if not pairs:
        return "<texts>"
    return "<pairs>" if len(pairs) == len(given) else None


def paths(service: Service) -> dict[str, Any]:
    """As OpenAPI has them."""
    predict, explain = v1_requests(service.settings)
    alive = get_operation("whether the device answers (KServe V1); to a browser, the page", V1Alive, errors=(503,))
    alive["responses"]["200"]["content"]["text/html"] = {"schema": {"type": "string"}}
    return {
        "/": {"get": alive},
        f"{MODEL}:predict": {"post": infer_operation("label texts (KServe V1)", predict, V1Predictions, NAME)},
        f"{MODEL}:explain": {"post": infer_operation("say why (KServe V1)", explain, V1Explanations, NAME)},
        MODEL: {"get": get_operation("whether it answers (KServe V1)", ModelReady, NAME, errors=(401, 404, 503))},
    }


def routes(service: Service) -> list[Route]:
    """Those of V1."""
    v1 = V1(service)

    def route(path: str, handler: Handler, method: str) -> Route:
        return Route(path, counted(service, path, answering_400(handler), error_body), methods=[method])

    return [  # in this order: the last matches the paths of the others too
        route(f"{MODEL}:predict", v1.predict, "POST"),
        route(f"{MODEL}:explain", v1.explain, "POST"),
        route(MODEL, v1.ready, "GET"),
    ]


def alive(service: Service) -> Handler:
    """GET / of whoever is no browser; service/page has the route."""

    async def answer(http: Request) -> Response:
        if not service.is_live:
            return refusal(NotReady("the device does not answer"), error_body)
        return JSONResponse({"status": "alive"})

    return answer


class V1:
    """The handlers."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._predict, self._explain = v1_requests(service.settings)

    async def ready(self, http: Request) -> Response:
        """GET /v1/models/NAME."""
        model = self._service.models.find(asked(http))
        self._service.check_ready()
        return JSONResponse({"name": model.name, "ready": True})

    async def predict(self, http: Request) -> Response:
        """POST /v1/models/NAME:predict."""
        return await self._answer(http, self._predict, "predictions")

    async def explain(self, http: Request) -> Response:
        """POST /v1/models/NAME:explain."""
        return await self._answer(http, self._explain, "explanations", explain=True)

    async def _answer(self, http: Request, model: type[V1Request], key: str, *, explain: bool = False) -> Response:
        started = time.perf_counter()
        request = parse_request(model, await self._service.body(http))
        options = request.parameters or V1Parameters()
        fields = inputs_of(request.instances) | options.model_dump() | {"model": asked(http), "explain": explain}
        classify = self._service.request(fields)
        reply = await self._service.answer(http, classify, started)
        listed = [prediction(one).model_dump(exclude_none=True) for one in results(reply, classify)]
        return JSONResponse({key: listed, "model_name": reply.model.name, "model_version": reply.model.bundle.version})


def inputs_of(instances: list[Any]) -> dict[str, Any]:
    """Texts or pairs of a ClassifyRequest."""
    sides = [(one, None) if isinstance(one, str) else (one.text, one.text_pair) for one in instances]
    is_paired = sides[0][1] is not None
    return {"pairs": sides} if is_paired else {"texts": [text for text, _ in sides]}


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
        abstained=result.abstained,
        explanation=result.explanation,
        error=result.error,
    )
