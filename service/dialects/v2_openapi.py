"""The routes of /v2 as OpenAPI has them, with the schemas of their answers. Called by service/dialects/v2.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.dialects.oip import Strict, infer_request
from service.openapi import ERRORS, operation, said

if TYPE_CHECKING:
    from service.routes import Service

Names = Literal["label", "score", "probabilities", "logits", "label_set", "abstained", "explanation"]
NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
VERSION = NAME | {"name": "version"}
JSON_LENGTH = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "required": False,
    "schema": {"type": "integer", "minimum": 0},
    "description": "bytes of the JSON, where binary tensors follow it",
}


class Answer(BaseModel):
    """What an answer holds, and nothing else."""

    model_config = ConfigDict(extra="forbid")


class IndexRequest(Strict):
    """POST /v2/repository/index; the body may be empty too."""

    ready: Annotated[bool, Field(description="Leave out what cannot be loaded.")] = False


class V2Error(Answer):
    """What went wrong and what to change."""

    error: str


class ServerLive(Answer):
    """The device answers."""

    live: Literal[True]


class ServerReady(Answer):
    """Requests are answered."""

    ready: Literal[True]


class ServerMetadata(Answer):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]


class ModelNames(Answer):
    """What is served."""

    models: list[str]


class ModelReady(Answer):
    """The model answers."""

    name: str
    ready: Literal[True]


class TensorMetadata(Answer):
    """A tensor; -1 is the number of texts."""

    name: str
    datatype: Literal["BYTES", "FP32", "BOOL"]
    shape: list[int]


class ModelMetadata(Answer):
    """The versions that are loaded, and the tensors in and out."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelIndex(Answer):
    """A version in the repository."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class BinarySize(Answer):
    """Parameters of a tensor whose values follow the JSON."""

    binary_data_size: int


class OutputTensor(Answer):
    """An output: data, row after row, or parameters where it is binary."""

    name: Names
    datatype: Literal["BYTES", "FP32", "BOOL"]
    shape: list[int]
    data: list[str] | list[float] | list[bool] | None = None
    parameters: BinarySize | None = None


class InferResponse(Answer):
    """Answers in the order of the texts."""

    model_name: str
    model_version: str
    id: str
    outputs: list[OutputTensor]


def paths(service: Service) -> dict[str, Any]:
    """Of Open Inference Protocol V2."""
    request = infer_request(service.settings)
    found = {
        "/v2": {"get": get_operation("what the server is (V2)", ServerMetadata, errors=(401,))},
        "/v2/health/live": {"get": get_operation("whether the device answers (V2)", ServerLive, errors=(503,))},
        "/v2/health/ready": {"get": get_operation("whether requests are answered (V2)", ServerReady, errors=(503,))},
        "/v2/models": {"get": get_operation("what is served (V2)", ModelNames, errors=(401,))},
        "/v2/repository/index": {"post": _index()},
    }
    for path, parameters in (("", [NAME]), ("/versions/{version}", [NAME, VERSION])):
        model = f"/v2/models/{{name}}{path}"
        found[model] = {"get": get_operation("its tensors (V2)", ModelMetadata, *parameters, errors=(401, 404))}
        found[f"{model}/ready"] = {
            "get": get_operation("whether it answers (V2)", ModelReady, *parameters, errors=(401, 404, 503))
        }
        infer = infer_operation("label texts (V2)", request, InferResponse, *parameters, JSON_LENGTH)
        binary = {"schema": {"type": "string", "format": "binary"}}
        for body in (infer["requestBody"], infer["responses"]["200"]):
            body["content"]["application/octet-stream"] = binary
        found[f"{model}/infer"] = {"post": infer}
    return found


def get_operation(
    summary: str, model: type[BaseModel], *parameters: dict[str, Any], errors: tuple[int, ...] = ()
) -> dict[str, Any]:
    """An operation without a body."""
    return operation(summary, model, dict.fromkeys(errors, V2Error), parameters=list(parameters))


def infer_operation(
    summary: str, request: type[BaseModel], model: type[BaseModel], *parameters: dict[str, Any]
) -> dict[str, Any]:
    """An operation that has texts labelled; what is wrong in a request is a 400."""
    errors = dict.fromkeys((400, 401, 404, 413, 429, 500, 503, 504), V2Error)
    found = operation(summary, model, errors, request, parameters=list(parameters))
    found["responses"]["400"]["description"] = "fields or lengths"
    return found


def _index() -> dict[str, Any]:
    listed = said("so", ModelIndex)
    listed["content"]["application/json"]["schema"] = {"type": "array", "items": ModelIndex}
    return {
        "summary": "every version that is loaded, and what could not be (V2)",
        "requestBody": {"required": False, "content": {"application/json": {"schema": IndexRequest}}},
        "responses": {"200": listed, **_errors(400, 401, 413, 503, 504)},
    }


def _errors(*codes: int) -> dict[str, Any]:
    return {str(code): said("fields or lengths" if code == 400 else ERRORS[code], V2Error) for code in sorted(codes)}
