"""Texts that are too long: cut, refused, or read in windows that are pooled."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from model.scores import MULTI
from service.answers import answer_texts, read_texts, rows_of
from service.errors import Failed, PairTooLong, ServiceError, TooManyTokens
from service.scored import Scored

if TYPE_CHECKING:
    from model.bundle import Bundle
    from service.schemas import OnLong

LONG = "good film " * 100  # 202 tokens, four windows of 64


def results(n: int) -> list[Scored | ServiceError]:
    return [Scored([float(i), -1.0], [0.5, 0.5], None) for i in range(n)]


def test_a_text_that_fits_is_one_row_whatever_on_long_says(bundle: Bundle) -> None:
    ways: tuple[OnLong, ...] = ("truncate", "error", "window")
    first, *others = [read_texts(bundle, ["a film", ("a", "b")], on_long) for on_long in ways]
    assert all(other == first for other in others)


def test_every_text_gets_the_results_of_its_own_rows(bundle: Bundle) -> None:
    readings = read_texts(bundle, ["a", LONG, ("good " * 50, LONG), "b"], "window")
    assert isinstance(readings[2], PairTooLong)
    assert [row.tokens for row in rows_of(readings)] == [3, 64, 64, 64, 64, 3]
    short, long, refused, last = answer_texts(bundle, readings, results(6))
    assert isinstance(refused.result, PairTooLong)
    assert [scored.logits[0] for _, scored in long.windows] == [1, 2, 3, 4]
    assert [a.result.logits[0] for a in (short, long, last) if isinstance(a.result, Scored)] == [0, 2.5, 5]
    assert (short.tokens, long.tokens, refused.rows) == (3, 202, [])


def test_pooled_logits_are_calibrated_as_those_of_any_text(bundle: Bundle) -> None:
    [answer] = answer_texts(bundle, read_texts(bundle, [LONG], "window"), results(4))
    assert isinstance(answer.result, Scored)
    expected = 1 / (1 + np.exp(-2.5 / bundle.calibration.temperature))
    assert answer.result.logits == [1.5, -1]
    assert answer.result.scores[0] == pytest.approx(expected, abs=1e-5)


def test_a_text_has_a_label_that_one_of_its_windows_has_where_labels_are_independent(bundle: Bundle) -> None:
    bundle = replace(bundle, problem_type=MULTI)
    [answer] = answer_texts(bundle, read_texts(bundle, [LONG], "window"), results(4))
    assert isinstance(answer.result, Scored)
    assert answer.result.logits == [3, -1]


def test_where_one_window_fails_the_text_fails_alone(bundle: Bundle) -> None:
    readings = read_texts(bundle, [LONG, "a"], "window")
    passed = results(5)
    passed[2] = Failed()
    long, short = answer_texts(bundle, readings, passed)
    assert isinstance(long.result, Failed)
    assert isinstance(short.result, Scored)


def test_a_text_that_is_refused_costs_no_row(bundle: Bundle) -> None:
    readings = read_texts(bundle, [LONG, "a"], "error")
    assert isinstance(readings[0], TooManyTokens)
    assert [row.tokens for row in rows_of(readings)] == [3]
