"""The Ray Serve deployment: a replica is the routes of service/routes.py over its own loaded models.

`build` is the import path of a Serve config (deploy/), and what service/launch.py runs locally. With
Ray's direct ingress the replica's own HTTP server calls the routes; no request passes through a proxy
written in Python.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve._private import replica as ray_replica
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from service.autoscaling import MEAN_OVER_S, SAMPLES_EVERY_S, UP_AFTER_S, Policy
from service.connection import Connection
from service.grpc_ingress import start_grpc_server
from service.settings import Settings, load_settings, parse_specs, wants_spans

if TYPE_CHECKING:
    from ray.serve import Application
    from starlette.applications import Starlette
    from starlette.types import Receive, Scope, Send
    from uvicorn import Server

    from service.routes import Service
    from service.tracing import Tracing

log = logging.getLogger("heed")

# A replica opens a port for calls between deployments, on all interfaces. Heed has one deployment.
_add_port = ray_replica.add_port_to_grpc_server
ray_replica.add_port_to_grpc_server = lambda server, address: _add_port(server, address.replace("[::]", "127.0.0.1"))

_start_http_server = ray_replica.start_asgi_http_server


async def start_http_server(ray_app: Any, *args: Any, **options: Any) -> tuple[Any, Any]:
    """Start the replica's HTTP server with Heed's routes at its root; Ray's own, /-/..., stay Ray's.

    Around each request Ray wraps tasks, contexts, metrics and a log, and none of it that Heed does not keep
    itself: a third of what a request cost the host (benchmarks/RESULTS.md).
    """
    task, server = await _start_http_server(ray_app, *args, **options)
    routes: Starlette = ray_app.__self__._user_callable_asgi_app

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (ray_app if scope["path"].startswith("/-/") else routes)(scope, receive, send)

    server.config.http = Connection
    server.config.proxy_headers = False
    leaving = asyncio.create_task(leave_when_broken(routes.state.service, task, server))
    task.add_done_callback(lambda _: leaving.done())  # asyncio itself keeps no task alive
    server.config.app = lambda: app  # read when the task runs; it is not Ray's that adds a header to each answer
    return task, server


ray_replica.start_asgi_http_server = start_http_server
ray_replica.start_grpc_server = start_grpc_server


async def leave_when_broken(service: Service, task: asyncio.Task[None], server: Server) -> None:
    """End this process once its device answers no more, so that Ray starts another.

    Its port closes first: HAProxy then sends elsewhere, where it would send ever more to a replica that fails fast.
    """
    while service.is_live:
        await asyncio.sleep(WATCH_EVERY_S)
        if task.done():  # it stops anyway
            return
    log.error("the device answers no more: this replica ends")
    server.should_exit = True
    await asyncio.wait([task], timeout=LAST_ANSWERS_S)
    os._exit(1)


HEALTH_EVERY_S = 1.0  # Ray looks whether a replica's process is there
WATCH_EVERY_S = 0.1
LAST_ANSWERS_S = 1.0  # for errors that are being written

# Ray would answer 503 by count; the batcher refuses by tokens, with 429 and a time to come back.
NO_LIMIT = 1_000_000


def metrics_folder() -> str:
    """Where the replicas of a node leave their figures: while this container runs, as /tmp may outlive it."""
    started = Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]  # proc_pid_stat(5), field 22
    return f"{tempfile.gettempdir()}/heed-metrics-{started}"


class Replica:
    """One process that answers. Ray calls its methods; their names are Ray's."""

    def __init__(self, settings: dict[str, Any]) -> None:
        # Before prometheus-client is imported. Not in a runtime environment: Ray would build one for each replica.
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", metrics_folder())
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        # Imported here: the driver that only describes the deployment needs no torch.
        from service.exporter import Exporter
        from service.models import Models
        from service.routes import Service

        write_log()
        parsed = Settings(**settings)
        self._service = Service(Models(parse_specs(parsed.models), parsed), parsed, spans())

        if parsed.metrics_port:
            Exporter(parsed.metrics_host, parsed.metrics_port)

    def __serve_build_asgi_app__(self) -> Starlette:
        """The application that the replica's HTTP server runs."""
        app = self._service.asgi()
        app.state.service = self._service  # for start_http_server
        return app

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What service/autoscaling.py decides by."""
        return asdict(self._service.load())


def write_log() -> None:
    """Lines of the log go to this process's own stderr, which Ray keeps; those that Serve keeps wait for a thousand."""
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(logging.Formatter("%(asctime)s heed %(levelname)s: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def spans() -> Tracing | None:
    """What makes spans, where OTEL_* ask for them: else OpenTelemetry is not even imported."""
    if not wants_spans(os.environ):
        return None
    from service.tracing import Tracing

    return Tracing.from_environment()


def build(args: dict[str, Any]) -> Application:
    """The Serve application for settings given by name; unset ones come from HEED_* and the defaults."""
    return application(load_settings(args))


def application(settings: Settings, attempts: int = 20) -> Application:
    """The Serve application; `attempts` is how often Ray tries to start a replica that fails."""
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="heed",
        **replicas(settings),
        max_ongoing_requests=NO_LIMIT,
        max_constructor_retry_count=attempts,
        max_surge_percent=100,  # a change of settings starts the new replicas before it stops the old
        health_check_period_s=HEALTH_EVERY_S,
        graceful_shutdown_timeout_s=settings.drain_s,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config={"enable_access_log": False},
        ray_actor_options={"num_cpus": 1, "num_gpus": settings.gpus_per_replica},
    )
    return deployment.bind(settings.model_dump())


def replicas(settings: Settings) -> dict[str, Any]:
    """How many, as Ray's deployment takes it."""
    if settings.most_replicas == settings.replicas:
        return {"num_replicas": settings.replicas}
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # its successor has no effect yet
        scaling = AutoscalingConfig(
            min_replicas=settings.replicas,
            max_replicas=settings.max_replicas,
            metrics_interval_s=SAMPLES_EVERY_S,
            look_back_period_s=MEAN_OVER_S,
            upscale_delay_s=UP_AFTER_S,
            downscale_delay_s=settings.scale_down_after_s,
            policy=AutoscalingPolicy(policy_function=Policy, policy_kwargs={"up_wait_s": settings.scale_up_wait_s}),
        )
    return {"autoscaling_config": scaling}
