"""Scores, their calibration and label sets."""

from __future__ import annotations

import numpy as np
import pytest

from model.scores import (
    MULTI,
    SINGLE,
    Calibration,
    ProblemType,
    label_sets,
    pool_windows,
    probabilities,
)
from training.calibrate import fit_quantile, fit_temperature


def logits_and_labels(n: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from softmax(logits), then the logits are made too sharp."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 4)).astype(np.float32) * 2
    scores = probabilities(logits, SINGLE)
    labels = np.array([rng.choice(4, p=row / row.sum()) for row in scores.astype(np.float64)])
    return logits * np.float32(sharpness), labels


def test_scores_of_one_label_a_text_add_up_to_one_even_for_huge_logits() -> None:
    scores = probabilities(np.array([[1e4, -1e4], [-200.0, -100.0]], dtype=np.float32), SINGLE)
    np.testing.assert_allclose(scores, [[1, 0], [0, 1]], atol=1e-6)


def test_scores_of_independent_labels_are_sigmoids() -> None:
    scores = probabilities(np.array([[0.0, 1e4, -1e4, 2.0]], dtype=np.float32), MULTI)
    np.testing.assert_allclose(scores, [[0.5, 1, 0, 1 / (1 + np.exp(-2))]], atol=1e-6)


def test_a_single_logit_is_a_sigmoid() -> None:
    assert probabilities(np.array([[0.0]], dtype=np.float32), SINGLE)[0, 0] == 0.5


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_fitted_temperature_undoes_how_much_too_sharp_logits_are(sharpness: float) -> None:
    assert fit_temperature(*logits_and_labels(4000, sharpness)) == pytest.approx(sharpness, rel=0.1)


def test_label_sets_hold_the_true_label_as_often_as_promised_on_new_texts() -> None:
    logits, labels = logits_and_labels(6000, 1.0)
    quantile = fit_quantile(probabilities(logits[:3000], SINGLE), labels[:3000], coverage=0.9)
    sets = label_sets(probabilities(logits[3000:], SINGLE), SINGLE, Calibration(coverage=0.9, quantile=quantile))
    assert sets is not None
    assert sets[np.arange(3000), labels[3000:]].mean() == pytest.approx(0.9, abs=0.015)
    assert sets.mean() < 0.75


def test_without_a_fit_there_is_no_label_set() -> None:
    assert label_sets(np.ones((1, 2), dtype=np.float32), SINGLE, Calibration()) is None


def test_independent_labels_are_given_from_their_thresholds_on() -> None:
    sets = label_sets(np.array([[0.4, 0.4]], dtype=np.float32), MULTI, Calibration(thresholds=(0.3, 0.5)))
    assert sets is not None
    assert sets.tolist() == [[True, False]]


def test_nothing_is_fitted_on_too_few_examples() -> None:
    logits, labels = logits_and_labels(99, 1.0)
    with pytest.raises(ValueError, match="noise: 99"):
        fit_temperature(logits, labels)
    with pytest.raises(ValueError, match="noise: 99"):
        fit_quantile(probabilities(logits, SINGLE), labels, 0.9)


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
