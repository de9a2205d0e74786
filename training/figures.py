"""What a report shows, as data: a model's answers to labelled texts -> bins, curves, pairs, slices, mistakes.

Pure functions over arrays; nothing is drawn here. Called by training/report_page.py, drawn by training/plots.py.
Letters: N texts, C labels, M decisions (N, or N * C where multi-label).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from training.intervals import Interval, wilson

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from model.scores import Array
    from training.answers import Answers

    Mask = NDArray[np.bool_]

CURVE_POINTS = 100
HISTOGRAM_BINS = 20
LENGTH_BINS = 10
MAX_LABEL_SLICES = 20
MAX_VALUES = 20  # of a named column, the most frequent; the others are one slice
MAX_MISTAKES = 25
MAX_PAIRS = 25
MIN_BIN_ROWS = 20  # of a length bin: below, its error says nothing


@dataclass(frozen=True)
class LengthBin:
    """Texts of `low` to `high` tokens, and the share of them that is wrong."""

    low: int
    high: int
    wrong: Interval


@dataclass(frozen=True)
class Histogram:
    """Decisions by confidence; edges has one more than the counts."""

    edges: list[float]
    right: list[int]
    wrong: list[int]


@dataclass(frozen=True)
class Curve:
    """Precision over recall of one label as its threshold falls, at most CURVE_POINTS of them."""

    label: str
    recall: list[float]
    precision: list[float]


@dataclass(frozen=True)
class Pair:
    """Texts of label `true` that were given `said`; share of all texts of `true`."""

    true: str
    said: str
    n: int
    share: float


@dataclass(frozen=True)
class Slice:
    """How good the model is on a part of the data; verdict is below, above or "" against all of it."""

    name: str
    n: int
    right: Interval
    confidence: float
    verdict: str


@dataclass(frozen=True)
class Mistake:
    """A confident wrong answer; line is that of the data file, score that of what was said."""

    line: int
    text: str
    true: str
    said: str
    score: float


def histogram(confidence: Array, right: Mask, lowest: float) -> Histogram:
    """Right and wrong decisions by confidence, from `lowest` to 1."""
    edges = np.linspace(lowest, 1, HISTOGRAM_BINS + 1)
    counts = [np.histogram(confidence[part], edges)[0].tolist() for part in (right, ~right)]
    return Histogram(edges.tolist(), *counts)


def by_length(tokens: Sequence[int], bins: int) -> Iterator[tuple[int, int, Mask]]:
    """Shortest, longest and members (N,) of parts of about equal size, shortest first; of equal lengths in one part."""
    lengths = np.asarray(tokens)
    cuts = np.unique(np.quantile(lengths, np.arange(1, bins) / bins, method="lower"))
    part = np.searchsorted(cuts, lengths, side="left")
    for i in np.unique(part):
        inside = lengths[part == i]
        yield int(inside.min()), int(inside.max()), part == i


def error_by_length(answers: Answers) -> list[LengthBin]:
    """Share of wrong texts by their length in tokens."""
    wrong = ~answers.right
    bins = max(1, min(LENGTH_BINS, len(wrong) // MIN_BIN_ROWS))
    return [
        LengthBin(low, high, wilson(int(wrong[part].sum()), int(part.sum())))
        for low, high, part in by_length(answers.tokens, bins)
    ]


def precision_recall(answers: Answers) -> tuple[list[Curve], dict[str, float]]:
    """A curve and the average precision of each label that occurs."""
    from sklearn.metrics import precision_recall_curve  # a second to import

    curves, average = [], {}
    for i, label in enumerate(answers.labels):
        true, score = answers.true[:, i], answers.scores[:, i]
        if not true.any():
            continue
        precision, recall, _ = precision_recall_curve(true, score)
        keep = np.unique(np.linspace(0, len(recall) - 1, CURVE_POINTS).astype(int))
        curves.append(Curve(label, recall[keep].tolist(), precision[keep].tolist()))
        average[label] = float(-(np.diff(recall) * precision[:-1]).sum())
    return curves, average


def confused_pairs(answers: Answers) -> list[Pair]:
    """The pairs of labels that were taken for one another most often.

    Multi-label: the first was missed in a text that was wrongly given the second.
    """
    missed = (answers.true & ~answers.given).astype(np.float32)
    wrongly = (answers.given & ~answers.true).astype(np.float32)
    counts = (missed.T @ wrongly).astype(np.int64)  # (C, C)
    support = answers.true.sum(axis=0)
    most = np.argsort(-counts, axis=None, kind="stable")[:MAX_PAIRS]
    places = [divmod(int(at), len(answers.labels)) for at in most]
    return [
        Pair(answers.labels[i], answers.labels[j], int(counts[i, j]), counts[i, j] / support[i])
        for i, j in places
        if counts[i, j]
    ]


def slices(answers: Answers) -> dict[str, list[Slice]]:
    """The data by length, by label, and by the columns that its reader was asked for; empty where all is one part."""
    tables = {"Length": [_slice(answers, _tokens(*ends), part) for *ends, part in by_length(answers.tokens, 4)]}
    by_label = [_slice(answers, label, answers.true[:, i]) for i, label in enumerate(answers.labels)]
    by_label = sorted((s for s in by_label if s.n), key=lambda s: s.right.value)
    more = len(by_label) > MAX_LABEL_SLICES
    tables[f"Label, the {MAX_LABEL_SLICES} worst" if more else "Label"] = by_label[:MAX_LABEL_SLICES]
    for i, column in enumerate(answers.dataset.slices):
        values = np.array([example.slices[i] for example in answers.dataset.examples], dtype=object)
        tables[f"Column {column}"] = list(_by_value(answers, values))
    return {title: parts for title, parts in tables.items() if len(parts) > 1}


def worst_mistakes(answers: Answers, *, with_texts: bool) -> list[Mistake]:
    """The most confident wrong decisions, the worst first."""
    wrong = answers.given & ~answers.true
    if answers.is_multi:
        wrong |= answers.true & ~answers.given
    strength = np.where(answers.given, answers.scores, 1 - answers.scores)  # (N, C) of what was said
    places = np.argwhere(wrong)
    places = places[np.argsort(-strength[wrong], kind="stable")[:MAX_MISTAKES]]
    return [_mistake(answers, int(n), int(c), float(strength[n, c]), with_texts=with_texts) for n, c in places]


def _slice(answers: Answers, name: str, part: Mask) -> Slice:
    n = int(part.sum())
    right = wilson(int(answers.right[part].sum()), n) if n else Interval(0, 0, 0)
    overall = answers.right.mean()
    verdict = "below" if right.high < overall else "above" if right.low > overall else ""
    return Slice(name, n, right, float(answers.confidence[part].mean()) if n else 0.0, verdict)


def _by_value(answers: Answers, values: NDArray[Any]) -> Iterator[Slice]:
    common = [value for value, _ in Counter(values.tolist()).most_common(MAX_VALUES)]
    for value in common:
        yield _slice(answers, value or "(none)", values == value)
    rest = ~np.isin(values, common)
    if rest.any():
        yield _slice(answers, "(all others)", rest)


def _tokens(low: int, high: int) -> str:
    return f"{low} tokens" if low == high else f"{low} to {high} tokens"


def _mistake(answers: Answers, n: int, c: int, score: float, *, with_texts: bool) -> Mistake:
    example, label = answers.dataset.examples[n], answers.labels[c]
    text = example.text if isinstance(example.text, str) else " ⏐ ".join(example.text)
    said = label if answers.given[n, c] else f"not {label}"
    return Mistake(example.line, text if with_texts else "", ", ".join(example.labels) or "(none)", said, score)
