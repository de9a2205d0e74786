"""The HTTP of a replica: routes as an ASGI application, without Ray.

One request reads down classify(). Built by service/app.py inside a replica, and by tests without one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from service import metrics
from service.answers import answer_texts, rows_of
from service.autoscaling import Load
from service.errors import NotReady, ServiceError
from service.explaining import asked_label
from service.exporter import MEDIA_TYPE, exposition
from service.http import as_json, counted, deadline, not_a_route, read_body, until_gone
from service.openapi import DOCS_ASSETS, DOCS_PAGE, openapi
from service.schemas import (
    ClassifyResponse,
    Health,
    ModelInfo,
    ModelList,
    Timing,
    explained_result,
    parse_request,
    request_model,
    text_result,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from starlette.requests import Request

    from service.answers import TextAnswer
    from service.batching import Answer
    from service.http import Handler
    from service.models import Models, ServedModel
    from service.predictor import Scored
    from service.settings import Settings

STUCK_S = 60.0  # a pass that runs longer means that the device hangs
GAUGES_EVERY_S = 0.5


class Service:
    """What the routes of one replica share."""

    def __init__(self, models: Models, settings: Settings) -> None:
        self.models, self.settings = models, settings
        self._request_model = request_model(settings)
        self._openapi = openapi(self._request_model)
        self._is_draining = False
        self._busy = 0.0  # share of the last GAUGES_EVERY_S that the device computed

    @property
    def is_live(self) -> bool:
        """Whether the compute loops turn."""
        return self.models.is_live(STUCK_S)

    async def classify(self, http: Request) -> Response:
        """POST /v1/classify."""
        started = time.perf_counter()
        if self._is_draining:
            raise NotReady("the server is stopping")
        async with deadline(self.settings.timeout_ms):
            body = await read_body(http, self.settings.max_body_bytes)
        request = parse_request(self._request_model, body)  # 1. bytes -> what is asked
        model = self.models.find(request.model)
        label = asked_label(request.explain, model.bundle.labels)
        parsed = time.perf_counter()
        async with until_gone(http), deadline(request.timeout_ms or self.settings.timeout_ms):
            readings = await self.models.tokenize(model, request.inputs, request.on_long)  # 2. texts -> token ids
            tokenized = time.perf_counter()
            spans = await self.models.spans(model, request.inputs) if request.explain is not False else []
            passed = await model.batcher.submit(rows_of(readings))  # 3. wait for a forward pass
            answers = answer_texts(model.bundle, readings, [row.result for row in passed])  # 4. pool windows
            explained = await model.explainer.explain(answers, spans, label) if spans else []
        results = [  # 5. shape the answer
            text_result(model.bundle.labels, answer, request.top_k, raw_scores=request.raw_scores) for answer in answers
        ]
        for i, why in enumerate(explained):
            results[i] = explained_result(results[i], model.bundle.labels, request.inputs[i], why)
        observe(model, answers, tokenized - parsed)
        response = ClassifyResponse(
            request_id=http.state.request_id,
            model=model.name,
            version=model.bundle.version,
            results=results,
            timing_ms=timing(passed, tokenized - parsed, time.perf_counter() - started),
        )
        return Response(response.model_dump_json(exclude_none=True), media_type="application/json")

    async def list_models(self, http: Request) -> Response:
        """GET /v1/models and GET /info."""
        return as_json(
            ModelList(
                models=[
                    ModelInfo(
                        name=m.name,
                        version=m.bundle.version,
                        labels=m.bundle.labels,
                        problem_type=m.bundle.problem_type,
                        max_tokens=m.bundle.max_tokens,
                        device=str(m.predictor.device),
                        precision=m.predictor.precision,
                    )
                    for m in self.models
                ],
                max_texts_per_request=self.settings.max_texts_per_request,
                max_text_chars=self.settings.max_text_chars,
                max_body_bytes=self.settings.max_body_bytes,
            )
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
        metrics.observe_process()
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
            busy_s, at = sum(model.batcher.busy_s for model in self.models), time.perf_counter()
            self._busy = min(1.0, (busy_s - busy_before) / (at - before))
            metrics.BUSY.set(self._busy)

    def load(self) -> Load:
        """What this replica has to do, for autoscaling."""
        return Load(self._busy, sum(model.batcher.wait_s() for model in self.models))

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Start the compute loops; on the way out, answer what was accepted."""
        self.models.start()
        gauges = asyncio.create_task(self.keep_gauges())
        try:
            yield
        finally:
            self._is_draining = True
            await self.models.drain()
            gauges.cancel()

    def asgi(self) -> Starlette:
        """The application."""

        def route(path: str, handler: Handler, method: str = "GET") -> Route:
            return Route(path, counted(path, handler), methods=[method])

        async def document(http: Request) -> Response:
            return JSONResponse(self._openapi)

        async def docs(http: Request) -> Response:
            return HTMLResponse(DOCS_PAGE)

        app = Starlette(
            routes=[
                route("/v1/classify", self.classify, "POST"),
                route("/v1/models", self.list_models),
                route("/info", self.list_models),
                route("/health/live", self.live),
                route("/health/ready", self.ready),
                route("/health", self.health),
                route("/metrics", self.metrics),
                route("/openapi.json", document),
                route("/docs", docs),
                Mount("/docs/assets", StaticFiles(directory=DOCS_ASSETS)),
            ],
            exception_handlers={HTTPException: not_a_route},  # type: ignore[dict-item]
            lifespan=self.lifespan,
        )
        app.router.redirect_slashes = False  # a path that is not ours is a 404, and no Host of a caller is repeated
        return app


def timing(passed: Sequence[Answer[Scored]], tokenize_s: float, total_s: float) -> Timing:
    """Seconds -> ms, rounded to microseconds."""

    def ms(seconds: float) -> float:
        return round(seconds * 1000, 3)

    return Timing(
        queue=ms(max((row.queue_s for row in passed), default=0.0)),
        tokenize=ms(tokenize_s),
        forward=ms(max((row.forward_s for row in passed), default=0.0)),
        total=ms(total_s),
    )


def observe(model: ServedModel, answers: Sequence[TextAnswer], tokenize_s: float) -> None:
    """Count an answered request."""
    metrics.TOKENIZE_SECONDS.observe(tokenize_s)
    metrics.TEXTS.labels(model.name, model.bundle.version).inc(len(answers))
    metrics.TOKENS_READ.labels(model.name).inc(sum(row.tokens for answer in answers for row in answer.rows))
    metrics.TRUNCATED.labels(model.name).inc(sum(row.truncated > 0 for answer in answers for row in answer.rows))
    for answer in answers:
        if isinstance(answer.result, ServiceError):
            metrics.REFUSED.labels(answer.result.code).inc()
            continue
        scores = answer.result.scores
        best = max(range(len(scores)), key=scores.__getitem__)
        metrics.PREDICTIONS.labels(model.name, model.bundle.labels[best]).inc()
        metrics.CONFIDENCE.labels(model.name).observe(scores[best])
