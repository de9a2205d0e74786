"""A replica's device: its engine, the passes and steps that are asked of it, and what is loaded there.

On a CPU one pass a core runs at once, each with one thread of its own, which is faster than one pass over all cores:
no core waits for another (benchmarks/RESULTS.md). Only a pass that is alone has all of them, where there are few. A GPU
has one pass, and the next is given to it before that one ends.
No torch here: it is in service/engine.py. Called by service/models.py and explaining.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from model.manifest import BundleError, Described
from model.scores import Calibration
from model.tokens import Row, Tokenizer
from service.channel import Refused
from service.planning import Cost
from service.remote import Remote
from service.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from model.scores import Array

ALONE_AFTER_S = 0.1  # two passes ran: the next would meet another, and threads that wait for each other take its core
STEP_SHARE = 0.1  # of a pass's place, at most, for explanations while classification waits


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model in the engine, by what the replica knows of it."""

    id: int
    bundle: Described
    known_row: Row  # one that any model answers
    device: str
    precision: str
    is_padded: bool  # a pass computes rows * longest tokens, rather than those that the rows have
    most_tokens: int  # of a pass: more would only make others wait


class Compute:
    """Asks the engine of one device; turns says when. Raises ValueError where there is no such device."""

    def __init__(self, device: str, cores: int) -> None:
        try:
            self.engine = Remote(device, cores)
        except Refused as error:
            raise ValueError(str(error)) from None
        self.turns = Turns(self.engine.passes, self.engine.prepared)
        self._spreads = self.engine.passes > 1 and self.engine.threads == 1  # teams of many threads would fight
        self._ids = itertools.count()
        self._passes = 0  # running or waiting
        self._met_at = -ALONE_AFTER_S  # when two passes ran last
        self._no_pass = asyncio.Event()
        self._turn = asyncio.Lock()  # of the steps, among the models
        self._step_s, self._step_ended = 0.0, 0.0

    def load(self, folder: Path, precision: str, version: str | None = None) -> Loaded:
        """A bundle, loaded and not yet warm, in a thread that may wait.

        Raises BundleError where it is refused, or is another version.
        """
        number = next(self._ids)
        try:
            said = self.engine.ask_and_wait(["load", number, str(folder), precision, version])
        except Refused as error:
            raise BundleError(str(error)) from None
        bundle = Described(
            name=said["name"],
            version=said["version"],
            labels=said["labels"],
            problem_type=said["problem_type"],
            max_tokens=said["max_tokens"],
            calibration=Calibration.from_json(said["calibration"]),
            tokenizer=Tokenizer.from_folder(folder, has_types=said["has_types"]),
            reference=said["reference"],
        )
        return Loaded(
            id=number,
            bundle=bundle,
            known_row=Row(*said["known_row"]),
            device=said["device"],
            precision=said["precision"],
            is_padded=said["is_padded"],
            most_tokens=said["most_tokens"],
        )

    def warm_up(self, model: Loaded) -> Cost:
        """What passes cost, measured while nothing else runs, in a thread that may wait."""
        while (cost := self.engine.ask_and_wait(["warm_up", model.id])) is None:
            pass
        return Cost(*cost)

    async def warm_up_between(self, model: Loaded, known: Cost | None) -> Cost:
        """The same in steps between the passes of others; where its cost is known, it is not measured."""
        measured = astuple(known) if known else None
        while (cost := await self.step(["warm_up", model.id, measured])) is None:
            pass
        return Cost(*cost)

    async def costs_like(self, model: Loaded, other: Loaded) -> bool:
        """Whether passes of both cost the same: only the weights may differ."""
        return bool(await self.engine.ask(["costs_like", model.id, other.id]))

    async def run(self, model: Loaded, rows: Sequence[Row]) -> tuple[Array, int]:
        """Logits (B, C) of one pass, and how many tokens it computed, padding included.

        Raises EngineError where the pass failed, or the engine has gone.
        """
        self._passes += 1
        self._no_pass.clear()
        try:
            message = ["compute", model.id, [row.ids for row in rows], [row.types for row in rows]]
            logits, tokens = await self.engine.ask(message, alone=self._is_alone())
            return np.array(logits, dtype=np.float32), tokens
        finally:
            self._passes -= 1
            if not self._passes:
                self._no_pass.set()

    async def distances(self, model: Loaded, rows: Sequence[Row]) -> list[float]:
        """How far rows are from those that the model was measured on, read between the passes; raises as run()."""
        found: list[float] = await self.step(
            ["distances", model.id, [row.ids for row in rows], [row.types for row in rows]]
        )
        return found

    def _is_alone(self) -> bool:
        """Whether the pass that begins shares the cores with no other, and none has for a while."""
        now = time.perf_counter()
        if self._passes > 1:
            self._met_at = now
        return self._spreads and now - self._met_at > ALONE_AFTER_S

    async def step(self, message: Sequence[Any]) -> Any:
        """The answer to a step, asked once no pass runs or waits; if passes never end, with STEP_SHARE of the time."""
        async with self._turn:
            latest = self._step_ended + self._step_s * (1 / STEP_SHARE - 1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(latest - time.perf_counter()):
                    while self._passes:  # the next pass may have come before this task was woken
                        await self._no_pass.wait()
            answer, self._step_s = await self.engine.timed(message)
            self._step_ended = time.perf_counter()
            return answer
