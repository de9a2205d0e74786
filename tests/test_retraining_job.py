"""The CronJob that retrains: what it runs, and how it starts a RayJob and waits for it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from manifests import DEPLOY, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMPONENTS = DEPLOY / "components"
PATTERN = yaml.safe_load((COMPONENTS / "retraining" / "rayjob.yaml").read_text())
SUBMIT = COMPONENTS / "cronjob" / "submit.py"
RAYJOBS = "/apis/ray.io/v1/namespaces/heed/rayjobs"
HEED_THAT_SAYS_HOW = 'heed() { echo "$*"; [ "$1" != "$OF" ] || return "$EXIT"; }\n'


def entrypoint(of: str = "", exit_status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run it, with a `heed` that prints what it is given, and ends so where its first word is `of`."""
    entries = PATTERN["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    environment = {entry["name"]: entry["value"] for entry in entries} | {"OF": of, "EXIT": str(exit_status)}
    script = HEED_THAT_SAYS_HOW + PATTERN["spec"]["entrypoint"]
    return subprocess.run(["bash", "-c", script], env=os.environ | environment, capture_output=True, text=True)


def test_a_retraining_runs_commands_and_flags_that_there_are() -> None:
    for line in entrypoint().stdout.splitlines():
        words = line.split()
        command = words[: 2 if words[0] == "feedback" else 1]
        known = subprocess.run(
            [sys.executable, "-m", "service", *command, "--help"], capture_output=True, text=True, cwd=ROOT, check=True
        )
        assert {word for word in words if word.startswith("--")} <= set(re.findall(r"--[a-z-]+", known.stdout))


@pytest.mark.parametrize(
    ("of", "exit_status", "ends"), [("retrain", 0, 0), ("retrain", 3, 0), ("retrain", 1, 1), ("feedback", 2, 1)]
)
def test_not_promoted_is_a_result_and_a_failure_is_one(of: str, exit_status: int, ends: int) -> None:
    assert entrypoint(of, exit_status).returncode == ends


class Cluster:
    """What an API server says of RayJobs, and what it was asked."""

    def __init__(self, *states: Any) -> None:
        self.states: list[Any] = list(states)
        self.created: list[Any] = []

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if method == "POST":
            exists, self.created = bool(self.created), [*self.created, body]
            return (409, {}) if exists else (201, body)
        if path == f"{RAYJOBS}/heed-retrain":
            return 200, PATTERN
        assert path == f"{RAYJOBS}/heed-retrain-123"
        state = self.states.pop(0)
        return (state, {}) if isinstance(state, int) else (200, {"status": state})


@contextmanager
def api_server(cluster: Cluster) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.headers["Authorization"] == "Bearer of-the-account"
            size = int(self.headers.get("Content-Length") or 0)
            status, said = cluster.answer(self.command, self.path, json.loads(self.rfile.read(size) or "null"))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def submit(cluster: Cluster, folder: Path) -> subprocess.CompletedProcess[str]:
    for name, content in (("namespace", "heed"), ("token", "of-the-account")):
        (folder / name).write_text(content)
    with api_server(cluster) as url:
        job = {
            "JOB_NAME": "heed-retrain-123",
            "JOB_UID": "1-2",
            "API": url,
            "ACCOUNT": str(folder),
            "LOOK_EVERY_S": "0.01",
        }
        program = [sys.executable, "-I", str(SUBMIT), "heed-retrain"]
        return subprocess.run(program, env=job, capture_output=True, text=True, timeout=60)


def test_the_job_starts_a_copy_of_the_pattern_that_is_its_own_and_ends_as_it_does(tmp_path: Path) -> None:
    cluster = Cluster({}, {"jobDeploymentStatus": "Running"}, 503, {"jobDeploymentStatus": "Complete"})
    ran = submit(cluster, tmp_path)
    assert (ran.returncode, ran.stdout) == (0, "started: heed-retrain-123\nComplete: heed-retrain-123\n")
    [created] = cluster.created
    assert created["spec"] == {**PATTERN["spec"], "suspend": False}
    assert created["metadata"]["name"] == "heed-retrain-123"
    assert created["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": "heed-retrain-123", "uid": "1-2"}
    ]


def test_a_retraining_that_fails_fails_the_job_and_says_why(tmp_path: Path) -> None:
    ran = submit(Cluster({"jobDeploymentStatus": "Failed", "message": "the disk is full"}), tmp_path)
    assert (ran.returncode, ran.stdout.splitlines()[-1]) == (1, "Failed: the disk is full")


def test_a_pod_that_starts_again_waits_for_the_retraining_that_is_there(tmp_path: Path) -> None:
    cluster = Cluster({"jobDeploymentStatus": "Complete"})
    cluster.created = [{}]
    assert submit(cluster, tmp_path).returncode == 0


def test_a_retraining_that_somebody_deletes_fails_the_job(tmp_path: Path) -> None:
    assert submit(Cluster(404), tmp_path).returncode == 1
