"""Does a model keep its promises? Confidence against accuracy, label sets against coverage, abstention against rate.

Letters: N texts, C labels, M texts that are out of scope. Called by training/evaluate.py, printed by report.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from model.scores import MULTI, SINGLE, abstentions, probabilities
from training.intervals import Interval, wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from model.scores import Array, Calibration, Judged

ECE_BINS = 15


@dataclass(frozen=True, kw_only=True)
class Bin:
    """A bar of a reliability plot: mean confidence and share right of the predictions whose confidence lies in it."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Sets:
    """Label sets; mean_size and empty (a share) say what their coverage costs."""

    promised: float
    coverage: Interval
    mean_size: float
    empty: float


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Abstention. accuracy_kept is that of the texts kept; recall, of the M texts out of scope, is None without any."""

    promised: float  # share of texts in scope that are kept
    kept: Interval
    accuracy_kept: float
    out_of_scope: int
    recall: Interval | None


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """cross_fitted: the calibration was fitted on these rows, and each was judged by a fit that did not see it."""

    cross_fitted: bool
    ece_before: float
    before: list[Bin]
    after: list[Bin]
    sets: Sets | None
    scope: Scope | None


def reliability(
    logits: Array,
    judged: Judged,
    truth: NDArray[Any],
    calibration: Calibration,
    outside: Array,
    *,
    cross_fitted: bool = False,
) -> Reliability:
    """Of logits (N, C) as they were judged, with truth (N,) or (N, C), and the logits (M, C) of texts out of scope."""
    raw = probabilities(logits, MULTI if truth.ndim == 2 else SINGLE)
    before = predictions(raw, truth)
    return Reliability(
        cross_fitted=cross_fitted,
        ece_before=expected_calibration_error(*before),
        before=bins(*before),
        after=bins(*predictions(judged.scores, truth)),
        sets=_sets(judged, truth, calibration),
        scope=_scope(judged, truth, calibration, outside),
    )


def predictions(scores: Array, truth: NDArray[Any]) -> tuple[Array, NDArray[np.bool_]]:
    """Confidence and rightness of every prediction: (N,), or (N * C,) where labels are independent."""
    if truth.ndim == 2:
        return np.maximum(scores, 1 - scores).ravel(), ((scores >= 0.5) == truth.astype(bool)).ravel()
    return scores.max(axis=1), scores.argmax(axis=1) == truth


def expected_calibration_error(confidence: Array, right: NDArray[np.bool_], num_bins: int = ECE_BINS) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their size.

    confidence (N,) in [0, 1] of the predicted label, right (N,).
    Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 2.
    """
    found = bins(confidence, right, num_bins)
    return sum(b.count * abs(b.confidence - b.accuracy) for b in found) / len(right)


def bin_numbers(confidence: Array, num_bins: int = ECE_BINS) -> NDArray[np.int64]:
    """In which bin of equal width each lies (N,)."""
    return np.minimum((confidence * num_bins).astype(np.int64), num_bins - 1)


def bins(confidence: Array, right: NDArray[np.bool_], num_bins: int = ECE_BINS) -> list[Bin]:
    """Those of equal width that are not empty, from unsure to sure."""
    bin_of = bin_numbers(confidence, num_bins)
    size = np.bincount(bin_of, minlength=num_bins)
    sums = np.bincount(bin_of, confidence, num_bins), np.bincount(bin_of, right, num_bins)
    return [
        Bin(confidence=float(sums[0][i] / size[i]), accuracy=float(sums[1][i] / size[i]), count=int(size[i]))
        for i in np.flatnonzero(size)
    ]


def _sets(judged: Judged, truth: NDArray[Any], calibration: Calibration) -> Sets | None:
    if calibration.coverage is None or judged.sets is None or truth.ndim == 2:
        return None
    n, sizes = len(truth), judged.sets.sum(axis=1)
    return Sets(
        promised=calibration.coverage,
        coverage=wilson(int(judged.sets[np.arange(n), truth].sum()), n),
        mean_size=float(sizes.mean()),
        empty=float((sizes == 0).mean()),
    )


def _scope(judged: Judged, truth: NDArray[Any], calibration: Calibration, outside: Array) -> Scope | None:
    if calibration.false_alarms is None or judged.abstained is None:
        return None
    kept, found = ~judged.abstained, abstentions(outside, calibration)
    right = judged.scores.argmax(axis=1) == truth
    return Scope(
        promised=1 - calibration.false_alarms,
        kept=wilson(int(kept.sum()), len(kept)),
        accuracy_kept=float(right[kept].mean()) if kept.any() else 0.0,
        out_of_scope=len(outside),
        recall=wilson(int(found.sum()), len(outside)) if found is not None and len(outside) else None,
    )
