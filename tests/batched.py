"""A batcher over a device that waits for its test."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.batching import Answer, Batcher
from service.planning import Cost
from service.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

BUDGET = 100


@dataclass(frozen=True)
class Item:
    """A text that the fake device answers with its own name; a poisoned one fails the whole pass."""

    name: int
    tokens: int
    poison: bool = False

    @property
    def key(self) -> int:
        return self.name


class Device:
    """Answers passes when it is let, and remembers them."""

    def __init__(self, *, is_free: bool = True) -> None:
        self.passes: list[list[Item]] = []
        self.free = asyncio.Event()
        if is_free:
            self.free.set()
        self.turns = Turns()

    async def run(self, items: Sequence[Item]) -> list[int]:
        self.passes.append(list(items))
        await self.free.wait()
        if any(item.poison for item in items):
            raise RuntimeError("device")
        return [item.name for item in items]


def in_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """An async test; one that hangs has lost somebody."""

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**arguments), 20))

    return run


def batcher(device: Device, max_queue_tokens: int = 100_000) -> Batcher[Item, int]:
    return Batcher(device.run, turns=device.turns, max_batch_tokens=BUDGET, max_queue_tokens=max_queue_tokens)


def clocked(device: Device, seconds: list[float]) -> Batcher[Item, int]:
    """A queue whose clock is the last of seconds, on a device that takes 10 ms a token."""
    device.turns = Turns(clock=lambda: seconds[-1])
    queue = batcher(device)
    queue.cost = Cost(0.0, 0.0, 0.01)
    return queue


async def submitted(queue: Batcher[Item, int], items: list[Item], **options: Any) -> asyncio.Task[list[Answer[int]]]:
    """Who waits for the answers, once the queue has seen the items."""
    waiting = asyncio.create_task(queue.submit(items, **options))
    await asyncio.sleep(0.01)
    return waiting
