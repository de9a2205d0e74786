"""Clients whose dependencies do not fit beside ours: each in an environment of its own, made when a test first asks.

It stays below the user's cache. A script runs there, and prints what the calls returned.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "heed" / "clients"
TRITON = ("tritonclient[http,grpc]==2.73.0",)  # wants protobuf 6; ours is 7
KSERVE = ("kserve==0.21.0",)  # the same, and its server's dependencies with it
RUNS_S = 120


def python_with(*packages: str) -> Path:
    """The Python of an environment with these packages; skips the test where pip cannot make one."""
    folder = CACHE / hashlib.sha256("\n".join((sys.version, *packages)).encode()).hexdigest()[:16]
    python, installed = folder / "bin" / "python", folder / "installed"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run of the tests may be making it
        if not installed.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True, capture_output=True)
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
            done = subprocess.run(pip, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"pip cannot install {packages[0]}: {done.stderr.strip().splitlines()[-1:]}")
            installed.touch()
    return python


def run_client(python: Path, script: str, *arguments: str) -> Any:
    """What the script prints, as JSON; the script is run by a client's interpreter, and sees sys.argv[1:]."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(python), "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUNS_S, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def calls(name: str, packages: tuple[str, ...], *arguments: str) -> dict[str, Any]:
    """What each call of tests/NAME.py returned, by the name of the call."""
    script = Path(__file__).with_name(f"{name}.py").read_text()
    found: dict[str, Any] = run_client(python_with(*packages), script, *arguments)
    return found
