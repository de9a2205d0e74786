"""What the linear line teaches an encoder that starts from scratch, on texts made of the training texts."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pytest
import torch
from samples import BAD, TINY, rows

from model.bundle import load_bundle
from model.forward import forward_rows
from model.scores import MULTI, SINGLE
from training.data import Dataset, Example
from training.guide import OWN_LABEL, confident, make_guide, vary
from training.linear import fit_line, sides
from training.teacher import teacher_logits
from training.train import train

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from model.scores import ProblemType
    from model.tokens import Text
    from training.guide import Guide
    from training.train import Run

CPU = torch.device("cpu")
LABELS = ["negative", "positive"]


def moods(n: int, seed: int = 0, problem: ProblemType = SINGLE) -> Dataset:
    return Dataset(
        "moods", [Example(str(r["text"]), (str(r["label"]),)) for r in rows(n, seed)], problem, [], str(seed)
    )


def words(texts: Sequence[Text]) -> set[str]:
    return {word for text in texts for side in sides(text) for word in side.split()}


def guided_by_line(train_set: Dataset, dev: Dataset, copies: int, labels: Sequence[str] = LABELS) -> Guide:
    line = fit_line(train_set, dev, labels)
    texts = vary(train_set.texts, copies, seed=0)
    every, of_dev = (line.margins(some).astype(np.float32) for some in ([*train_set.texts, *texts], dev.texts))
    return make_guide(texts, confident(every, of_dev, dev, labels), train_set, labels)


def test_texts_are_made_of_words_that_occur_the_same_for_a_seed() -> None:
    texts = [str(row["text"]) for row in rows(50)]
    made = vary(texts, 3, seed=1)
    assert len(made) == 150
    assert made == vary(texts, 3, seed=1) != vary(texts, 3, seed=2)
    assert words(made) <= words(texts)
    assert all(made)
    assert len(set(made) - set(texts)) > 75


def test_words_without_spaces_between_them_change_places_too() -> None:
    made = vary(["送餐很快味道不错", "太慢了 OK 差"], 20, seed=0)
    assert {character for text in made for character in text} <= set("送餐很快味道不错太慢了 OK差")
    assert len(set(made)) > 20
    assert not any("OKOK" in text for text in made)


def test_both_texts_of_a_pair_are_varied_and_an_empty_one_stays() -> None:
    made = vary([("one two three", "four five six"), ("seven eight", "")], 20, seed=0)
    assert all(isinstance(text, tuple) for text in made)
    assert all(text[1] == "" for text in made[1::2])
    assert len(set(made[::2])) > 10


def test_a_row_says_its_own_label_and_a_made_text_what_the_line_says_of_it() -> None:
    train_set, dev = moods(400), moods(200, seed=1)
    guide = guided_by_line(train_set, dev, copies=2)
    assert len(guide.texts) == 800
    assert guide.truth.shape == (1200, 2)
    assert guide.truth.sum(axis=1) == pytest.approx(1, abs=1e-5)
    of_rows = guide.truth[:400].max(axis=1)
    assert (of_rows >= OWN_LABEL).all()
    lovely = [i for i, text in enumerate(guide.texts) if "lovely" in words([text]) and not words([text]) & {*BAD}]
    assert np.mean(guide.truth[400:][lovely, 1]) > 0.8


def test_independent_labels_each_have_a_probability() -> None:
    train_set, dev = moods(400, problem=MULTI), moods(200, seed=1, problem=MULTI)
    guide = guided_by_line(train_set, dev, copies=1)
    assert guide.truth.shape == (800, 2)
    assert ((guide.truth >= 0) & (guide.truth <= 1)).all()


def test_what_the_line_says_is_scaled_on_a_small_dev_set_too() -> None:
    """Its margins as they are would leave it unsure of texts that it is right about."""
    guide = guided_by_line(moods(400), moods(60, seed=1), copies=1)
    assert guide.truth[400:].max(axis=1).mean() > 0.8


def test_spaces_behind_a_text_cost_no_more_than_they_are_many() -> None:
    started = time.process_time()
    assert all(not str(text).endswith(" ") for text in vary(["a film" + " " * 200_000], 3, seed=0))
    assert time.process_time() - started < 20  # ten minutes, where each space was the start of another search


def test_a_label_that_no_row_has_is_never_likely() -> None:
    train_set, dev = moods(400), moods(200, seed=1)
    labels = ["mixed", *LABELS]
    guide = guided_by_line(train_set, dev, 1, labels)
    assert guide.truth[:, 0].max() < 0.01
    line = fit_line(train_set, dev, labels)
    assert (line.margins(["a lovely film", "an awful film"]).argmax(axis=1) == [2, 1]).all()


def test_of_independent_labels_one_that_no_row_has_is_on_no_texts_side_and_one_that_all_have_on_all() -> None:
    data = moods(200, problem=MULTI)
    both = replace(data, examples=[replace(e, labels=(*e.labels, "film")) for e in data.examples])
    margins = fit_line(both, both, ["film", "mixed", *LABELS]).margins(data.texts)
    assert (margins[:, 0] > 0).all()
    assert (margins[:, 1] < margins[:, 2:].min()).all()


def test_few_rows_teach_more_with_the_line_beside_them(tmp_path: Path) -> None:
    """From 60 rows, after as many steps: closer to the truth of 500 others."""
    few, held_out = moods(60), moods(500, seed=2)
    right = {}
    for name, copies, epochs in (("alone", 0, 36), ("guided", 8, 4)):
        config = replace(TINY, made_texts=copies, epochs=epochs)
        train(config, few, moods(200, seed=1), None, tmp_path / name, device=CPU)
        bundle = load_bundle(tmp_path / name)
        said = forward_rows(bundle.classifier, bundle.tokenizer.encode(held_out.texts, 64)).argmax(axis=1)
        right[name] = np.mean([bundle.labels[i] == e.labels[0] for i, e in zip(said, held_out.examples, strict=True)])
    assert right["guided"] >= right["alone"]
    assert right["guided"] > 0.9


def test_texts_are_labelled_by_the_teacher_where_there_is_one(tmp_path: Path) -> None:
    """A teacher of flipped labels says the opposite of the line."""
    flipped = {"negative": "positive", "positive": "negative"}
    data = moods(300)
    contrary = replace(data, examples=[replace(e, labels=(flipped[e.labels[0]],)) for e in data.examples])
    train(TINY, contrary, None, None, tmp_path / "contrary", device=CPU)

    class Seen(Exception):
        pass

    def loop(run: Run, *rest: object, **more: object) -> NoReturn:
        assert run.guide is not None
        teacher = teacher_logits(load_bundle(tmp_path / "contrary"), run.guide.texts, LABELS, CPU)
        assert (run.guide.truth[300:].argmax(axis=1) == teacher.argmax(axis=1)).all()
        raise Seen

    with pytest.raises(Seen):
        train(
            replace(TINY, made_texts=1), data, moods(200, seed=1), None, tmp_path / "b",
            teacher=tmp_path / "contrary", device=CPU, loop=loop,
        )  # fmt: skip


def test_a_teacher_says_what_it_thinks_of_made_texts_too(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pupil that reads texts made of 60 rows comes closer to its teacher than one that reads the rows as often."""
    few, held_out = moods(60), moods(500, seed=2)
    teacher = load_bundle(bundle_folder)
    hers = teacher_logits(teacher, held_out.texts, LABELS, CPU).argmax(axis=1)
    agreed = {}
    for name, copies, epochs in (("alone", 0, 36), ("more", 8, 4)):
        config = replace(TINY, layers=1, made_texts=copies, epochs=epochs)
        train(config, few, moods(200, seed=1), None, tmp_path / name, teacher=bundle_folder, device=CPU)
        pupil = teacher_logits(load_bundle(tmp_path / name), held_out.texts, LABELS, CPU).argmax(axis=1)
        agreed[name] = np.mean(pupil == hers)
    assert agreed["more"] >= agreed["alone"]
    assert agreed["more"] > 0.9
