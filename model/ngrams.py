"""What single tokens and pairs of neighbours say of the labels, beside the encoder: a linear model inside the network.

Wide and deep (Cheng et al. 2016, https://arxiv.org/abs/1606.07792, section 3): a small encoder does not keep what a
hundred thousand word pairs say, a table does, and the two are wrong about different texts. The logits of both add up.

A row's logits are the sum over its n-grams of idf² * weights, over the root of the sum of idf²: TF-IDF, where an n-gram
that occurs twice counts twice. Fitted by training/ngrams.py, computed in Classifier.forward.
Letters: T tokens of all rows, B rows, F n-grams, C labels, V tokens of the vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.family import UnsupportedCheckpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.batch import Batch

NONE = -1  # key of no n-gram
KEYS, TABLE = "ngrams.keys", "ngrams.table"  # in model.safetensors


class NGrams(nn.Module):
    """The table: n-gram keys (F,), in order, and what each adds, (F, C + 1), in the last column its idf²."""

    keys: Tensor
    table: Tensor

    def __init__(self, keys: Tensor, table: Tensor, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.register_buffer("keys", keys)
        self.register_buffer("table", table)

    def forward(self, batch: Batch) -> Tensor:
        """A Batch of B rows -> fp32 logits (B, C)."""
        return add_up(self.of_tokens(batch), batch)

    def of_tokens(self, batch: Batch) -> Tensor:
        """What each token adds to the logits of its row (T, C); of a pair each has half."""
        keys = ngram_keys(batch.ids, batch.rows, self.vocab_size)  # (2, T)
        at = torch.searchsorted(self.keys, keys).clamp_(max=len(self.keys) - 1)
        is_known = (self.keys[at] == keys)[..., None]
        single, pair = (self.table[at] * is_known).float()  # each (T, C + 1)
        square = add_up((single + pair)[:, -1:], batch, with_padding=True)[batch.rows]  # (T, 1)
        added = single[:, :-1] + pair[:, :-1] / 2
        added[:-1] += pair[1:, :-1] / 2
        shares: Tensor = added * square.clamp(min=torch.finfo(square.dtype).tiny).rsqrt()
        return shares


def add_up(x: Tensor, batch: Batch, *, with_padding: bool = False) -> Tensor:
    """The sum over the tokens of each row, (T, any) -> (B, any); with_padding adds a row, of what is in no row."""
    sums = x.new_zeros(len(batch.starts) + 1, x.shape[1]).index_add(0, batch.rows, x)
    return sums if with_padding else sums[:-1]


def ngram_keys(ids: Tensor, rows: Tensor, vocab_size: int) -> Tensor:
    """Keys (2, T) of each token, and of it with the one before it in its row: id, and (id before + 1) * V + id."""
    pairs = torch.full_like(ids, NONE)
    pairs[1:] = torch.where(rows[1:] == rows[:-1], (ids[:-1] + 1) * vocab_size + ids[1:], NONE)
    return torch.stack((ids, pairs))


def read_ngrams(weights: Mapping[str, Tensor], vocab_size: int, num_labels: int) -> NGrams | None:
    """Of the weights of a bundle; None where it has none. Raises UnsupportedCheckpoint naming what is wrong."""
    if KEYS not in weights and TABLE not in weights:
        return None
    for name in (KEYS, TABLE):
        if name not in weights:
            raise UnsupportedCheckpoint(f"model.safetensors has no weight named {name}")
    keys, table = weights[KEYS], weights[TABLE].float()
    if keys.dtype != torch.int64 or keys.dim() != 1 or not len(keys) or not bool((keys.diff() > 0).all()):
        raise UnsupportedCheckpoint(f"model.safetensors: {KEYS} must be whole numbers in ascending order")
    if table.shape != (want := (len(keys), num_labels + 1)):
        raise UnsupportedCheckpoint(f"model.safetensors: shape of {TABLE} must be {want}: {tuple(table.shape)}")
    if not bool(table.isfinite().all()) or bool((table[:, -1] < 0).any()):
        raise UnsupportedCheckpoint(f"model.safetensors: {TABLE} must hold numbers, and squares in its last column")
    return NGrams(keys, table, vocab_size)
