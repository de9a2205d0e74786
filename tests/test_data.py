"""Reading labelled files, splitting and batching them."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pyarrow
import pyarrow.parquet
import pytest
from samples import rows

from model.records import FileError
from model.scores import MULTI, SINGLE
from training.data import Columns, DataError, Example, epoch_batches, is_dev, read_dataset, split, targets

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

zstd = pyarrow.Codec("zstd").compress
GOOD_ROW = '{"text": "fine", "label": "x"}\n'


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"label": "x"}', "no field named text, there are: label"),
        ('{"text": "a"}', "no field named label"),
        ('{"text": " ", "label": "x"}', "text is empty"),
        ('{"text": 1.5, "label": "x"}', "text is not a string: float"),
        ('{"text": "a", "label": ["x"]}', "label is not a string: list"),
        ('{"text": "a", "labels": ["x"]}', "a list of labels here and one above"),
        ('{"text": "a", "text_pair": 1, "label": "x"}', "text_pair is not a string: int"),
        ('{"text": "a\\ud800", "label": "x"}', "half a surrogate pair"),
        ('{"text": "a", "text_pair": "\\ud800", "label": "x"}', "text_pair holds half a surrogate pair"),
        ('{"text": "a", "label": "\\ud800"}', "label holds half a surrogate pair"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_reason(tmp_path: Path, row: str, reason: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(GOOD_ROW + "\n" + row + "\n" + GOOD_ROW)
    with pytest.raises(DataError, match=f"data.jsonl:3: .*{reason}"):
        read_dataset(file)
    skipped = read_dataset(file, bad_rows="skip")
    assert len(skipped.examples) == 2
    assert len(skipped.skipped) == 1


def test_a_line_that_is_not_utf_8_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD_ROW.encode() + b"\xff\n")
    with pytest.raises(DataError, match="a.jsonl:2: not UTF-8"):
        read_dataset(tmp_path / "a.jsonl")


def test_every_form_of_a_file_holds_the_same_rows(tmp_path: Path) -> None:
    table = 'text,label\n"one, two\nthree",x\nfour,y\n'
    (tmp_path / "a.csv").write_text(table)
    (tmp_path / "a.tsv").write_text(table.replace("one, two", "one; two").replace(",", "\t").replace(";", ","))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(table.encode()))
    (tmp_path / "a.csv.zst").write_bytes(zstd(table.encode(), asbytes=True))
    columns = {"text": ["one, two\nthree", "four"], "label": ["x", "y"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    expected = [Example("one, two\nthree", ("x",)), Example("four", ("y",))]
    for name in ("a.csv", "a.tsv", "a.csv.gz", "a.csv.zst", "a.parquet"):
        assert read_dataset(tmp_path / name).examples == expected


def test_a_row_with_another_number_of_columns_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,x\nb,y,z\n")
    with pytest.raises(DataError, match="a.csv:3: number of columns"):
        read_dataset(tmp_path / "a.csv")


def test_a_quote_that_is_never_closed_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\na,x\n"b" c,y\n')
    with pytest.raises(FileError, match="a.csv:3: "):
        read_dataset(tmp_path / "a.csv")


def test_columns_can_have_other_names_and_labels_can_be_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"review": "a", "stars": 1}\n{"review": "b", "stars": 5}\n')
    assert read_dataset(tmp_path / "a.jsonl", Columns("review", "stars")).label_names == ["1", "5"]


def test_lists_of_labels_make_an_indicator_and_may_be_empty(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "labels": ["x", "y"]}\n{"text": "b", "labels": []}\n')
    dataset = read_dataset(tmp_path / "a.jsonl")
    assert dataset.problem_type == MULTI
    assert targets(dataset, ["x", "y"]).tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.xml", b"", "suffix is not one of"),
        ("a.csv", b"text,label\na,x\n\xff,y\n", "a.csv:3: not UTF-8"),
        ("a.csv", b"text,text\na,b\n", "a.csv:1: two columns have one name: text"),
        ("a.parquet.gz", b"", "suffix is not one of"),
        ("a.parquet", b"no Parquet", "magic bytes"),
        ("a.jsonl.zst", b"plain", "ZSTD decompress failed"),
        ("a.jsonl.zst", zstd(GOOD_ROW.encode(), asbytes=True)[:-3], "Truncated"),
        ("a.jsonl.gz", b"plain", "[Nn]ot a gzipped file"),
        ("a.jsonl.gz", gzip.compress(b"x" * 1000)[:20], "end-of-stream"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=reason):
        read_dataset(tmp_path / name)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="none.jsonl: No such file"):
        read_dataset(tmp_path / "none.jsonl")


def test_the_split_is_by_text_and_stays_when_rows_are_added(write_jsonl: Callable[..., Path]) -> None:
    _, before = split(read_dataset(write_jsonl(rows(500))))
    _, after = split(read_dataset(write_jsonl(rows(500) + rows(500, seed=1))))
    assert set(before.texts) <= set(after.texts)
    assert 0.05 < len(after.texts) / 1000 < 0.15
    assert is_dev("A text ") == is_dev("a text")


def test_a_label_that_the_model_does_not_have_is_refused(write_jsonl: Callable[..., Path]) -> None:
    dataset = read_dataset(write_jsonl([{"text": "a", "label": "new"}]))
    assert dataset.problem_type == SINGLE
    with pytest.raises(DataError, match="no label named new, it has: old"):
        targets(dataset, ["old"])


def test_an_epoch_takes_each_row_once_in_an_order_that_only_its_number_changes() -> None:
    lengths = [1 + i % 37 for i in range(500)]
    plan = [epoch_batches(lengths, batch_rows=8, batch_tokens=100, seed=0, epoch=e) for e in (0, 0, 1)]
    assert plan[0] == plan[1] != plan[2]
    assert sorted(i for batch in plan[0] for i in batch) == list(range(500))
    for batch in plan[0]:
        assert len(batch) * max(lengths[i] for i in batch) <= 100
        assert len(batch) <= 8
