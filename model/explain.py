"""Why a label: a score per token by integrated gradients, and attention weights for those who look at them.

The embedded text is led along a straight line from a baseline, the same row with its tokens masked, and
each token's share of what the target gains on the way is its score (Sundararajan, Taly and Yan 2017,
https://arxiv.org/abs/1703.01365). Completeness: the scores sum to target(text) - target(baseline), and that holds
for every piece of the line too; so a piece whose sum is off is one that needs more points, and is halved.

Why this baseline, target and number of points: benchmarks/RESULTS.md, "Explanations".
Called by service/predictor.py step by step, so that other work gets its turn in between.
Letters: L tokens of the row, D width, P points on the line, C labels, H heads, K = D // H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from model.attention import SelfAttention
from model.attribution import POINTS, Attribution
from model.batch import make_batch

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from torch import Tensor

    from model.attention import View
    from model.batch import Batch
    from model.encoder import Classifier
    from model.tokens import Row

MAX_PIECES = 32
TOLERANCE = 0.05  # of the target, log-odds
STEP_TOKENS = 64  # of one forward and backward pass, longer rows one by one: what others may have to wait for

_nodes, _weights = np.polynomial.legendre.leggauss(POINTS)
NODES = torch.tensor((_nodes + 1) / 2, dtype=torch.float32)  # Gauss-Legendre, in (0, 1)
WEIGHTS = torch.tensor(_weights / 2, dtype=torch.float32)


def explain(classifier: Classifier, row: Row, baseline: Row, label: int, *, is_multi: bool = False) -> Attribution:
    """What each token adds to the target of a label id: its log-odds against the others, or its logit.

    is_multi: labels are independent, the target is the logit. The classifier computes in its own precision;
    fp32 is what TOLERANCE is for. Sets nothing in it, and needs no gradients of its parameters.
    """
    steps = explain_steps(classifier, row, baseline, label, is_multi=is_multi)
    return next(attribution for attribution in steps if attribution is not None)


def explain_steps(
    classifier: Classifier, row: Row, baseline: Row, label: int, *, is_multi: bool = False
) -> Iterator[Attribution | None]:
    """explain() as passes of at most STEP_TOKENS tokens (or one row): None after each, the attribution at the end."""
    line = Line(classifier, row, baseline, label, is_multi=is_multi)
    start, stop = line.ends()
    yield None
    pieces = [(yield from line.piece(0.0, 1.0, start, stop))]
    while sum(abs(p.gap) for p in pieces) > TOLERANCE and len(pieces) < MAX_PIECES:
        worst = max(pieces, key=lambda p: abs(p.gap))
        pieces.remove(worst)
        half = (worst.start + worst.stop) / 2
        pieces.append((yield from line.piece(worst.start, half, worst.target_start, worst.target_half)))
        pieces.append((yield from line.piece(half, worst.stop, worst.target_half, worst.target_stop)))
    scores = torch.stack([p.scores for p in pieces]).sum(0)
    yield Attribution(scores.tolist(), sum(p.gap for p in pieces))


@dataclass(frozen=True, eq=False)
class Piece:
    """The part of the line from start to stop: the target at three points of it, each token's share of the gain."""

    start: float
    stop: float
    target_start: float
    target_half: float
    target_stop: float
    scores: Tensor  # (L,)

    @property
    def gap(self) -> float:
        """What the scores leave of the target's gain, as far as the points see it."""
        return self.target_stop - self.target_start - float(self.scores.sum())


class Line:
    """The straight line from the embedded baseline to the embedded text."""

    def __init__(self, classifier: Classifier, row: Row, baseline: Row, label: int, *, is_multi: bool) -> None:
        self.classifier, self.row, self.label, self.is_multi = classifier, row, label, is_multi
        with torch.no_grad():
            ends = [self._read(end) for end in (baseline, row)]
        self.origin, self.way = ends[0], ends[1] - ends[0]  # each (L, D), or (L, D + C)

    @torch.no_grad()
    def ends(self) -> tuple[float, float]:
        """The target at the baseline and at the text."""
        x = torch.cat((self.origin, self.origin + self.way))
        start, stop = self._target(x, 2).tolist()
        return start, stop

    def piece(self, start: float, stop: float, target_start: float, target_stop: float) -> Generator[None, None, Piece]:
        """Integrate the gradient from start to stop, both in [0, 1]."""
        scores, targets = torch.zeros(len(self.row.ids)), []
        width = stop - start
        n = max(1, STEP_TOKENS // len(self.row.ids))
        for nodes, weights in zip(NODES.split(n), WEIGHTS.split(n), strict=True):
            target, gradient = self._gradient(start + width * nodes)
            scores += width * (weights @ gradient)
            targets += target.tolist()
            yield
        return Piece(start, stop, target_start, targets[POINTS // 2], target_stop, scores)

    @torch.enable_grad()
    def _gradient(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Targets (P,) at points of the line, and how fast each token changes them there (P, L), on the CPU."""
        steps = at.to(self.way)[:, None, None]
        x = (self.origin + steps * self.way).flatten(0, 1).requires_grad_()  # (P * L, D), or D + C
        target = self._target(x, len(at))
        [gradient] = torch.autograd.grad(target.sum(), x)
        along = (gradient.view(len(at), *self.way.shape) * self.way).sum(-1, dtype=torch.float32)  # (P, L)
        return target.detach().cpu(), along.cpu()

    def _target(self, x: Tensor, rows: int) -> Tensor:
        """Vectors of so many rows (rows * L, D, with n-grams D + C) -> what is explained (rows,)."""
        embedded, added = x.tensor_split([self.classifier.config.width], dim=1)
        logits = self.classifier.logits(embedded, self._batch([self.row] * rows))  # (rows, C)
        if self.classifier.ngrams is not None:
            logits = logits + added.view(rows, len(self.row.ids), -1).sum(1) + self.classifier.ngrams.bias
        if self.is_multi or logits.shape[1] == 1:
            return logits[:, self.label]
        others = torch.cat((logits[:, : self.label], logits[:, self.label + 1 :]), dim=1)
        return logits[:, self.label] - others.logsumexp(1)

    def _batch(self, rows: Sequence[Row]) -> Batch:
        return batch_for(self.classifier, rows)

    def _read(self, row: Row) -> Tensor:
        """Embedded tokens (L, D), and where there are n-grams what each adds to the logits by them (L, D + C)."""
        batch = self._batch([row])
        x: Tensor = self.classifier.encoder.embeddings(batch)
        ngrams = self.classifier.ngrams
        return x if ngrams is None else torch.cat((x, ngrams.of_tokens(batch).to(x.dtype)), dim=1)


def batch_for(classifier: Classifier, rows: Sequence[Row]) -> Batch:
    """Rows of one length, one after another and nothing behind them, where the classifier is."""
    config = classifier.config
    return make_batch(rows, "padded", config.pad_id, config.first_position).to(
        classifier.encoder.embeddings.tokens.weight.device
    )


@torch.no_grad()
def attention_weights(classifier: Classifier, row: Row) -> Tensor:
    """Where each head looks: (layers, H, L, L), [layer, head, query] sums to 1 over the keys; on the CPU, in fp32.

    Not why a label won: heads look at [SEP] and punctuation where there is nothing to fetch, and other weights
    can give the same answer (Jain and Wallace 2019, https://arxiv.org/abs/1902.10186; Wiegreffe and Pinter 2019,
    https://arxiv.org/abs/1908.04626, on what may be read from them all the same). Deleting the tokens that they
    rank first moves the score less than deleting those of explain(): benchmarks/RESULTS.md.
    Raises ValueError for a family whose positions take part in the weights (DeBERTa).
    """
    if classifier.config.relative is not None:
        raise ValueError(f"attention weights of relative positions are not computed: {classifier.config.family}")
    layers: list[Tensor] = []

    def look(attention: SelfAttention, inputs: tuple[Tensor, View]) -> None:
        layers.append(_weights_of(attention, *inputs))

    attentions = [module for module in classifier.encoder.modules() if isinstance(module, SelfAttention)]
    hooks = [attention.register_forward_pre_hook(look) for attention in attentions]
    try:
        classifier(batch_for(classifier, [row]))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(layers)


def _weights_of(attention: SelfAttention, x: Tensor, view: View) -> Tensor:
    """(L, D) of one row -> (H, L, L), by the formula that the fused kernel keeps to itself."""
    q, k, _ = attention.project(x, view)  # each (L, H, K)
    logits = torch.einsum("qhk,lhk->hql", q.float(), k.float()) * attention.scale  # (H, L, L)
    if view.reach is not None:
        at = torch.arange(len(x), device=x.device)
        logits = logits.masked_fill((at[:, None] - at).abs() > view.reach, -torch.inf)
    weights: Tensor = logits.softmax(-1)
    return weights.cpu()
