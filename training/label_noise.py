"""Rows whose label looks wrong, worst first: confident learning with a linear model on words and word pairs.

Northcutt, Jiang and Chuang 2021, https://arxiv.org/abs/1911.00068. A row is suspected where a model that has not
seen it gives another label a probability that is usual for rows of that label. Called by training/health.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import StratifiedKFold

from training.duplicates import normal
from training.linear import UNSPACED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from model.tokens import Text

FOLDS = 3
MIN_ROWS = 200  # below, what a linear model believes says nothing about a label
MIN_ACCURACY = 0.85  # below, no estimate: a weak model errs more often than the labels do, and
STRONG = 0.5  # only rows that it contradicts by this margin are suspected
MAX_ROWS, MAX_CHARACTERS, MAX_CELLS = 100_000, 20_000_000, 3_000_000  # read, of larger data; cells: rows * labels
ALONE = UNSPACED.pattern[1:-1]  # each character is taken for a word
WORD = re.compile(rf"[{ALONE}]|[^\W{ALONE}]+|[^\w\s]")


@dataclass(frozen=True)
class Suspects:
    """Suspected rows with the label that the model would give and its margin over the given one, worst first."""

    rows: list[tuple[int, str, float]]
    estimate: int | None  # wrong labels among the rows read, rather too many; None: the model is too weak to say
    accuracy: float  # of the linear model, out of sample
    rows_read: int


def suspects(texts: Sequence[Text], labels: Sequence[str], rows: NDArray[np.int64]) -> Suspects | None:
    """Which of `rows`, all of different texts, look mislabelled; None where there are too few to say.

    A label of fewer than FOLDS rows is left out.
    """
    rows = _bounded(rows, texts, len(set(labels)))
    given = np.array([labels[row] for row in rows])
    _, classes = np.unique(given, return_inverse=True)
    kept = np.bincount(classes)[classes] >= FOLDS
    rows, (names, classes) = rows[kept], np.unique(given[kept], return_inverse=True)
    if len(rows) < MIN_ROWS or len(names) < 2:
        return None
    probabilities = out_of_sample([texts[row] for row in rows], classes, len(names))
    joint, suspected, other = confident_joint(probabilities, classes)
    accuracy = float((probabilities.argmax(1) == classes).mean())
    margin = probabilities[np.arange(len(rows)), other] - probabilities[np.arange(len(rows)), classes]
    if accuracy < MIN_ACCURACY:
        suspected = suspected[margin[suspected] >= STRONG]
    ranked = suspected[np.argsort(-margin[suspected], kind="stable")]
    return Suspects(
        [(int(rows[i]), str(names[other[i]]), float(margin[i])) for i in ranked],
        round(joint.sum() - joint.trace()) if accuracy >= MIN_ACCURACY else None,
        accuracy,
        len(rows),
    )


def out_of_sample(texts: Sequence[Text], classes: NDArray[Any], num_classes: int) -> NDArray[np.float32]:
    """Probabilities (N, C) of each row, from a model that was trained on the other folds."""
    features = _features(texts)
    probabilities = np.zeros((len(texts), num_classes), np.float32)
    for train, held_out in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(features, classes):
        model = SGDClassifier(loss="log_loss", alpha=2e-5, max_iter=4, tol=None, random_state=0)
        model.fit(features[train], classes[train])
        probabilities[held_out[:, None], model.classes_] = model.predict_proba(features[held_out])
    return probabilities


def confident_joint(
    probabilities: NDArray[np.float32], classes: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows (C, C) by given and by true label as estimated, the rows (S,) off its diagonal, and (N,) their other label.

    probabilities (N, C) out of sample, classes (N,) as given. A class counts where its probability is at least the
    mean one among rows that are labelled with it (section 3.1 of the paper); counts are scaled to the rows per class.
    """
    own = np.arange(len(classes)), classes
    count = np.bincount(classes, minlength=probabilities.shape[1])
    threshold = np.bincount(classes, probabilities[own], len(count)) / np.maximum(count, 1)
    threshold[count == 0] = np.inf
    confident = np.where(probabilities >= threshold, probabilities, -1)
    other = confident.argmax(1)
    sure = confident.max(1) >= 0
    joint = np.zeros((len(count), len(count)))
    np.add.at(joint, (classes[sure], other[sure]), 1)
    joint *= (count / np.maximum(joint.sum(1), 1))[:, None]
    return joint, np.flatnonzero(sure & (other != classes)), other


def _features(texts: Sequence[Text]) -> Any:
    """TF-IDF of words and word pairs that more than one text has, sparse (N, F)."""
    hashing = HashingVectorizer(
        preprocessor=normal,
        tokenizer=WORD.findall,
        token_pattern=None,
        ngram_range=(1, 2),
        alternate_sign=False,
        norm=None,
        dtype=np.float32,
    )
    counts = hashing.transform(texts)
    several = np.bincount(counts.indices, minlength=counts.shape[1]) > 1
    return TfidfTransformer(sublinear_tf=True).fit_transform(counts[:, several])


def _bounded(rows: NDArray[np.int64], texts: Sequence[Text], num_labels: int) -> NDArray[np.int64]:
    """All rows, or of larger data a sample."""
    most = min(MAX_ROWS, MAX_CELLS // num_labels)
    sample = np.random.default_rng(0).permutation(rows)[:most]
    characters = np.cumsum([len(normal(texts[row])) for row in sample])
    return np.sort(sample[characters <= MAX_CHARACTERS])
