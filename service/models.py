"""The served models: load, verify, warm up, find by name.

A served model is a bundle with its predictor and its own queue; all of a replica share one compute thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from model.bundle import load_bundle
from model.device import choose_device
from model.location import LocationError, local_folder
from model.manifest import BundleError
from model.tokens import Window
from service import metrics
from service.answers import read_texts, rows_of
from service.batching import Batcher
from service.errors import NoSuchModel, TooManyWindows
from service.explaining import Explainer
from service.predictor import ComputeThread, Predictor, Scored
from service.settings import available_cores

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from model.bundle import Bundle
    from model.tokens import Row, Span, Text
    from service.answers import Reading
    from service.errors import ServiceError
    from service.schemas import OnLong
    from service.settings import Settings, Spec

Result = TypeVar("Result")
log = logging.getLogger("heed")

SLICE_CHARS = 65_536  # tokenized at a time, so that a huge request does not hold up the small ones


class ServedModel:
    """One bundle that answers."""

    def __init__(self, name: str, bundle: Bundle, compute: ComputeThread, settings: Settings) -> None:
        self.name, self.bundle, self._compute = name, bundle, compute
        self.predictor = Predictor(bundle, choose_device(settings.device), settings.precision)
        self.batcher: Batcher[Row, Scored] = Batcher(
            self._run,
            max_batch_tokens=settings.max_batch_tokens or self.predictor.full_pass,
            max_queue_tokens=settings.max_queue_tokens,
            on_pass=lambda figures: metrics.observe_pass(figures, self.predictor.computed_tokens(figures.lengths)),
        )
        self.explainer = Explainer(self.predictor, compute, settings.max_queue_tokens)
        self.is_broken = False  # the device answers nothing any more: Ray replaces the replica

    async def _run(self, rows: Sequence[Row]) -> list[Scored | ServiceError]:
        """One pass. Where it fails, a row that has worked before tells the texts' fault from the device's."""
        try:
            return await self._compute.run(self.predictor, rows)
        except Exception:
            try:
                await self._compute.run(self.predictor, [self.predictor.known_row])
            except Exception:  # noqa: S110: the first error is the one to tell
                self.is_broken = True
            raise

    def spans(self, texts: Sequence[Text]) -> list[list[Span | None]]:
        """Where the tokens of each text's row lie in it."""
        return [self.bundle.tokenizer.spans(text, self.bundle.max_tokens) for text in texts]


class Models:
    """All that a replica serves."""

    def __init__(self, specs: Sequence[Spec], settings: Settings) -> None:
        self._compute = ComputeThread(settings.compute_threads or available_cores())
        self._tokenizers = ThreadPoolExecutor(1, "tokenize")
        self._max_window_tokens = settings.max_queue_tokens
        self._served = {spec.name: self._load(spec, settings) for spec in specs}
        self._loops: list[asyncio.Task[None]] = []
        self._explaining: list[asyncio.Task[None]] = []

    def _load(self, spec: Spec, settings: Settings) -> ServedModel:
        """Load and warm up. Raises LocationError where there is no bundle, BundleError where it cannot be trusted."""
        start = time.monotonic()
        try:
            model = ServedModel(spec.name, load_bundle(local_folder(spec.location)), self._compute, settings)
            self._compute.call(model.predictor.warm_up)
        except Exception as error:
            metrics.MODEL_LOADS.labels(spec.name, "failed").inc()
            if isinstance(error, ValueError) and not isinstance(error, LocationError | BundleError):
                raise BundleError(f"{spec.name}: {error}") from None  # a precision that this model or device has not
            raise
        metrics.MODEL_LOADS.labels(spec.name, "loaded").inc()
        metrics.MODEL_INFO.labels(spec.name, model.bundle.version).set(1)
        precision, device = model.predictor.precision, model.predictor.device
        log.info(
            "loaded %s version %s on %s in %s: %.1f s",
            spec.name, model.bundle.version, device, precision, time.monotonic() - start,
        )  # fmt: skip
        return model

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._served.values())

    def find(self, wanted: str | None) -> ServedModel:
        """The model of a NAME or NAME@VERSION, the first for None. Raises NoSuchModel."""
        if wanted is None:
            return next(iter(self._served.values()))
        name, _, version = wanted.partition("@")
        model = self._served.get(name)
        if model is None or version not in ("", model.bundle.version):
            raise NoSuchModel(", ".join(f"{m.name}@{m.bundle.version}" for m in self))
        return model

    async def tokenize(self, model: ServedModel, texts: Sequence[Text], on_long: OnLong) -> list[Reading]:
        """What is read of each text, made in the tokenizer's thread.

        Raises TooManyWindows where those of the request are more than may wait: each is as long as the model
        reads, and unlike texts nothing else limits how many there are.
        """
        readings: list[Reading] = []
        window_tokens = 0
        async for read in self._in_slices(partial(read_texts, model.bundle, on_long=on_long), texts):
            window_tokens += sum(row.tokens for row in rows_of(read) if isinstance(row, Window))
            if window_tokens > self._max_window_tokens:
                raise TooManyWindows(self._max_window_tokens)
            readings += read
        return readings

    async def spans(self, model: ServedModel, texts: Sequence[Text]) -> list[list[Span | None]]:
        """Where the tokens of the texts' rows lie, found in the tokenizer's thread."""
        return [spans async for part in self._in_slices(model.spans, texts) for spans in part]

    async def _in_slices(
        self, function: Callable[[Sequence[Text]], list[Result]], texts: Sequence[Text]
    ) -> AsyncIterator[list[Result]]:
        for part in slices(texts):
            yield await asyncio.get_running_loop().run_in_executor(self._tokenizers, function, part)

    def start(self) -> None:
        """Start each model's loop, in the running event loop."""
        self._loops = [asyncio.create_task(model.batcher.main_loop()) for model in self]
        self._explaining = [asyncio.create_task(model.explainer.batcher.main_loop()) for model in self]

    def is_live(self, stuck_s: float) -> bool:
        """Whether every loop turns, no pass has run for longer than stuck_s, and the device answers."""
        turning = all(not loop.done() for loop in self._loops + self._explaining)
        return turning and all(m.batcher.pass_s() < stuck_s and not m.is_broken for m in self)

    async def drain(self) -> None:
        """Answer what was accepted, then stop the loops; a text is explained once it has its answer."""
        for model in self:
            model.batcher.drain()
        await asyncio.gather(*self._loops, return_exceptions=True)
        for model in self:
            model.explainer.batcher.drain()
        await asyncio.gather(*self._explaining, return_exceptions=True)
        self._compute.close()
        self._tokenizers.shutdown(wait=False)


def slices(texts: Sequence[Text]) -> Iterator[list[Text]]:
    """The texts in order, in parts of about SLICE_CHARS characters."""
    part: list[Text] = []
    chars = 0
    for text in texts:
        part.append(text)
        chars += len(text) if isinstance(text, str) else len(text[0]) + len(text[1])
        if chars >= SLICE_CHARS:
            yield part
            part, chars = [], 0
    if part:
        yield part
