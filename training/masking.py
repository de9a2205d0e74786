"""Rows -> batches with words hidden, and the order in which a run reads rows. Pure functions of their seeds.

Whole words are hidden, 30% of them, as in ModernBERT (https://arxiv.org/abs/2412.13663, section 2.2), and each hidden
token becomes [MASK]: leaving some as they were or drawing others, BERT's 80-10-10, does not help (Wettig et al. 2023,
https://arxiv.org/abs/2202.08005).

Letters: T tokens of all rows, M tokens that are hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from model.batch import make_batch
from model.tokens import Row
from training.corpus import GOES_ON, ID, SPECIAL

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from model.batch import Batch, Layout
    from model.encoder import EncoderConfig
    from training.corpus import Tokens


@dataclass(frozen=True)
class Masked:
    """A batch with words hidden: their places (M,) on its token axis, and the ids (M,) that stood there.

    tokens are those of the rows, hidden ones included.
    """

    batch: Batch
    places: Tensor
    truth: Tensor
    tokens: int

    def to(self, device: torch.device) -> Masked:
        """The same on a device."""
        return Masked(self.batch.to(device), self.places.to(device), self.truth.to(device), self.tokens)


def mask_rows(
    rows: list[Tokens], layout: Layout, config: EncoderConfig, mask_id: int, share: float, seed: tuple[int, ...]
) -> Masked:
    """Hide a share of the words of stored rows."""
    stored = np.concatenate(rows)  # (T,)
    hidden = choose_words(stored, share, np.random.default_rng(seed))
    ids = (stored & ID).astype(np.int64)
    truth = ids[hidden]
    ids[hidden] = mask_id
    lengths = np.array([len(row) for row in rows])
    ends = np.cumsum(lengths)
    parts = [Row(part.tolist()) for part in np.split(ids, ends[:-1])]
    batch = make_batch(parts, layout, config.pad_id, config.first_position)
    places = np.arange(len(ids)) + np.repeat(batch.starts.numpy() - (ends - lengths), lengths)  # (T,)
    return Masked(batch, torch.from_numpy(places[hidden]), torch.from_numpy(truth), len(ids))


def choose_words(stored: Tokens, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which stored tokens (T,) to hide: each word with probability `share`, no special token, at least one word."""
    word = np.cumsum((stored & GOES_ON) == 0) - 1  # (T,)
    draw = rng.random(word[-1] + 1)[word]  # (T,), one for all tokens of a word
    draw[(stored & SPECIAL) != 0] = np.inf
    hidden: NDArray[np.bool_] = draw <= max(share, draw.min())
    return hidden


def epoch_plan(lengths: NDArray[np.int64], batch_tokens: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Row indices of each batch of an epoch: shuffled, up to batch_tokens in each and in all about equally many.

    The same for the same arguments, which is what makes a resumed run exact.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(lengths))
    ends = np.cumsum(lengths[order])
    share = max(batch_tokens - lengths.max(), lengths.max())  # a batch is over its share by less than a row
    batches = -(-ends[-1] // share)
    of_batch = (ends - 1) * batches // ends[-1]
    return np.split(order, np.flatnonzero(np.diff(of_batch)) + 1)
