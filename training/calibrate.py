"""Fits on dev: temperature or Platt scaling, thresholds, conformal quantile, when to abstain. Pure functions on arrays.

Letters: N texts, C labels. What is fitted is applied by model/scores.py. Called by training/finish.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import logsumexp

from model.scores import MULTI, SINGLE, Calibration, Judged, judge, probabilities, scope_scores

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from model.scores import Array

    Floats = NDArray[np.float64]
    Fit = Callable[[Array, NDArray[Any]], Calibration]

MIN_CALIBRATION_ROWS = 100  # below, a fit is noise
FOLDS = 5
MIN_DEV_ROWS = MIN_CALIBRATION_ROWS * FOLDS // (FOLDS - 1)  # so that each fold is judged by a fit on enough others
PRIOR = 10.0  # precision of a label's slope and offset around those shared by all
MIN_POSITIVES = 5  # of a label, for a slope, an offset and a threshold of its own
SHRINK = 10  # positives of a label at which its threshold is half its own, half the shared one
THRESHOLDS = np.linspace(0.01, 0.99, 99)


def calibrate(logits: Array, truth: NDArray[Any], coverage: float, false_alarms: float) -> Calibration:
    """All fits, on logits (N, C) of dev against class ids (N,), or an indicator (N, C) of independent labels.

    Nothing is fitted on under 125 rows. Abstention is for single-label models alone: of independent labels
    none may be over its threshold, which says the same.
    """
    if len(truth) < MIN_DEV_ROWS:
        return Calibration()
    return _fit(logits, truth, coverage, false_alarms)


def cross_judge(logits: Array, truth: NDArray[Any], coverage: float, false_alarms: float) -> Judged | None:
    """Each fifth of dev judged by a calibration fitted on the other four; None where there are too few rows.

    So that what was fitted on dev can be measured on dev. The choice of the best epoch is not undone by this.
    """
    if len(truth) < MIN_DEV_ROWS:
        return None
    fold = folds(len(truth))
    problem = MULTI if truth.ndim == 2 else SINGLE
    order = np.argsort(fold, kind="stable")
    parts = [
        judge(logits[fold == i], problem, _fit(logits[fold != i], truth[fold != i], coverage, false_alarms))
        for i in range(FOLDS)
    ]
    back = np.argsort(order)

    def joined(name: str) -> Any:
        found = [getattr(part, name) for part in parts]
        return None if any(part is None for part in found) else np.concatenate(found)[back]

    return Judged(joined("scores"), joined("sets"), joined("abstained"))


def folds(n: int) -> NDArray[np.int64]:
    """Which of FOLDS parts of about equal size each of n rows is in (n,), at random, the same for the same n."""
    return np.random.default_rng(0).permutation(n) % FOLDS


def _fit(logits: Array, truth: NDArray[Any], coverage: float, false_alarms: float) -> Calibration:
    if truth.ndim == 2:
        slopes, offsets = fit_platt(logits, truth)
        scores = probabilities(logits, MULTI, Calibration(slopes=slopes, offsets=offsets))
        return Calibration(slopes=slopes, offsets=offsets, thresholds=fit_thresholds(scores, truth))
    temperature = fit_temperature(logits, truth)
    scores = probabilities(logits, SINGLE, Calibration(temperature=temperature))
    scope = fit_scope_threshold(scope_scores(logits), false_alarms)
    return Calibration(
        temperature=temperature,
        coverage=coverage,
        quantile=fit_quantile(scores, truth, coverage),
        false_alarms=None if scope is None else false_alarms,
        scope_threshold=scope,
    )


def fit_temperature(logits: Array, labels: NDArray[np.int64]) -> float:
    """Temperature at which the score of the first label says best how often it is right, on enough held-out data.

    It minimises the negative log likelihood of being right, logits (N, C) and class ids (N,): of two labels that of all
    scores. Of more it is not: where a text is of this label or of that, and seldom of a third, softmax says too much of
    the first at the temperature that is best for all, and it is the first that is answered. In [0.05, 20].
    Raises ValueError below 100 examples.
    Gupta and Ramdas 2022, "Top-label calibration", https://arxiv.org/abs/2107.08353.
    """
    _check_enough("temperature", len(labels))
    others = np.sort(logits.astype(np.float64), axis=1)
    others = others[:, :-1] - others[:, -1:]  # (N, C - 1), at most 0
    is_wrong = logits.argmax(axis=1) != labels

    def loss(log_temperature: float) -> float:
        against = logsumexp(others / math.exp(log_temperature), axis=1)  # (N,) log-odds
        return float((np.logaddexp(0, against) - is_wrong * against).mean())

    return math.exp(minimize_scalar(loss, bounds=(-math.log(20), math.log(20)), method="bounded").x)


def best_temperature(logits: Array, labels: NDArray[np.int64]) -> float:
    """Temperature that minimises the negative log likelihood of all scores: what a loss is compared at.

    logits (N, C) are unnormalised, labels (N,) are class ids. The loss is convex in 1 / temperature, which is in
    [0.05, 20]. Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2.
    """
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    of_truth = z[np.arange(len(labels)), labels].mean()

    def loss(inverse: float) -> float:
        return float(np.log(np.exp(z * inverse).sum(axis=1)).mean() - of_truth * inverse)

    return float(1 / minimize_scalar(loss, bounds=(0.05, 20.0), method="bounded", options={"xatol": 1e-6}).x)


def fit_platt(logits: Array, truth: NDArray[Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Slope and offset of each label's logit that minimise the negative log likelihood; logits and truth (N, C).

    Of a rare label they are hardly known: each is drawn to the slope and offset that serve all labels best
    together, by a normal prior around them of variance 1 / PRIOR; under MIN_POSITIVES it has just those.
    Raises ValueError below 100 examples.
    Platt 1999, "Probabilistic outputs for support vector machines".
    """
    _check_enough("scaling", len(truth))
    z, y = logits.astype(np.float64), truth.astype(np.float64)
    shared = _platt(z.ravel(), y.ravel(), np.array([1.0, 0.0]), 0.0)
    is_rare = y.sum(axis=0) < MIN_POSITIVES
    fitted = [shared if is_rare[i] else _platt(z[:, i], y[:, i], shared, PRIOR) for i in range(z.shape[1])]
    return tuple(float(slope) for slope, _ in fitted), tuple(float(offset) for _, offset in fitted)


def _platt(z: Floats, y: Floats, prior: Floats, precision: float) -> Floats:
    """Slope and offset (2,) for logits z and truth y in {0, 1}, from a prior that the search starts at."""

    def loss(at: Floats) -> tuple[float, Floats]:
        scaled, off = at[0] * z + at[1], at - prior
        error = 1 / (1 + np.exp(-np.clip(scaled, -500, 500))) - y
        value = (np.logaddexp(0, scaled) - y * scaled).sum() + precision / 2 * off @ off
        return float(value), np.array([error @ z, error.sum()]) + precision * off

    bounds = [(0.05, 20.0), (-20.0, 20.0)]  # a slope stays positive: a higher logit is a higher score
    found: Floats = minimize(loss, prior, jac=True, method="L-BFGS-B", bounds=bounds).x
    return found


def fit_thresholds(scores: Array, truth: NDArray[Any]) -> tuple[float, ...]:
    """Threshold of each label that maximises its F1, guarded where the label is rare; scores and truth (N, C).

    Of a label with n positives it is the mean, in log-odds, of its own best and the one threshold that
    maximises macro-F1 for all, weighted n to SHRINK; under MIN_POSITIVES it is the shared one.
    Raises ValueError below 100 examples.
    """
    _check_enough("threshold", len(truth))
    f1 = np.array([_f1(scores >= threshold, truth > 0) for threshold in THRESHOLDS])  # (T, C)
    positives = truth.sum(axis=0)
    shared = THRESHOLDS[f1[:, positives > 0].mean(axis=1).argmax()] if positives.any() else 0.5
    own = THRESHOLDS[f1.argmax(axis=0)]
    weight = np.where(positives < MIN_POSITIVES, 0.0, positives / (positives + SHRINK))
    log_odds = weight * np.log(own / (1 - own)) + (1 - weight) * np.log(shared / (1 - shared))
    return tuple(float(1 / (1 + np.exp(-x))) for x in log_odds)


def _f1(given: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Floats:
    found: Floats = 2 * (given & truth).sum(axis=0) / np.maximum(given.sum(axis=0) + truth.sum(axis=0), 1)
    return found


def fit_quantile(scores: Array, labels: NDArray[np.int64], coverage: float) -> float:
    """Split-conformal quantile of 1 - score of the true label, on data not trained on.

    Sadinle et al. 2019, https://arxiv.org/abs/1609.00451: sets {label: 1 - score <= quantile} hold the true
    label for at least `coverage` of exchangeable texts. Rows that chose the temperature and the epoch too are a
    little easier than others: measured at coverage 0.9 with the most accurate epoch, 0.8 points too few on 200 rows,
    0.3 on 500, 0.1 on 2,000, always under the standard deviation by chance, sqrt(coverage * (1 - coverage) / N). Raises
    ValueError below 100 examples.
    """
    _check_enough("quantile", len(labels))
    n = len(labels)
    misfit = np.sort(1 - scores[np.arange(n), labels])
    rank = min(int(np.ceil((n + 1) * coverage)), n)
    return float(misfit[rank - 1])


def fit_scope_threshold(scores: Array, false_alarms: float) -> float | None:
    """Threshold that at most a share `false_alarms` of texts like these fall below; scope_scores() (N,).

    Of N exchangeable scores and a new one, it is below the k-th lowest in k / (N + 1) of cases. None where N is too
    small for the rate. Raises ValueError below 100 examples.
    """
    _check_enough("threshold", len(scores))
    rank = int((len(scores) + 1) * false_alarms)
    return float(np.sort(scores)[rank - 1]) if rank else None


def _check_enough(name: str, n: int) -> None:
    if n < MIN_CALIBRATION_ROWS:
        raise ValueError(f"a {name} fitted on under {MIN_CALIBRATION_ROWS} examples is noise: {n}")
