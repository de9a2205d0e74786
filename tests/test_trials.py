"""A candidate is tried on live texts before it is promoted, and no answer suffers from it (service/trials.py)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from samples import rows
from test_following import Live, counted, live, model  # noqa: F401  (a fixture)

from model.drift import LARGE
from service import distances, metrics
from service.errors import Overloaded
from service.trials import ENOUGH, Trial, share_of, why_to_end

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from model.registry import RegisteredModel

SOME = [str(row["text"]) for row in rows(32, seed=8)]


async def settled(served: Live) -> None:
    """What is read in the shadow is read."""
    await asyncio.gather(*served.service.trials._tasks)


async def ask(served: Live, request_id: str, texts: list[str] = SOME) -> str:
    """The version that answered."""
    body = {"texts": texts}
    answer = await served.client.post("/v1/classify", json=body, headers={"X-Request-Id": request_id})
    assert answer.status_code == 200
    await settled(served)
    version: str = answer.json()["version"]
    return version


def test_in_the_shadow_a_candidate_reads_what_production_answers_and_is_not_seen(
    model: RegisteredModel,  # noqa: F811
    variant: Callable[[float], Path],
) -> None:
    candidate = model.add(variant(1.5))
    model.propose(candidate)

    async def test() -> tuple[set[str], dict[str, Any]]:
        async with live(model, shadow_share=1.0) as served:
            await served.follow()
            versions = {await ask(served, f"r{i}") for i in range(4)}
            return versions, await served.follow()

    agreed = counted(metrics.CANDIDATE_TEXTS, "mood", "agreed")
    versions, info = asyncio.run(test())
    assert versions == {model.version("production")}
    assert info["candidate"]["version"] == candidate
    assert info["candidate"]["answered"] == info["candidate"]["agreement"] * 128 == 128
    assert counted(metrics.CANDIDATE_TEXTS, "mood", "agreed") == agreed + 128


def test_texts_of_other_words_are_seen_to_lie_far_off_while_they_are_answered(
    model: RegisteredModel,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distances, "SHARE", 0.5)
    monkeypatch.setattr(metrics, "DISTANCES", 64)

    async def psi(texts: list[str]) -> float:
        async with live(model) as served:
            for i in range(12):
                await ask(served, f"r{i}", texts)
                await asyncio.gather(
                    *[one._distances._reading for one in served.service.models if one._distances._reading]
                )
            return float(metrics.DRIFT.labels("mood", "distance")._value.get())

    assert asyncio.run(psi(SOME)) < LARGE
    assert asyncio.run(psi([f"dog {i} town" for i in range(32)])) > LARGE


def test_a_canary_answers_its_share_and_always_the_same_requests(
    model: RegisteredModel,  # noqa: F811
    variant: Callable[[float], Path],
) -> None:
    production, candidate = model.version("production"), model.add(variant(1.5))
    model.propose(candidate)
    ids = [f"request {i}" for i in range(30)]

    async def test() -> tuple[list[str], list[str], str]:
        async with live(model, canary_share=0.3) as served:
            await served.follow()
            once = [await ask(served, i, SOME[:2]) for i in ids]
            again = [await ask(served, i, SOME[:2]) for i in ids]
            named = (await served.ask(f"mood@{production}")).json()["version"]
            return once, again, named

    once, again, named = asyncio.run(test())
    assert once == again == [candidate if share_of(i) < 0.3 else production for i in ids]
    assert set(once) == {production, candidate}
    assert named == production


def test_a_canary_that_disagrees_answers_nothing_any_more(
    model: RegisteredModel,  # noqa: F811
    opposite_folder: Path,
) -> None:
    production, candidate = model.version("production"), model.add(opposite_folder)
    model.propose(candidate)

    async def test() -> tuple[list[str], dict[str, Any]]:
        async with live(model, canary_share=1.0) as served:
            await served.follow()
            return [await ask(served, f"r{i}") for i in range(6)], await served.follow()

    versions, info = asyncio.run(test())
    assert versions == [candidate] * 4 + [production] * 2
    assert info["candidate"]["ended"] == "it agrees with production on less than 0.8: 0.000"
    assert counted(metrics.CANDIDATE_ON_TRIAL, "mood", candidate) == 0


def test_what_a_canary_cannot_answer_production_answers_and_a_withdrawn_one_stays_so(
    model: RegisteredModel,  # noqa: F811
    variant: Callable[[float], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    production, candidate = model.version("production"), model.add(variant(1.5))
    model.propose(candidate)

    async def test() -> tuple[set[str], dict[str, Any], dict[str, Any]]:
        async with live(model, canary_share=1.0) as served:
            await served.follow()
            trial = served.service.trials.of("mood")
            assert trial is not None

            monkeypatch.setattr(trial.model.batcher, "submit", overloaded)
            versions = {await ask(served, f"r{i}") for i in range(5)}
            before = await served.follow()
            served.service.trials.end("mood")
            return versions, before, await served.follow()

    async def overloaded(*_: object, **__: object) -> object:
        raise Overloaded(1)

    versions, before, after = asyncio.run(test())
    assert versions == {production}
    assert before["candidate"]["ended"] == "it failed on more of the texts than 0.01: 1.000"
    assert after["candidate"]["ended"] == before["candidate"]["ended"]


def test_a_candidate_that_is_promoted_is_not_loaded_again_and_one_that_is_withdrawn_is_let_go(
    model: RegisteredModel,  # noqa: F811
    variant: Callable[[float], Path],
    opposite_folder: Path,
) -> None:
    candidate = model.add(variant(1.5))
    model.propose(candidate)

    async def test() -> tuple[str, float, dict[str, Any], dict[str, Any]]:
        async with live(model, shadow_share=1.0) as served:
            await served.follow()
            loaded = counted(metrics.MODEL_LOADS, "mood", "loaded")
            model.promote(candidate)
            after = await served.follow()
            loads = counted(metrics.MODEL_LOADS, "mood", "loaded") - loaded
            version = await ask(served, "r")
            model.propose(model.add(opposite_folder))
            tried = await served.follow()
            model.promote("candidate")
            model.rollback()
            return version, loads, after, tried

    version, loads, after, tried = asyncio.run(test())
    assert (version, loads, after["candidate"]) == (candidate, 0, None)
    assert tried["candidate"]["version"] == model.version("previous")


def test_without_a_share_no_candidate_is_loaded(
    model: RegisteredModel,  # noqa: F811
    opposite_folder: Path,
) -> None:
    model.propose(model.add(opposite_folder))

    async def test() -> dict[str, Any]:
        async with live(model) as served:
            return await served.follow()

    assert asyncio.run(test())["candidate"] is None


@pytest.mark.parametrize(
    ("answered", "failed", "compared", "agreed", "why"),
    [
        (ENOUGH - 1, 50, ENOUGH - 1, 0, None),
        (1000, 10, 1000, 900, None),
        (1000, 11, 0, 0, "it failed on more of the texts than 0.01: 0.011"),
        (1000, 0, 1000, 799, "it agrees with production on less than 0.8: 0.799"),
    ],
)
def test_a_trial_ends_where_a_bound_is_broken_and_there_is_enough_to_say_so(
    answered: int, failed: int, compared: int, agreed: int, why: str | None
) -> None:
    trial = Trial(None, answered, failed, compared, agreed)  # type: ignore[arg-type]
    assert why_to_end(trial, 0.8, 0.01) == why
