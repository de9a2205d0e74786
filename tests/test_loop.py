"""The story of benchmarks/loop.py with a small model: labels go in through HTTP, better models come out."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from loop import Cast, Row, story, went_wrong
from samples import BAD, GOOD, sentence

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SIZES = {"family": "bert", "layers": 2, "width": 32, "heads": 2, "feed_forward": 64, "vocab_size": 400}
SETTINGS = {
    "epochs": 6,
    "lr": 3e-3,
    "batch_rows": 32,
    "token_dropout": 0.0,
    "dropout": 0.1,
    "max_tokens": 64,
    "made_texts": 0,
}
NEW_GOOD, NEW_BAD = ["zesty", "crisp"], ["soggy", "stale"]


def arguments(settings: Mapping[str, object]) -> list[str]:
    return [f"--set={name}={value}" for name, value in settings.items()]


def labelled(n: int, good: list[str], bad: list[str], seed: int) -> list[Row]:
    rng = random.Random(seed)
    found = {sentence(rng, good if i % 2 else bad, rng.randrange(3, 14)): i % 2 for i in range(n)}
    return [{"text": text, "label": "positive" if kind else "negative"} for text, kind in found.items()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_labels_through_http_make_a_better_model_and_flipped_ones_none(tmp_path: Path) -> None:
    foods = [labelled(500, NEW_GOOD, NEW_BAD, seed) for seed in (1, 2, 3)]
    cast = Cast(labelled(2500, GOOD, BAD, 0), foods, labelled(200, NEW_GOOD, NEW_BAD, 4))
    sizes = {**SIZES, **SETTINGS, "word_vectors": False}
    learning = {name: value for name, value in SETTINGS.items() if name != "max_tokens"}
    rows = story(cast, tmp_path, arguments(sizes), [*arguments(learning), "--gate=ece_margin=0.1"])
    assert went_wrong(rows) == []
    assert rows[1]["new domain"] > 0.9
    assert rows[2]["decision"].startswith("refused: ")
    assert rows[-1]["answered"] > 100
