"""Texts -> rows of token ids that take little memory: five bytes a token, where a list of numbers takes up to forty.

Used by training/build.py, train.py and finish.py.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import numpy as np

from model.tokens import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from model.tokens import Text, Tokenizer

CHUNK_TEXTS = 4096  # encoded at a time: what a tokenizer says of a text takes kilobytes


class EncodedRows(Sequence[Row]):
    """The rows of some texts, each made when it is asked for."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[Text], max_tokens: int) -> None:
        ids, types, lengths, truncated = array("I"), array("B"), array("i"), array("i")
        for start in range(0, len(texts), CHUNK_TEXTS):
            for row in tokenizer.encode(texts[start : start + CHUNK_TEXTS], max_tokens):
                ids.extend(row.ids)
                types.extend(row.types or bytes(row.tokens))
                lengths.append(row.tokens)
                truncated.append(row.truncated)
        self._ids, self._types, self._truncated = ids, types, truncated
        self._starts = np.cumsum([0, *lengths], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._truncated)

    @overload
    def __getitem__(self, i: int) -> Row: ...
    @overload
    def __getitem__(self, i: slice) -> list[Row]: ...
    def __getitem__(self, i: int | slice) -> Row | list[Row]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not 0 <= i < len(self):
            raise IndexError(i)
        part = slice(self._starts[i], self._starts[i + 1])
        types = self._types[part]
        return Row(self._ids[part].tolist(), types.tolist() if any(types) else None, self._truncated[i])

    @property
    def ids(self) -> NDArray[np.uint32]:
        """Those of all rows, one after another."""
        return np.frombuffer(self._ids, np.uint32)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        lengths: list[int] = np.diff(self._starts).tolist()
        return lengths


def digest(rows: Sequence[Row]) -> str:
    """SHA-256 of the token ids, in hex."""
    sha = hashlib.sha256()
    for row in rows:
        sha.update(repr(row.ids).encode())
    return sha.hexdigest()
