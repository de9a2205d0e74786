"""Rows of token ids -> Batch: the one place that decides how rows lie in memory.

Shared by serving and training. Every layout is one axis of T tokens, so that the matrix products of the
encoder see all tokens at once; they differ in what attention sees:

  packed   rows sorted by length, a segment for each length, attention one rectangle a segment: no mask, and no
           padding but at most 15 tokens behind the last row (inference on a CPU)
  varlen   rows one after another, attention by a kernel that takes their borders: no padding and no mask
           (inference on CUDA in half precision)
  padded   one segment as wide as the longest row, `keep` marks its real tokens (training, and whatever on
           CUDA has no varlen kernel; many small attention calls would cost more than some padding)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, groupby
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from model.encoder import EncoderConfig
    from model.tokens import Row

Layout = Literal["packed", "varlen", "padded"]
HALF = (torch.bfloat16, torch.float16)
# oneDNN makes a kernel for each number of tokens and keeps a thousand: real traffic must not ask for more.
MULTIPLE, MULTIPLE_FROM = 16, 128
MAX_VARLEN_HEAD = 256  # widest head of the flash attention kernel, in multiples of 8


@dataclass(frozen=True)
class Segment:
    """`rows` rows of `length` tokens, one after another from token `start` on."""

    start: int
    rows: int
    length: int

    @property
    def span(self) -> slice:
        """Where the segment lies on the token axis."""
        return slice(self.start, self.start + self.rows * self.length)


@dataclass(frozen=True)
class Batch:
    """B rows on one axis of T tokens, the longest of `longest` tokens.

    tokens (3, T) are ids, types and positions; starts (B,) is where each row begins; keep (B, L) is True on
    real tokens, None where all in the segments are real; back (B,) puts rows of the batch back into the caller's
    order, None where they are in it. cu_seqlens (B + 1,) are the borders of rows in the varlen layout, without
    segments.
    """

    tokens: Tensor
    starts: Tensor
    longest: int
    segments: tuple[Segment, ...] = ()
    keep: Tensor | None = None
    back: Tensor | None = None
    cu_seqlens: Tensor | None = None

    @property
    def ids(self) -> Tensor:
        """Token ids (T,)."""
        return self.tokens[0]

    @property
    def types(self) -> Tensor:
        """0 for the first text of a pair, 1 for the second (T,)."""
        return self.tokens[1]

    @property
    def positions(self) -> Tensor:
        """Of each token in its row (T,)."""
        return self.tokens[2]

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""

        def move(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device, non_blocking=True)

        tokens, starts = (x.to(device, non_blocking=True) for x in (self.tokens, self.starts))
        moved = (move(x) for x in (self.keep, self.back, self.cu_seqlens))
        return Batch(tokens, starts, self.longest, self.segments, *moved)


def choose_layout(device: torch.device, dtype: torch.dtype, config: EncoderConfig) -> Layout:
    """The layout that measures best for inference, among those that have a kernel (benchmarks/RESULTS.md)."""
    if device.type == "cpu":
        return "packed"
    has_kernel = config.head_width % 8 == 0 and config.head_width <= MAX_VARLEN_HEAD and config.relative is None
    return "varlen" if dtype in HALF and has_kernel and not config.convolution else "padded"


def make_batch(rows: Sequence[Row], layout: Layout, pad_id: int = 0, first_position: int = 0) -> Batch:
    """Lay rows out on the CPU; every row has at least one token.

    first_position is that of a row's first token, 0 or as RoBERTa counts.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids)) if layout == "packed" else range(len(rows))
    rows = [rows[i] for i in order]
    lengths = [len(row.ids) for row in rows]
    longest = max(lengths)
    widths = [longest] * len(rows) if layout == "padded" else lengths

    borders = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(widths, out=borders[1:])
    total = int(borders[-1])
    rounded = total + (-total % MULTIPLE if layout == "packed" and total > MULTIPLE_FROM else 0)
    tokens = np.zeros((3, rounded), dtype=np.int64)
    tokens[0] = pad_id
    real = (np.arange(longest) < np.array(lengths)[:, None]) if layout == "padded" else np.arange(rounded) < total
    tokens[0, real.ravel()] = np.fromiter(chain.from_iterable(row.ids for row in rows), np.int64, sum(lengths))
    for row, start in zip(rows, borders.tolist(), strict=False):
        if row.types is not None:
            tokens[1, start : start + len(row.types)] = row.types
    tokens[2] = first_position
    tokens[2, :total] += np.arange(total) - np.repeat(borders[:-1], widths)
    if first_position:
        _skip_padding(tokens, rows, borders, pad_id)

    padding = layout == "padded" and min(lengths) < longest
    return Batch(
        torch.from_numpy(tokens),
        torch.from_numpy(borders[:-1]),
        longest,
        () if layout == "varlen" else _segments(widths),
        keep=torch.from_numpy(real) if padding else None,
        back=torch.from_numpy(np.argsort(order)) if layout == "packed" else None,
        cu_seqlens=torch.from_numpy(borders.astype(np.int32)) if layout == "varlen" else None,
    )


def _skip_padding(tokens: np.ndarray, rows: Sequence[Row], borders: np.ndarray, pad_id: int) -> None:
    """Where positions are counted from the padding id on, a text that spells the padding token leaves it out."""
    for row, start in zip(rows, borders.tolist(), strict=False):
        if pad_id in row.ids:
            counts = np.array(row.ids) != pad_id
            tokens[2, start : start + len(row.ids)] = np.cumsum(counts) * counts + pad_id


def _segments(widths: Sequence[int]) -> tuple[Segment, ...]:
    """Runs of equal width, in order."""
    segments: list[Segment] = []
    start = 0
    for length, run in groupby(widths):
        segments.append(Segment(start, len(list(run)), length))
        start = segments[-1].span.stop
    return tuple(segments)


def plan_passes(lengths: Sequence[int], budget: int, max_rows: int | None = None) -> list[list[int]]:
    """Split row indices into passes of rows * longest <= budget, similar lengths together.

    A row longer than the budget gets a pass of its own: nothing is lost.
    """
    max_rows = max_rows or len(lengths)
    passes: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):  # the first row of a pass is its longest
        rows = len(passes[-1]) + 1 if passes else 0
        if not passes or rows > max_rows or rows * lengths[passes[-1][0]] > budget:
            passes.append([])
        passes[-1].append(i)
    return passes
