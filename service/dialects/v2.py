"""Open Inference Protocol V2 over HTTP, /v2/..., with Triton's binary tensors: KServe's and Triton's clients.

What differs between servers: health answers KServe's JSON, which Triton's clients do not read, and 503 where it is not
well, as KServe does; what is wrong in a request is a 400, and no such model a 404. The answer always has an id.
"""

from __future__ import annotations

import importlib.metadata
import json
import time
import zlib
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.dialects.oip import EXTENSIONS, as_400, infer_request, model_metadata, native, outputs
from service.dialects.tensors import bad, parts
from service.dialects.v2_openapi import IndexRequest, paths
from service.errors import BodyTooLarge, NotReady, ServiceError
from service.http import counted
from service.schemas import parse_request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

    from service.dialects.oip import InferRequest
    from service.dialects.tensors import Tensor
    from service.http import Handler
    from service.models import ServedModel
    from service.routes import Service

__all__ = ["paths", "routes"]

PREFIX = "/v2"
JSON_LENGTH = "Inference-Header-Content-Length"  # bytes of the JSON before the binary tensors
SERVER = {"name": "heed", "version": importlib.metadata.version("heed"), "extensions": EXTENSIONS}
MAX_DIGITS = 18  # of a length


def error_body(error: ServiceError) -> dict[str, str]:
    """An error as V2's clients, and V1's, read it."""
    return {"error": str(error)}


def routes(service: Service) -> list[Route]:
    """Those of V2."""
    v2 = V2(service)

    def route(path: str, handler: Handler, method: str = "GET") -> Route:
        is_open = path.startswith("/health/")
        path = PREFIX + path
        guarded = counted(service, path, answering_400(handler), error_body, is_open=is_open)
        return Route(path, guarded, methods=[method])

    versioned = [
        route(f"/models/{{name}}{version}{path}", handler, method)
        for version in ("", "/versions/{version}")
        for path, handler, method in (
            ("", v2.model, "GET"),
            ("/ready", v2.model_ready, "GET"),
            ("/infer", v2.infer, "POST"),
        )
    ]
    return [
        route("", v2.server),
        route("/health/live", v2.live),
        route("/health/ready", v2.ready),
        route("/models", v2.models),
        route("/repository/index", v2.index, "POST"),
        *versioned,
    ]


def answering_400(handler: Handler) -> Handler:
    """The handler, with what is wrong in a request as the protocol's 400."""

    async def answer(http: Request) -> Response:
        try:
            return await handler(http)
        except ServiceError as error:
            raise as_400(error) from None

    return answer


def asked(http: Request) -> str:
    """NAME or NAME@VERSION, of the path."""
    name, version = http.path_params["name"], http.path_params.get("version")
    return f"{name}@{version}" if version else name


class V2:
    """The handlers."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._request_model = infer_request(service.settings)

    async def live(self, http: Request) -> Response:
        """GET /v2/health/live."""
        if not self._service.is_live:
            raise NotReady("the device does not answer")
        return JSONResponse({"live": True})

    async def ready(self, http: Request) -> Response:
        """GET /v2/health/ready."""
        self._service.check_ready()
        return JSONResponse({"ready": True})

    async def server(self, http: Request) -> Response:
        """GET /v2."""
        return JSONResponse(SERVER)

    async def models(self, http: Request) -> Response:
        """GET /v2/models, KServe's."""
        return JSONResponse({"models": [spec.name for spec in self._service.models.specs]})

    async def model(self, http: Request) -> Response:
        """GET /v2/models/NAME."""
        model = self._service.models.find(asked(http))
        return JSONResponse(metadata(self._service, model))

    async def model_ready(self, http: Request) -> Response:
        """GET /v2/models/NAME/ready."""
        model = self._service.models.find(asked(http))
        self._service.check_ready()
        return JSONResponse({"name": model.name, "ready": True})

    async def index(self, http: Request) -> Response:
        """POST /v2/repository/index, Triton's."""
        body = await self._service.body(http)
        request = parse_request(IndexRequest, body or b"{}")
        return JSONResponse(repository(self._service, is_ready=request.ready))

    async def infer(self, http: Request) -> Response:
        """POST /v2/models/NAME/infer."""
        started = time.perf_counter()
        limits = self._service.settings
        body = inflated(await self._service.body(http), http.headers.get("content-encoding", ""), limits.max_body_bytes)
        head, tail = split(body, http.headers.get(JSON_LENGTH))
        request = parse_request(self._request_model, head)  # 1. bytes -> what is asked
        if request.model_name not in (None, http.path_params["name"]):
            raise bad("model_name", "it is another than in the path: leave it out")
        fields = native(request, binary(request, tail), asked(http), limits.max_texts_per_request)
        classify = self._service.request(fields)  # 2. tensors -> texts
        reply = await self._service.answer(http, classify, started)  # 3. texts -> answers
        head_out = {
            "model_name": reply.model.name,
            "model_version": reply.model.bundle.version,
            "id": request.id if request.id is not None else http.state.request_id,
        }
        is_binary = request.options.binary_data_output
        tensors = [  # 4. answers -> tensors
            (tensor, is_binary if wanted is None else wanted)
            for tensor, wanted in outputs(request, reply, classify.inputs)
        ]
        return infer_response(head_out, tensors)


def metadata(service: Service, model: ServedModel) -> dict[str, Any]:
    """What is said of a model that was found."""
    versions = [one.bundle.version for one in service.models.versions(model.name)]
    return model_metadata(model.name, versions, model.bundle)


def repository(service: Service, *, is_ready: bool) -> list[dict[str, str]]:
    """Every version that is loaded, and, unless is_ready, what could not be."""
    listed = []
    for spec in service.models.specs:
        versions = [model.bundle.version for model in service.models.versions(spec.name)]
        listed += [{"name": spec.name, "version": version, "state": "READY", "reason": ""} for version in versions]
        followed = service.following.of(spec.name)
        failure = followed.failure if followed else None
        if failure and not is_ready:
            version = failure.version or ""
            listed.append({"name": spec.name, "version": version, "state": "UNAVAILABLE", "reason": failure.error})
    return listed


def inflated(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its Content-Encoding. Raises InvalidRequest, and BodyTooLarge."""
    if encoding.lower() in ("", "identity"):
        return body
    if encoding.lower() not in ("gzip", "deflate"):
        raise bad("Content-Encoding", "it is gzip, deflate or identity")
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # whichever of the two
    try:
        plain = inflate.decompress(body, limit + 1)
    except zlib.error:
        raise bad("Content-Encoding", "the body is not what it says") from None
    if len(plain) > limit:
        raise BodyTooLarge(limit)
    if not inflate.eof or inflate.unused_data:
        raise bad("Content-Encoding", "the body ends early, or goes on after its end")
    return plain


def split(body: bytes, json_length: str | None) -> tuple[bytes, bytes]:
    """The JSON, and the binary tensors after it. Raises InvalidRequest."""
    if json_length is None:
        return body, b""
    if not (json_length.isascii() and json_length.isdecimal() and len(json_length) <= MAX_DIGITS):
        raise bad(JSON_LENGTH, "it is a number of bytes")
    length = int(json_length)
    if length > len(body):
        raise bad(JSON_LENGTH, f"it is more than the body has, which is {len(body)} bytes")
    return body[:length], body[length:]


def binary(request: InferRequest, tail: bytes) -> list[bytes | None]:
    """The binary data of each input that has any. Raises InvalidRequest."""
    sizes = [one.parameters.binary_data_size if one.parameters else None for one in request.inputs]
    found = iter(parts(tail, [size for size in sizes if size is not None]))
    return [None if size is None else next(found) for size in sizes]


def infer_response(head: dict[str, Any], tensors: Sequence[tuple[Tensor, bool]]) -> Response:
    """JSON, followed by the tensors that are wanted in binary."""
    listed, tail = [], []
    for tensor, is_binary in tensors:
        if is_binary:
            tail.append(tensor.raw())
            listed.append(tensor.head() | {"parameters": {"binary_data_size": len(tail[-1])}})
        else:
            listed.append(tensor.head() | {"data": tensor.values})
    text = json.dumps(head | {"outputs": listed}, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    if not tail:
        return Response(text, media_type="application/json")
    headers = {JSON_LENGTH: str(len(text))}
    return Response(text + b"".join(tail), media_type="application/octet-stream", headers=headers)
