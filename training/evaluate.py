"""How good a classifier is, and how sure we are: metrics as pure functions, then evaluate().

Letters: N examples, C labels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from model.forward import forward_rows
from model.scores import MULTI, SINGLE, Judged, judge, label_sets, pool_windows
from model.tokens import tokens_of
from training.answers import Answers
from training.data import DataError, set_aside, targets
from training.intervals import Interval, wilson
from training.reliability import expected_calibration_error, predictions, reliability

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from model.bundle import Bundle
    from model.scores import Array, Calibration, ProblemType
    from model.tokens import Text
    from training.comparison import Comparison
    from training.data import Dataset
    from training.reliability import Reliability

RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class LabelScore:
    """One label against the rest."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The figures of one data set, all but those of reliability of its rows in scope.

    confusion[i][j] counts label i predicted as j, single-label only.
    """

    n: int
    accuracy: Interval
    macro_f1: Interval
    ece: float
    labels: dict[str, LabelScore]
    confusion: list[list[int]] | None
    reliability: Reliability | None = None
    linear: Comparison | None = None  # with the linear line, where one was trained

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `heed evaluate --json` prints it."""
        return asdict(self)


def f1_scores(true: NDArray[np.int64], false: NDArray[np.int64], missed: NDArray[np.int64]) -> NDArray[np.float64]:
    """F1 from counts of true positives, false positives and false negatives; 0 where there are none."""
    total = 2 * true + false + missed
    scores: NDArray[np.float64] = np.where(total > 0, 2 * true / np.maximum(total, 1), 0.0)
    return scores


def score(scores: Array, truth: NDArray[Any], labels: Sequence[str], calibration: Calibration) -> Evaluation:
    """Figures of scores (N, C) against class ids (N,), or against an indicator (N, C) where multi-label."""
    problem = MULTI if truth.ndim == 2 else SINGLE
    return _score(Judged(scores, label_sets(scores, problem, calibration), None), truth, labels)


def score_answers(answers: Answers) -> Evaluation:
    """Figures of what a model said, those of reliability too."""
    kept_promises = reliability(
        answers.logits,
        answers.judged,
        answers.truth,
        answers.calibration,
        answers.outside,
        cross_fitted=answers.cross_fitted,
    )
    return replace(_score(answers.judged, answers.truth, answers.labels), reliability=kept_promises)


def _score(judged: Judged, truth: NDArray[Any], labels: Sequence[str]) -> Evaluation:
    scores = judged.scores
    if truth.ndim == 2:
        assert judged.sets is not None
        return _score_multi(scores, truth.astype(bool), labels, judged.sets)
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
        ece=expected_calibration_error(*predictions(scores, truth)),
        labels=_label_scores(labels, *_counts(confusion[None])),
        confusion=confusion.tolist(),
    )


def _score_multi(
    scores: Array, truth: NDArray[np.bool_], labels: Sequence[str], guess: NDArray[np.bool_]
) -> Evaluation:
    """Accuracy is the share of texts whose labels are all right; ECE is over every (text, label)."""
    n = len(scores)
    parts = np.stack([guess & truth, guess & ~truth, ~guess & truth]).astype(np.int64)  # (3, N, C)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES // 5)  # (R, N)
    resampled = f1_scores(*(weights @ part for part in parts)).mean(axis=1)
    counts = parts.sum(axis=1)[:, None]  # (3, 1, C)
    return Evaluation(
        n=n,
        accuracy=wilson(int((guess == truth).all(axis=1).sum()), n),
        macro_f1=_interval(f1_scores(*counts).mean(), resampled),
        ece=expected_calibration_error(*predictions(scores, truth)),
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

    Rows of its out-of-scope label are of no class: what is found of them is under reliability. on_pass hears how
    many rows each pass read. Raises DataError where the data's labels are not the bundle's.
    """
    return score_answers(answer(bundle, dataset, on_pass, on_long))


def answer(
    bundle: Bundle,
    dataset: Dataset,
    on_pass: Callable[[int], object] | None = None,
    on_long: Literal["truncate", "window"] = "truncate",
) -> Answers:
    """What a bundle says of labelled data; as evaluate()."""
    check_problem(dataset, bundle.problem_type)
    dataset = set_aside(dataset, bundle.manifest.out_of_scope_label if bundle.manifest else None)
    truth = targets(dataset, bundle.labels)
    logits, tokens = read(bundle, dataset.texts, on_pass, on_long)
    outside, _ = read(bundle, dataset.outside, on_pass, on_long)
    return Answers(
        dataset=dataset,
        labels=bundle.labels,
        logits=logits,
        judged=judge(logits, bundle.problem_type, bundle.calibration),
        truth=truth,
        tokens=tokens,
        calibration=bundle.calibration,
        outside=outside,
    )


def read(
    bundle: Bundle,
    texts: Sequence[Text],
    on_pass: Callable[[int], object] | None,
    on_long: Literal["truncate", "window"] = "truncate",
) -> tuple[Array, list[int]]:
    """Logits (N, C) of texts, before calibration, and how many tokens each has, before it is cut."""
    if not texts:
        return np.zeros((0, len(bundle.labels)), dtype=np.float32), []
    if on_long == "window":
        rows = bundle.tokenizer.encode_windows(texts, bundle.max_tokens)
    else:
        rows = [[row] for row in bundle.tokenizer.encode(texts, bundle.max_tokens)]
    by_row = forward_rows(bundle.classifier, [row for of_text in rows for row in of_text], on_pass=on_pass)
    logits = pool_windows(by_row, [len(of_text) for of_text in rows], bundle.problem_type)
    return logits, [tokens_of(of_text) + of_text[-1].truncated for of_text in rows]


def check_problem(dataset: Dataset, problem: ProblemType) -> None:
    """Refuse lists of labels for a single-label model, and the reverse."""
    if dataset.problem_type != problem:
        field = {SINGLE: "label", MULTI: "labels"}
        raise DataError(f"{dataset.name}: the rows have {field[dataset.problem_type]}, this needs {field[problem]}")
