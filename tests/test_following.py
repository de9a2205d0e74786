"""An alias moves while requests are answered: none is lost, none mixes versions, and what fails changes nothing."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import weakref
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client import REGISTRY

from model.bundle import load_bundle
from model.device import choose_device
from model.location import RegistryEntry
from model.registry import RegisteredModel
from service import metrics
from service.exporter import exposition
from service.following import Failure, Following, failed_again, is_due
from service.models import Models
from service.predict import predict_texts
from service.predictor import Predictor
from service.routes import Service
from service.settings import Settings, Spec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from service.schemas import TextResult

import contextlib

TEXTS = ["a lovely film", "the dull town", "two people in town and their dog " * 6]
NEVER_S = 1e6  # the tests poll by themselves


class Live:
    """A service that follows mood@production, asked over ASGI."""

    def __init__(self, service: Service, client: httpx.AsyncClient, clock: list[float]) -> None:
        self.service, self.models, self.client, self.clock = service, service.models, client, clock

    async def ask(self, model: str = "mood", texts: list[str] = TEXTS, **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/classify", json={"texts": texts, "model": model, **fields})

    async def follow(self) -> dict[str, Any]:
        """Look at the alias once; what /v1/models says then."""
        await self.service.following.poll("mood")
        [info] = (await self.client.get("/v1/models")).json()["models"]
        found: dict[str, Any] = info
        return found

    async def version(self) -> str:
        found: str = (await self.ask()).json()["version"]
        return found


@contextlib.asynccontextmanager
async def live(model: RegisteredModel, **fields: Any) -> AsyncIterator[Live]:
    settings = Settings(precision="fp32", device="cpu", registry_poll_s=NEVER_S, **fields)
    service = Service(Models([Spec("mood", RegistryEntry(model, "production"))], settings), settings)
    clock = [0.0]
    service.following = Following(service.models, service.trials, 10.0, lambda: clock[0])
    app = service.asgi()
    transport = httpx.ASGITransport(app)
    async with service.lifespan(app), httpx.AsyncClient(transport=transport, base_url="http://h") as client:
        yield Live(service, client, clock)


@pytest.fixture
def model(tmp_path: Path, bundle_folder: Path) -> RegisteredModel:
    """A registered model with one version, in production."""
    registered = RegisteredModel(tmp_path / "registry", "mood")
    registered.promote(registered.add(bundle_folder))
    return registered


def offline(folder: Path) -> list[TextResult]:
    return list(predict_texts(Predictor(load_bundle(folder), choose_device("cpu"), "fp32"), TEXTS, None))


def scores(results: list[Any]) -> list[float]:
    """By label, so that they can be compared."""
    return [by_label[1] for r in results for by_label in sorted((x["label"], x["score"]) for x in r["labels"])]


def counted(metric: Any, *labels: str) -> float:
    value: float = metric.labels(*labels)._value.get()
    return value


def test_a_swap_under_load_loses_no_request_and_each_is_answered_by_one_version(
    model: RegisteredModel, opposite_folder: Path
) -> None:
    first, second = model.version("production"), model.add(opposite_folder)
    expected = {
        version: scores([result.model_dump() for result in offline(model.bundle(version))])
        for version in (first, second)
    }

    async def test() -> list[httpx.Response]:
        async with live(model) as served:
            answers: list[httpx.Response] = []
            swapped, warm = asyncio.Event(), asyncio.Event()

            async def keep_asking() -> None:
                while not swapped.is_set():
                    answers.append(await served.ask())
                    if len(answers) == 100:
                        warm.set()
                    assert (await served.client.get("/health/ready")).status_code == 200

            asking = [asyncio.create_task(keep_asking()) for _ in range(16)]
            await warm.wait()
            model.promote(second)
            await served.follow()
            swapped.set()
            await asyncio.gather(*asking)
            return [*answers, *[await served.ask() for _ in range(3)]]

    answers = asyncio.run(test())
    assert {answer.status_code for answer in answers} == {200}
    versions = [answer.json()["version"] for answer in answers]
    assert versions[:100] == [first] * 100
    assert versions[-3:] == [second] * 3
    for answer in answers:
        got = scores(answer.json()["results"])
        assert got == pytest.approx(expected[answer.json()["version"]], abs=1e-4)


def test_the_version_before_answers_by_its_name_and_comes_back_at_once(
    model: RegisteredModel, opposite_folder: Path
) -> None:
    async def test() -> None:
        async with live(model) as served:
            first, second = model.version("production"), model.add(opposite_folder)
            assert (await served.ask(f"mood@{second}")).json()["error"]["code"] == "no_such_model"
            before = served.models.find("mood")
            model.promote(second)
            info = await served.follow()
            assert (info["version"], info["versions"]) == (second, [second, first])
            assert (info["following"], info["last_error"]) == ("mood@production", None)
            labels = {
                version: (await served.ask(f"mood@{version}")).json()["results"][0]["labels"][0]["label"]
                for version in (first, second)
            }
            assert labels == {first: "positive", second: "negative"}
            loads = counted(metrics.MODEL_LOADS, "mood", "loaded")
            model.rollback()
            info = await served.follow()
            assert info["versions"] == [first, second]
            assert served.models.find("mood") is before
            assert counted(metrics.MODEL_LOADS, "mood", "loaded") == loads
            said = [x for x in exposition().decode().splitlines() if x.startswith("heed_model_info{")]
            assert [x for x in said if 'model="mood"' in x] == [
                f'heed_model_info{{model="mood",version="{first}"}} 1.0'
            ]

    asyncio.run(test())


def test_a_request_is_answered_by_the_version_it_began_with_however_many_come_after(
    model: RegisteredModel, variant: Callable[[float], Path]
) -> None:
    async def test() -> None:
        async with live(model) as served:
            first = model.version("production")
            with served.models.find("mood") as held:
                rows = held.bundle.tokenizer.encode(TEXTS, held.bundle.max_tokens)
                alone = [answer.result for answer in await held.batcher.submit(rows)]
                for factor in (-1.0, 0.5):
                    model.promote(model.add(variant(factor)))
                    await served.follow()
                    assert await served.version() == model.version("production")
                assert (await served.ask(f"mood@{first}")).status_code == 404
                assert [answer.result for answer in await held.batcher.submit(rows)] == alone
                assert (await served.client.get("/health")).status_code == 200

    asyncio.run(test())


def test_a_version_that_nobody_needs_any_more_frees_its_memory_at_once(
    model: RegisteredModel, variant: Callable[[float], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: weakref.WeakSet[Predictor] = weakref.WeakSet()
    make = Predictor.__init__

    def noted(self: Predictor, *args: Any) -> None:
        loaded.add(self)
        make(self, *args)

    monkeypatch.setattr(Predictor, "__init__", noted)

    async def test() -> bool:
        async with live(model) as served:
            await served.ask(explain=True)
            [weights] = map(weakref.ref, loaded)
            gc.disable()
            for factor in (-1.0, 0.5):
                model.promote(model.add(variant(factor)))
                await served.follow()
            await asyncio.gather(*served.models._leaving)
            for _ in range(100):  # the engine has been told
                await asyncio.sleep(0.01 * (weights() is not None))
            return weights() is None

    try:
        assert asyncio.run(test())
    finally:
        gc.enable()


def damage_weights(folder: Path) -> None:
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 0x40
    (folder / "model.safetensors").write_bytes(weights)


def change_probes(folder: Path) -> None:
    manifest = json.loads((folder / "heed.json").read_text())
    manifest["probes"][0]["logits"][0] += 1
    (folder / "heed.json").write_text(json.dumps(manifest))


def damage_a_checkpoint_that_heed_did_not_write(folder: Path) -> None:
    (folder / "heed.json").unlink()
    damage_weights(folder)


@pytest.mark.parametrize(
    ("break_bundle", "error"),
    [
        (damage_weights, "BundleError"),
        (damage_a_checkpoint_that_heed_did_not_write, "BundleError"),
        (change_probes, "BundleError"),
        (shutil.rmtree, "LocationError"),
        (lambda folder: (folder / "config.json").write_text('{"id2label": 1}'), "BundleError"),
        (lambda folder: (folder / "heed.json").write_bytes(b"\xff"), "BundleError"),
    ],
)
def test_a_version_that_cannot_be_loaded_changes_nothing_and_is_said_and_tried_again_later(
    model: RegisteredModel,
    opposite_folder: Path,
    break_bundle: Callable[[Path], object],
    error: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async with live(model) as served:
            first, second = model.version("production"), model.add(opposite_folder)
            model.promote(second)
            folder = model.folder / second
            break_bundle(folder)
            failed = counted(metrics.MODEL_LOADS, "mood", "failed")
            for _ in range(2):  # the second time it is left alone
                info = await served.follow()
                assert (info["version"], info["versions"]) == (first, [first])
                assert (info["last_error"]["version"], info["last_error"]["error"]) == (second, error)
                assert info["last_error"]["at"].endswith("+00:00")
            assert counted(metrics.MODEL_LOADS, "mood", "failed") == failed + 1
            [said] = [record.getMessage() for record in caplog.records if "cannot be loaded" in record.getMessage()]
            assert f"mood version {second} cannot be loaded, it stays as it is: {error}" in said
            assert await served.version() == first
            assert (await served.client.get("/health")).status_code == 200
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(opposite_folder, folder)
            served.clock[0] = 20.0
            info = await served.follow()
            assert (info["version"], info["last_error"]) == (second, None)
            assert await served.version() == second

    asyncio.run(test())


@pytest.mark.parametrize("aliases", ["{", '{"production": "../../etc"}', None])
def test_a_registry_that_cannot_be_read_is_said_once_and_changes_nothing(
    model: RegisteredModel, aliases: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with live(model) as served:
            first, file = model.version("production"), model.folder / "aliases.json"
            readable = file.read_text()
            said = REGISTRY.get_sample_value("heed_registry_polls_total", {"model": "mood", "outcome": "failed"})
            assert said is not None, "from nothing to 1 is no increase to Prometheus"
            failed = counted(metrics.REGISTRY_POLLS, "mood", "failed")
            if aliases is None:
                file.unlink()
            else:
                file.write_text(aliases)
            for _ in range(3):
                info = await served.follow()
            assert (info["version"], info["last_error"]["version"]) == (first, None)
            assert info["last_error"]["error"] == "RegistryError"
            assert counted(metrics.REGISTRY_POLLS, "mood", "failed") == failed + 3
            assert len([record for record in caplog.records if "cannot be read" in record.getMessage()]) == 1
            assert await served.version() == first
            file.write_text(readable)
            assert (await served.follow())["last_error"] is None

    asyncio.run(test())


def test_an_alias_that_moves_back_while_its_version_is_loaded_leaves_all_as_it_is(
    model: RegisteredModel, opposite_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with live(model) as served:
            first = model.version("production")
            model.promote(model.add(opposite_folder))
            load = served.models.load

            def load_meanwhile(spec: Spec) -> Any:
                model.rollback()
                return load(spec)

            monkeypatch.setattr(served.models, "load", load_meanwhile)
            info = await served.follow()
            assert (info["version"], info["versions"], info["last_error"]) == (first, [first], None)

    asyncio.run(test())


def test_what_is_no_alias_is_not_followed(model: RegisteredModel) -> None:
    settings = Settings(precision="fp32", device="cpu")
    models = Models([Spec("mood", RegistryEntry(model, model.version("production")))], settings)
    assert Service(models, settings).following.of("mood") is None


def test_a_version_is_tried_again_after_twice_as_long_each_time_and_another_at_once() -> None:
    failure: Failure | None = None
    waits = []
    for _ in range(10):
        failure = failed_again(failure, "a", ValueError(), now_s=100.0, poll_s=10.0)
        waits.append(failure.retry_s)
    assert waits[:3] == [20.0, 40.0, 80.0]
    assert waits[-1] == 3600.0
    assert failure is not None
    assert not is_due(failure, "a", 3699.0)
    assert is_due(failure, "a", 3700.0)
    assert is_due(failure, "b", 100.0)
    assert failed_again(failure, "b", ValueError(), now_s=0.0, poll_s=10.0).retry_s == 20.0
