"""How good a classifier is, and how sure we are: metrics as pure functions, then evaluate().

Letters: N examples, C labels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from model.forward import forward_rows
from model.scores import MULTI, SINGLE, pool_windows, probabilities
from training.data import DataError, targets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from model.bundle import Bundle
    from model.scores import Array, Calibration, ProblemType
    from training.comparison import Comparison
    from training.data import Dataset

ECE_BINS = 15
RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure with its 95% confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class LabelScore:
    """One label against the rest."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The figures of one data set; confusion[i][j] counts label i predicted as j, single-label only."""

    n: int
    accuracy: Interval
    macro_f1: Interval
    ece: float
    labels: dict[str, LabelScore]
    confusion: list[list[int]] | None
    linear: Comparison | None = None  # with the linear line, where one was trained

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `heed evaluate --json` prints it."""
        return asdict(self)


def wilson(right: int, n: int, z: float = 1.96) -> Interval:
    """Share of successes with its Wilson score interval (Wilson 1927)."""
    p = right / n
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low, high = max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
    return Interval(p, float(low), float(high))


def expected_calibration_error(confidence: Array, right: NDArray[np.bool_], bins: int = ECE_BINS) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their size.

    confidence (N,) in [0, 1] of the predicted label, right (N,).
    Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 2.
    """
    bin_of = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    size = np.bincount(bin_of, minlength=bins)
    gap = np.bincount(bin_of, confidence, bins) - np.bincount(bin_of, right, bins)
    return float(np.abs(gap).sum() / size.sum())


def f1_scores(true: NDArray[np.int64], false: NDArray[np.int64], missed: NDArray[np.int64]) -> NDArray[np.float64]:
    """F1 from counts of true positives, false positives and false negatives; 0 where there are none."""
    total = 2 * true + false + missed
    scores: NDArray[np.float64] = np.where(total > 0, 2 * true / np.maximum(total, 1), 0.0)
    return scores


def score(scores: Array, truth: NDArray[Any], labels: Sequence[str], calibration: Calibration) -> Evaluation:
    """Figures of scores (N, C) against class ids (N,), or against an indicator (N, C) where multi-label."""
    if truth.ndim == 2:
        return _score_multi(scores, truth.astype(bool), labels, calibration)
    n, C = scores.shape
    guess = scores.argmax(axis=1)
    confusion = np.bincount(truth * C + guess, minlength=C * C).reshape(C, C)
    right = guess == truth
    rng = np.random.default_rng(0)
    resampled = rng.multinomial(n, confusion.ravel() / n, size=RESAMPLES).reshape(-1, C, C)
    return Evaluation(
        n=n,
        accuracy=wilson(int(right.sum()), n),
        macro_f1=_interval(_macro_f1(confusion[None])[0], _macro_f1(resampled)),
        ece=expected_calibration_error(scores.max(axis=1), right),
        labels=_label_scores(labels, *_counts(confusion[None])),
        confusion=confusion.tolist(),
    )


def _score_multi(
    scores: Array, truth: NDArray[np.bool_], labels: Sequence[str], calibration: Calibration
) -> Evaluation:
    """Accuracy is the share of texts whose labels are all right; ECE is over every (text, label)."""
    n, C = scores.shape
    guess = scores >= np.array(calibration.thresholds or (0.5,) * C, dtype=np.float32)
    parts = np.stack([guess & truth, guess & ~truth, ~guess & truth]).astype(np.int64)  # (3, N, C)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES // 5)  # (R, N)
    resampled = f1_scores(*(weights @ part for part in parts)).mean(axis=1)
    counts = parts.sum(axis=1)[:, None]  # (3, 1, C)
    return Evaluation(
        n=n,
        accuracy=wilson(int((guess == truth).all(axis=1).sum()), n),
        macro_f1=_interval(f1_scores(*counts).mean(), resampled),
        ece=expected_calibration_error(np.maximum(scores, 1 - scores).ravel(), ((scores >= 0.5) == truth).ravel()),
        labels=_label_scores(labels, *counts),
        confusion=None,
    )


def _counts(confusion: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """True positives, false positives and false negatives (R, C) of confusion matrices (R, C, C)."""
    true = np.diagonal(confusion, axis1=1, axis2=2)
    return true, confusion.sum(axis=1) - true, confusion.sum(axis=2) - true


def _macro_f1(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean F1 over the labels that occur (truth or prediction), as scikit-learn has it; (R, C, C) -> (R,)."""
    true, false, missed = _counts(confusion)
    occurs = (true + false + missed) > 0
    mean: NDArray[np.float64] = f1_scores(true, false, missed).sum(axis=1) / occurs.sum(axis=1)
    return mean


def _label_scores(
    labels: Sequence[str], true: NDArray[np.int64], false: NDArray[np.int64], missed: NDArray[np.int64]
) -> dict[str, LabelScore]:
    """Per label, from counts (1, C)."""
    f1 = f1_scores(true, false, missed)[0]
    precision = true[0] / np.maximum(true[0] + false[0], 1)
    recall = true[0] / np.maximum(true[0] + missed[0], 1)
    return {
        label: LabelScore(
            precision=float(precision[i]),
            recall=float(recall[i]),
            f1=float(f1[i]),
            support=int(true[0, i] + missed[0, i]),
        )
        for i, label in enumerate(labels)
    }


def _interval(value: float, resampled: NDArray[np.float64]) -> Interval:
    """Percentile bootstrap (Efron 1979)."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))


def evaluate(
    bundle: Bundle,
    dataset: Dataset,
    on_pass: Callable[[int], object] | None = None,
    on_long: Literal["truncate", "window"] = "truncate",
) -> Evaluation:
    """Figures of a bundle on labelled data, in fp32 with its calibration.

    on_pass hears how many rows each pass read. Raises DataError where the data's labels are not the bundle's.
    """
    check_problem(dataset, bundle.problem_type)
    truth = targets(dataset, bundle.labels)
    if on_long == "window":
        texts = bundle.tokenizer.encode_windows(dataset.texts, bundle.max_tokens)
    else:
        texts = [[row] for row in bundle.tokenizer.encode(dataset.texts, bundle.max_tokens)]
    by_row = forward_rows(bundle.classifier, [row for rows in texts for row in rows], on_pass=on_pass)
    logits = pool_windows(by_row, [len(rows) for rows in texts], bundle.problem_type)
    scores = probabilities(logits, bundle.problem_type, bundle.calibration.temperature)
    return score(scores, truth, bundle.labels, bundle.calibration)


def check_problem(dataset: Dataset, problem: ProblemType) -> None:
    """Refuse lists of labels for a single-label model, and the reverse."""
    if dataset.problem_type != problem:
        field = {SINGLE: "label", MULTI: "labels"}
        raise DataError(f"{dataset.name}: the rows have {field[dataset.problem_type]}, this needs {field[problem]}")
