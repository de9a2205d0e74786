"""Logits -> calibrated scores and label sets, and the fits behind them: pure functions over arrays.

Letters: N texts, W windows of them, C labels.
Fitted by training/finish.py, applied by service/predictor.py and training/evaluate.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = NDArray[np.float32]
ProblemType = Literal["single_label_classification", "multi_label_classification"]
SINGLE: ProblemType = "single_label_classification"
MULTI: ProblemType = "multi_label_classification"

MIN_CALIBRATION_ROWS = 100  # below, a fit is noise


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What turns logits into scores that can be believed; the defaults change nothing."""

    temperature: float = 1.0  # logits are divided by it
    thresholds: tuple[float, ...] | None = None  # multi-label: a label is given from this score on
    coverage: float | None = None  # share of texts whose label set holds the true label
    quantile: float | None = None  # a label is in the set if 1 - score <= quantile


def probabilities(logits: Array, problem: ProblemType, temperature: float = 1.0) -> Array:
    """Softmax over labels, or a sigmoid each where labels are independent; (N, C) -> (N, C)."""
    z = logits / np.float32(temperature)
    if problem == MULTI or z.shape[1] == 1:
        half = np.float32(0.5)
        scores: Array = half + half * np.tanh(half * z)  # a sigmoid that cannot overflow
        return scores
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def label_sets(scores: Array, problem: ProblemType, calibration: Calibration) -> NDArray[np.bool_] | None:
    """True where a label belongs to the text's set (N, C); None where nothing was fitted.

    Multi-label: the labels at or over their thresholds. Single-label: the conformal set, which holds the
    true label for `coverage` of texts like those it was fitted on; an empty or full one says "unsure".
    """
    if problem == MULTI:
        thresholds = calibration.thresholds or (0.5,) * scores.shape[1]
        return scores >= np.array(thresholds, dtype=np.float32)
    if calibration.quantile is None:
        return None
    return scores >= np.float32(1 - calibration.quantile)


def pool_windows(logits: Array, counts: Sequence[int], problem: ProblemType) -> Array:
    """Logits of texts from those of their windows, before calibration; (W, C) -> (N, C).

    The windows of a text stand together and counts (N,) says how many they are, at least one; they add up to W.
    Single-label: the mean, in which every token counts alike as windows are of one length. Multi-label: the
    maximum of each label, because a text is toxic if one part of it is.
    """
    first = np.cumsum([0, *counts[:-1]])
    if problem == MULTI:
        return np.asarray(np.maximum.reduceat(logits, first))
    return np.asarray(np.add.reduceat(logits, first) / np.array(counts, dtype=np.float32)[:, None])


def fit_temperature(logits: Array, labels: NDArray[np.int64]) -> float:
    """Temperature that minimises the negative log likelihood on held-out data.

    logits (N, C) are unnormalised, labels (N,) are class ids. The loss is convex in 1 / temperature, so a
    ternary search over [0.05, 20] finds its minimum. Raises ValueError below 100 examples.
    Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2.
    """
    if len(labels) < MIN_CALIBRATION_ROWS:
        raise ValueError(f"a temperature fitted on under {MIN_CALIBRATION_ROWS} examples is noise: {len(labels)}")

    def loss(inverse: float) -> float:
        z = logits.astype(np.float64) * inverse
        z -= z.max(axis=1, keepdims=True)
        return float((np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(labels)), labels]).mean())

    low, high = 0.05, 20.0
    for _ in range(60):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return 2 / (low + high)


def fit_quantile(scores: Array, labels: NDArray[np.int64], coverage: float) -> float:
    """Split-conformal quantile of 1 - score of the true label, on data not trained on.

    Sadinle et al. 2019, https://arxiv.org/abs/1609.00451: sets {label: 1 - score <= quantile} hold the true
    label for at least `coverage` of exchangeable texts. Raises ValueError below 100 examples.
    """
    n = len(labels)
    if n < MIN_CALIBRATION_ROWS:
        raise ValueError(f"a quantile fitted on under {MIN_CALIBRATION_ROWS} examples is noise: {n}")
    misfit = np.sort(1 - scores[np.arange(n), labels])
    rank = min(int(np.ceil((n + 1) * coverage)), n)
    return float(misfit[rank - 1])
