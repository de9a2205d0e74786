"""The served models: load, verify, warm up, measure, find by name.

A served model is a bundle with its predictor and its own queue; all of a replica share the device's turns.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, TypeVar

from model.bundle import load_bundle
from model.device import choose_device
from model.location import LocationError, local_folder
from model.manifest import BundleError
from service import metrics
from service.batching import Batcher
from service.cache import AnswerCache
from service.compute import Compute
from service.errors import NoSuchModel
from service.explaining import Explainer
from service.predictor import Predictor, Scored
from service.settings import available_cores
from service.tokenizing import Tokenizing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from model.bundle import Bundle
    from model.tokens import Row
    from service.errors import ServiceError
    from service.schemas import Priority
    from service.settings import Settings, Spec

Result = TypeVar("Result")
log = logging.getLogger("heed")


class ServedModel:
    """One bundle that answers."""

    def __init__(self, name: str, bundle: Bundle, compute: Compute, settings: Settings) -> None:
        self.name, self.bundle, self._compute = name, bundle, compute
        self.predictor = predictor = Predictor(bundle, choose_device(settings.device), settings.precision)
        compute.call(predictor.warm_up)
        cost = compute.call(predictor.measure)
        self.batcher: Batcher[Row, Scored] = Batcher(
            self._run,
            turns=compute.turns,
            max_batch_tokens=settings.max_batch_tokens or predictor.full_pass(cost),
            max_queue_tokens=settings.max_queue_tokens,
            cost=cost,
            is_padded=predictor.is_padded,
            on_pass=lambda figures: metrics.observe_pass(figures, predictor.computed_tokens(figures.lengths)),
        )
        self.explainer = Explainer(predictor, compute, settings.max_queue_tokens)
        self.cache = AnswerCache(settings.cache_texts)
        self.metrics = metrics.ModelMetrics(name, bundle.version, bundle.labels)
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

    def is_bulk(self, priority: Priority | None, rows: Sequence[Row]) -> bool:
        """Whether rows let others go first: where they say so, or say nothing and fill more than one pass."""
        if priority is not None:
            return priority == "bulk"
        return sum(row.tokens for row in rows) > self.batcher.max_batch_tokens


class Models:
    """All that a replica serves."""

    def __init__(self, specs: Sequence[Spec], settings: Settings) -> None:
        self._compute = Compute(choose_device(settings.device), settings.compute_threads or available_cores())
        self.tokenizing = Tokenizing(settings.max_queue_tokens)
        self._served = {spec.name: self._load(spec, settings) for spec in specs}

    def _load(self, spec: Spec, settings: Settings) -> ServedModel:
        """Load and warm up. Raises LocationError where there is no bundle, BundleError where it cannot be trusted."""
        start = time.monotonic()
        try:
            model = ServedModel(spec.name, load_bundle(local_folder(spec.location)), self._compute, settings)
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

    def is_live(self, stuck_s: float) -> bool:
        """Whether no pass has run for longer than stuck_s, and the device answers."""
        return self._compute.turns.pass_s() < stuck_s and not any(model.is_broken for model in self)

    def busy_s(self) -> float:
        """Seconds that the device has computed, since the start."""
        return self._compute.turns.busy_s()

    async def drain(self) -> None:
        """Answer what was accepted; a text is explained once it has its answer."""
        await asyncio.gather(*(model.batcher.drain() for model in self))
        await asyncio.gather(*(model.explainer.batcher.drain() for model in self))
        self._compute.close()
        self.tokenizing.close()
