"""The linear line beside an encoder: what it learns from, how sure the difference is, what a user is told."""

from __future__ import annotations

import dataclasses
import json
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from accuracy import Set, row
from samples import BAD, GOOD, rows, sentence

from model.scores import MULTI, SINGLE, Calibration
from training import linear
from training.comparison import Facts, compare, conclusion, is_learning, reasons
from training.data import Dataset, Example, targets
from training.evaluate import score
from training.linear import (
    agreement,
    answers_of,
    best_label,
    choose_grams,
    cross_given,
    fit_line,
    fit_thresholds,
    sample,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from model.scores import ProblemType
    from model.tokens import Text

ENGLISH, CHINESE = "a lovely film about two dogs", "送餐很快，味道也不错，下次还会点"


def dataset(examples: Sequence[tuple[Text, tuple[str, ...]]], problem: ProblemType = SINGLE) -> Dataset:
    return Dataset("data", [Example(text, labels) for text, labels in examples], problem, [], "")


def moods(n: int, seed: int = 0) -> Dataset:
    return dataset([(str(row["text"]), (str(row["label"]),)) for row in rows(n, seed)])


def test_the_line_learns_words_that_decide_and_is_the_same_each_time() -> None:
    held_out = moods(300, seed=1)
    data = {"dev": moods(200, seed=2), "test": held_out}
    labels = ["negative", "positive"]
    first, second = (answers_of(fit_line(moods(400), data["dev"], labels), data, labels)["test"] for _ in range(2))
    assert agreement(first, targets(held_out, ["negative", "positive"])) > 0.95
    assert (first == second).all()


def test_features_follow_how_the_texts_are_written() -> None:
    assert choose_grams([ENGLISH]) == ["words"]
    assert choose_grams([CHINESE, CHINESE + "OK"]) == ["characters"]
    assert choose_grams([ENGLISH, CHINESE]) == ["words", "characters"]
    assert choose_grams(["12:30", "!!"]) == ["characters"]


def test_chinese_is_told_apart_without_spaces() -> None:
    rng = random.Random(0)
    words = {"好": ["不错", "很快", "好吃"], "差": ["难吃", "太慢", "凉了"]}
    texts = [(f"外卖{rng.choice(words[label])}的一家店", (label,)) for label in "好差" * 60]
    line = fit_line(dataset(texts[:80]), dataset(texts[80:]), ["好", "差"])
    assert best_label(line.margins(["东西难吃", "味道不错"])).tolist() == [1, 0]


def test_both_texts_of_a_pair_are_read() -> None:
    rng = random.Random(0)
    pairs = [
        ((sentence(rng, GOOD + BAD, 5), sentence(rng, words, 5)), (label,))
        for words, label in [(GOOD, "yes"), (BAD, "no")] * 150
    ]
    held_out = dataset(pairs[200:])
    line = fit_line(dataset(pairs[:200]), held_out, ["no", "yes"])
    said = answers_of(line, {"dev": held_out}, ["no", "yes"])
    assert agreement(said["dev"], targets(held_out, ["no", "yes"])) > 0.95


def test_labels_of_a_list_are_given_from_thresholds_of_their_own() -> None:
    labels = ["dull", "good"]
    texts = [(str(r["text"]), ("good",) if r["label"] == "positive" else ()) for r in rows(400)]
    rare = [
        (text + " yawn", (*given, "dull")) if i % 20 == 0 else (text, given) for i, (text, given) in enumerate(texts)
    ]
    test = dataset([("a good story", ("good",)), ("a bad story yawn", ("dull",))], MULTI)
    dev = dataset(rare[200:], MULTI)
    said = answers_of(fit_line(dataset(rare[:200], MULTI), dev, labels), {"dev": dev, "test": test}, labels)
    assert said["test"].tolist() == [[False, True], [True, False]]


def test_a_threshold_is_where_f1_is_best_and_takes_equal_margins_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "SHRINK", 0)
    margins = np.array([[0.9], [0.5], [0.5], [0.5], [0.5]])
    truth = np.array([[True], [True], [False], [False], [False]])
    assert fit_thresholds(margins, truth).tolist() == [0.9]  # all four of 0.5 cost more than they bring
    assert fit_thresholds(margins[:3], truth[:3]).tolist() == [0.5]


def test_thresholds_of_dev_are_not_fitted_on_the_rows_they_judge() -> None:
    rng = np.random.default_rng(0)
    margins, noise = rng.normal(size=(200, 20)), rng.random((200, 20)) < 0.05
    fitted = agreement(margins >= fit_thresholds(margins, noise), noise)
    assert agreement(cross_given(margins, noise), noise) < fitted


def test_of_too_many_rows_a_sample_keeps_the_rare_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "MAX_ROWS", 300)
    data = dataset([(f"text {i}", ("rare" if i % 1000 == 7 else "often",)) for i in range(5000)])
    taken = sample(data, 10**6)
    assert len(taken) == 300
    assert sum(data.examples[i].labels == ("rare",) for i in taken) == 5
    assert taken == sample(data, 10**6)
    assert len(sample(data, 1000)) < 120
    assert sample(data.subset("few", data.examples[:300]), 10**6) == list(range(300))


def test_a_difference_is_significant_where_the_same_rows_show_it() -> None:
    truth = np.zeros(1000, dtype=np.int64)
    linear_line = (np.arange(1000) < 200).astype(np.int64)
    better = (np.arange(1000) < 180).astype(np.int64)  # right on 20 rows more, wrong on none of the others
    found = compare(better, linear_line, truth)
    assert (found.encoder, found.linear, found.verdict) == (0.82, 0.8, "above")
    assert 0 < found.difference.low < 0.02 < found.difference.high
    assert compare(linear_line, better, truth).verdict == "below"
    other = (np.arange(1000) >= 820).astype(np.int64)  # as good as `better`, on other rows
    assert compare(other, linear_line, truth).verdict == "neither"


def test_independent_labels_are_compared_by_the_macro_f1_of_an_evaluation() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((300, 3)) < 0.3
    good, poor = (truth ^ (rng.random(truth.shape) < share) for share in (0.05, 0.3))
    found = compare(good, poor, truth)
    assert found.figure == "macro_f1"
    for given, value in ((good, found.encoder), (poor, found.linear)):
        evaluation = score(given.astype(np.float32), truth, ["a", "b", "c"], Calibration())
        assert value == pytest.approx(evaluation.macro_f1.value)
    assert found.verdict == "above"


LOST = Facts(
    rows=500,
    labels=10,
    from_scratch=True,
    lacks_ngrams=True,
    epochs=3,
    best_epoch=3,
    is_learning=True,
    max_tokens=64,
    cut=0.5,
    verdicts=[("above", 400), ("neither", 300)],
)


def test_an_encoder_that_does_not_win_is_told_what_to_try() -> None:
    told = "\n".join(reasons(LOST))
    for advice in (
        "--init minilm",
        "--set ngrams=true",
        "500 rows are few for 10 labels",
        "epochs=6",
        "max_tokens=128",
        "300 held-out rows",
    ):
        assert advice in told
    plain = dataclasses.replace(
        LOST, rows=5000, from_scratch=False, lacks_ngrams=False, best_epoch=1, is_learning=False, cut=0.0
    )
    [why] = reasons(dataclasses.replace(plain, verdicts=[("below", 300)]))
    assert "best after epoch 1 of 3" in why
    [why] = reasons(dataclasses.replace(plain, verdicts=[("below", 300)], best_epoch=3))
    assert "a larger encoder" in why
    assert reasons(dataclasses.replace(LOST, verdicts=[("above", 300)])) == []


@pytest.mark.parametrize(
    ("merits", "expected"),
    [([-0.9, -0.5], True), ([-0.5, -0.499], False), ([-0.5, -0.6], False), ([-0.7], True), ([-0.1, 0.0], True)],
)
def test_an_encoder_is_still_learning_if_its_last_epoch_gave_much(merits: list[float], expected: bool) -> None:
    assert is_learning([{"merit": merit} for merit in merits]) is expected


def test_a_bundle_keeps_the_linear_line_it_was_compared_with(bundle_folder: Path) -> None:
    manifest = json.loads((bundle_folder / "heed.json").read_text())
    kept = manifest["metrics"]["dev"]["linear"]
    assert kept["encoder"] == manifest["metrics"]["dev"]["accuracy"]
    assert kept["linear"] > 0.9
    assert manifest["made_by"]["linear"]["rows"] == manifest["made_by"]["data"]["train"]["rows"]
    assert json.loads((bundle_folder / "report" / "metrics.json").read_text())["dev"]["linear"] == kept
    card = (bundle_folder / "README.md").read_text()
    assert "Against the linear line" in card
    assert f"| {kept['linear']:.4f} |" in card


def test_the_accuracy_table_is_made_of_what_a_bundle_keeps(bundle_folder: Path) -> None:
    manifest = json.loads((bundle_folder / "heed.json").read_text())
    found = row(bundle_folder, Set("mood", "dev", {"scratch": "0.9"}), "scratch")
    assert found["data"] == "mood dev"
    assert found["aim"] == "0.9"
    assert found["encoder"] == f"{manifest['metrics']['dev']['accuracy']:.4f}"
    assert found["the encoder is"] == manifest["metrics"]["dev"]["linear"]["verdict"]


def test_a_win_is_said_and_a_defeat_too() -> None:
    scores, truth = np.eye(2, dtype=np.float32)[[0, 1] * 50], np.array([0, 1] * 50)
    evaluation = score(scores, truth, ["a", "b"], Calibration())
    won = dataclasses.replace(evaluation, linear=compare(truth, 1 - truth, truth))
    lost = dataclasses.replace(evaluation, linear=compare(1 - truth, truth, truth))
    assert conclusion({"dev": won}, []) == "The encoder beats the linear line."
    assert conclusion({"dev": won, "test": lost}, ["few rows"]).startswith(
        "The encoder does not beat the linear line on test."
    )
