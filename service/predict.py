"""Offline prediction: the answers of the service for the rows of a file, in order, in bounded memory."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from model.batch import plan_passes
from model.forward import PASS_TOKENS
from service.answers import answer_texts, read_texts, rows_of
from service.schemas import text_result

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from model.tokens import Text
    from service.errors import ServiceError
    from service.predictor import Predictor
    from service.schemas import OnLong, TextResult
    from service.scored import Scored

CHUNK_ROWS = 2048  # read, sorted by length, answered and written together


def predict_texts(
    predictor: Predictor, texts: Iterable[Text], top_k: int | None, on_long: OnLong = "truncate"
) -> Iterator[TextResult]:
    """An answer per text, in order."""
    bundle, remaining = predictor.bundle, iter(texts)
    while chunk := list(islice(remaining, CHUNK_ROWS)):
        readings = read_texts(bundle, chunk, on_long)
        rows = rows_of(readings)
        results: dict[int, Scored | ServiceError] = {}
        for indices in plan_passes([row.tokens for row in rows], PASS_TOKENS):
            results |= zip(indices, predictor([rows[i] for i in indices]), strict=True)
        for answer in answer_texts(bundle, readings, (results[i] for i in range(len(rows)))):
            yield text_result(bundle.labels, answer, top_k)
