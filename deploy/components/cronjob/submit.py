"""Start a copy of a RayJob that is kept as a pattern, and wait for its end: exit 0 where it succeeded, else 1.

    python submit.py PATTERN    in a Job's pod, with JOB_NAME, JOB_UID and an account that may get and create RayJobs

The copy has the Job's name, so that a pod that starts again goes on waiting for it; and belongs to the Job, so that it
is deleted with it. Needs Python alone.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ACCOUNT = Path(os.environ.get("ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
API = os.environ.get("API", "https://kubernetes.default.svc")
LOOK_EVERY_S = float(os.environ.get("LOOK_EVERY_S", "15"))
ENDS = {"Complete": 0, "Failed": 1, "ValidationFailed": 1}  # of status.jobDeploymentStatus


def main() -> int:
    """Copy, and follow."""
    [pattern] = sys.argv[1:]
    name = os.environ["JOB_NAME"]
    while not is_started(pattern, name):
        time.sleep(LOOK_EVERY_S)
    print(f"started: {name}", flush=True)
    while (status := state(name)).get("jobDeploymentStatus") not in ENDS:
        time.sleep(LOOK_EVERY_S)
    print(f"{status['jobDeploymentStatus']}: {status.get('message') or status.get('reason') or name}")
    return ENDS[status["jobDeploymentStatus"]]


def is_started(pattern: str, name: str) -> bool:
    """Whether the copy is there now; False while the API server cannot be asked."""
    try:
        call("POST", "", copy_of(call("GET", pattern), name, os.environ["JOB_UID"]))
    except urllib.error.HTTPError as error:
        if error.code < 500 and error.code != 409:  # 409: a pod before this one has started it
            raise
        return error.code == 409
    except OSError as error:
        print(f"asked again in {LOOK_EVERY_S:g} s: {error}", flush=True)
        return False
    return True


def state(name: str) -> dict[str, Any]:
    """How far it is; empty before the operator has said so, and while the API server cannot be asked."""
    try:
        return dict(call("GET", name).get("status", {}))
    except urllib.error.HTTPError as error:
        if error.code < 500:  # such as 404: somebody has deleted it
            raise
    except OSError as error:
        print(f"asked again in {LOOK_EVERY_S:g} s: {error}", flush=True)
    return {}


def copy_of(pattern: dict[str, Any], name: str, job_uid: str) -> dict[str, Any]:
    """The RayJob to create: not suspended, and of the Job."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job_uid}
    metadata = {"name": name, "labels": pattern["metadata"].get("labels", {}), "ownerReferences": [owner]}
    spec = {**pattern["spec"], "suspend": False}
    return {"apiVersion": pattern["apiVersion"], "kind": pattern["kind"], "metadata": metadata, "spec": spec}


def call(method: str, name: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask the API server about RayJobs of this namespace. Its token is read each time: it changes."""
    namespace = (ACCOUNT / "namespace").read_text()
    request = urllib.request.Request(  # noqa: S310  (API is this file's, or the test's)
        f"{API}/apis/ray.io/v1/namespaces/{namespace}/rayjobs/{name}".rstrip("/"),
        method=method,
        data=json.dumps(body).encode() if body else None,
        headers={"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}", "Content-Type": "application/json"},
    )
    trust = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt")) if API.startswith("https") else None
    with urllib.request.urlopen(request, timeout=30, context=trust) as answer:  # noqa: S310
        return dict(json.load(answer))


if __name__ == "__main__":
    sys.exit(main())
