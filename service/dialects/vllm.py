"""vLLM's POST /classify: a text or several in; the best label and a probability for each label id out.

Formats: https://github.com/vllm-project/vllm, vllm/entrypoints/pooling/classify.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model
from pydantic_core import PydanticCustomError
from starlette.routing import Route

from service.dialects.common import Foreign, either_type, list_type, message, scored, text_type
from service.errors import InvalidRequest, NotJSON, ServiceError, TooManyTokens
from service.http import as_json, counted
from service.openapi import operation
from service.schemas import ClassifyRequest, Whole, parse_request

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from service.routes import Reply, Service
    from service.schemas import Priority

PATH = "/classify"
INT64 = 2**63
KINDS: dict[object, str] = {str: "<text>", list: "<texts>"}
TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    413: "BadRequestError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
    504: "TimeoutError",
}


def _always(value: bool) -> bool:
    if not value:
        raise PydanticCustomError("always", "the model was trained with special tokens: send true, or leave it out")
    return value


class VLLMRequest(Foreign):
    """What the clients of vLLM send; the limits are set by classify_request()."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": ["a gorgeous movie", "paper thin"]}]})

    input: Annotated[Any, Field(description="A text or a list of texts; token ids are not taken.")]
    model: Annotated[str | None, Field(description="NAME or NAME@VERSION; default: the first served.")] = None
    use_activation: Annotated[bool | None, Field(description="false: logits in place of probabilities.")] = None
    truncate_prompt_tokens: Annotated[
        int | None,
        Field(
            description="-1, or as many tokens as the model reads: cut a text that is longer; null: refuse it. "
            "No other limit can be chosen."
        ),
    ] = None
    truncation_side: Annotated[Literal["right"] | None, Field(description="It is the end that is cut.")] = None
    add_special_tokens: Annotated[
        bool,
        Field(description="They are what the model was trained with.", json_schema_extra={"const": True}),
        AfterValidator(_always),
    ] = True
    request_id: Annotated[
        str | None, Field(min_length=1, max_length=128, description="What the id of the answer ends with.")
    ] = None
    priority: Annotated[
        int,
        Field(ge=-INT64, lt=INT64, description="Below 0: before others; above: others go first, as priority=bulk."),
        Whole,
    ] = 0
    user: Annotated[None, Field(description="Nothing would depend on it.")] = None
    messages: Annotated[None, Field(description="There is no chat template: send input.")] = None

    @property
    def texts(self) -> list[str]:
        """The texts of input."""
        return [self.input] if isinstance(self.input, str) else self.input

    @property
    def native_priority(self) -> Priority | None:
        """0, the default, leaves it to the service."""
        if self.priority == 0:
            return None
        return "bulk" if self.priority > 0 else "interactive"


class VLLMResult(BaseModel):
    """What the model says of one text."""

    index: int
    label: Annotated[str, Field(description="The best.")]
    probs: Annotated[list[float], Field(description="By label id.")]
    num_classes: int


class VLLMUsage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: Literal[0] = 0
    prompt_tokens_details: None = None


class VLLMResponse(BaseModel):
    """Answers in the order of the texts."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[VLLMResult]
    usage: VLLMUsage


class VLLMErrorBody(BaseModel):
    """What went wrong; param is the first field that is wrong."""

    message: str
    type: str
    param: str | None
    code: int


class VLLMError(BaseModel):
    """Every answer that is not 200."""

    error: VLLMErrorBody


def classify_request(service: Service) -> type[VLLMRequest]:
    """VLLMRequest with the limits of this service."""
    text = text_type(service.settings)
    given = either_type(
        {"<text>": text, "<texts>": list_type(text, service.settings.max_texts_per_request)},
        lambda given: KINDS.get(type(given)),
        "send a text or a list of texts",
    )
    lengths = sorted({model.bundle.max_tokens for model in service.models})
    documented = VLLMRequest.model_fields
    fields: dict[str, Any] = {
        "input": (given, documented["input"]),
        "truncate_prompt_tokens": (
            Annotated[Literal[-1, *lengths], Whole] | None,
            documented["truncate_prompt_tokens"],
        ),
    }
    return create_model("VLLMRequest", __base__=VLLMRequest, **fields)


def routes(service: Service) -> list[Route]:
    """POST /classify."""
    model = classify_request(service)

    async def classify(http: Request) -> Response:
        started = time.perf_counter()
        request = parse_request(model, await service.body(http))
        asked = ClassifyRequest(
            texts=request.texts,
            model=request.model,
            on_long="error" if request.truncate_prompt_tokens is None else "truncate",
            priority=request.native_priority,
        )
        reply = await service.answer(http, asked, started)
        _check_length(request, reply)
        return as_json(_response(request, reply, http.state.request_id))

    return [Route(PATH, counted(service, PATH, classify, error_body, error_status), methods=["POST"])]


def paths(service: Service) -> dict[str, Any]:
    """What /openapi.json says of it."""
    errors = dict.fromkeys((400, 401, 404, 413, 429, 500, 503, 504), VLLMError)
    return {PATH: {"post": operation("vLLM's classification", VLLMResponse, errors, classify_request(service))}}


def _check_length(request: VLLMRequest, reply: Reply) -> None:
    """Raises InvalidRequest where it is another model that reads so many tokens."""
    limit = reply.model.bundle.max_tokens
    if request.truncate_prompt_tokens not in (None, -1, limit):
        text = f"the model reads as many tokens as this: send -1 or {limit}"
        raise InvalidRequest([{"field": "truncate_prompt_tokens", "message": text}])


def _response(request: VLLMRequest, reply: Reply, request_id: str) -> VLLMResponse:
    labels = reply.model.bundle.labels
    data = []
    for index, text in enumerate(scored(reply)):
        best = max(range(len(labels)), key=text.scores.__getitem__)
        probs = text.logits if request.use_activation is False else text.scores
        data.append(VLLMResult(index=index, label=labels[best], probs=probs, num_classes=len(labels)))
    tokens = sum(answer.tokens for answer in reply.answers)
    return VLLMResponse(
        id=f"classify-{request.request_id or request_id}",
        created=int(time.time()),
        model=reply.model.name,
        data=data,
        usage=VLLMUsage(prompt_tokens=tokens, total_tokens=tokens),
    )


def error_body(error: ServiceError) -> dict[str, Any]:
    """{"error": {"message", "type", "param", "code"}}."""
    status = error_status(error)
    params = [detail["field"] for detail in error.details]
    body = {"message": _message(error), "type": TYPES.get(status, "InternalServerError")}
    return {"error": {**body, "param": next(filter(None, params), None), "code": status}}


def error_status(error: ServiceError) -> int:
    """As in the native API, but for what the caller can mend: 400."""
    return 400 if isinstance(error, (InvalidRequest, NotJSON, TooManyTokens)) else error.status


def _message(error: ServiceError) -> str:
    if isinstance(error, TooManyTokens):
        given, limit = error.args
        return f"the text has {given} tokens and the model reads {limit}: shorten it, or send truncate_prompt_tokens=-1"
    return message(error)
