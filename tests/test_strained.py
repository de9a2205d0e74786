"""A replica whose queue is full, or whose device hangs, fails or answers nonsense: what its callers see."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from samples import FILLER, GOOD

from model.forward import Launched
from service import routes
from service.models import Models
from service.predictor import Predictor
from service.routes import Service
from service.settings import Settings, Spec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@contextlib.asynccontextmanager
async def asked(folder: Path, **limits: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Service]]:
    """A client of a service of its own."""
    settings = Settings(**limits)
    service = Service(Models([Spec("mood", folder)], settings), settings)
    app = service.asgi()
    transport = httpx.ASGITransport(app)
    async with service.lifespan(app), httpx.AsyncClient(transport=transport, base_url="http://h") as client:
        yield client, service


def test_windows_of_more_tokens_than_may_wait_are_refused(bundle_folder: Path) -> None:
    async def ask_both() -> list[httpx.Response]:
        async with asked(bundle_folder, max_queue_tokens=300, max_batch_tokens=128) as (client, _):
            bodies = [{"texts": ["good " * n], "on_long": "window"} for n in (150, 1000)]
            return [await client.post("/v1/classify", json=body) for body in bodies]

    few, many = asyncio.run(ask_both())
    assert len(few.json()["results"][0]["windows"]) == 3
    assert (many.status_code, many.json()["error"]["code"]) == (422, "too_many_windows")


def test_health_is_not_well_while_a_pass_hangs(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    works, goes_on = Predictor.launch, threading.Event()

    def hanging(self: Predictor, rows: Any) -> Any:
        goes_on.wait(20)
        return works(self, rows)

    monkeypatch.setattr(Predictor, "launch", hanging)
    monkeypatch.setattr(routes, "STUCK_S", 0.05)

    async def test() -> list[int]:
        async with asked(bundle_folder) as (client, service):
            health = [(await client.get("/health/live")).status_code]
            answer = asyncio.create_task(client.post("/v1/classify", json={"texts": ["a film"]}))
            while service.is_live:  # noqa: ASYNC110 (that time passes is the event)
                await asyncio.sleep(0.01)
            health.append((await client.get("/health/live")).status_code)
            goes_on.set()
            assert (await answer).status_code == 200
            return [*health, (await client.get("/health/live")).status_code]

    assert asyncio.run(test()) == [200, 503, 200]


def test_a_full_queue_is_a_429_with_a_time_to_come_back(bundle_folder: Path) -> None:
    async def flood() -> list[httpx.Response]:
        async with asked(bundle_folder, max_queue_tokens=40, max_batch_tokens=20) as (client, _):
            bodies = [{"texts": [f"{one} {two}"]} for one in FILLER[:10] for two in GOOD]
            return await asyncio.gather(*(client.post("/v1/classify", json=body) for body in bodies))

    answers = asyncio.run(flood())
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert int(refused[0].headers["retry-after"]) >= 1
    assert refused[0].json()["error"]["code"] == "overloaded"
    assert {answer.status_code for answer in answers} == {200, 429}


def test_logits_that_are_no_numbers_are_an_error_of_that_text_and_not_null(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = Predictor.launch

    def no_numbers(self: Predictor, rows: Any) -> Launched:
        launched = works(self, rows)
        return Launched(lambda: launched() * np.float32("nan"), launched.computed_tokens)

    monkeypatch.setattr(Predictor, "launch", no_numbers)

    async def ask_once() -> httpx.Response:
        async with asked(bundle_folder) as (client, _):
            return await client.post("/v1/classify", json={"texts": ["a film"]})

    assert asyncio.run(ask_once()).json()["results"] == [
        {"error": {"code": "failed", "message": "the model failed on this text"}}
    ]


@pytest.mark.parametrize(("breaks", "live"), [(lambda rows: len(rows[0].ids) > 60, 200), (lambda rows: True, 503)])
def test_a_text_that_breaks_the_pass_leaves_the_replica_live_and_a_device_that_does_not(
    bundle_folder: Path, breaks: Callable[[Any], bool], live: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = Predictor.launch

    def breaking(self: Predictor, rows: Any) -> Any:
        if any(breaks([row]) for row in rows):
            raise RuntimeError("device-side assert")
        return works(self, rows)

    monkeypatch.setattr(Predictor, "launch", breaking)

    async def ask_both() -> tuple[httpx.Response, httpx.Response]:
        async with asked(bundle_folder) as (client, _):
            answer = await client.post("/v1/classify", json={"texts": ["a film", "film " * 70]})
            return answer, await client.get("/health/live")

    answer, health = asyncio.run(ask_both())
    first, second = answer.json()["results"]
    assert second["error"]["code"] == "failed"
    assert ("labels" in first) == (live == 200)
    assert health.status_code == live
