"""hf:OWNER/REPO wherever a model is named, against a hub on the loopback interface."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hub import COMMIT, TOKEN, Hub
from samples import rows

from model.bundle import load_bundle
from model.location import HubRepo, LocationError, local_folder, parse_location
from service.cli import main
from service.models import Models
from service.settings import Settings, parse_specs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Capture = pytest.CaptureFixture[str]

READ = ["config.json", "heed.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def repo(hub: Hub, bundle_folder: Path, tmp_path: Path) -> Path:
    """The folder of somebody/other, to change."""
    hub.repos["somebody/other"] = shutil.copytree(bundle_folder, tmp_path / "other")
    return hub.repos["somebody/other"]


def test_a_model_of_the_hub_is_downloaded_once_and_only_what_is_read(hub: Hub, bundle_folder: Path) -> None:
    assert (bundle_folder / "README.md").exists()
    for _ in range(2):
        folder = local_folder(parse_location("hf:somebody/mood"))
        assert load_bundle(folder).version == load_bundle(bundle_folder).version
    assert hub.downloaded == READ
    assert sorted(file.name for file in folder.iterdir()) == READ


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: Hub) -> None:
    folders = {local_folder(HubRepo("somebody/mood", revision)) for revision in (None, "main", "v1", COMMIT)}
    assert [folder.name for folder in folders] == [COMMIT]
    with pytest.raises(LocationError, match="^somebody/mood has no such revision on the hub: v2$"):
        local_folder(HubRepo("somebody/mood", "v2"))


def test_without_the_hub_the_copy_in_the_cache_is_used_and_that_is_said(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    folder = local_folder(HubRepo("somebody/mood"))
    hub.stop()
    assert local_folder(HubRepo("somebody/mood")) == folder
    assert "the hub cannot be asked" in caplog.text
    assert f"hf:somebody/mood is the copy that was downloaded before, {folder}" in caplog.text


def test_without_the_hub_a_copy_that_lacks_a_file_is_none(hub: Hub) -> None:
    (local_folder(HubRepo("somebody/mood")) / "model.safetensors").unlink()
    hub.stop()
    with pytest.raises(LocationError, match=r"cannot be downloaded \(.*\), and the cache has no complete copy"):
        local_folder(HubRepo("somebody/mood"))


def test_a_private_model_needs_a_token(hub: Hub, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["private/mood"] = bundle_folder
    with pytest.raises(LocationError, match="set HF_TOKEN to a token that may read it"):
        local_folder(HubRepo("private/mood"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert load_bundle(local_folder(HubRepo("private/mood"))).labels == ["negative", "positive"]


@pytest.mark.parametrize(
    ("become", "problem"),
    [
        ({"model.safetensors": "pytorch_model.bin"}, r"has only pickled weights \(pytorch_model.bin\)"),
        ({"model.safetensors": "model.safetensors.index.json"}, "has its weights in several files"),
        ({"model.safetensors": "model.onnx"}, "has no model.safetensors"),
        ({"tokenizer.json": "vocab.txt"}, "has no tokenizer.json"),
    ],
)
def test_a_checkpoint_of_other_files_is_refused_before_a_download_with_what_to_do(
    hub: Hub, repo: Path, become: dict[str, str], problem: str
) -> None:
    for old, new in become.items():
        (repo / old).rename(repo / new)
    with pytest.raises(LocationError, match=rf"^hf:somebody/other@v1 {problem}.*FOLDER") as refused:
        local_folder(HubRepo("somebody/other", "v1"))
    assert "AutoTokenizer.from_pretrained('somebody/other', revision='v1').save_pretrained(" in str(refused.value)
    assert hub.downloaded == []


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("hf:mood", "is named hf:OWNER/REPO or hf:OWNER/REPO@REVISION, not: hf:mood"),
        ("hf:a--b/mood", "not a name of the hub"),
        ("hf:nobody/mood", "the hub has no such model, or it is private or gated"),
        ("hf:somebody/mood@v2", "no such revision on the hub: v2"),
        ("hf:somebody/data", "no config.json: hf:somebody/data"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "predict", "evaluate", "train"])
def test_what_is_not_there_is_one_line_and_exit_2(
    hub: Hub,
    tmp_path: Path,
    write_jsonl: Callable[..., Path],
    location: str,
    message: str,
    command: str,
    capsys: Capture,
) -> None:
    hub.repos["somebody/data"] = tmp_path
    data = str(write_jsonl(rows(20)))
    arguments = {
        "serve": [location],
        "predict": [location, data],
        "evaluate": [location, "--data", data],
        "train": ["--train", data, "--out", str(tmp_path / "out"), "--init", location],
    }
    assert main([command, *arguments[command]]) == 2
    error = capsys.readouterr().err.splitlines()
    assert message in error[-1]
    assert len(error) == (2 if command == "serve" and location != "hf:mood" else 1)  # serve says what it loads


def test_it_is_evaluated_predicted_and_trained_from(
    hub: Hub, write_jsonl: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    data = str(write_jsonl(rows(200)))
    assert main(["evaluate", "hf:somebody/mood", "--data", data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"]["value"] > 0.9
    assert main(["predict", "hf:somebody/mood", data]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 200
    start = ["--init", "hf:somebody/mood@v1", "--set", "epochs=1", "--set", "max_tokens=64"]
    assert main(["train", "--train", data, "--out", str(tmp_path / "out"), *start]) == 0
    assert load_bundle(tmp_path / "out").labels == ["negative", "positive"]
    assert hub.downloaded == READ


def test_a_replica_that_is_given_a_hub_model_downloads_it_itself(hub: Hub) -> None:
    models = Models(parse_specs(["hf:somebody/mood"]), Settings(device="cpu"))
    assert models.find("mood").bundle.labels == ["negative", "positive"]
    assert hub.downloaded == READ


def test_endpoint_and_cache_are_those_of_the_environment_and_results_stay_on_stdout(
    hub: Hub, tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    command = [sys.executable, "-m", "service", "predict", "hf:somebody/mood", str(write_jsonl(rows(20)))]
    environment = os.environ | {"HF_TOKEN": "", "HF_HUB_OFFLINE": "0"}
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (tmp_path / "hf" / "hub" / "models--somebody--mood").is_dir()
    assert hub.downloaded == READ
    hub.stop()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert again.stdout == first.stdout
    assert len(first.stdout.splitlines()) == 20
    assert "the hub cannot be asked" in again.stderr
