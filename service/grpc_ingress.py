"""gRPC behind Ray Serve's ingress: HAProxy balances calls over the replicas, each of which answers on a port of Ray's.

Between its server and a deployment's method Ray loses the deadline of a call and logs its errors with their
values, so that the server is Ray's and the methods are Heed's own. This rests on names of Ray 2.60, which
tests/test_v2_grpc.py holds. Called by service/app.py in replicas, and by Ray where it serves behind a replica.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc
from grpc_reflection.v1alpha import reflection
from ray.serve._private import default_impl, grpc_util
from ray.serve.generated.serve_pb2_grpc import add_RayServeAPIServiceServicer_to_server

from service.grpc_messages import METHODS, POOL, SERVICE

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.routes import Service

LOOPBACK = "127.0.0.1"
OPEN = "[::]"  # where Ray's servers listen
FUNCTION = f"{__name__}:add_to_server"
WATCH_EVERY_S, LAST_ANSWERS_S = 0.1, 1.0  # as of HTTP (service/app.py)


def options(port: int) -> dict[str, Any]:
    """Ray's gRPC options."""
    return {"port": port, "grpc_servicer_functions": [FUNCTION]}


def add_to_server(servicer: Any, server: grpc.Server) -> None:
    """What the service has, for a server of Ray's that has replicas answer it."""
    methods = {name: grpc.unary_unary_rpc_method_handler(getattr(servicer, name)) for name in METHODS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))


def listen_on_loopback() -> list[Any]:
    """From now on Ray's gRPC servers in this process do; Ray calls it in proxies, for middlewares, of which none."""
    default_impl.add_grpc_address = lambda server, address: server.add_insecure_port(address.replace(OPEN, LOOPBACK))
    return []


async def start_grpc_server(
    ray_handlers: Callable[..., Any], ray_options: Any, *, event_loop: asyncio.AbstractEventLoop, **_: Any
) -> tuple[asyncio.Task[None], grpc_util.gRPCGenericServer]:
    """Ray's function of this name, for a replica: Heed's methods, and Ray's own for HAProxy's health checks.

    It listens where the replica's HTTP server does.
    """
    from service.dialects.v2_grpc import handlers

    replica: Any = ray_handlers.__self__  # type: ignore[attr-defined]
    service: Service = replica._user_callable_asgi_app.state.service
    grpc_util.DEFAULT_GRPC_SERVER_OPTIONS = [  # Ray's is 2 GB; of an option that is there twice, the first counts
        ("grpc.max_receive_message_length", service.settings.max_body_bytes),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc_util.gRPCGenericServer(ray_handlers)
    host = replica._http_options.host
    server.add_insecure_port(f"[{host}]:{ray_options.port}" if ":" in host else f"{host}:{ray_options.port}")
    add_RayServeAPIServiceServicer_to_server(SimpleNamespace(ListApplications=None, Healthz=None), server)
    server.add_passthrough_service(SERVICE)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers(service)),))
    server.add_passthrough_service(reflection.SERVICE_NAME)
    reflection.enable_server_reflection((SERVICE, reflection.SERVICE_NAME), server, pool=POOL)
    await server.start()
    task = event_loop.create_task(server.wait_for_termination())
    leaving = event_loop.create_task(close_when_broken(service, task, server))
    task.add_done_callback(lambda _: leaving.done())  # asyncio itself keeps no task alive
    return task, server


async def close_when_broken(service: Service, task: asyncio.Task[None], server: grpc.aio.Server) -> None:
    """Close the port once the device answers no more: HAProxy then sends elsewhere, and this process ends."""
    while service.is_live:
        await asyncio.sleep(WATCH_EVERY_S)
        if task.done():  # it stops anyway
            return
    await server.stop(LAST_ANSWERS_S)
