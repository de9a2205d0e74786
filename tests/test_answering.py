"""From texts to answers: what is known already, what is let in, what goes first."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from samples import FILLER

from service.answering import answer
from service.cache import CACHED_CHARS
from service.errors import Overloaded
from service.models import Models
from service.settings import Settings, Spec

if TYPE_CHECKING:
    from pathlib import Path

    from model.bundle import Bundle
    from service.answering import Answered


@pytest.fixture
def models(bundle_folder: Path) -> Models:
    return Models([Spec("mood", bundle_folder)], Settings(cache_texts=2, precision="fp32"))


def classify(models: Models, *requests: list[str]) -> list[Answered]:
    """Each request once the one before is answered, and then no more."""

    async def one_by_one() -> list[Answered]:
        answers = [
            await answer(models.find(None), models.tokenizing, texts, deadline=time.perf_counter() + 20)
            for texts in requests
        ]
        await models.drain()
        return answers

    return asyncio.run(one_by_one())


def test_a_text_that_comes_again_is_answered_from_memory_if_that_is_asked_for(models: Models) -> None:
    first, again, more = classify(models, ["a film"], ["a film"], ["a town", "a film", "a dog"])
    assert (first.forward_s > 0, again.forward_s) == (True, 0)
    assert again.answers == first.answers
    assert more.answers[1] == first.answers[0]
    assert more.forward_s > 0


def test_the_answer_that_was_longest_unused_is_forgotten_first(models: Models) -> None:
    answers = classify(models, ["a"], ["film"], ["a"], ["dog"], ["a"], ["film"])
    assert [answered.forward_s > 0 for answered in answers] == [True, True, False, True, False, True]


def test_what_is_remembered_is_answered_under_overload_too(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    classify(models, ["a film"])

    def full(*request: object, **options: object) -> None:
        raise Overloaded(1)

    monkeypatch.setattr(models.find(None).batcher, "admit", full)
    assert len(classify(models, ["a film", "a film"])) == 1
    with pytest.raises(Overloaded):
        classify(models, ["a town"])


def test_long_texts_are_not_remembered(models: Models) -> None:
    long = "film " * (CACHED_CHARS // 5 + 1)
    assert all(answered.forward_s > 0 for answered in classify(models, [long], [long]))


@pytest.mark.parametrize(("priority", "texts", "expected"), [
    (None, 1, False), (None, 200, True), ("bulk", 1, True), ("interactive", 200, False),
])  # fmt: skip
def test_a_request_of_more_than_one_pass_is_bulk_unless_it_says_otherwise(
    bundle_folder: Path, priority: str | None, texts: int, expected: bool
) -> None:
    model = Models([Spec("mood", bundle_folder)], Settings(max_batch_tokens=500)).find(None)
    rows = model.bundle.tokenizer.encode(["a film"] * texts, 64)
    assert model.is_bulk(priority, rows) == expected  # type: ignore[arg-type]


def test_texts_that_would_wait_too_long_for_the_tokenizer_are_refused_before(models: Models, bundle: Bundle) -> None:
    huge = [" ".join(FILLER) * 800] * 40

    async def test() -> None:
        await models.tokenizing.read(bundle, huge, "truncate")  # the rate is known now
        waiting = [asyncio.create_task(models.tokenizing.read(bundle, huge, "truncate")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await models.tokenizing.read(bundle, huge, "truncate", within_s=1e-3)
        assert int(refused.value.headers["Retry-After"]) >= 1
        assert [len(readings) for readings in await asyncio.gather(*waiting)] == [40, 40]
        assert len(await models.tokenizing.read(bundle, ["a film"], "truncate", within_s=1e-3)) == 1

    asyncio.run(asyncio.wait_for(test(), 20))
