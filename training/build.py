"""What a run is made of besides its data: the settings, and the network with its tokenizer that they describe."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from model.bundle import load_encoder
from model.convert import keep_labels, load_weights
from model.encoder import Classifier, EncoderConfig
from model.families import modernbert_defaults
from model.folder import label_names, read_json
from training.cooccurrence import MAX_TOKENS, start_from_text
from training.data import targets
from training.recipe import LONGEST, choose_dropout, choose_recipe, read_length
from training.rows import EncodedRows
from training.tokenizer import PAD_ID, learn_tokenizer, shrink_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from model.tokens import Text, Tokenizer
    from training.data import Dataset
    from training.recipe import Recipe

SCRATCH: dict[str, Any] = {  # what a run without --init has where the settings say nothing
    "family": "modernbert",
    "tokenizer": "wordpiece",
    "vocab_size": 16_000,
    "layers": 2,
    "width": 256,
    "heads": 4,
    "feed_forward": 512,
}
NEAR = 4  # neighbours that a token sees in the lower half of a ModernBERT from scratch, as word pairs and triples do
SCRATCH_ONLY = ("family", "tokenizer", "width", "heads", "feed_forward")  # an encoder brings its own
MEASURED_TEXTS = 20_000
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
    word_vectors: bool = True  # from scratch, tokens start from the company they keep in the training texts
    max_tokens: int | None = None  # a longer text is cut; None, here and below: chosen from the data (recipe.py)
    epochs: int | None = None
    batch_rows: int | None = None
    batch_tokens: int | None = None  # padded tokens of a batch, at most
    lr: float | None = None  # peak
    warmup: float = 0.1  # share of the run over which the rate rises; then it falls to 0
    decay: Literal["linear", "cosine"] = "linear"
    layer_decay: float = 1.0  # the rate of each layer, as a share of that of the layer above it
    token_dropout: float | None = None  # share of the tokens that are masked in training
    edits: float = 0.0  # share of the tokens that are left out or change places in training
    augment: bool = False  # train without such edits and masks, then with them, and keep what is better on dev
    r_drop: float = 0.0  # weight of what two readings of a row, under dropout each, differ by; 0: one reading
    adversarial: float | None = None  # how far tokens are moved against a second reading, in their length; 0: no second
    made_texts: int | None = None  # of each row, read beside it, labelled by the linear line and the teacher
    ngrams: bool = False  # a table of tokens and pairs beside the encoder; transformers reads the encoder alone
    class_weights: Literal["none", "balanced"] = "none"  # balanced: rare labels count as much as frequent ones
    teacher_weight: float = 0.5  # of the teacher's scores in the loss, with --teacher; the labels have the rest
    teacher_temperature: float = 2.0  # by which both logits are divided there
    weight_decay: float = 0.01  # not on biases and norms
    dropout: float | None = None
    label_smoothing: float = 0.0
    max_grad_norm: float = 1.0
    patience: int = 5  # epochs without a better one on dev before stopping: as the rate falls, the last are the best
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # autocast
    weights: Literal["fp32", "fp16", "bf16"] = "fp32"  # as stored in the bundle
    coverage: float = 0.9  # share of texts whose label set holds the true label
    false_alarms: float = 0.05  # share of texts like those trained on that it abstains on; 0: it never abstains
    out_of_scope_label: str | None = None  # of rows that are of no class, as a user will send them too
    outlier_exposure: float = 0.0  # weight of their loss: finds more of them, at a cost in accuracy; 0: not trained on
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_rows", "batch_tokens", "patience"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is not at least 1: {value}")
        check_positive(self, *SCRATCH, "lr", "layer_decay", "teacher_temperature")
        check_shares(self, "dropout", "label_smoothing", "token_dropout", "edits", "warmup", "false_alarms")
        if not 0 <= self.teacher_weight <= 1:
            raise ValueError(f"teacher_weight is not in [0, 1]: {self.teacher_weight}")
        if self.made_texts is not None and self.made_texts < 0:
            raise ValueError(f"made_texts is not a number from 0 on: {self.made_texts}")
        if self.ngrams and self.class_weights == "balanced":
            raise ValueError("ngrams=true undoes class_weights=balanced, as n-grams learn how frequent each label is")
        check_from_zero(self, "weight_decay", "max_grad_norm", "outlier_exposure", "r_drop", "adversarial")
        if self.longest < MIN_TOKENS:
            raise ValueError(f"max_tokens is not at least {MIN_TOKENS}: {self.longest}")
        if not 0 < self.coverage < 1:
            raise ValueError(f"coverage is not in (0, 1): {self.coverage}")
        if self.batch_tokens is not None and self.batch_tokens < self.longest:
            raise ValueError(f"batch_tokens does not hold one text of max_tokens={self.longest}: {self.batch_tokens}")

    @property
    def longest(self) -> int:
        """Tokens of a row, at most, whatever the data."""
        return LONGEST if self.max_tokens is None else self.max_tokens


def check_positive(config: object, *names: str) -> None:
    """Raises ValueError naming the first setting that is given and is no positive number."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, int | float) and not 0 < value < math.inf:
            raise ValueError(f"{name} is not a positive number: {value}")


def check_shares(config: object, *names: str) -> None:
    """Raises ValueError naming the first setting that is given and not in [0, 1)."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < 1:
            raise ValueError(f"{name} is not in [0, 1): {value}")


def check_from_zero(config: object, *names: str) -> None:
    """Raises ValueError naming the first setting that is given and negative or infinite."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} is not a number from 0 on: {value}")


def scratch_shape(config: object) -> dict[str, Any]:
    """SCRATCH, with what the settings say instead."""
    return SCRATCH | {name: value for name in SCRATCH if (value := getattr(config, name)) is not None}


def refuse_own(config: object, names: Sequence[str]) -> None:
    """Raises ValueError naming the first setting that the encoder of --init decides and is given all the same."""
    given = [name for name in names if getattr(config, name) is not None]
    if given:
        raise ValueError(f"the encoder of --init brings its own, leave it out: {given[0]}={getattr(config, given[0])}")


def build(
    config: TrainConfig, train_set: Dataset, labels: Sequence[str], init: Path | None
) -> tuple[Classifier, Tokenizer, int]:
    """The network, its tokenizer, and how many tokens of a text it is to read; from scratch or from `init`.

    Of labels that `init` has under the same name it keeps what it knows.
    Raises ValueError for a setting that the encoder in `init` decides, BundleError where it cannot be read.
    """
    if init is None:
        shape = scratch_shape(config)
        tokenizer = learn_tokenizer(train_set.texts, shape["tokenizer"], shape["vocab_size"])
        max_tokens = config.max_tokens or read_length(text_lengths(tokenizer, train_set.texts))
        classifier = Classifier(
            _with_dropout(from_scratch(shape, tokenizer.vocab_size, max_tokens), config, train_set), len(labels)
        )
        if config.word_vectors:
            start_from_text(classifier.encoder.embeddings.tokens, *tokens_of(tokenizer, train_set.texts))
        start_at_base_rates(classifier, config, train_set, labels)
        return classifier, tokenizer, max_tokens
    refuse_own(config, SCRATCH_ONLY)
    encoder, weights, tokenizer = load_encoder(init, layers=config.layers)
    classifier = Classifier(_with_dropout(encoder, config, train_set), len(labels))
    load_weights(classifier, weights, bare=True)
    start_at_base_rates(classifier, config, train_set, labels)
    theirs = read_json(init / "config.json")
    if theirs.get("id2label"):
        keep_labels(classifier, weights, label_names(theirs), labels)
    if config.vocab_size and config.vocab_size < tokenizer.vocab_size:
        tokenizer, kept = shrink_tokenizer(tokenizer, train_set.texts, config.vocab_size)
        classifier = _with_vocabulary(classifier, kept, len(labels))
    max_tokens = config.max_tokens or read_length(text_lengths(tokenizer, train_set.texts))
    return classifier, tokenizer, min(max_tokens, classifier.config.max_tokens)


def start_at_base_rates(classifier: Classifier, config: TrainConfig, train_set: Dataset, labels: Sequence[str]) -> None:
    """Let an untrained head say of every text how frequent each label is (Lin et al. 2017, section 3.3).

    A bias moves by the learning rate a step, so that else the layers below would learn first to say "rare" of every
    text, and what they knew would be lost to it: of 28 labels a whole epoch long.
    """
    if config.class_weights == "balanced":
        return  # all labels count as if they were equally frequent
    truth = targets(train_set, labels)
    multi = truth.ndim == 2
    with_label = truth.sum(axis=0) if multi else np.bincount(truth, minlength=len(labels))
    rates = (with_label + 0.5) / (len(truth) + 1)
    logits = np.log(rates / (1 - rates)) if multi else np.log(rates)
    with torch.no_grad():
        classifier.head.out.bias.copy_(torch.from_numpy(logits))


def recipe_of(
    config: TrainConfig, encoder: EncoderConfig, tokenizer: Tokenizer, train_set: Dataset, max_tokens: int
) -> Recipe:
    """What a run follows with these rows."""
    lengths = text_lengths(tokenizer, train_set.texts)
    return choose_recipe(
        config,
        encoder,
        rows=len(train_set.examples),
        tokens=sum(min(n, max_tokens) for n in lengths) / len(lengths),
        labels=len(train_set.label_names),
        has_mask=tokenizer.mask_id is not None,
    )


def text_lengths(tokenizer: Tokenizer, texts: Sequence[Text]) -> list[int]:
    """Tokens of each text, read or not; of many texts, those of some."""
    some = texts[:: math.ceil(len(texts) / MEASURED_TEXTS)]
    return [row.tokens + row.truncated for row in EncodedRows(tokenizer, some, LONGEST)]


def tokens_of(tokenizer: Tokenizer, texts: Sequence[Text]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of texts (N,) but the special ones, at most MAX_TOKENS, and the text of each (N,)."""
    rows = EncodedRows(tokenizer, texts, LONGEST)
    tokens = rows.ids[:MAX_TOKENS].astype(np.int64)
    row_of = np.repeat(np.arange(len(rows)), rows.lengths)[:MAX_TOKENS]
    kept = ~np.isin(tokens, tokenizer.special_ids)
    return tokens[kept], row_of[kept]


def from_scratch(shape: dict[str, Any], vocab_size: int, max_tokens: int, dropout: float = 0.0) -> EncoderConfig:
    """An encoder of the family and the sizes in `shape`, which has the names of SCRATCH."""
    family: dict[str, Any] = {}
    if shape["family"] == "modernbert":
        near = {"local_layers": tuple(range(shape["layers"] // 2)), "local_window": NEAR}
        family = modernbert_defaults(shape["layers"]) | near
    sizes = {name: shape[name] for name in ("layers", "width", "heads", "feed_forward")}
    rest = {"vocab_size": vocab_size, "max_tokens": max_tokens, "dropout": dropout, "pad_id": PAD_ID}
    return EncoderConfig(**(family | sizes | rest))


def _with_dropout(encoder: EncoderConfig, config: TrainConfig, train_set: Dataset) -> EncoderConfig:
    dropout = choose_dropout(config, encoder, len(train_set.examples), len(train_set.label_names))
    return dataclasses.replace(encoder, dropout=dropout)


def _with_vocabulary(classifier: Classifier, kept: Tensor, num_labels: int) -> Classifier:
    """The same network with only the `kept` rows of its token embedding."""
    smaller = Classifier(dataclasses.replace(classifier.config, vocab_size=len(kept)), num_labels)
    state = classifier.state_dict()
    name = "encoder.embeddings.tokens.weight"
    smaller.load_state_dict(state | {name: state[name][kept]})
    return smaller
