"""Logits -> calibrated scores, label sets and abstentions: pure functions over arrays.

Letters: N texts, W windows of them, C labels.
Fitted by training/calibrate.py, applied by service/scored.py and training/evaluate.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = NDArray[np.float32]
ProblemType = Literal["single_label_classification", "multi_label_classification"]
SINGLE: ProblemType = "single_label_classification"
MULTI: ProblemType = "multi_label_classification"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What turns logits into scores that can be believed; the defaults change nothing. Sequences are by label id."""

    temperature: float = 1.0  # logits are divided by it
    slopes: tuple[float, ...] | None = None  # multi-label: a label's logit is multiplied by its slope,
    offsets: tuple[float, ...] | None = None  # and its offset added
    thresholds: tuple[float, ...] | None = None  # multi-label: a label is given from this score on
    coverage: float | None = None  # share of texts whose label set holds the true label
    quantile: float | None = None  # a label is in the set if 1 - score <= quantile
    false_alarms: float | None = None  # share of texts like those trained on that the model abstains on
    scope_threshold: float | None = None  # it abstains where scope_scores() are below

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Calibration:
        """Of what dataclasses.asdict() gave, after JSON. Raises TypeError for a field that there is not."""
        values: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in fields.items()}
        return cls(**values)

    def fault(self, num_labels: int) -> str | None:
        """What makes it none for so many labels."""
        if not self.temperature > 0:
            return f"temperature is not positive: {self.temperature}"
        if (self.slopes is None) != (self.offsets is None):
            return f"slopes go with offsets, there are only: {'offsets' if self.slopes is None else 'slopes'}"
        for name in ("slopes", "offsets", "thresholds"):
            values = getattr(self, name)
            if values is not None and len(values) != num_labels:
                return f"{name} are not one for each of the {num_labels} labels: {len(values)}"
        if not all(slope > 0 for slope in self.slopes or ()):
            return f"a slope is not positive: {min(self.slopes or ())}"
        return None


@dataclass(frozen=True, slots=True)
class Judged:
    """What a calibrated model says of N texts; None where nothing was fitted."""

    scores: Array  # (N, C)
    sets: NDArray[np.bool_] | None  # (N, C)
    abstained: NDArray[np.bool_] | None  # (N,)


def judge(logits: Array, problem: ProblemType, calibration: Calibration) -> Judged:
    """Everything that is said of texts by their logits (N, C)."""
    scores = probabilities(logits, problem, calibration)
    return Judged(scores, label_sets(scores, problem, calibration), abstentions(logits, calibration))


def probabilities(logits: Array, problem: ProblemType, calibration: Calibration = Calibration()) -> Array:
    """Softmax over labels, or a sigmoid each where labels are independent; (N, C) -> (N, C)."""
    z = logits / np.float32(calibration.temperature)
    if calibration.slopes is not None:
        z = z * np.array(calibration.slopes, dtype=np.float32) + np.array(calibration.offsets, dtype=np.float32)
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


def scope_scores(logits: Array) -> Array:
    """How much a text is like those that the model was trained on, the higher the more; (N, C) -> (N,).

    The highest logit, before calibration. Hendrycks et al. 2022, https://arxiv.org/abs/1911.11132: unlike the highest
    probability it does not fall where two of many labels are alike. Energy (Liu et al. 2020) finds no more.
    """
    return np.asarray(logits.max(axis=1))


def abstentions(logits: Array, calibration: Calibration) -> NDArray[np.bool_] | None:
    """True where a text is so unlike those trained on that its answer should not be used; (N, C) -> (N,)."""
    if calibration.scope_threshold is None:
        return None
    return np.asarray(scope_scores(logits) < np.float32(calibration.scope_threshold))


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
