"""Texts -> rows of token ids: little at once, much in a thread of its own, slice by slice.

What waits for that thread is part of the predicted wait: tokens of a long text are known only when it has been
read. Called by service/answering.py and routes.py.
"""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from model.tokens import Window
from service.answers import read_texts, rows_of
from service.batching import PREDICTED_WELL
from service.errors import Overloaded, TooManyWindows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from model.manifest import Described
    from model.tokens import Span, Text
    from service.answers import Reading
    from service.schemas import OnLong

Result = TypeVar("Result")

AT_ONCE_CHARS = 2_048  # under a millisecond of work; to hand it to a thread and back takes a tenth of that
SLICE_CHARS = 65_536  # at a time, so that a huge request does not hold up the small ones
LATEST = 0.2  # weight of the latest slice in the measured rate


class Tokenizing:
    """The tokenizer's thread of a replica."""

    def __init__(self, max_window_tokens: int) -> None:
        self._max_window_tokens = max_window_tokens
        self._thread = ThreadPoolExecutor(1, "tokenize")
        self._waiting: dict[object, int] = {}  # characters of each request that are not read yet
        self._char_s = 0.0  # seconds of a character, measured over the slices; 0 before the first

    async def read(
        self, bundle: Described, texts: Sequence[Text], on_long: OnLong, within_s: float = math.inf
    ) -> list[Reading]:
        """What is read of each text.

        Raises Overloaded where that would not be known within so many seconds, TooManyWindows where the windows of
        the request are more than may wait: each is as long as the model reads, and nothing else limits how many.
        """
        window_tokens = 0

        def read(part: Sequence[Text]) -> list[Reading]:
            nonlocal window_tokens
            readings = read_texts(bundle, part, on_long)
            if on_long == "window":
                window_tokens += sum(row.tokens for row in rows_of(readings) if isinstance(row, Window))
            if window_tokens > self._max_window_tokens:
                raise TooManyWindows(self._max_window_tokens)
            return readings

        return await self._in_slices(read, texts, within_s)

    async def spans(self, bundle: Described, texts: Sequence[Text]) -> list[list[Span | None]]:
        """Where the tokens of each text's row lie in it."""

        def find(part: Sequence[Text]) -> list[list[Span | None]]:
            return [bundle.tokenizer.spans(text, bundle.max_tokens) for text in part]

        return await self._in_slices(find, texts, math.inf)

    async def _in_slices(
        self, function: Callable[[Sequence[Text]], list[Result]], texts: Sequence[Text], within_s: float
    ) -> list[Result]:
        chars = sum(map(num_chars, texts))
        if chars <= AT_ONCE_CHARS:
            return function(texts)
        before = sum(min(theirs, chars + SLICE_CHARS) for theirs in self._waiting.values())  # slices take turns
        late_s = (before + chars) * self._char_s - PREDICTED_WELL * within_s
        if late_s > 0 and self._waiting:
            raise Overloaded(max(1, math.ceil(late_s)))
        results: list[Result] = []
        request = object()
        self._waiting[request] = chars
        try:
            for part in slices(texts):
                results += await asyncio.get_running_loop().run_in_executor(self._thread, self._timed, function, part)
                self._waiting[request] -= sum(map(num_chars, part))
        finally:
            del self._waiting[request]
        return results

    def backlog_s(self) -> float:
        """How long the thread has to do with what waits for it, in seconds."""
        return sum(self._waiting.values()) * self._char_s

    def _timed(self, function: Callable[[Sequence[Text]], Result], part: Sequence[Text]) -> Result:
        start = time.perf_counter()
        result = function(part)
        char_s = (time.perf_counter() - start) / max(1, sum(map(num_chars, part)))
        self._char_s += (LATEST if self._char_s else 1.0) * (char_s - self._char_s)
        return result

    def close(self) -> None:
        """Let the thread end after its present work."""
        self._thread.shutdown(wait=False)


def num_chars(text: Text) -> int:
    """Characters of a text, or of both of a pair."""
    return len(text) if isinstance(text, str) else len(text[0]) + len(text[1])


def slices(texts: Sequence[Text]) -> Iterator[list[Text]]:
    """The texts in order, in parts of about SLICE_CHARS characters."""
    part: list[Text] = []
    chars = 0
    for text in texts:
        part.append(text)
        chars += num_chars(text)
        if chars >= SLICE_CHARS:
            yield part
            part, chars = [], 0
    if part:
        yield part
