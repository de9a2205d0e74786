"""What a run follows where its settings say nothing, chosen from its data: rows, labels, lengths. Pure functions.

The rules come from `benchmarks/accuracy.py` (benchmarks/RESULTS.md, "Training"); each is a setting, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.encoder import EncoderConfig
    from training.build import TrainConfig

READ_WHOLE = 0.99  # of the training rows
SHORTEST, LONGEST = 64, 512  # tokens, of which a model reads at least and, unless told otherwise, at most
MOST_EPOCHS = 20
SMALLEST_BATCH, LARGEST_BATCH = 32, 256  # rows
BATCH_TOKENS, MOST_BATCH_TOKENS = 4096, 16_384  # of rows that are long, so many of average length, in more tokens
SHORT_TEXT = 16  # tokens
SMALL_WEIGHTS = 4_000_000  # a network from scratch has 1.3 M where nothing else is set, half of MiniLM 5.3 M
DROPOUT, SMALL_DROPOUT, SMALL_TOKEN_DROPOUT = 0.1, 0.4, 0.2
ADVERSARIAL = 0.1  # of the length of a token
MADE_TEXTS, MOST_COPIES = 40_000, 8  # about so many, so many of each row, are read beside few rows (guide.py)
MOST_GUIDED = 100_000  # rows; of more the labels say enough
MOST_GUIDED_LABELS = 10  # of more the line says too little


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how fast a run learns, and what is hidden from it meanwhile."""

    epochs: int
    batch_rows: int
    batch_tokens: int
    lr: float  # peak
    dropout: float
    token_dropout: float
    made_texts: int  # of each row
    adversarial: float  # how far a row's tokens are moved against it, as a share of the length of one


def choose_recipe(
    config: TrainConfig, encoder: EncoderConfig, *, rows: int, tokens: float, labels: int, has_mask: bool
) -> Recipe:
    """The settings, and where they say nothing what the data asks for: so many rows, of `tokens` tokens on average.

    Epochs: 3 of 20,000 rows of two labels, more of fewer rows by the third root; for a small encoder 2 of 100,000, by
    the square root. More of more labels by 1 + log10(labels / 2) / 2, fewer of rows over SHORT_TEXT by the fourth
    root; 1 to 20. Batch: a quarter of the square root of the rows, as a power of two, 32 to 256. Rate: for 32 rows a
    batch 1e-4, for a small encoder 5e-4, by the square root of the batch beyond (Malladi et al. 2022,
    https://arxiv.org/abs/2205.10287, for Adam). A small encoder learns its rows by heart before it has understood them:
    up to 100,000, of ten labels at most, it reads texts made of them too, which count as rows for the batch and by the
    square root for the epochs, as it does not learn them by heart; where it has none, four numbers of ten and a word of
    five are hidden from it. One that is not small reads each batch twice (adversarial.py); to a small one that is harm.
    """
    made_texts = choose_made_texts(config, encoder, rows, labels)
    dropout = choose_dropout(config, encoder, rows, labels)
    texts, to_learn = rows * (1 + made_texts), rows * math.sqrt(1 + made_texts)
    variety = 1 + math.log10(max(labels, 2) / 2) / 2
    length = (SHORT_TEXT / max(tokens, SHORT_TEXT)) ** 0.25
    small = is_small(encoder)
    readings = 2 * (100_000 / to_learn) ** (1 / 2) if small else 3 * (20_000 / to_learn) ** (1 / 3)
    epochs = math.ceil(readings * variety * length)
    batch = 2 ** round(math.log2(max(1.0, math.sqrt(texts) / 4)))
    batch_rows = config.batch_rows or min(LARGEST_BATCH, max(SMALLEST_BATCH, batch))
    enough = min(MOST_BATCH_TOKENS, round(batch_rows * tokens))
    batch_tokens = config.batch_tokens or max(BATCH_TOKENS, config.longest, enough)
    rows_read = min(batch_rows, batch_tokens / tokens)
    hidden = SMALL_TOKEN_DROPOUT if small and has_mask and not made_texts else 0.0
    return Recipe(
        epochs=config.epochs or min(MOST_EPOCHS, epochs),
        batch_rows=batch_rows,
        batch_tokens=batch_tokens,
        lr=config.lr or (5e-4 if small else 1e-4) * math.sqrt(rows_read / 32),
        dropout=dropout,
        token_dropout=hidden if config.token_dropout is None else config.token_dropout,
        made_texts=made_texts,
        adversarial=(0.0 if small else ADVERSARIAL) if config.adversarial is None else config.adversarial,
    )


def choose_made_texts(config: TrainConfig, encoder: EncoderConfig, rows: int, labels: int) -> int:
    """How many texts are made of each row: the more, the fewer rows there are.

    None where labels are balanced: the line says a little of a rare one about any text, which its weight would blow up.
    """
    if config.made_texts is not None:
        return config.made_texts
    if config.class_weights == "balanced":
        return 0
    if not is_small(encoder) or rows > MOST_GUIDED or labels > MOST_GUIDED_LABELS:
        return 0
    return min(MOST_COPIES, max(1, round(MADE_TEXTS / rows)))


def choose_dropout(config: TrainConfig, encoder: EncoderConfig, rows: int, labels: int) -> float:
    """Share of the numbers between layers that are hidden in training."""
    if config.dropout is not None:
        return config.dropout
    alone = is_small(encoder) and not choose_made_texts(config, encoder, rows, labels)
    return SMALL_DROPOUT if alone else DROPOUT


def is_small(encoder: EncoderConfig) -> bool:
    """Whether an encoder knows little of language beyond its words, by the weights of its layers."""
    up = encoder.feed_forward * (2 if encoder.gated else 1)
    return encoder.layers * encoder.width * (4 * encoder.width + up + encoder.feed_forward) < SMALL_WEIGHTS


def read_length(lengths: Sequence[int]) -> int:
    """Tokens that hold READ_WHOLE of the rows whole, a multiple of 16 from SHORTEST to LONGEST."""
    return min(LONGEST, max(SHORTEST, math.ceil(float(np.quantile(lengths, READ_WHOLE)) / 16) * 16))
