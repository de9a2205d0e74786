"""What the figures of benchmarks/ rest on: turns, ratios, exact passes, memory."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from limits import peak_bytes, rows_of
from timing import markdown, ratio, take_turns

from model.tokens import Row


def test_each_way_has_one_result_a_round_after_a_warm_up() -> None:
    clock = count()
    turns = take_turns({"a": lambda: next(clock), "b": lambda: next(clock)}, rounds=2)
    assert turns == {"a": [3, 4], "b": [2, 5]}  # 0 and 1 warm up, then the first place goes round


def test_a_round_that_was_slow_for_both_changes_no_ratio() -> None:
    assert ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == 2.0


def test_a_pass_has_exactly_the_tokens_asked_for() -> None:
    rows = rows_of([Row([1] * 7), Row([2] * 5)], tokens=30)
    assert [row.tokens for row in rows] == [7, 5, 7, 5, 6]


def test_peak_memory_is_what_was_held_at_once() -> None:
    x = torch.zeros(1 << 20)  # 4 MiB, held before
    assert peak_bytes(lambda: (x + 1) + (x + 2)) == pytest.approx(12 << 20, rel=0.01)


def test_a_table_says_what_was_not_measured() -> None:
    assert markdown([{"way": "a", "rate": 1234.5, "accuracy": None}]).endswith("| a | 1,234 | – |")
