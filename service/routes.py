"""The HTTP of a replica: routes as an ASGI application, without Ray.

One request reads down classify(). Built by service/app.py inside a replica, and by tests without one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from service import dialects, feedback_route, metrics, page
from service.access import Access
from service.answering import answer
from service.autoscaling import Load
from service.errors import Failed, NotReady, ServiceError
from service.explaining import asked_label
from service.exporter import MEDIA_TYPE, exposition
from service.following import Following
from service.http import Patience, as_json, counted, no_route, read_body
from service.openapi import DOCS_ASSETS, DOCS_PAGE, openapi
from service.schemas import (
    ClassifyRequest,
    ClassifyResponse,
    FollowError,
    Health,
    ModelInfo,
    ModelList,
    Timing,
    check_request,
    explained_result,
    parse_request,
    request_model,
    text_result,
)
from service.trials import Trials

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from starlette.types import ASGIApp, Receive, Scope, Send

    from service.answering import Answered
    from service.answers import TextAnswer
    from service.explaining import Explained
    from service.feedback import Feedback
    from service.http import Caller, Handler
    from service.models import Models, ServedModel
    from service.settings import Settings
    from service.tracing import Tracing

log = logging.getLogger("heed")

STUCK_S = 60.0  # a pass that runs longer means that the device hangs
GAUGES_EVERY_S = 0.5
CLASSIFY = "/v1/classify"
# Headers that pages of other origins may send and read.
ASKED = ("Authorization", "Content-Type", "X-Request-Id", "traceparent", "tracestate")
ANSWERED = ("X-Request-Id", "Retry-After", "Server-Timing")


@dataclass(frozen=True, slots=True)
class Reply:
    """What the service says to a request, for its dialect to shape."""

    model: ServedModel
    answered: Answered
    explained: list[Explained | ServiceError | None]

    @property
    def answers(self) -> list[TextAnswer]:
        """One for each text, in order."""
        return self.answered.answers

    def timing(self, total_s: float) -> Timing:
        """Seconds -> ms, rounded to microseconds."""
        seconds = self.answered.queue_s, self.answered.tokenize_s, self.answered.forward_s, total_s
        queue, tokenize, forward, total = (round(s * 1000, 3) for s in seconds)
        return Timing(queue=queue, tokenize=tokenize, forward=forward, total=total)


class Service:
    """What the routes of one replica share."""

    def __init__(self, models: Models, settings: Settings, tracing: Tracing | None = None) -> None:
        self.models, self.settings, self.tracing = models, settings, tracing
        self.access = Access(settings)
        self.trials = Trials(models, settings)
        self.following = Following(models, self.trials, settings.registry_poll_s)
        self.feedback = open_feedback(settings)
        self._request_model = request_model(settings)
        paths = feedback_route.paths(self) | dialects.paths(self)
        self._openapi = openapi(self._request_model, paths, wants_keys=not self.access.is_open)
        self._is_draining = False
        self._busy = 0.0  # share of the last GAUGES_EVERY_S that the device computed

    @property
    def is_live(self) -> bool:
        """Whether the compute loops turn."""
        return self.models.is_live(STUCK_S)

    async def classify(self, http: Request) -> Response:
        """POST /v1/classify."""
        started = time.perf_counter()
        body = await self.body(http)
        request = parse_request(self._request_model, body)  # 1. bytes -> what is asked
        reply = await self.answer(http, request, started)  # 2. texts -> tokens -> a forward pass -> answers
        labels = reply.model.bundle.labels
        results = [  # 3. shape the answer
            text_result(labels, text, request.top_k, raw_scores=request.raw_scores) for text in reply.answers
        ]
        for i, why in enumerate(reply.explained):
            results[i] = explained_result(results[i], labels, request.inputs[i], why)
        timing_ms = reply.timing(time.perf_counter() - started)
        response = ClassifyResponse(
            request_id=http.state.request_id,
            model=reply.model.name,
            version=reply.model.bundle.version,
            results=results,
            timing_ms=timing_ms,
        )
        text = response.model_dump_json(exclude_none=True)
        return Response(text, media_type="application/json", headers={"server-timing": server_timing(timing_ms)})

    async def body(self, http: Request) -> bytes:
        """The body of a request that will be answered. Raises NotReady while draining, and what read_body() raises."""
        self.check_open()
        return await read_body(http, self.settings.max_body_bytes, self.settings.timeout_ms)

    def request(self, fields: dict[str, Any]) -> ClassifyRequest:
        """What a dialect has found in a body, under the limits of this service. Raises InvalidRequest."""
        return check_request(self._request_model, fields)

    def check_open(self) -> None:
        """Raises NotReady while draining."""
        if self._is_draining:
            raise NotReady("the server is stopping")

    def check_ready(self) -> None:
        """Raises NotReady where a request would not be answered."""
        self.check_open()
        if not self.is_live:
            raise NotReady("the device does not answer")

    async def answer(self, caller: Caller, request: ClassifyRequest, started: float) -> Reply:
        """The answers of one version to all of a request, in whatever dialect it was asked, by its deadline.

        started is a time of time.perf_counter(). Raises ServiceError.
        """
        self.access.charge(caller.state.key, len(request.inputs))
        timeout_ms = request.timeout_ms or self.settings.timeout_ms
        deadline = started + timeout_ms / 1000
        request_id = caller.state.request_id
        with self.models.find(request.model) as model:
            label = asked_label(request.explain, model.bundle.labels)
            began = time.perf_counter()
            with Patience(caller, timeout_ms, began - started):
                tried = await self._try(request, request_id, deadline)
                model, answered = tried or (model, await self._read(model, request, deadline))
                ended = time.perf_counter()
                explained = await self._explain(model, request, answered.answers, label, deadline)
            is_present = model is self.models.versions(model.name)[0]
            if failed := model.observe(answered, is_present=is_present):
                log.error("request %s: the model failed on %d of its texts", request_id, failed)
            self.trials.hear(model, request.inputs, request.on_long, answered.answers)
            if self.feedback is not None:
                self.feedback.remember(request_id, caller.state.key or "", model, request.inputs, answered.answers)
        reply = Reply(model, answered, explained)
        if self.tracing is not None:
            self.tracing.stages(caller.state.span, reply, began, ended, time.perf_counter())
        return reply

    async def _read(self, model: ServedModel, request: ClassifyRequest, deadline: float) -> Answered:
        """What a model says of the texts."""
        return await answer(
            model,
            self.models.tokenizing,
            request.inputs,
            request.on_long,
            deadline=deadline,
            priority=request.priority,
        )

    async def _try(
        self, request: ClassifyRequest, request_id: str, deadline: float
    ) -> tuple[ServedModel, Answered] | None:
        """The candidate and its answers, where it is to answer as canary and can; None: production answers."""
        candidate = None if request.explain else self.trials.choose(request.model, request_id)
        if candidate is None:
            return None
        with candidate:
            try:
                answered = await self._read(candidate, request, deadline)
            except ServiceError:
                answered = None
            if answered is None or any(isinstance(one.result, Failed) for one in answered.answers):
                self.trials.failed(candidate, len(request.inputs))
                return None
            return candidate, answered

    async def _explain(
        self,
        model: ServedModel,
        request: ClassifyRequest,
        answers: Sequence[TextAnswer],
        label: int | None,
        deadline: float,
    ) -> list[Explained | ServiceError | None]:
        """Why each text has its label, where that is asked."""
        if request.explain is False:
            return []
        spans = await self.models.tokenizing.spans(model.bundle, request.inputs)
        return await model.explainer.explain(answers, spans, label, deadline - time.perf_counter())

    def model_list(self) -> ModelList:
        """What is served; service/dialects/listing.py answers with it."""
        return ModelList(
            models=[self._model_info(spec.name) for spec in self.models.specs],
            max_texts_per_request=self.settings.max_texts_per_request,
            max_text_chars=self.settings.max_text_chars,
            max_body_bytes=self.settings.max_body_bytes,
        )

    def _model_info(self, name: str) -> ModelInfo:
        versions, followed = self.models.versions(name), self.following.of(name)
        model = versions[0]
        failure = (followed.unreadable or followed.failure) if followed else None
        return ModelInfo(
            name=name,
            version=model.bundle.version,
            versions=[m.bundle.version for m in versions],
            following=str(followed) if followed else None,
            candidate=self.trials.info(name),
            last_error=FollowError(version=failure.version, error=failure.error, at=failure.at) if failure else None,
            labels=model.bundle.labels,
            problem_type=model.bundle.problem_type,
            max_tokens=model.bundle.max_tokens,
            coverage=model.bundle.calibration.coverage,
            false_alarms=model.bundle.calibration.false_alarms,
            device=model.loaded.device,
            precision=model.loaded.precision,
        )

    async def live(self, http: Request) -> Response:
        """GET /health/live."""
        return self._health(lambda health: health.live)

    async def ready(self, http: Request) -> Response:
        """GET /health/ready."""
        return self._health(lambda health: health.ready)

    async def health(self, http: Request) -> Response:
        """GET /health."""
        return self._health(lambda health: health.live and health.ready)

    def _health(self, is_well: Callable[[Health], bool]) -> Response:
        is_live = self.is_live
        health = Health(live=is_live, ready=is_live and not self._is_draining)
        return as_json(health, 200 if is_well(health) else 503)

    async def metrics(self, http: Request) -> Response:
        """GET /metrics."""
        self.set_gauges()
        return Response(await asyncio.to_thread(exposition), media_type=MEDIA_TYPE)

    def set_gauges(self) -> None:
        """What waits and what is held, right now."""
        metrics.observe_memory(os.getpid(), self.models.engine_process)
        batchers = [model.batcher for model in self.models]
        metrics.QUEUE_TEXTS.set(sum(b.queue_texts for b in batchers))
        metrics.QUEUE_TOKENS.set(sum(b.queue_tokens for b in batchers))
        metrics.QUEUE_OLDEST.set(max(b.oldest_s() for b in batchers))

    async def keep_gauges(self) -> None:
        """For the scrapes that another replica of the node answers."""
        busy_s, at = 0.0, time.perf_counter()
        while True:
            self.set_gauges()
            await asyncio.sleep(GAUGES_EVERY_S)
            busy_before, before = busy_s, at
            busy_s, at = self.models.busy_s(), time.perf_counter()
            self._busy = min(1.0, (busy_s - busy_before) / (at - before))
            metrics.BUSY.set(self._busy)

    def load(self) -> Load:
        """What this replica has to do, for autoscaling."""
        return Load(self._busy, self.models.wait_s())

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Follow the registry; on the way out, answer what was accepted."""
        await self.models.connect()
        if self.feedback is not None:
            self.feedback.start()
        gc.freeze()  # what is loaded stays: the collector need not look at it again and again
        loops = (self.keep_gauges, self.following.main_loop, self.access.main_loop)
        gauges, following, keys = (asyncio.create_task(loop()) for loop in loops)
        try:
            yield
        finally:
            self._is_draining = True
            following.cancel()
            await self.trials.drain()
            await self.models.drain()
            if self.feedback is not None:
                await self.feedback.close()
            gauges.cancel()
            keys.cancel()
            if self.tracing is not None:
                await asyncio.to_thread(self.tracing.close)

    def asgi(self) -> Starlette:
        """The application."""

        def route(path: str, handler: Handler, *, is_open: bool = False) -> Route:
            return Route(path, counted(self, path, handler, is_open=is_open), methods=["GET"])

        async def document(http: Request) -> Response:
            return JSONResponse(self._openapi)

        async def docs(http: Request) -> Response:
            return HTMLResponse(DOCS_PAGE)

        classify = counted(self, CLASSIFY, self.classify)
        app = Application(
            classify,
            self.settings.cors_origins,
            routes=[
                Route(CLASSIFY, classify, methods=["POST"]),
                route("/health/live", self.live, is_open=True),
                route("/health/ready", self.ready, is_open=True),
                route("/health", self.health, is_open=True),
                route("/metrics", self.metrics, is_open=True),
                route("/openapi.json", document),
                route("/docs", docs),
                Mount("/docs/assets", StaticFiles(directory=DOCS_ASSETS)),
                *feedback_route.routes(self),
                *page.routes(self, otherwise=dialects.kserve_v1.alive(self)),
                *dialects.routes(self),
            ],
            exception_handlers={HTTPException: no_route(dialects.error_body)},
            lifespan=self.lifespan,
        )
        app.router.redirect_slashes = False  # a path that is not ours is a 404, and no Host of a caller is repeated
        return app


class Application(Starlette):
    """Starlette, with the one busy route found first: its middlewares and router cost half as much as that route.

    Pages of other origins are answered before any of it: the question whether they may ask has no key.
    """

    def __init__(self, classify: Handler, cors_origins: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self._classify = classify
        self._entry: ASGIApp = self._route
        if cors_origins:
            self._entry = CORSMiddleware(self._route, cors_origins, ("GET", "POST"), ASKED, expose_headers=ANSWERED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        await self._entry(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == CLASSIFY and scope["method"] == "POST":
            response = await self._classify(Request(scope, receive))
            await response(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def open_feedback(settings: Settings) -> Feedback | None:
    """Where labels go, None where none are taken. Raises StoreError."""
    if settings.feedback_store is None:
        return None
    from service.feedback import STORE_WAIT_S, Feedback  # with SQLAlchemy, which takes a third of a second
    from service.feedback_store import Store

    return Feedback(Store(settings.feedback_store, STORE_WAIT_S), settings)


def server_timing(timing: Timing) -> str:
    """The same as a Server-Timing header (W3C), which browsers show."""
    return ", ".join(f"{name};dur={value}" for name, value in timing)
