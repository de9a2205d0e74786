"""What a run is made of besides its data: the settings, and the network with its tokenizer that they describe."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from model.bundle import load_encoder
from model.convert import load_weights
from model.encoder import Classifier, EncoderConfig
from model.families import modernbert_defaults
from training.tokenizer import PAD_ID, learn_tokenizer, shrink_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from model.tokens import Tokenizer
    from training.data import Dataset

SCRATCH: dict[str, Any] = {  # what a run without --init has where the settings say nothing
    "family": "bert",
    "tokenizer": "wordpiece",
    "vocab_size": 16_000,
    "layers": 4,
    "width": 256,
    "heads": 4,
    "feed_forward": 1024,
}
SCRATCH_ONLY = ("family", "tokenizer", "width", "heads", "feed_forward")  # an encoder brings its own
MIN_TOKENS = 8  # special tokens, and a word of each text of a pair


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that a run is made of besides its data. None: see SCRATCH, or the encoder of --init."""

    family: Literal["bert", "modernbert"] | None = None
    tokenizer: Literal["wordpiece", "bpe"] | None = None
    vocab_size: int | None = None  # with --init, shrink its WordPieces to this many
    layers: int | None = None  # with --init, keep the first so many
    width: int | None = None
    heads: int | None = None
    feed_forward: int | None = None
    max_tokens: int = 256  # a longer text is cut
    epochs: int = 3
    batch_rows: int = 32
    batch_tokens: int = 4096  # padded tokens of a batch, at most
    lr: float | None = None  # peak; from scratch 5e-4, with --init 1e-4
    warmup: float = 0.1  # share of the steps over which the rate rises; then it falls to 0 in a line
    weight_decay: float = 0.01  # not on biases and norms
    dropout: float = 0.1
    label_smoothing: float = 0.0
    max_grad_norm: float = 1.0
    patience: int = 2  # epochs without a better dev score before stopping
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # autocast
    weights: Literal["fp32", "fp16", "bf16"] = "fp32"  # as stored in the bundle
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_rows", "batch_tokens", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is not at least 1: {getattr(self, name)}")
        for name in ("vocab_size", "layers", "width", "heads", "feed_forward", "lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is not a positive number: {value}")
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is not in [0, 1): {getattr(self, name)}")
        for name in ("weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is not a number from 0 on: {getattr(self, name)}")
        if self.max_tokens < MIN_TOKENS:
            raise ValueError(f"max_tokens is not at least {MIN_TOKENS}: {self.max_tokens}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is not in [0, 1): {self.warmup}")
        if self.batch_tokens < self.max_tokens:
            raise ValueError(
                f"batch_tokens does not hold one text of max_tokens={self.max_tokens}: {self.batch_tokens}"
            )


def build(config: TrainConfig, train_set: Dataset, num_labels: int, init: Path | None) -> tuple[Classifier, Tokenizer]:
    """The network and its tokenizer, from scratch or from the encoder in `init`.

    Raises ValueError for a setting that the encoder in `init` decides, BundleError where it cannot be read.
    """
    if init is None:
        shape = SCRATCH | {name: value for name in SCRATCH if (value := getattr(config, name)) is not None}
        tokenizer = learn_tokenizer(train_set.texts, shape["tokenizer"], shape["vocab_size"])
        encoder = from_scratch(shape, tokenizer.vocab_size, config.max_tokens, config.dropout)
        return Classifier(encoder, num_labels), tokenizer
    given = [name for name in SCRATCH_ONLY if getattr(config, name) is not None]
    if given:
        raise ValueError(f"the encoder of --init brings its own, leave it out: {given[0]}={getattr(config, given[0])}")
    encoder, weights, tokenizer = load_encoder(init, layers=config.layers)
    classifier = Classifier(dataclasses.replace(encoder, dropout=config.dropout), num_labels)
    load_weights(classifier, weights, bare=True)
    if config.vocab_size and config.vocab_size < tokenizer.vocab_size:
        tokenizer, kept = shrink_tokenizer(tokenizer, train_set.texts, config.vocab_size)
        classifier = _with_vocabulary(classifier, kept, num_labels)
    return classifier, tokenizer


def from_scratch(shape: dict[str, Any], vocab_size: int, max_tokens: int, dropout: float) -> EncoderConfig:
    """An encoder of the family and the sizes in `shape`, which has the names of SCRATCH."""
    family = modernbert_defaults(shape["layers"]) if shape["family"] == "modernbert" else {}
    sizes = {name: shape[name] for name in ("layers", "width", "heads", "feed_forward")}
    rest = {"vocab_size": vocab_size, "max_tokens": max_tokens, "dropout": dropout, "pad_id": PAD_ID}
    return EncoderConfig(**(family | sizes | rest))


def _with_vocabulary(classifier: Classifier, kept: Tensor, num_labels: int) -> Classifier:
    """The same network with only the `kept` rows of its token embedding."""
    smaller = Classifier(dataclasses.replace(classifier.config, vocab_size=len(kept)), num_labels)
    state = classifier.state_dict()
    name = "encoder.embeddings.tokens.weight"
    smaller.load_state_dict(state | {name: state[name][kept]})
    return smaller
