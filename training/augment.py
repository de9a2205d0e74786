"""What a network does not see of its training rows, or sees otherwise, while their labels stay. Used by train.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from model.tokens import Row

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from model.batch import Batch
    from model.tokens import Tokenizer


def edit_rows(rows: Sequence[Row], share: float, special_ids: Collection[int], seed: tuple[int, ...]) -> list[Row]:
    """The rows with about so much of each edited, the same for a seed: half of it left out, half put behind the next.

    Of the edits of Wei and Zou 2019 (https://aclanthology.org/D19-1670) those two that need no dictionary.
    """
    rng = np.random.default_rng(seed)
    return [_edited(row, share, special_ids, rng) for row in rows] if share else list(rows)


def _edited(row: Row, share: float, special_ids: Collection[int], rng: np.random.Generator) -> Row:
    """Special tokens stay, and what is between two of them stays there; of each such stretch one token at least."""
    order: list[int] = []  # places in the row
    stretch: list[int] = []
    draws = rng.random(row.tokens)
    for i, token in enumerate(row.ids):
        if token in special_ids:
            order += [*_moved(stretch, draws, share), i]
            stretch = []
        else:
            stretch.append(i)
    order += _moved(stretch, draws, share)
    types = row.types and [row.types[i] for i in order]
    return Row([row.ids[i] for i in order], types, row.truncated)


def _moved(places: list[int], draws: NDArray[np.float64], share: float) -> list[int]:
    kept = [i for i in places if draws[i] >= share / 2] or places[:1]
    return sorted(kept, key=lambda i: i + 1.5 * (draws[i] < share))


def mask_tokens(batch: Batch, share: float, tokenizer: Tokenizer) -> None:
    """Put [MASK] in the place of so many of a batch's words (Iyyer et al. 2015, section 4.2, "word dropout")."""
    if share and tokenizer.mask_id is not None:
        is_chosen = torch.rand(batch.ids.shape) < share
        is_special = torch.isin(batch.ids, torch.tensor(tokenizer.special_ids))
        batch.tokens[0] = batch.ids.masked_fill(is_chosen & ~is_special, tokenizer.mask_id)
