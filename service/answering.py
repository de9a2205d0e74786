"""Texts -> answers of one model, for every route: what is known already, tokens, a forward pass, pooled windows.

Called by service/routes.py.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.answers import answer_texts, rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.tokens import Text
    from service.answers import TextAnswer
    from service.models import ServedModel
    from service.schemas import OnLong, Priority
    from service.tokenizing import Tokenizing


@dataclass(frozen=True, slots=True)
class Answered:
    """The answers of a request's texts, in order, and where the time went, in seconds.

    queue_s and forward_s are the longest among the texts; 0 where no pass was needed.
    """

    answers: list[TextAnswer]
    tokenize_s: float
    queue_s: float
    forward_s: float


async def answer(
    model: ServedModel,
    tokenizing: Tokenizing,
    texts: Sequence[Text],
    on_long: OnLong = "truncate",
    *,
    deadline: float,
    priority: Priority | None = None,
) -> Answered:
    """Answer every text; one that fails has its error in its place.

    deadline is a time of time.perf_counter(). Raises Overloaded at once where it cannot be met, and TooManyWindows.
    """
    known = model.cache.find(texts, on_long)
    if None not in known:
        return Answered([there for there in known if there is not None], 0.0, 0.0, 0.0)
    asked = [text for text, there in zip(texts, known, strict=True) if there is None]
    start = time.perf_counter()
    model.batcher.admit(len(asked), len(asked), deadline - start)  # before tokens are counted: at least one a text
    readings = await tokenizing.read(model.bundle, asked, on_long, deadline - start)
    tokenized = time.perf_counter()
    rows = rows_of(readings)
    passed = await model.batcher.submit(rows, within_s=deadline - tokenized, is_bulk=model.is_bulk(priority, rows))
    answers = answer_texts(model.bundle, readings, [row.result for row in passed])
    model.cache.keep(asked, on_long, answers)
    new = iter(answers)
    return Answered(
        answers=[next(new) if there is None else there for there in known],
        tokenize_s=tokenized - start,
        queue_s=max((row.queue_s for row in passed), default=0.0),
        forward_s=max((row.forward_s for row in passed), default=0.0),
    )
