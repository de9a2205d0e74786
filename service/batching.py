"""Fill forward passes: what waits when the device becomes free is the next pass. No timer, no torch, no Ray.

submit() admits a request by the time that it would take, queues its texts and waits for their results. When a pass
may start is decided in service/turns.py, what is in it in service/planning.py.
Made by service/models.py and explaining.py, called by service/answering.py.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from service.errors import Failed, NotReady, Overloaded, ServiceError
from service.planning import Cost, even_share, plan_pass
from service.turns import BULK_TURN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence

    from service.turns import Turns


class Sized(Protocol):
    """What the batcher knows of an item."""

    @property
    def tokens(self) -> int:
        """Tokens that the item costs."""
        ...

    @property
    def key(self) -> Hashable:
        """Equal for items with equal results: those in flight at one time are computed once."""
        ...


LOOKED_AT = 2  # full passes, at the head of the queue, from which one is filled that runs by age
PLANNED_ITEMS = 4096  # at the head of the queue: planning stays a matter of milliseconds
AGED_S = 0.5  # no text is overtaken by younger ones of its kind for longer
PREDICTED_WELL = 0.5  # of a deadline: what is predicted to take longer may miss it (benchmarks/RESULTS.md)
NOTHING_S = 1e-9  # what is left of sums of floats
UNKNOWN_COST = Cost(0.0, 0.0, 1e-4)  # until it is measured; the pace mends it

Item = TypeVar("Item", bound=Sized)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Answer(Generic[Result]):
    """An item's result, or the error in its place, and how long it waited and ran, in seconds."""

    result: Result | ServiceError
    queue_s: float
    forward_s: float


@dataclass
class PassFigures:
    """What metrics hear of a pass."""

    lengths: list[int]  # tokens of each row
    forward_s: float
    queue_s: list[float]  # of each text, one that was computed for several counts for each
    error: Exception | None  # the first that the pass raised; its items were then tried in halves


@dataclass(slots=True, eq=False)
class _Request(Generic[Result]):
    """A caller that waits for its texts."""

    answers: list[Answer[Result] | None]
    done: asyncio.Future[None]
    since: float
    left: int

    def answer(self, index: int, answer: Answer[Result]) -> None:
        self.answers[index] = answer
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(None)


@dataclass(slots=True, eq=False)
class _Work(Generic[Item, Result]):
    """An item to compute once, for all who asked for it."""

    item: Item
    since: float
    cost_s: float
    is_bulk: bool
    is_waiting: bool = True  # not yet in a pass, nor dropped
    callers: list[tuple[_Request[Result], int]] = field(default_factory=list)

    @property
    def is_wanted(self) -> bool:
        return any(not request.done.done() for request, _ in self.callers)


class Batcher(Generic[Item, Result]):
    """One model's queue.

    run(items) computes a pass elsewhere and returns a result, or the error in its place, per item in order.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Awaitable[Sequence[Result | ServiceError]]],
        *,
        turns: Turns,
        max_batch_tokens: int,
        max_queue_tokens: int,
        is_padded: bool = False,
        on_pass: Callable[[PassFigures], object] = lambda figures: None,
    ) -> None:
        self._run, self._turns, self._on_pass, self._clock = run, turns, on_pass, turns.clock
        self.max_batch_tokens, self._max_queue_tokens, self._is_padded = max_batch_tokens, max_queue_tokens, is_padded
        self.cost = UNKNOWN_COST
        self._lines: dict[bool, deque[_Work[Item, Result]]] = {False: deque(), True: deque()}  # by is_bulk
        self._works: dict[Hashable, _Work[Item, Result]] = {}  # what waits or runs
        self._passes: set[asyncio.Task[None]] = set()
        self._started = 0  # passes
        self._is_asked = self._is_draining = False
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self.queue_texts = 0  # waiting, not yet in a pass
        self._tokens = {False: 0, True: 0}  # of those, by is_bulk
        self._running_tokens = 0  # in passes
        self.backlog_s = {False: 0.0, True: 0.0}  # cost of what waits or runs, by is_bulk
        turns.join(self)

    @property
    def queue_tokens(self) -> int:
        """Tokens that wait."""
        return self._tokens[False] + self._tokens[True]

    @property
    def is_full(self) -> bool:
        """Whether a pass of what waits could not grow."""
        return max(self._tokens.values()) >= self.max_batch_tokens

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits or runs."""
        return not self._works

    def oldest_s(self) -> float:
        """How long the oldest waiting item has waited, in seconds."""
        now = self._clock()
        since = (
            work.since for key, line in self._lines.items() for work in line if work.is_waiting and work.is_bulk == key
        )
        return now - min(since, default=now)

    async def submit(
        self, items: Sequence[Item], *, within_s: float = math.inf, is_bulk: bool = False
    ) -> list[Answer[Result]]:
        """Wait until every item has its answer, in order; an item's failure is its own answer.

        All items are accepted or none: raises what admit() raises. A caller that is cancelled, because it has left or
        its deadline is over, takes along what still waits.
        """
        self.admit(sum(item.tokens for item in items), len(items), within_s, is_bulk=is_bulk)
        loop = asyncio.get_running_loop()
        request: _Request[Result] = _Request([None] * len(items), loop.create_future(), self._clock(), len(items))
        works = [self._enqueue(item, request, index, is_bulk) for index, item in enumerate(items)]
        if not works:
            return []
        if not self._is_asked:  # once for all that arrives in this round of the event loop
            self._is_asked = True
            loop.call_soon(self._ask)
        try:
            await request.done
        except BaseException:
            self._leave(request, works)
            raise
        return [answer for answer in request.answers if answer is not None]

    def admit(self, tokens: int, rows: int, within_s: float = math.inf, *, is_bulk: bool = False) -> None:
        """Whether rows with so many tokens in all would be answered within so many seconds: returns, or raises.

        Overloaded where they would not, or where they do not fit into the queue; NotReady while draining. Where
        nothing waits or runs all is let in: the prediction may be wrong, and nothing would ever mend it.
        """
        if self._is_draining:
            raise NotReady("the server is stopping")
        if self._turns.is_idle:
            return
        late_s = self._turns.wait_s(self, self._cost_s(tokens, rows), is_bulk=is_bulk) - PREDICTED_WELL * within_s
        surplus = self.queue_tokens + tokens - self._max_queue_tokens
        does_not_fit = surplus > 0 and self.queue_tokens > 0
        if does_not_fit:
            late_s = max(late_s, self._turns.pace * self._cost_s(surplus, 0) / self._turns.at_once)
        if late_s > 0 or does_not_fit:
            raise Overloaded(max(1, math.ceil(late_s)))

    def _cost_s(self, tokens: int, rows: int) -> float:
        """Their share of the passes that they will be in, if those are full."""
        return self.cost.seconds(rows, tokens) - self.cost.pass_s * (1 - tokens / self.max_batch_tokens)

    def _enqueue(self, item: Item, request: _Request[Result], index: int, is_bulk: bool) -> _Work[Item, Result]:
        """Queue the item, or join those who wait for an equal one."""
        work = self._works.get(item.key)
        if work is None:
            work = _Work(item, request.since, self._cost_s(item.tokens, 1), is_bulk)
            self._works[item.key] = work
            self._lines[is_bulk].append(work)
            self._is_empty.clear()
            self.backlog_s[is_bulk] += work.cost_s
            self.queue_texts += 1
            self._tokens[is_bulk] += item.tokens
        elif work.is_waiting and work.is_bulk and not is_bulk:
            self._relieve(work)
            self._tokens[True] -= item.tokens
            work.is_bulk = False
            self._tokens[False] += item.tokens
            self.backlog_s[False] += work.cost_s
            self._lines[False].append(work)  # and passed over where it stood
        work.callers.append((request, index))
        return work

    def _leave(self, request: _Request[Result], works: Iterable[_Work[Item, Result]]) -> None:
        """Forget what nobody waits for any more; what is in a pass is computed."""
        request.done.cancel()
        for work in works:
            if work.is_waiting and not work.is_wanted:
                self._uncount(work)
                self._close(work)

    def _uncount(self, work: _Work[Item, Result]) -> None:
        """It waits no longer: it is in a pass, or nobody wants it."""
        work.is_waiting = False
        self.queue_texts -= 1
        self._tokens[work.is_bulk] -= work.item.tokens

    def _close(self, work: _Work[Item, Result]) -> None:
        """It neither waits nor runs."""
        self._relieve(work)
        del self._works[work.item.key]
        if not self._works:
            self._is_empty.set()

    def _relieve(self, work: _Work[Item, Result]) -> None:
        left = self.backlog_s[work.is_bulk] - work.cost_s
        self.backlog_s[work.is_bulk] = left if left > NOTHING_S else 0.0

    def _ask(self) -> None:
        self._is_asked = False
        if self.queue_texts:
            self._turns.ask(self)

    def start_pass(self) -> None:
        """Start a pass of what waits. Called by Turns, while something does."""
        self._started += 1
        is_bulk = self._started % BULK_TURN == 0
        chosen = self._take(is_bulk) or self._take(not is_bulk)
        task = asyncio.create_task(self._pass(chosen, self._turns.begin()))
        self._passes.add(task)
        task.add_done_callback(self._passes.discard)

    def _take(self, is_bulk: bool) -> list[_Work[Item, Result]]:
        """Remove the next pass from the head of a line."""
        line = self._lines[is_bulk]
        head: list[_Work[Item, Result]] = []
        share = even_share(self.queue_tokens, self._running_tokens, self._turns.at_once, self.cost)
        budget = min(self.max_batch_tokens, share)
        tokens, looked_at = 0, math.inf if self._is_padded else LOOKED_AT * budget
        while line and len(head) < PLANNED_ITEMS and tokens < looked_at:
            work = line.popleft()
            if work.is_waiting and work.is_bulk == is_bulk:
                head.append(work)
                tokens += work.item.tokens
        aged = self._clock() - AGED_S
        plan = plan_pass(
            [work.item.tokens for work in head],
            budget,
            is_padded=self._is_padded,
            aged=sum(work.since < aged for work in head),
        )
        for i in plan:
            self._uncount(head[i])
            self._running_tokens += head[i].item.tokens
        line.extendleft(work for work in reversed(head) if work.is_waiting)
        return [head[i] for i in plan]

    async def _pass(self, chosen: list[_Work[Item, Result]], name: int) -> None:
        """Compute one pass, let the next begin, answer, and tell whoever counts."""
        start = self._clock()
        results, error = await self._results([work.item for work in chosen])
        lengths = [work.item.tokens for work in chosen]
        self._running_tokens -= sum(lengths)
        forward_s = self._turns.end(name, self.cost.seconds(len(chosen), sum(lengths)) if error is None else 0.0)
        for work in chosen:
            self._close(work)
        self._turns.next()
        queue_s = []
        for work, result in zip(chosen, results, strict=True):
            for request, index in work.callers:
                queue_s.append(max(0.0, start - request.since))
                request.answer(index, Answer(result, queue_s[-1], forward_s))
        self._on_pass(PassFigures(lengths, forward_s, queue_s, error))

    async def _results(self, items: Sequence[Item]) -> tuple[list[Result | ServiceError], Exception | None]:
        """A result per item and what went wrong; a pass that fails is halved until the culprit is alone."""
        try:
            results = list(await self._run(list(items)))
            if len(results) != len(items):
                raise RuntimeError(f"a pass of {len(items)} items has another number of results: {len(results)}")
        except Exception as error:  # whatever the device raises
            if len(items) == 1:
                return [Failed()], error
            half = len(items) // 2
            first, _ = await self._results(items[:half])
            second, _ = await self._results(items[half:])
            return [*first, *second], error
        return results, None

    async def drain(self) -> None:
        """Accept nothing more; returns when what was accepted is answered."""
        self._is_draining = True
        await self._is_empty.wait()
        await asyncio.gather(*self._passes)

    def close(self) -> None:
        """Leave the device: nothing comes any more."""
        self._turns.leave(self)
