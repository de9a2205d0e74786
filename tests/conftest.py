"""Fixtures that tests share: files of labelled rows, a trained bundle."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from samples import TINY, rows

from model.bundle import Bundle, load_bundle
from training.data import read_dataset
from training.train import train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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


@pytest.fixture
def bundle(bundle_folder: Path) -> Bundle:
    """The same, loaded."""
    return load_bundle(bundle_folder)
