"""A search tries settings around the recipe's, says what each came to, and the best is trained whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest
from samples import ROOT, TINY, rows

from service.cli import main
from training.build import TrainConfig
from training.candidates import SEARCHED, Tried, candidates, ranked, search_table, searched
from training.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Capture = pytest.CaptureFixture[str]

RECIPE = Recipe(
    epochs=4, batch_rows=64, batch_tokens=4096, lr=5e-4, dropout=0.4, token_dropout=0.2, made_texts=0, adversarial=0.0
)


def tried(config: TrainConfig, score: float | None, loss: float | None = None) -> Tried:
    return Tried(searched(config), score, loss, None if loss is None else -loss, 1, 2.0, "whole")


def test_a_search_tries_the_recipe_first_and_the_same_settings_for_the_same_seed() -> None:
    [first, *others] = candidates(TrainConfig(), RECIPE, 30, has_mask=True)
    assert replace(TrainConfig(), **asdict(RECIPE)) == first
    assert candidates(TrainConfig(), RECIPE, 30, has_mask=True) == [first, *others]
    assert candidates(TrainConfig(seed=1), RECIPE, 30, has_mask=True)[1:] != others
    for name in SEARCHED:
        assert len({searched(config)[name] for config in others}) > 2
    assert all(config.epochs in range(2, 9) and config.batch_rows in (32, 64, 128) for config in others)


def test_what_the_user_has_set_is_not_searched() -> None:
    asked = TrainConfig(lr=1e-3, dropout=0.3, layers=2)
    for config in candidates(asked, replace(RECIPE, lr=1e-3, dropout=0.3, token_dropout=0.0), 10, has_mask=False):
        assert (config.lr, config.dropout, config.layers, config.token_dropout) == (1e-3, 0.3, 2, 0.0)


def test_of_more_merit_is_better_and_what_has_none_is_last() -> None:
    best, second, third, failed = (
        replace(tried(TINY, score, loss), seconds=i)
        for i, (score, loss) in enumerate([(0.9, 0.2), (0.91, 0.3), (0.8, 0.4), (None, None)])
    )
    assert ranked([failed, third, second, best]) == [best, second, third, failed]
    surer = replace(best, dev_loss=0.3)
    assert ranked([surer, best]) == [best, surer]
    lines = search_table([failed, best]).splitlines()
    assert lines[0].split()[-3:] == ["run", "seconds", "end"]
    assert lines[1].split()[-5:] == ["-0.2000", "0.9000", "1", "0", "whole"]
    assert "--set lr=0.003 --set epochs=5 --set batch_rows=32" in lines[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--search", "0"], "--search is not at least 1: 0"), (["--search", "3", "--resume"], "--resume continues")],
)
def test_a_search_that_cannot_be_is_one_line(
    flags: list[str], message: str, write_jsonl: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    assert main(["train", "--train", str(write_jsonl(rows(50))), "--out", str(tmp_path / "b"), *flags]) == 2
    assert message in capsys.readouterr().err


def search(data: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    shape = ["layers=1", "width=32", "heads=2", "feed_forward=64", "vocab_size=400", "max_tokens=64", "epochs=4"]
    program = [sys.executable, "-m", "service", "train", "--train", str(data), "--out", str(out), "--device", "cpu"]
    return subprocess.run(
        [*program, *more, *(f"--set={each}" for each in shape)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_best_settings_found_are_those_of_the_bundle(write_jsonl: Callable[..., Path], tmp_path: Path) -> None:
    ran = search(write_jsonl(rows(600)), tmp_path / "b", "--search", "5", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["dev"]["n"] > 30
    assert "epochs run" in ran.stderr
    made_by = json.loads((tmp_path / "b" / "heed.json").read_text())["made_by"]
    merits = [each["merit"] for each in made_by["search"]]
    assert len(merits) == 5
    assert merits == sorted(merits, reverse=True)
    assert {name: made_by["config"][name] for name in SEARCHED} == made_by["search"][0]["settings"]
    assert made_by["search"][0]["settings"]["epochs"] == 4


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_search_without_time_for_an_epoch_says_so(write_jsonl: Callable[..., Path], tmp_path: Path) -> None:
    ran = search(write_jsonl(rows(300)), tmp_path / "b", "--search", "2", "--budget", "0.1s")
    assert ran.returncode == 2
    assert "no trial came to the end of an epoch: give more --budget" in ran.stderr
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_search_in_which_all_fail_says_why(write_jsonl: Callable[..., Path], tmp_path: Path) -> None:
    ran = search(write_jsonl(rows(300)), tmp_path / "b", "--search", "2", "--set=lr=1e30")
    assert ran.returncode == 2
    assert "the loss is no number at step" in ran.stderr.splitlines()[-1]
