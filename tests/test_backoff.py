"""Augmentation is kept only where dev shows that it helps (training/backoff.py)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
from samples import TINY, rows

from training import train as train_module
from training.backoff import best_of, without_and_with
from training.data import read_dataset
from training.run import parts_of, set_up
from training.train import train
from training.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from training.run import Run
    from training.train import Outcome

CPU = torch.device("cpu")
AUGMENT = dataclasses.replace(TINY, augment=True)


@pytest.fixture
def make_run(write_jsonl: Callable[..., Path]) -> Callable[..., Run]:
    parts = parts_of(read_dataset(write_jsonl(rows(200))), None, None, None)

    def make(**settings: Any) -> Run:
        config = dataclasses.replace(AUGMENT, **settings)
        return set_up(config, parts, None, CPU, parts["train"].label_names)

    return make


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"token_dropout": None, "made_texts": 1}, [(0.0, 0.0), (0.1, 0.1)]),
        ({"token_dropout": None}, [(0.0, 0.2), (0.1, 0.2)]),  # the recipe hides words, where no texts are made
        ({"edits": 0.05, "token_dropout": 0.3}, [(0.0, 0.0), (0.05, 0.3)]),
        ({"augment": False, "edits": 0.05}, [(0.05, 0.0)]),
    ],
)
def test_it_is_trained_without_and_with_what_is_set_or_a_tenth(
    settings: dict[str, Any], expected: list[tuple[float, float]], make_run: Callable[..., Run]
) -> None:
    runs = without_and_with(make_run(**settings))
    assert [(run.config.edits, run.recipe.token_dropout) for run in runs] == expected


@pytest.mark.parametrize(("merits", "kept"), [((0.8, 0.9), 1), ((0.9, 0.8), 0), ((0.9, 0.9), 0)])
def test_the_better_one_on_dev_is_kept_with_its_weights_and_of_equals_that_without(
    merits: tuple[float, float], kept: int, make_run: Callable[..., Run], tmp_path: Path, capsys: Any
) -> None:
    runs = without_and_with(make_run())
    bias = runs[0].classifier.head.out.bias
    starts = []

    def loop(run: Run, *_: Any, **__: Any) -> Outcome:
        i = runs.index(run)
        starts.append(bias.tolist())
        with torch.no_grad():
            bias.fill_(i)
        return [{"best_so_far": True, "merit": merits[i], "dev_loss": 0.5, "dev_score": merits[i]}], {}

    checkpoints = [tmp_path / "a", tmp_path / "b"]
    best, _ = best_of(runs, loop, checkpoints, resume=False, watch=Watch())
    assert best is runs[kept]
    assert bias.tolist() == [kept] * len(bias)
    assert starts[0] == starts[1]
    assert [line.endswith("kept") for line in capsys.readouterr().err.splitlines()[1:]] == [kept == 0, kept == 1]


def test_a_run_stopped_in_either_part_goes_on_to_the_same_bundle(
    write_jsonl: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "CHECKPOINT_EVERY_S", 0.0)
    data = read_dataset(write_jsonl(rows(200)))
    steps: list[int] = []
    whole, _ = train(AUGMENT, data, None, None, tmp_path / "whole", device=CPU, on_step=steps.append)
    assert steps == list(range(1, len(steps) + 1))  # the second is counted on
    for stop in (len(steps) // 4, 3 * len(steps) // 4):

        def on_step(step: int, stop: int = stop) -> None:
            if step == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(
                AUGMENT,
                data,
                None,
                None,
                tmp_path / "cut",
                device=CPU,
                resume=(tmp_path / "cut.checkpoint").exists(),
                on_step=on_step,
            )
    resumed, _ = train(AUGMENT, data, None, None, tmp_path / "cut", device=CPU, resume=True)
    assert resumed.version == whole.version
    assert resumed.made_by["config"]["edits"] in (0.0, 0.1)
    assert [path.name for path in sorted(tmp_path.iterdir()) if path.suffix != ".jsonl"] == ["cut", "whole"]
