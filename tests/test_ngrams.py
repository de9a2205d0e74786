"""Tokens and pairs of neighbours beside the encoder: what they add, where they are kept, and what is refused."""

from __future__ import annotations

import random
import re
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import TINY
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from model.attribution import masked
from model.batch import make_batch
from model.bundle import load_bundle
from model.cpu import pack, quantize
from model.cuda import fill, varlen_batch
from model.encoder import Classifier
from model.explain import TOLERANCE, explain
from model.forward import forward_rows
from model.manifest import BundleError
from model.ngrams import NGrams
from model.scores import MULTI, SINGLE
from model.tokens import Row
from training.build import TrainConfig
from training.data import Dataset, Example, targets
from training.linear import fit_line
from training.ngrams import TokenGrams, add_ngrams
from training.retrain import settings_of
from training.run import Run, set_up
from training.train import train

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from model.scores import ProblemType

CPU = torch.device("cpu")
LABELS = ["no", "yes"]
ROWS = [Row([1, 5, 6, 2]), Row([1, 6, 2]), Row([1, 5, 5, 6, 7, 2])]


def pairs_that_decide(n: int, seed: int, problem: ProblemType = SINGLE) -> Dataset:
    """The label is yes where the last two words are in the order of the alphabet: it takes pairs of neighbours."""
    rng = random.Random(seed)
    examples = []
    for _ in range(n):
        a, b = rng.sample(["ba", "de", "fi", "go", "ku", "la", "me", "ni"], 2)
        examples.append(Example(f"the film {a} {b}", (LABELS[a < b],)))
    return Dataset("pairs", examples, problem, [], str(seed))


def run_of(problem: ProblemType = SINGLE) -> Run:
    """A network that has learned nothing."""
    parts = {"train": pairs_that_decide(3000, 0, problem), "dev": pairs_that_decide(300, 1, problem)}
    run = set_up(TINY, parts, None, CPU, LABELS)
    run.classifier.eval()
    return run


@pytest.fixture(scope="module", params=[SINGLE, MULTI])
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A bundle with n-grams, of an encoder that was trained for one epoch."""
    out = tmp_path_factory.mktemp("ngrams") / "b"
    config = replace(TINY, ngrams=True, epochs=1, weights="fp16")
    rows, dev = pairs_that_decide(3000, 0, request.param), pairs_that_decide(300, 1, request.param)
    train(config, rows, dev, None, out, device=CPU)
    return out


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def table(*lines: tuple[int, list[float]], bias: Sequence[float] = (0.0,)) -> NGrams:
    keys, numbers = zip(*lines, strict=True)
    return NGrams(torch.tensor(keys), torch.tensor(numbers), torch.tensor(bias), vocab_size=10)


def test_a_row_has_the_sum_of_its_tokens_and_pairs_over_the_root_of_their_squares() -> None:
    ngrams = table(
        (5, [1.0, -1.0, 4.0]), (6, [0.0, 2.0, 9.0]), (66, [5.0, 0.0, 3.0]), bias=(0.5, 0.25)
    )  # 66: 5 before 6
    logits = ngrams(make_batch(ROWS, "padded"))
    expected = torch.tensor([[6 / 4, 1 / 4], [0, 2 / 3], [7 / 20**0.5, 0]]) + torch.tensor([0.5, 0.25])
    torch.testing.assert_close(logits, expected)


def test_a_row_of_nothing_that_is_known_has_nothing_and_no_row_sees_its_neighbour() -> None:
    ngrams = table((25, [3.0, 3.0, 1.0]), (99, [9.0, 9.0, 1.0]))  # 25: 1 before 5
    rows = [Row([1]), Row([5, 9, 8])]
    assert ngrams(make_batch(rows, "varlen")).tolist() == [[0, 0], [0, 0]]
    assert ngrams(make_batch([Row([1, 5])], "varlen")).tolist() == [[3, 3]]


def test_the_layout_of_a_pass_makes_no_difference() -> None:
    ngrams = table((5, [1.0, 0.5]), (6, [0.25, 2.0]), (66, [5.0, 3.0]))
    padded, packed, varlen = (ngrams(make_batch(ROWS, layout)) for layout in ("padded", "packed", "varlen"))
    torch.testing.assert_close(padded, packed)
    torch.testing.assert_close(padded, varlen)
    of_graph = ngrams(varlen_batch(*fill(make_batch(ROWS, "varlen"), 64), longest=64))  # with rows of no token
    torch.testing.assert_close(padded, of_graph[: len(ROWS)])
    assert of_graph.isfinite().all()


def test_what_the_tokens_add_is_what_the_row_has() -> None:
    ngrams = table((5, [1.0, 0.5]), (6, [0.25, 2.0]), (66, [5.0, 3.0]))
    batch = make_batch(ROWS[2:], "varlen")
    of_tokens = ngrams.of_tokens(batch)
    torch.testing.assert_close(of_tokens.sum(0, keepdim=True), ngrams(batch))
    assert of_tokens[:, 0].tolist() == pytest.approx([x / 6**0.5 for x in (0, 1, 3.5, 2.75, 0, 0)])


@pytest.mark.parametrize("problem", [SINGLE, MULTI])
def test_the_network_says_what_encoder_and_line_say_each_as_far_as_it_is_heard(problem: ProblemType) -> None:
    run = run_of(problem)
    rows = run.rows(run.dev)
    of_encoder = forward_rows(run.classifier, rows)
    kept = add_ngrams(run)
    assert kept is not None
    both = forward_rows(run.classifier, rows)
    by_line = fit_line(run.train, run.dev, LABELS, TokenGrams(run)).margins(run.dev.texts)
    expected = kept["heard"] * by_line + kept["encoder_heard"] * of_encoder + kept["offset"]
    assert both == pytest.approx(expected, abs=1e-4)
    right = (both > 0) == targets(run.dev, LABELS) if problem == MULTI else both.argmax(1) == targets(run.dev, LABELS)
    assert right.mean() > 0.9


def test_features_are_tf_idf_of_tokens_and_pairs() -> None:
    run = run_of()
    texts = ["ba de", "ba fi", "the ba ba"]
    features = TokenGrams(run)
    features.fit_transform(texts)
    rows = features.transform([*texts, "go", ""]).toarray()
    theirs = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+").fit(texts)
    expected = theirs.transform([*texts, "go", ""]).toarray()
    assert sorted(rows[0]) == pytest.approx(sorted(expected[0]))
    assert sorted(rows[1]) == pytest.approx(sorted(expected[1]))
    assert np.count_nonzero(rows[2]) == 4  # the, ba, the ba, ba ba
    assert rows[2].max() / rows[2][rows[2] > 0].min() == pytest.approx(2 / (1 + np.log(2)))  # ba twice, over the
    assert not rows[3:].any()


def test_of_a_label_without_training_rows_the_ngrams_say_nothing() -> None:
    run = run_of()
    run = replace(run, labels=[*LABELS, "new"], classifier=Classifier(run.classifier.config, num_labels=3).eval())
    rows = run.rows(run.dev)
    of_encoder = forward_rows(run.classifier, rows)
    kept = add_ngrams(run)
    assert kept is not None
    assert forward_rows(run.classifier, rows)[:, 2] == pytest.approx(kept["encoder_heard"] * of_encoder[:, 2], abs=1e-5)


def test_texts_of_unknown_tokens_alone_have_no_ngrams(capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of()
    unknown = [Example("שלום", example.labels) for example in run.train.examples]
    run = replace(run, train=replace(run.train, examples=unknown))
    assert add_ngrams(run) is None
    assert run.classifier.ngrams is None
    assert "no token but special ones" in capsys.readouterr().err


def test_ngrams_and_balanced_labels_are_refused_together() -> None:
    with pytest.raises(ValueError, match="ngrams=true undoes class_weights=balanced"):
        TrainConfig(ngrams=True, class_weights="balanced")


def test_a_candidate_has_ngrams_where_production_has_them(folder: Path) -> None:
    production = load_bundle(folder)
    assert settings_of(TrainConfig(), production).ngrams
    assert production.manifest is not None
    plain = replace(production, manifest=replace(production.manifest, made_by={}))
    assert not settings_of(TrainConfig(), plain).ngrams
    assert settings_of(TrainConfig(ngrams=True), plain).ngrams


def test_no_ngram_has_a_special_token_and_the_rarest_are_left_out_where_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = run_of()
    features = TokenGrams(run)
    assert (features.fit_transform(run.train.texts) != features.transform(run.train.texts)).nnz == 0
    before, last = np.divmod(features.keys, run.classifier.config.vocab_size)
    special = run.tokenizer.special_ids
    assert not np.isin(last, special).any()
    assert not np.isin(before - 1, special).any()
    monkeypatch.setattr("training.ngrams.MAX_NUMBERS", 90)
    fewer = TokenGrams(run)
    fewer.fit_transform(run.train.texts)
    assert len(fewer.keys) == 30
    assert {*fewer.keys} < {*features.keys}
    assert fewer.idf.max() <= np.sort(features.idf)[29]


def test_a_bundle_with_ngrams_is_loaded_as_it_was_made_and_says_that_it_has_them(folder: Path) -> None:
    bundle = load_bundle(folder)  # the probes are checked
    assert bundle.manifest is not None
    assert bundle.classifier.ngrams is not None
    assert "how far its n-grams are heard" in (folder / "README.md").read_text(encoding="utf-8")
    assert "ngrams" not in "".join(bundle.manifest.made_by["linear"]["why"])  # what is to be tried
    kept = bundle.manifest.made_by["ngrams"]
    assert kept["n"] == len(bundle.classifier.ngrams.keys)
    assert bundle.manifest.metrics["dev"]["accuracy"] > 0.9
    assert f"{kept['n']:,} tokens and pairs" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_loaded_table_is_not_a_view_of_its_file(copy: Path) -> None:
    bundle, file = load_bundle(copy), copy / "model.safetensors"
    assert bundle.classifier.ngrams is not None
    before = [tensor.clone() for tensor in bundle.classifier.ngrams.buffers()]
    with file.open("r+b") as written:
        written.write(bytes(file.stat().st_size))
    assert all(map(torch.equal, before, bundle.classifier.ngrams.buffers()))


def test_transformers_reads_the_encoder_alone(folder: Path) -> None:
    bundle, texts = load_bundle(folder), [str(text) for text in pairs_that_decide(5, 2).texts]
    rows = bundle.tokenizer.encode(texts, bundle.max_tokens)
    assert bundle.classifier.ngrams is not None
    mine = forward_rows(bundle.classifier, rows) - bundle.classifier.ngrams(make_batch(rows, "varlen")).numpy()
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        theirs = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.float()
    torch.testing.assert_close(torch.from_numpy(mine), theirs, rtol=0, atol=1e-2)


def test_an_encoder_that_is_trained_further_leaves_its_ngrams_behind(folder: Path, tmp_path: Path) -> None:
    config = TrainConfig(max_tokens=32, epochs=1, made_texts=0)
    train(config, pairs_that_decide(60, 0), None, None, tmp_path / "b", init=folder, device=CPU)
    assert load_bundle(tmp_path / "b").classifier.ngrams is None


def test_as_a_cpu_runs_it_fastest_it_shares_the_table(folder: Path) -> None:
    bundle = load_bundle(folder)
    classifier = bundle.classifier.requires_grad_(False)
    fast = pack(classifier)
    assert classifier.ngrams is not None
    assert fast.ngrams is not None
    assert fast.ngrams.table.data_ptr() == classifier.ngrams.table.data_ptr()
    rows = bundle.tokenizer.encode([str(text) for text in pairs_that_decide(20, 2).texts], bundle.max_tokens)
    expected = forward_rows(classifier, rows)
    assert forward_rows(fast, rows) == pytest.approx(expected, abs=1e-4)
    assert forward_rows(quantize(classifier, rows), rows) == pytest.approx(expected, abs=0.1)


def test_an_explanation_adds_up_with_what_the_ngrams_say(folder: Path) -> None:
    bundle, text = load_bundle(folder), "the film ba la"
    spans = bundle.tokenizer.spans(text, bundle.max_tokens)
    [row] = bundle.tokenizer.encode([text], bundle.max_tokens)
    blank = masked(row, spans, bundle.tokenizer)
    why = explain(bundle.classifier, row, blank, 1)
    of_blank, of_text = (float(z[1] - z[0]) for z in forward_rows(bundle.classifier, [blank, row]))
    assert abs(why.gap) <= TOLERANCE
    assert sum(why.scores) + why.gap == pytest.approx(of_text - of_blank, abs=1e-3)
    assert why.scores[0] == why.scores[-1] == 0
    assert max(why.scores[-3:-1]) > max(why.scores[1:3])  # the last two words decide


def test_of_three_labels_an_explanation_adds_up_with_the_bias_too() -> None:
    torch.manual_seed(0)
    classifier = Classifier(run_of().classifier.config, num_labels=3).eval()
    for parameter in classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    lines = [(5, [1.0, -1.0, 0.5, 4.0]), (6, [0.0, 2.0, -3.0, 9.0]), (66, [5.0, 0.0, 1.0, 3.0])]
    classifier.ngrams = table(*lines, bias=(4.0, -2.0, 0.0))
    text, blank = ROWS[0], replace(ROWS[0], ids=[1, 3, 3, 2])
    why = explain(classifier, text, blank, 0)
    of_blank, of_text = (z[0] - np.logaddexp(z[1], z[2]) for z in forward_rows(classifier, [blank, text]))
    assert abs(why.gap) <= TOLERANCE
    assert sum(why.scores) + why.gap == pytest.approx(of_text - of_blank, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("ngrams.table"), "no weight named ngrams.table"),
        (lambda w: w.update({"ngrams.keys": w["ngrams.keys"].flip(0)}), "ngrams.keys must be whole numbers from 0"),
        (lambda w: w.update({"ngrams.keys": w["ngrams.keys"].float()}), "ngrams.keys must be whole numbers from 0"),
        (lambda w: w.update({"ngrams.keys": w["ngrams.keys"][:0].clone()}), "ngrams.keys must be whole numbers from 0"),
        (lambda w: w["ngrams.keys"][0].fill_(-1), "ngrams.keys must be whole numbers from 0"),
        (lambda w: w.update({"ngrams.bias": w["ngrams.bias"][:1].clone()}), "shape of ngrams.bias must be"),
        (lambda w: w.update({"ngrams.table": w["ngrams.table"].to(torch.int8)}), "ngrams.table must hold numbers"),
        (lambda w: w.update({"ngrams.table": w["ngrams.table"][:, :2].clone()}), "shape of ngrams.table must be"),
        (lambda w: w["ngrams.table"][0, 0].fill_(float("nan")), "ngrams.table must hold numbers"),
        (lambda w: w["ngrams.table"][0, -1].fill_(0), "squares in its last column"),
    ],
)
def test_a_table_that_is_none_is_refused_by_name(copy: Path, change: Any, message: str) -> None:
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BundleError, match=re.escape(message)):
        load_bundle(copy)
