"""POST /v1/feedback, over real sockets into real stores."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from replica import Replica, served

from service import feedback, metrics
from service.feedback import Feedback
from service.feedback_store import Answer, Label, Store
from service.keys import new_key
from service.settings import Settings, parse_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from model.bundle import Bundle

TEXT = "a lovely film"
ROUTE = "/v1/feedback"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("feedback") / "labels.db"


@pytest.fixture(scope="module")
def client(bundle_folder: Path, tags_folder: Path, file: Path) -> Iterator[httpx.Client]:
    """Of a service that keeps no texts itself."""
    models = {"mood": bundle_folder, "tags": tags_folder}
    with (
        served(models, feedback_store=str(file), max_text_chars=1000, max_body_bytes=10_000) as url,
        httpx.Client(base_url=url, timeout=20) as client,
    ):
        yield client


def asked(client: httpx.Client, *texts: str, **fields: Any) -> str:
    """The request id of an answer."""
    answer = client.post("/v1/classify", json={"texts": texts or [TEXT], **fields}).json()
    return str(answer["request_id"])


def labels(file: Path | str, request_id: str) -> list[Label]:
    with contextlib.closing(Store(str(file), wait_s=5)) as store:
        return [label for label in store.labels() if label.request_id == request_id]


def test_a_label_is_kept_with_what_was_predicted(client: httpx.Client, file: Path, bundle: Bundle) -> None:
    answer = client.post("/v1/classify", json={"texts": ["the dull town", TEXT]}).json()
    sent = {"request_id": answer["request_id"], "index": 1}
    response = client.post(ROUTE, json={**sent, "label": "negative", "text": TEXT})
    assert response.status_code == 202
    assert response.json() == {**sent, "model": "mood", "version": bundle.version, "has_text": True}
    [label] = labels(file, answer["request_id"])
    [best, _] = answer["results"][1]["labels"]
    assert (label.label, label.predicted, label.text) == ("negative", "positive", TEXT)
    assert label.score == pytest.approx(best["score"], abs=1e-6)
    assert 0 <= label.at - label.answered_at < 20
    assert abs(time.time() - label.at) < 20


def test_every_label_of_a_text_that_may_have_many_is_kept(client: httpx.Client, file: Path) -> None:
    request_id = asked(client, TEXT, "the dull town", model="tags")
    for index, given in enumerate([["positive", "negative"], []]):
        sent = {"request_id": request_id, "index": index, "labels": given}
        assert client.post(ROUTE, json=sent).status_code == 202
    first, second = labels(file, request_id)
    assert (first.label, first.predicted) == (["negative", "positive"], ["positive"])
    assert (second.label, second.text) == ([], None)


def test_a_later_label_replaces_the_earlier_one(client: httpx.Client, file: Path) -> None:
    request_id = asked(client)
    for given in ("negative", "negative", "positive"):
        sent = {"request_id": request_id, "index": 0, "label": given}
        assert client.post(ROUTE, json=sent).status_code == 202
    [label] = labels(file, request_id)
    assert label.label == "positive"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", {"inputs": TEXT}),
        ("/classify", {"input": TEXT}),
        ("/infinity/classify", {"model": "mood", "input": [TEXT]}),
        ("/v1/models/mood:predict", {"instances": [TEXT]}),
        ("/v2/models/mood/infer", {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXT]}]}),
    ],
)
def test_answers_in_every_dialect_can_be_labelled(client: httpx.Client, file: Path, path: str, body: object) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 200
    request_id = answer.headers["x-request-id"]
    sent = {"request_id": request_id, "index": 0, "label": "negative"}
    assert client.post(ROUTE, json=sent).status_code == 202
    assert [label.predicted for label in labels(file, request_id)] == ["positive"]


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"index": 1}, 404, "no answer is remembered of this request_id and index"),
        ({"index": 10**30}, 404, "no answer is remembered"),
        ({"index": 2}, 404, "no answer is remembered"),  # it failed
        ({"request_id": "xyzzy\x00"}, 404, "answers are remembered for 30 days, of the last 1000000 texts"),
        ({"request_id": "x" * 129}, 422, "request_id: String should have at most 128 characters"),
        ({"index": -1}, 422, "index: "),
        ({"index": "0"}, 422, "index: "),
        ({"label": "xyzzy"}, 422, "label: the model has no such label, it has: negative, positive"),
        ({"label": None}, 422, "send either label or labels"),
        ({"labels": ["positive"]}, 422, "send either label or labels"),
        ({"label": None, "labels": ["positive"]}, 422, "labels: a text has one of this model's labels: send label"),
        ({"text": "xyzzy" * 201}, 422, "text: String should have at most 1000 characters"),
        ({"text": ""}, 422, "text: String should have at least 1 character"),
        ({"text_pair": "b"}, 422, "send text too"),
        ({"xyzzy": 1}, 422, "there is no such field, there are: request_id, index, label"),
        ({"text": "xyzzy" * 3000}, 413, "max_body_bytes"),
    ],
)
def test_a_label_that_cannot_be_kept_is_refused_and_says_why(
    client: httpx.Client, file: Path, fields: dict[str, object], status: int, words: str
) -> None:
    request_id = asked(client, TEXT, TEXT, "good " * 100, on_long="error")
    if fields.get("index") == 1:
        request_id = asked(client)
    response = client.post(ROUTE, json={"request_id": request_id, "index": 0, "label": "positive", **fields})
    assert response.status_code == status
    assert words in response.json()["error"]["message"]
    assert "xyzzy" not in response.text
    assert labels(file, request_id) == []
    documented = client.get("/openapi.json").json()["paths"][ROUTE]["post"]["responses"]
    assert str(status) in documented


def test_the_wrong_labels_of_a_multi_label_model_are_refused(client: httpx.Client) -> None:
    sent = {"request_id": asked(client, model="tags"), "index": 0}
    response = client.post(ROUTE, json={**sent, "labels": ["positive", "xyzzy"]})
    assert response.json()["error"]["message"].startswith("labels[1]: the model has no such label, it has: negative")
    response = client.post(ROUTE, json={**sent, "label": "positive"})
    assert "label: a text has any number of this model's labels: send labels" in response.text


def test_a_label_says_with_which_key_it_came(bundle_folder: Path, tmp_path: Path) -> None:
    file, (key, known) = tmp_path / "labels.db", new_key("annotators")
    with (
        served({"mood": bundle_folder}, feedback_store=str(file), api_keys=[str(known)]) as url,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=20) as client,
    ):
        request_id = asked(client)
        sent = {"request_id": request_id, "index": 0, "label": "negative"}
        assert httpx.post(url + ROUTE, json=sent).status_code == 401
        assert client.post(ROUTE, json=sent).status_code == 202
    assert [label.key for label in labels(file, request_id)] == ["annotators"]


def test_a_caller_neither_labels_nor_replaces_what_another_was_answered(bundle_folder: Path, tmp_path: Path) -> None:
    file, keys = tmp_path / "labels.db", {name: new_key(name) for name in ("one", "other", "third")}
    known = [str(line) for _, line in keys.values()]
    with served({"mood": bundle_folder}, feedback_store=str(file), api_keys=known) as url, httpx.Client() as client:

        def send(path: str, name: str, body: object) -> int:
            headers = {"Authorization": f"Bearer {keys[name][0]}", "X-Request-Id": "same"}
            return client.post(f"{url}{path}", json=body, headers=headers).status_code

        for name, text in (("one", TEXT), ("other", "the dull town")):
            assert send("/v1/classify", name, {"texts": [text]}) == 200
        sent = {"request_id": "same", "index": 0, "label": "negative"}
        assert [send(ROUTE, name, sent) for name in keys] == [202, 202, 404]
    assert {(label.key, label.predicted) for label in labels(file, "same")} == {
        ("one", "positive"),
        ("other", "negative"),
    }


def test_labels_count_against_the_allowance_of_their_key(bundle_folder: Path, tmp_path: Path) -> None:
    key, known = new_key("annotators")
    limits: dict[str, Any] = {"texts_per_second_per_key": 0.01, "max_texts_per_request": 3, "api_keys": [str(known)]}
    with (
        served({"mood": bundle_folder}, feedback_store=str(tmp_path / "labels.db"), **limits) as url,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=20) as client,
    ):
        sent = {"request_id": "naïve", "index": 0, "label": "negative"}
        assert [client.post(ROUTE, json=sent).status_code for _ in range(4)] == [404, 404, 404, 429]
        documented = client.get("/openapi.json").json()["paths"][ROUTE]["post"]["responses"]
    assert "429" in documented


def test_no_number_of_look_ups_holds_up_a_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "LOOK_AGAIN_S", ())
    file, are_done = tmp_path / "labels.db", threading.Event()

    class Slow(Store):
        def answer(self, request_id: str, key: str) -> Answer | None:
            are_done.wait(5)
            return super().answer(request_id, key)

    async def keep() -> None:
        taking = Feedback(Slow(str(file), wait_s=5), Settings(feedback_store=str(file)))
        taking.start()
        looks = [asyncio.create_task(taking.answered(str(n), "", 0)) for n in range(8)]
        await asyncio.sleep(0)
        await taking.keep(Label("r", "", 0, 1.0, 2.0, "mood", "v", "negative", "positive", 0.9, None))
        assert not any(look.done() for look in looks)
        are_done.set()
        await asyncio.gather(*looks, return_exceptions=True)
        await taking.close()

    asyncio.run(keep())
    assert len(labels(file, "r")) == 1


def test_labels_are_counted(client: httpx.Client) -> None:
    def value() -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith('heed_feedback_total{model="mood"}'))

    before = value()
    client.post(ROUTE, json={"request_id": asked(client), "index": 0, "label": "negative"})
    assert value() == before + 1


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_text_is_kept_only_with_its_label_unless_all_are(bundle_folder: Path, tmp_path: Path, is_kept: bool) -> None:
    file, text, pair = tmp_path / "labels.db", "a lovely xyzzy film", ("a xyzzy film", "was good")
    with (
        served({"mood": bundle_folder}, feedback_store=str(file), keep_text=is_kept) as url,
        httpx.Client(base_url=url) as client,
    ):
        of_text, of_pair = asked(client, text), client.post("/v1/classify", json={"pairs": [pair]}).json()["request_id"]
        for request_id in (of_text, of_pair):
            response = client.post(ROUTE, json={"request_id": request_id, "index": 0, "label": "positive"})
            assert response.json()["has_text"] is is_kept
        files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert (b"xyzzy" in files) is is_kept
        sent = {"request_id": of_pair, "index": 0, "label": "negative", "text": "other", "text_pair": "words"}
        assert client.post(ROUTE, json=sent).status_code == 202
    assert [label.text for label in labels(file, of_text)] == [text if is_kept else None]
    assert [label.text for label in labels(file, of_pair)] == [pair if is_kept else ("other", "words")]


def test_another_replica_takes_a_label_that_comes_right_after_the_answer(bundle_folder: Path, postgres: Any) -> None:
    store = postgres.database()
    models = {"mood": bundle_folder}
    with served(models, feedback_store=store) as one, served(models, feedback_store=store) as other:
        for _ in range(3):
            with httpx.Client(base_url=one) as client:
                request_id = asked(client)
            sent = {"request_id": request_id, "index": 0, "label": "negative"}
            assert httpx.post(f"{other}{ROUTE}", json=sent).status_code == 202
            assert len(labels(parse_store(store), request_id)) == 1
        for stranger in ("nobody", "nobody\x00"):  # which PostgreSQL does not take
            assert httpx.post(f"{other}{ROUTE}", json={**sent, "request_id": stranger}).status_code == 404


def test_a_replica_that_stops_has_remembered_what_it_answered(bundle_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.db"
    with served({"mood": bundle_folder}, feedback_store=str(file)) as url, httpx.Client(base_url=url) as client:
        request_id = asked(client)
    store = Store(str(file), wait_s=5)
    assert store.answer(request_id, "") is not None
    store.close()


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another process writes, and does not end."""
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@contextlib.contextmanager
def full(file: Path) -> Iterator[None]:
    """No file may grow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.with_name("labels.db-wal").stat().st_size, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("trouble", [locked, full])
def test_a_store_that_fails_is_a_503_and_what_was_answered_meanwhile_can_be_labelled_later(
    bundle_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: Any,
) -> None:
    monkeypatch.setattr(feedback, "STORE_WAIT_S", 0)
    file = tmp_path / "labels.db"
    with served({"mood": bundle_folder}, feedback_store=str(file)) as url, httpx.Client(base_url=url) as client:

        def give(request_id: str) -> httpx.Response:
            return client.post(ROUTE, json={"request_id": request_id, "index": 0, "label": "negative", "text": "xyzzy"})

        before = asked(client)
        assert give(before).status_code == 202
        with trouble(file):
            meanwhile = asked(client)
            for request_id in (before, before, meanwhile):
                refused = give(request_id)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
                assert refused.headers["retry-after"] == "1"
                assert "xyzzy" not in refused.text
        assert [give(request_id).status_code for request_id in (before, meanwhile)] == [202, 202]
        assert client.get("/health").status_code == 200
    [line] = [line for line in caplog.messages if "the label" in line]  # once
    assert line.startswith(f"the label of an answer to request {before} was not kept: the feedback store cannot be")


def test_answers_that_cannot_be_stored_are_forgotten_oldest_first_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replica: Replica
) -> None:
    monkeypatch.setattr(feedback, "WAITING_BYTES", 4000)
    monkeypatch.setattr(feedback, "BATCH", 3)
    model = replica.service.models.find("mood")
    settings = Settings(feedback_store=str(tmp_path / "labels.db"), keep_text=True)

    async def remember() -> Feedback:
        store = Store(str(tmp_path / "labels.db"), wait_s=0)
        remembering = Feedback(store, settings)
        for n in range(100):
            remembering.remember(str(n), "", model, ["a" * 300], [])
        with locked(tmp_path / "labels.db"):
            remembering.start()
            await asyncio.sleep(2 * feedback.WRITE_EVERY_S)
        await remembering.close()
        return remembering

    def dropped() -> float:
        return float(metrics.UNREMEMBERED._value.get())

    before = dropped()
    asyncio.run(remember())
    store = Store(str(tmp_path / "labels.db"), wait_s=0)
    assert [n for n in range(100) if store.answer(str(n), "")] == [96, 97, 98, 99]
    assert dropped() - before == 96
    store.close()


def test_old_answers_are_forgotten_while_it_runs(bundle_folder: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "labels.db")
    store = Store(file, wait_s=5)
    store.remember([Answer(str(n), "", time.time() - n * 86_400 - 60, "mood", "v", [None], None) for n in range(5)])
    with served({"mood": bundle_folder}, feedback_store=file, feedback_days=3, feedback_answers=2) as url:
        while store.counts()["mood"].remembered > 2:
            time.sleep(0.05)
        sent = {"request_id": "3", "index": 0, "label": "negative"}
        assert "for 3 days, of the last 2 texts" in httpx.post(f"{url}{ROUTE}", json=sent).text
    assert [store.answer(str(n), "") is not None for n in range(5)] == [True, True, False, False, False]
    store.close()


def test_without_a_store_there_is_no_such_route_and_no_sqlalchemy(replica: Replica) -> None:
    assert httpx.post(f"{replica.url}{ROUTE}", json={}).json()["error"]["code"] == "no_such_route"
    assert ROUTE not in httpx.get(f"{replica.url}/openapi.json").json()["paths"]
    program = "import sys, service.routes, service.settings; assert 'sqlalchemy' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
