"""deploy/ against the code that it names, Ray's own schema, and the definitions of what it is made of."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import grpc
import pytest
import yaml
from manifests import (
    ADDED,
    DEPLOY,
    IMAGE,
    KUBERAY_HEAD_PORTS,
    OVERLAYS,
    PINS,
    RAYCRONJOB,
    ROOT,
    WHOLE,
    Document,
    build,
    build_with,
    errors,
    every_overlay,
    of_kind,
    picks,
    pods,
    serve_config,
)
from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema

from service import grpc_ingress
from service.grpc_messages import SERVICE, message
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Serve

SERVE_CONFIGS = {
    path.parent.name: serve_config(yaml.safe_load(path.read_text()))
    for path in (DEPLOY / "base" / "rayservice.yaml", *(DEPLOY / "overlays" / name / "serve.yaml" for name in OVERLAYS))
}
every_serve_config = pytest.mark.parametrize("config", SERVE_CONFIGS.values(), ids=SERVE_CONFIGS)


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


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """All overlays, and those of somebody who adds components."""
    own = {name: build_with(components, tmp_path_factory.mktemp("own")) for name, components in ADDED.items()}
    return {name: build(DEPLOY / "overlays" / name) for name in OVERLAYS} | own


@every_serve_config
def test_ray_reads_the_serve_config_and_drops_no_key(config: Document) -> None:
    assert list(unknown_keys(config, ServeDeploySchema.model_validate(config))) == []
    [application] = config["applications"]
    wrong = {**config, "applications": [{**application, "rout_prefix": "/"}]}
    assert list(unknown_keys(wrong, ServeDeploySchema.model_validate(wrong))) == [".applications[0].rout_prefix"]


@every_serve_config
def test_the_application_is_the_services_its_args_are_settings_and_grpc_has_its_port(config: Document) -> None:
    [application] = config["applications"]
    assert application["import_path"] == "service.app:build"
    assert "def build(" in (ROOT / "service" / "app.py").read_text()
    Settings(**application["args"])  # refuses what it does not know
    assert config["grpc_options"] == grpc_ingress.options(Settings().grpc_port)


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


@every_overlay
def test_every_replica_finds_a_worker_with_the_cores_it_computes_on(built: dict[str, str], overlay: str) -> None:
    [service] = of_kind(built[overlay], "RayService")
    [application] = serve_config(service)["applications"]
    [workers] = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    settings = Settings(**application["args"])
    assert application["deployments"] == [{"name": "heed", "max_replicas_per_node": 1, "max_surge_percent": 0}]
    assert settings.replicas == workers["minReplicas"] == workers["replicas"]
    assert settings.most_replicas == workers["maxReplicas"]
    [container] = workers["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert settings.compute_threads < int(limits["cpu"])
    assert settings.gpus_per_replica == int(limits.get("nvidia.com/gpu", 0))
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"serve": settings.port, "grpc": settings.grpc_port, "metrics": 8080, "heed-metrics": 9400}
    assert settings.metrics_port == ports["heed-metrics"]


@every_overlay
def test_everything_is_in_the_namespace_of_the_overlay(built: dict[str, str], overlay: str) -> None:
    documents = list(yaml.safe_load_all(built[overlay]))
    assert {document["metadata"].get("namespace") for document in documents} == {"heed"}
    for binding in of_kind(built[overlay], "RoleBinding"):
        assert [subject["namespace"] for subject in binding["subjects"]] == ["heed"]


@every_overlay
def test_images_and_ray_are_those_of_the_lock_file(built: dict[str, str], overlay: str) -> None:
    ours = {image for image in re.findall(r"image: (\S+)", built[overlay]) if not image.startswith("redis:")}
    assert ours == {f"{IMAGE}-cuda" if overlay == "gpu" else IMAGE}
    assert set(re.findall(r"rayVersion: (\S+)", built[overlay])) == {PINS["ray"]}
    assert f"image: {IMAGE}\n" in (DEPLOY / "kserve" / "inferenceservice.yaml").read_text()


@every_overlay
def test_every_selector_picks_a_pod_and_every_pod_is_closed_but_for_what_is_named(
    built: dict[str, str], overlay: str
) -> None:
    labels = [pod["labels"] for pod in pods(built[overlay]).values()]
    policies = of_kind(built[overlay], "NetworkPolicy")
    selectors = [policy["spec"]["podSelector"] for policy in policies]
    for policy in policies:
        rules = policy["spec"].get("ingress", []) + policy["spec"].get("egress", [])
        peers = [peer for rule in rules for peer in rule.get("from", []) + rule.get("to", [])]
        selectors += [peer["podSelector"] for peer in peers if "podSelector" in peer]
    selectors += [
        each["spec"]["selector"]
        for kind in ("PodMonitor", "PodDisruptionBudget")
        for each in of_kind(built[overlay], kind)
    ]
    selectors += [{"matchLabels": each["spec"]["selector"]} for each in of_kind(built[overlay], "Service")]
    of_others = {"matchLabels": {"heed-client": "true"}}
    for selector in selectors:
        assert selector == of_others or any(picks(selector, each) for each in labels), selector
    [closed] = [policy for policy in policies if policy["metadata"]["name"] == "heed-nothing-else"]
    assert closed["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert not closed["spec"].keys() & {"ingress", "egress"}
    assert all(picks(closed["spec"]["podSelector"], each) for each in labels)


def test_prometheus_scrapes_ports_that_pods_have(built: dict[str, str]) -> None:
    for monitor in of_kind(built[WHOLE], "PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            for pod in pods(built[WHOLE]).values():
                if picks(monitor["spec"]["selector"], pod["labels"]):
                    named = {port["name"] for port in pod["spec"]["containers"][0].get("ports", [])}
                    assert endpoint["port"] in (named or KUBERAY_HEAD_PORTS)


@every_overlay
def test_pods_pass_the_restricted_profile_and_get_no_more_memory_than_they_ask_for(
    built: dict[str, str], overlay: str
) -> None:
    for name, pod in pods(built[overlay]).items():
        [container] = pod["spec"]["containers"]
        assert pod["spec"]["securityContext"]["runAsNonRoot"], name
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}, name
        if not name.startswith(("CronJob", "RayService head")):
            assert pod["spec"]["automountServiceAccountToken"] is False, name
        if name.startswith("Ray"):  # killed for memory, a worker takes its requests along
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]


@every_overlay
def test_the_head_runs_no_replica_and_the_ray_of_every_cluster_asks_for_a_token(
    built: dict[str, str], overlay: str
) -> None:
    [service] = of_kind(built[overlay], "RayService")
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert service["spec"]["excludeHeadPodFromServeSvc"]
    jobs = [job["spec"]["rayClusterSpec"] for job in of_kind(built[overlay], "RayJob")]
    for each in (cluster, *jobs):
        assert each["authOptions"] == {"mode": "token", "secretName": "heed-ray-token"}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        environment = {entry["name"]: entry["value"] for entry in group["template"]["spec"]["containers"][0]["env"]}
        assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == environment["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
        assert "PROMETHEUS_MULTIPROC_DIR" not in environment  # Ray's own processes would share it


def test_overlays_are_valid_against_the_definitions_of_their_kinds(built: dict[str, str], tmp_path: Path) -> None:
    assert errors(built, tmp_path) == {}


MISTAKES = {  # right, wrong
    "unknown field": ("rayClusterConfig:", "rayClusterSpecs:"),
    "no number": ("minReplicas: 2", 'minReplicas: "2"'),
    "least over most": ("minReplicas: 2", "minReplicas: 8"),
    "no string": ('num-cpus: "0"', "num-cpus: 0"),
    "key that Ray drops": ("route_prefix: /", "rout_prefix: /"),
    "minute 61": ("schedule: 30 3 * * *", "schedule: 61 3 * * *"),
    "unknown field of a CronJob": ("concurrencyPolicy: Forbid", "concurrencyPolicies: Forbid"),
    "misspelt time zone": ("timeZone: Etc/UTC", "timezone: Etc/UTC"),
    "Ray without tokens": ("rayVersion: 2.60.0", "rayVersion: 2.40.0"),
    "unknown field of a PodMonitor": ("podMetricsEndpoints:", "podMetricEndpoints:"),
    "no PromQL": ("expr: absent(", "expr: absent(("),
    "no number or share": ("minAvailable: 1", "minAvailable: [1]"),
    "unknown field of a NetworkPolicy": ("policyTypes:", "policyType:"),
    "a key twice": ("secretName: heed-ray-token", "secretName: heed-ray-token\n      secretName: other"),
}


def test_each_deliberate_mistake_is_refused(built: dict[str, str], tmp_path: Path) -> None:
    assert all(right in built[WHOLE] for right, _ in MISTAKES.values())
    wrong = {name: built[WHOLE].replace(*change, 1) for name, change in MISTAKES.items()}
    assert errors(wrong, tmp_path).keys() == MISTAKES.keys()


def test_a_raycronjob_runs_what_a_cronjob_would_and_when(built: dict[str, str]) -> None:
    [job], [cron] = of_kind(built[RAYCRONJOB], "RayJob"), of_kind(built[RAYCRONJOB], "RayCronJob")
    [instead] = of_kind(built[WHOLE], "CronJob")
    assert cron["spec"]["schedule"] == instead["spec"]["schedule"]
    for key, value in cron["spec"]["jobTemplate"].items():
        assert value == job["spec"][key]


def test_kserve_runs_the_same_image_with_settings_that_there_are_and_asks_routes_that_there_are() -> None:
    service = yaml.safe_load((DEPLOY / "kserve" / "inferenceservice.yaml").read_text())
    [container] = service["spec"]["predictor"]["containers"]
    named = {entry["name"].removeprefix("HEED_").lower(): entry["value"] for entry in container["env"]}
    load_settings(named)
    assert container["args"] == ["heed", "serve"]
    assert container["ports"][0]["containerPort"] == Settings().port
    routes = (ROOT / "service" / "dialects" / "v2_openapi.py").read_text()
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in routes


def test_a_shell_writes_to_the_volume_that_the_service_reads_and_is_a_valid_pod(tmp_path: Path) -> None:
    component = DEPLOY / "components" / "registry-volume"
    shell = (component / "registry-shell.yaml").read_text()
    pod, claim = yaml.safe_load(shell), yaml.safe_load((component / "claim.yaml").read_text())
    [container] = pod["spec"]["containers"]
    assert container["image"] == IMAGE
    assert {"name": "registry", "mountPath": "/registry"} in container["volumeMounts"]
    volume = {"name": "registry", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}
    assert volume in pod["spec"]["volumes"]
    assert errors({"pod": shell}, tmp_path) == {}


def test_kserves_predictor_is_a_valid_pod(tmp_path: Path) -> None:
    service = yaml.safe_load((DEPLOY / "kserve" / "inferenceservice.yaml").read_text())
    kserves = {"minReplicas", "maxReplicas", "timeout"}
    spec = {key: value for key, value in service["spec"]["predictor"].items() if key not in kserves}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "heed"}, "spec": spec}
    assert errors({"pod": yaml.safe_dump(pod)}, tmp_path) == {}
