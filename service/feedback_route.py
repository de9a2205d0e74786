"""POST /v1/feedback: the right label of a text that was answered, kept for retraining. Only where it has a store.

Called by service/routes.py, as a dialect is: routes(service), and paths(service) for /openapi.json.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model, model_validator
from starlette.routing import Route

from model.scores import MULTI
from service.errors import InvalidRequest
from service.explaining import label_id
from service.http import MAX_REQUEST_ID, as_json, counted
from service.openapi import operation
from service.schemas import ErrorResponse, Whole, parse_request

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from model.manifest import Described
    from model.tokens import Text
    from service.routes import Service
    from service.settings import Settings

PATH = "/v1/feedback"


class FeedbackRequest(BaseModel):
    """The label of one text of an answered request; labels, where a text may have any number of them."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        json_schema_extra={
            "examples": [{"request_id": "6b254467-8dfb-4348-b399-2c5daf16c05e", "index": 0, "label": "negative"}],
            "oneOf": [
                {"required": [one], "properties": {one: {"type": kind}, other: {"type": "null"}}}
                for one, kind, other in (("label", "string", "labels"), ("labels", "array", "label"))
            ],
            "anyOf": [
                {"properties": {"text_pair": {"type": "null"}}},
                {"required": ["text"], "properties": {"text": {"type": "string"}}},
            ],
        },
    )

    request_id: Annotated[
        str,
        Field(
            min_length=1, max_length=MAX_REQUEST_ID, description="Of an answer to the same API key; its X-Request-Id."
        ),
    ]
    index: Annotated[int, Field(ge=0, description="Which text of the request, from 0."), Whole]
    label: Annotated[str | None, Field(description="The right one.")] = None
    labels: Annotated[
        list[str] | None, Field(description="All that are right, of a multi-label model; may be empty.")
    ] = None
    text: Annotated[
        str | None, Field(description="The text, to be kept with the label where the service keeps no texts itself.")
    ] = None
    text_pair: Annotated[str | None, Field(description="The second text, of a pair.")] = None

    @model_validator(mode="after")
    def _consistent(self) -> FeedbackRequest:
        if (self.label is None) == (self.labels is None):
            raise ValueError("send either label or labels")
        if self.text is None and self.text_pair is not None:
            raise ValueError("text_pair is the second text: send text too")
        return self

    @property
    def input(self) -> Text | None:
        """The text or the pair."""
        return self.text if self.text is None or self.text_pair is None else (self.text, self.text_pair)


class FeedbackResponse(BaseModel):
    """The label is kept. A later one for the same text replaces it."""

    request_id: str
    index: int
    model: str
    version: Annotated[str, Field(description="Which answered.")]
    has_text: Annotated[bool, Field(description="Whether the text is kept with it: without, it cannot be trained on.")]


def feedback_request(settings: Settings) -> type[FeedbackRequest]:
    """FeedbackRequest with the limits of this service."""
    text = Annotated[str, StringConstraints(min_length=1, max_length=settings.max_text_chars)]
    fields: dict[str, Any] = {name: (text | None, FeedbackRequest.model_fields[name]) for name in ("text", "text_pair")}
    return create_model("FeedbackRequest", __base__=FeedbackRequest, **fields)


def routes(service: Service) -> list[Route]:
    """POST /v1/feedback, where labels are kept."""
    if service.feedback is None:
        return []
    model, feedback = feedback_request(service.settings), service.feedback
    from service.feedback_store import Label  # with SQLAlchemy, which a service without a store does not import

    async def give(http: Request) -> Response:
        request = parse_request(model, await service.body(http))  # 1. bytes -> a label for a text
        service.access.charge(http.state.key, 1)
        key = http.state.key or ""
        answer, (predicted, score) = await feedback.answered(request.request_id, key, request.index)  # 2. what was said
        label = checked_label(request, service.models.find(answer.model).bundle)  # 3. refuse what is no label
        text = request.input if answer.texts is None else answer.texts[request.index]
        kept = Label(
            request_id=request.request_id,
            key=key,
            index=request.index,
            answered_at=answer.at,
            at=time.time(),
            model=answer.model,
            version=answer.version,
            label=label,
            predicted=predicted,
            score=score,
            text=text,
        )
        await feedback.keep(kept)  # 4. on disk before it is acknowledged
        response = FeedbackResponse(
            request_id=kept.request_id,
            index=kept.index,
            model=kept.model,
            version=kept.version,
            has_text=text is not None,
        )
        return as_json(response, 202)

    return [Route(PATH, counted(service, PATH, give), methods=["POST"])]


def paths(service: Service) -> dict[str, Any]:
    """What /openapi.json says of it."""
    if service.feedback is None:
        return {}
    errors = dict.fromkeys((400, 401, 404, 413, 422, 429, 500, 503, 504), ErrorResponse)
    request = feedback_request(service.settings)
    return {PATH: {"post": operation("send a correction", FeedbackResponse, errors, request, 202)}}


def checked_label(request: FeedbackRequest, bundle: Described) -> str | list[str]:
    """The label or labels, in the order of the model's. Raises InvalidRequest, without the caller's text.

    The labels are those that the model has now, not when it answered: they are what it is trained on again.
    """
    is_multi = bundle.problem_type == MULTI
    if is_multi != (request.labels is not None):
        sent, wanted, how_many = ("label", "labels", "any number") if is_multi else ("labels", "label", "one")
        raise InvalidRequest(
            [{"field": sent, "message": f"a text has {how_many} of this model's labels: send {wanted}"}]
        )
    if request.labels is None:
        assert request.label is not None
        return bundle.labels[label_id("label", request.label, bundle.labels)]
    ids = {label_id(f"labels[{i}]", label, bundle.labels) for i, label in enumerate(request.labels)}
    return [bundle.labels[i] for i in sorted(ids)]
