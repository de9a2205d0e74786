"""Real clients in environments of their own: their dependencies need not fit ours."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest


@cache
def python_with(*packages: str) -> Path:
    """The interpreter of an environment with these packages, made below the user's cache and kept there.

    Skips the test where pip cannot install them.
    """
    wanted = "\n".join((sys.version, *packages))
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = caches / "heed" / "clients" / hashlib.sha256(wanted.encode()).hexdigest()[:16]
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True, capture_output=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        done = subprocess.run(install, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"pip cannot install {' '.join(packages)}: {done.stderr.strip().splitlines()[-1:]}")
        ready.touch()
    return python


def run_client(python: Path, script: str, *arguments: str) -> Any:
    """What the script prints, as JSON; the script is run by a client's interpreter, and sees sys.argv[1:]."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [python, "-c", script, *arguments], capture_output=True, text=True, env=environment, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
