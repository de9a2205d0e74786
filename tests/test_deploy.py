"""deploy/ and Dockerfile against the code that they name: versions, settings, and Ray's own schema."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import yaml
from prometheus_client import REGISTRY
from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema

from service import grpc_ingress, metrics  # noqa: F401  (metrics are registered)
from service.grpc_messages import SERVICE, message
from service.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Serve


ROOT = Path(__file__).parent.parent
STRICT_CHECK = ROOT.parent / "shared" / "k8s" / "validate_crs.py"
ALERTS = ROOT / "deploy" / "alerts.yaml"
MANIFEST = ROOT / "deploy" / "rayservice.yaml"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text()))
BASE = "python:3.11-slim-bookworm"


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    service = yaml.safe_load(MANIFEST.read_text())
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    return dict(service["spec"])


@pytest.fixture(scope="module")
def serve_config(spec: dict[str, Any]) -> dict[str, Any]:
    return dict(yaml.safe_load(spec["serveConfigV2"]))


@pytest.fixture(scope="module")
def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = spec["rayClusterConfig"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def unknown_keys(given: object, read: object, path: str = "") -> Iterator[str]:
    """Keys that a schema has dropped without a word; below free-form values there are none."""
    if isinstance(read, BaseModel) and isinstance(given, dict):
        for key, value in given.items():
            if key not in type(read).model_fields:
                yield f"{path}.{key}"
            else:
                yield from unknown_keys(value, getattr(read, key), f"{path}.{key}")
    elif isinstance(given, list) and isinstance(read, list):
        for i, pair in enumerate(zip(given, read, strict=True)):
            yield from unknown_keys(*pair, f"{path}[{i}]")


def test_ray_reads_the_serve_config_and_drops_no_key(serve_config: dict[str, Any]) -> None:
    assert list(unknown_keys(serve_config, ServeDeploySchema.model_validate(serve_config))) == []


def test_a_misspelt_key_would_be_found(serve_config: dict[str, Any]) -> None:
    [application] = serve_config["applications"]
    wrong = {**serve_config, "applications": [{**application, "rout_prefix": "/"}]}
    assert list(unknown_keys(wrong, ServeDeploySchema.model_validate(wrong))) == [".applications[0].rout_prefix"]


def test_the_application_is_the_services_and_its_args_are_settings(serve_config: dict[str, Any]) -> None:
    [application] = serve_config["applications"]
    assert application["import_path"] == "service.app:build"
    assert "def build(" in (ROOT / "service" / "app.py").read_text()
    Settings(**application["args"])  # refuses what it does not know


def test_grpc_is_served_on_the_port_that_its_service_has(
    serve_config: dict[str, Any], pods: list[dict[str, Any]]
) -> None:
    assert serve_config["grpc_options"] == grpc_ingress.options(Settings().grpc_port)
    service = yaml.safe_load((MANIFEST.parent / "grpc.yaml").read_text())["spec"]
    assert [port["port"] for port in service["ports"]] == [serve_config["grpc_options"]["port"]]
    ours = {key: value for key, value in service["selector"].items() if not key.startswith("ray.io/")}
    assert ours.items() <= pods[-1]["metadata"]["labels"].items()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_serve_config_of_the_manifest_answers_over_http_and_grpc(serve: Serve) -> None:
    server = serve(program=("-m", "tests.deployed"), grpc=True)
    assert server.classify(["a gorgeous movie"]).json()["results"][0]["labels"][0]["label"] == "positive"
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "contents": {"bytes_contents": [b"a gorgeous movie"]}}
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        body = message("ModelInferRequest")(model_name="sentiment", inputs=[tensor]).SerializeToString()
        answer = channel.unary_unary(f"/{SERVICE}/ModelInfer")(body, timeout=60)
    assert message("ModelInferResponse").FromString(answer).outputs[0].contents.bytes_contents == [b"positive"]


def test_every_replica_finds_a_worker(spec: dict[str, Any], serve_config: dict[str, Any]) -> None:
    [application], [workers] = serve_config["applications"], spec["rayClusterConfig"]["workerGroupSpecs"]
    assert application["deployments"] == [{"name": "heed", "max_replicas_per_node": 1, "max_surge_percent": 0}]
    assert application["args"]["replicas"] == workers["minReplicas"] == workers["replicas"]
    [container] = workers["template"]["spec"]["containers"]
    assert application["args"]["compute_threads"] < int(container["resources"]["limits"]["cpu"])


def test_the_manifest_names_the_versions_that_the_image_has(spec: dict[str, Any], pods: list[dict[str, Any]]) -> None:
    assert spec["rayClusterConfig"]["rayVersion"] == PINS["ray"]
    images = {container["image"] for pod in pods for container in pod["spec"]["containers"]}
    assert images == {f"heed:{PROJECT['version']}-ray{PINS['ray']}"}


def test_pods_carry_our_label_and_the_fast_path_and_pass_the_restricted_profile(pods: list[dict[str, Any]]) -> None:
    for pod in pods:
        [container] = pod["spec"]["containers"]
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == environment["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
        assert "PROMETHEUS_MULTIPROC_DIR" not in environment  # Ray's own processes would share it
        assert pod["metadata"]["labels"]["app.kubernetes.io/part-of"] == "heed"
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_a_worker_can_keep_a_model_of_the_hub(pods: list[dict[str, Any]]) -> None:
    assert " HOME=/tmp " in DOCKERFILE  # below which the hub's library keeps its downloads
    spec = pods[-1]["spec"]
    assert {"name": "tmp", "mountPath": "/tmp"} in spec["containers"][0]["volumeMounts"]
    assert {"name": "tmp", "emptyDir": {}} in spec["volumes"]


def test_the_head_runs_no_replica_and_the_clusters_token_has_a_known_name(spec: dict[str, Any]) -> None:
    cluster = spec["rayClusterConfig"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["authOptions"] == {"mode": "token", "secretName": "heed-ray-token"}


@pytest.mark.parametrize("name", ["rayservice.yaml", "alerts.yaml"])
def test_the_manifest_is_valid_against_its_definition(name: str) -> None:
    if not STRICT_CHECK.is_file():
        pytest.skip("no strict checker with the definitions beside this checkout")
    check = subprocess.run([sys.executable, STRICT_CHECK, MANIFEST.with_name(name)], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr


def test_every_metric_that_an_alert_names_is_one_that_the_service_exports() -> None:
    exported = {sample.name for metric in REGISTRY.collect() for sample in metric.samples}
    exported |= {f"{metric.name}_total" for metric in REGISTRY.collect() if metric.type == "counter"}
    exported |= {metric.name for metric in REGISTRY.collect()}
    named = set(re.findall(r"heed_\w+", " ".join(re.findall(r"(?m)^ +expr: (.*)$", ALERTS.read_text()))))
    assert len(named) == 3
    assert named <= exported


def test_alerts_fire_when_they_should_and_not_before(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("no promtool (Debian: prometheus)")
    rules = yaml.safe_load(ALERTS.read_text())["spec"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    (tmp_path / "test.yaml").write_text(ALERTS.with_name("alerts_test.yaml").read_text())
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "test.yaml"]):
        check = subprocess.run(["promtool", *command], capture_output=True, text=True, cwd=tmp_path)
        assert check.returncode == 0, check.stdout + check.stderr


def test_both_stages_of_the_image_start_from_the_pinned_base() -> None:
    assert re.findall(r"(?m)^FROM (\S+)", DOCKERFILE) == [BASE, BASE]


def test_the_image_takes_versions_from_the_constraints_and_its_label_from_the_project() -> None:
    installs = re.findall(r"pip --python \S+ install (.*)", DOCKERFILE)
    assert installs
    assert all(line.startswith(("-c constraints.txt", "--no-deps .")) for line in installs)
    assert "==2" not in DOCKERFILE.replace("=== tells 2.13.0", "")  # no version of a package written here
    assert f'image.version="{PROJECT["version"]}"' in DOCKERFILE


def test_no_address_of_a_registry_is_written_down() -> None:
    for text in (DOCKERFILE, MANIFEST.read_text()):
        assert "://" not in text
        assert "index-url" not in text


def test_the_image_runs_as_a_numeric_user_and_is_healthy_when_ready() -> None:
    assert re.search(r"(?m)^USER [1-9]\d*:\d+$", DOCKERFILE)
    [check] = re.findall(r"(?m)^HEALTHCHECK .*? CMD (\[.*\])$", DOCKERFILE)
    program, flag, code = json.loads(check)
    compile(code, "healthcheck", "exec")
    assert (program, flag) == ("python", "-c")
    assert "/health/ready" in code


def test_everything_that_is_installed_reaches_the_build() -> None:
    allowed = set(re.findall(r"(?m)^!(\S+)$", (ROOT / ".dockerignore").read_text()))
    needed = {"pyproject.toml", "constraints.txt", PROJECT["readme"], *PROJECT["license-files"]}
    assert needed | {"heed", "model", "service", "training"} == allowed
