"""One device's turns: how many passes run on it at once, which queue is next, how much work waits for it.

The queues of all models of a replica share one. No torch, no asyncio. Called by service/batching.py.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

BULK_TURN = 4  # of a queue, while both wait: each fourth pass is bulk's
LATEST = 0.1  # weight of the latest pass in the pace
LONGEST_PASS_S = 0.1  # of bulk, which may be under way


class Queue(Protocol):
    """What takes turns."""

    @property
    def queue_texts(self) -> int:
        """Texts that wait."""
        ...

    def start_pass(self, *, must_be_full: bool) -> bool:
        """Start a pass of what waits, if there is one; whether there was."""
        ...


class Turns:
    """One device: how many passes it runs at once, whose turn is next, and how much work waits for it."""

    def __init__(self, at_once: int = 1, prepared: int = 0, clock: Callable[[], float] = time.perf_counter) -> None:
        self.at_once, self.prepared, self.clock = at_once, prepared, clock
        self.backlog_s = {False: 0.0, True: 0.0}  # cost of what waits or runs, by is_bulk, over all queues
        self.pace = 1.0  # seconds that a pass takes for each that its cost says: others use the cores too
        self._line: deque[Queue] = deque()  # queues in which something waits
        self._begins: dict[int, float] = {}  # of the passes that run
        self._passes = 0
        self._busy_s, self._counted_at = 0.0, clock()

    def wait_s(self, cost_s: float, *, is_bulk: bool = False) -> float:
        """When work of this cost would be done, if it arrived now, in seconds.

        All that waits goes before bulk. Before the rest goes what is not bulk either, with bulk's turns in between.
        """
        before, bulk = self.backlog_s[False], self.backlog_s[True]
        before += bulk if is_bulk else min(bulk, before / (BULK_TURN - 1) + LONGEST_PASS_S)
        return (before + cost_s) * self.pace / self.at_once

    def relieve(self, cost_s: float, *, is_bulk: bool) -> None:
        """Work is done, or given up."""
        left = self.backlog_s[is_bulk] - cost_s
        self.backlog_s[is_bulk] = left if left > 1e-9 else 0.0  # what is left of sums of floats is nothing

    def ask(self, queue: Queue) -> None:
        """Something waits in the queue: start its pass now, or when its turn comes."""
        if queue not in self._line:
            self._line.append(queue)
        self.next()

    def next(self) -> None:
        """Start what can be started. A pass that the device only gets prepared must be full: it could grow yet."""
        declined = 0
        while declined < len(self._line) and len(self._begins) < self.at_once + self.prepared:
            queue = self._line.popleft()
            is_started = queue.start_pass(must_be_full=len(self._begins) >= self.at_once)
            declined = 0 if is_started else declined + 1
            if queue.queue_texts:
                self._line.append(queue)

    def begin(self) -> int:
        """Count a pass in; what is returned names it."""
        self._count_busy()
        self._passes += 1
        self._begins[self._passes] = self.clock()
        return self._passes

    def end(self, name: int, cost_s: float) -> float:
        """A pass is over: its seconds. Where they are not what its cost says, the pace follows."""
        self._count_busy()
        seconds = self.clock() - self._begins.pop(name)
        if cost_s > 0:
            latest = min(max(seconds / cost_s, self.pace / 2), self.pace * 2)  # one that hung says little of the next
            self.pace += LATEST * (latest - self.pace)
        return seconds

    def pass_s(self) -> float:
        """How long the longest of the present passes has run, in seconds; 0 while idle."""
        return self.clock() - min(self._begins.values()) if self._begins else 0.0

    def busy_s(self) -> float:
        """Seconds of computing since the start; with half of the passes that may run, each counts half."""
        self._count_busy()
        return self._busy_s

    def _count_busy(self) -> None:
        now = self.clock()
        self._busy_s += (now - self._counted_at) * min(1.0, len(self._begins) / self.at_once)
        self._counted_at = now
