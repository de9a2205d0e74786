"""The native request and response. What validates here is what /openapi.json documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    create_model,
    model_validator,
)

from service.errors import InvalidRequest, NotJSON, ServiceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic_core import ErrorDetails

    from model.tokens import Text
    from service.answers import TextAnswer
    from service.explaining import Explained
    from service.scored import Scored
    from service.settings import Settings

Model = TypeVar("Model", bound=BaseModel)
MAX_DETAILS = 20
OnLong = Literal["truncate", "error", "window"]
Priority = Literal["interactive", "bulk"]


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(_whole)  # 4.0 is an integer in JSON Schema, and so in the documentation
Count = Annotated[int, Field(ge=1), Whole]
Milliseconds = Annotated[int, Field(ge=1, le=600_000), Whole]
NO_EXPLAINED_WINDOWS: dict[str, Any] = {  # as JSON Schema: what is explained is not read in windows
    "not": {
        "required": ["explain", "on_long"],
        "properties": {"explain": {"not": {"const": False}}, "on_long": {"const": "window"}},
    }
}


class ClassifyRequest(BaseModel):
    """Texts, or pairs of texts read together, to classify. Unknown fields are refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,  # "yes" is no boolean and "2" no number, here as in the schema
        json_schema_extra={
            "examples": [{"texts": ["a gorgeous, witty, seductive movie", "paper thin"]}],
            "oneOf": [
                {"required": [one], "properties": {one: {"type": "array"}, other: {"type": "null"}}}
                for one, other in (("texts", "pairs"), ("pairs", "texts"))
            ],
            **NO_EXPLAINED_WINDOWS,
        },
    )

    texts: Annotated[list[str] | None, Field(description="Texts to classify; or send pairs.")] = None
    pairs: Annotated[list[tuple[str, str]] | None, Field(description="Pairs of texts, each read together.")] = None
    model: Annotated[str | None, Field(description="NAME or NAME@VERSION; default: the first served.")] = None
    top_k: Annotated[Count | None, Field(description="Labels per text, best first; null: all.")] = None
    raw_scores: Annotated[bool, Field(description="Logits in place of probabilities.")] = False
    on_long: Annotated[
        OnLong,
        Field(
            description="What to do with a text that is longer than the model reads: truncate cuts its end, error "
            "refuses it, window reads all of it in windows that overlap by at least a quarter. The logits of the "
            "windows are pooled before calibration: their mean, or of a multi-label model the maximum of each label. "
            "A pair is cut, or moves along, its longer side."
        ),
    ] = "truncate"
    explain: Annotated[
        bool | str, Field(description="What each token adds to the best label (true), or to the label of this name.")
    ] = False
    timeout_ms: Annotated[
        Milliseconds | None,
        Field(description="Answer within this time, or 504; 429 at once where that cannot be."),
    ] = None
    priority: Annotated[
        Priority | None,
        Field(
            description="bulk lets interactive texts go first, but for each fourth pass. "
            "Default: bulk if the texts fill more than one pass."
        ),
    ] = None

    @model_validator(mode="after")
    def _texts_or_pairs(self) -> ClassifyRequest:
        if (self.texts is None) == (self.pairs is None):
            raise ValueError("send either texts or pairs")
        if self.explain is not False and self.on_long not in ("truncate", "error"):
            raise ValueError("explain needs on_long to be truncate or error")
        return self

    @property
    def inputs(self) -> list[Text]:
        """The texts or the pairs."""
        return list(self.texts if self.texts is not None else self.pairs or [])


def request_model(settings: Settings) -> type[ClassifyRequest]:
    """ClassifyRequest with the limits of this service in its types, and so in its schema."""
    text = Annotated[str, StringConstraints(min_length=1, max_length=settings.max_text_chars)]
    some = Field(min_length=1, max_length=settings.max_texts_per_request)
    documented = ClassifyRequest.model_fields
    fields: dict[str, Any] = {
        "texts": (Annotated[list[text], some] | None, documented["texts"]),
        "pairs": (Annotated[list[tuple[text, text]], some] | None, documented["pairs"]),
    }
    return create_model("ClassifyRequest", __base__=ClassifyRequest, **fields)


def parse_request(model: type[Model], body: bytes) -> Model:
    """Bytes -> request. Raises NotJSON or InvalidRequest; neither repeats the input."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _refused(model, error) from None


def check_request(model: type[Model], fields: dict[str, Any]) -> Model:
    """Fields that a dialect has found -> request. Raises InvalidRequest, which does not repeat the input."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _refused(model, error) from None


def _refused(model: type[BaseModel], error: ValidationError) -> ServiceError:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    if problems[0]["type"] == "json_invalid":
        return NotJSON(problems[0]["msg"].removeprefix("Invalid JSON: "))
    return InvalidRequest(_details(problems, model))


def _details(problems: list[ErrorDetails], model: type[BaseModel]) -> list[dict[str, str]]:
    """Field and message of each problem. An unknown field is not repeated: its name is the caller's text."""
    details: list[dict[str, str]] = []
    for problem in problems:
        location, message = problem["loc"], problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            location = location[:-1]
            message = f"there is no such field, there are: {', '.join(_model_at(model, location).model_fields)}"
        detail = {"field": field_name(location), "message": message}
        if detail not in details:  # of a place with many unknown fields, once
            details.append(detail)
    return details[:MAX_DETAILS]


def _model_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The schema of a place in a request, such as ("inputs", 0, "parameters")."""
    for part in location:
        if part in model.model_fields:
            model = next(_models_in(model.model_fields[str(part)].annotation), model)
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def field_name(location: tuple[int | str, ...]) -> str:
    """("texts", 0) -> texts[0]; a part in <> is a branch of a union, not a name that was sent."""
    named = [part for part in location if not str(part).startswith("<")]
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in named]
    return "".join(parts).lstrip(".")


class LabelScore(BaseModel):
    """A label of the model with its score."""

    label: str
    score: Annotated[float, Field(description="Calibrated probability; the logit where raw_scores.")]


class TextError(BaseModel):
    """Why this one text has no answer."""

    code: str
    message: str


class WindowResult(BaseModel):
    """What the model says of one window of a text by itself."""

    start: Annotated[int, Field(description="First character of the text that it reads.")]
    end: Annotated[int, Field(description="The character after the last.")]
    side: Annotated[
        int | None, Field(description="Which text of a pair the window moves along, 0 or 1; the other is read whole.")
    ] = None
    labels: Annotated[list[LabelScore], Field(description="Best first, as many as of the text.")]


class TokenScore(BaseModel):
    """A token of the text and what it adds; sub-words are tokens of their own."""

    text: Annotated[str, Field(description="The characters from start to end of the text that was sent.")]
    start: Annotated[int, Field(description="In characters (Unicode code points), not bytes.")]
    end: int
    side: Annotated[int | None, Field(description="0 or 1: which text of a pair; absent for a text alone.")] = None
    score: Annotated[float, Field(description="Log-odds that it adds to the label (its logit, if labels are many).")]


class Explanation(BaseModel):
    """Integrated gradients from the masked text: scores + gap = target(text) - target(text with all tokens masked).

    The target is the label's log-odds, before calibration; the logit where labels do not exclude one another.
    Computed in fp32, whatever the precision of the service.
    """

    label: str
    tokens: Annotated[list[TokenScore], Field(description="In order; special tokens, which score 0, left out.")]
    gap: Annotated[float, Field(description="What the scores leave unexplained; the method aims at 0.05 or less.")]


class TextResult(BaseModel):
    """The answer to one text: labels, or error in their place."""

    labels: Annotated[list[LabelScore] | None, Field(description="Best first.")] = None
    label_set: Annotated[
        list[str] | None,
        Field(description="Conformal set, or the labels over their thresholds; absent if the model has none."),
    ] = None
    abstained: Annotated[
        bool | None,
        Field(
            description="True: the text is unlike those that the model was trained on, do not use its labels; absent "
            "if the model cannot tell."
        ),
    ] = None
    tokens: Annotated[
        int | None,
        Field(description="Tokens of the text that the model read, each counted once, special tokens included."),
    ] = None
    truncated_tokens: Annotated[int | None, Field(description="Tokens that were cut off.")] = None
    windows: Annotated[
        list[WindowResult] | None, Field(description="With on_long=window; absent where the text fit.")
    ] = None
    explanation: Annotated[Explanation | None, Field(description="Where the request asks for it.")] = None
    error: TextError | None = None


def text_result(
    labels: Sequence[str], answer: TextAnswer, top_k: int | None = None, *, raw_scores: bool = False
) -> TextResult:
    """One text's labels, best first, or its error."""

    def best(scored: Scored) -> list[LabelScore]:
        values = scored.logits if raw_scores else scored.scores
        order = sorted(range(len(labels)), key=lambda i: -values[i])[:top_k]
        return [LabelScore(label=labels[i], score=values[i]) for i in order]

    whole = answer.result
    if isinstance(whole, ServiceError):
        return TextResult(error=TextError(code=whole.code, message=str(whole)))
    in_set = whole.in_set
    return TextResult(
        labels=best(whole),
        label_set=None if in_set is None else [label for label, inside in zip(labels, in_set, strict=True) if inside],
        abstained=whole.abstained,
        tokens=answer.tokens,
        truncated_tokens=answer.rows[0].truncated,
        windows=[
            WindowResult(start=window.start, end=window.end, side=window.side, labels=best(scored))
            for window, scored in answer.windows
        ]
        or None,
    )


def explained_result(
    result: TextResult, labels: Sequence[str], text: Text, explained: Explained | ServiceError | None
) -> TextResult:
    """The result with its explanation, an error in its place where that failed, or as it is without one."""
    if explained is None:
        return result
    if isinstance(explained, ServiceError):
        return TextResult(error=TextError(code=explained.code, message=str(explained)))
    sides = (text,) if isinstance(text, str) else text
    tokens = [
        TokenScore(
            text=sides[span.side][span.start : span.stop],
            start=span.start,
            end=span.stop,
            side=span.side if len(sides) > 1 else None,
            score=score,
        )
        for span, score in zip(explained.spans, explained.attribution.scores, strict=True)
        if span is not None
    ]
    why = Explanation(label=labels[explained.label], tokens=tokens, gap=explained.attribution.gap)
    return result.model_copy(update={"explanation": why})


class Timing(BaseModel):
    """Where the time went, in ms; queue and forward are the longest of the request's texts."""

    queue: float
    tokenize: float
    forward: float
    total: float


class ClassifyResponse(BaseModel):
    """Answers in the order of the texts."""

    request_id: str
    model: str
    version: str
    results: list[TextResult]
    timing_ms: Timing


class ErrorBody(BaseModel):
    """What went wrong and what to change."""

    code: str
    message: str
    details: list[dict[str, str]]


class ErrorResponse(BaseModel):
    """Every answer that is not 200."""

    error: ErrorBody


class Health(BaseModel):
    """Live: the compute loop turns. Ready: every model is loaded and warm, and the replica is not draining."""

    live: bool
    ready: bool


class FollowError(BaseModel):
    """Why a model is not the version that its alias names."""

    version: Annotated[str | None, Field(description="Which could not be loaded; null: the registry was unreadable.")]
    error: Annotated[str, Field(description="Its type; the log says more.")]
    at: Annotated[str, Field(description="ISO 8601, UTC.")]


class CandidateInfo(BaseModel):
    """The version that is tried beside the one in production."""

    version: str
    answered: Annotated[int, Field(description="Texts that it has answered, seen or unseen, in this replica.")]
    failed: Annotated[int, Field(description="Of these.")]
    agreement: Annotated[float | None, Field(description="Share on which it says what production says.")]
    score_shift: Annotated[float | None, Field(description="How far it moves the score of production's label, mean.")]
    added_ms: Annotated[float | None, Field(description="Passes of a request that it reads unseen, mean.")]
    ended: Annotated[str | None, Field(description="Why it answers nothing any more; null while it is tried.")]


class ModelInfo(BaseModel):
    """One served model: the version that answers to its name."""

    name: str
    version: str
    versions: Annotated[list[str], Field(description="All that are loaded and answer to NAME@VERSION, newest first.")]
    following: Annotated[str | None, Field(description="NAME@ALIAS of the registry; null: it stays as it is.")]
    candidate: Annotated[CandidateInfo | None, Field(description="Null where none is tried.")]
    last_error: Annotated[FollowError | None, Field(description="Null while it is the version that its alias names.")]
    labels: list[str]
    problem_type: Literal["single_label_classification", "multi_label_classification"]
    max_tokens: int
    coverage: Annotated[
        float | None, Field(description="Share of texts whose label_set holds the true label; null: no such sets.")
    ]
    false_alarms: Annotated[
        float | None,
        Field(description="Share of texts like those it was trained on that are abstained all the same; null: never."),
    ]
    device: str
    precision: str


class ModelList(BaseModel):
    """What is served, and the limits on a request."""

    models: list[ModelInfo]
    max_texts_per_request: int
    max_text_chars: int
    max_body_bytes: int
