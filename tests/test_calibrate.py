"""What is fitted on dev: it never makes dev worse, and what it promises holds on rows that it did not see."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.scores import MULTI, SINGLE, Calibration, judge, label_sets, probabilities
from training.calibrate import (
    calibrate,
    cross_judge,
    fit_platt,
    fit_quantile,
    fit_scope_threshold,
    fit_temperature,
    fit_thresholds,
)
from training.evaluate import score
from training.reliability import reliability

SEEDS = st.integers(0, 2**32 - 1)
NONE_OUTSIDE = np.zeros((0, 4), dtype=np.float32)


def logits_and_labels(n: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from softmax(logits), then the logits are made too sharp."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 4)).astype(np.float32) * 2
    scores = probabilities(logits, SINGLE).astype(np.float64)
    labels = (scores.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=3)
    return logits * np.float32(sharpness), labels


def logits_and_indicators(n: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Independent labels drawn from sigmoids, from frequent to rare; then the logits are made too sharp."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 4)).astype(np.float32) * 2 - np.array([0, 1, 3, 6], dtype=np.float32)
    truth = rng.random((n, 4)) < probabilities(logits, MULTI)
    return logits * np.float32(sharpness), truth.astype(np.float32)


def first_is_right_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    """Negative log likelihood of the first label's being right or not."""
    first = scores.max(axis=1).astype(np.float64).clip(1e-7, 1 - 1e-7)
    return float(-np.where(scores.argmax(axis=1) == labels, np.log(first), np.log(1 - first)).mean())


def loss_of(scores: np.ndarray, truth: np.ndarray) -> float:
    """Negative log likelihood."""
    clipped = scores.astype(np.float64).clip(1e-7, 1 - 1e-7)
    if truth.ndim == 1:
        return float(-np.log(clipped[np.arange(len(truth)), truth]).mean())
    return float(-np.where(truth > 0, np.log(clipped), np.log(1 - clipped)).mean())


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_fitted_temperature_undoes_how_much_too_sharp_logits_are(sharpness: float) -> None:
    assert fit_temperature(*logits_and_labels(4000, sharpness)) == pytest.approx(sharpness, rel=0.1)


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.floats(0.1, 10))
def test_no_fit_makes_the_rows_that_it_saw_less_likely(seed: int, sharpness: float) -> None:
    logits, labels = logits_and_labels(150, sharpness, seed)
    fitted = calibrate(logits, labels, 0.9, 0.05)
    before, after = (probabilities(logits, SINGLE, each) for each in (Calibration(), fitted))
    assert first_is_right_loss(after, labels) <= first_is_right_loss(before, labels) + 1e-6
    logits, truth = logits_and_indicators(150, sharpness, seed)
    fitted = calibrate(logits, truth, 0.9, 0.05)
    assert loss_of(probabilities(logits, MULTI, fitted), truth) <= loss_of(probabilities(logits, MULTI), truth) + 1e-6


def test_a_first_label_that_has_one_rival_is_said_to_be_right_as_often_as_it_is() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(-4, 0.1, size=(4000, 20)).astype(np.float32)  # 18 labels that are never right
    logits[:, 0], logits[:, 1] = 0, rng.normal(-1.2, 0.1, size=4000)
    labels = (rng.random(4000) < 0.45).astype(np.int64)
    fitted = calibrate(logits[:2000], labels[:2000], 0.9, 0.05)
    said = probabilities(logits[2000:], SINGLE, fitted).max(axis=1).mean()
    assert said == pytest.approx((labels[2000:] == 0).mean(), abs=0.03)


def test_slopes_and_offsets_undo_how_much_too_sharp_independent_labels_are() -> None:
    slopes, offsets = fit_platt(*logits_and_indicators(6000, 2.0))
    assert slopes == pytest.approx((0.5,) * 4, abs=0.06)
    assert offsets == pytest.approx((0,) * 4, abs=0.3)


def test_a_label_that_never_occurs_is_scaled_as_the_others_are() -> None:
    logits, truth = logits_and_indicators(1000, 2.0)
    truth[:, 3] = 0
    slopes, offsets = fit_platt(logits, truth)
    assert slopes[3] == pytest.approx(0.5, abs=0.1)
    assert abs(offsets[3]) < 0.3


def test_labels_too_rare_for_a_threshold_of_their_own_share_one() -> None:
    logits, truth = logits_and_indicators(1000, 1.0)
    truth[:, 2:] = 0
    truth[:4, 2] = truth[10:13, 3] = 1
    thresholds = fit_thresholds(probabilities(logits, MULTI), truth)
    assert thresholds[2] == thresholds[3]
    assert thresholds[1] != thresholds[2]


def test_thresholds_that_were_fitted_find_more_of_the_rare_labels_on_new_texts() -> None:
    logits, truth = logits_and_indicators(4000, 1.0)
    calibration = calibrate(logits[:2000], truth[:2000], 0.9, 0.05)
    assert calibration.thresholds is not None
    scores = probabilities(logits[2000:], MULTI, calibration)
    fitted, plain = (score(scores, truth[2000:], list("abcd"), each) for each in (calibration, Calibration()))
    assert fitted.macro_f1.value > plain.macro_f1.value + 0.02


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_label_sets_hold_the_true_label_as_often_as_promised_on_new_texts(coverage: float) -> None:
    logits, labels = logits_and_labels(6000, 1.0)
    quantile = fit_quantile(probabilities(logits[:3000], SINGLE), labels[:3000], coverage)
    sets = label_sets(probabilities(logits[3000:], SINGLE), SINGLE, Calibration(coverage=coverage, quantile=quantile))
    assert sets is not None
    assert sets[np.arange(3000), labels[3000:]].mean() == pytest.approx(coverage, abs=0.015)
    assert sets.mean() < 0.8


def test_texts_in_scope_are_abstained_no_oftener_than_promised_on_average() -> None:
    rates = []
    for seed in range(200):
        scores = np.random.default_rng(seed).normal(size=1150).astype(np.float32)
        threshold = fit_scope_threshold(scores[:150], 0.05)
        assert threshold is not None
        rates.append((scores[150:] < threshold).mean())
    assert 0.04 < np.mean(rates) < 0.051


def test_a_rate_that_the_rows_are_too_few_for_means_never() -> None:
    scores = np.arange(150, dtype=np.float32)
    assert fit_scope_threshold(scores, 0.001) is None
    assert fit_scope_threshold(scores, 0.0) is None


def test_what_is_said_of_a_row_of_dev_does_not_depend_on_its_own_label() -> None:
    logits, labels = logits_and_labels(500, 3.0)
    other = labels.copy()
    other[0] = (labels[0] + 1) % 4
    first, second = (cross_judge(logits, each, 0.9, 0.05) for each in (labels, other))
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.scores[0], second.scores[0])
    changed = (first.scores != second.scores).any(axis=1)
    assert 0.6 < changed.mean() <= 0.8  # the four fifths whose fits saw it
    np.testing.assert_array_equal(first.scores.argmax(axis=1), logits.argmax(axis=1))  # in the order of the rows


def test_promises_stand_beside_what_was_found() -> None:
    logits, labels = logits_and_labels(6000, 3.0)
    calibration = calibrate(logits[:3000], labels[:3000], 0.9, 0.05)
    fresh, truth = logits[3000:], labels[3000:]
    outside = fresh[:500] - np.float32(30)
    judged = judge(fresh, SINGLE, calibration)
    assert score(judged.scores, truth, list("abcd"), calibration).ece < 0.02
    found = reliability(fresh, judged, truth, calibration, outside)
    assert found.ece_before > 0.1
    assert sum(each.count for each in found.after) == 3000
    assert found.sets is not None
    assert found.sets.coverage.value == pytest.approx(0.9, abs=0.015)
    assert found.scope is not None
    assert found.scope.kept.value == pytest.approx(0.95, abs=0.015)
    assert found.scope.recall is not None
    assert found.scope.recall.value > 0.9
    without = reliability(fresh, judged, truth, calibration, NONE_OUTSIDE)
    assert without.scope is not None
    assert without.scope.recall is None


def test_nothing_is_fitted_on_too_few_examples() -> None:
    logits, labels = logits_and_labels(124, 1.0)
    assert calibrate(logits, labels, 0.9, 0.05) == Calibration()
    assert cross_judge(logits, labels, 0.9, 0.05) is None
    with pytest.raises(ValueError, match="noise: 99"):
        fit_temperature(logits[:99], labels[:99])
    with pytest.raises(ValueError, match="noise: 99"):
        fit_quantile(probabilities(logits[:99], SINGLE), labels[:99], 0.9)
