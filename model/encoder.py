"""The whole network: a self-attention encoder that *is* BERT or ModernBERT, chosen by config.

  BERT        post-norm, learned positions, token types, GELU       https://arxiv.org/abs/1810.04805
  ModernBERT  pre-norm, rotary positions, GeGLU, no biases,         https://arxiv.org/abs/2412.13663
              local attention in two layers of three

Notable: one axis of tokens without padding (model/batch.py), one matrix product for q, k and v,
scaled dot-product attention by PyTorch's fused kernels, logits always in fp32.
Reads: Batch -> Embeddings -> Block × layers -> Head -> logits. Names in checkpoints: model/families.py.

Letters: T tokens of all rows, B rows, L tokens of a row, D width, H heads, K = D // H, C labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model.batch import Batch, Segment

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Every difference between the families; the defaults are BERT's."""

    family: str = "bert"  # layout of its checkpoint (families.py); the network never reads it
    vocab_size: int
    width: int = 384  # D
    layers: int = 6
    heads: int = 6  # H, divides width
    feed_forward: int = 1536  # inner width; twice as many rows where gated
    max_tokens: int = 512  # longest row, special tokens included
    token_types: int = 2  # sentence A and B; 0 where the family has none
    positions: Literal["learned", "rotary"] = "learned"
    norm: Literal["post", "pre"] = "post"
    norm_eps: float = 1e-12
    norm_bias: bool = True
    bias: bool = True  # in the linear layers of the blocks
    activation: str = "gelu"
    gated: bool = False  # GeGLU: activation(a) * b
    local_window: int = 128  # tokens that a local layer sees, half of them on each side
    local_layers: tuple[int, ...] = ()  # the other layers see everything
    rope_theta: float = 160_000.0  # rotary base of the global layers
    local_rope_theta: float = 10_000.0
    pooling: Literal["first", "mean"] = "first"
    head_activation: str = "tanh"
    head_bias: bool = True
    head_norm: bool = False
    dropout: float = 0.1  # after embeddings, attention, feed-forward and before the last layer
    pad_id: int = 0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"heads does not divide width={self.width}: {self.heads}")
        if self.positions == "rotary" and (self.width // self.heads) % 2:
            raise ValueError(f"rotary positions need an even width per head: {self.width // self.heads}")
        for name in (self.activation, self.head_activation):
            if name not in ACTIVATIONS:
                raise ValueError(f"activation is not one of {', '.join(ACTIVATIONS)}: {name}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is not in [0, 1): {self.dropout}")

    @property
    def head_width(self) -> int:
        """K, the width of one attention head."""
        return self.width // self.heads


def layer_norm(config: EncoderConfig) -> nn.LayerNorm:
    """LayerNorm over D as the family defines it."""
    return nn.LayerNorm(config.width, eps=config.norm_eps, bias=config.norm_bias)


class Embeddings(nn.Module):
    """Token ids -> vectors (T, D): token + position + type, normalised."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        learned = config.positions == "learned"
        self.positions = nn.Embedding(config.max_tokens, config.width) if learned else None
        self.types = nn.Embedding(config.token_types, config.width) if config.token_types else None
        self.norm = layer_norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, batch: Batch) -> Tensor:
        """(T,) ids, types and positions -> (T, D)."""
        x = self.tokens(batch.ids)
        if self.types is not None:
            x = x + self.types(batch.types)
        if self.positions is not None:
            x = x + self.positions(batch.positions)
        out: Tensor = self.dropout(self.norm(x))
        return out


@dataclass(frozen=True)
class View:
    """What a layer's attention may look at, made once a pass for all layers of a kind.

    masks has one entry a segment, True where a query may see a key, None where it sees all;
    rotation is (cos, sin), each (T, 1, K), or None where positions are learned.
    """

    segments: Sequence[Segment]
    masks: Sequence[Tensor | None]
    rotation: tuple[Tensor, Tensor] | None


def attention_mask(segment: Segment, keep: Tensor | None, reach: int | None) -> Tensor | None:
    """True where a query may see a key, broadcastable to (rows, H, L, L); None where it sees every key.

    keep (rows, L) is True on real tokens. reach is how far a token sees to each side, None without end.
    A padding token may have no real token within reach, so each sees itself: the softmax over nothing is NaN.
    """
    L = segment.length
    at = torch.arange(L, device=None if keep is None else keep.device)
    near = None
    if reach is not None and reach < L - 1:
        near = (at[:, None] - at).abs() <= reach  # (L, L)
    if keep is None or near is None:
        return near if keep is None else keep[:, None, None, :]  # (rows, 1, 1, L)
    return (near & keep[:, None, None, :]) | (at[:, None] == at)  # (rows, 1, L, L)


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


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention over the segments of a batch."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads, self.head_width = config.heads, config.head_width
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor, view: View) -> Tensor:
        """(T, D) -> (T, D)."""
        qkv = self.qkv(x).view(-1, 3, self.heads, self.head_width)  # (T, 3, H, K)
        q, k, v = qkv.unbind(1)  # each (T, H, K)
        if view.rotation is not None:
            q, k = rotate(q, *view.rotation), rotate(k, *view.rotation)
        parts = [self._attend(q, k, v, segment, mask) for segment, mask in zip(view.segments, view.masks, strict=True)]
        out: Tensor = self.out(torch.cat(parts) if len(parts) > 1 else parts[0])
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, segment: Segment, mask: Tensor | None) -> Tensor:
        """One segment, all heads: (rows * L, H, K) -> (rows * L, D)."""
        shape = (segment.rows, segment.length, self.heads, self.head_width)
        q, k, v = (x[segment.span].view(shape).transpose(1, 2) for x in (q, k, v))  # (rows, H, L, K)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (rows, H, L, K)
        return y.transpose(1, 2).reshape(-1, self.heads * self.head_width)  # (rows * L, D)


class FeedForward(nn.Module):
    """Two linear layers around an activation, or GeGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.gated, self.activation = config.gated, ACTIVATIONS[config.activation]
        inner = config.feed_forward * (2 if config.gated else 1)
        self.up = nn.Linear(config.width, inner, bias=config.bias)
        self.down = nn.Linear(config.feed_forward, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(T, D) -> (T, D)."""
        x = self.up(x)
        if self.gated:
            x, gate = x.chunk(2, dim=-1)
            x = self.activation(x) * gate
        else:
            x = self.activation(x)
        out: Tensor = self.down(x)
        return out


class Block(nn.Module):
    """Attention, then feed-forward, each with a residual, normalised after (post) or before (pre)."""

    def __init__(self, config: EncoderConfig, layer: int) -> None:
        super().__init__()
        self.pre = config.norm == "pre"
        self.attention = SelfAttention(config)
        first_of_pre = self.pre and layer == 0  # its input has just been normalised by the embeddings
        self.attention_norm = nn.Identity() if first_of_pre else layer_norm(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = layer_norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, view: View) -> Tensor:
        """(T, D) -> (T, D)."""
        if self.pre:
            x = x + self.dropout(self.attention(self.attention_norm(x), view))
            x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        else:
            x = self.attention_norm(x + self.dropout(self.attention(x, view)))
            x = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return x


class Encoder(nn.Module):
    """Tokens -> contextual vectors."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = layer_norm(config) if config.norm == "pre" else nn.Identity()

    def forward(self, batch: Batch) -> Tensor:
        """(T,) ids -> (T, D)."""
        return self.contextualize(self.embeddings(batch), batch)

    def contextualize(self, x: Tensor, batch: Batch) -> Tensor:
        """Embedded tokens (T, D) -> (T, D); model/explain.py comes in here with vectors between two texts."""
        everything, local = self._view(batch, None), None
        if self.config.local_layers:
            local = self._view(batch, self.config.local_window // 2)
        for layer, block in enumerate(self.blocks):
            x = block(x, local if local and layer in self.config.local_layers else everything)
        out: Tensor = self.final_norm(x)
        return out

    def _view(self, batch: Batch, reach: int | None) -> View:
        """Masks and rotary angles of the layers that see `reach` tokens to each side, or everything."""
        config, device = self.config, batch.ids.device
        masks = [attention_mask(segment, batch.keep, reach) for segment in batch.segments]
        turn = None
        if config.positions == "rotary":
            theta = config.rope_theta if reach is None else config.local_rope_theta
            turn = rotation(batch.positions, config.head_width, theta, self.embeddings.tokens.weight.dtype)
        return View(batch.segments, [None if m is None else m.to(device) for m in masks], turn)


class Head(nn.Module):
    """Pool each row and score the labels: dense, activation, norm where the family has one, linear."""

    def __init__(self, config: EncoderConfig, num_labels: int) -> None:
        super().__init__()
        self.pooling, self.activation = config.pooling, ACTIVATIONS[config.head_activation]
        self.dense = nn.Linear(config.width, config.width, bias=config.head_bias)
        self.norm = layer_norm(config) if config.head_norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.out = nn.Linear(config.width, num_labels)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        """(T, D) -> fp32 logits (B, C), in the order of the batch."""
        pooled = self.norm(self.activation(self.dense(self._pool(x, batch))))
        out: Tensor = self.out(self.dropout(pooled))
        return out.float()

    def _pool(self, x: Tensor, batch: Batch) -> Tensor:
        """(T, D) -> (B, D): the first token of each row, or the mean over its real tokens."""
        rows = [x[s.span].view(s.rows, s.length, -1) for s in batch.segments]  # each (rows, L, D)
        if self.pooling == "first":
            return torch.cat([r[:, 0] for r in rows])
        if batch.keep is None:
            return torch.cat([r.mean(1) for r in rows])
        [padded] = rows
        weight = batch.keep / batch.keep.sum(1, keepdim=True)  # (B, L)
        return (padded * weight[:, :, None].to(padded.dtype)).sum(1)


class Classifier(nn.Module):
    """Encoder and head: a Batch in, fp32 logits (B, C) out, in the caller's order."""

    def __init__(self, config: EncoderConfig, num_labels: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.head = Head(config, num_labels)
        self.apply(self._init)

    def forward(self, batch: Batch) -> Tensor:
        """A Batch of B rows -> (B, C)."""
        return self.logits(self.encoder.embeddings(batch), batch)

    def logits(self, x: Tensor, batch: Batch) -> Tensor:
        """Embedded tokens (T, D) of the batch -> (B, C)."""
        logits: Tensor = self.head(self.encoder.contextualize(x, batch), batch)
        return logits[batch.back]

    def _init(self, module: nn.Module) -> None:
        """Normal weights cut at two deviations; pre-norm outputs shrink with depth, as in GPT-2 and ModernBERT."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Block) and module.pre:
            for out in (module.attention.out, module.feed_forward.down):
                with torch.no_grad():
                    out.weight /= math.sqrt(2 * self.config.layers)
