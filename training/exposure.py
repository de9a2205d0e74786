"""Outlier exposure: rows that are of no class teach the model to be sure of nothing on texts like them.

Hendrycks et al. 2019, https://arxiv.org/abs/1812.04606. Called by the loop in training/train.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from model.tokens import Row

SHARE = 16  # a batch has one of them for so many rows


def draw(outside: Sequence[Row], batch_rows: int, seed: tuple[int, ...]) -> list[Row]:
    """Those that go with a batch: the same for a seed, which is what makes a resumed run exact."""
    wanted = min(len(outside), max(1, batch_rows // SHARE))
    rng = np.random.default_rng(seed)
    return [outside[i] for i in rng.choice(len(outside), wanted, replace=False)] if wanted else []


def exposure_loss(logits: Tensor) -> Tensor:
    """Mean cross-entropy of rows against the uniform distribution; logits (B, C), 0 where there are no rows."""
    return -logits.log_softmax(dim=1).mean(dim=1).sum() / max(len(logits), 1)
