"""HTTP around the routes: bodies read under a limit, deadlines, errors as answers, every outcome counted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from service import metrics
from service.errors import BodyTooLarge, DeadlineExceeded, MethodNotAllowed, NoSuchRoute, ServiceError, where

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from pydantic import BaseModel
    from starlette.exceptions import HTTPException

    Handler = Callable[[Request], Awaitable[Response]]

log = logging.getLogger("heed")

MAX_REQUEST_ID = 128
MAX_DIGITS = 18  # of a Content-Length


def counted(route: str, handler: Handler) -> Handler:
    """The handler, with its errors as answers and its outcome in the metrics."""

    async def answer(http: Request) -> Response:
        started = time.perf_counter()
        http.state.request_id = request_id(http)
        try:
            response = await handler(http)
        except ServiceError as error:
            response = refusal(error)
        except ClientDisconnect:
            response = Response(status_code=499)  # nobody reads it
        except Exception as error:  # the one place that keeps a bug from leaking text: only its type is told
            log.error("%s failed: %s", route, where(error))
            response = refusal(ServiceError())
        response.headers["x-request-id"] = http.state.request_id
        metrics.REQUESTS.labels(route, str(response.status_code)).inc()
        metrics.REQUEST_SECONDS.labels(route).observe(time.perf_counter() - started)
        return response

    return answer


async def read_body(http: Request, limit: int) -> bytes:
    """The body, refused as soon as it is seen to be over the limit. Raises BodyTooLarge."""
    length = http.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > MAX_DIGITS or int(length) > limit):
        raise BodyTooLarge(limit)
    chunks, size = [], 0
    async for chunk in http.stream():
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge(limit)
        chunks.append(chunk)
    return b"".join(chunks)


@contextlib.asynccontextmanager
async def deadline(timeout_ms: int) -> AsyncIterator[None]:
    """Leave with DeadlineExceeded after so long; what still waits is dropped by the batcher."""
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            yield
    except TimeoutError:
        raise DeadlineExceeded(timeout_ms) from None


@contextlib.asynccontextmanager
async def until_gone(http: Request) -> AsyncIterator[None]:
    """Cancel this task when the caller leaves; the body has been read. Raises ClientDisconnect then."""
    task, is_gone = asyncio.current_task(), False
    assert task is not None

    async def watch() -> None:
        nonlocal is_gone
        await http.receive()  # nothing comes after the body but the disconnect
        is_gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not is_gone or task.uncancel():
            raise
        raise ClientDisconnect from None
    finally:
        watcher.cancel()


def request_id(http: Request) -> str:
    """The X-Request-Id of the caller, or of the ingress, where it is short and printable; else a new one."""
    given = http.headers.get("x-request-id", "")
    if given and len(given) <= MAX_REQUEST_ID and given.isascii() and given.isprintable():
        return given
    return uuid.uuid4().hex


def refusal(error: ServiceError) -> Response:
    """The answer of an error."""
    metrics.REFUSED.labels(error.code).inc()
    return JSONResponse(error.body(), error.status, error.headers)


async def not_a_route(http: Request, error: HTTPException) -> Response:
    """404 and 405 in the shape of all errors."""
    if error.status_code == 405:
        return refusal(MethodNotAllowed((error.headers or {}).get("Allow", "")))
    return refusal(NoSuchRoute())


def as_json(model: BaseModel, status: int = 200) -> Response:
    """A schema as an answer."""
    return Response(model.model_dump_json(), status, media_type="application/json")
