"""Training as its user sees it: a bundle comes out, resuming changes nothing, errors come first."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from samples import TINY, rows

from model.bundle import load_bundle
from model.forward import forward_rows
from model.scores import MULTI, SINGLE, probabilities
from training import train as train_module
from training.build import TrainConfig, build
from training.calibrate import calibrate
from training.checkpoint import DevFigures, Progress, has_checkpoint
from training.data import DataError, Dataset, Example, read_dataset
from training.evaluate import evaluate, score
from training.optimizer import lr_scale
from training.run import set_up
from training.train import dev_figures, train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

CPU = torch.device("cpu")


class Interrupted(Exception):
    """Somebody pulls the plug."""


def test_a_bundle_trained_on_labelled_text_knows_new_text(
    bundle_folder: Path, write_jsonl: Callable[..., Path]
) -> None:
    evaluation = evaluate(load_bundle(bundle_folder), read_dataset(write_jsonl(rows(400, seed=9))))
    assert evaluation.accuracy.value > 0.95
    manifest = json.loads((bundle_folder / "heed.json").read_text())
    assert manifest["metrics"]["dev"]["n"] > 100
    assert manifest["calibration"]["quantile"] is not None
    assert "Temperature" in (bundle_folder / "README.md").read_text()
    assert not bundle_folder.with_name("mood.checkpoint").exists()


def test_a_resumed_run_gives_the_weights_of_an_uninterrupted_one(
    write_jsonl: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "CHECKPOINT_EVERY_S", 0.0)
    config = dataclasses.replace(TINY, epochs=2)
    data = read_dataset(write_jsonl(rows(400)))
    whole, _ = train(config, data, None, None, tmp_path / "whole", device=CPU)

    def stop_at(step: int) -> Callable[[int], None]:
        def on_step(at: int) -> None:
            if at == step:
                raise Interrupted

        return on_step

    steps = whole.made_by["data"]["train"]["rows"] // whole.made_by["config"]["batch_rows"]
    for stop in (steps // 2, steps + steps // 2):  # inside the first epoch, then inside the second
        with pytest.raises(Interrupted):
            train(config, data, None, None, tmp_path / "cut", device=CPU, resume=stop > steps, on_step=stop_at(stop))
    resumed, _ = train(config, data, None, None, tmp_path / "cut", device=CPU, resume=True)
    assert resumed.version == whole.version
    assert resumed.metrics == whole.metrics


def test_a_run_stopped_while_it_writes_its_checkpoint_and_again_in_the_next_one_still_has_it(
    write_jsonl: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "CHECKPOINT_EVERY_S", 0.0)
    data = read_dataset(write_jsonl(rows(300)))

    def stop(step: int) -> None:
        if step == 3:
            raise Interrupted

    def full_disk(*_: object) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        train(TINY, data, None, None, tmp_path / "b", device=CPU, on_step=stop)
    folder = tmp_path / "b.checkpoint"
    folder.rename(tmp_path / "b.checkpoint.old")  # as between the two renames
    monkeypatch.setattr("training.checkpoint.save_file", full_disk)
    with pytest.raises(Interrupted):
        train(TINY, data, None, None, tmp_path / "b", device=CPU, resume=True)
    assert has_checkpoint(folder)
    with pytest.raises(ValueError, match="no epoch came to its end, give more --budget than the seconds: 0.001"):
        train(TINY, data, None, None, tmp_path / "b", device=CPU, resume=True, budget_s=0.001)


def test_resuming_with_other_settings_is_refused(
    write_jsonl: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "CHECKPOINT_EVERY_S", 0.0)
    data = read_dataset(write_jsonl(rows(300)))

    def stop(step: int) -> None:
        if step == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(TINY, data, None, None, tmp_path / "b", device=CPU, on_step=stop)
    other = dataclasses.replace(TINY, lr=0.1)
    with pytest.raises(ValueError, match="another value of: config lr"):
        train(other, data, None, None, tmp_path / "b", device=CPU, resume=True)
    swap = {"positive": "negative", "negative": "positive"}
    flipped = read_dataset(write_jsonl([{**row, "label": swap[str(row["label"])]} for row in rows(300)], "flipped"))
    with pytest.raises(ValueError, match="another value of: training data, dev data"):
        train(TINY, flipped, None, None, tmp_path / "b", device=CPU, resume=True)
    with pytest.raises(ValueError, match="no checkpoint to resume"):
        train(TINY, data, None, None, tmp_path / "elsewhere", device=CPU, resume=True)


def test_training_starts_from_an_encoder_with_its_tokenizer(
    bundle_folder: Path, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    renamed = [{**row, "label": f"{row['label']}!"} for row in rows(300)]
    config = TrainConfig(epochs=1, layers=1, max_tokens=64)
    train(config, read_dataset(write_jsonl(renamed)), None, None, tmp_path / "b", init=bundle_folder, device=CPU)
    bundle = load_bundle(tmp_path / "b")
    assert bundle.labels == ["negative!", "positive!"]
    assert bundle.classifier.config.layers == 1
    assert bundle.tokenizer.to_json() == load_bundle(bundle_folder).tokenizer.to_json()


def test_a_setting_that_the_encoder_decides_is_refused_with_it(
    bundle_folder: Path, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    data = read_dataset(write_jsonl(rows(300)))
    with pytest.raises(ValueError, match="leave it out: width=32"):
        train(TrainConfig(width=32), data, None, None, tmp_path / "b", init=bundle_folder, device=CPU)


@pytest.mark.parametrize("settings", [{"family": "modernbert"}, {"tokenizer": "bpe"}])
def test_other_families_and_tokenizers_train_too(
    settings: dict[str, Any], write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    config = dataclasses.replace(TINY, **settings)
    _, evaluations = train(config, read_dataset(write_jsonl(rows(1000))), None, None, tmp_path / "b", device=CPU)
    assert evaluations["dev"].accuracy.value > 0.9
    assert load_bundle(tmp_path / "b").classifier.config.family == settings.get("family", "bert")


def test_pairs_and_lists_of_labels_train_and_load(write_jsonl: Callable[..., Path], tmp_path: Path) -> None:
    content = [
        {
            "text": row["text"],
            "text_pair": "yes" if i % 3 else "no",
            "labels": [row["label"]] + (["yes"] if i % 3 else []),
        }
        for i, row in enumerate(rows(900))
    ]
    config = dataclasses.replace(TINY, epochs=15, patience=15)
    _, evaluations = train(config, read_dataset(write_jsonl(content)), None, None, tmp_path / "b", device=CPU)
    bundle = load_bundle(tmp_path / "b")
    assert bundle.problem_type == MULTI
    assert bundle.labels == ["negative", "positive", "yes"]
    assert evaluations["dev"].macro_f1.value > 0.8


def test_before_it_has_learned_anything_a_model_says_how_frequent_each_label_is(
    write_jsonl: Callable[..., Path],
) -> None:
    lists = read_dataset(
        write_jsonl([{"text": "a film", "labels": ["b"] if i % 4 else ["a", "b"]} for i in range(400)])
    )
    classifier, tokenizer, _ = build(TINY, lists, ["a", "b"], None)
    scores = forward_rows(classifier.eval(), tokenizer.encode(["a film"], 16))
    assert 1 / (1 + np.exp(-scores[0])) == pytest.approx([0.25, 1.0], abs=0.02)

    ones = read_dataset(write_jsonl([{"text": "a film", "label": "b" if i % 4 else "a"} for i in range(400)], "ones"))
    classifier, tokenizer, _ = build(TINY, ones, ["a", "b"], None)
    scores = forward_rows(classifier.eval(), tokenizer.encode(["a film"], 16))
    assert np.exp(scores[0]) / np.exp(scores[0]).sum() == pytest.approx([0.25, 0.75], abs=0.02)
    classifier, tokenizer, _ = build(dataclasses.replace(TINY, class_weights="balanced"), ones, ["a", "b"], None)
    assert not classifier.head.out.bias.any()


def test_an_epoch_that_is_right_about_one_text_more_and_less_likely_in_all_is_not_the_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However sure it is: it is judged as after calibration."""
    data = Dataset("d", [Example(str(i), ("ab"[i % 2],)) for i in range(200)], SINGLE, [], "")
    run = set_up(TINY, {"train": data, "dev": data}, None, CPU, ["a", "b"])
    sides = np.resize([1.0, -1.0], 200)[:, None] * np.array([1.0, -1.0], dtype=np.float32)
    wrong = np.arange(200) < 20

    def figures_of(margin: NDArray[np.float64], sure: float) -> DevFigures:
        logits = (sure * margin[:, None] * sides).astype(np.float32)
        monkeypatch.setattr("training.train.forward_rows", lambda *_: logits)
        return dev_figures(run, run.rows(data))

    lucky = figures_of(np.where(wrong & (np.arange(200) > 0), -1.0, 1.0), sure=1.0)
    better = figures_of(np.where(wrong, -0.1, 1.0), sure=30.0)
    assert (lucky.score, better.score) == (0.905, 0.9)
    at = Progress()
    for dev in (lucky, better, lucky):
        at.after_step(1.0, tokens=1)
        at.after_epoch(dev, 1.0)
    assert [row["best_so_far"] for row in at.history] == [True, True, False]
    assert (at.best, at.best_epoch) == (better, 1)

    all_right, further = (figures_of(np.full(200, margin), sure=1.0) for margin in (1.0, 2.0))
    assert 0 > further.merit > all_right.merit  # not 0, which any that is right would have at its best temperature
    assert better.loss > 5 * -better.merit  # as it is, too sure


def test_macro_f1_of_an_epoch_is_that_of_thresholds_that_have_not_seen_its_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of scores that say nothing, thresholds fitted on the same texts find something all the same."""
    rng = np.random.default_rng(0)
    labels = [f"l{i}" for i in range(20)]
    given = rng.random((300, 20)) < 0.05
    examples = [Example(str(i), tuple(np.array(labels)[row])) for i, row in enumerate(given)]
    data = Dataset("d", examples, MULTI, [], "")
    run = set_up(TINY, {"train": data, "dev": data}, None, CPU, labels)
    logits = rng.normal(size=given.shape).astype(np.float32)
    monkeypatch.setattr("training.train.forward_rows", lambda *_: logits)
    calibration = calibrate(logits, given.astype(np.float32), 0.9, 0.05)
    flattered = score(probabilities(logits, MULTI, calibration), given.astype(np.float32), labels, calibration)
    figures = dev_figures(run, run.rows(data))
    assert figures.score < 0.95 * flattered.macro_f1.value
    assert figures.merit == figures.score - 1


def test_of_epochs_of_equal_merit_that_of_less_loss_is_the_best() -> None:
    at = Progress()
    for loss in (0.5, 0.4, 0.6):
        at.after_step(1.0, tokens=1)
        at.after_epoch(DevFigures(0.8, loss, merit=-0.2), 1.0)
    assert at.best_epoch == 1


def test_rows_out_of_scope_are_no_class_and_are_counted_where_the_model_abstains(
    write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    strange = [{"text": f"{a} {b}", "label": "oos"} for a in ("zork", "qux", "blip", "vex") for b in range(60)]
    data = read_dataset(write_jsonl([*rows(1500), *strange]))
    config = dataclasses.replace(TINY, out_of_scope_label="oos", outlier_exposure=0.5, coverage=0.8)
    manifest, evaluations = train(config, data, None, None, tmp_path / "b", device=CPU)
    assert (manifest.labels, manifest.out_of_scope_label) == (["negative", "positive"], "oos")
    found = evaluations["dev"].reliability
    assert found is not None
    assert found.cross_fitted
    assert found.sets is not None
    assert found.sets.promised == 0.8
    assert found.scope is not None
    assert found.scope.recall is not None
    assert found.scope.out_of_scope + evaluations["dev"].n == manifest.made_by["data"]["dev"]["rows"]
    assert found.scope.recall.value > 0.8
    assert found.scope.kept.value > 0.88
    again = evaluate(load_bundle(tmp_path / "b"), data).reliability
    assert again is not None
    assert again.scope is not None
    assert again.scope.out_of_scope == len(strange)
    assert "texts out of scope" in (tmp_path / "b" / "README.md").read_text()


def test_an_out_of_scope_label_that_no_row_has_or_of_rows_with_several_is_refused(
    write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    config = dataclasses.replace(TINY, out_of_scope_label="oos")
    with pytest.raises(DataError, match="no row has the out_of_scope_label: oos"):
        train(config, read_dataset(write_jsonl(rows(300))), None, None, tmp_path / "b", device=CPU)
    tags = [{"text": row["text"], "labels": [row["label"]]} for row in rows(300)]
    with pytest.raises(DataError, match="is for rows of one label, give such rows none: oos"):
        train(config, read_dataset(write_jsonl(tags)), None, None, tmp_path / "b", device=CPU)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([{"text": f"t{i}", "label": "same"} for i in range(50)], "one label"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], "too few rows"),
    ],
)
def test_data_that_cannot_be_learned_from_is_refused_before_training(
    content: list[dict[str, object]], reason: str, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=reason):
        train(TINY, read_dataset(write_jsonl(content)), None, None, tmp_path / "b", device=CPU)


def test_a_dev_label_that_was_never_trained_on_is_refused(write_jsonl: Callable[..., Path], tmp_path: Path) -> None:
    data, dev = read_dataset(write_jsonl(rows(50))), read_dataset(write_jsonl([{"text": "a", "label": "new"}], "dev"))
    with pytest.raises(DataError, match="no label named new"):
        train(TINY, data, dev, None, tmp_path / "b", device=CPU)


def test_a_run_that_diverges_stops_and_says_so(write_jsonl: Callable[..., Path], tmp_path: Path) -> None:
    wild = dataclasses.replace(TINY, lr=1e30)
    with pytest.raises(ValueError, match="the loss is no number at step .* lower than: 1e"):
        train(wild, read_dataset(write_jsonl(rows(300))), None, None, tmp_path / "b", device=CPU)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_rate_rises_to_its_peak_and_falls_to_nothing(decay: Literal["linear", "cosine"]) -> None:
    scale = [lr_scale((step + 0.5) / 100, 0.1, decay) for step in range(100)]
    assert 0 < scale[0] < 0.1
    assert max(scale) == scale[10] > 0.99
    assert scale == sorted(scale[:11]) + sorted(scale[11:], reverse=True)
    assert 0 < scale[-1] < 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr"),
        ({"layers": 0}, "layers"),
        ({"dropout": 2.0}, "dropout"),
        ({"max_tokens": 1}, "max_tokens"),
        ({"epochs": 0}, "epochs"),
        ({"warmup": 1.0}, "warmup"),
        ({"batch_tokens": 8}, "batch_tokens"),
        ({"coverage": 1.0}, "coverage"),
        ({"false_alarms": 1.0}, "false_alarms"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)
