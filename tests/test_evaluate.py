"""Metrics, against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from model.scores import Calibration
from training.evaluate import score
from training.intervals import wilson
from training.reliability import expected_calibration_error
from training.report import evaluation_text


def test_accuracy_f1_and_confusion_are_those_worked_out_by_hand() -> None:
    scores = np.eye(3, dtype=np.float32)[[0, 0, 1, 2, 2, 2]]
    evaluation = score(scores, np.array([0, 1, 1, 2, 2, 0]), ["a", "b", "c"], Calibration())
    assert evaluation.accuracy.value == pytest.approx(4 / 6)
    assert evaluation.confusion == [[1, 0, 1], [1, 1, 0], [0, 0, 2]]
    assert [s.f1 for s in evaluation.labels.values()] == pytest.approx([1 / 2, 2 / 3, 4 / 5])
    assert evaluation.macro_f1.value == pytest.approx((1 / 2 + 2 / 3 + 4 / 5) / 3)
    assert evaluation.macro_f1.low <= evaluation.macro_f1.value <= evaluation.macro_f1.high
    assert "true \\ predicted" in evaluation_text(evaluation)


def test_a_label_that_never_occurs_does_not_count_in_macro_f1() -> None:
    scores = np.eye(3, dtype=np.float32)[[0, 1]]
    assert score(scores, np.array([0, 1]), ["a", "b", "never"], Calibration()).macro_f1.value == 1


def test_independent_labels_are_right_only_all_together() -> None:
    scores = np.array([[0.9, 0.1], [0.9, 0.9]], dtype=np.float32)
    evaluation = score(scores, np.array([[1.0, 0.0], [1.0, 0.0]]), ["a", "b"], Calibration())
    assert evaluation.accuracy.value == 0.5
    assert [s.f1 for s in evaluation.labels.values()] == [1, 0]
    assert evaluation.confusion is None


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    confidence = np.array([0.95] * 10 + [0.55] * 10, dtype=np.float32)
    right = np.array([True] * 9 + [False] + [True] * 5 + [False] * 5)
    assert expected_calibration_error(confidence, right) == pytest.approx(0.05, abs=1e-6)


def test_the_interval_of_a_share_is_wilsons() -> None:
    interval = wilson(90, 100)
    assert (interval.low, interval.high) == pytest.approx((0.8256, 0.9448), abs=1e-3)
    assert wilson(10, 10).high == 1
