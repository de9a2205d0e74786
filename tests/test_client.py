"""heed.Client and heed.AsyncClient, over sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from replica import served
from samples import FILLER

import heed
from heed.requests import Deadline, Limits, batches, retry_in
from service.feedback_store import Store
from service.launch import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from model.bundle import Bundle


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("client") / "labels.db")


@pytest.fixture(scope="module")
def url(bundle_folder: Path, tags_folder: Path, store: str) -> Iterator[str]:
    models = {"mood": bundle_folder, "other": bundle_folder, "tags": tags_folder}
    with served(models, max_texts_per_request=3, max_body_bytes=20_000, feedback_store=store) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[heed.Client]:
    with heed.Client(url) as client:
        yield client


def test_each_text_gets_its_result_in_order(client: heed.Client, bundle: Bundle) -> None:
    texts = ["a lovely film", "the dull town", "a good dog", "an awful story"]
    results = client.classify(texts)
    assert [result.label for result in results] == ["positive", "negative", "positive", "negative"]
    assert [result.index for result in results] == [0, 1, 2, 0]  # two requests, for at most three texts each
    assert {(result.model, result.version) for result in results} == {("mood", bundle.version)}
    first = results[0]
    assert first.score == max(label.score for label in first.labels)
    assert first.label_set == ("positive",)
    assert isinstance(first.abstained, bool)


def test_a_text_unlike_those_that_the_model_was_trained_on_is_abstained_and_labelled_all_the_same(
    abstaining_folder: Path, tags_folder: Path
) -> None:
    with served({"shy": abstaining_folder, "tags": tags_folder}) as url, heed.Client(url) as client:
        [shy], [tags] = (client.classify(["a lovely film"], model=model) for model in ("shy", "tags"))
        assert (shy.label, shy.abstained, tags.abstained) == ("positive", True, None)
        said = httpx.get(f"{url}/v1/models").json()["models"]
        assert [model["false_alarms"] for model in said] == [0.05, None]
        v1 = httpx.post(f"{url}/v1/models/shy:predict", json={"instances": ["a lovely film"]}).json()
        assert v1["predictions"][0]["abstained"] is True


def test_the_asynchronous_client_answers_the_same(url: str, client: heed.Client) -> None:
    texts = [f"a {word} film" for word in FILLER]

    async def ask() -> list[heed.Result]:
        async with heed.AsyncClient(url) as client:
            return await client.classify(texts)

    labels = [result.labels for result in asyncio.run(ask())]
    for one, other in zip(labels, client.classify(texts), strict=True):
        assert [label.score for label in one] == pytest.approx([label.score for label in other.labels], abs=1e-4)


def test_every_option_reaches_the_service(client: heed.Client) -> None:
    [one] = client.classify(["a lovely film"], model="other", top_k=1, raw_scores=True, timeout_ms=5000)
    assert (one.model, len(one.labels)) == ("other", 1)
    assert one.score > 1
    [explained] = client.classify(["a lovely film"], explain=True, priority="bulk")
    assert explained.explanation is not None
    assert [token.text for token in explained.explanation.tokens] == ["a", "lovely", "film"]
    long = "good " * 100
    [read] = client.classify([long], on_long="window")
    assert len(read.windows) > 1
    [pair] = client.classify([("a film", "was good")])
    assert pair.tokens == client.classify(["a film was good"])[0].tokens + 1


def test_a_text_that_fails_alone_has_its_error_in_its_place(client: heed.Client) -> None:
    short, long = client.classify(["a lovely film", "good " * 100], on_long="error")
    assert short.label == "positive"
    assert long.error is not None
    with pytest.raises(heed.HeedError, match="too_many_tokens"):
        assert long.label


def test_a_label_is_given_by_request_id_and_index(client: heed.Client, url: str, store: str, bundle: Bundle) -> None:
    texts = [f"a lovely {word}" for word in FILLER]
    result = client.classify(texts)[4]
    kept = client.feedback(result.request_id, result.index, label="negative", text=texts[4])
    assert kept == heed.Kept(result.request_id, 1, "mood", bundle.version, has_text=True)

    async def give() -> heed.Kept:
        async with heed.AsyncClient(url) as client:
            [tagged] = await client.classify([("a film", "was good")], model="tags")
            return await client.feedback(tagged.request_id, 0, labels=[], text="a film", text_pair="was good")

    tagged = asyncio.run(give())
    with contextlib.closing(Store(store, wait_s=5)) as opened:
        found = [(label.request_id, label.label, label.text) for label in opened.labels()]
    assert found == [(kept.request_id, "negative", texts[4]), (tagged.request_id, [], ("a film", "was good"))]


def test_a_label_that_is_refused_is_an_exception(client: heed.Client) -> None:
    [result] = client.classify(["a lovely film"])
    with pytest.raises(heed.HeedError, match=r"no such label, it has: negative, positive"):
        client.feedback(result.request_id, result.index, label="joyful")
    with pytest.raises(heed.HeedError, match="no_such_answer"):
        client.feedback(result.request_id, 1, label="positive")


@pytest.mark.parametrize(
    ("texts", "options", "code", "status"),
    [
        (["a"], {"model": "nobody"}, "no_such_model", 404),
        ([""], {}, "invalid_request", 422),
        (["a"], {"colour": 1}, "invalid_request", 422),
        (["a" * 30_000], {}, "body_too_large", 413),
    ],
)
def test_a_refusal_is_an_exception_with_what_the_service_said(
    client: heed.Client, texts: list[str], options: Any, code: str, status: int
) -> None:
    with pytest.raises(heed.HeedError) as caught:
        client.classify(texts, **options)
    assert (caught.value.code, caught.value.status) == (code, status)
    assert caught.value.message in str(caught.value)
    assert bool(caught.value.details) == (code == "invalid_request")


def test_a_refused_text_of_a_later_request_can_be_found(client: heed.Client) -> None:
    with pytest.raises(heed.HeedError) as caught:
        client.classify(["a", "b", "c", "d", ""])
    assert caught.value.message.startswith("texts[1]")
    assert caught.value.__notes__ == ["texts[0] of this request is texts[3] of the call"]


def test_no_texts_are_no_request_and_a_lone_string_is_a_mistake(client: heed.Client) -> None:
    assert client.classify([]) == []
    with pytest.raises(TypeError, match="put it into a list"):
        client.classify("a lovely film")


def test_an_overloaded_service_is_asked_again_until_every_text_is_answered(bundle_folder: Path) -> None:
    async def ask(url: str) -> list[heed.Result]:
        async with heed.AsyncClient(url, concurrency=50) as client:
            return await client.classify([f"{one} {'film ' * 50}good" for one in FILLER] * 4)

    limits = {"max_texts_per_request": 1, "max_queue_tokens": 64, "max_batch_tokens": 64}
    with served({"mood": bundle_folder}, **limits) as url:
        results = asyncio.run(ask(url))
        refused = httpx.get(f"{url}/metrics").text
    assert [result.label for result in results] == ["positive"] * len(FILLER) * 4
    assert 'code="429",route="/v1/classify"' in refused


def test_a_service_that_goes_and_comes_back_costs_a_call_nothing_but_time(bundle_folder: Path) -> None:
    port = free_port()
    with heed.Client(f"http://127.0.0.1:{port}") as client, ThreadPoolExecutor(1) as thread:
        with served({"mood": bundle_folder}, at=port):
            client.classify(["a lovely film"])
        with socket.create_server(("127.0.0.1", port)) as broken:
            call = thread.submit(client.classify, ["a lovely film"])
            broken.accept()[0].close()
        with served({"mood": bundle_folder}, at=port):
            assert call.result(30)[0].label == "positive"


def test_a_deadline_is_kept_whatever_happens(client: heed.Client) -> None:
    started = time.monotonic()
    with pytest.raises(heed.HeedError) as caught:
        client.classify(["a film"] * 3000, timeout_ms=50)
    assert caught.value.code in ("deadline_exceeded", "overloaded")
    assert time.monotonic() - started < 2


def test_nothing_there_and_something_else_there_are_said(url: str) -> None:
    with heed.Client(f"http://127.0.0.1:{free_port()}") as nobody, pytest.raises(heed.HeedError, match="unreachable"):
        nobody.classify(["a film"])
    with heed.Client(f"{url}/docs") as other, pytest.raises(heed.HeedError, match="no_such_route"):
        other.classify(["a film"])


def test_batches_hold_as_much_as_a_request_may() -> None:
    def sizes(texts: list[str], limits: Limits) -> list[int]:
        return [len(batch.texts) for batch in batches(texts, {}, limits)]

    assert sizes(["a"] * 7, Limits(3, 10**6)) == [3, 3, 1]
    assert sizes(["ä" * 500] * 4, Limits(100, 4096 + 2100)) == [2, 2]  # bytes, not characters
    assert sizes(["a" * 9000, "b"], Limits(100, 5000)) == [1, 1]
    assert sizes([], Limits(3, 10**6)) == []


@pytest.mark.parametrize(
    ("status", "header", "attempt", "wait_s"),
    [
        (200, None, 0, None),
        (422, "1", 0, None),
        (429, "3", 0, 3.0),
        (429, "0", 0, 0.1),
        (503, None, 0, 0.5),
        (503, "soon", 2, 2.0),
        (503, None, 10_000, 8.0),
        (503, "Wed, 21 Oct 2015 07:28:00 GMT", 0, 0.1),
        (429, "11", 0, None),
        (429, "9" * 5000, 0, None),
    ],
)
def test_a_refusal_is_sent_again_when_it_says_so_and_not_past_the_deadline(
    status: int, header: str | None, attempt: int, wait_s: float | None
) -> None:
    response = httpx.Response(status, headers={} if header is None else {"retry-after": header})
    assert retry_in(response, attempt, Deadline(10, clock=lambda: 0.0), was_reached=True) == wait_s


@pytest.mark.parametrize(
    ("error", "was_reached", "wait_s"),
    [
        (httpx.ConnectError("refused"), True, 0.5),
        (httpx.RemoteProtocolError("closed"), True, 0.5),
        (httpx.ConnectError("refused"), False, None),
        (httpx.ReadTimeout("late"), True, None),
    ],
)
def test_what_nobody_answered_is_sent_again_where_somebody_did_before(
    error: httpx.TransportError, was_reached: bool, wait_s: float | None
) -> None:
    assert retry_in(error, 0, Deadline(10, clock=lambda: 0.0), was_reached=was_reached) == wait_s


BLOCKED = """
import sys
for name in ("torch", "ray", "pydantic", "starlette", "numpy"):
    sys.modules[name] = None
import heed
assert not {"model", "service", "training"} & set(sys.modules)
"""


def test_it_is_imported_without_torch_and_ray() -> None:
    subprocess.run([sys.executable, "-c", BLOCKED], check=True)
