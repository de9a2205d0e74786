"""A batch that is read twice, the second time with its tokens moved against it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from samples import TINY, rows

from model.batch import make_batch
from model.encoder import Classifier, EncoderConfig
from model.tokens import Row
from training.adversarial import backward, uphill
from training.data import read_dataset
from training.train import train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

BATCH = make_batch([Row([2, 5, 6, 7, 3]), Row([2, 8, 3]), Row([2, 9, 10, 3])], "padded", 0, 0)
TRUTH = torch.tensor([0, 1, 1])


def network() -> Classifier:
    torch.manual_seed(0)
    return Classifier(EncoderConfig(vocab_size=20, width=16, layers=2, heads=2, feed_forward=32, dropout=0.0), 2)


def gradients(model: Classifier) -> dict[str, Tensor]:
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def read(model: Classifier, reach: float) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of the readings of BATCH, and the gradients in the end."""
    losses: list[float] = []

    def loss_of() -> Tensor:
        loss = F.cross_entropy(model(BATCH), TRUTH)
        losses.append(loss.item())
        return loss

    model.zero_grad()
    returned = backward(loss_of, BATCH, model.encoder.embeddings, reach)
    assert returned.item() == losses[0]
    return losses, gradients(model)


def test_the_second_reading_is_harder_than_the_first_and_than_a_step_downhill() -> None:
    model = network()
    (first, uphill), (_, downhill) = read(model, 0.3)[0], read(model, -0.3)[0]
    assert downhill < first < uphill
    assert len(read(model, 0.0)[0]) == 1


def test_both_readings_count_alike_and_leave_no_hook_behind() -> None:
    model = network()
    plain = read(model, 0.0)[1]
    twice = read(model, 1e-6)[1]  # moved by next to nothing
    torch.testing.assert_close(twice, plain, rtol=1e-3, atol=1e-5)
    far = read(model, 0.5)[1]
    assert far.keys() == plain.keys()
    assert not torch.allclose(far["head.out.weight"], plain["head.out.weight"], rtol=1e-2)
    torch.testing.assert_close(read(model, 0.0)[1], plain)
    assert not model.encoder.embeddings._forward_hooks


def test_a_row_is_moved_by_the_length_of_its_tokens_whatever_lies_beside_it() -> None:
    tokens = torch.arange(1.0, len(BATCH.ids) + 1)[:, None].repeat(1, 4).requires_grad_()
    tokens.grad = torch.randn(len(tokens), 4) * torch.tensor([1e-3, 1.0, 0.0, 1.0])[BATCH.rows, None]
    moved = uphill(tokens, BATCH)
    for row, factor in enumerate([1.0, 1.0, 0.0]):
        length = tokens[BATCH.rows == row].norm(dim=1).mean().item()
        assert moved[BATCH.rows == row].norm().item() == pytest.approx(length * factor, rel=1e-4)
    assert not moved[BATCH.rows == 3].any()  # padding


def test_a_run_that_reads_twice_learns(write_jsonl: Callable[..., Path], tmp_path: Path) -> None:
    data = read_dataset(write_jsonl(rows(400)))
    config = dataclasses.replace(TINY, adversarial=0.05, epochs=10)
    manifest, held_out = train(config, data, None, None, tmp_path / "b", device=torch.device("cpu"))
    assert held_out["dev"].accuracy.value > 0.9
    assert manifest.made_by["config"]["adversarial"] == 0.05
