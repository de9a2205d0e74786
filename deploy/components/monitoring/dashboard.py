"""Writes dashboard.json beside it, which Grafana loads:  python deploy/components/monitoring/dashboard.py

What is seen, row by row: PANELS. The rest is how Grafana wants it said.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WHERE = 'namespace="$namespace"'  # and the series of all pods there
ASKED = ', route!~".*/(health|live|ready|metrics|docs|openapi).*|/"'  # not by probes, scrapes and browsers


def rate(metric: str, by: str = "", matching: str = "") -> str:
    """A counter a second, summed over pods."""
    return f"sum by ({by}) (rate({metric}{{{WHERE}{matching}}}[$__rate_interval]))"


def quantile(share: float, metric: str, matching: str = "") -> str:
    """Of a histogram, over all pods."""
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', 'le', matching)})"


def mean(metric: str, by: str = "") -> str:
    """Of a histogram, over all pods."""
    return f"{rate(f'{metric}_sum', by)} / {rate(f'{metric}_count', by)}"


def now(metric: str, how: str = "sum", by: str = "") -> str:
    """A gauge, over all pods."""
    return f"{how} by ({by}) ({metric}{{{WHERE}}})"


# Row: title, unit, then legend and query of each line.
PANELS: dict[str, list[tuple[str, str, dict[str, str]]]] = {
    "Traffic": [
        ("Requests", "reqps", {"{{route}} {{code}}": rate("heed_requests_total", "route, code")}),
        ("Texts", "ops", {"{{model}}": rate("heed_texts_total", "model")}),
        ("Tokens", "ops", {"{{model}}": rate("heed_tokens_total", "model")}),
        (
            "Refused (no data: none)",
            "ops",
            {"{{code}}": rate("heed_refused_total", "code")},
        ),
    ],
    "Latency": [
        (
            "A request",
            "s",
            {f"p{share * 100:g}": quantile(share, "heed_request_seconds", ASKED) for share in (0.5, 0.95, 0.99)},
        ),
        (
            "Where it goes, 95%",
            "s",
            {stage: quantile(0.95, f"heed_{stage}_seconds") for stage in ("tokenize", "queue", "forward")},
        ),
    ],
    "Passes and the queue": [
        ("Tokens of a pass", "short", {"mean": mean("heed_batch_tokens"), "95%": quantile(0.95, "heed_batch_tokens")}),
        ("Texts of a pass", "short", {"mean": mean("heed_batch_texts"), "95%": quantile(0.95, "heed_batch_texts")}),
        ("Padding", "percentunit", {"of a pass": mean("heed_batch_padding_ratio")}),
        ("Busy with passes", "percentunit", {"{{pod}}": now("heed_busy_ratio", "max", "pod")}),
        ("Tokens that wait", "short", {"tokens": now("heed_queue_tokens"), "texts": now("heed_queue_texts")}),
        ("Wait of the oldest", "s", {"{{pod}}": now("heed_queue_oldest_seconds", "max", "pod")}),
    ],
    "Models": [
        (
            "Texts by version",
            "ops",
            {"{{model}} {{version}}": rate("heed_texts_total", "model, version")},
        ),
        (
            "Replicas that answer with a version",
            "short",
            {"{{model}} {{version}}": now("heed_model_info", "sum", "model, version")},
        ),
        (
            "Loads and looks at the registry that failed, in an hour",
            "short",
            {
                f"{{{{model}}}} {what}": f'sum by (model) (increase({metric}{{{WHERE},outcome="failed"}}[1h]))'
                for what, metric in (("loads", "heed_model_loads_total"), ("looks", "heed_registry_polls_total"))
            },
        ),
        (
            "A candidate on trial, texts",
            "ops",
            {"{{model}} {{outcome}}": rate("heed_candidate_texts_total", "model, outcome")},
        ),
        ("How far it moves scores", "percentunit", {"{{model}}": mean("heed_candidate_score_shift", "model")}),
        ("Labels given", "ops", {"{{model}}": rate("heed_feedback_total", "model")}),
    ],
    "Drift": [
        (
            "Away from what it was measured on",
            "short",
            {"{{model}} {{signal}}": now("heed_drift_psi", "max", "model, signal")},
        ),
        ("Labels", "ops", {"{{model}} {{label}}": rate("heed_predictions_total", "model, label")}),
        ("Confidence, mean", "percentunit", {"{{model}}": mean("heed_confidence", "model")}),
        ("Texts cut off", "ops", {"{{model}}": rate("heed_truncated_texts_total", "model")}),
    ],
    "Machines": [
        ("Replicas", "short", {"replicas": now("heed_replica_start_time_seconds", "count")}),
        ("Memory of a replica", "bytes", {"{{pod}}": now("heed_replica_resident_bytes", "sum", "pod")}),
        ("CPU of a pod", "percent", {"{{pod}}": now("ray_node_cpu_utilization", "max", "pod")}),
        ("GPU (no data: none)", "percent", {"{{pod}}": now("ray_node_gpus_utilization", "max", "pod")}),
        ("GPU memory", "decmbytes", {"{{pod}}": now("ray_node_gram_used", "max", "pod")}),
    ],
}
WIDTH, HEIGHT = 8, 7  # of a panel, of 24 columns


def dashboard() -> dict[str, Any]:
    """As Grafana's JSON."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row, content in PANELS.items():
        at = {"x": 0, "y": top, "w": 24, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": row, "gridPos": at})
        for i, (title, unit, lines) in enumerate(content):
            at = {"x": i % 3 * WIDTH, "y": top + 1 + i // 3 * HEIGHT, "w": WIDTH, "h": HEIGHT}
            panels.append(panel(len(panels) + 1, title, unit, lines, at))
        top += 1 + -(-len(content) // 3) * HEIGHT
    return {
        "uid": "heed",
        "title": "Heed",
        "tags": ["heed"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [variable("source", "datasource", "prometheus"), namespaces()]},
        "panels": panels,
    }


def panel(number: int, title: str, unit: str, lines: dict[str, str], at: dict[str, int]) -> dict[str, Any]:
    """Lines over time."""
    source = {"type": "prometheus", "uid": "${source}"}
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "gridPos": at,
        "datasource": source,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"tooltip": {"mode": "multi"}, "legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {"refId": chr(ord("A") + i), "expr": expression, "legendFormat": legend, "datasource": source}
            for i, (legend, expression) in enumerate(lines.items())
        ],
    }


def variable(name: str, kind: str, query: str) -> dict[str, Any]:
    """Something to choose above the panels."""
    return {"name": name, "type": kind, "query": query}


def namespaces() -> dict[str, Any]:
    """Those in which a Heed runs."""
    query = "label_values(heed_replica_start_time_seconds, namespace)"
    return variable("namespace", "query", query) | {
        "datasource": {"type": "prometheus", "uid": "${source}"},
        "refresh": 2,
    }


if __name__ == "__main__":
    Path(__file__).with_suffix(".json").write_text(json.dumps(dashboard(), indent=1) + "\n")
