"""The folder that ships: what transformers makes of it, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from model.bundle import load_bundle, save_bundle
from model.encoder import Classifier, EncoderConfig
from model.families import modernbert_defaults
from model.forward import forward_rows
from model.manifest import BundleError, Manifest
from model.scores import SINGLE
from training.tokenizer import learn_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from model.bundle import Bundle

TEXTS = ["the film was good", "a dull story of two people in town", "x"]


@pytest.fixture
def copy(bundle_folder: Path, tmp_path: Path) -> Path:
    """The trained bundle, to break."""
    return shutil.copytree(bundle_folder, tmp_path / "copy")


def make_bundle(folder: Path, family: str, weights: str = "fp32") -> Manifest:
    """A bundle of random weights."""
    torch.manual_seed(0)
    tokenizer = learn_tokenizer(TEXTS, "wordpiece", 120)
    sizes = {
        "vocab_size": tokenizer.vocab_size,
        "width": 32,
        "heads": 2,
        "layers": 4,
        "feed_forward": 48,
        "max_tokens": 64,
    }
    config = EncoderConfig(**(modernbert_defaults(4) if family == "modernbert" else {}) | sizes)
    classifier = Classifier(config, num_labels=3)
    for parameter in classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    manifest = Manifest(
        name="b", version="", created="", labels=["a", "b", "c"], problem_type=SINGLE, max_tokens=config.max_tokens
    )
    return save_bundle(folder, classifier, tokenizer, manifest, weights=weights)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_transformers_loads_a_bundle_and_gives_the_same_logits(family: str, tmp_path: Path) -> None:
    make_bundle(tmp_path / "b", family)
    bundle = load_bundle(tmp_path / "b")
    mine = forward_rows(bundle.classifier, bundle.tokenizer.encode(TEXTS, bundle.max_tokens))
    model: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "b").eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "b")
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert ("token_type_ids" in inputs) == (family == "bert")
    with torch.no_grad():
        theirs = model(**inputs).logits
    torch.testing.assert_close(torch.from_numpy(mine), theirs, rtol=0, atol=1e-4)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_a_checkpoint_that_transformers_saved_is_served_as_it_is(
    bundle_folder: Path, bundle: Bundle, tmp_path: Path
) -> None:
    AutoModelForSequenceClassification.from_pretrained(bundle_folder).save_pretrained(tmp_path / "theirs")
    AutoTokenizer.from_pretrained(bundle_folder).save_pretrained(tmp_path / "theirs")
    theirs = load_bundle(tmp_path / "theirs")
    assert theirs.manifest is None
    assert (theirs.name, theirs.labels) == ("theirs", ["negative", "positive"])
    rows = bundle.tokenizer.encode(TEXTS, 64)
    assert rows == theirs.tokenizer.encode(TEXTS, 64)
    logits = (torch.from_numpy(forward_rows(b.classifier, rows)) for b in (bundle, theirs))
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("weights", ["fp16", "bf16"])
def test_probes_are_those_of_the_weights_as_they_are_stored(weights: str, tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path / "b", "bert", weights)
    bundle = load_bundle(tmp_path / "b")  # checks the probes
    assert bundle.version == manifest.version
    assert len(manifest.probes) > 2


def test_the_version_is_that_of_the_content(tmp_path: Path) -> None:
    versions = {
        make_bundle(tmp_path / name, family).version
        for name, family in [("a", "bert"), ("b", "bert"), ("c", "modernbert")]
    }
    assert len(versions) == 2


def test_a_bundle_whose_weights_were_changed_is_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    save_file(weights | {"classifier.bias": weights["classifier.bias"] + 1}, copy / "model.safetensors")
    with pytest.raises(BundleError, match="changed after it was made"):
        load_bundle(copy)


def test_a_bundle_that_gives_other_logits_on_its_probes_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / "heed.json").read_text())
    manifest["probes"][0]["logits"][0] += 0.01
    (copy / "heed.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="probe texts give logits that are off by more than 0.001: 0.01"):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "not JSON"),
        ("config.json", "[" * 100_000, "not JSON"),
        ("heed.json", "[" * 100_000, "not a manifest"),
        ("heed.json", "1" * 5_000, "not a manifest"),
        ("config.json", "[]", "not a JSON object"),
        ("config.json", '{"model_type": "bert", "id2label": {"0": "a"}}', "a field is missing: 'vocab_size'"),
        ("config.json", '{"model_type": "t5"}', "model_type is not one of bert, .*: t5"),
        ("tokenizer.json", "{}", "not a tokenizer"),
        ("model.safetensors", "garbage", "not a safetensors file"),
        ("tokenizer_config.json", '{"do_lower_case": false}', "differ in do_lower_case: False"),
        ("heed.json", '{"format": 1}', "heed.json"),
        ("heed.json", '{"format": 99}', "newer format than 2, update Heed: 99"),
    ],
)
def test_a_broken_file_is_named(copy: Path, file: str, content: str, message: str) -> None:
    (copy / file).write_text(content)
    with pytest.raises(BundleError, match=message):
        load_bundle(copy)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "heed.json"])
def test_a_file_of_terabytes_is_refused_before_it_is_read(copy: Path, file: str) -> None:
    os.truncate(copy / file, 10**12)  # sparse: it takes no disk
    with pytest.raises(BundleError, match=rf"larger than the 100,000,000 bytes .*{file} has 1,000,000,000,000"):
        load_bundle(copy)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(copy: Path, file: str) -> None:
    (copy / file).unlink()
    with pytest.raises(BundleError, match=file):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"problem_type": "regression"}, "problem_type is not one of .*: regression"),
        ("config.json", {"architectures": ["BertForTokenClassification"]}, "does not classify texts"),
        ("config.json", {"quantization_config": {"bits": 8}}, "quantization_config must be absent"),
        ("config.json", {"id2label": {"0": 1, "1": 2}}, "a name that is no string"),
        ("config.json", {"id2label": {"0": "a", "1": "a"}}, "two labels of one name"),
        ("config.json", {"id2label": ["a", "b"]}, "id2label does not map"),
        ("config.json", {"hidden_size": None}, "a value that cannot be"),
        ("config.json", {"num_attention_heads": 0}, "a value that cannot be"),
        ("config.json", {"vocab_size": 10}, "shape of|ids beyond vocab_size"),
        ("config.json", {"vocab_size": 10**15}, "vocab_size is not in 1..*: 1000000000000000"),
        ("config.json", {"vocab_size": -1}, "vocab_size is not in 1..*: -1"),
        ("config.json", {"num_hidden_layers": 10**9}, "layers is not in 1..*: 1000000000|over 1000 layers"),
        ("config.json", {"num_hidden_layers": 999}, "describes at least .* numbers, the weights have"),
        ("config.json", {"intermediate_size": 1.5}, "feed_forward is not in 1..*: 1.5"),
        ("heed.json", {"max_tokens": 9999}, "max_tokens is not what the encoder reads: 9999"),
        ("heed.json", {"problem_type": "foo"}, "different labels or problem types"),
        ("heed.json", {"probes": [{"text": 1}]}, "not texts with logits"),
        ("heed.json", {"calibration": {"temperature": 0}}, "temperature is not positive: 0"),
        ("heed.json", {"calibration": {"thresholds": [0.5]}}, "thresholds are not one for each of the 2 labels: 1"),
    ],
)
def test_a_field_that_cannot_be_is_named(copy: Path, file: str, change: dict[str, Any], message: str) -> None:
    fields = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(fields | change))
    with pytest.raises(BundleError, match=message):
        load_bundle(copy)


@pytest.mark.parametrize("missing", ["unk_token", "special_tokens"])
def test_a_tokenizer_that_cannot_read_every_text_is_refused_when_it_is_loaded(copy: Path, missing: str) -> None:
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    if missing == "unk_token":
        tokenizer["model"]["unk_token"] = "[NOWHERE]"
    else:
        tokenizer["post_processor"]["special_tokens"] = {}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        load_bundle(copy)


def test_quantized_weights_are_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    save_file(weights | {"classifier.weight": weights["classifier.weight"].to(torch.int8)}, copy / "model.safetensors")
    with pytest.raises(BundleError, match="type of classifier.weight is not fp32, fp16 or bf16"):
        load_bundle(copy)


def test_pickled_weights_are_never_read(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(BundleError, match="pickled weights are never read"):
        load_bundle(copy)


def test_a_bundle_is_never_overwritten(tmp_path: Path) -> None:
    make_bundle(tmp_path / "b", "bert")
    with pytest.raises(FileExistsError, match="never overwritten"):
        make_bundle(tmp_path / "b", "bert")


def test_a_save_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("model.bundle.save_file", full)
    with pytest.raises(OSError, match="no space"):
        make_bundle(tmp_path / "b", "bert")
    assert list(tmp_path.iterdir()) == []
