"""What single tokens and pairs of neighbours say of the labels, beside the encoder: a linear model inside the network.

Wide and deep (Cheng et al. 2016, https://arxiv.org/abs/1606.07792, section 3): a small encoder does not keep what a
hundred thousand word pairs say, a table does, and the two are wrong about different texts. The logits of both add up.

A row's logits are the sum over its n-grams of idf * weights, over the root of the sum of idf², and a bias: TF-IDF,
where an n-gram that occurs twice counts twice. Fitted by training/ngrams.py, computed in Classifier.forward.
Letters: T tokens of all rows, B rows, F n-grams, C labels, V tokens of the vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.convert import WEIGHT_DTYPES, check_shape
from model.family import UnsupportedCheckpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.batch import Batch

NONE = -1  # key of no n-gram
NAMES = KEYS, TABLE, BIAS = "ngrams.keys", "ngrams.table", "ngrams.bias"  # in model.safetensors


class NGrams(nn.Module):
    """The table: n-gram keys (F,), in order, what each adds, (F, C + 1), in the last column its idf²; the bias (C,)."""

    keys: Tensor
    table: Tensor
    bias: Tensor

    def __init__(self, keys: Tensor, table: Tensor, bias: Tensor, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.register_buffer("keys", keys)
        self.register_buffer("table", table)
        self.register_buffer("bias", bias)

    def forward(self, batch: Batch) -> Tensor:
        """A Batch of B rows -> fp32 logits (B, C)."""
        single, pair = self._found(batch).unbind()
        sums = add_up(single + pair, batch)[:-1]
        return sums[:, :-1] * over_root(sums[:, -1:]) + self.bias

    def of_tokens(self, batch: Batch) -> Tensor:
        """What each token adds to the logits of its row (T, C), without the bias; of a pair each has half."""
        single, pair = self._found(batch).unbind()
        squares = add_up(single[:, -1:] + pair[:, -1:], batch)[batch.rows]  # (T, 1)
        added = single[:, :-1] + pair[:, :-1] / 2
        added[:-1] += pair[1:, :-1] / 2
        return added * over_root(squares)

    def _found(self, batch: Batch) -> Tensor:
        """The line of the table of each token, and of its pair with the one before, (2, T, C + 1)."""
        keys = ngram_keys(batch.ids, batch.rows, self.vocab_size)  # (2, T)
        at = torch.searchsorted(self.keys, keys).clamp_(max=len(self.keys) - 1)
        return torch.where((self.keys[at] == keys)[..., None], self.table[at], 0).float()


def add_up(x: Tensor, batch: Batch) -> Tensor:
    """The sum over the tokens of each row, (T, any) -> (B + 1, any); the last is of what is in no row."""
    return x.new_zeros(len(batch.starts) + 1, x.shape[1]).index_add(0, batch.rows, x)


def over_root(squares: Tensor) -> Tensor:
    """1 / sqrt of sums of squares, of any shape; of none, where nothing is to be divided, a large number."""
    return squares.clamp(min=torch.finfo(squares.dtype).tiny).rsqrt()


def ngram_keys(ids: Tensor, rows: Tensor, vocab_size: int) -> Tensor:
    """Keys (2, T) of each token, and of it with the one before it in its row: id, and (id before + 1) * V + id."""
    pairs = torch.full_like(ids, NONE)
    pairs[1:] = torch.where(rows[1:] == rows[:-1], (ids[:-1] + 1) * vocab_size + ids[1:], NONE)
    return torch.stack((ids, pairs))


def read_ngrams(weights: Mapping[str, Tensor], vocab_size: int, num_labels: int) -> NGrams | None:
    """Of the weights of a bundle; None where it has none. Raises UnsupportedCheckpoint naming what is wrong."""
    if not any(name in weights for name in NAMES):
        return None
    for name in NAMES:
        if name not in weights:
            raise UnsupportedCheckpoint(f"model.safetensors has no weight named {name}")
    keys = weights[KEYS].clone()  # not a view of the file, which may change
    is_ascending = keys.dtype == torch.int64 and keys.dim() == 1 and len(keys) > 0 and bool((keys.diff() > 0).all())
    if not is_ascending or keys[0] < 0:
        raise UnsupportedCheckpoint(f"model.safetensors: {KEYS} must be whole numbers from 0 on, in ascending order")
    for name, want in ((TABLE, (len(keys), num_labels + 1)), (BIAS, (num_labels,))):
        check_shape(name, weights[name], want)
        if weights[name].dtype not in WEIGHT_DTYPES or not bool(weights[name].isfinite().all()):
            raise UnsupportedCheckpoint(f"model.safetensors: {name} must hold numbers in fp32, fp16 or bf16")
    table, bias = (weights[name].to(torch.float32, copy=True) for name in (TABLE, BIAS))
    if not bool((table[:, -1] > 0).all()):
        raise UnsupportedCheckpoint(f"model.safetensors: {TABLE} must have squares in its last column")
    return NGrams(keys, table, bias, vocab_size)
