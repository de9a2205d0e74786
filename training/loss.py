"""What the loop's logits are held against: the labels, weighed where that is asked, a guide's and a teacher's scores.

Letters: N training rows, M texts made of them, B rows of a batch, C labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from model.scores import MULTI
from training.data import targets
from training.exposure import exposure_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from training.run import Run


class Aim:
    """The truth of a run's training rows, and of the texts that its guide has."""

    def __init__(self, run: Run) -> None:
        self._config = run.config
        self._is_multi = run.problem_type == MULTI
        labelled = torch.from_numpy(targets(run.train, run.labels))  # (N,) or (N, C)
        truth = labelled if run.guide is None else torch.from_numpy(run.guide.truth)  # (N + M, C)
        self._truth = truth.to(run.device)
        self._teacher = None if run.teacher is None else torch.from_numpy(run.teacher).to(run.device)  # (N + M, C)
        self._weights = None
        if run.config.class_weights == "balanced":
            self._weights = balanced_weights(labelled, len(run.labels)).to(run.device)

    def loss(self, logits: Tensor, indices: Sequence[int]) -> Tensor:
        """The loss of logits: of the rows at indices (B,), with r_drop all twice, then of rows out of scope."""
        inside, outside = logits[: len(indices)], logits[len(indices) :]
        return self._of_rows(inside, indices) + self._config.outlier_exposure * exposure_loss(outside)

    def _of_rows(self, logits: Tensor, indices: Sequence[int]) -> Tensor:
        """That of the rows; logits (B, C)."""
        config, truth = self._config, self._truth[indices]
        loss = loss_of(logits, truth, config.label_smoothing, self._weights, is_multi=self._is_multi)
        if config.r_drop:
            loss = loss + config.r_drop * disagreement(*logits.chunk(2), is_multi=self._is_multi)
        if self._teacher is None:
            return loss
        hers = distillation_loss(logits, self._teacher[indices], config.teacher_temperature, is_multi=self._is_multi)
        return (1 - config.teacher_weight) * loss + config.teacher_weight * hers


def loss_of(
    logits: Tensor, truth: Tensor, smoothing: float = 0.0, weights: Tensor | None = None, *, is_multi: bool
) -> Tensor:
    """Cross-entropy against class ids (B,) or probabilities (B, C), or a binary one per label; weights (C,).

    A row whose labels are probabilities weighs what they weigh on average: were each weighed by itself, a rare one that
    is hardly likely would outweigh the others.
    """
    if is_multi:
        return F.binary_cross_entropy_with_logits(logits, truth, pos_weight=weights)
    losses = F.cross_entropy(logits, truth, label_smoothing=smoothing, reduction="none")
    if weights is None:
        return losses.mean()
    of_rows = weights[truth] if truth.dim() == 1 else truth @ weights
    return (losses * of_rows).sum() / of_rows.sum()


def balanced_weights(truth: Tensor, num_labels: int) -> Tensor:
    """Weights (C,) with which every label counts alike, as scikit-learn's "balanced": rows / (labels * its rows).

    Multi-label: what a text with the label counts for each without it.
    """
    if truth.dim() == 2:
        having = truth.sum(dim=0)
        return (len(truth) - having) / having.clamp(min=1)
    counts = torch.bincount(truth, minlength=num_labels).clamp(min=1)
    return len(truth) / (num_labels * counts.float())


def disagreement(first: Tensor, second: Tensor, *, is_multi: bool) -> Tensor:
    """How far two readings of the same rows, logits (B, C) each, are from one another, as dropout let them differ.

    The mean of both directions' divergence (Liang et al. 2021, R-Drop, https://arxiv.org/abs/2106.14448, section 2.1).
    """
    if is_multi:
        return ((first.sigmoid() - second.sigmoid()) * (first - second)).mean() / 2
    p, q = F.log_softmax(first, dim=1), F.log_softmax(second, dim=1)
    return ((p.exp() - q.exp()) * (p - q)).sum(dim=1).mean() / 2


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float, *, is_multi: bool) -> Tensor:
    """How far the scores of logits (B, C) are from the teacher's, both at a temperature, whose square it is scaled by.

    Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2.
    """
    ours, theirs = logits / temperature, teacher / temperature
    if is_multi:
        return F.binary_cross_entropy_with_logits(ours, theirs.sigmoid()) * temperature**2
    ours, theirs = F.log_softmax(ours, dim=1), F.log_softmax(theirs, dim=1)
    return F.kl_div(ours, theirs, log_target=True, reduction="batchmean") * temperature**2
