"""The Dockerfile against the project: versions, user, what reaches the build."""

from __future__ import annotations

import json
import re

from manifests import PROJECT, ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
BASE = "python:3.11-slim-bookworm"


def test_both_stages_of_the_image_start_from_the_pinned_base() -> None:
    assert re.findall(r"(?m)^FROM (\S+)", DOCKERFILE) == [BASE, BASE]


def test_the_image_takes_versions_from_the_constraints_and_its_label_from_the_project() -> None:
    installs = re.findall(r"pip --python \S+ install (.*)", DOCKERFILE)
    assert installs
    assert all(line.startswith(("-c constraints.txt", "--no-deps .")) for line in installs)
    assert "==2" not in DOCKERFILE.replace("=== tells 2.13.0", "")  # no version of a package written here
    assert f'image.version="{PROJECT["version"]}"' in DOCKERFILE


def test_no_address_of_a_registry_is_written_down() -> None:
    assert "://" not in DOCKERFILE
    assert "index-url" not in DOCKERFILE


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
