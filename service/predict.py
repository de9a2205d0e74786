"""Offline prediction: chunks of rows -> answered -> bytes to write, in order, on all cores, in bounded memory.

Reading and writing stay in the caller's thread; a chunk is tokenized, computed and written down in one of a few
threads, a pass each, as in the service. What is in a chunk and in a pass depends on the rows alone: a run that goes on
after an interruption gives the same bits. Called by service/predict_command.py, predict_ray.py and tests.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import torch

from service.answers import TextAnswer, answer_texts, read_texts, rows_of
from service.engine import share_cores
from service.errors import ServiceError
from service.predict_rows import CHUNK_ROWS, BadRow, Totals, Written
from service.remote import MAX_PASSES
from service.schemas import text_result
from service.scored import score
from service.settings import available_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from model.manifest import Described
    from model.tokens import Text
    from service.predict_output import Format
    from service.predict_rows import Chunk, Reading
    from service.predictor import Predictor
    from service.schemas import OnLong, TextResult
    from service.scored import Scored

Item = TypeVar("Item")
Result = TypeVar("Result")

NOBODY_WAITS = nullcontext()
GPU_CHUNKS = 3  # at once: one computes, while others are tokenized and written down


class Here:
    """Predicts on this machine."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        device = predictor.device.type
        cores = available_cores()
        passes, self._threads = share_cores(cores, device, MAX_PASSES)
        self._chunks = passes if device == "cpu" else GPU_CHUNKS
        # What the last bits of a score depend on.
        self.settings = {"device": device, "precision": predictor.precision, "threads": self._threads}

    @property
    def bundle(self) -> Described:
        """The model."""
        return self._predictor.bundle

    def run(self, reading: Reading, output: Format, on_long: OnLong) -> Generator[Written]:
        """Each chunk as it is written, in order."""
        answering = Answering(self._predictor, output, on_long)
        return in_order(answering, reading.chunks(), self._chunks, self._threads)


class Answering:
    """Answers chunks, in as many threads as call it at once."""

    def __init__(self, predictor: Predictor, output: Format, on_long: OnLong = "truncate") -> None:
        self._predictor, self._output, self._on_long = predictor, output, on_long
        # A GPU takes passes one after the other; CPU cores each take one.
        self._launching = NOBODY_WAITS if predictor.device.type == "cpu" else threading.Lock()

    def __call__(self, chunk: Chunk) -> Written:
        """The chunk as it is written."""
        texts = [text for text in chunk.texts if not isinstance(text, BadRow)]
        answered = iter(answer_all(self._predictor, texts, self._on_long, self._launching))
        answers = [TextAnswer([], text) if isinstance(text, BadRow) else next(answered) for text in chunk.texts]
        first_bad = next((text for text in chunk.texts if isinstance(text, BadRow)), None)
        return Written(self._output.encode(chunk.kept, answers), count(answers), chunk.share, first_bad)


def answer_all(
    predictor: Predictor,
    texts: Sequence[Text],
    on_long: OnLong,
    launching: AbstractContextManager[object] = NOBODY_WAITS,
) -> list[TextAnswer]:
    """An answer per text, in order; equal texts are computed once."""
    bundle = predictor.bundle
    distinct = list(dict.fromkeys(texts))
    readings = read_texts(bundle, distinct, on_long)
    rows = rows_of(readings)
    results: dict[int, Scored | ServiceError] = {}
    for indices in predictor.plan(rows):
        with launching:
            launched = predictor.launch([rows[i] for i in indices])
        results |= zip(indices, score(bundle, launched()), strict=True)
    answers = answer_texts(bundle, readings, (results[i] for i in range(len(rows))))
    by_text = dict(zip(distinct, answers, strict=True))
    return [by_text[text] for text in texts]


def count(answers: Iterable[TextAnswer]) -> Totals:
    """What is in a chunk."""
    totals = Totals()
    for answer in answers:
        totals.rows += 1
        if isinstance(answer.result, ServiceError):
            totals.bad_rows += isinstance(answer.result, BadRow)
            totals.failed += not isinstance(answer.result, BadRow)
        else:
            totals.tokens += answer.tokens
            totals.truncated += answer.rows[0].truncated > 0
    return totals


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], at_once: int, torch_threads: int
) -> Generator[Result]:
    """What the function makes of each item, in order, some at a time; items are taken when there is room for them.

    Called and waited for by one thread, which reads and writes meanwhile. What goes wrong anywhere is raised here.
    """
    pool = ThreadPoolExecutor(at_once, "predict", initializer=_share_torch, initargs=(torch_threads,))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * at_once:  # each thread has its next one
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _share_torch(threads: int) -> None:
    """Give this thread its share of the cores."""
    torch.get_num_threads()  # a thread's first operation takes the number that any thread has set last: this is it
    torch.set_num_threads(threads)


def predict_texts(
    predictor: Predictor, texts: Iterable[Text], top_k: int | None, on_long: OnLong = "truncate"
) -> Iterator[TextResult]:
    """An answer per text, in order, chunk by chunk in this thread."""
    remaining = iter(texts)
    while chunk := list(islice(remaining, CHUNK_ROWS)):
        for answer in answer_all(predictor, chunk, on_long):
            yield text_result(predictor.bundle.labels, answer, top_k)
