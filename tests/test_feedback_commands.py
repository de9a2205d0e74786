"""`heed feedback` as its user types it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from service.cli import main
from service.feedback_store import Answer, Label, Store
from training.data import read_dataset

if TYPE_CHECKING:
    from pathlib import Path

    Capture = pytest.CaptureFixture[str]

DAY_S = 86_400


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A store with labels of today and of ten days ago."""
    now = time.time()
    label = Label("r", "team", 0, now, now, "mood", "v1", "negative", "positive", 0.9, "naïve film")
    store = Store(str(tmp_path / "labels.db"), wait_s=5)
    store.remember([Answer("r", "team", now, "mood", "v1", [("positive", 0.9)], None)])
    store.keep(label)
    store.keep(replace(label, index=1, label="positive", text=("a", "b"), at=now - 10 * DAY_S))
    store.keep(replace(label, index=2, text=None))
    store.keep(replace(label, request_id="s", model="tags", label=["a", "b"], predicted=[], key=""))
    store.close()
    return str(tmp_path / "labels.db")


def test_labels_are_exported_as_training_reads_them(store: str, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out.jsonl"
    assert main(["feedback", "export", store, "--model", "mood", "--out", str(out)]) == 0
    assert "2 labels; 1 more have no text" in capsys.readouterr().err
    examples = read_dataset(out).examples
    assert [(example.text, example.labels) for example in examples] == [
        (("a", "b"), ("positive",)),
        ("naïve film", ("negative",)),
    ]
    assert main(["feedback", "export", store, "--model", "tags"]) == 0
    row = json.loads(capsys.readouterr().out)
    at = row.pop("at")
    assert at.endswith("+00:00")
    assert row == {
        "text": "naïve film",
        "labels": ["a", "b"],
        "request_id": "s",
        "index": 0,
        "model": "tags",
        "version": "v1",
        "predicted": [],
        "score": 0.9,
        "key": None,
    }


def test_labels_since_a_date_are_exported(store: str, capsys: Capture) -> None:
    yesterday = time.strftime("%Y-%m-%d", time.gmtime(time.time() - DAY_S))
    assert main(["feedback", "export", store, "--since", yesterday]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_labels_are_counted_by_model(store: str, capsys: Capture) -> None:
    assert main(["feedback", "count", store]) == 0
    assert capsys.readouterr().out.splitlines()[0] == (
        "mood: 3 labels, 2 of them with their text, to train on; 1 agree with the model; 1 requests can be labelled"
    )
    assert main(["feedback", "count", store, "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["tags"] == {"labels": 1, "with_text": 1, "agreeing": 0, "remembered": 0}


@pytest.mark.parametrize(
    ("which", "deleted", "left"),
    [
        (["--older-than", "9d"], 1, {"mood": 2, "tags": 1}),
        (["--older-than", "241h"], 0, {"mood": 3, "tags": 1}),
        (["--request-id", "r"], 4, {"tags": 1}),
        (["--request-id", "nobody"], 0, {"mood": 3, "tags": 1}),
        (["--older-than", "0m"], 5, {}),
    ],
)
def test_labels_are_deleted_by_request_or_age(
    store: str, capsys: Capture, which: list[str], deleted: int, left: dict[str, int]
) -> None:
    assert main(["feedback", "delete", store, *which]) == 0
    assert capsys.readouterr().out == f"{deleted} answers and labels deleted\n"
    assert main(["feedback", "count", store, "--json"]) == 0
    assert {name: count["labels"] for name, count in json.loads(capsys.readouterr().out).items()} == left


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["count", "nowhere.db"], "no such store: "),
        (["count", "postgresql://heed:xyzzy@db/labels"], "holds a password"),
        (["export", "postgresql://127.0.0.1:1/labels"], "the feedback store cannot be used"),
    ],
)
def test_a_store_that_is_not_there_is_one_line_and_exit_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["feedback", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "xyzzy" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("which", [[], ["--older-than", "soon"], ["--older-than", "1d", "--request-id", "r"]])
def test_a_deletion_names_exactly_one_thing(store: str, which: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["feedback", "delete", store, *which])
    assert left.value.code == 2
