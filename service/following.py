"""Follow the aliases of the registry: when one moves, load that version beside the present one, then swap.

Reads: main_loop() -> poll() -> what the alias names -> load and check, in a thread of its own ->
warm up between passes -> swap. Whatever fails, the present version stays, and a metric, the log and /v1/models say
so. Each replica follows for itself. Started by service/routes.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from model.location import LocationError, RegistryEntry
from model.manifest import BundleError, now
from model.registry import RegistryError
from service import metrics
from service.errors import EngineError, where
from service.settings import Spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.models import Models, ServedModel
    from service.trials import Trials

Result = TypeVar("Result")
log = logging.getLogger("heed")

MAX_RETRY_S = 3600.0  # between attempts at a version that cannot be loaded


@dataclass(frozen=True)
class Failure:
    """Why a model is not the version that its alias names."""

    version: str | None  # None: the registry could not be read
    error: str  # its type
    at: str  # ISO 8601, UTC
    retry_s: float = 0.0  # how long the version is left alone
    retry_at: float = 0.0  # by the clock


@dataclass
class Followed:
    """A model that is followed, and what is wrong: None once it is what its alias names."""

    name: str
    entry: RegistryEntry
    failure: Failure | None = None  # of the version that the alias names
    candidate_failure: Failure | None = None  # of the version that is to be tried
    unreadable: Failure | None = None  # the registry

    def __str__(self) -> str:
        return f"{self.entry.name}@{self.entry.wanted}"


class Following:
    """The followed ones among the models of a replica."""

    def __init__(
        self, models: Models, trials: Trials, poll_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._models, self._trials, self._poll_s, self._clock = models, trials, poll_s, clock
        entries = {spec.name: spec.location for spec in models.specs}
        self._followed = {
            name: Followed(name, entry)
            for name, entry in entries.items()
            if isinstance(entry, RegistryEntry) and entry.is_alias
        }
        for name in self._followed:
            metrics.count_from_zero(name)
        self._thread = ThreadPoolExecutor(1, "follow")

    def of(self, name: str) -> Followed | None:
        """What is followed under the name of a model, None for nothing."""
        return self._followed.get(name)

    async def main_loop(self) -> None:
        """Look at every alias, one after the other, each poll_s seconds, until cancelled."""
        try:
            while self._followed:
                await asyncio.sleep(self._poll_s)
                for name in self._followed:
                    await self._poll_safely(name)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _poll_safely(self, name: str) -> None:
        """An error of ours ends neither the following nor the replica."""
        try:
            await self.poll(name)
        except Exception as error:
            log.error("following %s failed: %s", name, where(error))

    async def poll(self, name: str) -> None:
        """Look once; where the alias names another version than the present one, swap."""
        followed, versions = self._followed[name], self._models.versions(name)
        loaded = {model.bundle.version: model for model in versions}
        version = await self._named(followed)
        if version == versions[0].bundle.version:
            followed.failure = None
        elif version in loaded:  # the one before
            self._swap(followed, loaded[version])
        elif version is not None and (tried := self._trials.take(name, version)):
            self._swap(followed, tried)
        elif version is not None and is_due(followed.failure, version, self._clock()):
            await self._load_and_swap(followed, version)
        if self._trials.is_wanted and followed.entry.wanted == "production":
            await self._poll_candidate(followed)

    async def _poll_candidate(self, followed: Followed) -> None:
        """Try what the alias `candidate` names, unless it is in production or was before."""
        try:
            version = (await self._in_thread(followed.entry.model.aliases)).get("candidate")
        except RegistryError:
            return  # the look at production has said so
        trial = self._trials.of(followed.name)
        if version is None or version in {model.bundle.version for model in self._models.versions(followed.name)}:
            self._trials.end(followed.name)
        elif (trial is None or trial.version != version) and is_due(followed.candidate_failure, version, self._clock()):
            loaded = await self._load(followed, version, followed.candidate_failure)
            if isinstance(loaded, Failure):
                followed.candidate_failure = loaded
            else:
                self._trials.begin(loaded)

    async def _load_and_swap(self, followed: Followed, version: str) -> None:
        new = await self._load(followed, version, followed.failure)
        if isinstance(new, Failure):
            followed.failure = new
        elif await self._named(followed) in (version, None):
            self._swap(followed, new)
        else:  # the alias has moved on meanwhile
            new.close()

    def _swap(self, followed: Followed, new: ServedModel) -> None:
        before = self._models.versions(followed.name)[0].bundle
        self._models.swap(new)
        followed.failure = None
        log.info("%s is version %s now, %s stays loaded", followed.name, new.bundle.version, before.version)
        if new.bundle.labels != before.labels:
            log.warning("%s version %s has other labels than %s", followed.name, new.bundle.version, before.version)

    async def _named(self, followed: Followed) -> str | None:
        """The version that the alias names now, None where the registry cannot be read."""
        try:
            version = await self._in_thread(lambda: followed.entry.model.version(followed.entry.wanted))
        except Exception as error:
            metrics.REGISTRY_POLLS.labels(followed.name, "failed").inc()
            if followed.unreadable is None:
                log.warning("the registry cannot be read, %s stays as it is: %s", followed.name, told(error))
                followed.unreadable = Failure(None, type(error).__name__, now())
            return None
        followed.unreadable = None
        metrics.REGISTRY_POLLS.labels(followed.name, "read").inc()
        return version

    async def _load(self, followed: Followed, version: str, before: Failure | None) -> ServedModel | Failure:
        """The version, loaded beside the present one and warm; where anything fails, what did, and that is said."""
        spec = Spec(followed.name, RegistryEntry(followed.entry.model, version))
        started, model = self._clock(), None
        try:
            model = await self._in_thread(lambda: self._models.load(spec))
            await self._models.warm_up(model)
        except Exception as error:
            if model is not None:
                model.close()
            metrics.MODEL_LOADS.labels(followed.name, "failed").inc()
            log.error("%s version %s cannot be loaded, it stays as it is: %s", followed.name, version, told(error))
            return failed_again(before, version, error, self._clock(), self._poll_s)
        metrics.MODEL_LOADS.labels(followed.name, "loaded").inc()
        log.info("loaded %s version %s in %.1f s", followed.name, version, self._clock() - started)
        return model

    async def _in_thread(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def is_due(failure: Failure | None, version: str, now_s: float) -> bool:
    """Whether to load the version: not again at once after it failed."""
    return failure is None or failure.version != version or now_s >= failure.retry_at


def failed_again(before: Failure | None, version: str, error: Exception, now_s: float, poll_s: float) -> Failure:
    """The failure of a version; it may be passing, so it is tried again, each time after twice as long."""
    waited_s = before.retry_s if before is not None and before.version == version else poll_s
    retry_s = min(2 * waited_s, MAX_RETRY_S)
    kind = str(error.args[0]) if isinstance(error, EngineError) else type(error).__name__
    return Failure(version, kind, now(), retry_s, now_s + retry_s)


def told(error: Exception) -> str:
    """What the log says of an error: all of one of ours, which speaks of files; of others the type and place."""
    is_ours = isinstance(error, BundleError | LocationError | RegistryError)
    return f"{type(error).__name__}: {error}" if is_ours else where(error)
