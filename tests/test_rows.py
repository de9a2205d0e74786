"""Rows of token ids that lie in few bytes are those that the tokenizer gives."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

from samples import rows

from training.rows import EncodedRows, digest

if TYPE_CHECKING:
    import pytest

    from model.bundle import Bundle
    from model.tokens import Text


def test_rows_are_those_of_the_tokenizer_whatever_chunk_they_are_encoded_in(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[Text] = [str(row["text"]) for row in rows(50)]
    texts[7], texts[8], texts[9] = ("the film", "was good"), "", "good " * 100
    expected = bundle.tokenizer.encode(texts, 16)
    monkeypatch.setattr("training.rows.CHUNK_TEXTS", 8)
    encoded = EncodedRows(bundle.tokenizer, texts, 16)
    assert list(encoded) == encoded[:] == expected
    assert expected[7].types is not None
    assert expected[9].truncated > 0
    assert encoded.lengths == [row.tokens for row in expected]
    assert digest(encoded) == digest(expected) != digest(expected[1:])


def test_rows_take_a_fraction_of_the_memory_of_lists(bundle: Bundle) -> None:
    texts = [str(row["text"]) for row in rows(5000)]
    tracemalloc.start()
    try:
        encoded = EncodedRows(bundle.tokenizer, texts, 64)
        packed = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert packed < 6 * sum(encoded.lengths) + 20 * len(texts)
