"""text-embeddings-inference: a text, a pair or a batch of both in; a flat list, or a list of lists, out.

Its paths are those of Hugging Face's clients too: service/dialects/predict.py decides, and calls.
Formats: https://github.com/huggingface/text-embeddings-inference, router/src/http.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, RootModel, create_model
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from service.dialects.common import (
    Foreign,
    MixedRequest,
    Prediction,
    either_type,
    list_type,
    message,
    predictions,
    scored,
    text_type,
)
from service.errors import (
    BodyTooLarge,
    Failed,
    InvalidRequest,
    NoSuchModel,
    NotJSON,
    NotReady,
    Overloaded,
    ServiceError,
    TooManyTokens,
    Unauthorized,
)
from service.tokenizing import num_chars

if TYPE_CHECKING:
    from starlette.requests import Request

    from model.tokens import Text
    from service.routes import Reply, Service
    from service.settings import Settings

ErrorType = Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Empty"]
CODES = (400, 401, 413, 422, 424, 429, 500, 503, 504)


class Empty(ServiceError):
    status, code = 400, "empty"
    template = "`inputs` cannot be empty"


class PredictRequest(Foreign):
    """What the clients of text-embeddings-inference send; the limits are set by predict_request()."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": "a gorgeous, witty, seductive movie"}]})

    inputs: Annotated[
        Any,
        Field(
            description="text or [text]; [text, text] is ONE pair, read together; [[text], [text, text]] is a batch."
        ),
    ]
    truncate: Annotated[
        bool | None, Field(description="Cut the end of a text that is too long (true, null), or refuse it (false).")
    ] = None
    truncation_direction: Annotated[
        Literal["right", "Right"], Field(description="The end is cut; the left side is not there to choose.")
    ] = "Right"
    raw_scores: Annotated[bool, Field(description="Logits in place of probabilities.")] = False

    @property
    def is_batch(self) -> bool:
        """Whether the answer is a list of lists."""
        return isinstance(self.inputs, list) and isinstance(self.inputs[0], list)


class Predictions(RootModel[list[Prediction] | list[list[Prediction]]]):
    """Labels of one text or pair, best first; of a batch, one list for each."""


class PredictError(BaseModel):
    """Every answer that is not 200."""

    error: str
    error_type: ErrorType


def predict_request(settings: Settings) -> type[PredictRequest]:
    """PredictRequest with the limits of this service."""
    text: Any = Annotated[text_type(settings), BeforeValidator(_not_empty)]
    one: Any = Annotated[list_type(text, 2), BeforeValidator(_no_batch)]
    batch = list_type(list_type(text, 2), settings.max_texts_per_request)
    otherwise = "send a text, a pair as [text, text], or a batch as [[text], [text, text], ...]"
    inputs = either_type({"<text>": text, "<one>": one, "<batch>": batch}, _kind_of_inputs, otherwise)
    fields: dict[str, Any] = {"inputs": (inputs, PredictRequest.model_fields["inputs"])}
    return create_model("PredictRequest", __base__=PredictRequest, **fields)


def _kind_of_inputs(inputs: object) -> str | None:
    if isinstance(inputs, str):
        return "<text>"
    if isinstance(inputs, list):
        return "<one>" if inputs and isinstance(inputs[0], str) else "<batch>"
    return None


def _not_empty(text: object) -> object:
    if text == "":
        raise Empty
    return text


def _no_batch(texts: list[object]) -> list[object]:
    if len(texts) > 2 and all(isinstance(text, str) for text in texts):
        raise PydanticCustomError("batch", "two strings are one pair: send a batch as [[text], [text], ...]")
    return texts


async def answer(service: Service, http: Request, request: PredictRequest, started: float) -> Response:
    """Translate, have it answered, translate back. started is a time of time.perf_counter()."""
    given = request.inputs if request.is_batch else [request.inputs]
    asked = MixedRequest(
        mixed=[_text(one) for one in given], on_long="error" if request.truncate is False else "truncate"
    )
    reply = await service.answer(http, asked, started)
    labels = reply.model.bundle.labels
    results = [predictions(labels, text.logits if request.raw_scores else text.scores) for text in scored(reply)]
    body = Predictions(results if request.is_batch else results[0]).model_dump_json()
    headers = timing_headers(reply, asked.inputs, time.perf_counter() - started)
    return Response(body, media_type="application/json", headers=headers)


def _text(given: str | list[str]) -> Text:
    if isinstance(given, str):
        return given
    return given[0] if len(given) == 1 else (given[0], given[1])


def timing_headers(reply: Reply, texts: list[Text], total_s: float) -> dict[str, str]:
    """What the request cost, in whole ms; queue and inference are the longest of its texts."""
    figures = {
        "x-compute-time": total_s,
        "x-total-time": total_s,
        "x-tokenization-time": reply.answered.tokenize_s,
        "x-queue-time": reply.answered.queue_s,
        "x-inference-time": reply.answered.forward_s,
    }
    return {
        "x-compute-type": "cpu" if reply.model.loaded.device == "cpu" else "gpu",
        "x-compute-characters": str(sum(map(num_chars, texts))),
        "x-compute-tokens": str(sum(answer.tokens for answer in reply.answers)),
        **{name: str(int(seconds * 1000)) for name, seconds in figures.items()},
    }


def error_body(error: ServiceError) -> dict[str, str]:
    """{"error", "error_type"}, the type as it is on TEI's wire."""
    return {"error": _message(error), "error_type": _error_type(error)}


def error_status(error: ServiceError) -> int:
    """As in the native API, but for a text on which the model fails."""
    return 424 if isinstance(error, Failed) else error.status


def _message(error: ServiceError) -> str:
    if isinstance(error, TooManyTokens):
        given, limit = error.args
        return (
            f"Input validation error: `inputs` must have at most {limit} tokens. Given: {given}. "
            "Shorten it, or send truncate=true"
        )
    return message(error)


def _error_type(error: ServiceError) -> ErrorType:
    match error:
        case Empty():
            return "Empty"
        case InvalidRequest() | NotJSON() | BodyTooLarge() | TooManyTokens() | NoSuchModel() | Unauthorized():
            return "Validation"
        case Overloaded():
            return "Overloaded"
        case NotReady():
            return "Unhealthy"
        case _:
            return "Backend"
