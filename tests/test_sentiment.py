"""The model that comes with Heed is what its card says."""

from __future__ import annotations

import json
import re

import pytest
from samples import ROOT, SHARED_DATA

from model.bundle import load_bundle
from model.device import choose_device, has_int8
from service.predict import predict_texts
from service.predictor import Predictor
from service.settings import SENTIMENT
from training.data import read_dataset
from training.evaluate import evaluate


def test_it_is_small_enough_for_the_repository() -> None:
    assert sum(file.stat().st_size for file in SENTIMENT.rglob("*") if file.is_file()) <= 16_000_000


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_tells_praise_from_blame(precision: str) -> None:
    predictor = Predictor(load_bundle(SENTIMENT), choose_device("cpu"), precision)
    texts = ["a gorgeous, witty, seductive movie", "paper thin and boring"]
    best = [answer.labels[0].label for answer in predict_texts(predictor, texts, 1) if answer.labels]
    assert best == ["positive", "negative"]


def test_the_readmes_first_answer_is_its_answer() -> None:
    bundle = load_bundle(SENTIMENT)
    shown = json.loads((ROOT / "README.md").read_text().split("```json\n")[1].split("```")[0])
    request = "a gorgeous, witty, seductive movie"
    [answer] = predict_texts(Predictor(bundle, choose_device("cpu"), "bf16"), [request], None)
    assert shown["version"] == bundle.version
    [result] = shown["results"]
    served = answer.model_dump(exclude_none=True)
    assert [label["label"] for label in result["labels"]] == [label["label"] for label in served["labels"]]
    for mine, theirs in zip(served["labels"], result["labels"], strict=True):
        assert mine["score"] == pytest.approx(theirs["score"], abs=0.005)
    assert (result["label_set"], result["tokens"]) == (served["label_set"], served["tokens"])


def test_it_reads_quotes_digits_and_signs() -> None:
    tokenizer = load_bundle(SENTIMENT).tokenizer
    [row] = tokenizer.encode(['"great"! 98% of 2023 @ $5 <3 {hijack} 1976~'], 64)
    assert tokenizer.token_id("[UNK]") not in row.ids


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs a copy of SST-2 in ../shared/data/sst2_glue")
def test_the_readme_states_its_accuracy_on_sst2() -> None:
    bundle = load_bundle(SENTIMENT)
    assert bundle.manifest is not None
    evaluation = evaluate(bundle, read_dataset(SHARED_DATA / "sst2_glue" / "dev.jsonl.gz"))
    [stated] = re.findall(r"\| SST-2 dev \| 872 \| (\d\.\d+)", (ROOT / "README.md").read_text())
    assert evaluation.n == 872
    assert evaluation.accuracy.value == pytest.approx(float(stated), abs=0.003)
    assert f"{bundle.manifest.metrics['dev']['accuracy']:.4f}" in (SENTIMENT / "README.md").read_text()


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs a copy of SST-2 in ../shared/data/sst2_glue")
@pytest.mark.parametrize(("precision", "same"), [("bf16", 0.995), ("int8", 0.985)])
def test_it_gives_the_same_labels_in_every_precision(precision: str, same: float) -> None:
    if precision == "int8" and not has_int8():
        pytest.skip("this processor has no int8 products (VNNI, AMX)")
    texts = [example.text for example in read_dataset(SHARED_DATA / "sst2_glue" / "dev.jsonl.gz").examples]
    cpu = choose_device("cpu")
    exact, rounded = (
        [answer.labels[0].label for answer in predict_texts(Predictor(load_bundle(SENTIMENT), cpu, p), texts, 1)]  # type: ignore[index]
        for p in ("fp32", precision)
    )
    assert sum(a == b for a, b in zip(exact, rounded, strict=True)) >= same * len(texts)
