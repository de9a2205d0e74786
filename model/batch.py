"""Rows of token ids -> Batch: the one place that decides how rows lie in memory.

Shared by serving and training. Every layout is one axis of T tokens, so that the matrix products of the
encoder see all tokens at once; they differ in what attention sees:

  packed   short rows share blocks of one width, a longer row has one of its own; attention is one rectangle
           for the blocks of a width, and a token sees its own row (inference on a CPU: few calls, few tokens
           of padding, and widths that its kernels like); behind the blocks padding that nobody sees makes T
           one of few numbers
  varlen   rows one after another, attention by a kernel that takes their borders: no padding and no mask
           (inference on CUDA in half precision)
  padded   a block for each row, as wide as the longest (training, and whatever on CUDA has no varlen kernel)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, chain, groupby
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
MAX_VARLEN_HEAD = 256  # widest head of the flash attention kernel, in multiples of 8

MULTIPLE = 16  # attention on a CPU takes half the time where the width is a multiple of it
# oneDNN makes a kernel for each number of tokens that a layer sees, in milliseconds, and keeps it, in half a megabyte.
TOKEN_STEP, TOKEN_STEPS = 8, 8  # so there are multiples of 8, and above 64 eight numbers to a doubling
SHARED_WIDTHS = tuple(range(32, 129, MULTIPLE))  # of blocks that rows share; what is longer has its own
WIDTH_COST = 700  # tokens of width that double what a token costs: attention grows with the width


@dataclass(frozen=True)
class Block:
    """Rows, by index, that lie one after another in `width` tokens."""

    width: int
    rows: list[int]


@dataclass(frozen=True)
class Segment:
    """`rows` blocks of `length` tokens, one after another from token `start` on.

    is_shared: some hold several rows. is_full: none holds padding.
    """

    start: int
    rows: int
    length: int
    is_shared: bool = False
    is_full: bool = False

    @property
    def span(self) -> slice:
        """Where the segment lies on the token axis."""
        return slice(self.start, self.start + self.rows * self.length)


@dataclass(frozen=True)
class Batch:
    """B rows on one axis of T tokens; the widest block has `longest` tokens.

    tokens (3, T) are ids, types and positions; rows (T,) is the row of each token, B for padding; starts and
    lengths (B,) say where each row lies, in the caller's order. cu_seqlens (B + 1,) are the borders of rows in
    the varlen layout, which has no segments.
    """

    tokens: Tensor
    rows: Tensor
    starts: Tensor
    lengths: Tensor
    longest: int
    segments: tuple[Segment, ...] = ()
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

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True)

        tokens, rows, starts, lengths = map(move, (self.tokens, self.rows, self.starts, self.lengths))
        borders = None if self.cu_seqlens is None else move(self.cu_seqlens)
        return Batch(tokens, rows, starts, lengths, self.longest, self.segments, borders)


def choose_layout(device: torch.device, dtype: torch.dtype, config: EncoderConfig) -> Layout:
    """The layout that measures best for inference, among those that have a kernel (benchmarks/RESULTS.md)."""
    if config.convolution:  # a row must not see its neighbours
        return "padded"
    if device.type == "cpu":
        return "packed"
    fits = config.head_width % 8 == 0 and config.head_width <= MAX_VARLEN_HEAD and config.relative is None
    return "varlen" if dtype in HALF and fits and has_flash_attention(device) else "padded"


def has_flash_attention(device: torch.device) -> bool:
    """Whether PyTorch's flash attention runs on a CUDA device: NVIDIA's from Ampere on."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def make_batch(rows: Sequence[Row], layout: Layout, pad_id: int = 0, first_position: int = 0) -> Batch:
    """Lay rows out on the CPU; every row has at least one token.

    first_position is that of a row's first token, 0 or as RoBERTa counts.
    """
    lengths = np.array([len(row.ids) for row in rows])
    starts, segments, total = place(lengths.tolist(), layout)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    at = np.repeat(starts, lengths) + within  # where each token goes

    tokens = np.zeros((3, total), dtype=np.int64)
    tokens[0], tokens[2] = pad_id, first_position
    tokens[0, at] = np.fromiter(chain.from_iterable(row.ids for row in rows), np.int64, len(at))
    tokens[2, at] += within
    row_of = np.full(total, len(rows))
    row_of[at] = np.repeat(np.arange(len(rows)), lengths)
    for row, start in zip(rows, starts.tolist(), strict=True):
        if row.types is not None:
            tokens[1, start : start + len(row.types)] = row.types
        if first_position and pad_id in row.ids:  # a text may spell the padding token, which is then not counted
            counted = np.array(row.ids) != pad_id
            tokens[2, start : start + len(row.ids)] = np.cumsum(counted) * counted + pad_id

    return Batch(
        torch.from_numpy(tokens),
        torch.from_numpy(row_of),
        torch.from_numpy(starts),
        torch.from_numpy(lengths),
        longest=max(s.length for s in segments) if segments else int(lengths.max()),
        segments=segments,
        cu_seqlens=torch.from_numpy(np.append(starts, total).astype(np.int32)) if layout == "varlen" else None,
    )


def place(lengths: Sequence[int], layout: Layout) -> tuple[np.ndarray, tuple[Segment, ...], int]:
    """Where each row starts (B,), the segments that attention works on, and the tokens of all, T."""
    if layout == "varlen":
        return np.cumsum([0, *lengths[:-1]]), (), sum(lengths)
    longest = max(lengths)
    blocks = plan_blocks(lengths) if layout == "packed" else [Block(longest, [i]) for i in range(len(lengths))]
    starts = np.zeros(len(lengths), dtype=np.int64)
    segments: list[Segment] = []
    start = 0
    for width, run in groupby(blocks, key=lambda block: block.width):
        of_width = list(run)
        for j, block in enumerate(of_width):
            first = start + j * width
            for i in block.rows:
                starts[i] = first
                first += lengths[i]
        shared = any(len(block.rows) > 1 for block in of_width)
        full = all(sum(lengths[i] for i in block.rows) == width for block in of_width)
        segments.append(Segment(start, len(of_width), width, shared, full))
        start = segments[-1].span.stop
    return starts, tuple(segments), round_tokens(start) if layout == "packed" else start


def plan_blocks(lengths: Sequence[int]) -> list[Block]:
    """Put rows into blocks, those of one width together, so that padding and attention cost little together."""
    if len(lengths) == 1:
        return [Block(lengths[0] if lengths[0] <= SHARED_WIDTHS[-1] else round_up(lengths[0]), [0])]
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    total = round_up(sum(lengths))
    widths = [width for width in SHARED_WIDTHS if width <= total] + ([total] if total <= SHARED_WIDTHS[-1] else [])
    return min((_blocks_of(width, lengths, longest_first) for width in widths), key=_cost)


def round_up(tokens: int, multiple: int = MULTIPLE) -> int:
    """The next multiple."""
    return -(-tokens // multiple) * multiple


def round_tokens(tokens: int) -> int:
    """The next of the few numbers of tokens that a pass may have."""
    power_of_two = 1 << (tokens.bit_length() - 1)  # the one below
    return round_up(tokens, max(TOKEN_STEP, power_of_two // TOKEN_STEPS))


def _blocks_of(width: int, lengths: Sequence[int], longest_first: Sequence[int]) -> list[Block]:
    """Blocks of a width, each row in the one that it fills best, and one for each row that is longer."""
    longer = [Block(round_up(lengths[i]), [i]) for i in longest_first if lengths[i] > width]
    shared: list[Block] = []
    by_space: list[list[Block]] = [[] for _ in range(width + 1)]  # blocks by how many tokens are free in them
    for i in longest_first[len(longer) :]:
        space = next((space for space in range(lengths[i], width) if by_space[space]), None)
        if space is None:
            space = width
            by_space[width].append(Block(width, []))
            shared += by_space[width]
        block = by_space[space].pop()
        block.rows.append(i)
        by_space[space - lengths[i]].append(block)
    return longer + shared


def _cost(blocks: Sequence[Block]) -> float:
    tokens = round_tokens(sum(block.width for block in blocks))
    return tokens + sum(block.width**2 for block in blocks) / WIDTH_COST


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


def fill_passes(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Split row indices, in order, into as few passes as budget tokens allow, all about equally full.

    A pass is over the budget by less than its last row. For layouts in which rows share blocks or lie end to end: there
    short rows fill what long ones leave, and passes of similar lengths would hold more padding (of SST-2 10% instead of
    2%, benchmarks/RESULTS.md). No small pass is left over: each number of tokens is a kernel that oneDNN keeps.
    """
    total = sum(lengths)
    share = total / max(1, -(-total // budget))
    starts = accumulate(lengths, initial=0)
    numbered = zip(starts, range(len(lengths)), strict=False)  # there is one start more
    return [[i for _, i in rows] for _, rows in groupby(numbered, key=lambda row: int(row[0] / share))]
