"""The image, built for real: run as production runs it, and as the KubeRay operator runs it."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import pytest
from containers import Podman, flags_of_this_machine, podman_with
from kuberay import CONTAINER, HEAD, Cluster, wait_for
from manifests import ROOT
from test_image import BASE

from service.launch import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
IMAGE = "localhost/heed:test"
LIMIT_BYTES = 2_000_000_000
READY_S = 30


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    made = podman_with(f"docker.io/library/{BASE}", tmp_path_factory.mktemp("podman"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def said(podman: Podman) -> str:
    """What `make image` prints."""
    environment = podman.environment | {"DOCKER": "podman", "IMAGE": IMAGE, "PORT": str(free_port())}
    command = [str(ROOT / "deploy" / "try_image.sh"), *flags_of_this_machine(podman.folder)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    if "No matching distribution found for torch===" in ran.stdout + ran.stderr:
        pytest.skip("pip here finds no CPU build of PyTorch")
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    return ran.stdout


def test_it_answers_from_a_read_only_root_without_capabilities_and_stops_when_asked(said: str) -> None:
    answer = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert answer["results"][0]["labels"][0]["label"] == "positive"
    assert float(re.findall(r"ready after (\S+) s", said)[0]) < READY_S
    assert re.search(r"exit (0|143)$", said, re.MULTILINE)  # 143: it answered, and the command had not ended its start


def test_its_health_check_passes_once_it_answers_and_fails_where_nothing_does(podman: Podman, said: str) -> None:
    podman("run", "-d", "--name", "healthy", "--read-only", "--tmpfs", "/tmp", IMAGE)
    podman("run", "-d", "--name", "asleep", IMAGE, "sleep", "600")
    wait_for(lambda: podman("healthcheck", "run", "healthy", check=False).returncode == 0)
    assert podman("healthcheck", "run", "asleep", check=False).returncode == 1
    podman("rm", "-f", "-t", "0", "healthy", "asleep")


def test_it_is_small_and_has_no_compiler_no_pip_of_its_own_and_no_root(podman: Podman, said: str) -> None:
    assert int(re.findall(r"bytes of the image: (\d+)", said)[0]) < LIMIT_BYTES
    look = "id -u; command -v gcc cc make; ls /opt/heed/bin | grep -c ^pip"
    assert podman("run", "--rm", IMAGE, "sh", "-c", look, check=False).stdout.split() == ["10001", "0"]


def test_every_command_starts_in_it(podman: Podman, said: str) -> None:
    imports = "import model.stored, training.retrain, service.feedback_store, training.report, s3fs, psycopg"
    podman("run", "--rm", "--read-only", "--tmpfs", "/tmp", IMAGE, "python", "-c", imports)
    assert "retrain" in podman("run", "--rm", IMAGE, "heed", "--help").stdout


@pytest.fixture(scope="module")
def cluster(podman: Podman, said: str) -> Cluster:
    started = Cluster(podman, IMAGE)
    started.serve()
    return started


def test_started_as_the_operator_starts_it_both_workers_answer_and_ray_wants_its_token(cluster: Cluster) -> None:
    for worker in cluster.workers:
        wait_for(functools.partial(cluster.answers, worker))
    assert httpx.get(f"{cluster.dashboard}/api/serve/applications/").status_code == 401


def test_the_probes_of_the_operator_pass_in_every_pod(cluster: Cluster) -> None:
    agent = "wget -T 2 -q -O- http://localhost:52365/api/local_raylet_healthz | grep success"
    serve = f"{agent} && wget -T 2 -q -O- http://localhost:8000/-/healthz | grep success"
    for name, probe in {"head": agent, **dict.fromkeys(cluster.workers, serve)}.items():
        wait_for(functools.partial(cluster.passes, name, probe))


def test_the_ingress_has_no_ports_of_its_own_and_answers_in_json_what_no_replica_did(cluster: Cluster) -> None:
    for worker in cluster.workers:
        assert cluster.passes(worker, "wget -T 2 -q -O- http://localhost:8000/health/live")
        assert not cluster.passes(worker, "wget -T 2 -q -O- http://localhost:9101/metrics")
        assert not cluster.passes(worker, "wget -T 2 -q -O- http://localhost:8404/stats")
        assert cluster.passes(worker, "grep -r 'errorfile 502 /opt/heed/ingress/502.http' /tmp/haproxy-serve")


def test_pods_ask_for_the_memory_that_they_take_and_half_as_much_again(cluster: Cluster) -> None:
    for name, pod in {"head": HEAD, **dict.fromkeys(cluster.workers, CONTAINER)}.items():
        asked = int(pod["resources"]["requests"]["memory"].removesuffix("Gi")) * 2**30
        assert 1.5 * cluster.memory(name) < asked, name


def test_a_worker_that_is_stopped_answers_what_it_has_and_costs_the_other_nothing(cluster: Cluster) -> None:
    with ThreadPoolExecutor() as pool:
        long = [pool.submit(cluster.answers, "two", texts=1000) for _ in range(2)]
        time.sleep(0.5)
        stopped = pool.submit(cluster.podman, "stop", "-t", "60", "two")
        while not stopped.done():
            assert cluster.answers("one")
        assert all(answer.result() for answer in long)
    assert cluster.podman("inspect", "-f", "{{.State.ExitCode}}", "two").stdout.strip() != "137"  # of SIGKILL
    cluster.podman("start", "two")
    wait_for(functools.partial(cluster.answers, "two"))


def test_a_worker_that_is_killed_costs_the_other_nothing(cluster: Cluster) -> None:
    cluster.podman("kill", "two")
    for _ in range(40):
        assert cluster.answers("one")
        time.sleep(0.25)
