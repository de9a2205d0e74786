"""The rows of offline prediction: a file -> chunks of texts, and chunks of answers as they are written. No torch.

Called by service/predict.py, predict_file.py, predict_command.py and predict_ray.py.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import islice
from typing import TYPE_CHECKING, Any

from model.records import open_source, text_of
from service.errors import ServiceError
from service.tokenizing import num_chars

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.tokens import Text
    from service.predict_columns import Kept

CHUNK_ROWS = 2048  # fills some passes even of short texts, and is soon done again after an interruption
CHUNK_CHARS = 2**20  # of long texts: a quarter of a million tokens
NUMBER_CHARS = 8


class BadRow(ServiceError):
    """Stands in the place of a row that has no text. Arguments: line and reason; an output names no path."""

    status, code = 422, "bad_row"
    template = "line {}: {}"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that are answered and written together, each with its text or why it has none, and what it keeps.

    share says how much of the file had been read after the last one.
    """

    texts: list[Text | BadRow]
    kept: list[dict[str, Any]]
    share: float | None


@dataclass(kw_only=True)
class Totals:
    """What has been answered: rows, those without a text, those that failed alone, those cut, and tokens read."""

    rows: int = 0
    bad_rows: int = 0
    failed: int = 0
    truncated: int = 0
    tokens: int = 0

    def add(self, other: Totals) -> None:
        """Count what another counted."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@dataclass(frozen=True, slots=True)
class Written:
    """A chunk as it goes into the file; first_bad is its first row without a text."""

    data: bytes
    totals: Totals
    share: float | None
    first_bad: BadRow | None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Which rows and fields of a file are read: enough to read them in another process."""

    file: str
    text_column: str
    kept: Kept
    only: frozenset[str] | None  # fields that are wanted; None: all
    skip_rows: int = 0  # that an interrupted run has answered

    def chunks(self) -> Iterator[Chunk]:
        """The rows, so many at a time that they fill passes and stay small in memory."""
        with open_source(self.file, self.only) as source:
            chunk, chars = Chunk([], [], None), 0
            for line, row in islice(source.records, self.skip_rows, None):
                text, keeps = self._row(line, row)
                chunk.texts.append(text)
                chunk.kept.append(keeps)
                chars += 0 if isinstance(text, BadRow) else num_chars(text)
                chars += size_of(keeps)
                if len(chunk.texts) >= CHUNK_ROWS or chars >= CHUNK_CHARS:
                    yield Chunk(chunk.texts, chunk.kept, source.share())
                    chunk, chars = Chunk([], [], None), 0
            if chunk.texts:
                yield Chunk(chunk.texts, chunk.kept, source.share())

    def _row(self, line: int, row: dict[str, Any] | str) -> tuple[Text | BadRow, dict[str, Any]]:
        try:
            return text_of(row, self.text_column), self.kept.of(row)
        except ValueError as error:
            return BadRow(line, str(error)), self.kept.of_bad(row)


def size_of(value: Any) -> int:
    """Characters and bytes in a value, and in all that it holds; however deep it is."""
    size, waiting = 0, [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part
        else:
            size += len(part) if isinstance(part, str | bytes) else NUMBER_CHARS
    return size
