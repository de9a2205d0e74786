"""Hugging Face Inference: texts, or texts with a text_pair, in; a list of lists out, also of one text.

POST /models/{name} is the Inference API's own path. On / and /predict, service/dialects/predict.py decides, and calls.
Formats: huggingface_hub.InferenceClient.text_classification, and the pipeline behind it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, RootModel, create_model
from starlette.routing import Route

from model.scores import MULTI, SINGLE, probabilities
from service.dialects import tei
from service.dialects.common import (
    Foreign,
    MixedRequest,
    Prediction,
    either_type,
    list_type,
    predictions,
    scored,
    text_type,
)
from service.http import as_json, counted
from service.openapi import operation
from service.schemas import Count, parse_request

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from model.manifest import Described
    from model.tokens import Text
    from service.routes import Service
    from service.scored import Scored
    from service.settings import Settings

MODELS = "/models/{name:path}"
KINDS: dict[object, str] = {str: "<text>", dict: "<pair>"}
Function = Literal["sigmoid", "softmax", "none"]


class PipelineParameters(Foreign):
    """The parameters of a text-classification pipeline that there are."""

    top_k: Annotated[Count | None, Field(description="Labels per text, best first; null: all.")] = None
    function_to_apply: Annotated[
        Function | None, Field(description="What makes scores of logits; null: what the model was trained with.")
    ] = None


class PipelineRequest(Foreign):
    """What the clients of Hugging Face Inference send; the limits are set by pipeline_request()."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": "paper thin", "parameters": {"top_k": 1}}]})

    inputs: Annotated[Any, Field(description="A text, {text, text_pair}, or a list of these.")]
    parameters: PipelineParameters | None = None


class PipelineResponse(RootModel[list[list[Prediction]]]):
    """A list of labels, best first, for each text, also where one was sent by itself."""


def pipeline_request(settings: Settings, *, has_parameters: bool = False) -> type[PipelineRequest]:
    """PipelineRequest with the limits of this service, and parameters required or not."""
    text = text_type(settings)
    with_pair = create_model("TextWithPair", __base__=Foreign, text=(text, ...), text_pair=(text | None, None))
    one = either_type(
        {"<text>": text, "<pair>": with_pair},
        lambda given: KINDS.get(type(given)),
        "send a text, or an object with text and text_pair",
    )
    many = list_type(one, settings.max_texts_per_request)
    inputs = either_type(
        {"<one>": one, "<many>": many}, lambda given: "<many>" if isinstance(given, list) else "<one>", ""
    )
    documented = PipelineRequest.model_fields
    fields: dict[str, Any] = {"inputs": (inputs, documented["inputs"])}
    if has_parameters:
        fields["parameters"] = (PipelineParameters | None, ...)
    name = "PipelineRequestWithParameters" if has_parameters else "PipelineRequest"
    return create_model(name, __base__=PipelineRequest, **fields)


def routes(service: Service) -> list[Route]:
    """POST /models/{name}."""
    model = pipeline_request(service.settings)

    async def post(http: Request) -> Response:
        started = time.perf_counter()
        request = parse_request(model, await service.body(http))
        return await answer(service, http, request, started, http.path_params["name"])

    handler = counted(service, "/models/{name}", post, tei.error_body, tei.error_status)
    return [Route(MODELS, handler, methods=["POST"])]


def paths(service: Service) -> dict[str, Any]:
    """What /openapi.json says of it."""
    errors = dict.fromkeys((404, *tei.CODES), tei.PredictError)
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    post = operation(
        "Hugging Face Inference", PipelineResponse, errors, pipeline_request(service.settings), parameters=[name]
    )
    return {"/models/{name}": {"post": post}}


async def answer(
    service: Service, http: Request, request: PipelineRequest, started: float, model: str | None = None
) -> Response:
    """Translate, have it answered, translate back. started is a time of time.perf_counter()."""
    parameters = request.parameters or PipelineParameters()
    given = request.inputs if isinstance(request.inputs, list) else [request.inputs]
    reply = await service.answer(http, MixedRequest(mixed=[_text(one) for one in given], model=model), started)
    bundle = reply.model.bundle
    results = [
        predictions(bundle.labels, values(bundle, text, parameters.function_to_apply), parameters.top_k)
        for text in scored(reply)
    ]
    return as_json(PipelineResponse(results))


def _text(given: Any) -> Text:
    if isinstance(given, str):
        return given
    return given.text if given.text_pair is None else (given.text, given.text_pair)


def values(bundle: Described, text: Scored, function: Function | None) -> list[float]:
    """Scores of one text by label id: calibrated, whichever function makes them of the logits."""
    if function is None:
        return text.scores
    if function == "none":
        return text.logits
    logits = np.array([text.logits], dtype=np.float32)
    problem = SINGLE if function == "softmax" else MULTI
    made: list[float] = probabilities(logits, problem, bundle.calibration)[0].tolist()
    return made
