"""What is hidden and changed in training rows (training/augment.py), and that a run learns from them all the same."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

import torch
from samples import TINY, rows

from model.batch import make_batch
from model.bundle import load_bundle
from model.tokens import Row
from training.augment import edit_rows, mask_tokens
from training.data import read_dataset
from training.train import train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SPECIAL = {1, 2, 3}


def test_words_are_hidden_and_what_frames_them_is_not(bundle_folder: Path) -> None:
    tokenizer = load_bundle(bundle_folder).tokenizer
    row = tokenizer.encode(["the film was good " * 20], 128)[0]
    batch = make_batch([row], "padded")
    mask_tokens(batch, 0.5, tokenizer)
    hidden = [i for i, (now, before) in enumerate(zip(batch.ids.tolist(), row.ids, strict=True)) if now != before]
    assert 20 < len(hidden) < 60
    assert {int(batch.ids[i]) for i in hidden} == {tokenizer.mask_id}
    assert 0 not in hidden
    assert row.tokens - 1 not in hidden


def test_an_edited_row_keeps_its_frame_and_has_only_words_of_its_own() -> None:
    words = list(range(100, 300))
    [row] = edit_rows([Row([2, *words, 3])], 0.2, SPECIAL, (0, 7))
    assert (row.ids[0], row.ids[-1]) == (2, 3)
    kept = row.ids[1:-1]
    assert len(set(kept)) == len(kept)
    assert set(kept) < set(words)
    assert 160 < len(kept) < 195
    assert 5 < sum(later < earlier for earlier, later in itertools.pairwise(kept)) < 40


def test_the_texts_of_a_pair_stay_apart() -> None:
    pair = Row([2, *range(100, 140), 3, *range(200, 240), 3], [0] * 42 + [1] * 41)
    [row] = edit_rows([pair], 0.5, SPECIAL, (0, 0))
    assert row.types is not None
    assert [token >= 200 for token in row.ids if token >= 100] == [
        kind == 1 for kind, token in zip(row.types, row.ids, strict=True) if token >= 100
    ]
    assert row.types == sorted(row.types)


def test_no_text_is_left_without_a_word() -> None:
    rows = [Row([2, 100, 3]), Row([2, 3])] * 50
    assert edit_rows(rows, 0.99, SPECIAL, (0, 0)) == rows


def test_edits_are_the_same_for_a_seed_and_others_for_the_next() -> None:
    rows = [Row([2, *range(100, 150), 3])]
    assert edit_rows(rows, 0.3, SPECIAL, (0, 1)) == edit_rows(rows, 0.3, SPECIAL, (0, 1))
    assert edit_rows(rows, 0.3, SPECIAL, (0, 1)) != edit_rows(rows, 0.3, SPECIAL, (0, 2))
    assert edit_rows(rows, 0.0, SPECIAL, (0, 1)) == rows


def test_a_run_learns_from_edited_rows_that_it_reads_twice(write_jsonl: Callable[..., Path], tmp_path: Path) -> None:
    data = read_dataset(write_jsonl(rows(400)))
    config = dataclasses.replace(TINY, edits=0.1, r_drop=1.0)
    _, held_out = train(config, data, None, None, tmp_path / "b", device=torch.device("cpu"))
    assert held_out["dev"].accuracy.value > 0.9
