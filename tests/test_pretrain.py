"""Pretraining as its user sees it: the loss falls, the encoder starts classifiers and opens in transformers."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from samples import rows
from test_families import CASES, VOCABULARY, random_rows
from transformers import AutoConfig, AutoModelForMaskedLM

from model.batch import make_batch
from model.bundle import load_bundle, load_encoder
from model.convert import dump_weights, load_weights, read_config
from model.family import UnsupportedCheckpoint
from model.folder import read_json
from model.masked import MaskedLM
from model.tokens import Tokenizer
from service.cli import main
from training import pretrain as pretrain_module
from training.build import TrainConfig, build
from training.commands import seconds_of
from training.corpus import GOES_ON, ID, SPECIAL, TextFiles, encode_corpus
from training.data import DataError, read_dataset
from training.masking import choose_words, epoch_plan
from training.pretrain import pretrain, rate
from training.pretrain_build import PretrainConfig
from training.tokenizer import learn_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CPU = torch.device("cpu")
SMALL = PretrainConfig(
    layers=1, width=64, heads=2, feed_forward=64, vocab_size=400, max_tokens=32, batch_tokens=512, epochs=8, lr=1e-2,
    evaluations=3, precision="fp32",
)  # fmt: skip
ANIMALS = ["dog", "cat", "cow", "bird", "lion", "wolf"]


def calls(n: int, seed: int = 0) -> list[str]:
    """Numbered texts that say one word again and again: its neighbours tell what a hidden one was."""
    rng = random.Random(seed)
    return [f"{i} " + " ".join([rng.choice(ANIMALS)] * 9) for i in range(n)]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextFiles:
    file = tmp_path_factory.mktemp("text") / "calls.txt"
    file.write_text("\n".join(calls(400)))
    return TextFiles([file])


@pytest.fixture(scope="module")
def encoder(text: TextFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained encoder."""
    out = tmp_path_factory.mktemp("encoder") / "animals"
    pretrain(SMALL, text, out, device=CPU)
    return out


def test_what_hidden_words_were_is_learned_from_their_context(encoder: Path) -> None:
    history = json.loads((encoder / "report" / "metrics.json").read_text())["history"]
    assert len(history) == 3
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["dev_accuracy"] > 0.7  # the commonest word alone: 0.4
    assert "fill-mask" in (encoder / "README.md").read_text()
    assert not encoder.with_name("animals.checkpoint").exists()


@pytest.mark.parametrize("family", CASES)
def test_a_masked_language_model_gives_the_logits_of_transformers(family: str) -> None:
    torch.manual_seed(0)
    extra = {"vocab_size": VOCABULARY, "max_position_embeddings": 70, "pad_token_id": 0}
    ids = dict.fromkeys(("cls_token_id", "bos_token_id", "sep_token_id", "eos_token_id"), 1)
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(family, **(extra | ids | CASES[family][0])))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = MaskedLM(read_config(model.config.to_dict()))
    load_weights(ours, model.state_dict())
    assert dump_weights(ours).keys() <= model.state_dict().keys()
    row = random_rows()[1]
    batch = make_batch([row], "packed", 0, ours.config.first_position)
    with torch.no_grad():
        expected = model.eval()(torch.tensor([row.ids])).logits[0]
        logits = ours.eval()(batch, torch.arange(len(row.ids)))
    assert expected.std() > 0.3  # else any network would agree
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"family": "modernbert", "tokenizer": "bpe"}])
def test_transformers_opens_the_encoder_as_a_masked_language_model(
    settings: dict[str, Any], text: TextFiles, tmp_path: Path
) -> None:
    config = dataclasses.replace(SMALL, epochs=1, **settings)
    pretrain(config, text, tmp_path / "e", device=CPU)
    model, loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "e", output_loading_info=True)
    assert not any(loaded[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    encoder, weights, tokenizer = load_encoder(tmp_path / "e")
    ours = MaskedLM(encoder).eval()
    load_weights(ours, weights)
    [row] = tokenizer.encode(["dog dog [MASK] dog"], 32)
    assert tokenizer.token_id("[MASK]") in row.ids
    with torch.no_grad():
        logits = ours(make_batch([row], "packed"), torch.arange(len(row.ids)))
        torch.testing.assert_close(logits, model(torch.tensor([row.ids])).logits[0], rtol=0, atol=1e-4)


def test_a_classifier_starts_from_the_encoder(encoder: Path, write_jsonl: Callable[..., Path], tmp_path: Path) -> None:
    data = write_jsonl(rows(300))
    config = TrainConfig(max_tokens=32, batch_tokens=512, epochs=1)
    classifier, *_ = build(config, read_dataset(data), ["negative", "positive"], encoder)
    state = classifier.encoder.state_dict()
    masked = MaskedLM(load_encoder(encoder)[0])
    load_weights(masked, load_encoder(encoder)[1])
    assert all(torch.equal(value, state[name]) for name, value in masked.encoder.state_dict().items())
    settings = ["--set=max_tokens=32", "--set=batch_tokens=512", "--set=epochs=1"]
    assert main(["train", "--train", str(data), "--out", str(tmp_path / "b"), "--init", str(encoder), *settings]) == 0
    assert load_bundle(tmp_path / "b").tokenizer.to_json() == load_encoder(encoder)[2].to_json()
    with pytest.raises(ValueError, match="does not classify texts: ModernBertForMaskedLM"):
        load_bundle(encoder)


def test_an_encoder_goes_on_from_where_it_was(encoder: Path, text: TextFiles, tmp_path: Path) -> None:
    config = PretrainConfig(max_tokens=32, batch_tokens=512, epochs=1, evaluations=1, lr=1e-4)
    on = pretrain(config, text, tmp_path / "on", init=encoder, device=CPU)
    before = json.loads((encoder / "report" / "metrics.json").read_text())["history"][-1]
    assert on["dev_loss"] < before["dev_loss"] + 0.2
    with pytest.raises(ValueError, match="leave it out: width=32"):
        pretrain(dataclasses.replace(config, width=32), text, tmp_path / "no", init=encoder, device=CPU)


def test_a_classifier_can_be_pretrained_further(bundle_folder: Path, text: TextFiles, tmp_path: Path) -> None:
    config = PretrainConfig(max_tokens=32, batch_tokens=512, epochs=1, layers=1)
    pretrain(config, text, tmp_path / "e", init=bundle_folder, device=CPU)
    assert load_encoder(tmp_path / "e")[0].layers == 1


class Interrupted(Exception):
    """Somebody pulls the plug."""


def test_a_resumed_run_gives_the_encoder_of_an_uninterrupted_one(
    text: TextFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain_module, "CHECKPOINT_EVERY_S", 0.0)
    config = dataclasses.replace(SMALL, epochs=2, dropout=0.1)
    whole = pretrain(config, text, tmp_path / "whole", device=CPU)
    steps = int(whole["step"])

    def stop_at(stop: int) -> Callable[[int], None]:
        def on_step(step: int) -> None:
            if step == stop:
                raise Interrupted

        return on_step

    for stop in (steps // 3, steps - steps // 3):
        again = stop > steps // 3
        with pytest.raises(Interrupted):
            pretrain(config, text, tmp_path / "cut", device=CPU, resume=again, on_step=stop_at(stop))
    resumed = pretrain(config, text, tmp_path / "cut", device=CPU, resume=True)
    assert (resumed["version"], resumed["dev_loss"]) == (whole["version"], whole["dev_loss"])


def test_resuming_with_other_texts_is_refused(text: TextFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_module, "CHECKPOINT_EVERY_S", 0.0)

    def stop(step: int) -> None:
        if step == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        pretrain(SMALL, text, tmp_path / "e", device=CPU, on_step=stop)
    (tmp_path / "other.txt").write_text("\n".join(reversed(calls(400))))
    with pytest.raises(ValueError, match="another value of: text"):
        pretrain(SMALL, TextFiles([tmp_path / "other.txt"]), tmp_path / "e", device=CPU, resume=True)


def test_a_budget_ends_a_run_that_has_no_other_end(text: TextFiles, tmp_path: Path, capsys: Any) -> None:
    small = ["layers=1", "width=16", "heads=1", "feed_forward=16", "vocab_size=300", "max_tokens=32", "evaluations=2"]
    arguments = ["--text", str(text.files[0]), "--out", str(tmp_path / "e"), "--budget", "4s", "--json"]
    assert main(["pretrain", *arguments, *(f"--set={setting}" for setting in small)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["step"] >= 1
    assert load_encoder(tmp_path / "e")[0].width == 16


def test_without_epochs_an_encoder_has_what_company_words_keep_and_no_more(text: TextFiles, tmp_path: Path) -> None:
    pretrain(dataclasses.replace(SMALL, epochs=0), text, tmp_path / "e", device=CPU)
    [row] = json.loads((tmp_path / "e" / "report" / "metrics.json").read_text())["history"]
    assert (row["step"], row["tokens"]) == (0, 0)
    _, weights, tokenizer = load_encoder(tmp_path / "e")
    [vectors] = [value for name, value in weights.items() if name.endswith("tok_embeddings.weight")]
    seen = torch.tensor([tokenizer.token_id(word) for word in ANIMALS])
    assert vectors[seen].norm(dim=1).mean() > 2 * vectors[:5].norm(dim=1).max()  # special tokens


def test_the_texts_of_every_flag_are_read(text: TextFiles, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "more.txt").write_text("\n".join(calls(100)))
    small = ["layers=1", "width=16", "heads=1", "feed_forward=16", "vocab_size=300", "epochs=1", "evaluations=1"]
    flags = ["--text", str(text.files[0]), "--text", str(tmp_path / "more.txt"), "--out", str(tmp_path / "e")]
    assert main(["pretrain", *flags, *(f"--set={setting}" for setting in small)]) == 0
    assert f"{len(list(text.texts())) + 100:,} texts" in capsys.readouterr().err


def test_a_run_that_diverges_stops_and_says_so(text: TextFiles, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the loss is no number at step .* lower than: 1e"):
        pretrain(dataclasses.replace(SMALL, lr=1e30), text, tmp_path / "e", device=CPU)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_words_are_hidden_whole_and_special_tokens_never(kind: Any, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("\n".join(f"unbelievable stranger {i}, indeed" for i in range(300)))
    tokenizer = learn_tokenizer(["believe strange in deed un 0123456789 , "] * 3, kind, 300)
    stored = np.asarray(encode_corpus(TextFiles([tmp_path / "t.txt"]), tokenizer, 64, tmp_path, 1e18).train.tokens)
    hidden = choose_words(stored, 0.3, np.random.default_rng(0))
    goes_on = (stored & GOES_ON) != 0
    assert 0.1 < goes_on.mean() < 0.9
    assert (hidden[1:] == hidden[:-1])[goes_on[1:]].all()
    assert not hidden[(stored & SPECIAL) != 0].any()
    assert 0.25 < hidden[(stored & SPECIAL) == 0].mean() < 0.35
    assert choose_words(stored[:6], 1e-9, np.random.default_rng(0)).any()


def test_a_long_text_is_cut_into_rows_that_hold_all_of_it(tmp_path: Path) -> None:
    long = " ".join(str(i) for i in range(301))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in [long, *map(str, range(200))]))
    tokenizer = learn_tokenizer([long], "wordpiece", 300)
    train = encode_corpus(TextFiles([tmp_path / "t.jsonl"]), tokenizer, 16, tmp_path, 1e18).train
    assert train.lengths.max() == 16
    ids = [int(i) for row in train.take(range(len(train.starts) - 1)) for i in row & ID if not i < 5]
    [expected] = tokenizer.words([long])
    assert ids[: len(expected[0])] == expected[0]
    plan = epoch_plan(train.lengths, 64, 0, 0)
    assert sorted(np.concatenate(plan)) == list(range(len(train.lengths)))
    assert max(train.lengths[batch].sum() for batch in plan) <= 64
    assert [list(b) for b in epoch_plan(train.lengths, 64, 0, 1)] != [list(b) for b in plan]


def test_texts_are_read_from_every_kind_of_file_in_turn(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    with gzip.open(tmp_path / "paragraphs.txt.gz", "wt") as file:
        file.write("three\nand more\n\nfour\n")
    (tmp_path / "table.csv").write_text("text,label\nfive,x\n")
    (tmp_path / "pairs.jsonl").write_text('{"text": "six", "text_pair": "seven"}\n{"text": 8}\n')
    files = [tmp_path / name for name in ("lines.txt", "paragraphs.txt.gz", "table.csv", "pairs.jsonl")]
    source = TextFiles(files, skip_bad=True)
    assert list(source.texts()) == ["one", "three and more", "five", "six", "two", "four", "seven"]
    assert source.skipped == [f"{tmp_path}/pairs.jsonl:2: text is missing or not a string: int"]
    with pytest.raises(DataError, match="pairs.jsonl:2: .*--bad-rows skip"):
        list(TextFiles(files).texts())


def test_the_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    shares = [rate(i / 100, warmup=0.1) for i in range(101)]
    assert 0 < shares[0] < 0.1
    assert max(shares) == shares[10] == 1
    assert shares == sorted(shares[:11]) + sorted(shares[11:], reverse=True)
    assert shares[-1] == 0


def test_a_tokenizer_without_a_mask_token_cannot_be_pretrained(
    bundle_folder: Path, text: TextFiles, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((bundle_folder / name).read_bytes())
    raw = (bundle_folder / "tokenizer.json").read_text().replace("[MASK]", "[HIDE]")
    (tmp_path / "tokenizer.json").write_text(raw)
    assert "mask" not in Tokenizer(raw).special_tokens
    with pytest.raises(ValueError, match="no mask token"):
        pretrain(PretrainConfig(max_tokens=32), text, tmp_path / "e", init=tmp_path, device=CPU)


def test_times_are_read_as_people_write_them() -> None:
    assert [seconds_of(time) for time in ("90s", "10m", "1h30m", "0.5h")] == [90, 600, 5400, 1800]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "ten"], "a time is written as 90s, 10m or 1h30m: ten"),
        (["--set", "mask_share=1"], "mask_share is not between 0 and 1: 1"),
        (["--set", "batch_tokens=8"], "batch_tokens does not hold one row of max_tokens=256: 8"),
        (["--set", "colour=1"], "no setting is named colour"),
        ([], "too few texts to train on some and hold 2% out: 1"),
        (["--budget", "0.01s"], "too few texts"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(arguments: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "t.txt").write_text("a text\n")
    command = ["pretrain", "--text", str(tmp_path / "t.txt"), "--out", str(tmp_path / "e")]
    assert main([*command, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert sorted(file.name for file in tmp_path.iterdir()) == ["t.txt"]


def test_an_encoder_is_never_overwritten(encoder: Path, text: TextFiles) -> None:
    with pytest.raises(ValueError, match="never overwritten"):
        pretrain(SMALL, text, encoder, device=CPU)
    assert issubclass(UnsupportedCheckpoint, ValueError)
    assert read_json(encoder / "config.json")["architectures"] == ["ModernBertForMaskedLM"]
