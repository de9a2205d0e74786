"""The linear line: TF-IDF with linear support vectors, on the rows that the encoder is trained on.

What an encoder has to beat to be worth its cost; training/comparison.py says whether it does. It has what the encoder
has: fitted on the training rows, chosen by dev (how strongly it is held back; thresholds where multi-label).

Measured on 2,000 rows of each of eleven sets: the support vectors are as good as logistic regression or better, at a
tenth of the time, and punctuation and n-grams that occur once help more often than not.
Letters: N texts, C labels, V features.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from scipy.sparse import hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import FeatureUnion
from sklearn.svm import LinearSVC

from model.scores import SINGLE
from training.calibrate import FOLDS, SHRINK, folds
from training.data import targets
from training.evaluate import f1_scores

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from model.tokens import Text
    from training.data import Dataset

GRAMS: dict[str, dict[str, Any]] = {
    "words": {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"\w+|[^\w\s]"},
    "characters": {"analyzer": "char", "ngram_range": (1, 3)},
}
# Kana, CJK, Thai, Lao, Burmese and Khmer: no spaces between words
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
LETTER = re.compile(r"[^\W\d_]")
ENOUGH = 0.1  # of the letters: a way of writing that is worth features of its own
LOOKED_AT = 10_000  # texts, to tell how they are written
STRENGTHS = (1.0, 0.3, 3.0, 0.1)  # of the fit to the training rows (C); of equals on dev the first is taken

# What bounds time and memory, whatever the data. So many characters are some 20 M n-grams.
MAX_ROWS = 200_000
MAX_CELLS = 10_000_000  # rows times labels, each of which has a line of its own
MAX_CHARACTERS = {"words": 50_000_000, "characters": 6_000_000}
MAX_FEATURES = 500_000  # of each kind of n-gram, the most frequent
ROWS_OF_RARE = 100  # of each label are taken first, where not all rows are
CHUNK_ROWS = 50_000
NEVER = -10.0  # margin of a label without rows


@dataclass(frozen=True)
class LinearLine:
    """A fitted line, and what it was made of."""

    features: Features
    classifier: Any  # decision_function (N, V) -> margins of the labels that it has seen
    labels: int
    strength: float
    rows: int  # that it was trained on

    def margins(self, texts: Sequence[Text]) -> NDArray[np.float64]:
        """How clearly each text is on a label's side, (N, C)."""
        chunks = [texts[i : i + CHUNK_ROWS] for i in range(0, len(texts), CHUNK_ROWS)]
        return np.concatenate([self.of(self.features.transform(chunk)) for chunk in chunks])

    def of(self, X: Any) -> NDArray[np.float64]:
        """The same of their features, (N, V) -> (N, C)."""
        return _margins(self.classifier, X, self.labels)

    def made_by(self) -> dict[str, Any]:
        """What it is, for the manifest."""
        return {"grams": self.features.grams, "strength": self.strength, "rows": self.rows}


class Features(Protocol):
    """Texts as numbers."""

    grams: list[str]  # their kinds, in words
    limit: int  # characters of the texts to learn from

    def fit_transform(self, texts: Sequence[Text]) -> Any:
        """Learn the n-grams and how rare they are; what transform() says of the same texts."""

    def transform(self, texts: Sequence[Text]) -> Any:
        """Sparse (N, V)."""


class TextGrams:
    """TF-IDF of n-grams; of a pair those of each text, and those of both."""

    def __init__(self, grams: Sequence[str], is_paired: bool) -> None:
        self.grams, self.is_paired = list(grams), is_paired
        self.limit = most_characters(grams)
        common = {"sublinear_tf": True, "max_features": MAX_FEATURES, "dtype": np.float32}
        self.union = FeatureUnion([(name, TfidfVectorizer(**GRAMS[name], **common)) for name in grams])

    def fit_transform(self, texts: Sequence[Text]) -> Any:
        """Learn the n-grams and how rare they are; sparse (N, V)."""
        self.union.fit([side for text in texts for side in sides(text)[: 1 + self.is_paired]])
        return self.transform(texts)

    def transform(self, texts: Sequence[Text]) -> Any:
        """Sparse (N, V)."""
        first, second = zip(*map(sides, texts), strict=True)
        X = self.union.transform(first)
        if not self.is_paired:
            return X
        Y = self.union.transform(second)
        return hstack([X, Y, X.multiply(Y)], format="csr")


def fit_line(train: Dataset, dev: Dataset, labels: Sequence[str], features: Features | None = None) -> LinearLine:
    """The best line on dev of those that differ in strength, trained on the rows of `train` or a sample of them.

    Without `features`, on n-grams of words or characters, as the texts are written.
    """
    features = features or TextGrams(choose_grams(train.texts), any(not isinstance(text, str) for text in train.texts))
    train, dev = (
        part.subset(part.name, [part.examples[i] for i in sample(part, features.limit)]) for part in (train, dev)
    )
    X, X_dev = features.fit_transform(train.texts), features.transform(dev.texts)
    truth, dev_truth = _truth(train, labels), _truth(dev, labels)

    def of_strength(strength: float) -> tuple[float, LinearLine]:
        classifier = _fitted(X, truth, strength)
        margins = _margins(classifier, X_dev, len(labels))
        answers = best_label(margins) if truth.ndim == 1 else cross_given(margins, dev_truth)
        return agreement(answers, dev_truth), LinearLine(
            features, classifier, len(labels), strength, len(train.examples)
        )

    return max(map(of_strength, STRENGTHS), key=lambda scored: scored[0])[1]


def crossed_margins(line: LinearLine, train: Dataset, labels: Sequence[str]) -> NDArray[np.float64]:
    """What the line says of its own training rows without them, (N, C): of rows it has seen it repeats the labels.

    For each fifth (calibrate.folds) it is fitted again to the others; of a label that only that fifth has it says what
    it says with them.
    """
    taken = sample(train, line.features.limit)
    part = train.subset(train.name, [train.examples[i] for i in taken])
    X, truth, fold = line.features.transform(part.texts), _truth(part, labels), folds(len(train.examples))
    has = truth.T if truth.ndim == 2 else np.arange(len(labels))[:, None] == truth  # (C, N)
    margins = np.empty((len(train.examples), len(labels)))
    for k in range(FOLDS):
        chosen, others = np.flatnonzero(fold == k).tolist(), fold[taken] != k
        if not chosen:
            continue
        some, seen = [train.texts[i] for i in chosen], has[:, others].any(axis=1)
        again = line
        if truth.ndim == 2 or seen.sum() > 1:
            again = replace(line, classifier=_fitted(X[others], truth[others], line.strength))
        margins[chosen] = again.margins(some)
        if (only_here := has.any(axis=1) & ~seen).any():
            margins[chosen] = np.where(only_here, line.margins(some), margins[chosen])
    return margins


def answers_of(line: LinearLine, held_out: Mapping[str, Dataset], labels: Sequence[str]) -> dict[str, NDArray[Any]]:
    """What the line says of each held-out data set: class ids (N,), or True where a label is given (N, C).

    `held_out` has "dev", which the line was chosen on; its thresholds are those of all other data, for each row of dev
    they are fitted without it.
    """
    margins = {name: line.margins(dataset.texts) for name, dataset in held_out.items()}
    if held_out["dev"].problem_type == SINGLE:
        return {name: best_label(m) for name, m in margins.items()}
    truth = _truth(held_out["dev"], labels)
    thresholds = fit_thresholds(margins["dev"], truth)
    given = {name: m >= thresholds for name, m in margins.items()}
    return given | {"dev": cross_given(margins["dev"], truth)}


def choose_grams(texts: Sequence[Text]) -> list[str]:
    """Words where a tenth of the letters are of scripts with spaces between words, characters where of others, or both.

    Told by 10,000 texts that are spread over the data.
    """
    some = [side for text in texts[:: max(1, len(texts) // LOOKED_AT)] for side in sides(text)]
    unspaced = sum(len(UNSPACED.findall(text)) for text in some)
    spaced = sum(len(LETTER.findall(UNSPACED.sub("", text))) for text in some)
    enough = ENOUGH * (spaced + unspaced)
    kinds = [name for name, n in (("words", spaced), ("characters", unspaced)) if n >= enough and n]
    return kinds or ["characters"]  # of texts without a letter


def most_characters(grams: Sequence[str]) -> int:
    """Of texts to learn such n-grams from."""
    return min(MAX_CHARACTERS[name] for name in grams)


def sample(dataset: Dataset, max_characters: int) -> list[int]:
    """Which rows to take: all within the limits, else as many as fit, drawn at random, rare labels first.

    The same for the same data.
    """
    n = len(dataset.examples)
    most = min(MAX_ROWS, MAX_CELLS // max(1, len(dataset.label_names)))
    characters = np.array([sum(map(len, sides(text))) for text in dataset.texts])
    if n <= most and characters.sum() <= max_characters:
        return list(range(n))
    order = np.array(list(_rare_first(dataset, np.random.default_rng(0).permutation(n))))
    fits = int(np.searchsorted(characters[order].cumsum(), max_characters, side="right"))
    return sorted(order[: min(most, max(fits, 2))].tolist())


def _rare_first(dataset: Dataset, order: NDArray[np.int64]) -> Iterator[int]:
    """The same rows; before the others, for each label the first ROWS_OF_RARE."""
    seen: dict[str, int] = {}
    others = []
    for i in order.tolist():
        labels = dataset.examples[i].labels
        if any(seen.get(label, 0) < ROWS_OF_RARE for label in labels):
            yield i
        else:
            others.append(i)
        seen.update({label: seen.get(label, 0) + 1 for label in labels})
    yield from others


def best_label(margins: NDArray[np.float64]) -> NDArray[np.int64]:
    """Class ids (N,) from margins (N, C)."""
    best: NDArray[np.int64] = margins.argmax(axis=1)
    return best


def fit_thresholds(margins: NDArray[np.float64], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Per label the margin from which on it is given, for the best macro-F1; (N, C), (N, C) -> (C,).

    Of a label with n positives between its own best and the best of all labels together, n to SHRINK: that of a rare
    label alone is noise.
    """
    own = _best_threshold(margins, truth)
    shared = _best_threshold(margins.reshape(-1, 1), truth.reshape(-1, 1))
    n = truth.sum(axis=0)
    thresholds: NDArray[np.float64] = (n * own + SHRINK * shared) / (n + SHRINK)
    return thresholds


def _best_threshold(margins: NDArray[np.float64], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The threshold of each column's best F1."""
    order = np.argsort(-margins, axis=0)
    ranked, right = (np.take_along_axis(part, order, axis=0) for part in (margins, truth))
    given = np.arange(1, len(margins) + 1)[:, None]
    hits = right.cumsum(axis=0)
    last = np.append(np.diff(ranked, axis=0) != 0, np.ones_like(right[:1]), axis=0)  # of equal margins
    best = np.where(last, f1_scores(hits, given - hits, right.sum(axis=0) - hits), -1).argmax(axis=0)
    thresholds: NDArray[np.float64] = ranked[best, np.arange(len(best))]
    return thresholds


def cross_given(margins: NDArray[np.float64], truth: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """True where a label is given (N, C), in each fifth of the rows by the thresholds of the other four.

    A row that is alone is judged by its margins.
    """
    fold = folds(len(margins))
    given = margins >= 0
    for i in range(FOLDS):
        if (fold != i).any():
            given[fold == i] = margins[fold == i] >= fit_thresholds(margins[fold != i], truth[fold != i])
    return given


def agreement(answers: NDArray[Any], truth: NDArray[Any]) -> float:
    """What the line is chosen by: accuracy, or macro-F1 where multi-label."""
    if truth.ndim == 1:
        return float((answers == truth).mean())
    true = (answers & truth).sum(axis=0)
    return float(f1_scores(true, answers.sum(axis=0) - true, truth.sum(axis=0) - true).mean())


def sides(text: Text) -> tuple[str, str]:
    """Both texts of a pair; the second is empty where there is one."""
    return (text, "") if isinstance(text, str) else text


def _truth(dataset: Dataset, labels: Sequence[str]) -> NDArray[Any]:
    return targets(dataset, labels).astype(np.int64 if dataset.problem_type == SINGLE else np.bool_)


def _fitted(X: Any, truth: NDArray[Any], strength: float) -> Any:
    """One label against the rest, for every label."""
    classifier = LinearSVC(C=strength, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cut short, or a label on no row: dev judges the line as it is
        return (classifier if truth.ndim == 1 else OneVsRestClassifier(classifier)).fit(X, truth.astype(np.int64))


def _margins(classifier: Any, X: Any, num_labels: int) -> NDArray[np.float64]:
    """A column for each label (N, C): of two labels half each; a label that no row had is on no text's side."""
    seen: NDArray[np.float64] = classifier.decision_function(X)
    if seen.ndim == 1:
        seen = seen[:, None] if num_labels == 1 else np.stack([-seen / 2, seen / 2], axis=1)
    if isinstance(classifier, OneVsRestClassifier):  # which puts 0 for a label that all rows, or none, had
        never = [not hasattr(of_label, "coef_") and not of_label.y_.any() for of_label in classifier.estimators_]
        seen[:, never] = NEVER
    if seen.shape[1] == num_labels:
        return seen
    margins = np.full((len(seen), num_labels), NEVER)
    margins[:, classifier.classes_] = seen
    return margins
