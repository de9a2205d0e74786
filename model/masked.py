"""The masked language model: the encoder and a head that says, for some tokens, which of the vocabulary each was.

What is projected onto the vocabulary is the cost, so only the tokens that are asked for are. The projection is the
token embedding itself (tied weights). Used by training/pretrain.py; names in checkpoints: model/families.py.

Letters: T tokens of all rows, M tokens that are asked for, D width, E embedding width, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.encoder import ACTIVATIONS, Encoder, init_weights, layer_norm
from model.families import FAMILIES

if TYPE_CHECKING:
    from model.batch import Batch
    from model.encoder import EncoderConfig


class MaskedHead(nn.Module):
    """Dense, activation, norm, and the embedding as the last layer."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        narrow = config.embedding_width or config.width  # E
        named = FAMILIES[config.family].masked.activation
        self.activation = ACTIVATIONS[getattr(config, named, named)]
        self.dense = nn.Linear(config.width, narrow, bias=config.head_bias)
        self.norm = layer_norm(config, narrow)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(M, D) and the embedding (V, E) -> fp32 logits (M, V)."""
        x = self.norm(self.activation(self.dense(x)))  # (M, E)
        return F.linear(x, embedding, self.bias).float()


class MaskedLM(nn.Module):
    """Encoder and head: a Batch and places on its token axis in, fp32 logits over the vocabulary out."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.masked = MaskedHead(config)
        self.apply(partial(init_weights, config))

    def forward(self, batch: Batch, places: Tensor) -> Tensor:
        """A Batch of T tokens, places (M,) among them -> (M, V)."""
        logits: Tensor = self.masked(self.encoder(batch)[places], self.encoder.embeddings.tokens.weight)
        return logits
