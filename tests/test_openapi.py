"""A replica is what its /openapi.json says: schemathesis asks every operation, as documented and otherwise.

Of a running service, more, and others: cd tests; schemathesis run http://127.0.0.1:8000/openapi.json -n 1000 --seed 2
(-H "Authorization: Bearer KEY" where it has keys).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from replica import served

from service.keys import new_key

CASES = 2000
OF_EACH = ("-n", "60", "--seed", "1")  # fuzzed; what the schemas' bounds and examples give comes beside it


def report(url: str, headers: dict[str, str], file: Path) -> dict[str, Any]:
    """What schemathesis finds; tests/schemathesis.toml says how it looks."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", *OF_EACH]
    command += [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]
    options = ["--no-color", "--report", "json", "--report-json-path", str(file)]
    done = subprocess.run([*command, *options], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_operation_answers_as_openapi_json_says(
    bundle_folder: Path, tags_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, known = new_key("schemathesis")
    headers, models = {"Authorization": f"Bearer {key}"}, {"mood": bundle_folder, "tags": tags_folder}
    with served(models, api_keys=[str(known)], feedback_store=str(tmp_path / "labels.db")) as url:
        asked = {"texts": ["a lovely film"] * 3}
        httpx.post(f"{url}/v1/classify", json=asked, headers={**headers, "X-Request-Id": "answered"})
        found = report(url, headers, tmp_path / "report.json")
        paths = httpx.get(f"{url}/openapi.json", headers=headers).json()["paths"]
    operations, cases = found["operations"]["tested"], found["test_cases"]
    with capsys.disabled():  # for the log
        counts = f"{cases['generated']:,} cases, {cases['unique_failures']} failures"
        print(f"\nschemathesis: {operations} operations, {counts}")
    assert operations == sum(len(methods) for methods in paths.values())
    assert cases["generated"] >= CASES
    for operation, phases in found["valid_rates"].items():
        assert sum(phase["accepted"] for phase in phases.values()), f"no answer of {operation} was seen"
