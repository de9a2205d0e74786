"""The batcher: every answer belongs to its item, nobody is lost, nobody waits for ever."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching import PLANNED_ITEMS, Answer, Batcher
from service.errors import Failed, NotReady, Overloaded
from service.planning import Cost
from service.turns import BULK_TURN, Turns

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

    @property
    def key(self) -> int:
        return self.name


class Device:
    """Answers passes when it is let, and remembers them."""

    def __init__(self) -> None:
        self.passes: list[list[Item]] = []
        self.free = asyncio.Event()
        self.free.set()
        self.turns = Turns()

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
    return Batcher(device.run, turns=device.turns, max_batch_tokens=BUDGET, max_queue_tokens=max_queue_tokens)


@given(st.lists(st.tuples(lengths, st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_whoever_stays_gets_the_answers_of_its_own_items(requests: list[tuple[list[int], bool, bool]]) -> None:
    async def test() -> None:
        device = Device()
        queue = batcher(device)
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
        await queue.drain()
        assert queue.queue_texts == queue.queue_tokens == 0

    with_batcher(test())


def test_the_next_pass_is_what_waits_when_the_device_becomes_free() -> None:
    async def test() -> None:
        device = Device()
        device.free.clear()
        queue = batcher(device)
        tasks = [asyncio.create_task(queue.submit([Item(0, 5)]))]
        await asyncio.sleep(0.01)
        tasks += [asyncio.create_task(queue.submit([Item(n, 5)])) for n in range(1, 6)]
        await asyncio.sleep(0.01)
        device.free.set()
        await asyncio.gather(*tasks)
        assert [[item.name for item in items] for items in device.passes] == [[0], [1, 2, 3, 4, 5]]
        await queue.drain()

    with_batcher(test())


def test_items_of_a_caller_that_left_cost_no_pass() -> None:
    async def test() -> None:
        device = Device()
        device.free.clear()
        queue = batcher(device)
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
        await queue.drain()

    with_batcher(test())


def test_a_text_that_fails_fails_alone() -> None:
    async def test() -> None:
        queue = batcher(Device())
        answers = await queue.submit([Item(0, 5), Item(1, 5, poison=True), Item(2, 5)])
        assert [a.result for a in answers if not isinstance(a.result, Failed)] == [0, 2]
        assert isinstance(answers[1], Answer)
        assert isinstance(answers[1].result, Failed)
        await queue.drain()

    with_batcher(test())


def test_over_the_queue_a_request_is_refused_whole_with_a_time_to_come_back() -> None:
    async def test() -> None:
        device = Device()
        queue = batcher(device, max_queue_tokens=BUDGET)
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
        await queue.drain()

    with_batcher(test())


def test_draining_answers_what_was_accepted_and_accepts_nothing_more() -> None:
    async def test() -> None:
        device = Device()
        device.free.clear()
        queue = batcher(device)
        accepted = [asyncio.create_task(queue.submit([Item(n, 60)])) for n in range(3)]
        await asyncio.sleep(0.01)
        draining = asyncio.create_task(queue.drain())
        await asyncio.sleep(0.01)
        with pytest.raises(NotReady):
            await queue.submit([Item(9, 1)])
        device.free.set()
        assert [answers[0].result for answers in await asyncio.gather(*accepted)] == [0, 1, 2]
        await draining

    with_batcher(test())


def test_an_item_over_the_budget_runs_alone() -> None:
    async def test() -> None:
        device = Device()
        queue = batcher(device, max_queue_tokens=BUDGET)
        answers = await queue.submit([Item(0, 5), Item(1, 5 * BUDGET), Item(2, 5)])
        assert [answer.result for answer in answers] == [0, 1, 2]
        assert [1] in [[item.name for item in items] for items in device.passes]
        await queue.drain()

    with_batcher(test())


def test_one_bad_text_among_many_costs_few_passes() -> None:
    async def test() -> None:
        device = Device()
        queue = batcher(device)
        answers = await queue.submit([Item(n, 1, poison=n == 37) for n in range(64)])
        assert [n for n, answer in enumerate(answers) if isinstance(answer.result, Failed)] == [37]
        assert len(device.passes) <= 1 + 2 * 6
        await queue.drain()

    with_batcher(test())


def test_a_device_that_returns_too_few_answers_strands_nobody() -> None:
    async def run(items: Sequence[Item]) -> list[int]:
        return []

    async def test() -> None:
        queue: Batcher[Item, int] = Batcher(run, turns=Turns(), max_batch_tokens=BUDGET, max_queue_tokens=1000)
        answers = await queue.submit([Item(0, 5), Item(1, 5)])
        assert all(isinstance(answer.result, Failed) for answer in answers)
        await queue.drain()

    with_batcher(test())


def test_a_metric_that_fails_strands_nobody() -> None:
    def broken(figures: object) -> None:
        raise RuntimeError("metrics")

    async def test() -> None:
        device = Device()
        queue: Batcher[Item, int] = Batcher(
            device.run, turns=device.turns, max_batch_tokens=5, max_queue_tokens=1000, on_pass=broken
        )
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        answers = await queue.submit([Item(n, 5) for n in range(3)])
        assert [answer.result for answer in answers] == [0, 1, 2]

    with_batcher(test())


def test_a_caller_that_left_no_longer_counts_against_the_queue() -> None:
    async def test() -> None:
        device = Device()
        device.free.clear()
        queue = batcher(device, max_queue_tokens=BUDGET)
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
        await queue.drain()

    with_batcher(test())


def test_whoever_waits_behind_a_long_line_of_leavers_is_answered() -> None:
    async def test() -> None:
        device = Device()
        device.free.clear()
        queue = batcher(device)
        running = asyncio.create_task(queue.submit([Item(0, 5)]))
        await asyncio.sleep(0.01)
        leaver = asyncio.create_task(queue.submit([Item(n, 1) for n in range(2 * PLANNED_ITEMS)]))
        stayer = asyncio.create_task(queue.submit([Item(-1, 5)]))
        await asyncio.sleep(0.01)
        leaver.cancel()
        await asyncio.sleep(0.01)
        device.free.set()
        assert [answers[0].result for answers in await asyncio.gather(running, stayer)] == [0, -1]
        await queue.drain()

    with_batcher(test())


def test_equal_texts_in_flight_are_computed_once_and_answered_each() -> None:
    async def test() -> None:
        device = Device()
        device.free.clear()
        queue = batcher(device)
        running = asyncio.create_task(queue.submit([Item(0, 5)]))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(queue.submit([Item(0, 5), Item(1, 5), Item(1, 5)])) for _ in range(2)]
        await asyncio.sleep(0.01)
        assert queue.queue_tokens == 5
        others.pop().cancel()
        device.free.set()
        assert [answer.result for answer in await others[0]] == [0, 1, 1]
        await running
        assert [[item.name for item in items] for items in device.passes] == [[0], [1]]
        await queue.drain()

    with_batcher(test())


def test_a_text_of_one_does_not_wait_for_a_request_of_thousands() -> None:
    async def test() -> None:
        device = Device()
        queue = batcher(device)
        bulk = asyncio.create_task(queue.submit([Item(n, 10) for n in range(1000)], is_bulk=True))
        await asyncio.sleep(0)
        for n in range(8):
            passes = len(device.passes)
            [answer] = await queue.submit([Item(10_000 + n, 10)])
            assert answer.result == 10_000 + n
            assert len(device.passes) - passes <= 4  # one that runs, perhaps bulk's turn, its own, the next
        assert not bulk.done()
        await bulk
        await queue.drain()

    with_batcher(test())


def test_bulk_has_its_turns_however_many_others_come() -> None:
    async def test() -> None:
        device = Device()
        queue = batcher(device)
        names = iter(range(10_000))
        more = True

        async def busy() -> None:
            while more:
                await queue.submit([Item(next(names), BUDGET)])

        others = [asyncio.create_task(busy()) for _ in range(10)]
        await asyncio.sleep(0.01)
        passes = len(device.passes)
        await queue.submit([Item(-1 - n, BUDGET) for n in range(5)], is_bulk=True)
        assert len(device.passes) - passes <= (5 + 1) * BULK_TURN
        more = False
        await asyncio.gather(*others)
        await queue.drain()

    with_batcher(test())


def test_an_interactive_caller_does_not_wait_in_bulks_line_for_an_equal_text() -> None:
    async def test() -> None:
        device = Device()
        queue = batcher(device)
        bulk = asyncio.create_task(queue.submit([Item(n, BUDGET) for n in range(50)], is_bulk=True))
        await asyncio.sleep(0)
        await queue.submit([Item(49, BUDGET)])
        assert len(device.passes) <= 3
        await bulk
        assert len(device.passes) == 50
        await queue.drain()

    with_batcher(test())


def clocked(device: Device, seconds: list[float]) -> Batcher[Item, int]:
    """A queue whose clock is the last of seconds, on a device that takes 10 ms a token."""
    device.turns = Turns(clock=lambda: seconds[-1])
    queue = batcher(device)
    queue.cost = Cost(0.0, 0.0, 0.01)
    return queue


def test_a_deadline_that_cannot_be_met_is_refused_at_once_and_one_that_can_is_not() -> None:
    async def test() -> None:
        device = Device()
        device.free.clear()
        queue = clocked(device, [0.0])
        accepted = [asyncio.create_task(queue.submit([Item(n, 100)], within_s=60)) for n in range(5)]  # 5 s of work
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded) as refused:
            await queue.submit([Item(8, 100)], within_s=4)
        assert refused.value.headers["Retry-After"] == "4"  # 6 s, where half of 4 s are promised
        accepted.append(asyncio.create_task(queue.submit([Item(9, 100)], within_s=14)))
        await asyncio.sleep(0.01)
        device.free.set()
        await asyncio.gather(*accepted)
        await queue.drain()

    with_batcher(test())


def test_an_idle_device_refuses_nobody_however_slow_it_was() -> None:
    async def test() -> None:
        device, seconds = Device(), [0.0]
        device.free.clear()
        queue = clocked(device, seconds)
        slow = asyncio.create_task(queue.submit([Item(0, 10)]))
        await asyncio.sleep(0.01)
        seconds.append(1000.0)
        device.free.set()
        await slow
        assert device.turns.pace > 1
        [answer] = await queue.submit([Item(1, 100)], within_s=0.001)
        assert answer.result == 1
        await queue.drain()

    with_batcher(test())


def test_interactive_texts_are_not_refused_for_the_bulk_that_they_pass() -> None:
    async def test() -> None:
        device = Device()
        device.free.clear()
        queue = clocked(device, [0.0])
        bulk = asyncio.create_task(queue.submit([Item(n, 10) for n in range(900)], is_bulk=True))  # 90 s of work
        await asyncio.sleep(0.01)
        soon = asyncio.create_task(queue.submit([Item(1000, 10)], within_s=5))
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded):
            await queue.submit([Item(1001, 10)], within_s=5, is_bulk=True)
        device.free.set()
        await asyncio.gather(soon, bulk)
        await queue.drain()

    with_batcher(test())


def test_several_queues_of_a_device_take_turns() -> None:
    async def test() -> None:
        device = Device()
        one, two = batcher(device), batcher(device)
        ours, theirs = (
            asyncio.create_task(queue.submit([Item(base + n, BUDGET) for n in range(5)]))
            for queue, base in ((one, 0), (two, 100))
        )
        await asyncio.gather(ours, theirs)
        assert [items[0].name // 100 for items in device.passes][1:9] == [0, 1] * 4
        await asyncio.gather(one.drain(), two.drain())
        assert device.turns.is_idle

    with_batcher(test())


def test_only_a_full_pass_is_prepared_while_another_runs() -> None:
    async def test() -> None:
        device = Device()
        device.free.clear()
        device.turns = Turns(prepared=1)
        queue = batcher(device)
        tasks = [asyncio.create_task(queue.submit([Item(0, 10)]))]
        await asyncio.sleep(0.01)
        tasks.append(asyncio.create_task(queue.submit([Item(1, BUDGET - 1)])))
        await asyncio.sleep(0.01)
        assert len(device.passes) == 1
        tasks.append(asyncio.create_task(queue.submit([Item(2, 1), Item(3, 1)])))
        await asyncio.sleep(0.01)
        assert [item.name for item in device.passes[-1]] == [1, 2]
        device.free.set()
        await asyncio.gather(*tasks)
        await queue.drain()

    with_batcher(test())


def test_a_text_of_one_queue_has_its_turn_though_another_is_always_full() -> None:
    async def test() -> None:
        device = Device()
        device.turns = Turns(prepared=1)
        full, small = batcher(device), batcher(device)
        flood = asyncio.create_task(full.submit([Item(n, BUDGET) for n in range(200)]))
        await asyncio.sleep(0)
        passes = len(device.passes)
        await small.submit([Item(1000, 1)])
        assert len(device.passes) - passes <= 10
        assert not flood.done()
        await flood
        await asyncio.gather(full.drain(), small.drain())

    with_batcher(test())


def test_a_queue_is_not_closed_by_what_floods_another() -> None:
    async def test() -> None:
        device = Device()
        device.free.clear()
        flooded = clocked(device, [0.0])
        other = batcher(device)
        other.cost = flooded.cost
        accepted = [asyncio.create_task(flooded.submit([Item(n, 100) for n in range(60)]))]  # a minute of work
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded):
            flooded.admit(10, 1, within_s=10)
        accepted.append(asyncio.create_task(other.submit([Item(1000, 10)], within_s=10)))
        await asyncio.sleep(0.01)
        device.free.set()
        await asyncio.gather(*accepted)
        await asyncio.gather(flooded.drain(), other.drain())

    with_batcher(test())
