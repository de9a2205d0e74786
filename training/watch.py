"""What is seen of a run while it goes on: a bar with the rate of the steps, a line for each epoch.

The loop in training/train.py tells a Watch; a Screen shows it.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from training.report import epoch_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from training.checkpoint import Progress


@dataclass(frozen=True)
class Pace:
    """Where an epoch stands, and how fast it goes since it began or was resumed.

    loss and lr are those of the last step. tokens_per_s are tokens trained on, without padding. busy is the share of
    the time in which the device computed steps: forward, backward and optimizer, with the exchange between workers in
    them; the rest of the time batches were made and checkpoints written. On CUDA the device's own clock says so.
    """

    step: int
    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float
    lr: float
    tokens_per_s: float
    busy: float


class Watch:
    """Hears how a run goes, and does nothing."""

    def begin(self, at: Progress) -> None:
        """The run begins, or goes on from a checkpoint."""

    def step(self, pace: Pace) -> None:
        """A step is done."""

    def epoch(self, at: Progress) -> None:
        """An epoch was closed."""


class Both(Watch):
    """Tells two."""

    def __init__(self, first: Watch, second: Watch) -> None:
        self._two = first, second

    def begin(self, at: Progress) -> None:
        """The run begins, or goes on."""
        for watch in self._two:
            watch.begin(at)

    def step(self, pace: Pace) -> None:
        """A step is done."""
        for watch in self._two:
            watch.step(pace)

    def epoch(self, at: Progress) -> None:
        """An epoch was closed."""
        for watch in self._two:
            watch.epoch(at)


class Screen(Watch):
    """Shows it on stderr; the bar where that is a terminal. on_step hears each step done."""

    def __init__(self, on_step: Callable[[int], object] = lambda step: None) -> None:
        self._on_step = on_step
        self._bar: Any = None

    def begin(self, at: Progress) -> None:
        """Say where a run goes on."""
        self._take_bar_away()
        if at.step:
            print(f"goes on from its checkpoint, after step {at.step} in epoch {at.epoch + 1}", file=sys.stderr)

    def step(self, pace: Pace) -> None:
        """Move the bar."""
        if self._bar is None:
            name = f"epoch {pace.epoch}/{pace.epochs}"
            self._bar = tqdm(
                total=pace.batches, initial=pace.batch - 1, desc=name, unit="batch", leave=False, disable=None
            )
        shown = f"{pace.tokens_per_s:,.0f} tokens/s, {pace.busy:.0%} computing"
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update(pace.batch - self._bar.n)
        self._on_step(pace.step)

    def epoch(self, at: Progress) -> None:
        """Print its line in place of the bar."""
        self._take_bar_away()
        print(epoch_line(at), file=sys.stderr)

    def _take_bar_away(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None


class Meter:
    """The pace of an epoch from `at` on: start() and stop() go around what the device computes."""

    def __init__(self, device: torch.device, at: Progress, batches: int, epochs: int) -> None:
        self._clock = CudaClock(device) if device.type == "cuda" else Clock()
        self._batches, self._epochs, self._tokens = batches, epochs, at.tokens
        self._began = time.perf_counter()
        self.start, self.stop = self._clock.start, self._clock.stop

    def pace(self, at: Progress, loss: float, lr: float) -> Pace:
        """Of the steps so far; loss and rate are of the last one."""
        seconds = time.perf_counter() - self._began
        return Pace(
            at.step,
            at.epoch + 1,
            self._epochs,
            at.batch,
            self._batches,
            loss,
            lr,
            (at.tokens - self._tokens) / seconds,
            min(1.0, self._clock.seconds / seconds),
        )


class Clock:
    """Seconds between starts and stops."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def start(self) -> None:
        """The device begins."""
        self._began = time.perf_counter()

    def stop(self) -> None:
        """It has ended."""
        self.seconds += time.perf_counter() - self._began


class CudaClock(Clock):
    """The same by a GPU's events: it is told of steps long before it computes them."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._stream = torch.cuda.current_stream(device)
        self._open: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def start(self) -> None:
        """Note when the GPU gets here."""
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record(self._stream)
        self._open.append((begin, end))

    def stop(self) -> None:
        """Note that, too, and count the steps that it has done."""
        self._open[-1][1].record(self._stream)
        while self._open and self._open[0][1].query():
            begin, end = self._open.pop(0)
            self.seconds += begin.elapsed_time(end) / 1000
