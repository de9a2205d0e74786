"""The served models: load, verify, warm up, find by name, swap for another version.

A served model is a bundle with its predictor and its own queue; all of a replica share one compute thread. When a
model is swapped is decided in service/following.py.
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
from model.location import RegistryEntry, local_folder
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

END = object()  # of the steps of a warm-up
SLICE_CHARS = 65_536  # tokenized at a time, so that a huge request does not hold up the small ones


KEPT_VERSIONS = 2  # of a model: what answers to its name, and what did before; each takes the memory of a model


class ServedModel:
    """One version of a model. A request holds it, `with model:`, from find() to its answer."""

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
        self._loops: list[asyncio.Task[None]] = []
        self._holders = 0
        self._is_free = asyncio.Event()
        self._is_free.set()

    def __enter__(self) -> ServedModel:
        self._holders += 1
        self._is_free.clear()
        return self

    def __exit__(self, *error: object) -> None:
        self._holders -= 1
        if not self._holders:
            self._is_free.set()

    def start(self) -> None:
        """Start its loops, in the running event loop."""
        self._loops = [asyncio.create_task(b.main_loop()) for b in (self.batcher, self.explainer.batcher)]

    def is_live(self, stuck_s: float) -> bool:
        """Whether its loops turn, no pass has run for longer than stuck_s, and the device answers."""
        turning = all(not loop.done() for loop in self._loops)
        return turning and self.batcher.pass_s() < stuck_s and not self.is_broken

    async def drain(self) -> None:
        """Wait until no request holds it, then stop its loops."""
        await self._is_free.wait()
        for batcher in (self.batcher, self.explainer.batcher):
            batcher.drain()
        await asyncio.gather(*self._loops, return_exceptions=True)

    def close(self) -> None:
        """Let go of its queues, whose references back would keep its memory until the garbage collector comes."""
        del self.explainer.batcher, self.explainer, self.batcher

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
        self.specs, self._settings = specs, settings
        self._served = {spec.name: [self._load_warm(spec)] for spec in specs}  # newest first
        self._leaving: set[asyncio.Task[None]] = set()

    def _load_warm(self, spec: Spec) -> ServedModel:
        start = time.monotonic()
        try:
            model = self.load(spec)
            self._compute.call(model.predictor.warm_up)
        except Exception:
            metrics.MODEL_LOADS.labels(spec.name, "failed").inc()
            raise
        metrics.MODEL_LOADS.labels(spec.name, "loaded").inc()
        metrics.MODEL_INFO.labels(spec.name, model.bundle.version).set(1)
        precision, device = model.predictor.precision, model.predictor.device
        log.info(
            "loaded %s version %s on %s in %s: %.1f s",
            spec.name, model.bundle.version, device, precision, time.monotonic() - start,
        )  # fmt: skip
        return model

    def load(self, spec: Spec) -> ServedModel:
        """A model that is to be warmed up, from any thread.

        Raises LocationError where there is no bundle, BundleError where it cannot be trusted.
        """
        folder = local_folder(spec.location)
        bundle = load_bundle(folder)
        if isinstance(spec.location, RegistryEntry) and bundle.version != folder.name:
            raise BundleError(f"files of the bundle were changed after it was added to the registry: {folder}")
        try:
            return ServedModel(spec.name, bundle, self._compute, self._settings)
        except ValueError as error:  # a precision that this model or device has not
            raise BundleError(f"{spec.name}: {error}") from None

    async def warm_up(self, model: ServedModel) -> None:
        """Warm up while others answer: in steps, between their passes."""
        steps = model.predictor.warm_up_steps()
        while await self._compute.step(partial(next, steps, END)) is not END:
            pass

    def swap(self, new: ServedModel) -> None:
        """From now on `new` answers to its name; what did so before stays for NAME@VERSION, and one older is let go."""
        before = self._served[new.name]
        if new not in before:
            new.start()
        versions = [new, *(model for model in before if model is not new)]
        self._served[new.name] = versions[:KEPT_VERSIONS]
        metrics.MODEL_INFO.labels(new.name, before[0].bundle.version).set(0)
        metrics.MODEL_INFO.labels(new.name, new.bundle.version).set(1)
        for model in versions[KEPT_VERSIONS:]:
            leaving = asyncio.create_task(let_go(model))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    def versions(self, name: str) -> list[ServedModel]:
        """Those of one model that are loaded; the first answers to its name."""
        return self._served[name]

    def __iter__(self) -> Iterator[ServedModel]:
        return (model for versions in self._served.values() for model in versions)

    def find(self, wanted: str | None) -> ServedModel:
        """The model of a NAME or NAME@VERSION, the first for None. Raises NoSuchModel."""
        if wanted is None:
            return next(iter(self))
        name, _, version = wanted.partition("@")
        for model in self._served.get(name, []):
            if version in ("", model.bundle.version):
                return model
        raise NoSuchModel(", ".join(f"{m.name}@{m.bundle.version}" for m in self))

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
        """Start each model's loops, in the running event loop."""
        for model in self:
            model.start()

    def is_live(self, stuck_s: float) -> bool:
        """Whether every model's loops turn, no pass has run for longer than stuck_s, and the device answers."""
        return all(model.is_live(stuck_s) for model in self)

    async def drain(self) -> None:
        """Answer what was accepted, then stop the loops."""
        await asyncio.gather(*(model.drain() for model in self), *self._leaving)
        self._compute.close()
        self._tokenizers.shutdown(wait=False)


async def let_go(model: ServedModel) -> None:
    """Free a version that answers nothing new, once the last request that holds it has its answer."""
    await model.drain()
    model.close()


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
