"""The latest answers of a model by text, for services that are asked the same things again.

Off unless `cache_texts` is set: it keeps users' texts in memory. A version has its own. Called by service/answering.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.errors import ServiceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from model.tokens import Text
    from service.answers import TextAnswer
    from service.schemas import OnLong

CACHED_CHARS = 1_000  # of a text or pair; longer ones are rarely sent twice, and would fill the memory


class AnswerCache:
    """Up to so many answers; the one that was longest unused goes first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._answers: dict[tuple[Text, OnLong], TextAnswer] = {}  # in order of their last use

    def find(self, texts: Sequence[Text], on_long: OnLong) -> list[TextAnswer | None]:
        """What is known of each text."""
        return [self._find((text, on_long)) for text in texts] if self._size else [None] * len(texts)

    def _find(self, key: tuple[Text, OnLong]) -> TextAnswer | None:
        answer = self._answers.pop(key, None)
        if answer is not None:
            self._answers[key] = answer
        return answer

    def keep(self, texts: Iterable[Text], on_long: OnLong, answers: Iterable[TextAnswer]) -> None:
        """Remember answers that are no errors."""
        if not self._size:
            return
        for text, answer in zip(texts, answers, strict=True):
            if not isinstance(answer.result, ServiceError) and sum(map(len, text)) <= CACHED_CHARS:
                self._answers[(text, on_long)] = answer
        while len(self._answers) > self._size:
            del self._answers[next(iter(self._answers))]
