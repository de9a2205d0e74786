"""Rows of token ids -> Batch: the one place that decides how rows lie in memory.

Shared by serving and training. Every layout is one axis of T tokens, cut into segments of rows that
have the same length, so that the matrix products of the encoder see all tokens at once and attention
sees one rectangle a segment:

  packed   rows sorted by length, a segment for each length: no padding and no mask (CPU inference)
  padded   one segment as wide as the longest row, `keep` marks its real tokens (CUDA and training,
           where many small attention calls cost more than some padding)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from model.tokens import Row

Layout = Literal["packed", "padded"]


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
    """B rows on one axis of T tokens.

    ids, types and positions are (T,); keep is (B, L), True on real tokens, and None where every token
    is real; back (B,) puts rows of the batch back into the caller's order.
    """

    ids: Tensor
    types: Tensor
    positions: Tensor
    segments: tuple[Segment, ...]
    keep: Tensor | None
    back: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True)

        keep = None if self.keep is None else move(self.keep)
        return Batch(move(self.ids), move(self.types), move(self.positions), self.segments, keep, move(self.back))


def layout_for(device: torch.device) -> Layout:
    """The layout that measures best for inference on a device (benchmarks/RESULTS.md)."""
    return "packed" if device.type == "cpu" else "padded"


def make_batch(rows: Sequence[Row], layout: Layout, pad_id: int = 0) -> Batch:
    """Lay rows out on the CPU; every row has at least one token."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids)) if layout == "packed" else range(len(rows))
    lengths = [len(rows[i].ids) for i in order]
    longest = max(lengths)
    widths = lengths if layout == "packed" else [longest] * len(lengths)

    ids: list[int] = []
    types: list[int] = []
    positions: list[int] = []
    for i, width in zip(order, widths, strict=True):
        row, pad = rows[i], width - len(rows[i].ids)
        ids += row.ids + [pad_id] * pad
        types += (row.types or [0] * len(row.ids)) + [0] * pad
        positions += range(width)

    keep = None
    if layout == "padded" and min(lengths) < longest:
        keep = torch.arange(longest) < torch.tensor(lengths)[:, None]  # (B, L)
    back = torch.empty(len(rows), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(rows))
    return Batch(torch.tensor(ids), torch.tensor(types), torch.tensor(positions), _segments(widths), keep, back)


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
