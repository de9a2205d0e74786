"""What was answered and the labels for it, in SQLite and in a real PostgreSQL."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from service.feedback_store import CHUNK, Answer, Count, Label, Store, StoreError
from service.settings import parse_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ANSWER = Answer("r", "team", 1000.0, "mood", "v1", [("positive", 0.9), None], None)
LABEL = Label("r", "team", 0, 1000.0, 2000.0, "mood", "v1", "negative", "positive", 0.9, "a lovely film")
HARD = "zero \x00, quotes \"'\\, naïve 😀, lines \r\n\u2028"


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return parse_store(str(tmp_path / "labels.db"))
    return parse_store(request.getfixturevalue("postgres").database())


@pytest.fixture
def store(location: str) -> Iterator[Store]:
    store = Store(location, wait_s=20)
    yield store
    store.close()


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER,
        replace(ANSWER, predictions=[], texts=[]),
        replace(ANSWER, predictions=[(["a", "b"], 0.6), ([], 0.2)], texts=[HARD, (HARD, "")]),
    ],
)
def test_an_answer_is_remembered_as_it_was(store: Store, answer: Answer) -> None:
    assert store.answer("r", "team") is None
    store.remember([answer])
    assert store.answer("r", "team") == answer


def test_of_two_answers_to_one_request_id_the_later_is_remembered(store: Store) -> None:
    store.remember([replace(ANSWER, predictions=[("positive", 0.9)] * 3), replace(ANSWER, at=1001.0)])
    later = replace(ANSWER, at=1002.0, predictions=[("negative", 0.7)])
    store.remember([later])
    assert store.answer("r", "team") == later


def test_callers_with_different_keys_may_choose_the_same_request_id(store: Store) -> None:
    answers = [replace(ANSWER, key=key, at=1000.0 + len(key)) for key in ("", "team")]
    store.remember(answers)
    for key in ("", "team"):
        store.keep(replace(LABEL, key=key))
    assert [store.answer("r", key) for key in ("", "team", "other")] == [*answers, None]
    assert {label.key for label in store.labels()} == {"", "team"}
    assert store.delete_request("r") == 4


@pytest.mark.parametrize("text", [None, HARD, (HARD, "b")])
@pytest.mark.parametrize("label", ["negative", ["a", "b"], []])
def test_a_label_is_kept_as_it_was(store: Store, label: str | list[str], text: str | None) -> None:
    kept = replace(LABEL, label=label, predicted=label, text=text)
    store.keep(kept)
    assert list(store.labels()) == [kept]


def test_a_later_label_replaces_the_earlier_one_of_that_answer_alone(store: Store) -> None:
    store.keep(LABEL)
    store.keep(replace(LABEL, index=1))
    store.keep(replace(LABEL, answered_at=1500.0))  # another answer, with the same request id
    later = replace(LABEL, label="positive", at=3000.0, text=None)
    store.keep(later)
    store.keep(later)
    assert list(store.labels()) == [replace(LABEL, answered_at=1500.0), replace(LABEL, index=1), later]


def test_labels_are_found_by_model_and_time_and_counted(store: Store) -> None:
    store.remember([ANSWER, replace(ANSWER, request_id="s"), replace(ANSWER, request_id="t", model="tags")])
    labels = [
        LABEL,
        replace(LABEL, index=1, label="positive", text=None, at=2001.0),
        replace(LABEL, index=2, model="other", at=2002.0),
    ]
    for label in labels:
        store.keep(label)
    assert list(store.labels(model="mood")) == labels[:2]
    assert list(store.labels(since=2001.0)) == labels[1:]
    assert store.counts() == {"mood": Count(2, 1, 1, 2), "other": Count(1, 1, 0, 0), "tags": Count(0, 0, 0, 1)}


def test_answers_that_are_too_old_or_too_many_are_forgotten_and_labels_stay(store: Store) -> None:
    numbers = range(2 * CHUNK + 10)
    store.remember([replace(ANSWER, request_id=str(n), at=float(n)) for n in numbers])
    store.keep(replace(LABEL, at=0.0))

    def left(before: float, most: int) -> int:
        until = store.outdated(before, most)
        rounds = list(itertools.takewhile(bool, iter(lambda: store.forget_some(until), None)))
        assert all(deleted <= CHUNK for deleted in rounds)
        return store.counts()["mood"].remembered

    assert left(-1.0, 2 * len(numbers)) == len(numbers)
    assert left(4.0, 10 * CHUNK) == len(numbers) - 5
    assert left(4.0, 2 * 7) == 7  # of two texts each
    assert left(4.0, 2 * 7 - 1) == 6  # no part of a request
    assert store.answer(str(numbers[-6]), "team") is not None
    assert store.counts()["mood"].labels == 1


def test_what_is_deleted_by_request_id_or_age_is_gone(store: Store) -> None:
    store.remember([ANSWER, replace(ANSWER, request_id="s", at=5000.0)])
    for label in (LABEL, replace(LABEL, index=1), replace(LABEL, request_id="s", at=6000.0)):
        store.keep(label)
    assert store.delete_request("nobody") == 0
    assert store.delete_request("r") == 3
    assert store.answer("r", "team") is None
    assert [label.request_id for label in store.labels()] == ["s"]
    assert store.delete_before(5500.0) == 1
    assert store.delete_before(6001.0) == 1
    assert store.counts() == {}


def test_replicas_that_start_and_write_at_once_lose_nothing(location: str) -> None:
    def replica(number: int) -> None:
        store = Store(location, wait_s=20)
        for i in range(20):
            store.remember([replace(ANSWER, request_id=f"{number}-{j}") for j in range(i, i + 5)])
            store.keep(replace(LABEL, request_id=f"{number}", index=i))
        store.close()

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(replica, range(6)))
    store = Store(location, wait_s=20)
    assert store.counts() == {"mood": Count(120, 120, 0, 6 * 24)}
    store.close()


def test_a_new_file_that_another_replica_is_making_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "labels.db"
    with contextlib.closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")  # SQLite's own patience does not cover the switch to its log
        threading.Timer(0.2, other.execute, ["COMMIT"]).start()
        Store(str(file), wait_s=20).close()


def test_in_a_file_nothing_is_left_of_what_is_deleted_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    file = tmp_path / "labels.db"
    store = Store(str(file), wait_s=5)
    texts = [f"xyzzy {n} " * 50 for n in range(500)]
    store.remember([replace(ANSWER, request_id=str(n), texts=[text]) for n, text in enumerate(texts)])
    store.keep(replace(LABEL, text=texts[0]))

    def files() -> bytes:
        return b"".join(path.read_bytes() for path in tmp_path.iterdir())

    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    assert b"xyzzy" in files()
    store.delete_before(9e9)
    assert b"xyzzy" not in files()
    store.close()


def test_a_store_that_cannot_be_used_is_said_without_what_was_to_be_stored(
    tmp_path: Path,
) -> None:
    with pytest.raises(StoreError, match=r"unable to open database file.*: /nowhere/labels.db"):
        Store("/nowhere/labels.db", wait_s=1)
    (tmp_path / "text.db").write_text("not a database " * 100)
    with pytest.raises(StoreError, match="file is not a database"):
        Store(str(tmp_path / "text.db"), wait_s=1)
    with pytest.raises(StoreError, match=r"refused.*: postgresql\+psycopg://heed@127.0.0.1:1/x"):
        Store(parse_store("postgresql://heed@127.0.0.1:1/x"), wait_s=1)
    store = Store(str(tmp_path / "labels.db"), wait_s=0)
    with sqlite3.connect(tmp_path / "labels.db") as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="database is locked") as error:
            store.keep(replace(LABEL, text="xyzzy"))
    assert "xyzzy" not in str(error.value)
    store.close()


def test_a_wrong_password_is_said_and_not_shown(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = parse_store(request.getfixturevalue("postgres").database())
    monkeypatch.setenv("PGPASSWORD", "xyzzy")
    with pytest.raises(StoreError, match="password authentication failed") as error:
        Store(location, wait_s=5)
    assert "xyzzy" not in str(error.value)
