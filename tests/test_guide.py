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
from training.guide import OWN_LABEL, indicator, taught, vary
from training.linear import crossed_margins, fit_line, sides
from training.run import set_up
from training.teacher import teacher_logits
from training.train import identity_of, train

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from model.scores import ProblemType
    from model.tokens import Text
    from training.build import TrainConfig
    from training.guide import Guide
    from training.run import Run

CPU = torch.device("cpu")
LABELS = ["negative", "positive"]


def moods(n: int, seed: int = 0, problem: ProblemType = SINGLE) -> Dataset:
    return Dataset(
        "moods", [Example(str(r["text"]), (str(r["label"]),)) for r in rows(n, seed)], problem, [], str(seed)
    )


def words(texts: Sequence[Text]) -> set[str]:
    return {word for text in texts for side in sides(text) for word in side.split()}


def guided_by_line(train_set: Dataset, dev: Dataset, copies: int, labels: Sequence[str] = LABELS) -> Guide:
    config = replace(TINY, made_texts=copies)
    run = set_up(config, {"train": train_set, "dev": dev}, None, CPU, labels)
    guide = taught(run, fit_line(train_set, dev, labels), None).guide
    assert guide is not None
    return guide


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
    assert min(len({text[side] for text in made[::2]}) for side in (0, 1)) > 5


def test_some_texts_go_on_with_the_end_of_another() -> None:
    """Only so does one get longer."""
    made = [str(text).split() for text in vary(["one two three", "four five six"], 40, seed=0)]
    longer = [text for text in made if len(text) > 3]
    assert longer
    assert {text[-1] for text in longer} == {"three", "six"}
    assert {text[0] for text in longer} == {"one", "four"}


def test_a_row_says_its_own_label_and_a_made_text_what_the_line_says_of_it() -> None:
    train_set, dev = moods(400), moods(200, seed=1)
    guide = guided_by_line(train_set, dev, copies=2)
    assert len(guide.texts) == 800
    assert guide.truth.shape == (1200, 2)
    assert guide.truth.sum(axis=1) == pytest.approx(1, abs=1e-5)
    of_rows = guide.truth[:400][indicator(train_set, LABELS) == 1]
    assert (of_rows >= OWN_LABEL).all()
    lovely = [i for i, text in enumerate(guide.texts) if "lovely" in words([text]) and not words([text]) & {*BAD}]
    assert np.mean(guide.truth[400:][lovely, 1]) > 0.8


def test_independent_labels_each_have_a_probability() -> None:
    train_set, dev = moods(400, problem=MULTI), moods(200, seed=1, problem=MULTI)
    guide = guided_by_line(train_set, dev, copies=1)
    assert guide.truth.shape == (800, 2)
    assert ((guide.truth >= 0) & (guide.truth <= 1)).all()
    has = indicator(train_set, LABELS) == 1
    assert guide.truth[:400][has].min() >= OWN_LABEL
    assert guide.truth[:400][~has].max() <= 1 - OWN_LABEL


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


def test_of_a_row_the_line_says_what_it_would_without_it() -> None:
    """A wrong label is repeated by a line that has learned it, and so of texts made of its row."""
    train_set, dev = moods(300), moods(200, seed=1)
    wrong = [
        replace(e, text=f"{e.text} odd{i}", labels=tuple(set(LABELS) - set(e.labels)))
        for i, e in enumerate(train_set.examples[:30])
    ]
    spoiled = replace(train_set, examples=[*wrong, *train_set.examples[30:]])
    line = fit_line(spoiled, dev, LABELS)
    given = indicator(spoiled, LABELS)[:30].argmax(axis=1)
    crossed, known = crossed_margins(line, spoiled, LABELS), line.margins(spoiled.texts)
    assert (crossed[:30].argmax(axis=1) == given).mean() < 0.1 < (known[:30].argmax(axis=1) == given).mean()
    assert (crossed[30:].argmax(axis=1) == known[30:].argmax(axis=1)).mean() > 0.9


def test_a_label_that_only_some_rows_have_is_not_denied_by_a_line_that_has_not_seen_them() -> None:
    train_set = moods(100)
    rare = replace(train_set.examples[0], labels=("mixed",))
    data = replace(train_set, examples=[rare, *train_set.examples[1:]])
    labels = ["mixed", *LABELS]
    line = fit_line(data, moods(100, seed=1), labels)
    crossed = crossed_margins(line, data, labels)
    assert crossed[0, 0] == line.margins(data.texts[:1])[0, 0] > -5


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


def run_of(config: TrainConfig, teacher: Path, out: Path) -> Run:
    """What the loop would get."""
    seen: list[Run] = []

    def loop(run: Run, *rest: object, **more: object) -> NoReturn:
        seen.append(run)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train(config, moods(300), moods(200, seed=1), None, out, teacher=teacher, device=CPU, loop=loop)
    return seen[0]


def test_a_teacher_is_believed_as_far_as_dev_shows_that_it_is_right(bundle_folder: Path, tmp_path: Path) -> None:
    """One of flipped labels is right about nothing: what is said then is what the line says."""
    flipped = {"negative": "positive", "positive": "negative"}
    data = moods(300)
    contrary = replace(data, examples=[replace(e, labels=(flipped[e.labels[0]],)) for e in data.examples])
    train(TINY, contrary, None, None, tmp_path / "contrary", device=CPU)
    config = replace(TINY, made_texts=1)
    good, bad = (run_of(config, teacher, tmp_path / "b") for teacher in (bundle_folder, tmp_path / "contrary"))
    assert good.guide is not None
    assert bad.guide is not None
    by_line = guided_by_line(data, moods(200, seed=1), copies=1)
    assert bad.guide.truth == pytest.approx(by_line.truth, abs=0.05)
    assert np.abs(good.guide.truth - by_line.truth).max() > 0.1
    assert good.heard["teacher"] > 5 * bad.heard["teacher"]


def test_a_run_that_was_told_something_else_is_not_the_continuation(bundle_folder: Path, tmp_path: Path) -> None:
    run = run_of(replace(TINY, made_texts=1), bundle_folder, tmp_path / "b")
    other = replace(run, taught_by="another")
    same, differs = (identity_of(each, run.training_rows(), run.rows(run.dev), []) for each in (run, other))
    assert [key for key in same if same[key] != differs[key]] == ["teacher"]


def test_a_teacher_says_what_it_thinks_of_made_texts_too(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pupil that reads texts made of 60 rows comes closer to its teacher than one that reads the rows as often."""
    few, held_out = moods(60), moods(500, seed=2)
    teacher = load_bundle(bundle_folder)
    hers = teacher_logits(teacher, held_out.texts, LABELS, CPU, "auto").argmax(axis=1)
    agreed = {}
    for name, copies, epochs in (("alone", 0, 36), ("more", 8, 4)):
        config = replace(TINY, layers=1, made_texts=copies, epochs=epochs)
        train(config, few, moods(200, seed=1), None, tmp_path / name, teacher=bundle_folder, device=CPU)
        pupil = teacher_logits(load_bundle(tmp_path / name), held_out.texts, LABELS, CPU, "auto").argmax(axis=1)
        agreed[name] = np.mean(pupil == hers)
    assert agreed["more"] >= agreed["alone"]
    assert agreed["more"] > 0.9
