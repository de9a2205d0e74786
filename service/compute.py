"""The threads of a replica that touch the device: passes, and the steps of explanations between them.

Threads of their own, because each thread that computes brings its own team of OpenMP threads, and teams fight for
the cores. On a CPU one worker a core, each with one thread of its own, is faster than one pass over all cores: no
core waits for another (benchmarks/RESULTS.md). A GPU has one worker, which launches, and one that waits for the
results, so that the next pass is on the device before the present one ends. Called by service/models.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import torch

from service.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model.tokens import Row
    from service.errors import ServiceError
    from service.predictor import Predictor, Scored

Result = TypeVar("Result")

MAX_WORKERS = 4  # more would wait for the interpreter's lock; the cores beyond are threads of theirs
STEP_SHARE = 0.1  # of a worker, at most, for explanations while classification waits


def share_cores(cores: int, device: torch.device) -> tuple[int, int]:
    """Workers, and threads of each, for so many cores of the host."""
    workers = min(cores, MAX_WORKERS) if device.type == "cpu" else 1
    return workers, max(1, cores // workers)


class Compute:
    """Runs passes on one device; turns says when."""

    def __init__(self, device: torch.device, cores: int) -> None:
        self.workers, self.threads = share_cores(cores, device)
        self.turns = Turns(self.workers, prepared=int(device.type != "cpu"))
        self._executor = ThreadPoolExecutor(
            self.workers, "compute", initializer=torch.set_num_threads, initargs=(self.threads,)
        )
        self._results = ThreadPoolExecutor(1, "results") if device.type != "cpu" else None
        self._passes = 0  # running or waiting
        self._no_pass = asyncio.Event()
        self._turn = asyncio.Lock()  # of the steps, among the models
        self._step_s, self._step_ended = 0.0, 0.0

    async def run(self, predictor: Predictor, rows: Sequence[Row]) -> list[Scored | ServiceError]:
        """The answers to one pass of the rows, in order."""
        loop = asyncio.get_running_loop()
        self._passes += 1
        self._no_pass.clear()
        try:
            if self._results is None:
                return await loop.run_in_executor(self._executor, predictor, rows)
            launched = await loop.run_in_executor(self._executor, predictor.launch, rows)
            return await loop.run_in_executor(self._results, launched)
        finally:
            self._passes -= 1
            if not self._passes:
                self._no_pass.set()

    async def step(self, function: Callable[[], Result]) -> Result:
        """function(), there, once no pass runs or waits; if passes never end, with STEP_SHARE of the time."""
        async with self._turn:
            latest = self._step_ended + self._step_s * (1 / STEP_SHARE - 1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(latest - time.perf_counter()):
                    while self._passes:  # the next pass may have come before this task was woken
                        await self._no_pass.wait()
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._timed, function)

    def _timed(self, function: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        try:
            return function()
        finally:
            self._step_ended = time.perf_counter()
            self._step_s = self._step_ended - start

    def call(self, function: Callable[[], Result]) -> Result:
        """function(), there, for a caller that may wait."""
        return self._executor.submit(function).result()

    def close(self) -> None:
        """Let the threads end after their present work."""
        self._executor.shutdown(wait=False)
        if self._results is not None:
            self._results.shutdown(wait=False)
