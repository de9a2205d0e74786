"""Fixtures that tests share: files of labelled rows, a trained bundle."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import torch
from hub import Hub
from postgres import PASSWORD, Postgres
from replica import Replica
from samples import TINY, rows
from server import Server

from model.bundle import Bundle, load_bundle, save_bundle
from model.scores import MULTI, Calibration
from service import engine, predict_rows, remote
from service.remote import Remote
from training.data import read_dataset
from training.train import train

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    Post = Callable[[str, object], httpx.Response]
    Serve = Callable[..., Server]

REPLICA_LIMITS: dict[str, Any] = {
    "max_body_bytes": 200_000,
    "max_texts_per_request": 50,
    "max_text_chars": 20_000,
    "precision": "fp32",
}


def pytest_configure() -> None:
    """One thread: networks this small gain nothing by a second, and wait for it where another process has its core."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _engines_in_threads() -> Iterator[list[Remote]]:
    """Engines of services in this process, without importing torch for each: their sockets and messages are real."""
    made: list[Remote] = []

    def start(device: str, cores: int, channels: Sequence[socket.socket]) -> None:
        threading.Thread(target=engine.serve, args=(device, channels, cores, len(channels) - 2), daemon=True).start()

    def noted(device: Remote, *args: Any) -> None:
        made.append(device)
        make(device, *args)

    make = Remote.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "start_engine", start)
        patch.setattr(Remote, "__init__", noted)
        yield made


@pytest.fixture(autouse=True)
def _engines_end(_engines_in_threads: list[Remote]) -> Iterator[None]:
    """Those of a test, whose services nobody stops, end with it."""
    before = len(_engines_in_threads)
    yield
    for device in _engines_in_threads[before:]:
        device.close()


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes rows to NAME.jsonl and returns its path."""

    def write(content: list[dict[str, object]], name: str = "data") -> Path:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle trained to tell GOOD from BAD."""
    folder = tmp_path_factory.mktemp("trained")
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(1500)))
    train(TINY, read_dataset(file), None, None, folder / "mood", device=torch.device("cpu"))
    return folder / "mood"


@pytest.fixture(scope="session")
def variant(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], Path]:
    """A function that makes another version of it, with its logits multiplied: by -1, it says the opposite."""

    @cache
    def make(factor: float) -> Path:
        bundle = load_bundle(bundle_folder)
        assert bundle.manifest is not None
        with torch.no_grad():
            for parameter in bundle.classifier.head.out.parameters():
                parameter.mul_(factor)
        folder = tmp_path_factory.mktemp("variant") / "mood"
        save_bundle(folder, bundle.classifier, bundle.tokenizer, bundle.manifest)
        return folder

    return make


@pytest.fixture(scope="session")
def tags_folder(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights, with labels that do not exclude one another."""
    bundle = load_bundle(bundle_folder)
    assert bundle.manifest is not None
    folder = tmp_path_factory.mktemp("tags") / "tags"
    manifest = replace(bundle.manifest, problem_type=MULTI, calibration=Calibration())
    save_bundle(folder, bundle.classifier, bundle.tokenizer, manifest)
    return folder


@pytest.fixture(scope="session")
def abstaining_folder(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, only that no text is enough like those that it was trained on."""
    bundle = load_bundle(bundle_folder)
    assert bundle.manifest is not None
    folder = tmp_path_factory.mktemp("abstaining") / "shy"
    calibration = replace(bundle.calibration, scope_threshold=1e6)
    save_bundle(folder, bundle.classifier, bundle.tokenizer, replace(bundle.manifest, calibration=calibration))
    return folder


@pytest.fixture(scope="session")
def replica(bundle_folder: Path, tags_folder: Path) -> Iterator[Replica]:
    """A replica behind HTTP with the models mood, the default, and tags, of several labels a text."""
    models = {"mood": bundle_folder, "tags": tags_folder}
    with Replica(models, **REPLICA_LIMITS) as running:
        yield running


@pytest.fixture(scope="session")
def client(replica: Replica) -> Iterator[httpx.Client]:
    """A client of that replica."""
    with httpx.Client(base_url=replica.url, timeout=20) as client:
        yield client


@pytest.fixture(scope="session")
def post(client: httpx.Client) -> Post:
    """Send a body to a path of the replica: bytes as they are, anything else as JSON. The status must be documented."""
    paths = client.get("/openapi.json").json()["paths"]

    def send(path: str, body: object) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = client.post(path, content=content)
        documented = "/models/{name}" if path.startswith("/models/") else path
        assert str(response.status_code) in paths[documented]["post"]["responses"]
        return response

    return send


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A function that starts `heed serve`, which ends with the test."""
    with contextlib.ExitStack() as running:
        yield lambda *arguments, **options: running.enter_context(Server(*arguments, **options))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL, and its password where its clients look for one."""
    with Postgres() as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSWORD", PASSWORD)
        yield running


@pytest.fixture
def opposite_folder(variant: Callable[[float], Path]) -> Path:
    """A version that says the opposite."""
    return variant(-1.0)


@pytest.fixture
def bundle(bundle_folder: Path) -> Bundle:
    """The same, loaded."""
    return load_bundle(bundle_folder)


@pytest.fixture
def hub(bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with that bundle as somebody/mood, and an empty cache, for this process and those that it starts."""
    with Hub({"somebody/mood": bundle_folder}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        constants = {  # what the library has made of them when it was imported
            "ENDPOINT": running.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": running.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "hf" / "hub"),
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_OFFLINE": False,
        }
        for name, value in constants.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        yield running


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of offline prediction, so that a few hundred rows are several."""
    monkeypatch.setattr(predict_rows, "CHUNK_ROWS", 64)
