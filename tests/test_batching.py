"""The batcher: every answer belongs to its item, nobody is lost, nobody waits for ever."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching import PLANNED_ITEMS, Answer, Batcher, plan_pass
from service.errors import Failed, NotReady, Overloaded

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

BUDGET = 100
lengths = st.lists(st.integers(1, 120), min_size=1, max_size=30)


@dataclass(frozen=True)
class Item:
    """A text that the fake device answers with its own name; a poisoned one fails the whole pass."""

    name: int
    tokens: int
    poison: bool = False


class Device:
    """Answers passes when it is let, and remembers them."""

    def __init__(self) -> None:
        self.passes: list[list[Item]] = []
        self.free = asyncio.Event()
        self.free.set()

    async def run(self, items: Sequence[Item]) -> list[int]:
        self.passes.append(list(items))
        await self.free.wait()
        if any(item.poison for item in items):
            raise RuntimeError("device")
        return [item.name for item in items]


def with_batcher(test: Coroutine[None, None, None]) -> None:
    """Run an async test; one that hangs has lost somebody."""
    asyncio.run(asyncio.wait_for(test, 20))


def batcher(device: Device, max_queue_tokens: int = 100_000) -> Batcher[Item, int]:
    return Batcher(device.run, max_batch_tokens=BUDGET, max_queue_tokens=max_queue_tokens)


@given(lengths, st.integers(1, 200))
def test_a_pass_takes_the_oldest_and_keeps_its_budget(tokens: list[int], budget: int) -> None:
    chosen = plan_pass(tokens, budget)
    assert 0 in chosen
    assert len(chosen) == len(set(chosen))
    assert len(chosen) == 1 or len(chosen) * max(tokens[i] for i in chosen) <= budget


def test_a_pass_groups_like_lengths() -> None:
    assert sorted(plan_pass([10, 50, 11, 48, 9], 33)) == [0, 2, 4]


@given(st.lists(st.tuples(lengths, st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_whoever_stays_gets_the_answers_of_its_own_items(requests: list[tuple[list[int], bool, bool]]) -> None:
    async def test() -> None:
        device = Device()
        queue = batcher(device)
        loop = asyncio.create_task(queue.main_loop())
        asked, tasks = [], []
        for n, (tokens, poison, _) in enumerate(requests):
            items = [Item(1000 * n + i, t, poison and i == 0) for i, t in enumerate(tokens)]
            asked.append(items)
            tasks.append(asyncio.create_task(queue.submit(items)))
            await asyncio.sleep(0)
        for task, (_, _, leaves) in zip(tasks, requests, strict=True):
            if leaves:
                task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for items, outcome, (_, _, leaves) in zip(asked, outcomes, requests, strict=True):
            if isinstance(outcome, BaseException):
                assert leaves
                continue
            for item, answer in zip(items, outcome, strict=True):
                assert isinstance(answer.result, Failed) if item.poison else answer.result == item.name
        queue.drain()
        await loop
        assert queue.queue_texts == queue.queue_tokens == 0

    with_batcher(test())


def test_the_next_pass_is_what_waits_when_the_device_becomes_free() -> None:
    async def test() -> None:
        device = Device()
        device.free.clear()
        queue = batcher(device)
        loop = asyncio.create_task(queue.main_loop())
        tasks = [asyncio.create_task(queue.submit([Item(0, 5)]))]
        await asyncio.sleep(0.01)
        tasks += [asyncio.create_task(queue.submit([Item(n, 5)])) for n in range(1, 6)]
        await asyncio.sleep(0.01)
        device.free.set()
        await asyncio.gather(*tasks)
        assert [[item.name for item in items] for items in device.passes] == [[0], [1, 2, 3, 4, 5]]
        queue.drain()
        await loop

    with_batcher(test())


def test_items_of_a_caller_that_left_cost_no_pass() -> None:
    async def test() -> None:
        device = Device()
        device.free.clear()
        queue = batcher(device)
        loop = asyncio.create_task(queue.main_loop())
        first = asyncio.create_task(queue.submit([Item(0, 5)]))
        await asyncio.sleep(0.01)
        leaver, stayer = (asyncio.create_task(queue.submit([Item(n, 5)])) for n in (1, 2))
        await asyncio.sleep(0.01)
        leaver.cancel()
        device.free.set()
        [answer] = await stayer
        assert answer.result == 2
        await first
        assert [[item.name for item in items] for items in device.passes] == [[0], [2]]
        queue.drain()
        await loop

    with_batcher(test())


def test_a_text_that_fails_fails_alone() -> None:
    async def test() -> None:
        queue = batcher(Device())
        loop = asyncio.create_task(queue.main_loop())
        answers = await queue.submit([Item(0, 5), Item(1, 5, poison=True), Item(2, 5)])
        assert [a.result for a in answers if not isinstance(a.result, Failed)] == [0, 2]
        assert isinstance(answers[1], Answer)
        assert isinstance(answers[1].result, Failed)
        queue.drain()
        await loop

    with_batcher(test())


def test_over_the_queue_a_request_is_refused_whole_with_a_time_to_come_back() -> None:
    async def test() -> None:
        device = Device()
        queue = batcher(device, max_queue_tokens=BUDGET)
        loop = asyncio.create_task(queue.main_loop())
        await queue.submit([Item(0, 10)])
        device.free.clear()
        running = asyncio.create_task(queue.submit([Item(1, 10)]))
        await asyncio.sleep(0.01)
        waiting = asyncio.create_task(queue.submit([Item(2, 90)]))
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded) as refused:
            await queue.submit([Item(3, 5), Item(4, 6)])
        assert int(refused.value.headers["Retry-After"]) >= 1
        fits = asyncio.create_task(queue.submit([Item(5, 10)]))
        await asyncio.sleep(0.01)
        device.free.set()
        assert [answers[0].result for answers in await asyncio.gather(running, waiting, fits)] == [1, 2, 5]
        queue.drain()
        await loop

    with_batcher(test())


def test_draining_answers_what_was_accepted_and_accepts_nothing_more() -> None:
    async def test() -> None:
        device = Device()
        device.free.clear()
        queue = batcher(device)
        loop = asyncio.create_task(queue.main_loop())
        accepted = [asyncio.create_task(queue.submit([Item(n, 60)])) for n in range(3)]
        await asyncio.sleep(0.01)
        queue.drain()
        with pytest.raises(NotReady):
            await queue.submit([Item(9, 1)])
        device.free.set()
        assert [answers[0].result for answers in await asyncio.gather(*accepted)] == [0, 1, 2]
        await loop

    with_batcher(test())


def test_an_item_over_the_budget_runs_alone() -> None:
    async def test() -> None:
        device = Device()
        queue = batcher(device, max_queue_tokens=BUDGET)
        loop = asyncio.create_task(queue.main_loop())
        answers = await queue.submit([Item(0, 5), Item(1, 5 * BUDGET), Item(2, 5)])
        assert [answer.result for answer in answers] == [0, 1, 2]
        assert [1] in [[item.name for item in items] for items in device.passes]
        queue.drain()
        await loop

    with_batcher(test())


def test_one_bad_text_among_many_costs_few_passes() -> None:
    async def test() -> None:
        device = Device()
        queue = batcher(device)
        loop = asyncio.create_task(queue.main_loop())
        answers = await queue.submit([Item(n, 1, poison=n == 37) for n in range(64)])
        assert [n for n, answer in enumerate(answers) if isinstance(answer.result, Failed)] == [37]
        assert len(device.passes) <= 1 + 2 * 6
        queue.drain()
        await loop

    with_batcher(test())


def test_a_device_that_returns_too_few_answers_strands_nobody() -> None:
    async def run(items: Sequence[Item]) -> list[int]:
        return []

    async def test() -> None:
        queue: Batcher[Item, int] = Batcher(run, max_batch_tokens=BUDGET, max_queue_tokens=1000)
        loop = asyncio.create_task(queue.main_loop())
        answers = await queue.submit([Item(0, 5), Item(1, 5)])
        assert all(isinstance(answer.result, Failed) for answer in answers)
        queue.drain()
        await loop

    with_batcher(test())


def test_should_the_loop_end_nobody_is_left_waiting() -> None:
    def broken(figures: object) -> None:
        raise RuntimeError("metrics")

    async def test() -> None:
        device = Device()
        device.free.clear()
        queue: Batcher[Item, int] = Batcher(device.run, max_batch_tokens=5, max_queue_tokens=1000, on_pass=broken)
        loop = asyncio.create_task(queue.main_loop())
        tasks = [asyncio.create_task(queue.submit([Item(n, 5)])) for n in range(3)]
        await asyncio.sleep(0.01)
        device.free.set()
        results = [answers[0].result for answers in await asyncio.gather(*tasks)]
        assert results[0] == 0
        assert all(isinstance(result, Failed) for result in results[1:])
        with pytest.raises(RuntimeError, match="metrics"):
            await loop

    with_batcher(test())


def test_a_caller_that_left_no_longer_counts_against_the_queue() -> None:
    async def test() -> None:
        device = Device()
        device.free.clear()
        queue = batcher(device, max_queue_tokens=BUDGET)
        loop = asyncio.create_task(queue.main_loop())
        running = asyncio.create_task(queue.submit([Item(0, 5)]))
        await asyncio.sleep(0.01)
        leaver = asyncio.create_task(queue.submit([Item(1, 90)]))
        await asyncio.sleep(0.01)
        leaver.cancel()
        await asyncio.sleep(0.01)
        assert queue.queue_tokens == 0
        stayer = asyncio.create_task(queue.submit([Item(2, 90)]))
        await asyncio.sleep(0.01)
        device.free.set()
        assert [answers[0].result for answers in await asyncio.gather(running, stayer)] == [0, 2]
        assert queue.queue_tokens == 0
        queue.drain()
        await loop

    with_batcher(test())


def test_whoever_waits_behind_a_long_line_of_leavers_is_answered() -> None:
    async def test() -> None:
        device = Device()
        device.free.clear()
        queue = batcher(device)
        loop = asyncio.create_task(queue.main_loop())
        running = asyncio.create_task(queue.submit([Item(0, 5)]))
        await asyncio.sleep(0.01)
        leaver = asyncio.create_task(queue.submit([Item(n, 1) for n in range(2 * PLANNED_ITEMS)]))
        stayer = asyncio.create_task(queue.submit([Item(-1, 5)]))
        await asyncio.sleep(0.01)
        leaver.cancel()
        await asyncio.sleep(0.01)
        device.free.set()
        assert [answers[0].result for answers in await asyncio.gather(running, stayer)] == [0, -1]
        queue.drain()
        await loop

    with_batcher(test())
