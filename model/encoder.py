"""The whole network: one self-attention encoder that *is* each of the families, chosen by config.

  BERT        post-norm, learned positions, token types, GELU       https://arxiv.org/abs/1810.04805
  RoBERTa     BERT with positions counted from the padding id on    https://arxiv.org/abs/1907.11692
  DistilBERT  BERT without token types                              https://arxiv.org/abs/1910.01108
  ELECTRA     BERT with narrow embeddings                           https://arxiv.org/abs/2003.10555
  ALBERT      the same, and one block for all layers                https://arxiv.org/abs/1909.11942
  DeBERTa     BERT with relative positions inside attention         https://arxiv.org/abs/2006.03654
  ModernBERT  pre-norm, rotary positions, GeGLU, no biases,         https://arxiv.org/abs/2412.13663
              local attention in two layers of three

Notable: one axis of tokens without padding (model/batch.py), one matrix product for q, k and v,
PyTorch's fused attention kernels (model/attention.py), logits always in fp32.
Reads: Batch -> Embeddings -> Block × layers -> Head -> logits. Names in checkpoints: model/families.py.

Letters: T tokens of all rows, B rows, L tokens of a row, D width, E embedding width, K = D // heads, C labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Embedding, RelativePositions, SelfAttention, make_view, rotation

if TYPE_CHECKING:
    from collections.abc import Callable

    from model.attention import View
    from model.batch import Batch
    from model.ngrams import NGrams

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "clipped_gelu": lambda x: F.gelu(x).clamp(-10, 10),
    "squared_relu": lambda x: F.relu(x).square(),
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "hardswish": F.hardswish,
    "mish": F.mish,
    "identity": lambda x: x,
}


@dataclass(frozen=True, kw_only=True)
class RelativeConfig:
    """How attention hears of the distance between two tokens (DeBERTa, section 3.1)."""

    span: int  # vectors for each direction
    buckets: int = 0  # distances beyond half of them share a vector by their logarithm; 0: each has its own
    max_distance: int = 512  # where the logarithm ends
    by_key: bool = True  # content of the query to position of the key, c2p
    by_query: bool = True  # position of the query to content of the key, p2c
    shared: bool = True  # the projections of the content serve positions too
    norm: bool = True  # LayerNorm over the vectors

    @property
    def terms(self) -> int:
        """Products that a score is the sum of, by which it is scaled."""
        return 1 + self.by_key + self.by_query


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Every difference between the families; the defaults are BERT's."""

    family: str = "bert"  # layout of its checkpoint (families.py); the classifier never reads it
    vocab_size: int
    width: int = 384  # D
    layers: int = 6
    heads: int = 6  # H, divides width
    feed_forward: int = 1536  # inner width; twice as many rows where gated
    max_tokens: int = 512  # longest row, special tokens included
    token_types: int = 2  # sentence A and B; 0 where the family has none
    embedding_width: int | None = None  # E, from which embeddings are projected to D; None: they are D wide
    project_first: bool = False  # DeBERTa: before the norm of the embeddings and without bias
    positions: Literal["learned", "rotary", "none"] = "learned"
    first_position: int = 0  # RoBERTa: one more than pad_id
    relative: RelativeConfig | None = None
    convolution: int = 0  # tokens that a convolution beside the first layer spans, odd (large DeBERTa v2); 0: none
    convolution_groups: int = 1
    convolution_activation: str = "tanh"
    blocks: int | None = None  # distinct ones, each for a run of layers (ALBERT); None: one a layer
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
        if self.convolution and not self.convolution % 2:
            raise ValueError(f"convolution is not an odd number of tokens: {self.convolution}")
        for name in (self.activation, self.head_activation, self.convolution_activation):
            if name not in ACTIVATIONS:
                raise ValueError(f"activation is not one of {', '.join(ACTIVATIONS)}: {name}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is not in [0, 1): {self.dropout}")

    @property
    def head_width(self) -> int:
        """K, the width of one attention head."""
        return self.width // self.heads


class Dropout(nn.Dropout):
    """nn.Dropout; on a CPU a random byte decides over a number, in a sixth of the time: p is a multiple of 1/256."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        dropped = round(256 * self.p)  # of the values of a byte
        if not self.training or not dropped or x.device.type != "cpu":
            return super().forward(x)
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
        return x * kept.to(x.dtype).mul_(256 / (256 - dropped))


def layer_norm(config: EncoderConfig, width: int | None = None) -> nn.LayerNorm:
    """LayerNorm over D, or another width, as the family defines it."""
    return nn.LayerNorm(width or config.width, eps=config.norm_eps, bias=config.norm_bias)


class Embeddings(nn.Module):
    """Token ids -> vectors (T, D): token + position + type, normalised, projected where they are narrow."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        narrow = config.embedding_width or config.width  # E
        learned = config.positions == "learned"
        self.tokens = Embedding(config.vocab_size, narrow)
        self.positions = Embedding(config.first_position + config.max_tokens, narrow) if learned else None
        self.types = Embedding(config.token_types, narrow) if config.token_types else None
        self.norm = layer_norm(config, config.width if config.project_first else narrow)
        self.project: nn.Module = nn.Identity()
        if config.embedding_width is not None:
            self.project = nn.Linear(narrow, config.width, bias=not config.project_first)
        self.project_first = config.project_first
        self.dropout = Dropout(config.dropout)

    def forward(self, batch: Batch) -> Tensor:
        """(T,) ids, types and positions -> (T, D)."""
        x = self.tokens(batch.ids)  # (T, E)
        if self.types is not None:
            x = x + self.types(batch.types)
        if self.positions is not None:
            x = x + self.positions(batch.positions)
        if self.project_first:
            x = self.project(x)
        x = self.dropout(self.norm(x))
        out: Tensor = x if self.project_first else self.project(x)
        return out


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
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, view: View) -> Tensor:
        """(T, D) -> (T, D)."""
        if self.pre:
            x = x + self.dropout(self.attention(self.attention_norm(x), view))
            x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        else:
            x = self.attention_norm(x + self.dropout(self.attention(x, view)))
            x = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return x


class Convolution(nn.Module):
    """What the large DeBERTa v2 adds after its first layer: a view of each token's neighbours."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.conv = nn.Conv1d(
            config.width, config.width, config.convolution,
            padding=config.convolution // 2, groups=config.convolution_groups,
        )  # fmt: skip
        self.norm = layer_norm(config)
        self.dropout = Dropout(config.dropout)
        self.activation = ACTIVATIONS[config.convolution_activation]

    def forward(self, embedded: Tensor, x: Tensor, batch: Batch) -> Tensor:
        """The embeddings and the output of the first layer, each (T, D) -> (T, D); a block holds one row.

        Padding is as empty as what is beyond the row.
        """
        parts = []
        for segment in batch.segments:
            assert not segment.is_shared, "choose_layout gives a convolution blocks of one row"
            is_real = batch.rows[segment.span, None] < len(batch.starts)
            rows = (embedded[segment.span] * is_real).view(segment.rows, segment.length, -1)  # (rows, L, D)
            parts.append(self.conv(rows.transpose(1, 2)).transpose(1, 2).flatten(0, 1))  # (rows * L, D)
        out: Tensor = self.norm(x + self.activation(self.dropout(torch.cat(parts))))
        return out


class Encoder(nn.Module):
    """Tokens -> contextual vectors."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.relative = RelativePositions(config) if config.relative else None
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.blocks or config.layers))
        self.convolution = Convolution(config) if config.convolution else None
        self.final_norm = layer_norm(config) if config.norm == "pre" else nn.Identity()

    def forward(self, batch: Batch) -> Tensor:
        """(T,) ids -> (T, D)."""
        return self.contextualize(self.embeddings(batch), batch)

    def contextualize(self, embedded: Tensor, batch: Batch) -> Tensor:
        """Vectors of single tokens (T, D) -> the same in their context (T, D)."""
        x = embedded
        everything = self._view(batch, embedded.dtype, None)
        local = everything
        if self.config.local_layers:
            local = self._view(batch, embedded.dtype, self.config.local_window // 2)
        for layer in range(self.config.layers):
            block = self.blocks[int(layer / (self.config.layers / len(self.blocks)))]  # as ALBERT counts its groups
            x = block(x, local if layer in self.config.local_layers else everything)
            if layer == 0 and self.convolution is not None:
                x = self.convolution(embedded, x, batch)
        out: Tensor = self.final_norm(x)
        return out

    def _view(self, batch: Batch, dtype: torch.dtype, reach: int | None) -> View:
        """What the layers see that see `reach` tokens to each side, or everything."""
        config = self.config
        turn = None
        if config.positions == "rotary":
            theta = config.rope_theta if reach is None else config.local_rope_theta
            turn = rotation(batch.positions, config.head_width, theta, dtype)
        relative = self.relative(batch.longest) if self.relative is not None else None
        return make_view(batch, dtype, reach, turn, relative)


class Head(nn.Module):
    """Pool each row and score the labels: dense, activation, norm where the family has one, linear."""

    def __init__(self, config: EncoderConfig, num_labels: int) -> None:
        super().__init__()
        self.pooling, self.activation = config.pooling, ACTIVATIONS[config.head_activation]
        self.dense = nn.Linear(config.width, config.width, bias=config.head_bias)
        self.norm = layer_norm(config) if config.head_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.out = nn.Linear(config.width, num_labels)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        """(T, D) -> fp32 logits (B, C), in the caller's order."""
        pooled = self.norm(self.activation(self.dense(self.pool(x, batch).to(self.dense.weight.dtype))))
        out: Tensor = self.out(self.dropout(pooled))
        return out.float()

    def pool(self, x: Tensor, batch: Batch) -> Tensor:
        """(T, D) -> (B, D): the first token of each row, or the mean over its tokens."""
        if self.pooling == "first":
            return x[batch.starts]
        sums = x.new_zeros(len(batch.starts) + 1, x.shape[1], dtype=torch.float32)  # the last is that of padding
        sums = sums.index_add(0, batch.rows, x.float())[:-1]
        return (sums / batch.lengths[:, None]).to(x.dtype)


class Classifier(nn.Module):
    """Encoder and head, and n-grams where it has them: a Batch in, fp32 logits (B, C) out, in the caller's order."""

    def __init__(self, config: EncoderConfig, num_labels: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.head = Head(config, num_labels)
        self.ngrams: NGrams | None = None
        self.apply(partial(init_weights, config))

    def forward(self, batch: Batch) -> Tensor:
        """A Batch of B rows -> (B, C)."""
        logits = self.logits(self.encoder.embeddings(batch), batch)
        return logits if self.ngrams is None else logits + self.ngrams(batch)

    def embed(self, batch: Batch) -> Tensor:
        """A Batch of B rows -> their embeddings (B, D): what the head scores."""
        return self.head.pool(self.encoder(batch), batch)

    def logits(self, embedded: Tensor, batch: Batch) -> Tensor:
        """Embedded tokens (T, D) -> (B, C), without n-grams.

        model/explain.py comes in here with vectors between two texts.
        """
        logits: Tensor = self.head(self.encoder.contextualize(embedded, batch), batch)
        return logits


def init_weights(config: EncoderConfig, module: nn.Module) -> None:
    """Normal weights cut at two deviations; pre-norm outputs shrink with depth, as in GPT-2 and ModernBERT."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, Block) and module.pre:
        for out in (module.attention.out, module.feed_forward.down):
            with torch.no_grad():
                out.weight /= math.sqrt(2 * config.layers)
