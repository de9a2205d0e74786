"""What the image is made of: the packages that Heed needs at run time, with their pins and licences.

python deploy/packages.py            name==version, a line each (of the environment that runs this)
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
EXTRAS = ("otel", "postgres", "s3")  # of the Dockerfile
OF_CUDA = re.compile(r"nvidia-|cuda-|triton$")  # with PyTorch's CUDA build: NVIDIA's terms, and not in the lock file


@dataclass(frozen=True)
class Package:
    """One that is installed."""

    name: str
    version: str
    licence: str  # as its metadata says; empty where they do not


def needed() -> list[Package]:
    """All that Heed's requirements lead to, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(line) for line in [*project["dependencies"], *extras, "ray[default]"]]
    while waiting:
        wanted = waiting.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        for extra in ("", *wanted.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            found[name] = installed = distribution(name)
            for line in installed.requires or []:
                required = Requirement(line)
                needs = required.marker is None or required.marker.evaluate({"extra": extra})
                if needs and not OF_CUDA.match(required.name):
                    waiting.append(required)
    return [Package(name, each.version, licence_of(each)) for name, each in sorted(found.items())]


def licence_of(installed: Distribution) -> str:
    """Its expression (PEP 639), else its classifiers, else the first line of its field."""
    metadata = installed.metadata
    classifiers = [
        line.split(" :: ")[-1] for line in metadata.get_all("Classifier") or [] if line.startswith("License ::")
    ]
    said = [metadata.get("License-Expression"), "; ".join(classifiers), (metadata.get("License") or "").strip()]
    return next((each.splitlines()[0] for each in said if each), "")


if __name__ == "__main__":
    for package in needed():
        print(f"{package.name}=={package.version}")
