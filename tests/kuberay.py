"""A Ray cluster of containers, as the KubeRay operator would start it."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import httpx
import yaml
from manifests import DEPLOY, serve_config

from service.launch import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from containers import Podman

RAYSERVICE = yaml.safe_load((DEPLOY / "base" / "rayservice.yaml").read_text())
CONFIG = serve_config(RAYSERVICE)
[WORKERS] = RAYSERVICE["spec"]["rayClusterConfig"]["workerGroupSpecs"]
[HEAD] = RAYSERVICE["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
[CONTAINER] = WORKERS["template"]["spec"]["containers"]
CLOSED = ["--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--shm-size=512m"]


class Cluster:
    """A head and two workers, each a container, started by the command lines and with the variables of KubeRay."""

    token = "0123456789abcdef" * 4
    ray = "--metrics-export-port=8080 --dashboard-agent-listen-port=52365 --object-store-memory=104857600 --block"

    def __init__(self, podman: Podman, image: str) -> None:
        self.podman, self._image = podman, image
        self.workers = {name: free_port() for name in ("one", "two")}  # and where each answers
        self.dashboard = f"http://127.0.0.1:{(port := free_port())}"
        podman("network", "create", "heed")
        self._start("head", f"{port}:8265", f"--head --num-cpus=0 --dashboard-host=0.0.0.0 {self.ray}")
        for name, at in self.workers.items():
            self._start(name, f"{at}:8000", f"--address=head:6379 --num-cpus=4 {self.ray}")

    def _start(self, name: str, port: str, flags: str) -> None:
        variables = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_START_ULIMIT_OPEN_FILES": "4096",
            "RAY_SERVE_HAPROXY_MAXCONN": "1000",  # what so few open files are enough for
        } | {entry["name"]: entry["value"] for entry in CONTAINER["env"]}
        environment = [f"--env={key}={value}" for key, value in variables.items()]
        where = ["--network=heed", f"--publish=127.0.0.1:{port}", f"--name={name}", "--entrypoint=/bin/bash"]
        command = ["-c", "--", f"ulimit -n 4096; ray start {flags}"]
        self.podman("run", "-d", *CLOSED, *environment, *where, self._image, *command)

    def ask(self, method: str, **more: Any) -> httpx.Response:
        """What the operator asks the dashboard."""
        headers = {"Authorization": f"Bearer {self.token}"}
        url = f"{self.dashboard}/api/serve/applications/"
        return httpx.request(method, url, headers=headers, timeout=60, **more)

    def serve(self) -> None:
        """Put the Serve config, as soon as the head takes one, and wait until the application runs."""
        [application] = CONFIG["applications"]
        fewer = {**application, "args": application["args"] | {"compute_threads": 1}}
        wait_for(lambda: self.ask("GET").status_code == 200)
        wait_for(lambda: self.ask("PUT", json={**CONFIG, "applications": [fewer]}).status_code == 200)
        wait_for(lambda: self.ask("GET").json()["applications"]["heed"]["status"] == "RUNNING")

    def answers(self, worker: str, texts: int = 1) -> bool:
        url = f"http://127.0.0.1:{self.workers[worker]}/v1/classify"
        asked = [f"a gorgeous movie {i}" for i in range(texts)]
        answer = httpx.post(url, json={"texts": asked}, timeout=30)
        return answer.status_code == 200 and answer.json()["results"][0]["labels"][0]["label"] == "positive"

    def memory(self, name: str) -> int:
        """Bytes that the processes of a container have; what they share counts once."""
        look = "cat /proc/[0-9]*/smaps_rollup 2>/dev/null | awk '/^Pss:/ { s += $2 } END { print s }'"
        return 1024 * int(self.podman("exec", name, "bash", "-c", look).stdout)

    def passes(self, name: str, probe: str) -> bool:
        """Whether a command succeeds in a container."""
        return self.podman("exec", name, "bash", "-c", probe, check=False).returncode == 0


def wait_for(is_so: Callable[[], bool], within_s: float = 240) -> None:
    """What is not there yet raises."""
    end = time.monotonic() + within_s
    while True:
        with contextlib.suppress(httpx.HTTPError, KeyError):
            if is_so():
                return
        assert time.monotonic() < end
        time.sleep(1)
