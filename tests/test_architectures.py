"""The comparison of architectures: equal sizes, rows that do not see one another, one command end to end."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import architectures
import architectures_speed
import pytest
import torch
import word_order
from baselines import BASELINES, NAMES, TOLERANCE, equal_to, equal_width, parameters
from samples import rows
from torch import nn

from model.encoder import Classifier, EncoderConfig
from model.forward import forward_rows
from model.tokens import Row
from training.build import TrainConfig, build

if TYPE_CHECKING:
    from pathlib import Path

ENCODER = EncoderConfig(vocab_size=300, width=64, layers=2, heads=2, feed_forward=128, max_tokens=64)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("labels", [2, 77])
def test_each_architecture_is_as_large_as_the_encoder(name: str, labels: int) -> None:
    target = parameters(Classifier(ENCODER, labels))
    model = equal_to(ENCODER, labels, BASELINES[name])
    assert parameters(model) == pytest.approx(target, rel=TOLERANCE)
    assert model.encoder.embeddings.tokens.weight.shape == (300, 64)


def test_a_size_that_no_width_reaches_is_refused() -> None:
    with pytest.raises(ValueError, match="no width has as many parameters, to within 20, as: 1500"):
        equal_width(lambda width: nn.Linear(1000, width), target=1500, tolerance=20)


@pytest.mark.parametrize("name", BASELINES)
def test_a_row_is_read_alike_whatever_shares_its_pass(name: str) -> None:
    torch.manual_seed(0)
    model = equal_to(ENCODER, 3, BASELINES[name])
    texts = [Row([5, 6]), Row([7] * 30), Row([8, 9, 10, 11]), Row([12] * 9)]
    alone = torch.cat([torch.from_numpy(forward_rows(model, [row])) for row in texts])
    torch.testing.assert_close(torch.from_numpy(forward_rows(model, texts)), alone, rtol=0, atol=1e-5)
    assert len({tuple(line) for line in alone.round(decimals=4).tolist()}) == 4


def test_a_text_of_the_word_order_has_the_tokens_asked_for_and_both_words() -> None:
    train = word_order.texts("train", 400)
    _, tokenizer, _ = build(TrainConfig(width=32, layers=1), train, train.label_names, None)
    for n in word_order.TOKENS:
        test = word_order.texts("test", 3, (n,))
        assert [row.tokens for row in tokenizer.encode(test.texts, 512)] == [n] * 3
    for example in train.examples:
        words = str(example.text).split()
        assert (words.index("zuza") < words.index("zuzo")) == (example.labels == ("za first",))


def test_the_comparison_runs_to_its_table_and_repeats_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, n in {"train": 200, "dev": 40, "test": 40}.items():
        file = tmp_path / "trec6" / f"{part}.jsonl.gz"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(gzip.compress("".join(f"{json.dumps(row)}\n" for row in rows(n, seed=len(part))).encode()))
    for module in (architectures, architectures_speed):
        monkeypatch.setattr(module, "TOKENS", (16, 32))
    monkeypatch.setattr(architectures, "ORDER_DEV", 20)
    monkeypatch.setattr(architectures, "ORDER_TEST", 20)
    settings = ["width=32", "heads=2", "layers=2", "feed_forward=64", "vocab_size=500", "epochs=1", "lr=0.003"]
    command = ["--data", str(tmp_path), "--sets", "trec6", "--out", str(tmp_path / "out"), "--rounds", "1"]
    command += ["--rows", "200", "--device", "cpu"] + [part for one in settings for part in ("--set", one)]
    architectures.main(command)
    first = capsys.readouterr()
    assert all(f"| {name} |" in first.out and f"{name} on trec6" in first.err for name in NAMES)
    assert (tmp_path / "out" / "architectures.svg").read_text().count("<svg") == 1
    architectures.main(command)
    again = capsys.readouterr()
    assert again.out == first.out
    assert not again.err
