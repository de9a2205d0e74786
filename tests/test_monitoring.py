"""Alerts and the dashboard against the metrics that there are."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml
from manifests import DEPLOY, SHARED
from prometheus_client import REGISTRY

from service import metrics  # noqa: F401  (they are registered)

if TYPE_CHECKING:
    from pathlib import Path

MONITORING = DEPLOY / "components" / "monitoring"
ALERTS = MONITORING / "alerts.yaml"
DASHBOARD = MONITORING / "dashboard.json"
README = (DEPLOY / "README.md").read_text()
ON_GPU_NODES = {"ray_node_gpus_utilization", "ray_node_gram_used"}  # of ray/dashboard/modules/reporter


def shown() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def queries() -> str:
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["spec"]["groups"] for rule in group["rules"]]
    return " ".join([rule["expr"] for rule in rules] + shown())


def test_every_metric_of_ours_that_an_alert_or_a_panel_names_is_one_that_the_service_exports() -> None:
    exported = set()
    for metric in REGISTRY.collect():
        endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(metric.type, [""])
        exported |= {metric.name + ending for ending in endings}
    named = set(re.findall(r"heed_\w+", queries()))
    assert len(named) > 25
    assert named <= exported


def test_every_metric_of_rays_that_a_panel_names_is_one_that_ray_exports() -> None:
    listed = SHARED / "ray_core_metrics_2.60.txt"
    if not listed.is_file():
        pytest.skip("no list of Ray's metrics beside this checkout")
    exported = {line.split()[0] for line in listed.read_text().splitlines() if line.strip()}
    assert set(re.findall(r"ray_\w+", queries())) <= exported | ON_GPU_NODES


def test_the_dashboard_is_what_its_program_writes_and_no_panel_covers_another() -> None:
    made = runpy.run_path(str(DASHBOARD.with_suffix(".py")))["dashboard"]()
    assert json.loads(DASHBOARD.read_text()) == made
    taken = [
        (x, y)
        for each in (panel["gridPos"] for panel in made["panels"])
        for x in range(each["x"], each["x"] + each["w"])
        for y in range(each["y"], each["y"] + each["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) == 23


def test_every_alert_has_its_line_in_the_runbook() -> None:
    alerts = re.findall(r"alert: (\w+)", ALERTS.read_text())
    assert set(re.findall(r"(?m)^\| `(Heed\w+)` \|", README)) == set(alerts)


def test_prometheus_can_read_each_panel(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("no promtool (Debian: prometheus)")
    rules = [{"record": f"panel{i}", "expr": expr.replace("$__rate_interval", "5m")} for i, expr in enumerate(shown())]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    check = subprocess.run(["promtool", "check", "rules", tmp_path / "panels.yaml"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr
    assert f"{len(rules)} rules found" in check.stdout


def test_alerts_fire_when_they_should_and_not_before(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("no promtool (Debian: prometheus)")
    tests = ALERTS.with_name("alerts_test.yaml").read_text()
    assert set(re.findall(r"alert: (\w+)", ALERTS.read_text())) == set(re.findall(r"alertname: (\w+)", tests))
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(yaml.safe_load(ALERTS.read_text())["spec"]))
    (tmp_path / "test.yaml").write_text(tests)
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "test.yaml"]):
        check = subprocess.run(["promtool", *command], capture_output=True, text=True, cwd=tmp_path)
        assert check.returncode == 0, check.stdout + check.stderr
