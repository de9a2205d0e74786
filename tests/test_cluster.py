"""Replicas that come, go, break and are replaced, while requests keep coming: a real Ray."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from typing import TYPE_CHECKING

import aiohttp
import httpx
import pytest
from samples import GOOD, sentence
from server import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
WITHIN_S = 60.0
rng = random.Random(0)


def texts(number: int, words: int) -> dict[str, object]:
    """A request of so many texts that nobody else sends: equal ones would be computed once."""
    return {"texts": [sentence(rng, GOOD, words) for _ in range(number)]}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that names the process whose device is lost."""
    file = tmp_path_factory.mktemp("device") / "broken"
    file.write_text("none")
    return file


@pytest.fixture(scope="module")
def server(bundle_folder: Path, broken: Path) -> Iterator[Server]:
    scaling = ["--max-replicas", "2", "--scale-up-wait-s", "0.1", "--scale-down-after-s", "3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BROKEN", str(broken))
        started = Server(f"mood={bundle_folder}", *scaling, program=["-m", "tests.breakable"])
    with started as running:
        yield running


@contextlib.asynccontextmanager
async def load(
    server: Server, callers: int, number: int = 1, words: int = 5, pause_s: float = 0.0
) -> AsyncIterator[Counter[object]]:
    """Callers that ask again and again, without retries; what they get, and how often."""
    seen: Counter[object] = Counter()

    async def ask(session: aiohttp.ClientSession) -> None:
        while True:
            try:
                async with session.post(f"{server.url}/v1/classify", json=texts(number, words)) as response:
                    await response.read()
                    seen[response.status] += 1
            except aiohttp.ClientError as error:
                seen[repr(error)] += 1
            await asyncio.sleep(pause_s)

    async with aiohttp.ClientSession() as session:
        tasks = [asyncio.create_task(ask(session)) for _ in range(callers)]
        try:
            yield seen
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it is so."""
    end = time.monotonic() + WITHIN_S
    while not await is_so():
        assert time.monotonic() < end
        await asyncio.sleep(0.2)


def test_load_brings_a_replica_and_its_end_takes_it_away_and_no_request_fails(server: Server) -> None:
    async def replicas_are(number: int) -> bool:
        return len(await asyncio.to_thread(server.replicas)) == number

    async def run() -> None:
        health = []
        async with load(server, callers=4, pause_s=0.05) as light:
            async with load(server, callers=6, number=400, words=40) as heavy, aiohttp.ClientSession() as session:

                async def grown() -> bool:
                    for path in ("live", "ready"):
                        async with session.get(f"{server.url}/health/{path}") as response:
                            health.append(response.status)
                    return await replicas_are(2)

                await until(grown)
                await asyncio.sleep(5)  # until the second answers too
            await until(lambda: replicas_are(1))
            await asyncio.sleep(1)
        assert set(health) == {200}
        assert set(heavy) == {200}
        assert set(light) == {200}

    asyncio.run(run())


def test_overload_is_refused_and_makes_nothing_unhealthy(server: Server) -> None:
    async def run() -> None:
        health = set()
        async with load(server, callers=12, number=1000, words=40) as seen, aiohttp.ClientSession() as session:
            while seen[429] < 20:
                for path in ("live", "ready"):
                    async with session.get(f"{server.url}/health/{path}") as response:
                        health.add(response.status)
        assert health == {200}
        assert set(seen) == {200, 429}

    asyncio.run(run())


def test_new_settings_under_load_cost_no_request(server: Server) -> None:
    [before] = calm(server)

    async def run() -> None:
        async with load(server, callers=64, words=2, pause_s=0.1) as seen:
            assert server.process.stdin is not None
            print(json.dumps({"max_text_chars": 30}), file=server.process.stdin, flush=True)
            await asyncio.to_thread(server.wait_for, "deployed anew")

            async def is_gone() -> bool:
                return before not in await asyncio.to_thread(server.replicas)

            await until(is_gone)
            await asyncio.sleep(1)
        assert set(seen) == {200}
        assert seen[200] > 100

    asyncio.run(run())
    assert server.classify(["a" * 31]).status_code == 422


def test_a_replica_whose_device_is_lost_is_replaced(server: Server, broken: Path) -> None:
    [before] = calm(server)
    broken.write_text(str(before))
    assert server.classify(["a lovely film"]).json()["results"][0]["error"]["code"] == "failed"
    started = time.monotonic()
    while not server.replicas() or before in server.replicas() or not is_answered(server):
        assert time.monotonic() - started < WITHIN_S
        time.sleep(0.2)
    assert httpx.get(f"{server.url}/health/ready").status_code == 200


def calm(server: Server) -> list[int]:
    """The replicas, once there is only one left."""
    end = time.monotonic() + WITHIN_S
    while len(server.replicas()) > 1 and time.monotonic() < end:
        time.sleep(0.2)
    return server.replicas()


def is_answered(server: Server) -> bool:
    """Whether a request gets its answer."""
    with contextlib.suppress(httpx.TransportError):
        return server.classify(["a lovely film"]).status_code == 200
    return False
