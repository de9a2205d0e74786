"""The served models: load, verify, warm up, measure, find by name, swap for another version.

A served model is a bundle with its predictor and its own queue; all of a replica share the device's turns. When a
model is swapped is decided in service/following.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from model.location import RegistryEntry, local_folder
from service import metrics
from service.batching import Batcher
from service.cache import AnswerCache
from service.compute import Compute
from service.distances import Distances
from service.errors import EngineError, NoSuchModel, NotReady
from service.explaining import Explainer
from service.planning import full_pass
from service.scored import Scored, score
from service.settings import available_cores
from service.tokenizing import Tokenizing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from model.tokens import Row
    from service.answering import Answered
    from service.compute import Loaded
    from service.errors import ServiceError
    from service.planning import Cost
    from service.schemas import Priority
    from service.settings import Settings, Spec

log = logging.getLogger("heed")


EXPLAINED = 3  # times what a token costs: forward and backward, in fp32
KEPT_VERSIONS = 2  # of a model: what answers to its name, and what did before; each takes the memory of a model


class ServedModel:
    """One version of a model. A request holds it, `with model:`, from find() to its answer."""

    def __init__(self, name: str, loaded: Loaded, compute: Compute, settings: Settings) -> None:
        self.name, self.loaded, self.bundle, self._compute = name, loaded, loaded.bundle, compute
        self.batcher: Batcher[Row, Scored] = Batcher(
            self._run,
            turns=compute.turns,
            max_batch_tokens=settings.max_batch_tokens or loaded.most_tokens,
            max_queue_tokens=settings.max_queue_tokens,
            is_padded=loaded.is_padded,
            on_pass=metrics.observe_pass,
        )
        self._is_batch_chosen = settings.max_batch_tokens is not None
        self.explainer = Explainer(loaded, compute, settings.max_queue_tokens)
        self.cache = AnswerCache(settings.cache_texts)
        self.metrics = metrics.ModelMetrics(name, self.bundle)
        self._distances = Distances(loaded, compute, self.metrics.drift.see_distances)
        self.is_broken = False  # the device answers nothing any more: Ray replaces the replica
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

    def observe(self, answered: Answered, *, is_present: bool) -> int:
        """Hear of an answered request; on how many of its texts the model failed. is_present: NAME means this one."""
        if is_present:
            self._distances.hear(answered.answers)
        return self.metrics.observe(answered.answers, answered.tokenize_s, is_present=is_present)

    def stop_watching(self) -> None:
        """Another version answers to its name: what is being read of its texts says nothing any more."""
        self._distances.stop()

    def know_cost(self, cost: Cost) -> None:
        """Plan passes by what they cost, as it was measured."""
        self.batcher.cost = cost
        self.explainer.batcher.cost = replace(cost, pass_s=0.0, token_s=EXPLAINED * cost.token_s)
        if not self._is_batch_chosen:
            self.batcher.max_batch_tokens = full_pass(cost, self.loaded.most_tokens)

    async def drain(self) -> None:
        """Wait until no request holds it: all is answered then."""
        await self._is_free.wait()
        await asyncio.gather(self.batcher.drain(), self.explainer.batcher.drain())

    def close(self) -> None:
        """Free it in the engine. Its queues' references back would keep it until the garbage collector comes."""
        self._distances.stop()
        self._compute.engine.tell(["let_go", self.loaded.id])
        self.batcher.close()
        self.explainer.batcher.close()
        del self.explainer.batcher, self.explainer, self.batcher

    async def _run(self, rows: Sequence[Row]) -> list[Scored | ServiceError]:
        """One pass. Where it fails, a row that has worked before tells the texts' fault from the device's."""
        try:
            logits, computed_tokens = await self._compute.run(self.loaded, rows)
        except Exception:
            if self._compute.engine.is_lost:
                return [NotReady("the device does not answer")] * len(rows)
            try:
                await self._compute.run(self.loaded, [self.loaded.known_row])
            except Exception:  # the first error is the one to tell
                self.is_broken = True
            raise
        metrics.PADDING.observe(1 - sum(row.tokens for row in rows) / computed_tokens)
        return score(self.bundle, logits)

    def is_bulk(self, priority: Priority | None, rows: Sequence[Row]) -> bool:
        """Whether rows let others go first: where they say so, or say nothing and fill more than one pass."""
        if priority is not None:
            return priority == "bulk"
        return sum(row.tokens for row in rows) > self.batcher.max_batch_tokens


class Models:
    """All that a replica serves."""

    def __init__(self, specs: Sequence[Spec], settings: Settings) -> None:
        self._compute = Compute(settings.device, settings.compute_threads or available_cores())
        self.tokenizing = Tokenizing(settings.max_queue_tokens)
        self.specs, self._settings = specs, settings
        try:
            self._served = {spec.name: [self._load_warm(spec)] for spec in specs}  # newest first
        except BaseException:
            self._compute.engine.close()
            raise
        self._leaving: set[asyncio.Task[None]] = set()

    def _load_warm(self, spec: Spec) -> ServedModel:
        start = time.monotonic()
        try:
            model = self.load(spec)
            model.know_cost(self._compute.warm_up(model.loaded))
        except Exception:
            metrics.MODEL_LOADS.labels(spec.name, "failed").inc()
            raise
        metrics.MODEL_LOADS.labels(spec.name, "loaded").inc()
        metrics.MODEL_INFO.labels(spec.name, model.bundle.version).set(1)
        precision, device = model.loaded.precision, model.loaded.device
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
        version = folder.name if isinstance(spec.location, RegistryEntry) else None
        loaded = self._compute.load(folder, self._settings.precision, version)
        return ServedModel(spec.name, loaded, self._compute, self._settings)

    async def warm_up(self, model: ServedModel) -> None:
        """Warm up and measure while others answer: in steps, between their passes.

        A version that differs in its weights only costs what the present one does, measured in peace.
        """
        present = self.versions(model.name)[0]
        known = present.batcher.cost if await self._compute.costs_like(model.loaded, present.loaded) else None
        model.know_cost(await self._compute.warm_up_between(model.loaded, known))

    def swap(self, new: ServedModel) -> None:
        """From now on `new` answers to its name; what did so before stays for NAME@VERSION, and one older is let go."""
        before = self._served[new.name]
        versions = [new, *(model for model in before if model is not new)]
        self._served[new.name] = versions[:KEPT_VERSIONS]
        before[0].stop_watching()
        new.metrics.drift.begin()
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

    def is_live(self, stuck_s: float) -> bool:
        """Whether no pass has run for longer than stuck_s, and the device answers."""
        is_lost = self._compute.engine.is_lost or any(model.is_broken for model in self)
        return self._compute.turns.pass_s() < stuck_s and not is_lost

    async def connect(self) -> None:
        """Be told from now on if the engine ends; a pass alone, which has all cores, has run once."""
        await self._compute.engine.connect()
        for model in self:
            with contextlib.suppress(EngineError):  # the first request is told
                await self._compute.run(model.loaded, [model.loaded.known_row])

    @property
    def engine_process(self) -> int:
        """The id of the engine's process."""
        return self._compute.engine.process_id

    def busy_s(self) -> float:
        """Seconds that the device has computed, since the start."""
        return self._compute.turns.busy_s()

    def wait_s(self) -> float:
        """How long the tokenizer and the device have to do with all that waits or runs, in seconds."""
        return self.tokenizing.backlog_s() + self._compute.turns.backlog_s()

    async def drain(self) -> None:
        """Answer what was accepted."""
        await asyncio.gather(*(model.drain() for model in self), *self._leaving)
        self._compute.engine.close()
        self.tokenizing.close()


async def let_go(model: ServedModel) -> None:
    """Free a version that answers nothing new, once the last request that holds it has its answer."""
    await model.drain()
    model.close()
