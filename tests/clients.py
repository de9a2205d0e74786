"""Clients whose dependencies do not fit beside ours: each in an environment of its own, made when a test first asks.

It stays below the user's cache. A script of tests/client_*.py runs there, with the address of a server, and prints
what each call returned.
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

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "heed-tests"
TRITON = ("tritonclient[http,grpc]==2.73.0",)  # wants protobuf 6; ours is 7
KSERVE = ("kserve==0.21.0",)  # the same, and its server's dependencies with it
RUNS_S = 120


def environment(requirements: tuple[str, ...]) -> str:
    """The Python of an environment with these; skips the test where pip cannot make one."""
    folder = CACHE / hashlib.sha256(" ".join((sys.version, *requirements)).encode()).hexdigest()[:16]
    python, installed = str(folder / "bin" / "python"), folder / "installed"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run of the tests may be making it
        if not installed.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True, capture_output=True)
            pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
            done = subprocess.run(pip, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"pip cannot install {requirements[0]}: {done.stderr.strip().splitlines()[-1]}")
            installed.touch()
    return python


def calls(script: str, requirements: tuple[str, ...], *arguments: str) -> dict[str, Any]:
    """What each call of a client returned, by the name of the call."""
    command = [environment(requirements), str(Path(__file__).parent / f"{script}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUNS_S, env=os.environ | {"PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
