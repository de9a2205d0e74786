"""Where labels for answered texts go: what a replica answered is remembered, and labels are joined with it.

An answer costs the request that it belongs to a place in a queue. The queue is written in batches; what the store
does not take in time is forgotten, oldest first, rather than slow anything down. A label is written before it is
acknowledged. Texts are in neither unless keep_text says so, or a label brings its own. Built by service/routes.py;
asked by service/feedback_route.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from model.scores import MULTI
from service import metrics
from service.errors import NoSuchAnswer, ServiceError, StoreUnavailable, where
from service.feedback_store import CONNECTIONS, Answer, Store, StoreError
from service.http import is_request_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model.manifest import Described
    from model.tokens import Text
    from service.answers import TextAnswer
    from service.feedback_store import Label, Prediction
    from service.models import ServedModel
    from service.scored import Scored
    from service.settings import Settings

log = logging.getLogger("heed")

Result = TypeVar("Result")

WRITE_EVERY_S = 0.25
BATCH = 1000  # requests in a transaction
WAITING_BYTES = 64 * 2**20  # about so much of answers waits to be written
LOOK_AGAIN_S = (0.1, 0.1, 0.2, 0.4, 0.8, 1.6)  # after them an answer is written, by whichever replica gave it
STORE_WAIT_S = 5
NOT_FOUND = "the answer to request %s could not be looked up, nor labelled: %s"
NOT_KEPT = "the label of an answer to request %s was not kept: %s"
FORGET_EVERY_S = 60.0
DAY_S = 86_400.0


class Feedback:
    """What one replica remembers and takes."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store, self._settings = store, settings
        self._waiting: deque[Answer] = deque()
        self._waiting_bytes = 0
        self._is_failing = False
        self._said: set[str] = set()  # NOT_FOUND, NOT_KEPT: once, until it works again
        self._closing = asyncio.Event()
        self._looking = ThreadPoolExecutor(CONNECTIONS - 1, "feedback-looking")
        self._saving = ThreadPoolExecutor(1, "feedback-saving")  # waits for no look-ups, however many there are

    def start(self) -> None:
        """Write from now on, and forget."""
        self._writing = asyncio.create_task(self._write_loop())
        self._forgetting = asyncio.create_task(self._forget_loop())

    async def close(self) -> None:
        """Write what waits, then close the store."""
        self._closing.set()
        self._forgetting.cancel()
        await self._writing
        if self._waiting:
            log.error("the answers of %d requests were not stored: no label can be given them", len(self._waiting))
        for threads in (self._looking, self._saving):
            threads.shutdown(wait=False, cancel_futures=True)
        self._store.close()

    def remember(
        self, request_id: str, key: str, model: ServedModel, texts: Sequence[Text], answers: Sequence[TextAnswer]
    ) -> None:
        """Note what was answered to a request of a key."""
        predictions = [prediction(model.bundle, answer.result) for answer in answers]
        kept = list(texts) if self._settings.keep_text else None
        answer = Answer(request_id, key, time.time(), model.name, model.bundle.version, predictions, kept)
        self._waiting.append(answer)
        self._waiting_bytes += size(answer)
        while self._waiting_bytes > WAITING_BYTES:
            self._waiting_bytes -= size(self._waiting.popleft())
            metrics.UNREMEMBERED.inc()

    async def answered(self, request_id: str, key: str, index: int) -> tuple[Answer, Prediction]:
        """What was answered to a text of a key. Raises NoSuchAnswer, StoreUnavailable where that cannot be said."""
        answer = await self._settled(request_id, key) if is_request_id(request_id) else None
        if answer is None and self._is_failing:
            raise StoreUnavailable
        found = answer.predictions[index] if answer is not None and index < len(answer.predictions) else None
        if answer is None or found is None:
            raise NoSuchAnswer(self._settings.feedback_days, self._settings.feedback_answers)
        return answer, found

    async def _settled(self, request_id: str, key: str) -> Answer | None:
        """The answer; one that is not there yet may be waiting to be written, in this replica or another."""
        for wait_s in (0.0, *LOOK_AGAIN_S):
            await asyncio.sleep(wait_s)
            answer = await self._ask(self._looking, lambda: self._store.answer(request_id, key), NOT_FOUND, request_id)
            if answer is not None:
                return answer
        return None

    async def keep(self, label: Label) -> None:
        """Keep a label; it is on disk when this returns. Raises StoreUnavailable."""
        await self._ask(self._saving, lambda: self._store.keep(label), NOT_KEPT, label.request_id)
        metrics.FEEDBACK.labels(label.model).inc()

    async def _ask(
        self, threads: ThreadPoolExecutor, function: Callable[[], Result], failure: str, request_id: str
    ) -> Result:
        try:
            result = await in_thread(threads, function)
        except StoreError as error:
            if failure not in self._said:
                log.error(failure, request_id, error)
            self._said.add(failure)
            raise StoreUnavailable from None
        self._said.discard(failure)
        return result

    async def _write_loop(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), WRITE_EVERY_S)
            await self._write()

    async def _write(self) -> None:
        """All that waits; where the store fails, it waits on."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            try:
                await in_thread(self._saving, lambda batch=batch: self._store.remember(batch))  # type: ignore[misc]
            except StoreError as error:
                self._waiting.extendleft(reversed(batch))
                if not self._is_failing:
                    log.error("answers wait to be stored: %s", error)
                self._is_failing = True
                return
            except Exception as error:  # of these answers: they would fail again
                log.error("the answers of %d requests could not be stored: %s", len(batch), where(error))
                metrics.UNREMEMBERED.inc(len(batch))
            self._waiting_bytes -= sum(map(size, batch))
            self._is_failing = False

    async def _forget_loop(self) -> None:
        while True:
            try:
                await self._forget()
            except Exception as error:  # one of ours ends nothing either
                log.warning("old answers wait: %s", error if isinstance(error, StoreError) else where(error))
            await asyncio.sleep(FORGET_EVERY_S)

    async def _forget(self) -> None:
        before, most = time.time() - DAY_S * self._settings.feedback_days, self._settings.feedback_answers
        until = await in_thread(self._looking, lambda: self._store.outdated(before, most))
        while await in_thread(self._saving, lambda: self._store.forget_some(until)):
            pass


async def in_thread(threads: ThreadPoolExecutor, function: Callable[[], Result]) -> Result:
    """What the function returns, called in one of the threads."""
    return await asyncio.get_running_loop().run_in_executor(threads, function)


def prediction(bundle: Described, result: Scored | ServiceError) -> Prediction | None:
    """The best label with its score; all over their thresholds where labels do not exclude one another."""
    if isinstance(result, ServiceError):
        return None
    best = max(result.scores)
    if bundle.problem_type == MULTI:
        inside = result.in_set or []
        return [label for label, is_inside in zip(bundle.labels, inside, strict=True) if is_inside], round(best, 6)
    return bundle.labels[result.scores.index(best)], round(best, 6)


def size(answer: Answer) -> int:
    """About the bytes that it takes in memory."""
    return 400 + 150 * len(answer.predictions) + sum(map(_length, answer.texts or ()))


def _length(text: Text) -> int:
    return 2 * sum(map(len, text)) if isinstance(text, tuple) else 2 * len(text)
