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

    @property
    def is_full(self) -> bool:
        """Whether a pass of what waits could not grow."""
        ...

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits or runs."""
        ...

    @property
    def backlog_s(self) -> dict[bool, float]:
        """Cost of what waits or runs, by is_bulk."""
        ...

    def start_pass(self) -> None:
        """Start a pass of what waits."""
        ...


class Turns:
    """One device: how many passes it runs at once, whose turn is next, and how much work waits for it."""

    def __init__(self, at_once: int = 1, prepared: int = 0, clock: Callable[[], float] = time.perf_counter) -> None:
        self.at_once, self.prepared, self.clock = at_once, prepared, clock
        self.pace = 1.0  # seconds that a pass takes for each that its cost says: others use the cores too
        self._queues: list[Queue] = []
        self._line: deque[Queue] = deque()  # queues in which something waits
        self._begins: dict[int, float] = {}  # of the passes that run
        self._passes = 0
        self._ended_at = 0.0
        self._busy_s, self._counted_at = 0.0, clock()

    def join(self, queue: Queue) -> None:
        """The queue's work is this device's."""
        self._queues.append(queue)

    def leave(self, queue: Queue) -> None:
        """The queue is empty and stays so."""
        self._queues.remove(queue)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or runs."""
        return all(queue.is_empty for queue in self._queues)

    def backlog_s(self) -> float:
        """How long the device has to do with what waits or runs."""
        return self._seconds(sum(sum(queue.backlog_s.values()) for queue in self._queues))

    def wait_s(self, queue: Queue, cost_s: float, *, is_bulk: bool = False) -> float:
        """When work of this cost would be done, if it arrived in the queue now, in seconds.

        All of the queue goes before bulk; before the rest what is not bulk either, with bulk's turns in between. The
        other queues have a turn for each of its own.
        """
        first, bulk = queue.backlog_s[False], queue.backlog_s[True]
        mine = cost_s + first + (bulk if is_bulk else min(bulk, (first + cost_s) / (BULK_TURN - 1) + LONGEST_PASS_S))
        others = (sum(other.backlog_s.values()) for other in self._queues if other is not queue)
        return self._seconds(mine + sum(min(theirs, mine + LONGEST_PASS_S) for theirs in others))

    def _seconds(self, cost_s: float) -> float:
        return cost_s * self.pace / self.at_once

    def ask(self, queue: Queue) -> None:
        """Something waits in the queue: start its pass now, or when its turn comes."""
        if queue not in self._line:
            self._line.append(queue)
        self.next()

    def next(self) -> None:
        """Start what can be started. The device gets another pass prepared only when one is full: others could grow.

        Then the first in line has its turn all the same, or it would wait for as long as another queue is full.
        """
        while self._line and len(self._begins) < self.at_once + self.prepared:
            if len(self._begins) >= self.at_once and not any(queue.is_full for queue in self._line):
                return
            queue = self._line.popleft()
            if queue.queue_texts:
                queue.start_pass()
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
        now = self.clock()
        begin = self._begins.pop(name)
        seconds = now - (max(begin, self._ended_at) if self.prepared else begin)  # prepared: waited for the one before
        self._ended_at = now
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
