"""Which texts to label next (service/label_queue.py, `heed label-queue`)."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from service.cli import main
from service.feedback_store import Answer, Label, Store, Unlabelled
from service.label_queue import choose

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def unlabelled(text: str, score: float) -> Unlabelled:
    return Unlabelled("r", 0, "mood", "positive", score, text)


def test_the_least_certain_come_first() -> None:
    scores = [0.9, 0.51, 0.99, 0.6]
    chosen = choose([unlabelled(f"text number {chr(97 + i)}{i}", score) for i, score in enumerate(scores)], 2)
    assert [one.score for one in chosen] == [0.51, 0.6]


def test_of_texts_that_are_alike_one_is_enough() -> None:
    alike = [unlabelled(f"my card was declined at the shop {i}", 0.5 + i / 1000) for i in range(20)]
    chosen = choose([*alike, unlabelled("where is my parcel", 0.8)], 2)
    assert [str(one.text).split()[0] for one in chosen] == ["my", "where"]


def test_equal_texts_are_one_and_fewer_than_asked_are_all() -> None:
    assert len(choose([unlabelled("the same", 0.6)] * 5, 10)) == 1
    assert choose([], 10) == []


def test_the_command_prints_kept_texts_that_nobody_labelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, now = Store(str(tmp_path / "labels.db"), wait_s=5), time.time()
    predictions = [("positive", 0.6), ("negative", 0.7), None]
    store.remember([Answer("r", "", now, "mood", "v1", predictions, ["one text", ("a", "pair"), "it failed"])])
    store.remember([Answer("s", "", now, "mood", "v1", [("positive", 0.55)], None)])
    store.keep(Label("r", "", 0, now, now, "mood", "v1", "negative", "positive", 0.6, "one text"))
    store.close()
    assert main(["label-queue", str(tmp_path / "labels.db"), "--model", "mood"]) == 0
    [row] = map(json.loads, capsys.readouterr().out.splitlines())
    assert row == {
        "text": "a",
        "text_pair": "pair",
        "request_id": "r",
        "index": 1,
        "model": "mood",
        "predicted": "negative",
        "score": 0.7,
    }
    assert main(["label-queue", str(tmp_path / "labels.db"), "--model", "none"]) == 0
    assert "heed serve --keep-text true" in capsys.readouterr().err
