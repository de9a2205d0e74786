"""OpenTelemetry spans: one of each request, below the caller's, and below it tokenize, queue, forward and explain.

A span has names and numbers, and never a text. Where spans go is said by the standard OTEL_* variables, how many are
made by OTEL_TRACES_SAMPLER. Imported only where they ask for it: OpenTelemetry's exporter is the extra heed[otel].
Called by service/http.py, routes.py and dialects/v2_grpc.py.
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.trace import Span

    from service.errors import ServiceError
    from service.routes import Reply

W3C = TraceContextTextMapPropagator()
NS = 1_000_000_000
SENT_EVERY_MS = 500  # by default 5 s: what waits is lost with a replica that is killed, as at the end of heed serve


class Tracing:
    """Makes spans for a provider."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("heed", importlib.metadata.version("heed"))

    @classmethod
    def from_environment(cls) -> Tracing:
        """Spans that go where OTEL_* say. Raises ValueError where the exporter is not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ModuleNotFoundError:
            raise ValueError(
                "OTEL_EXPORTER_OTLP_ENDPOINT asks for spans, which need pip install 'heed[otel]': or set "
                "OTEL_SDK_DISABLED=true"
            ) from None
        resource = Resource.create()
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "heed"}))
        provider = TracerProvider(resource=resource)
        every_ms = float(os.environ.get("OTEL_BSP_SCHEDULE_DELAY") or SENT_EVERY_MS)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=every_ms))
        return cls(provider)

    def begin(self, name: str, carrier: Mapping[str, str], attributes: dict[str, Any]) -> Span:
        """The span of a request, below the one that a valid traceparent among its headers names."""
        return self._tracer.start_span(name, W3C.extract(carrier, Context()), SpanKind.SERVER, attributes)

    def end(self, span: Span, attributes: dict[str, Any], error: ServiceError | None) -> None:
        """The request is answered; an error is one of the service from 500 on."""
        span.set_attributes(attributes)
        if error is not None:
            span.set_attribute("error.type", error.code)
            if error.status >= 500:
                span.set_status(StatusCode.ERROR)
        span.end()

    def stages(self, span: Span, reply: Reply, began: float, answered: float, explained: float) -> None:
        """What a request went through, told when it is over; times are of time.perf_counter().

        Of several texts queue and forward are the longest of any, one after the other, as in timing_ms.
        """
        if not span.is_recording():
            return
        span.set_attributes(of := attributes(reply))
        parent, offset_ns = set_span_in_context(span, Context()), time.time_ns() - time.perf_counter_ns()
        for name, start, end in stages(reply, began, answered, explained):
            stage = self._tracer.start_span(name, parent, attributes=of, start_time=int(start * NS) + offset_ns)
            stage.end(int(end * NS) + offset_ns)

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()


def attributes(reply: Reply) -> dict[str, str | int]:
    """What is said of a request, and of each of its stages."""
    return {
        "heed.model": reply.model.name,
        "heed.version": reply.model.bundle.version,
        "heed.texts": len(reply.answers),
        "heed.tokens": sum(answer.tokens for answer in reply.answers),
    }


def stages(reply: Reply, began: float, answered: float, explained: float) -> Sequence[tuple[str, float, float]]:
    """Name, start and end of each stage that there was."""
    found, at = [], began
    for name, seconds in (
        ("tokenize", reply.answered.tokenize_s),
        ("queue", reply.answered.queue_s),
        ("forward", reply.answered.forward_s),
    ):
        if seconds:
            found.append((name, at, min(at + seconds, answered)))
        at = min(at + seconds, answered)
    return [*found, ("explain", answered, explained)] if reply.explained else found
