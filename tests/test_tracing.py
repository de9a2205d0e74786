"""Spans of requests, with OpenTelemetry's own exporters; and the request that a line of the log is about."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from test_v2_grpc import calling, infer

from service import app, routes
from service.grpc_messages import SERVICE
from service.models import Models
from service.routes import Service
from service.settings import Settings, Spec, wants_spans
from service.tracing import Tracing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

    from model.bundle import Bundle

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
SECRET = "xyzzysecret"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def service(bundle_folder: Path, spans: InMemorySpanExporter) -> Service:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return made(bundle_folder, Tracing(provider))


def made(folder: Path, tracing: Tracing | None, **settings: Any) -> Service:
    limits = Settings(precision="fp32", **settings)
    return Service(Models([Spec("mood", folder)], limits), limits, tracing)


def ask(service: Service, path: str, body: object = None, **headers: str) -> httpx.Response:
    """One request, in the life of a replica."""
    [answer] = ask_all(service, (path, body), **headers)
    return answer


def ask_all(service: Service, *requests: tuple[str, object], **headers: str) -> list[httpx.Response]:
    """Some, one after the other."""

    async def send() -> list[httpx.Response]:
        application = service.asgi()
        async with service.lifespan(application):
            transport = httpx.ASGITransport(application)
            async with httpx.AsyncClient(transport=transport, base_url="http://heed", headers=headers) as client:
                return [await client.request("POST" if body else "GET", path, json=body) for path, body in requests]

    return asyncio.run(send())


def by_name(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


def test_a_request_is_a_span_below_the_callers_and_its_stages_are_below_it(
    service: Service, spans: InMemorySpanExporter, bundle: Bundle
) -> None:
    body = {"texts": ["a lovely film", SECRET], "explain": True}
    answer = ask(service, "/v1/classify", body, traceparent=TRACEPARENT, tracestate="vendor=1")
    found = by_name(spans)
    assert list(found) == ["tokenize", "queue", "forward", "explain", "POST /v1/classify"]  # as they end
    root = found.pop("POST /v1/classify")
    assert root.parent is not None
    assert (f"{root.context.trace_id:032x}", f"{root.parent.span_id:016x}") == (TRACE, PARENT)
    assert root.context.trace_state.get("vendor") == "1"
    assert root.kind is SpanKind.SERVER
    stage = {
        "heed.model": "mood",
        "heed.version": bundle.version,
        "heed.texts": 2,
        "heed.tokens": sum(result["tokens"] for result in answer.json()["results"]),
    }
    assert dict(root.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/classify",
        "http.response.status_code": 200,
        "heed.request_id": answer.headers["x-request-id"],
        **stage,
    }
    times = [root.start_time or 0]
    for span in found.values():
        assert span.parent is not None
        assert (span.parent.span_id, dict(span.attributes or {})) == (root.context.span_id, stage)
        times += [span.start_time or 0, span.end_time or 0]
    assert times == sorted(times)
    assert (root.end_time or 0) >= times[-1]
    assert SECRET not in "".join(span.to_json() for span in spans.get_finished_spans())


@pytest.mark.parametrize("header", ["", "rubbish", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01-x"])
def test_a_traceparent_that_is_none_begins_a_trace(service: Service, spans: InMemorySpanExporter, header: str) -> None:
    ask(service, "/v1/models", traceparent=header)
    [span] = spans.get_finished_spans()
    assert span.parent is None


def test_what_the_caller_does_not_sample_is_not_sampled(service: Service, spans: InMemorySpanExporter) -> None:
    assert ask(service, "/v1/classify", {"texts": ["a"]}, traceparent=TRACEPARENT[:-1] + "0").status_code == 200
    assert spans.get_finished_spans() == ()


def test_a_refusal_is_told_by_its_code_and_only_a_failure_is_an_error(
    service: Service, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "answer", broken)
    requests = [("/v1/classify", {"texts": []}), ("/v1/classify", {"texts": ["a"]}), ("/health/ready", None)]
    assert [answer.status_code for answer in ask_all(service, *requests)] == [422, 500, 200]
    refused, failed = spans.get_finished_spans()  # probes make none
    assert (refused.status.status_code, failed.status.status_code) == (StatusCode.UNSET, StatusCode.ERROR)
    assert [(span.attributes or {})["error.type"] for span in (refused, failed)] == ["invalid_request", "internal"]


def test_a_call_of_grpc_is_a_span_too(service: Service, spans: InMemorySpanExporter) -> None:
    with calling(service) as call:
        call("ModelInfer", infer("a lovely film"), metadata=(("traceparent", TRACEPARENT),))
    found = by_name(spans)
    root = found.pop(f"{SERVICE}/ModelInfer")
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == PARENT
    assert (root.attributes or {})["rpc.grpc.status_code"] == 0
    assert {span.parent.span_id for span in found.values() if span.parent} == {root.context.span_id}
    assert list(found) == ["tokenize", "queue", "forward"]


class Collector(BaseHTTPRequestHandler):
    """Keeps what OTLP sends."""

    kept: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        self.kept.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Its URL, and the paths and bodies that it has been sent."""
    kept: list[tuple[str, bytes]] = []
    with HTTPServer(("127.0.0.1", 0), type("Kept", (Collector,), {"kept": kept})) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", kept
        server.shutdown()
        thread.join()


def test_spans_reach_the_collector_that_the_standard_variables_name_before_the_replica_ends(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector() as (url, kept):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        service = made(bundle_folder, app.spans())
        assert ask(service, "/v1/classify", {"texts": [SECRET]}).status_code == 200
    [(path, body)] = kept
    assert path == "/v1/traces"
    [sent] = ExportTraceServiceRequest.FromString(body).resource_spans
    names = {attribute.key: attribute.value.string_value for attribute in sent.resource.attributes}
    assert names["service.name"] == "heed"
    assert [span.name for span in sent.scope_spans[0].spans] == ["tokenize", "queue", "forward", "POST /v1/classify"]
    assert SECRET.encode() not in body


def test_spans_are_made_where_they_are_asked_for() -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    assert wants_spans(endpoint)
    assert wants_spans({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"})
    for off in ({}, endpoint | {"OTEL_SDK_DISABLED": "true"}, endpoint | {"OTEL_TRACES_EXPORTER": "none"}):
        assert not wants_spans(off)
    with pytest.raises(ValueError, match="as http/protobuf .port 4318., not: grpc"):
        wants_spans(endpoint | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})


def test_spans_that_could_not_be_sent_are_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)  # not installed
    with pytest.raises(ValueError, match="need pip install 'heed.otel.'"):
        app.spans()


@pytest.mark.parametrize(("header", "told"), [(TRACEPARENT, f" of trace {TRACE}"), ("rubbish", "")])
def test_a_failure_is_logged_with_its_request_and_its_trace(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, header: str, told: str
) -> None:
    service = made(bundle_folder, None)
    monkeypatch.setattr(routes, "answer", broken)
    answer = ask(service, "/v1/classify", {"texts": ["a"]}, **{"x-request-id": "mine-7", "traceparent": header})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine-7")
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage().startswith(f"request mine-7{told}: /v1/classify failed: RuntimeError at ")
    assert SECRET not in caplog.text


async def broken(*_: Any, **__: Any) -> None:
    raise RuntimeError(SECRET)
