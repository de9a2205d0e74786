"""Texts -> the rows that are read for them; results of the rows -> one answer per text. The pass lies between.

Here on_long comes true: a text that is too long is cut, refused, or read in windows and pooled. Pure functions,
called by service/tokenizing.py, answering.py and predict.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from model.drift import Seen
from model.scores import pool_windows
from model.tokens import Window, tokens_of
from service.errors import PairTooLong, ServiceError, TooManyTokens
from service.scored import Scored, score

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from model.manifest import Described
    from model.tokens import Row, Text
    from service.schemas import OnLong

Reading: TypeAlias = "list[Row] | ServiceError"  # the rows of a text, or why it is not read


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """What the model says of one text; windows, in order, only where it was read in several."""

    rows: list[Row]
    result: Scored | ServiceError
    windows: list[tuple[Window, Scored]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens of the text that were read, each counted once, special tokens included."""
        return tokens_of(self.rows)


def seen(bundle: Described, answer: TextAnswer) -> Seen | None:
    """What is watched for drift of an answered text, None where the model failed on it."""
    if isinstance(answer.result, ServiceError):
        return None
    confidence = max(answer.result.scores)
    unknown = bundle.tokenizer.unknown_id
    return Seen(
        label=answer.result.scores.index(confidence),
        confidence=confidence,
        tokens=min(answer.tokens, bundle.max_tokens),
        is_unknown=any(unknown in row.ids for row in answer.rows),
    )


def read_texts(bundle: Described, texts: Sequence[Text], on_long: OnLong) -> list[Reading]:
    """One row for each text that fits; what on_long asks for where one does not."""
    limit = bundle.max_tokens
    if on_long == "window":
        windows = bundle.tokenizer.encode_windows(texts, limit)
        return [PairTooLong(limit) if rows[0].truncated else rows for rows in windows]
    rows = bundle.tokenizer.encode(texts, limit)
    if on_long == "error":
        return [TooManyTokens(row.tokens + row.truncated, limit) if row.truncated else [row] for row in rows]
    return [[row] for row in rows]


def rows_of(readings: Iterable[Reading]) -> list[Row]:
    """All rows that want a pass, text after text."""
    return [row for rows in readings if not isinstance(rows, ServiceError) for row in rows]


def answer_texts(
    bundle: Described, readings: Iterable[Reading], results: Iterable[Scored | ServiceError]
) -> list[TextAnswer]:
    """An answer per text, in order; results are those of rows_of(readings)."""
    remaining = iter(results)
    return [
        TextAnswer([], rows) if isinstance(rows, ServiceError) else _answer(bundle, rows, remaining)
        for rows in readings
    ]


def _answer(bundle: Described, rows: list[Row], results: Iterator[Scored | ServiceError]) -> TextAnswer:
    """The next results are those of the rows; where one window failed, its text failed."""
    by_row = list(islice(results, len(rows)))
    failed = next((result for result in by_row if isinstance(result, ServiceError)), None)
    if failed is not None or len(rows) == 1:
        return TextAnswer(rows, failed or by_row[0])
    windows = [(w, s) for w, s in zip(rows, by_row, strict=True) if isinstance(w, Window) and isinstance(s, Scored)]
    logits = np.array([scored.logits for _, scored in windows], dtype=np.float32)  # (W, C)
    [whole] = score(bundle, pool_windows(logits, [len(windows)], bundle.problem_type))
    return TextAnswer(rows, whole, windows)
