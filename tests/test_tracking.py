"""A training that TensorBoard and MLflow follow: what a reader of theirs finds afterwards."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest
from samples import rows

from service.cli import main
from training.tracking import Log

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader")  # MLflow's own, of SQLAlchemy
SMALL = ["layers=1", "width=16", "heads=1", "vocab_size=100", "epochs=2", "lr=1e-3", "batch_rows=64", "made_texts=0"]


def train(out: Path, data: Path, *more: str) -> int:
    settings = [part for one in SMALL for part in ("--set", one)]
    return main(["train", "--train", str(data), "--out", str(out), *settings, *more])


@pytest.fixture
def data(write_jsonl: Callable[..., Path]) -> Path:
    return write_jsonl(rows(300))


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, which take seconds to make."""
    mlflow = pytest.importorskip("mlflow", reason="heed[mlflow]")
    file = tmp_path_factory.mktemp("mlflow") / "m.db"
    mlflow.MlflowClient(f"sqlite:///{file}").create_experiment("first")
    return file


def manifest_of(bundle: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((bundle / "heed.json").read_text())
    return loaded


def test_tensorboard_shows_every_step_each_epoch_and_the_bundle(data: Path, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="heed[tensorboard]")
    assert train(tmp_path / "b", data, "--log", f"tensorboard:{tmp_path / 'runs'}") == 0
    found = reader.EventAccumulator(str(tmp_path / "runs" / "b")).Reload()
    manifest = manifest_of(tmp_path / "b")
    steps = [event.step for event in found.Scalars("train/loss")]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 5
    assert len(found.Scalars("train/lr")) == len(found.Scalars("train/tokens_per_s")) == len(steps)
    history = json.loads((tmp_path / "b" / "report" / "metrics.json").read_text())["history"]
    assert [event.value for event in found.Scalars("dev/score")] == pytest.approx([row["dev_score"] for row in history])
    assert found.Scalars("dev/accuracy")[0].value == pytest.approx(manifest["metrics"]["dev"]["accuracy"])
    [settings] = found.Tensors("settings/text_summary")
    assert b"| epochs | 2 |" in settings.tensor_proto.string_val[0]
    [version] = found.Tensors("version/text_summary")
    assert version.tensor_proto.string_val[0].decode() == manifest["version"]


@pytest.mark.slow  # MLflow takes seconds to import, and more to make its tables
def test_mlflow_has_the_run_with_its_settings_figures_and_version(data: Path, tmp_path: Path, database: Path) -> None:
    mlflow, uri = pytest.importorskip("mlflow"), f"sqlite:///{database}"
    assert train(tmp_path / "b", data, "--log", f"mlflow:{uri}") == 0
    client = mlflow.MlflowClient(uri)
    [run] = client.search_runs([client.get_experiment_by_name("heed").experiment_id])
    manifest = manifest_of(tmp_path / "b")
    assert (run.info.run_name, run.info.status, run.data.tags["version"]) == ("b", "FINISHED", manifest["version"])
    assert run.data.params["epochs"] == "2"
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [loss.step for loss in losses] == list(range(1, len(losses) + 1))
    assert len(client.get_metric_history(run.info.run_id, "dev/score")) == 2
    assert run.data.metrics["dev/macro_f1"] == pytest.approx(manifest["metrics"]["dev"]["macro_f1"])


@pytest.mark.slow  # MLflow takes seconds to import, and more to make its tables
def test_a_run_that_ends_in_an_error_has_failed_there_too(
    data: Path, tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow, uri = pytest.importorskip("mlflow"), f"sqlite:///{database}"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "wild")
    assert train(tmp_path / "b", data, "--log", f"mlflow:{uri}", "--set", "lr=1e30") == 2
    client = mlflow.MlflowClient(uri)
    [run] = client.search_runs([client.get_experiment_by_name("wild").experiment_id])
    assert run.info.status == "FAILED"
    assert "train/loss" in run.data.metrics


@pytest.mark.slow  # MLflow takes seconds to import, and more to make its tables
def test_a_server_that_goes_away_costs_figures_and_not_the_training(
    data: Path, tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(database, tmp_path / "m.db")

    def drop(log: Log, at: object) -> None:
        (tmp_path / "m.db").write_bytes(b"no database any more" * 500)

    monkeypatch.setattr(Log, "epoch", drop)
    assert train(tmp_path / "b", data, "--log", f"mlflow:sqlite:///{tmp_path / 'm.db'}") == 0
    assert manifest_of(tmp_path / "b")["version"]
    assert "MLflow did not take" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("wandb", "--log is tensorboard[:FOLDER] or mlflow[:URI]: wandb"),
        ("mlflow:ftp://nowhere", "MLflow cannot be written to"),
        ("mlflow:http://me:secret@nowhere", "take it out of --log: mlflow"),
    ],
)
def test_a_log_that_cannot_be_written_is_refused_before_training(
    spec: str, message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "b", data, "--log", spec) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "secret" not in error
    assert "epoch " not in error


@pytest.mark.parametrize(("tool", "module"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")])
def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    tool: str,
    module: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert train(tmp_path / "b", data, "--log", tool) == 2
    assert f"pip install 'heed[{tool}]': --log {tool}\n" in capsys.readouterr().err
