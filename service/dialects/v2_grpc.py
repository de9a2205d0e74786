"""Open Inference Protocol V2 over gRPC: the methods of inference.GRPCInferenceService.

A request takes the same way as over HTTP, from InferRequest on. The deadline of a call is the request's timeout; a
call that ends early is cancelled, and takes its waiting texts along. Registered by service/grpc_ingress.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError
from starlette.datastructures import State

from service import metrics
from service.dialects.oip import as_400, infer_request, native, outputs
from service.dialects.tensors import bad, texts_of_bytes
from service.dialects.v2 import SERVER, metadata, repository
from service.errors import NotReady, ServiceError, where
from service.grpc_messages import METHODS, SERVICE, message
from service.http import given_request_id, named
from service.schemas import check_request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from service.dialects.oip import InferInput
    from service.dialects.tensors import Tensor
    from service.models import ServedModel
    from service.routes import Service

    Method = Callable[[Any, "Caller"], Awaitable[Any]]  # message -> message

log = logging.getLogger("heed")

MAX_TIMEOUT_MS = 600_000
MAX_DETAILS = 4096  # characters of an error: gRPC's clients read 8 KB of trailers
OPEN = {"ServerLive", "ServerReady"}  # as health over HTTP: without a key, and without a span
CODES = {
    200: grpc.StatusCode.OK,
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def handlers(service: Service) -> dict[str, grpc.RpcMethodHandler]:
    """Those of every method."""
    methods = V2Grpc(service)
    return {
        name: grpc.unary_unary_rpc_method_handler(called(service, name, getattr(methods, name))) for name in METHODS
    }


def called(service: Service, name: str, method: Method) -> Callable[[bytes, Any], Awaitable[bytes]]:
    """The method on bytes, for callers with a key, with its errors as gRPC's codes and its outcome in the metrics."""
    route, request_type = f"/{SERVICE}/{name}", message(f"{name}Request")
    wants_key = not (name in OPEN or service.access.is_open)
    tracing = None if name in OPEN else service.tracing

    async def call(body: bytes, context: Any) -> bytes:
        started, status = time.perf_counter(), 499  # a caller that has left cancels this
        found: bytes | ServiceError | None = None
        caller = Caller(context)
        request_id = caller.state.request_id
        context.set_trailing_metadata((("x-request-id", request_id),))
        if tracing is not None:
            said = {"rpc.system": "grpc", "rpc.service": SERVICE, "rpc.method": name, "heed.request_id": request_id}
            caller.state.span = tracing.begin(route[1:], caller.headers, said)
        try:
            found = await answer(body, caller)
            status = found.status if isinstance(found, ServiceError) else 200
        finally:
            metrics.REQUESTS.labels(route, str(status)).inc()
            metrics.REQUEST_SECONDS.labels(route).observe(time.perf_counter() - started)
            if tracing is not None:
                error = found if isinstance(found, ServiceError) else None
                tracing.end(caller.state.span, {"rpc.grpc.status_code": code_of(status).value[0]}, error)
        if isinstance(found, bytes):
            return found
        metrics.REFUSED.labels(found.code).inc()
        await context.abort(
            code_of(status), str(found)[:MAX_DETAILS], (("x-request-id", request_id), *when_to_retry(found))
        )
        raise AssertionError("abort raises")

    async def answer(body: bytes, caller: Caller) -> bytes | ServiceError:
        try:
            if wants_key:
                caller.state.key = service.access.caller(caller.headers.get("authorization", ""))
            return bytes((await method(request_type.FromString(body), caller)).SerializeToString())
        except DecodeError:
            return as_400(bad("", f"the message is no {name}Request"))
        except ServiceError as error:
            return as_400(error)
        except Exception as error:  # as in service/http.py: only the type of a bug is told
            log.error("%s: %s failed: %s", named(caller.state.request_id, caller.headers), route, where(error))
            return ServiceError()

    return call


def code_of(status: int) -> grpc.StatusCode:
    """The code of gRPC for one of HTTP."""
    return CODES.get(status, grpc.StatusCode.INTERNAL)


def when_to_retry(error: ServiceError) -> list[tuple[str, str]]:
    """Trailing metadata: seconds as in HTTP, and the milliseconds that gRPC's own retries wait."""
    seconds = error.headers.get("Retry-After")
    return [("retry-after", seconds), ("grpc-retry-pushback-ms", f"{seconds}000")] if seconds else []


class Caller:
    """Whom a request is answered for: gRPC itself cancels the task of a call that has ended."""

    def __init__(self, context: Any) -> None:
        self.headers: dict[str, str] = dict(context.invocation_metadata())
        self.time_remaining = context.time_remaining
        self.state = State()
        self.state.request_id = given_request_id(self.headers.get("x-request-id", ""))
        self.state.key = self.state.span = None

    async def receive(self) -> None:
        """Never says that the caller has left."""
        await asyncio.Event().wait()


class V2Grpc:
    """The methods, by their names in the protocol."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._request_model = infer_request(service.settings)

    async def ServerLive(self, request: Any, caller: Caller) -> Any:  # noqa: N802
        """Whether the device answers."""
        return message("ServerLiveResponse")(live=self._service.is_live)

    async def ServerReady(self, request: Any, caller: Caller) -> Any:  # noqa: N802
        """Whether requests are answered."""
        return message("ServerReadyResponse")(ready=self._is_ready())

    async def ModelReady(self, request: Any, caller: Caller) -> Any:  # noqa: N802
        """The same, where there is such a model."""
        self._find(request)
        return message("ModelReadyResponse")(ready=self._is_ready())

    async def ServerMetadata(self, request: Any, caller: Caller) -> Any:  # noqa: N802
        """What the server is."""
        return message("ServerMetadataResponse")(**SERVER)

    async def ModelMetadata(self, request: Any, caller: Caller) -> Any:  # noqa: N802
        """A model's versions and tensors."""
        return message("ModelMetadataResponse")(**metadata(self._service, self._find(request)))

    async def RepositoryIndex(self, request: Any, caller: Caller) -> Any:  # noqa: N802
        """Every version that is loaded, and what could not be."""
        if request.repository_name:
            raise bad("repository_name", "there is one repository, leave it out")
        listed = repository(self._service, is_ready=request.ready)
        return message("RepositoryIndexResponse")(models=listed)

    async def ModelInfer(self, request: Any, caller: Caller) -> Any:  # noqa: N802
        """Label texts."""
        started = time.perf_counter()
        service = self._service
        service.check_open()
        infer = check_request(self._request_model, fields_of(request))  # 1. message -> what is asked
        spec = f"{request.model_name}@{request.model_version}" if request.model_version else request.model_name
        fields = native(
            infer, raws_of(request.raw_input_contents, infer.inputs), spec, service.settings.max_texts_per_request
        )
        fields["timeout_ms"] = sooner(fields["timeout_ms"], caller.time_remaining())
        classify = service.request(fields)  # 2. tensors -> texts
        reply = await service.answer(caller, classify, started)  # 3. texts -> answers
        tensors = outputs(infer, reply, classify.inputs)  # 4. answers -> tensors
        if any(wanted is not None for _, wanted in tensors):
            raise bad("outputs", "binary_data is of HTTP: send the parameter binary_data_output of the request")
        is_raw = bool(request.raw_input_contents) or infer.options.binary_data_output
        response = message("ModelInferResponse")(
            model_name=reply.model.name, model_version=reply.model.bundle.version, id=request.id
        )
        fill(response, [tensor for tensor, _ in tensors], is_raw=is_raw)
        return response

    def _find(self, request: Any) -> ServedModel:
        return self._service.models.find(f"{request.name}@{request.version}" if request.version else request.name)

    def _is_ready(self) -> bool:
        try:
            self._service.check_ready()
        except NotReady:
            return False
        return True


def sooner(timeout_ms: int | None, remaining_s: float | None) -> int | None:
    """What is left of the call's deadline, unless the request's own timeout is less; ms."""
    if remaining_s is None:
        return timeout_ms
    remaining_ms = max(1, int(min(remaining_s * 1000, MAX_TIMEOUT_MS)))
    return min(timeout_ms or remaining_ms, remaining_ms)


def fields_of(request: Any) -> dict[str, Any]:
    """The fields of an InferRequest."""
    return {
        "id": request.id,
        "inputs": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "datatype": tensor.datatype,
                "parameters": parameters_of(tensor),
                "data": texts_of_bytes(f"inputs[{i}]", tensor.contents.bytes_contents) or None,
            }
            for i, tensor in enumerate(request.inputs)
        ],
        "outputs": [{"name": output.name, "parameters": parameters_of(output)} for output in request.outputs],
        "parameters": parameters_of(request),
    }


def parameters_of(part: Any) -> dict[str, Any]:
    """Values of whatever kind. Raises InvalidRequest where one has none."""
    choices = {name: value.WhichOneof("parameter_choice") for name, value in part.parameters.items()}
    if None in choices.values():
        raise bad("parameters", "a parameter has no value")
    return {name: getattr(part.parameters[name], choice) for name, choice in choices.items()}


def raws_of(raws: Sequence[bytes], inputs: Sequence[InferInput]) -> Sequence[bytes | None]:
    """The binary data of the inputs: of all, or of none. Raises InvalidRequest."""
    if not raws:
        return [None] * len(inputs)
    if len(raws) != len(inputs):
        raise bad("raw_input_contents", f"there are {len(raws)} for {len(inputs)} inputs")
    for i, (one, raw) in enumerate(zip(inputs, raws, strict=True)):
        size = one.parameters.binary_data_size if one.parameters else None  # KServe's client sends it here too
        if size not in (None, len(raw)):
            raise bad(f"inputs[{i}]", f"binary_data_size is another than of raw_input_contents: {len(raw)}")
    return raws


def fill(response: Any, tensors: Sequence[Tensor], *, is_raw: bool) -> None:
    """Raw where the request is: Triton's client reads raw numbers only."""
    for tensor in tensors:
        output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if is_raw:
            response.raw_output_contents.append(tensor.raw())
        elif tensor.datatype == "BYTES":
            output.contents.bytes_contents.extend(str(value).encode() for value in tensor.values)
        elif tensor.datatype == "FP32":
            output.contents.fp32_contents.extend(tensor.values)
        else:
            output.contents.bool_contents.extend(tensor.values)
