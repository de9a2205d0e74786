"""The batcher: every answer belongs to its item, nobody is lost, nobody waits for ever."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from batched import BUDGET, Device, Item, batcher, in_time, submitted
from hypothesis import given
from hypothesis import strategies as st

from service.batching import PLANNED_ITEMS, Answer, Batcher
from service.errors import Failed, NotReady, Overloaded
from service.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Sequence

lengths = st.lists(st.integers(1, 120), min_size=1, max_size=30)


@given(st.lists(st.tuples(lengths, st.booleans(), st.booleans()), min_size=1, max_size=12))
@in_time
async def test_whoever_stays_gets_the_answers_of_its_own_items(requests: list[tuple[list[int], bool, bool]]) -> None:
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


@in_time
async def test_the_next_pass_is_what_waits_when_the_device_becomes_free() -> None:
    device = Device(is_free=False)
    queue = batcher(device)
    tasks = [await submitted(queue, [Item(0, 5)])]
    tasks += [asyncio.create_task(queue.submit([Item(n, 5)])) for n in range(1, 6)]
    await asyncio.sleep(0.01)
    device.free.set()
    await asyncio.gather(*tasks)
    assert [[item.name for item in items] for items in device.passes] == [[0], [1, 2, 3, 4, 5]]
    await queue.drain()


@in_time
async def test_items_of_a_caller_that_left_cost_no_pass() -> None:
    device = Device(is_free=False)
    queue = batcher(device)
    first = await submitted(queue, [Item(0, 5)])
    leaver, stayer = (asyncio.create_task(queue.submit([Item(n, 5)])) for n in (1, 2))
    await asyncio.sleep(0.01)
    leaver.cancel()
    device.free.set()
    [answer] = await stayer
    assert answer.result == 2
    await first
    assert [[item.name for item in items] for items in device.passes] == [[0], [2]]
    await queue.drain()


@in_time
async def test_a_text_that_fails_fails_alone() -> None:
    queue = batcher(Device())
    answers = await queue.submit([Item(0, 5), Item(1, 5, poison=True), Item(2, 5)])
    assert [a.result for a in answers if not isinstance(a.result, Failed)] == [0, 2]
    assert isinstance(answers[1], Answer)
    assert isinstance(answers[1].result, Failed)
    await queue.drain()


@in_time
async def test_over_the_queue_a_request_is_refused_whole_with_a_time_to_come_back() -> None:
    device = Device()
    queue = batcher(device, max_queue_tokens=BUDGET)
    await queue.submit([Item(0, 10)])
    device.free.clear()
    running = await submitted(queue, [Item(1, 10)])
    waiting = await submitted(queue, [Item(2, 90)])
    with pytest.raises(Overloaded) as refused:
        await queue.submit([Item(3, 5), Item(4, 6)])
    assert int(refused.value.headers["Retry-After"]) >= 1
    fits = await submitted(queue, [Item(5, 10)])
    device.free.set()
    assert [answers[0].result for answers in await asyncio.gather(running, waiting, fits)] == [1, 2, 5]
    await queue.drain()


@in_time
async def test_draining_answers_what_was_accepted_and_accepts_nothing_more() -> None:
    device = Device(is_free=False)
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


@in_time
async def test_an_item_over_the_budget_runs_alone() -> None:
    device = Device()
    queue = batcher(device, max_queue_tokens=BUDGET)
    answers = await queue.submit([Item(0, 5), Item(1, 5 * BUDGET), Item(2, 5)])
    assert [answer.result for answer in answers] == [0, 1, 2]
    assert [1] in [[item.name for item in items] for items in device.passes]
    await queue.drain()


@in_time
async def test_one_bad_text_among_many_costs_few_passes() -> None:
    device = Device()
    queue = batcher(device)
    answers = await queue.submit([Item(n, 1, poison=n == 37) for n in range(64)])
    assert [n for n, answer in enumerate(answers) if isinstance(answer.result, Failed)] == [37]
    assert len(device.passes) <= 1 + 2 * 6
    await queue.drain()


@in_time
async def test_a_device_that_returns_too_few_answers_strands_nobody() -> None:
    async def run(items: Sequence[Item]) -> list[int]:
        return []

    queue: Batcher[Item, int] = Batcher(run, turns=Turns(), max_batch_tokens=BUDGET, max_queue_tokens=1000)
    answers = await queue.submit([Item(0, 5), Item(1, 5)])
    assert all(isinstance(answer.result, Failed) for answer in answers)
    await queue.drain()


@in_time
async def test_a_metric_that_fails_strands_nobody() -> None:
    def broken(figures: object) -> None:
        raise RuntimeError("metrics")

    device = Device()
    queue: Batcher[Item, int] = Batcher(
        device.run, turns=device.turns, max_batch_tokens=5, max_queue_tokens=1000, on_pass=broken
    )
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    answers = await queue.submit([Item(n, 5) for n in range(3)])
    assert [answer.result for answer in answers] == [0, 1, 2]


@in_time
async def test_a_caller_that_left_no_longer_counts_against_the_queue() -> None:
    device = Device(is_free=False)
    queue = batcher(device, max_queue_tokens=BUDGET)
    running = await submitted(queue, [Item(0, 5)])
    leaver = await submitted(queue, [Item(1, 90)])
    leaver.cancel()
    await asyncio.sleep(0.01)
    assert queue.queue_tokens == 0
    stayer = await submitted(queue, [Item(2, 90)])
    device.free.set()
    assert [answers[0].result for answers in await asyncio.gather(running, stayer)] == [0, 2]
    assert queue.queue_tokens == 0
    await queue.drain()


@in_time
async def test_whoever_waits_behind_a_long_line_of_leavers_is_answered() -> None:
    device = Device(is_free=False)
    queue = batcher(device)
    running = await submitted(queue, [Item(0, 5)])
    leaver = asyncio.create_task(queue.submit([Item(n, 1) for n in range(2 * PLANNED_ITEMS)]))
    stayer = await submitted(queue, [Item(-1, 5)])
    leaver.cancel()
    await asyncio.sleep(0.01)
    device.free.set()
    assert [answers[0].result for answers in await asyncio.gather(running, stayer)] == [0, -1]
    await queue.drain()
