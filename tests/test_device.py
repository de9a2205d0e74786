"""Which precision is chosen where nobody says."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import pytest
import torch
from samples import TINY, rows

from model.device import choose_precision, training_precision
from training.data import read_dataset
from training.train import train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CPU = torch.device("cpu")


@pytest.mark.parametrize(("is_faster", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_serves_and_training_precision_only_where_that_is_faster(
    is_faster: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor can have bf16 and take twice as long with it: Intel's without AMX do."""
    monkeypatch.setattr("model.device.has_native_bf16", lambda device: True)
    monkeypatch.setattr("model.device.is_faster_in_bf16", lambda: is_faster)
    assert choose_precision("auto", CPU) == precision
    assert training_precision("auto", CPU) == ("bf16" if is_faster else "fp32")
    assert training_precision("bf16", CPU) == "bf16"
    assert training_precision("fp32", CPU) == "fp32"


def test_a_run_goes_on_in_the_precision_it_began_with_or_says_which_that_was(
    write_jsonl: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read_dataset(write_jsonl(rows(300)))

    class Interrupted(Exception):
        pass

    def stop(step: int) -> None:
        if step == 20:
            raise Interrupted

    def run(precision: Literal["auto", "fp32", "bf16"], *, resume: bool) -> None:
        config = dataclasses.replace(TINY, precision=precision)
        on_step = stop if not resume else (lambda step: None)
        train(config, data, None, None, tmp_path / "b", device=CPU, resume=resume, on_step=on_step)

    monkeypatch.setattr("training.train.CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr("model.device.has_native_bf16", lambda device: False)
    with pytest.raises(Interrupted):
        run("auto", resume=False)
    with pytest.raises(ValueError, match="another value of: config precision"):
        run("bf16", resume=True)
    run("fp32", resume=True)
