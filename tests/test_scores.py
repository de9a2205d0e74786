"""Scores, their calibration and label sets."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from model.scores import (
    MULTI,
    SINGLE,
    Calibration,
    ProblemType,
    judge,
    label_sets,
    pool_windows,
    probabilities,
)


def test_scores_of_one_label_a_text_add_up_to_one_even_for_huge_logits() -> None:
    scores = probabilities(np.array([[1e4, -1e4], [-200.0, -100.0]], dtype=np.float32), SINGLE)
    np.testing.assert_allclose(scores, [[1, 0], [0, 1]], atol=1e-6)


def test_scores_of_independent_labels_are_sigmoids() -> None:
    scores = probabilities(np.array([[0.0, 1e4, -1e4, 2.0]], dtype=np.float32), MULTI)
    np.testing.assert_allclose(scores, [[0.5, 1, 0, 1 / (1 + np.exp(-2))]], atol=1e-6)


def test_a_single_logit_is_a_sigmoid() -> None:
    assert probabilities(np.array([[0.0]], dtype=np.float32), SINGLE)[0, 0] == 0.5


def test_without_a_fit_there_is_no_label_set() -> None:
    assert label_sets(np.ones((1, 2), dtype=np.float32), SINGLE, Calibration()) is None


def test_each_label_is_scaled_by_its_own_slope_and_offset() -> None:
    calibration = Calibration(slopes=(2.0, 0.5), offsets=(-1.0, 1.0))
    scores = probabilities(np.array([[1.0, -2.0]], dtype=np.float32), MULTI, calibration)
    np.testing.assert_allclose(scores, [[1 / (1 + np.exp(-1)), 0.5]], atol=1e-6)


def test_a_text_whose_highest_logit_is_under_the_threshold_is_abstained() -> None:
    logits = np.array([[1.9, -3.0], [-3.0, 2.1]], dtype=np.float32)
    judged = judge(logits, SINGLE, Calibration(false_alarms=0.05, scope_threshold=2.0))
    assert judged.abstained is not None
    assert judged.abstained.tolist() == [True, False]
    assert judge(logits, SINGLE, Calibration()).abstained is None


def test_a_calibration_survives_json() -> None:
    calibration = Calibration(slopes=(1.0, 2.0), offsets=(0.0, 1.0), thresholds=(0.5, 0.25), scope_threshold=1.0)
    assert Calibration.from_json(json.loads(json.dumps(asdict(calibration)))) == calibration


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"temperature": 0.0}, "temperature is not positive: 0.0"),
        ({"slopes": (1.0, 1.0)}, "there are only: slopes"),
        ({"thresholds": (0.5,)}, "thresholds are not one for each of the 2 labels: 1"),
        ({"slopes": (1.0, -1.0), "offsets": (0.0, 0.0)}, "a slope is not positive: -1.0"),
    ],
)
def test_a_calibration_that_cannot_be_of_these_labels_is_named(fields: dict[str, Any], fault: str) -> None:
    assert fault in (Calibration(**fields).fault(2) or "")


def test_independent_labels_are_given_from_their_thresholds_on() -> None:
    sets = label_sets(np.array([[0.4, 0.4]], dtype=np.float32), MULTI, Calibration(thresholds=(0.3, 0.5)))
    assert sets is not None
    assert sets.tolist() == [[True, False]]


WINDOWS = np.array([[1, -1], [4, 0], [-2, 4], [7, 8]], dtype=np.float32)


def test_windows_are_pooled_to_their_mean_and_independent_labels_to_their_maximum() -> None:
    np.testing.assert_array_equal(pool_windows(WINDOWS, [3, 1], SINGLE), [[1, 1], [7, 8]])
    np.testing.assert_array_equal(pool_windows(WINDOWS, [3, 1], MULTI), [[4, 4], [7, 8]])


@pytest.mark.parametrize("problem", [SINGLE, MULTI])
def test_a_text_of_one_window_is_pooled_to_itself_and_a_window_that_is_no_number_is_not_hidden(
    problem: ProblemType,
) -> None:
    np.testing.assert_array_equal(pool_windows(WINDOWS, [1] * 4, problem), WINDOWS)
    broken = np.array([[np.nan, 1], [0, 1]], dtype=np.float32)
    assert np.isnan(pool_windows(broken, [2], problem)[0, 0])
