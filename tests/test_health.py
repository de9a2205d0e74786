"""Data health: what is planted in the data is found and named by its line, and honest data is left alone."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np
from samples import BAD, GOOD

from model.scores import MULTI, SINGLE
from service.cli import main
from training import duplicates, label_noise
from training.data import Dataset, Example, read_dataset
from training.health import Finding, check

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pytest

    Capture = pytest.CaptureFixture[str]
    WriteJsonl = Callable[..., Path]

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["".join(random.Random(i).choices(LETTERS, k=3 + i % 6)) for i in range(500)]


def honest(n: int, seed: int = 0, words: Sequence[str] = WORDS) -> list[dict[str, Any]]:
    """n sentences of 8 to 30 words, all unlike, half of them good."""
    rng = random.Random(seed)

    def text(said: list[str]) -> str:
        return " ".join([*rng.choices(words, k=rng.randrange(6, 28)), *rng.choices(said, k=3)])

    return [{"text": text(GOOD if i % 2 else BAD), "label": "positive" if i % 2 else "negative"} for i in range(n)]


def dataset(rows: list[dict[str, Any]]) -> Dataset:
    """As it is read from a file with a row on each line."""
    multi = "labels" in rows[0]
    examples = [
        Example(row["text"], tuple(row["labels"]) if multi else (row["label"],), line)
        for line, row in enumerate(rows, start=1)
    ]
    return Dataset("data.jsonl", examples, MULTI if multi else SINGLE, [], "")


def found(train: list[dict[str, Any]], dev: list[dict[str, Any]], **more: list[dict[str, Any]]) -> dict[str, Finding]:
    """What is found, by kind."""
    parts = {"train": dataset(train), "dev": dataset(dev)} | {name: dataset(rows) for name, rows in more.items()}
    return {finding.kind: finding for finding in check(parts, max_tokens=64).findings}


def test_honest_data_has_nothing_found() -> None:
    health = check({"train": dataset(honest(1000)), "dev": dataset(honest(200, seed=1))}, max_tokens=64)
    assert health.table() == "data: nothing found"


def test_a_held_out_text_that_is_trained_on_is_named_by_both_lines() -> None:
    train, dev = honest(300), honest(100, seed=1)
    dev[6]["text"] = f"  {train[41]['text'].upper()} "
    leak = found(train, dev)["leak"]
    assert leak.rows == [{"dev_line": 7, "train_line": 42, "similarity": 1.0}]
    assert leak.summary == "1 of 100 rows of dev are in train too (dev line 7)"
    assert leak.serious


def test_a_held_out_text_that_is_nearly_trained_on_is_found_in_any_script() -> None:
    train, dev = honest(3000), honest(100, seed=1)
    dev[2]["text"] = train[2500]["text"] + "!!"
    dev[8]["text"] = "送餐太慢了，等了一个半小时，米饭都凉了，菜的味道还可以"
    train[1300]["text"] = "送餐太慢了，等了一个半小时，米饭都凉了，菜的味道还可以。"
    dev[9]["text"] = "ok"
    train[1301]["text"] = "no"
    leak = found(train, dev)["leak"]
    assert [(row["dev_line"], row["train_line"]) for row in leak.rows] == [(3, 2501), (9, 1301)]
    assert all(duplicates.NEAR <= row["similarity"] < 1 for row in leak.rows)
    assert not leak.serious  # two of a hundred
    for i in range(10, 15):
        dev[i]["text"] = train[i]["text"] + " ?"
    assert found(train, dev)["leak"].serious


def test_hundreds_of_texts_that_are_all_alike_are_all_found() -> None:
    template = "your parcel number {} has arrived at the post office of your town and waits for you there until friday"
    seen, texts = ([template.format(i) for i in range(start, start + 300)] for start in (1000, 2000))
    assert [row for row, _, _ in duplicates.near(seen, texts)] == list(range(300))


def test_test_is_held_against_dev_too() -> None:
    test = honest(100, seed=2)
    dev = honest(100, seed=1)
    test[0]["text"] = dev[99]["text"]
    assert found(honest(300), dev, test=test)["leak"].rows == [{"test_line": 1, "dev_line": 100, "similarity": 1.0}]


def test_equal_texts_are_duplicates_and_with_unequal_labels_contradictions() -> None:
    train = honest(300)
    train += [dict(train[4]), {**train[9], "label": "negative"}]
    findings = found(train, honest(100, seed=1))
    assert findings["duplicate"].rows == [{"lines": [5, 301]}]
    assert findings["contradiction"].rows == [{"lines": [10, 302], "labels": [["positive"], ["negative"]]}]
    assert (findings["duplicate"].serious, findings["contradiction"].serious) == (False, True)


def test_swapped_labels_are_at_the_top_of_the_ranking() -> None:
    train = honest(1000)
    swapped = random.Random(5).sample(range(1000), 30)
    for row in swapped:
        train[row]["label"] = {"positive": "negative", "negative": "positive"}[train[row]["label"]]
    noise = found(train, honest(200, seed=1))["label noise"]
    worst = {row["line"] - 1 for row in noise.rows[:30]}
    assert len(worst & set(swapped)) >= 27
    margins = [row["margin"] for row in noise.rows]
    assert margins == sorted(margins, reverse=True)
    assert noise.rows[0]["rather"] != noise.rows[0]["label"] == train[noise.rows[0]["line"] - 1]["label"]
    rows = dataset(train).texts, [str(row["label"]) for row in train], np.arange(1000)
    suspects = label_noise.suspects(*rows)
    assert suspects is not None
    assert suspects.estimate is not None
    assert 25 <= suspects.estimate <= 50


def test_of_large_data_a_sample_is_read_and_the_finding_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_noise, "MAX_ROWS", 600)
    train = honest(1000)
    for row in train[::20]:
        row["label"] = {"positive": "negative", "negative": "positive"}[row["label"]]
    assert "among 600 rows read" in found(train, honest(200, seed=1))["label noise"].summary


def test_held_out_texts_in_another_script_or_of_another_length_are_told() -> None:
    cyrillic = ["".join(chr(ord(letter) - ord("a") + ord("а")) for letter in word) for word in WORDS]
    findings = found(honest(1000), honest(200, seed=1, words=cyrillic))
    assert "LATIN 100.0%, then 0.0%" in findings["script"].summary
    assert findings["script"].serious
    longer = [
        {**row, "text": row["text"] + " " + other["text"]}
        for row, other in zip(honest(200, 1), honest(200, 2), strict=True)
    ]
    assert set(found(honest(1000), longer)) == {"length"}


def test_labels_that_are_few_unmeasured_or_shifted_are_told() -> None:
    train = honest(1000)
    train[3]["label"] = "odd"
    mostly_positive = [row for i, row in enumerate(honest(400, seed=1)) if row["label"] == "positive" or not i % 10]
    findings = found(train, mostly_positive)
    assert findings["few rows"].rows == [{"label": "odd", "rows": 1}]
    assert findings["unmeasured"].rows == [{"label": "odd"}]
    assert "PSI" in findings["label shares"].summary


def test_a_tiny_dev_set_is_not_called_shifted_for_its_size() -> None:
    for seed in range(20):
        assert found(honest(150), honest(12, seed=seed + 1)) == {}


def test_texts_that_will_be_cut_are_counted() -> None:
    train = honest(1000)
    for row in train[:100]:
        row["text"] = " ".join([row["text"]] * 10)
    assert "at least 10.0% of rows" in found(train, honest(200, seed=1))["long"].summary


def test_pairs_and_lists_of_labels_are_looked_at_too() -> None:
    train, dev = (
        [
            {"text": (row["text"], "yes" if i % 3 else "no"), "labels": [row["label"]][: i % 7]}
            for i, row in enumerate(r)
        ]
        for r in (honest(300), honest(100, seed=1))
    )
    dev[0] = train[0]
    assert set(found(train, dev)) == {"leak"}


def test_strict_refuses_serious_findings_and_names_them(
    write_jsonl: WriteJsonl, tmp_path: Path, capsys: Capture
) -> None:
    train, dev = honest(300), honest(100, seed=1)
    dev[6], train[9] = train[41], {**train[8], "label": "positive"}
    files = ["--train", str(write_jsonl(train, "train")), "--dev", str(write_jsonl(dev, "dev"))]
    assert main(["train", *files, "--strict", "--out", str(tmp_path / "b")]) == 2
    refusal = capsys.readouterr().err.splitlines()[-1]
    assert refusal.startswith(
        "heed train: --strict refuses leak: 1 of 100 rows of dev are in train too (dev line 7): take"
    )
    assert refusal.endswith("and 1 more serious findings; --check-only --json lists all rows")
    assert not (tmp_path / "b").exists()


def test_check_only_trains_nothing_and_lists_the_rows(write_jsonl: WriteJsonl, capsys: Capture) -> None:
    train, dev = honest(300), honest(100, seed=1)
    dev[6] = train[41]
    files = ["--train", str(write_jsonl(train, "train")), "--dev", str(write_jsonl(dev, "dev"))]
    assert main(["train", *files, "--check-only"]) == 0
    table = capsys.readouterr().out
    assert table == "data: ! leak          1 of 100 rows of dev are in train too (dev line 7)\n"
    assert main(["train", *files, "--check-only", "--json"]) == 0
    [leak] = json.loads(capsys.readouterr().out)["findings"]
    assert leak["rows"] == [{"dev_line": 7, "train_line": 42, "similarity": 1.0}]


def test_without_a_folder_to_write_nothing_is_trained(write_jsonl: WriteJsonl, capsys: Capture) -> None:
    assert main(["train", "--train", str(write_jsonl(honest(50)))]) == 2
    assert "give --out FOLDER, or --check-only" in capsys.readouterr().err


def test_the_bundle_keeps_what_was_found_without_a_text(bundle_folder: Path) -> None:
    report = (bundle_folder / "report" / "data.json").read_text()
    kinds = [finding["kind"] for finding in json.loads(report)["findings"]]
    assert "duplicate" in kinds  # of its one-word texts
    assert not [word for word in (*GOOD, *BAD) if word in report]


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"one\ntwo",x\nthree,y\n')
    assert [example.line for example in read_dataset(tmp_path / "a.csv").examples] == [3, 4]
