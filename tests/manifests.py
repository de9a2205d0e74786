"""What deploy/ applies: overlays as kubectl builds them, and the pods that come of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
SHARED = ROOT.parent / "shared" / "k8s"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text()))
IMAGE = f"heed:{PROJECT['version']}-ray{PINS['ray']}"
OVERLAYS = ["cpu", "gpu", "dev"]
WHOLE, RAYCRONJOB = "cpu with every component", "cpu with RayCronJob"
ADDED = {
    WHOLE: ["stores", "retraining", "cronjob", "registry-volume", "incremental-upgrade"],
    RAYCRONJOB: ["stores", "retraining", "raycronjob"],
}
KUBERAY_HEAD_PORTS = {"gcs-server", "dashboard", "client", "metrics", "as-metrics", "dash-metrics", "serve"}

every_overlay = pytest.mark.parametrize("overlay", [*OVERLAYS, *ADDED])

Document = dict[str, Any]


def build(folder: Path) -> str:
    """What an overlay applies."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl, which builds overlays")
    made = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return made.stdout


def build_with(components: list[str], folder: Path) -> str:
    """The overlay for CPUs with these, as somebody's own. Kustomize wants paths that are relative to it."""
    used = {
        "namespace": "heed",
        "resources": [os.path.relpath(DEPLOY / "overlays" / "cpu", folder)],
        "components": [os.path.relpath(DEPLOY / "components" / name, folder) for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(used))
    return build(folder)


def of_kind(text: str, kind: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(text) if document["kind"] == kind]


def pods(text: str) -> dict[str, Document]:
    """The pods that come of it, with the labels that KubeRay and Jobs add."""
    found = {}
    for document in yaml.safe_load_all(text):
        kind, spec = document["kind"], document.get("spec", {})
        clusters = {"RayService": "rayClusterConfig", "RayJob": "rayClusterSpec"}
        if kind in clusters:
            cluster = spec[clusters[kind]]
            groups = {"head": cluster["headGroupSpec"]} | {
                g["groupName"]: g for g in cluster.get("workerGroupSpecs", [])
            }
            for name, group in groups.items():
                added = {"ray.io/cluster": "random", "ray.io/node-type": "head" if name == "head" else "worker"}
                found[f"{kind} {name}"] = with_labels(group["template"], added)
        elif kind == "StatefulSet":
            found[kind] = with_labels(spec["template"], {})
        elif kind == "CronJob":
            found[kind] = with_labels(spec["jobTemplate"]["spec"]["template"], {})
    return found


def with_labels(template: Document, added: dict[str, str]) -> Document:
    return {**template, "labels": template["metadata"]["labels"] | added}


def picks(selector: Document, labels: dict[str, str]) -> bool:
    exist = all(each["key"] in labels for each in selector.get("matchExpressions", []))
    return exist and selector.get("matchLabels", {}).items() <= labels.items()


def serve_config(rayservice: Document) -> Document:
    return dict(yaml.safe_load(rayservice["spec"]["serveConfigV2"]))


def errors(manifests: dict[str, str], folder: Path) -> dict[str, str]:
    """By name, what the strict checker says against them: unknown fields, types, what the operator refuses."""
    if not SHARED.is_dir():
        pytest.skip("no strict checker with the definitions beside this checkout")
    for name, text in manifests.items():
        (folder / f"{name}.yaml").write_text(text)
    check = subprocess.run([sys.executable, SHARED / "validate_crs.py", folder], capture_output=True, text=True)
    said = re.findall(r"(?m)^ERROR .*?/([^/]+)\.yaml: (.*)$", check.stdout)
    assert bool(said) == bool(check.returncode), check.stdout + check.stderr
    return dict(said)
