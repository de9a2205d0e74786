"""Open Inference Protocol V2, whatever carries it: a request -> a ClassifyRequest; a reply -> output tensors.

v2.py reads it from HTTP, v2_grpc.py from gRPC. One BYTES input, whatever its name, is texts; `text` and `text_pair`
are pairs. What Triton's clients may send, and this service does not do, is refused by its name.
Source: https://github.com/kserve/open-inference-protocol, and the extensions of Triton's that EXTENSIONS names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, create_model, model_validator

from model.scores import MULTI
from service.dialects.common import either_type, list_type, text_type
from service.dialects.tensors import Results, bad, count, elements_of, texts_of_bytes, texts_of_json
from service.errors import InvalidRequest, ServiceError
from service.schemas import NO_EXPLAINED_WINDOWS, Count, OnLong, Whole, explained_result, text_result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.manifest import Described
    from service.dialects.tensors import Tensor
    from service.routes import Reply
    from service.schemas import Priority
    from service.settings import Settings

EXTENSIONS = ["binary_tensor_data", "classification", "parameters", "schedule_policy"]
MAX_TIMEOUT_US = 600_000_000
SHARED = {"shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"}
SEQUENCE = {"sequence_id", "sequence_start", "sequence_end"}
UNRANKED = ("label_set", "abstained", "explanation")  # what classification cannot rank
Size = Annotated[int, Field(ge=0), Whole]
Microseconds = Annotated[int, Field(ge=0, le=MAX_TIMEOUT_US), Whole]


class Strict(BaseModel):
    """Unknown fields are refused; the values of parameters may be null, as some clients send them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _named(name: str) -> dict[str, Any]:
    """As JSON Schema: one of a list has this name."""
    return {"contains": {"properties": {"name": {"const": name}}}}


class Parameters(Strict):
    """Parameters of a part of a request. Those that are Triton's and not ours are refused by name."""

    @model_validator(mode="before")
    @classmethod
    def _ours(cls, value: Any) -> Any:
        theirs = sorted((SHARED | SEQUENCE) & value.keys()) if isinstance(value, dict) else []
        if theirs:
            raise ValueError(f"there is no shared memory and there are no sequences, leave out: {', '.join(theirs)}")
        return value


class InputParameters(Parameters):
    """Parameters of an input."""

    binary_data_size: Annotated[Size | None, Field(description="Bytes of the tensor after the JSON.")] = None
    content_type: Annotated[Literal["str"] | None, Field(description="As MLServer's clients send it.")] = None


class InferInput(Strict):
    """A tensor of texts; the limits are set by infer_request(). The schema is that of a body which is all JSON."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                {"required": ["data"], "properties": {"data": {"type": "array"}}},
                {"properties": {"parameters": {"properties": {"binary_data_size": {"type": "null"}}}}},
            ],
            "anyOf": [
                {"properties": {"data": {"items": {"type": "string"}}}},
                {"properties": {"shape": {"minItems": 2}}},
            ],
        }
    )

    name: Annotated[str, Field(description="Any; of two inputs, one is text and the other text_pair.")]
    shape: Annotated[list[Size], Field(description="[n] or [n, 1].")]
    datatype: Literal["BYTES"]
    parameters: InputParameters | None = None
    data: Annotated[Any, Field(description="Flat, or nested as the shape says.")] = None


class OutputParameters(Parameters):
    """Parameters of a requested output."""

    classification: Annotated[Count | None, Field(description="The best so many, as VALUE:INDEX:LABEL.")] = None
    binary_data: Annotated[bool | None, Field(description="Whether the tensor follows the JSON in binary.")] = None
    content_type: Annotated[Literal["str"] | None, Field(description="As MLServer's clients send it.")] = None


class RequestedOutput(Strict):
    """An output to answer with."""

    model_config = ConfigDict(
        json_schema_extra={
            "not": {
                "required": ["name", "parameters"],
                "properties": {
                    "name": {"enum": [*UNRANKED]},
                    "parameters": {
                        "type": "object",
                        "required": ["classification"],
                        "properties": {"classification": {"type": "integer"}},
                    },
                },
            }
        }
    )

    name: Literal["label", "score", "probabilities", "logits", "label_set", "abstained", "explanation"]
    parameters: OutputParameters | None = None


class InferParameters(Parameters):
    """Parameters of a request."""

    model_config = ConfigDict(json_schema_extra=NO_EXPLAINED_WINDOWS)

    top_k: Annotated[Count | None, Field(description="Makes label and score [n, k], best first.")] = None
    raw_scores: Annotated[bool, Field(description="Makes score, and its classification, logits.")] = False
    on_long: Annotated[OnLong, Field(description="What to do with a text that is longer than the model reads.")] = (
        "truncate"
    )
    explain: Annotated[bool | str, Field(description="Adds the output explanation: JSON for each text.")] = False
    priority: Annotated[Size, Field(description="1 goes first, 2 and more let others go first; 0: neither.")] = 0
    timeout: Annotated[Microseconds, Field(description="In microseconds; 0: the server's own.")] = 0
    binary_data_output: Annotated[bool, Field(description="All outputs in binary, but where they say no.")] = False
    content_type: Annotated[Literal["str"] | None, Field(description="As MLServer's clients send it.")] = None


class InferRequest(Strict):
    """POST /v2/models/NAME/infer; the limits are set by infer_request()."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["paper thin"]}]}]
        }
    )

    id: Annotated[str | None, Field(description="Comes back in the answer.")] = None
    model_name: Annotated[str | None, Field(description="As in the path, where a client repeats it.")] = None
    inputs: Annotated[
        list[InferInput],
        Field(
            min_length=1,
            max_length=2,
            json_schema_extra={"anyOf": [{"maxItems": 1}, {"allOf": [_named("text"), _named("text_pair")]}]},
        ),
    ]
    outputs: Annotated[list[RequestedOutput] | None, Field(max_length=7, description="Default: all.")] = None
    parameters: InferParameters | None = None

    @property
    def options(self) -> InferParameters:
        """Its parameters, or the defaults."""
        return self.parameters or InferParameters()


def infer_request(settings: Settings) -> type[InferRequest]:
    """InferRequest with the limits of this service."""
    most, documented = settings.max_texts_per_request, InferInput.model_fields
    sides = [{"type": "integer", "minimum": 1, "maximum": most}, {"const": 1}]
    as_schema = WithJsonSchema({"type": "array", "prefixItems": sides, "minItems": 1, "maxItems": 2})
    text = text_type(settings)
    data = either_type(
        {"<flat>": list_type(text, most), "<nested>": list_type(list_type(text, 1), most)},
        lambda given: "<nested>" if isinstance(given, list) and given and isinstance(given[0], list) else "<flat>",
        "",
    )
    fields: dict[str, Any] = {
        "shape": (Annotated[list[Size], as_schema], documented["shape"]),
        "data": (data | None, documented["data"]),
    }
    tensor: Any = create_model("InferInput", __base__=InferInput, **fields)
    return create_model(
        "InferRequest", __base__=InferRequest, inputs=(list[tensor], InferRequest.model_fields["inputs"])
    )


def native(request: InferRequest, raws: Sequence[bytes | None], model: str, most: int) -> dict[str, Any]:
    """The fields of a ClassifyRequest. raws are the binary data of the inputs, None where there is JSON.

    Raises InvalidRequest.
    """
    options = request.options
    return {
        **_texts([(one.name, _input(f"inputs[{i}]", one, raws[i], most)) for i, one in enumerate(request.inputs)]),
        "model": model,
        "raw_scores": options.raw_scores,
        "on_long": options.on_long,
        "explain": options.explain,
        "timeout_ms": -(-options.timeout // 1000) or None,
        "priority": priority(options.priority),
    }


def priority(level: int) -> Priority | None:
    """Triton's levels: 1 is the highest, 0 the default."""
    if level == 0:
        return None
    return "interactive" if level == 1 else "bulk"


def _input(field: str, tensor: InferInput, raw: bytes | None, most: int) -> list[str]:
    num_texts = count(field, tensor.shape, most)
    if (raw is None) == (tensor.data is None):
        raise bad(field, "send the texts once: as data (in gRPC bytes_contents), or in binary")
    if raw is not None:
        return texts_of_bytes(field, elements_of(field, raw, num_texts))
    return texts_of_json(field, tensor.shape, tensor.data or [])


def _texts(inputs: Sequence[tuple[str, list[str]]]) -> dict[str, Any]:
    if len(inputs) == 1:
        return {"texts": inputs[0][1]}
    sides = dict(inputs)
    if sides.keys() != {"text", "text_pair"}:
        raise bad("inputs", "one input is texts; two are pairs, and their names text and text_pair")
    if len(sides["text"]) != len(sides["text_pair"]):
        raise bad("inputs", "text and text_pair have different numbers of texts")
    return {"pairs": list(zip(sides["text"], sides["text_pair"], strict=True))}


def outputs(request: InferRequest, reply: Reply, inputs: Sequence[Any]) -> list[tuple[Tensor, bool | None]]:
    """The tensors that are asked for, and whether each is wanted in binary, None where nothing is said.

    Raises InvalidRequest where there is no such output, and what one of the texts failed with.
    """
    options = request.options
    results = results_of(reply, inputs, options)
    wanted = request.outputs
    if not wanted:
        return [(results.tensor(name), None) for name in results.names()]
    for i, one in enumerate(wanted):
        check_output(f"outputs[{i}]", one, results.names())
    return [(_output(results, one), one.parameters.binary_data if one.parameters else None) for one in wanted]


def check_output(field: str, wanted: RequestedOutput, names: Sequence[str]) -> None:
    """Raises InvalidRequest where this model, or this request, has no such output."""
    if wanted.name not in names:
        raise bad(field, f"{wanted.name} is not in the answer to this request, there are: {', '.join(names)}")
    if wanted.parameters and wanted.parameters.classification and wanted.name in UNRANKED:
        raise bad(field, f"classification ranks label, score, probabilities or logits, and not {wanted.name}")


def _output(results: Results, wanted: RequestedOutput) -> Tensor:
    if wanted.parameters and wanted.parameters.classification:
        return results.classification(wanted.name, wanted.parameters.classification)
    return results.tensor(wanted.name)


def results_of(reply: Reply, inputs: Sequence[Any], options: InferParameters) -> Results:
    """A tensor has no place for an error: where one text failed, the request did. Raises that error."""
    labels = reply.model.bundle.labels
    explanations = []
    for i, why in enumerate(reply.explained):
        if isinstance(why, ServiceError):
            raise failed(i, why)
        explained = explained_result(text_result(labels, reply.answers[i]), labels, inputs[i], why).explanation
        explanations.append(explained.model_dump_json(exclude_none=True) if explained else "")
    scored = []
    for i, text in enumerate(reply.answers):
        if isinstance(text.result, ServiceError):
            raise failed(i, text.result)
        scored.append(text.result)
    return Results(labels, scored, explanations, options.top_k, options.raw_scores)


def failed(i: int, error: ServiceError) -> ServiceError:
    """The error of one text, as that of its request."""
    return bad(f"texts[{i}]", str(error)) if error.status < 500 else error


def model_metadata(name: str, versions: Sequence[str], bundle: Described) -> dict[str, Any]:
    """What GET /v2/models/NAME and ModelMetadata answer: what is in an answer that names no outputs."""
    C = len(bundle.labels)
    abstains = bundle.calibration.scope_threshold is not None
    matrices = [("probabilities", "FP32"), ("logits", "FP32")]
    if bundle.problem_type == MULTI or bundle.calibration.quantile is not None:
        matrices.append(("label_set", "BOOL"))
    return {
        "name": name,
        "versions": list(versions),
        "platform": "heed",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "score", "datatype": "FP32", "shape": [-1]},
            *({"name": name, "datatype": datatype, "shape": [-1, C]} for name, datatype in matrices),
            *([{"name": "abstained", "datatype": "BOOL", "shape": [-1]}] if abstains else []),
        ],
    }


def as_400(error: ServiceError) -> ServiceError:
    """The protocol answers 400 to whatever is wrong in a request."""
    return BadRequest(str(error)) if isinstance(error, InvalidRequest) or error.status == 422 else error


class BadRequest(ServiceError):
    """Arguments: what is wrong, as the message of an InvalidRequest."""

    status, code = 400, "invalid_request"
    template = "{}"
