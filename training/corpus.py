"""Unlabelled texts of any size -> rows of token ids that lie on disk, some of them held out.

A text is cut into rows of at most max_tokens; a row is one text or a part of one, with special tokens of its own.
Files are read a little of each in turn, so that what is read first is a sample of all. Memory holds a chunk of texts
and where the rows begin: the rows are in a file without a name, which is gone with the process, mapped into memory.
Read by training/pretrain.py.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from array import array
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from model.records import COMPRESSIONS, check_unicode, open_source, read_lines, text_of
from training.data import DataError, is_dev

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from model.tokens import Tokenizer

    Tokens = NDArray[np.uint32]

HELD_OUT_SHARE = 0.02  # of the texts
PLAIN = ".txt"
PEEK_LINES = 10_000  # in which a plain text with paragraphs has an empty line
LONGEST_TEXT = 1_000_000  # characters of a paragraph
CHUNK_CHARS = 1_000_000  # encoded at a time
OPEN_FILES = 100  # at most
SHORTEST_REST = 8  # tokens of text; what a cut leaves over is not worth a row below it

# A token as it is stored: its id, and in the two highest bits what masking has to know of it.
GOES_ON = np.uint32(1 << 31)  # continues the word of the token before it
SPECIAL = np.uint32(1 << 30)  # stands for no text
ID = np.uint32((1 << 30) - 1)


@dataclass(frozen=True)
class TextFiles:
    """Files of texts. A bad row raises DataError, or with skip_bad is noted in `skipped`."""

    files: Sequence[Path]
    column: str = "text"
    skip_bad: bool = False
    skipped: list[str] = field(default_factory=list)

    def texts(self) -> Iterator[str]:
        """All texts, a text of each file in turn."""
        self.skipped.clear()
        groups = [self.files[i::OPEN_FILES] for i in range(min(OPEN_FILES, len(self.files)))]
        return in_turn([chain.from_iterable(map(self._read, group)) for group in groups])

    def _read(self, path: Path) -> Iterator[str]:
        stem = path.with_suffix("") if path.suffix in COMPRESSIONS else path
        return paragraphs(path) if stem.suffix == PLAIN else self._rows(path)

    def _rows(self, path: Path) -> Iterator[str]:
        with open_source(path, only={self.column, "text_pair"}) as source:
            for line, fields in source.records:
                try:
                    text = text_of(fields, self.column)
                except ValueError as error:
                    bad = f"{path}:{line}: {error}"
                    if not self.skip_bad:
                        raise DataError(f"{bad} (--bad-rows skip leaves such rows out)") from None
                    self.skipped.append(bad)
                    continue
                yield from (text,) if isinstance(text, str) else text


def paragraphs(path: Path) -> Iterator[str]:
    """The texts of a plain file: what empty lines part; each line where there are none."""
    has_paragraphs = any(not line.strip() for line in islice(read_lines(path), PEEK_LINES))
    lines: list[str] = []
    length = 0
    for line in chain(read_lines(path), [""]):
        check_unicode("text", line)
        if line.strip():
            lines.append(line.strip())
            length += len(line)
        if lines and (not has_paragraphs or not line.strip() or length > LONGEST_TEXT):
            yield " ".join(lines)
            lines, length = [], 0


def in_turn(streams: list[Iterator[str]]) -> Iterator[str]:
    """One of each stream in turn, as long as it has any."""
    while streams:
        for stream in list(streams):
            text = next(stream, None)
            if text is None:
                streams.remove(stream)
            else:
                yield text


def up_to(chars: int, texts: Iterable[str]) -> list[str]:
    """The first texts, of about so many characters together; empty where there are no more."""
    taken: list[str] = []
    for text in texts:
        taken.append(text)
        chars -= len(text)
        if chars <= 0:
            break
    return taken


@dataclass(frozen=True)
class Rows:
    """N rows, one after another on disk; row i is tokens[starts[i] : starts[i + 1]]. sha256 is that of all tokens."""

    tokens: Tokens
    starts: NDArray[np.int64]
    sha256: str

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row (N,)."""
        return np.diff(self.starts)

    def take(self, indices: Iterable[int]) -> list[Tokens]:
        """Some rows, in memory."""
        return [np.asarray(self.tokens[self.starts[i] : self.starts[i + 1]]) for i in indices]


def tokens_of(rows: Rows, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens (N,) but the special ones, of as many rows as have no more than `most`, and the row of each (N,)."""
    count = int(np.searchsorted(rows.starts, most, side="right")) - 1
    tokens = np.asarray(rows.tokens[: rows.starts[count]])
    kept = np.flatnonzero((tokens & SPECIAL) == 0)
    row_of = np.repeat(np.arange(count), rows.lengths[:count])
    return (tokens[kept] & ID).astype(np.int64), row_of[kept]


class Writer:
    """Rows on their way to disk."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()
        self._digest = hashlib.sha256()
        self._lengths = array("q")

    def add(self, row: Tokens) -> None:
        """Write one more."""
        content = row.tobytes()
        self._file.write(content)
        self._digest.update(content)
        self._lengths.append(len(row))

    def rows(self) -> Rows:
        """The rows that were written, to be read; they outlive the writer."""
        self._file.flush()
        tokens = np.memmap(self._file, np.uint32, "r") if self._lengths else np.zeros(0, np.uint32)
        starts = np.cumsum([0, *self._lengths], dtype=np.int64)
        return Rows(tokens, starts, self._digest.hexdigest())

    def close(self) -> None:
        """No more is written."""
        self._file.close()


@dataclass(frozen=True)
class Corpus:
    """Rows to train on and rows held out. is_whole: no text was left unread for want of time."""

    train: Rows
    held_out: Rows
    texts: int
    is_whole: bool


def encode_corpus(source: TextFiles, tokenizer: Tokenizer, max_tokens: int, folder: Path, until: float) -> Corpus:
    """Cut all texts into rows, which take their place in `folder`; stop reading at the time.monotonic() `until`.

    Raises DataError where there is nothing to train on, or nothing to hold out.
    """
    texts = source.texts()
    cut = Cutter(tokenizer, max_tokens)
    with closing(Writer(folder)) as train, closing(Writer(folder)) as held_out:
        count, chunk = 0, up_to(CHUNK_CHARS, texts)
        while chunk and (time.monotonic() < until or not count):
            count += len(chunk)
            for text, (ids, words) in zip(chunk, tokenizer.words(chunk), strict=True):
                writer = held_out if is_dev(text, HELD_OUT_SHARE) else train
                for row in cut(ids, words):
                    writer.add(row)
            chunk = up_to(CHUNK_CHARS, texts)
        corpus = Corpus(train.rows(), held_out.rows(), count, is_whole=not chunk)
    if not len(corpus.train.starts) > 1 or not len(corpus.held_out.starts) > 1:
        names = ", ".join(map(str, source.files))
        raise DataError(f"{names}: too few texts to train on some and hold {HELD_OUT_SHARE:.0%} out: {count}")
    return corpus


class Cutter:
    """Tokens of a text -> rows as they are stored."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self._before, self._after = (np.array(part, np.uint32) | SPECIAL for part in tokenizer.frame())
        self._room = max_tokens - len(self._before) - len(self._after)

    def __call__(self, ids: list[int], words: list[Any]) -> Iterator[Tokens]:
        """The ids and the number of each one's word -> rows with special tokens."""
        tokens = np.array(ids, np.uint32)
        of_word = np.array([-1 if word is None else word for word in words], np.int64)
        tokens[1:][(of_word[1:] == of_word[:-1]) & (of_word[1:] >= 0)] |= GOES_ON
        for start in range(0, len(tokens), self._room):
            part = tokens[start : start + self._room]
            if start and len(part) < SHORTEST_REST:
                break
            part[0] &= ID  # a cut inside a word makes two of it
            yield np.concatenate([self._before, part, self._after])
