"""What peers need beside a bundle: a virtual environment each, and the model in ONNX and int8. Made once, kept.

Below --environments, by default a folder in the user's cache. A peer that cannot be installed is Missing, with
pip's reason.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engines import Missing, quantized

from model.bundle import load_bundle

if TYPE_CHECKING:
    from collections.abc import Sequence

TORCH = "torch==2.13.0"  # first and exact: an open range may take another build
INSTALL_S = 1800.0


def default_folder() -> Path:
    """~/.cache/heed/benchmarks, or where XDG_CACHE_HOME says."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "heed" / "benchmarks"


def python_with(requirements: Sequence[str], folder: Path) -> str:
    """The Python of an environment with these pinned requirements, installed if need be. Raises Missing."""
    if not requirements:
        return sys.executable
    name = requirements[0].partition("==")[0].partition("[")[0]
    environment = folder / f"{name}-{hashlib.sha256(' '.join([TORCH, *requirements]).encode()).hexdigest()[:8]}"
    python = environment / "bin" / "python"
    if not (environment / "installed").exists():
        shutil.rmtree(environment, ignore_errors=True)
        print(f"installing {', '.join(requirements)} into {environment}", file=sys.stderr)
        _call([sys.executable, "-m", "venv", str(environment)])
        for wanted in ([TORCH], [TORCH, *requirements]):
            _call([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted])
        (environment / "installed").touch()
    return str(python)


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise Missing(errors[-1] if errors else f"{command[0]} ended with {done.returncode}")


def onnx_int8(bundle: Path, folder: Path, texts: Sequence[str]) -> Path:
    """The bundle's model as ONNX, quantized the faster way of two on these texts. Raises Missing."""
    loaded = load_bundle(bundle)
    file = folder / f"{loaded.version}-int8.onnx"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"writing {file}", file=sys.stderr)
        quantized(bundle, loaded.tokenizer.encode(texts, loaded.max_tokens), file)
    return file
