"""A bundle on a device: rows in, scores out, in one dedicated thread.

One thread, because each thread that computes brings its own team of OpenMP threads, and teams fight for
the cores. Called by service/models.py; the batcher decides what is in a pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from model.batch import computed_tokens
from model.bundle import PROBES
from model.cpu import pack, quantize
from model.device import DTYPES, choose_precision, keep_freed_memory
from model.explain import explain_steps
from model.forward import Forward
from model.scores import MULTI, label_sets, probabilities
from service.errors import Failed, ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from model.bundle import Bundle
    from model.encoder import Classifier
    from model.explain import Attribution
    from model.scores import Array
    from model.tokens import Row

Result = TypeVar("Result")
KNOWN_TEXT = "to be or not to be, that is the question"  # answered at warm-up
FULL_PASS_CPU, FULL_PASS_GPU = 2048, 16_384  # tokens that fill the device; more would only make others wait
STEP_SHARE = 0.1  # of the device, at most, for explanations while classification waits


@dataclass(frozen=True, slots=True)
class Scored:
    """What the model says of one text, in the order of its label ids; in_set is None without calibration."""

    logits: list[float]
    scores: list[float]
    in_set: list[bool] | None


class ComputeThread:
    """The one thread of a replica that touches the device. Passes go first, steps of explanations run in between."""

    def __init__(self, num_threads: int) -> None:
        self._executor = ThreadPoolExecutor(1, "compute", initializer=torch.set_num_threads, initargs=(num_threads,))
        self._passes = 0  # running or waiting
        self._no_pass = asyncio.Event()
        self._turn = asyncio.Lock()  # of the steps, among the models
        self._step_s, self._step_ended = 0.0, 0.0

    async def run(self, predictor: Predictor, rows: Sequence[Row]) -> list[Scored | ServiceError]:
        """predictor(rows), there."""
        self._passes += 1
        self._no_pass.clear()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, predictor, rows)
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
        """Let the thread end after its present work."""
        self._executor.shutdown(wait=False)


class Predictor:
    """Moves the bundle's classifier to its device and precision, and answers passes of rows."""

    def __init__(self, bundle: Bundle, device: torch.device, precision: str = "auto") -> None:
        self.bundle, self.device = bundle, device
        self.precision = choose_precision(precision, device)
        self._classifier = bundle.classifier.to(device, DTYPES[self.precision]).eval().requires_grad_(False)
        self._forward = Forward(self._fast())
        [self.known_row] = bundle.tokenizer.encode([KNOWN_TEXT], bundle.max_tokens)

    def _fast(self) -> Classifier:
        """The classifier that answers, as the device runs it fastest."""
        if self.device.type != "cpu":
            return self._classifier
        keep_freed_memory()
        if self.precision == "int8":
            return quantize(self._classifier, self.bundle.tokenizer.encode(PROBES, self.bundle.max_tokens))
        return pack(self._classifier)

    @cached_property
    def explained(self) -> Classifier:
        """The classifier to explain with: the same weights in fp32, made when somebody first asks."""
        return self._classifier if DTYPES[self.precision] == torch.float32 else copy.deepcopy(self._classifier).float()

    @property
    def full_pass(self) -> int:
        """Tokens of a pass that fills the device."""
        return FULL_PASS_CPU if self.device.type == "cpu" else FULL_PASS_GPU

    def computed_tokens(self, lengths: Sequence[int]) -> int:
        """Tokens of a pass of rows of these lengths, padding included."""
        return computed_tokens(lengths, self._forward.layout)

    def __call__(self, rows: Sequence[Row]) -> list[Scored | ServiceError]:
        """One forward pass; answers in the order of the rows, Failed where a logit is not a number."""
        return score(self.bundle, self._forward(rows))

    def explain(self, row: Row, baseline: Row, label: int) -> Iterator[Attribution | None]:
        """Steps of an explanation, each to be taken in the compute thread; the last gives it."""
        is_multi = self.bundle.problem_type == MULTI
        yield from explain_steps(self.explained, row, baseline, label, is_multi=is_multi)

    def warm_up(self) -> None:
        """Run the shapes of first requests once: allocations, kernels and their choice happen here."""
        self._forward.warm_up(self.known_row)

    def warm_up_steps(self) -> Iterator[None]:
        """The same in steps, each to be taken in the compute thread."""
        return self._forward.warm_up_steps(self.known_row)


def score(bundle: Bundle, logits: Array) -> list[Scored | ServiceError]:
    """Calibrated answers of logits (N, C), Failed where one is not a number."""
    scores = probabilities(logits, bundle.problem_type, bundle.calibration.temperature)
    sets = label_sets(scores, bundle.problem_type, bundle.calibration)
    in_sets = [None] * len(logits) if sets is None else sets.tolist()
    parts = zip(np.all(np.isfinite(logits), axis=1), logits.tolist(), scores.tolist(), in_sets, strict=True)
    return [Scored(*scored) if is_finite else Failed() for is_finite, *scored in parts]
