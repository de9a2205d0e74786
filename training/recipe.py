"""What a run follows where its settings say nothing, chosen from its data: rows, labels, lengths. Pure functions.

The rules come from `benchmarks/accuracy.py` (benchmarks/RESULTS.md, "Training"); each is a setting, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.build import TrainConfig

READ_WHOLE = 0.99  # of the training rows
SHORTEST, LONGEST = 64, 512  # tokens, of which a model reads at least and, unless told otherwise, at most
FULL_EPOCHS = 100_000  # rows, of which two epochs are enough
MOST_EPOCHS = 20
SMALLEST_BATCH, LARGEST_BATCH = 16, 256  # rows


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how fast a run learns."""

    epochs: int
    batch_rows: int
    lr: float  # peak


def choose_recipe(config: TrainConfig, rows: int, num_labels: int, *, from_scratch: bool) -> Recipe:
    """The settings, and where they say nothing what the data asks for.

    Epochs: 2 of 100,000 rows of two labels, more of fewer rows by the square root, and of more labels by
    1 + log10(labels / 2) / 2; 1 to 20. Batch: a quarter of the square root of the rows, as a power of two, 16 to 256.
    Rate: for 32 rows a batch 5e-4 from scratch, 1e-4 from an encoder; by the square root of the batch beyond
    (Malladi et al. 2022, https://arxiv.org/abs/2205.10287, for Adam).
    """
    variety = 1 + math.log10(max(num_labels, 2) / 2) / 2
    epochs = round(2 * math.sqrt(FULL_EPOCHS / rows) * variety)
    batch = 2 ** round(math.log2(max(1.0, math.sqrt(rows) / 4)))
    batch_rows = config.batch_rows or min(LARGEST_BATCH, max(SMALLEST_BATCH, batch))
    lr = (5e-4 if from_scratch else 1e-4) * math.sqrt(batch_rows / 32)
    return Recipe(epochs=config.epochs or min(MOST_EPOCHS, max(1, epochs)), batch_rows=batch_rows, lr=config.lr or lr)


def read_length(lengths: Sequence[int]) -> int:
    """Tokens that hold READ_WHOLE of the rows whole, a multiple of 16 from SHORTEST to LONGEST."""
    return min(LONGEST, max(SHORTEST, math.ceil(float(np.quantile(lengths, READ_WHOLE)) / 16) * 16))
