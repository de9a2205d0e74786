"""What an explanation is, without the network that computes it (model/explain.py): a score for each token of a row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.tokens import Row, Span, Tokenizer

POINTS = 5  # on a piece of the line, at least; odd: the middle point of a piece is an end of its halves


@dataclass(frozen=True)
class Attribution:
    """A score per token of the row, 0 where the baseline has the same token.

    scores sum to target(row) - target(baseline) - gap; |gap| is small unless the pieces did not suffice.
    """

    scores: list[float]
    gap: float


def masked(row: Row, spans: Sequence[Span | None], tokenizer: Tokenizer) -> Row:
    """The baseline of a row: its special tokens, where spans are None, among blanks."""
    special = tokenizer.special_tokens
    token = special.get("mask") or special.get("unk")
    blank = (tokenizer.token_id(token) if token else None) or 0
    return replace(row, ids=[i if span is None else blank for i, span in zip(row.ids, spans, strict=True)])
