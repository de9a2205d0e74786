"""Self-attention over a batch: who sees whom, where tokens are, and the four ways to compute it.

  a segment at a time   scaled dot-product attention on rectangles of rows of one length
  banded                the same for layers that see only a window: time and memory linear in the length
  varlen                flash attention over rows that lie one after another (CUDA, half precision)
  in products           rectangles as two batched matrix products (CPU, bf16 without a matrix unit)

What a layer may see is a View, made once a pass for all layers of a kind. Called by model/encoder.py.

Letters: T tokens of all rows, L tokens of a row, D width, H heads, K = D // H, S relative positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.batch import Batch, Segment
    from model.encoder import EncoderConfig


LONGEST_PLAIN = 256  # tokens of a row
# What products take: passes of at least so many tokens, of rows that are a multiple of so many. And of so many at most,
# as oneDNN makes a kernel for each number of rows that a product has, and keeps it, in half a megabyte.
LEAST_IN_PRODUCTS, PRODUCT_MULTIPLE, PRODUCT_TOKENS = 64, 16, 256


@dataclass(frozen=True)
class Relative:
    """How DeBERTa marks where tokens are to each other: vectors (S, D), index (L, L) of query and key into them."""

    vectors: Tensor
    index: Tensor


@dataclass(frozen=True)
class View:
    """What a layer's attention may look at.

    reach is how far a token sees to each side, None without end. masks has one entry a segment: what is added
    to the scores, 0 or -inf (True where a query may see a key, if positions are relative); None where it sees
    all. rotation is (cos, sin), each (T, 1, K), None where positions are not rotary. cu_seqlens (B + 1,) and
    longest describe the rows of the varlen layout. in_products: attention is two matrix products and a softmax.
    """

    segments: Sequence[Segment]
    masks: Sequence[Tensor | None]
    reach: int | None = None
    rotation: tuple[Tensor, Tensor] | None = None
    relative: Relative | None = None
    cu_seqlens: Tensor | None = None
    longest: int = 0
    in_products: bool = False


def make_view(
    batch: Batch,
    dtype: torch.dtype,
    reach: int | None = None,
    rotation: tuple[Tensor, Tensor] | None = None,
    relative: Relative | None = None,
) -> View:
    """The view of the layers that see `reach` tokens to each side and compute in dtype."""
    if batch.cu_seqlens is not None:
        return View((), (), reach, rotation, relative, batch.cu_seqlens, batch.longest)
    masks = [segment_mask(segment, batch.rows, reach) for segment in batch.segments]
    if relative is None:  # the kernel would turn True into 0 and False into -inf again in every layer
        masks = [None if m is None else torch.zeros_like(m, dtype=dtype).masked_fill_(~m, -math.inf) for m in masks]
    in_products = relative is None and batch.ids.device.type == "cpu" and suits_products(batch.segments, dtype, reach)
    return View(batch.segments, masks, reach, rotation, relative, in_products=in_products)


def suits_products(segments: Sequence[Segment], dtype: torch.dtype, reach: int | None) -> bool:
    """Whether a CPU is faster in products than in PyTorch's fused kernel, which is slow in bf16 without AMX."""
    return (
        dtype == torch.bfloat16
        and not torch.is_grad_enabled()
        and is_without_amx()
        and segments[-1].span.stop >= LEAST_IN_PRODUCTS
        and all(s.length % PRODUCT_MULTIPLE == 0 and not is_banded(s.length, reach) for s in segments)
    )


@cache
def is_without_amx() -> bool:
    """Whether this CPU has no matrix unit."""
    return not torch.cpu._is_amx_tile_supported()


def is_banded(length: int, reach: int | None) -> bool:
    """Whether blocks of a length are cheaper in bands: each band of 2 * reach queries sees 4 * reach keys."""
    return bool(reach) and length > 4 * (reach or 0)


def segment_mask(segment: Segment, rows: Tensor, reach: int | None) -> Tensor | None:
    """True where a query may see a key, broadcastable to what the segment's attention computes; None: everywhere.

    rows (T,) is the row of each token. A token sees its own row; padding sees padding, as the softmax over nothing
    is NaN.
    """
    row = rows[segment.span].view(segment.rows, segment.length)  # (rows, L)
    if is_banded(segment.length, reach):
        assert reach is not None
        return band_mask(row[:1] if segment.is_full and not segment.is_shared else row, reach)
    mask = None
    if segment.is_shared:
        mask = row[:, None, :, None] == row[:, None, None, :]  # (rows, 1, L, L)
    elif not segment.is_full:
        mask = (row == row[:, :1])[:, None, None, :]  # (rows, 1, 1, L)
    if reach is None or reach >= segment.length - 1:
        return mask
    at = torch.arange(segment.length, device=rows.device)
    near = (at[:, None] - at).abs() <= reach  # (L, L)
    return near if mask is None else (near & mask) | (at[:, None] == at)


def band_mask(row: Tensor, reach: int) -> Tensor:
    """The mask of banded() for rows of tokens (rows, L): (bands, rows, 2 * reach, 4 * reach)."""
    band = 2 * reach
    bands = math.ceil(row.shape[1] / band)
    beyond = bands * band - row.shape[1]
    query = torch.arange(band, device=row.device)[:, None] + reach  # where it lies among its keys
    key = torch.arange(2 * band, device=row.device)
    near = (query - key).abs() <= reach  # (2 * reach, 4 * reach)
    of_key = F.pad(row, (reach, reach + beyond), value=-1).unfold(1, 2 * band, band)  # (rows, bands, 4 * reach)
    of_query = F.pad(row, (0, beyond), value=-1).view(-1, bands, band)  # (rows, bands, 2 * reach)
    same = (of_query[..., None] == of_key[:, :, None]).transpose(0, 1)  # (bands, rows, 2 * reach, 4 * reach)
    return (near & same) | (query == key)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention of rows, each of q, k, v (rows, H, L, K); the mask is added to the scores.

    Where gradients are wanted on a CPU short rows go without the fused kernel, whose gradient takes up to ten times
    as long there (benchmarks/RESULTS.md, "Training").
    """
    if not (torch.is_grad_enabled() and q.device.type == "cpu" and k.shape[2] <= LONGEST_PLAIN):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    scores = (q * scale) @ k.transpose(-1, -2)  # (rows, H, L, L)
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    return scores.softmax(dim=-1).to(v.dtype) @ v


def attend_in_products(qkv: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention of rows (rows, L, 3, H, K), queries, keys and values -> (rows * L, D). For inference alone.

    A few rows at a time, that stay in the cache; few calls for each, as each wants Python's lock, for which the passes
    of other threads wait.
    """
    rows, length, _, heads, width = qkv.shape
    sizes = powers_of_two(rows, max(1, PRODUCT_TOKENS // length))
    masks = [None] * len(sizes) if mask is None else mask.expand(rows, -1, -1, -1).split(sizes)
    parts = []
    for size, part, seen in zip(sizes, qkv.split(sizes), masks, strict=True):
        q, k, v = part.permute(2, 0, 3, 1, 4).reshape(3, size * heads, length, width).unbind(0)  # each (N, L, K)
        scores = torch.bmm(q, k.transpose(1, 2)).view(size, heads, length, length)
        scores = scores.mul_(scale) if seen is None else torch.add(seen, scores, alpha=scale)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype)  # in bf16 it takes up to three times as long
        y = torch.bmm(weights.view(-1, length, length), v).view(size, heads, length, width)
        parts.append(y.transpose(1, 2).reshape(-1, heads * width))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def powers_of_two(total: int, most: int) -> list[int]:
    """Powers of two, the largest first, none above `most`, with this sum."""
    largest = 1 << (most.bit_length() - 1)
    rest = [1 << bit for bit in reversed(range(largest.bit_length())) if (total % largest) >> bit & 1]
    return [largest] * (total // largest) + rest


def in_windows(x: Tensor, reach: int) -> Tensor:
    """The keys of each band of queries: (rows, H, L, K) -> (bands, rows, H, 4 * reach, K), zeros beyond the row."""
    band = 2 * reach
    bands = math.ceil(x.shape[2] / band)
    padded = F.pad(x, (0, 0, reach, bands * band + reach - x.shape[2]))
    return padded.unfold(2, 2 * band, band).permute(2, 0, 1, 4, 3)


def banded(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, reach: int, scale: float) -> Tensor:
    """Attention within `reach` tokens to each side, each of q, k, v (rows, H, L, K).

    Rows are cut into bands of 2 * reach queries; with its neighbours within reach a band has twice as many
    keys, so time and memory grow with L and not with its square (as in Longformer, Beltagy et al. 2020,
    https://arxiv.org/abs/2004.05150, section 3.1). Each band is a row of its own to the kernel.
    """
    rows, heads, length, width = q.shape
    band, bands = 2 * reach, mask.shape[0]
    q = F.pad(q, (0, 0, 0, bands * band - length)).view(rows, heads, bands, band, width)
    q = q.permute(2, 0, 1, 3, 4).flatten(0, 1)  # (bands * rows, H, 2 * reach, K)
    k, v = (in_windows(x, reach).flatten(0, 1) for x in (k, v))  # each (bands * rows, H, 4 * reach, K)
    seen = mask.expand(-1, rows, -1, -1).flatten(0, 1)[:, None]  # (bands * rows, 1, 2 * reach, 4 * reach)
    y = attend(q, k, v, seen, scale)  # (bands * rows, H, 2 * reach, K)
    y = y.view(bands, rows, heads, band, width).permute(1, 2, 0, 3, 4)
    return y.reshape(rows, heads, bands * band, width)[:, :, :length]


def rotation(positions: Tensor, width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cos and sin, each (T, 1, K), of the rotary angles (Su et al. 2021, https://arxiv.org/abs/2104.09864)."""
    frequency = theta ** (-torch.arange(0, width, 2, device=positions.device).float() / width)  # (K / 2,)
    angle = positions.float()[:, None] * frequency  # (T, K / 2)
    angle = torch.cat((angle, angle), dim=-1)[:, None]  # (T, 1, K): one for all heads
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[k], x[k + K/2]) of x (T, H, K) by its angle, in fp32 as the reference does."""
    x1, x2 = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat((-x2, x1), dim=-1) * sin).to(x.dtype)


class Embedding(nn.Embedding):
    """Vectors of ids. On the meta device none are drawn: torch would import its compiler for it, a second and 87 MB."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class RelativePositions(nn.Module):
    """DeBERTa's vectors of the distance between two tokens (He et al. 2021, https://arxiv.org/abs/2006.03654)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        assert config.relative is not None
        self.settings = config.relative
        self.vectors = Embedding(2 * self.settings.span, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps) if self.settings.norm else nn.Identity()

    def forward(self, longest: int) -> Relative:
        """The vectors that rows of up to `longest` tokens need, and which of them a query and a key take."""
        device = self.vectors.weight.device
        distance = torch.arange(1 - longest, longest, device=device)  # of a query from a key
        where = (self._bucket(distance) + self.settings.span).clamp(0, 2 * self.settings.span - 1)
        first, last = int(where[0]), int(where[-1])
        at = torch.arange(longest, device=device)
        index = where[at[:, None] - at + longest - 1] - first  # (L, L)
        return Relative(self.norm(self.vectors.weight[first : last + 1]), index)

    def _bucket(self, distance: Tensor) -> Tensor:
        """Distances up to half the buckets as they are, farther ones by their logarithm (DeBERTaV3's code)."""
        buckets, limit = self.settings.buckets, self.settings.max_distance
        if not buckets:
            return distance
        middle = buckets // 2
        far = distance.abs().clamp(min=middle - 1)
        scaled = torch.log(far / middle) / torch.log(torch.tensor((limit - 1) / middle)) * (middle - 1)
        by_log = (torch.ceil(scaled) + middle) * distance.sign()
        return torch.where(far <= middle, distance.float(), by_log).long()


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention: (T, D) -> (T, D)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads, self.head_width = config.heads, config.head_width
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)
        relative = config.relative
        self.scale = (config.head_width * (relative.terms if relative else 1)) ** -0.5
        self.by_key, self.by_query = bool(relative and relative.by_key), bool(relative and relative.by_query)
        own = relative is not None and not relative.shared
        self.position_key = nn.Linear(config.width, config.width) if own and self.by_key else None
        self.position_query = nn.Linear(config.width, config.width) if own and self.by_query else None

    def forward(self, x: Tensor, view: View) -> Tensor:
        """(T, D) -> (T, D)."""
        if view.in_products:
            y: Tensor = self.out(self._products(x, view))
            return y
        q, k, v = self.project(x, view)
        out: Tensor = self.out(
            self._varlen(q, k, v, view) if view.cu_seqlens is not None else self._parts(q, k, v, view)
        )
        return out

    def project(self, x: Tensor, view: View) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens (T, D), each (T, H, K), turned where positions are rotary."""
        q, k, v = self.qkv(x).view(-1, 3, self.heads, self.head_width).unbind(1)
        if view.rotation is not None:
            q, k = rotate(q, *view.rotation), rotate(k, *view.rotation)
        return q, k, v

    def _products(self, x: Tensor, view: View) -> Tensor:
        """A segment at a time, in products: (T, D) -> (T, D)."""
        qkv = self.qkv(x).view(-1, 3, self.heads, self.head_width)
        if view.rotation is not None:
            q, k, v = qkv.unbind(1)
            qkv = torch.stack((rotate(q, *view.rotation), rotate(k, *view.rotation), v), dim=1)
        parts = []
        for segment, mask in zip(view.segments, view.masks, strict=True):
            rows = qkv[segment.span].view(segment.rows, segment.length, *qkv.shape[1:])
            parts.append(attend_in_products(rows, mask, self.scale))  # (rows * L, D)
        if beyond := len(x) - view.segments[-1].span.stop:
            parts.append(x.new_zeros(beyond, x.shape[1]))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _varlen(self, q: Tensor, k: Tensor, v: Tensor, view: View) -> Tensor:
        """Rows one after another: (T, H, K) -> (T, D)."""
        from torch.nn.attention.varlen import varlen_attn  # with it comes torch's compiler

        assert view.cu_seqlens is not None
        reach = -1 if view.reach is None else view.reach
        y = varlen_attn(
            q, k, v, view.cu_seqlens, view.cu_seqlens, view.longest, view.longest,
            scale=self.scale, window_size=(reach, reach),
        )  # fmt: skip
        assert isinstance(y, Tensor)
        return y.flatten(1)

    def _parts(self, q: Tensor, k: Tensor, v: Tensor, view: View) -> Tensor:
        """A segment at a time: (T, H, K) -> (T, D)."""
        positions = self._positions(view.relative)
        beyond = len(q) - view.segments[-1].span.stop
        sizes = [*(segment.rows * segment.length for segment in view.segments), beyond]
        *of_segments, _ = zip(*(x.split(sizes) for x in (q, k, v)), strict=True)  # gradients of slices cost far more
        parts = []
        for segment, mask, qkv in zip(view.segments, view.masks, of_segments, strict=True):
            shape = (segment.rows, segment.length, self.heads, self.head_width)
            qs, ks, vs = (x.view(shape).transpose(1, 2) for x in qkv)  # (rows, H, L, K)
            if mask is not None and is_banded(segment.length, view.reach):
                assert view.reach is not None
                y = banded(qs, ks, vs, mask, view.reach, self.scale)
            else:
                seen = mask if view.relative is None else self._bias(qs, ks, mask, view.relative, positions)
                y = attend(qs, ks, vs, seen, self.scale)  # (rows, H, L, K)
            parts.append(y.transpose(1, 2).reshape(-1, self.heads * self.head_width))  # (rows * L, D)
        if beyond:
            parts.append(q.new_zeros(beyond, self.heads * self.head_width))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _positions(self, relative: Relative | None) -> tuple[Tensor | None, Tensor | None]:
        """The relative positions as this layer's keys and queries, each (H, S, K)."""
        if relative is None:
            return None, None
        if self.position_key is None and self.position_query is None:  # shared with the content
            query, key, _ = self.qkv(relative.vectors).view(-1, 3, self.heads, self.head_width).unbind(1)
            return key.transpose(0, 1), query.transpose(0, 1)
        key, query = (
            None if linear is None else linear(relative.vectors).view(-1, self.heads, self.head_width).transpose(0, 1)
            for linear in (self.position_key, self.position_query)
        )
        return key, query

    def _bias(
        self,
        q: Tensor,
        k: Tensor,
        mask: Tensor | None,
        relative: Relative,
        positions: tuple[Tensor | None, Tensor | None],
    ) -> Tensor:
        """What position adds to the scores, scaled: (rows, H, L, L); -inf where the mask is False.

        Content to position (c2p) and position to content (p2c), section 3.1 of the paper.
        """
        key, query = positions
        L = q.shape[2]
        index = relative.index[:L, :L].expand(*q.shape[:2], L, L)
        bias: Tensor = q.new_zeros(())
        if self.by_key and key is not None:
            bias = bias + (q @ key.transpose(-1, -2)).gather(-1, index)
        if self.by_query and query is not None:
            bias = bias + (query @ k.transpose(-1, -2)).gather(-2, index)
        bias = (bias * self.scale).expand(*q.shape[:2], L, L)
        if mask is not None:
            bias = bias.masked_fill(~mask, -math.inf)
        return bias
