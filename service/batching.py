"""Fill forward passes: what waits when the device becomes free is the next pass. No timer, no torch, no Ray.

plan_pass is pure: which of the waiting items run next. Batcher is the asyncio around it: submit() waits
for its items' results, one loop runs pass after pass. Made by service/models.py, called by service/routes.py.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from service.errors import Failed, NotReady, Overloaded, ServiceError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


class Sized(Protocol):
    """What the batcher knows of an item: its tokens."""

    @property
    def tokens(self) -> int:
        """Tokens that the item costs."""
        ...


PLANNED_ITEMS = 4096  # at the head of the queue: planning stays a matter of milliseconds

Item = TypeVar("Item", bound=Sized)
Result = TypeVar("Result")


def plan_pass(tokens: Sequence[int], budget: int) -> list[int]:
    """Which of the waiting items run next, as indices; tokens are in order of arrival.

    The oldest always runs, even alone over the budget, so nobody waits for ever. Those nearest to it in
    length join while rows * longest <= budget, so that little is padded; equal lengths by age.
    """
    if not tokens or len(tokens) * max(tokens) <= budget:
        return list(range(len(tokens)))
    first = tokens[0]
    chosen, longest = [0], first
    for i in sorted(range(1, len(tokens)), key=lambda i: abs(tokens[i] - first)):
        wider = max(longest, tokens[i])
        if (len(chosen) + 1) * wider <= budget:
            chosen.append(i)
            longest = wider
        elif wider == longest:  # full: a shorter row would not fit either
            break
    return chosen


@dataclass(frozen=True, slots=True)
class Answer(Generic[Result]):
    """An item's result, or the error in its place, and how long it waited and ran, in seconds."""

    result: Result | ServiceError
    queue_s: float
    forward_s: float


@dataclass(slots=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    future: asyncio.Future[Answer[Result]]
    since: float
    is_counted: bool = True  # among the tokens that wait


@dataclass
class PassFigures:
    """What metrics hear of a pass."""

    lengths: list[int]  # tokens of each row
    forward_s: float
    queue_s: list[float]
    error: Exception | None  # the first that the pass raised; its items were then tried in halves


class Batcher(Generic[Item, Result]):
    """One device's queue.

    run(items) computes a pass elsewhere and returns a result, or the error in its place, per item in order.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Awaitable[Sequence[Result | ServiceError]]],
        *,
        max_batch_tokens: int,
        max_queue_tokens: int,
        on_pass: Callable[[PassFigures], object] = lambda figures: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._run, self._on_pass, self._clock = run, on_pass, clock
        self._max_batch_tokens, self._max_queue_tokens = max_batch_tokens, max_queue_tokens
        self._queue: deque[_Waiting[Item, Result]] = deque()
        self._arrived = asyncio.Event()
        self._tokens_per_s = 0.0  # measured over the passes, 0 before the first
        self._draining = False
        self.queue_tokens = 0  # waiting, not yet in a pass
        self._pass_since: float | None = None  # None while idle
        self.busy_s = 0.0  # in passes, since the start

    @property
    def queue_texts(self) -> int:
        """Items that wait."""
        return len(self._queue)

    def pass_s(self) -> float:
        """How long the present pass has run, in seconds; 0 while idle."""
        return self._clock() - self._pass_since if self._pass_since is not None else 0.0

    def oldest_s(self) -> float:
        """How long the oldest waiting item has waited, in seconds."""
        return self._clock() - self._queue[0].since if self._queue else 0.0

    def wait_s(self) -> float:
        """Predicted wait of an item that arrives now, in seconds; 0 before the first pass."""
        return self.queue_tokens / self._tokens_per_s if self._tokens_per_s else 0.0

    async def submit(self, items: Sequence[Item]) -> list[Answer[Result]]:
        """Wait until every item has its answer, in order; an item's failure is its own answer.

        All items are accepted or none: raises Overloaded where they do not fit into the queue, NotReady
        while draining. A caller that is cancelled takes its waiting items along.
        """
        if self._draining:
            raise NotReady("the server is stopping")
        self._admit(sum(item.tokens for item in items))
        now, loop = self._clock(), asyncio.get_running_loop()
        waiting = [_Waiting(item, loop.create_future(), now) for item in items]
        self._queue.extend(waiting)
        self._arrived.set()
        try:
            return [await entry.future for entry in waiting]
        except BaseException:
            self._leave(waiting)
            raise

    def _admit(self, tokens: int) -> None:
        """Count the tokens in, or refuse. A request larger than the whole queue is let into an empty one."""
        if self.queue_tokens and self.queue_tokens + tokens > self._max_queue_tokens:
            raise Overloaded(self.queue_tokens, max(1, math.ceil(self.wait_s())))
        self.queue_tokens += tokens

    def _leave(self, entries: list[_Waiting[Item, Result]]) -> None:
        """Forget what has not been taken into a pass yet; the queue drops it when it comes by."""
        for entry in entries:
            entry.future.cancel()
            self._uncount(entry)

    def _uncount(self, entry: _Waiting[Item, Result]) -> None:
        """It waits no longer: it is in a pass, or its caller has left."""
        if entry.is_counted:
            entry.is_counted = False
            self.queue_tokens -= entry.item.tokens

    async def main_loop(self) -> None:
        """Run pass after pass until drained. Should it ever end otherwise, nobody is left waiting."""
        try:
            while self._queue or not self._draining:
                self._arrived.clear()
                chosen = self._take()
                if chosen:
                    await self._pass(chosen)
                elif not self._queue and not self._draining:
                    await self._arrived.wait()
        finally:
            for entry in self._queue:
                if not entry.future.done():
                    entry.future.set_result(Answer(Failed(), 0.0, 0.0))

    def drain(self) -> None:
        """Accept nothing more; main_loop ends when what was accepted is answered."""
        self._draining = True
        self._arrived.set()

    def _take(self) -> list[_Waiting[Item, Result]]:
        """Remove the next pass from the head of the queue, and those whose caller has left."""
        head = [self._queue.popleft() for _ in range(min(len(self._queue), PLANNED_ITEMS))]
        waiting = [entry for entry in head if not entry.future.done()]
        plan = set(plan_pass([entry.item.tokens for entry in waiting], self._max_batch_tokens))
        chosen = [entry for i, entry in enumerate(waiting) if i in plan]
        left = [entry for i, entry in enumerate(waiting) if i not in plan]
        self._queue.extendleft(reversed(left))
        for entry in chosen:
            self._uncount(entry)
        return chosen

    async def _pass(self, chosen: list[_Waiting[Item, Result]]) -> None:
        """Compute one pass, answer its items, and tell whoever counts."""
        start = self._clock()
        results, error = await self._results(chosen)
        self._pass_since = None
        forward_s = self._clock() - start
        self.busy_s += forward_s
        for entry, result in zip(chosen, results, strict=True):
            if not entry.future.done():
                entry.future.set_result(Answer(result, start - entry.since, forward_s))
        tokens = sum(entry.item.tokens for entry in chosen)
        if error is None:
            rate = tokens / max(forward_s, 1e-9)
            self._tokens_per_s = rate if not self._tokens_per_s else 0.8 * self._tokens_per_s + 0.2 * rate
        self._on_pass(
            PassFigures(
                lengths=[entry.item.tokens for entry in chosen],
                forward_s=forward_s,
                queue_s=[start - entry.since for entry in chosen],
                error=error,
            )
        )

    async def _results(
        self, chosen: Sequence[_Waiting[Item, Result]]
    ) -> tuple[list[Result | ServiceError], Exception | None]:
        """A result per item and what went wrong; a pass that fails is halved until the culprit is alone."""
        self._pass_since = self._clock()
        try:
            results = list(await self._run([entry.item for entry in chosen]))
            if len(results) != len(chosen):
                raise RuntimeError(f"a pass of {len(chosen)} items has another number of results: {len(results)}")
        except Exception as error:  # whatever the device raises
            if len(chosen) == 1:
                return [Failed()], error
            half = len(chosen) // 2
            first, _ = await self._results(chosen[:half])
            second, _ = await self._results(chosen[half:])
            return [*first, *second], error
        return list(results), None
