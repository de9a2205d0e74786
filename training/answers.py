"""What a model said of labelled texts: made by training/evaluate.py and finish.py, shown by training/report_page.py.

Letters: N texts, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from model.scores import Array, Calibration, Judged
    from training.data import Dataset

    Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a model said of one labelled data set."""

    dataset: Dataset
    labels: Sequence[str]
    logits: Array  # (N, C)
    judged: Judged
    truth: NDArray[Any]  # class ids (N,), or an indicator (N, C) where multi-label
    tokens: Sequence[int]  # (N,) of each text, before it is cut
    calibration: Calibration
    outside: Array  # logits (M, C) of texts that are of no class
    cross_fitted: bool = False  # each text judged by a calibration that was fitted on others of them

    @property
    def scores(self) -> Array:
        """(N, C), calibrated."""
        return self.judged.scores

    @property
    def is_multi(self) -> bool:
        """Whether a text has any number of labels."""
        return self.truth.ndim == 2

    @cached_property
    def true(self) -> Mask:
        """(N, C), True where the text has the label."""
        if self.is_multi:
            return self.truth.astype(bool)
        return np.asarray(np.arange(len(self.labels)) == self.truth[:, None])

    @cached_property
    def said(self) -> NDArray[Any]:
        """Class ids (N,), or True where the label is given (N, C), as `truth` has them."""
        if self.is_multi:
            assert self.judged.sets is not None
            return self.judged.sets
        return np.asarray(self.scores.argmax(axis=1))

    @cached_property
    def given(self) -> Mask:
        """(N, C), True where the model gives the label."""
        return self.said if self.is_multi else np.asarray(np.arange(len(self.labels)) == self.said[:, None])

    @cached_property
    def right(self) -> Mask:
        """(N,), True where all of the text's labels are right."""
        return np.asarray((self.given == self.true).all(axis=1))

    @cached_property
    def confidence(self) -> Array:
        """(N,), score of the text's best label."""
        return np.asarray(self.scores.max(axis=1))

    @property
    def lowest_confidence(self) -> float:
        """Where an axis of confidences starts: no decision between two has less than a half."""
        return 0.5 if self.is_multi or len(self.labels) == 2 else 0.0
