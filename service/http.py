"""HTTP around the routes: bodies read under a limit, deadlines, errors as answers, every outcome counted."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route

from service import metrics
from service.errors import BodyTooLarge, DeadlineExceeded, MethodNotAllowed, NoSuchRoute, ServiceError, where

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from pydantic import BaseModel
    from starlette.datastructures import State
    from starlette.exceptions import HTTPException

    from service.routes import Service

    Handler = Callable[[Request], Awaitable[Response]]
    ErrorBody = Callable[[ServiceError], Any]
    ErrorStatus = Callable[[ServiceError], int]

log = logging.getLogger("heed")

NATIVE_STATUS: ErrorStatus = attrgetter("status")

MAX_REQUEST_ID = 128
WATCHED_AFTER_S = 0.25  # a caller that leaves earlier may be computed for nothing: a watcher costs more than most texts
MAX_DIGITS = 18  # of a Content-Length
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def counted(
    service: Service,
    route: str,
    handler: Handler,
    body_of: ErrorBody = ServiceError.body,
    status_of: ErrorStatus = NATIVE_STATUS,
    *,
    is_open: bool = False,
) -> Handler:
    """The handler, for callers with a key, with its errors as its dialect has them, and its outcome in the metrics.

    is_open is for health and what else holds nothing of anybody: it wants no key, and makes no span.
    """
    wants_key = not (is_open or service.access.is_open)
    tracing = None if is_open else service.tracing
    seconds = metrics.REQUEST_SECONDS.labels(route)
    counts: dict[int, Any] = {}  # of each status: found once

    async def answer(http: Request) -> Response:
        started = time.perf_counter()
        state = http.state
        state.request_id, state.key, state.span = request_id(http), None, None
        if tracing is not None:
            said = {"http.request.method": http.method, "http.route": route, "heed.request_id": state.request_id}
            state.span = tracing.begin(f"{http.method} {route}", http.headers, said)
        failure: ServiceError | None = None
        try:
            if wants_key:
                state.key = service.access.caller(http.headers.get("authorization", ""))
            response = await handler(http)
        except ServiceError as error:
            failure = error
        except ClientDisconnect:
            response = Response(status_code=499)  # nobody reads it
        except Exception as error:  # the one place that keeps a bug from leaking text: only its type is told
            log.error("%s: %s failed: %s", named(state.request_id, http.headers), route, where(error))
            failure = ServiceError()
        if failure is not None:
            response = refusal(failure, body_of, status_of)
        response.headers["x-request-id"] = state.request_id
        seconds_taken = time.perf_counter() - started
        response.headers.setdefault("server-timing", f"total;dur={seconds_taken * 1000:.3f}")
        status = response.status_code
        if status not in counts:
            counts[status] = metrics.REQUESTS.labels(route, str(status))
        counts[status].inc()
        seconds.observe(seconds_taken)
        if tracing is not None:
            tracing.end(state.span, {"http.response.status_code": status}, failure)
        return response

    return answer


async def read_body(http: Request, limit: int, timeout_ms: int) -> bytes:
    """The body, refused as soon as it is seen to be over the limit. Raises BodyTooLarge and DeadlineExceeded."""
    length = http.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > MAX_DIGITS or int(length) > limit):
        raise BodyTooLarge(limit)
    chunks, size = [], 0
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            async for chunk in http.stream():
                size += len(chunk)
                if size > limit:
                    raise BodyTooLarge(limit)
                chunks.append(chunk)
    except TimeoutError:
        raise DeadlineExceeded(timeout_ms) from None
    return b"".join(chunks)


class Caller(Protocol):
    """Whom a request is answered for. A Request is one.

    Its state has request_id, key, which is the name of the caller's key or None, and span, which is None without spans.
    """

    @property
    def state(self) -> State:
        """What is known of the request before it is read."""
        ...

    def receive(self) -> Awaitable[Any]:
        """Returns when the caller has left; the body has been read."""


class Patience:
    """Cancel the task of this `with` at the caller's deadline, or when the caller has left; the body has been read.

    Raises DeadlineExceeded or ClientDisconnect in place of the cancellation. What the task waits for is dropped by
    the batcher.
    """

    def __init__(self, caller: Caller, timeout_ms: int, spent_s: float) -> None:
        self._caller, self._timeout_ms = caller, timeout_ms
        self._left_s = max(0.0, timeout_ms / 1000 - spent_s)
        self._loop = asyncio.get_running_loop()
        self._watcher: asyncio.Task[None] | None = None
        self._reason: Exception | None = None

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._deadline = self._loop.time() + self._left_s
        self._timer = self._loop.call_later(min(WATCHED_AFTER_S, self._left_s), self._wake)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._reason is not None and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise self._reason from None

    def _wake(self) -> None:
        """Most requests are answered by now, and have cost one timer. This one is watched until its deadline."""
        left_s = self._deadline - self._loop.time()
        if left_s <= 0:
            self._cancel(DeadlineExceeded(self._timeout_ms))
        else:
            self._watcher = self._loop.create_task(self._watch())
            self._timer = self._loop.call_later(left_s, self._cancel, DeadlineExceeded(self._timeout_ms))

    async def _watch(self) -> None:
        await self._caller.receive()  # nothing comes after the body but the disconnect
        self._cancel(ClientDisconnect())

    def _cancel(self, reason: Exception) -> None:
        if self._reason is None:
            self._reason = reason
            self._task.cancel()


def request_id(http: Request) -> str:
    """The X-Request-Id of the caller, or of the ingress, where it is short and printable; else a new one."""
    return given_request_id(http.headers.get("x-request-id", ""))


def given_request_id(given: str) -> str:
    """It, where it is short and printable; else a new one."""
    return given if is_request_id(given) else uuid.uuid4().hex


def is_request_id(given: str) -> bool:
    """Whether an answer may have it."""
    return 0 < len(given) <= MAX_REQUEST_ID and given.isascii() and given.isprintable()


def named(request_id: str, headers: Mapping[str, str]) -> str:
    """A request in a line of the log: by its id, and by its trace where the caller has one (W3C Trace Context)."""
    trace = TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    return f"request {request_id} of trace {trace[1]}" if trace else f"request {request_id}"


def refusal(
    error: ServiceError, body_of: ErrorBody = ServiceError.body, status_of: ErrorStatus = NATIVE_STATUS
) -> Response:
    """The answer of an error, with the body and the status that its dialect gives it."""
    metrics.REFUSED.labels(error.code).inc()
    return JSONResponse(body_of(error), status_of(error), error.headers)


def no_route(body_of: Callable[[str], ErrorBody]) -> Callable[[Request, Any], Awaitable[Response]]:
    """The handler of 404 and 405, in the shape that the errors of a path have."""

    async def answer(http: Request, error: HTTPException) -> Response:
        wrong = MethodNotAllowed(methods_of(http)) if error.status_code == 405 else NoSuchRoute()
        return refusal(wrong, body_of(http.url.path))

    return answer


def methods_of(http: Request) -> str:
    """Those that the path takes: a route has some of them, and another route of the same path more."""
    routes = [route for route in http.app.routes if isinstance(route, Route)]
    path = next(route.path for route in routes if route.matches(http.scope)[0] is not Match.NONE)
    return ", ".join(sorted({method for route in routes if route.path == path for method in route.methods or ()}))


def as_json(model: BaseModel, status: int = 200) -> Response:
    """A schema as an answer."""
    return Response(model.model_dump_json(), status, media_type="application/json")
