"""Who goes before whom in a batcher, who is refused for lack of time, and how queues of one device take turns."""

from __future__ import annotations

import asyncio

import pytest
from batched import BUDGET, Device, Item, batcher, clocked, in_time, submitted

from service.errors import Overloaded
from service.planning import Cost
from service.turns import BULK_TURN, Turns


@in_time
async def test_equal_texts_in_flight_are_computed_once_and_answered_each() -> None:
    device = Device(is_free=False)
    queue = batcher(device)
    running = await submitted(queue, [Item(0, 5)])
    others = [asyncio.create_task(queue.submit([Item(0, 5), Item(1, 5), Item(1, 5)])) for _ in range(2)]
    await asyncio.sleep(0.01)
    assert queue.queue_tokens == 5
    others.pop().cancel()
    device.free.set()
    assert [answer.result for answer in await others[0]] == [0, 1, 1]
    await running
    assert [[item.name for item in items] for items in device.passes] == [[0], [1]]
    await queue.drain()


@in_time
async def test_a_text_of_one_does_not_wait_for_a_request_of_thousands() -> None:
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


@in_time
async def test_bulk_has_its_turns_however_many_others_come() -> None:
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


@in_time
async def test_an_interactive_caller_does_not_wait_in_bulks_line_for_an_equal_text() -> None:
    device = Device()
    queue = batcher(device)
    bulk = asyncio.create_task(queue.submit([Item(n, BUDGET) for n in range(50)], is_bulk=True))
    await asyncio.sleep(0)
    await queue.submit([Item(49, BUDGET)])
    assert len(device.passes) <= 3
    await bulk
    assert len(device.passes) == 50
    await queue.drain()


@in_time
async def test_a_burst_is_shared_by_the_passes_that_run_at_once() -> None:
    device = Device(is_free=False)
    device.turns = Turns(at_once=2)
    queue = batcher(device)
    queue.cost = Cost(0.0, 0.0, 0.01)
    burst = await submitted(queue, [Item(name, 10) for name in range(8)])
    assert [len(items) for items in device.passes] == [4, 4]
    later = await submitted(queue, [Item(8, 10)])
    device.free.set()
    assert [answer.result for answer in await burst] == list(range(8))
    assert [answer.result for answer in await later] == [8]


@in_time
async def test_a_deadline_that_cannot_be_met_is_refused_at_once_and_one_that_can_is_not() -> None:
    device = Device(is_free=False)
    queue = clocked(device, [0.0])
    accepted = [asyncio.create_task(queue.submit([Item(n, 100)], within_s=60)) for n in range(5)]  # 5 s of work
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded) as refused:
        await queue.submit([Item(8, 100)], within_s=4)
    assert refused.value.headers["Retry-After"] == "4"  # 6 s, where half of 4 s are promised
    accepted.append(await submitted(queue, [Item(9, 100)], within_s=14))
    device.free.set()
    await asyncio.gather(*accepted)
    await queue.drain()


@in_time
async def test_an_idle_device_refuses_nobody_however_slow_it_was() -> None:
    device, seconds = Device(is_free=False), [0.0]
    queue = clocked(device, seconds)
    slow = await submitted(queue, [Item(0, 10)])
    seconds.append(1000.0)
    device.free.set()
    await slow
    assert device.turns.pace > 1
    [answer] = await queue.submit([Item(1, 100)], within_s=0.001)
    assert answer.result == 1
    await queue.drain()


@in_time
async def test_interactive_texts_are_not_refused_for_the_bulk_that_they_pass() -> None:
    device = Device(is_free=False)
    queue = clocked(device, [0.0])
    bulk = await submitted(queue, [Item(n, 10) for n in range(900)], is_bulk=True)  # 90 s of work
    soon = await submitted(queue, [Item(1000, 10)], within_s=5)
    with pytest.raises(Overloaded):
        await queue.submit([Item(1001, 10)], within_s=5, is_bulk=True)
    device.free.set()
    await asyncio.gather(soon, bulk)
    await queue.drain()


@in_time
async def test_several_queues_of_a_device_take_turns() -> None:
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


@in_time
async def test_only_a_full_pass_is_prepared_while_another_runs() -> None:
    device = Device(is_free=False)
    device.turns = Turns(prepared=1)
    queue = batcher(device)
    tasks = [await submitted(queue, [Item(0, 10)])]
    tasks.append(await submitted(queue, [Item(1, BUDGET - 1)]))
    assert len(device.passes) == 1
    tasks.append(await submitted(queue, [Item(2, 1), Item(3, 1)]))
    assert [item.name for item in device.passes[-1]] == [1, 2]
    device.free.set()
    await asyncio.gather(*tasks)
    await queue.drain()


@in_time
async def test_a_text_of_one_queue_has_its_turn_though_another_is_always_full() -> None:
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


@in_time
async def test_a_queue_is_not_closed_by_what_floods_another() -> None:
    device = Device(is_free=False)
    flooded = clocked(device, [0.0])
    other = batcher(device)
    other.cost = flooded.cost
    accepted = [asyncio.create_task(flooded.submit([Item(n, 100) for n in range(60)]))]  # a minute of work
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded):
        flooded.admit(10, 1, within_s=10)
    accepted.append(await submitted(other, [Item(1000, 10)], within_s=10))
    device.free.set()
    await asyncio.gather(*accepted)
    await asyncio.gather(flooded.drain(), other.drain())
