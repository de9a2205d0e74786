"""What new labels have to be, before anything learns from them (training/intake.py)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from samples import rows

from training.data import DataError, read_dataset
from training.duplicates import normal
from training.intake import Intake, take_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LABELS = ["negative", "positive"]
HELD = "a long text about the town, its two people and their dog, which nobody learns from"


@pytest.fixture
def take(write_jsonl: Callable[..., Path]) -> Callable[..., Intake]:
    """take_in() of new rows, with some known and one held out."""
    learned = read_dataset(write_jsonl([{"text": "seen", "label": "positive"}, *rows(300)]))
    hold_out = read_dataset(write_jsonl([{"text": HELD, "label": "negative"}]))

    def take_rows(new: list[dict[str, object]], *, allow_new_labels: bool = False) -> Intake:
        known = {normal(e.text): e.labels for e in learned.examples}
        return take_in(
            [read_dataset(write_jsonl(new), bad_rows="skip")],
            known,
            learned,
            hold_out,
            LABELS,
            allow_new_labels=allow_new_labels,
        )

    return take_rows


def one(text: str, label: str = "positive") -> dict[str, object]:
    return {"text": text, "label": label}


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        ([one("what", "mixed")], "unknown label, --allow-new-labels takes it in: mixed"),
        ([one(HELD.upper())], "held out, or nearly a text that is: line 1 of the hold-out"),
        ([one(HELD.replace("two", "three"))], "held out, or nearly a text that is: line 1 of the hold-out"),
        ([one("new"), one("New", "negative")], "several labels for one text: negative, positive"),
        ([one("Seen")], "known already"),
    ],
)
def test_a_row_that_is_not_taken_in_has_its_reason(
    take: Callable[..., Intake], new: list[dict[str, object]], reason: str
) -> None:
    taken = take([*new, one("something else")])
    assert [str(e.text) for e in taken.accepted] == ["something else"]
    assert {row.reason for row in taken.quarantined} == {reason}


def test_a_row_that_repeats_another_is_taken_in_once(take: Callable[..., Intake]) -> None:
    taken = take([one("new"), one("new")])
    assert len(taken.accepted) == 1
    assert taken.reasons() == {"known already": 1}


def test_a_known_text_with_another_label_is_a_correction(take: Callable[..., Intake]) -> None:
    assert len(take([one("seen", "negative")]).accepted) == 1


def test_new_labels_come_after_those_that_there_are(take: Callable[..., Intake]) -> None:
    taken = take([one("a", "mixed"), one("b", "awful"), one("c", "mixed")], allow_new_labels=True)
    assert taken.labels == ["negative", "positive", "mixed", "awful"]
    assert len(taken.accepted) == 3


def test_what_is_no_row_is_counted(take: Callable[..., Intake]) -> None:
    taken = take([one("a"), {"label": "positive"}])
    assert taken.reasons() == {"no row": 1}
    assert len(taken.accepted) == 1


def test_labels_of_another_kind_are_refused(take: Callable[..., Intake]) -> None:
    with pytest.raises(DataError, match="labels of another kind than the model: multi_label"):
        take([{"text": "a", "labels": ["positive"]}])


def test_labels_that_were_drawn_by_lot_are_doubted(take: Callable[..., Intake]) -> None:
    def flipped(share: float) -> list[dict[str, object]]:
        rng = random.Random(0)
        other = {"positive": "negative", "negative": "positive"}
        return [
            row | {"label": other[str(row["label"])] if rng.random() < share else row["label"]}
            for row in rows(400, seed=3)
        ]

    honest, careless = take(flipped(0.02)).doubted, take(flipped(0.4)).doubted
    assert honest is not None
    assert careless is not None
    assert honest < 0.1
    assert careless > 0.25


def test_other_shares_of_labels_are_seen(take: Callable[..., Intake]) -> None:
    assert take([one(f"text {i}") for i in range(200)]).moved is not None
    assert take(rows(200, seed=4)).moved is None
