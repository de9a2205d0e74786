"""What a pretraining is made of besides its texts: the settings, and the network with its tokenizer.

As training/build.py is for classifiers, from which the shape of a network from scratch comes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from model.bundle import load_encoder
from model.convert import load_weights
from model.masked import MaskedLM
from training.build import (
    MIN_TOKENS,
    SCRATCH,
    SCRATCH_ONLY,
    check_from_zero,
    check_positive,
    check_shares,
    from_scratch,
    refuse_own,
    scratch_shape,
)
from training.corpus import up_to
from training.tokenizer import learn_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from model.tokens import Tokenizer
    from training.corpus import TextFiles

TOKENIZER_CHARS = 10_000_000  # of the texts, from which a tokenizer is learned: seconds, and a vocabulary has settled


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything that a run is made of besides its texts. None: see training/build.py, or the encoder of --init."""

    family: Literal["bert", "modernbert"] | None = None
    tokenizer: Literal["wordpiece", "bpe"] | None = None
    vocab_size: int | None = None
    layers: int | None = None  # with --init, keep the first so many
    width: int | None = None
    heads: int | None = None
    feed_forward: int | None = None
    max_tokens: int = 256  # of a row; a longer text is cut into several
    mask_share: float = 0.3  # of the words
    # None: as many as read 20 million tokens, from 1 to 40; with --budget until it is over. 0: word vectors alone
    epochs: int | None = None
    batch_tokens: int = 8192
    lr: float | None = None  # peak; from scratch 1e-3, with --init 2e-4
    warmup: float = 0.05  # share of the run over which the rate rises; then it falls to 0 in a line
    weight_decay: float = 0.01  # not on biases and norms
    dropout: float = (
        0.0  # a run reads each text few times (Geiping and Goldstein 2022, https://arxiv.org/abs/2212.14034)
    )
    max_grad_norm: float = 1.0
    evaluations: int = 10  # on held-out texts, evenly over the run; fewer where they took over a tenth of a budget
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # autocast
    weights: Literal["fp32", "fp16", "bf16"] = "fp32"  # as stored
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 0:
            raise ValueError(f"epochs is not at least 0: {self.epochs}")
        check_positive(self, *SCRATCH, "batch_tokens", "lr", "evaluations")
        check_shares(self, "dropout", "warmup")
        check_from_zero(self, "weight_decay", "max_grad_norm")
        if not 0 < self.mask_share < 1:
            raise ValueError(f"mask_share is not between 0 and 1: {self.mask_share}")
        if self.max_tokens < MIN_TOKENS:
            raise ValueError(f"max_tokens is not at least {MIN_TOKENS}: {self.max_tokens}")
        if self.batch_tokens < self.max_tokens:
            raise ValueError(f"batch_tokens does not hold one row of max_tokens={self.max_tokens}: {self.batch_tokens}")


def build(config: PretrainConfig, texts: TextFiles, init: Path | None) -> tuple[MaskedLM, Tokenizer]:
    """The network and its tokenizer, from scratch or from the encoder in `init`.

    Raises ValueError for a setting that the encoder in `init` decides, and for a tokenizer without a mask token;
    BundleError where it cannot be read.
    """
    if init is None:
        shape = scratch_shape(config)
        tokenizer = learn_tokenizer(up_to(TOKENIZER_CHARS, texts.texts()), shape["tokenizer"], shape["vocab_size"])
        return MaskedLM(from_scratch(shape, tokenizer.vocab_size, config.max_tokens, config.dropout)), tokenizer
    refuse_own(config, (*SCRATCH_ONLY, "vocab_size"))
    encoder, weights, tokenizer = load_encoder(init, layers=config.layers)
    if tokenizer.mask_id is None:
        raise ValueError(f"the tokenizer of --init has no mask token, so no word can be hidden: {init}")
    model = MaskedLM(dataclasses.replace(encoder, dropout=config.dropout))
    load_weights(model, weights, bare=True)
    return model, tokenizer
