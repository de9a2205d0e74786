"""Offline prediction as its user runs it: every format, kept columns, bad rows, a cluster."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from outputs import unpacked
from samples import ROOT, rows

from model.bundle import load_bundle
from model.device import choose_device
from model.records import PARQUET_ROWS, open_source, rows_at_once
from service import predict_progress, predict_rows
from service.cli import main
from service.predict import answer_all, predict_texts
from service.predict_columns import Kept
from service.predict_output import result_fields, to_json
from service.predict_rows import Reading
from service.predictor import Predictor
from service.schemas import OnLong, text_result

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from model.tokens import Row, Text

    Capture = pytest.CaptureFixture[str]

LONG = "the film was lovely " * 40
TEXTS: list[Text] = ["a lovely film", ("an awful film", "and dull"), LONG, (LONG, "short"), (LONG, LONG), ""]


@pytest.fixture(scope="module")
def predictor(bundle_folder: Path) -> Predictor:
    return Predictor(load_bundle(bundle_folder), choose_device("cpu"), "fp32")


@pytest.mark.parametrize("on_long", get_args(OnLong))
@pytest.mark.parametrize("top_k", [None, 1])
@pytest.mark.parametrize("model", ["bundle_folder", "tags_folder"])
def test_a_line_is_what_the_service_answers(
    on_long: OnLong, top_k: int | None, model: str, request: pytest.FixtureRequest
) -> None:
    predictor = Predictor(load_bundle(request.getfixturevalue(model)), choose_device("cpu"), "fp32")
    labels = predictor.bundle.labels
    for answer in answer_all(predictor, TEXTS, on_long):
        expected = text_result(labels, answer, top_k).model_dump(exclude_none=True)
        assert json.loads(to_json(result_fields(labels, answer, top_k))) == expected


def test_equal_texts_are_computed_once(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[Row] = []
    plan = predictor.plan
    monkeypatch.setattr(predictor, "plan", lambda rows: plan(computed.__iadd__(rows)))
    answers = list(predict_texts(predictor, ["good", "bad", "good", ("good", "bad"), "good"], None))
    assert len(computed) == 3
    assert answers[0] == answers[2] == answers[4] != answers[1]


@pytest.mark.parametrize("name", ["out.jsonl.gz", "out.jsonl.zst", "out.csv", "out.tsv.zst", "out.parquet"])
def test_every_format_holds_the_same_answers(
    name: str, bundle_folder: Path, write_jsonl: Callable[..., Path], tmp_path: Path, small_chunks: None
) -> None:
    data = str(write_jsonl([*rows(200), {"text": LONG}]))
    for out in ("expected.jsonl", name):
        command = ["predict", str(bundle_folder), data, "--out", str(tmp_path / out), "--on-long", "error"]
        assert main(command) == 0
    expected = unpacked(tmp_path / "expected.jsonl")
    found = unpacked(tmp_path / name)
    assert len(found) == 201
    if ".jsonl" in name:
        assert found == expected
        return
    for row, answer in zip(found[:-1], expected, strict=False):
        assert row["label"] == answer["labels"][0]["label"]
        for each in answer["labels"]:
            assert float(row[f"score_{each['label']}"]) == each["score"]
        sets = row["label_set"].split("|") if isinstance(row["label_set"], str) else row["label_set"]
        assert [label for label in sets if label] == answer["label_set"]
        assert str(row["abstained"]).lower() == str(answer["abstained"]).lower()
        assert int(row["tokens"]) == answer["tokens"]
    assert found[-1]["error"] == expected[-1]["error"]["code"] == "too_many_tokens"
    assert not found[-1]["label"]


def test_a_table_with_one_label_has_no_score_of_the_others(
    bundle_folder: Path, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    assert main(["predict", str(bundle_folder), str(write_jsonl(rows(2))), "--out", str(out), "--top-k", "1"]) == 0
    assert out.read_text().splitlines()[0] == "label,score,label_set,abstained,tokens,truncated_tokens,error"


def test_kept_columns_come_first_and_none_is_written_over(bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('id,label,text\n007,x,a lovely film\n008,"y,z",an awful film\n')
    for keep, names in (("all", ["id", "input_label", "text"]), ("id", ["id"])):
        out = tmp_path / "out.tsv"
        assert main(["predict", str(bundle_folder), str(tmp_path / "in.csv"), "--out", str(out), "--keep", keep]) == 0
        first, second = csv.DictReader(io.StringIO(out.read_text()), delimiter="\t")
        assert list(first)[: len(names) + 1] == [*names, "label"]
        assert (first["id"], first["label"], second["label"]) == ("007", "positive", "negative")


def test_parquet_keeps_types_and_json_says_them(bundle_folder: Path, tmp_path: Path) -> None:
    day = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)
    columns = {"id": [1, None], "at": [day, None], "of": [[1.5], []], "text": ["a lovely film", "an awful film"]}
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table(columns), source)
    for out in ("out.parquet", "out.jsonl"):
        assert (
            main(["predict", str(bundle_folder), str(source), "--out", str(tmp_path / out), "--keep", "id,at,of"]) == 0
        )
    kept = pq.read_table(tmp_path / "out.parquet").select(["id", "at", "of"])
    assert kept.equals(pq.read_table(source).select(["id", "at", "of"]))
    first = unpacked(tmp_path / "out.jsonl")[0]
    assert (first["id"], first["at"], first["of"]) == (1, "2026-01-02T03:04:00+00:00", [1.5])


def test_parquet_keeps_the_values_of_categories(bundle_folder: Path, tmp_path: Path) -> None:
    kinds = pa.array(["a", None, "b"]).dictionary_encode()
    nested = pa.ListArray.from_arrays([0, 1, 2, 3], kinds)
    columns = {"kind": kinds, "nested": nested, "text": ["a lovely film", "an awful film", "dull"]}
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table(columns), source)
    assert pa.types.is_dictionary(pq.read_schema(source).field("kind").type)
    assert main(["predict", str(bundle_folder), str(source), "--out", str(out), "--keep", "kind,nested"]) == 0
    assert pq.read_table(out)["kind"].to_pylist() == ["a", None, "b"]
    assert pq.read_table(out)["nested"].to_pylist() == [["a"], [None], ["b"]]


@pytest.mark.parametrize("name", ["out.csv", "out.tsv"])
def test_a_table_is_read_back_whatever_ends_lines_in_it(name: str, bundle_folder: Path, tmp_path: Path) -> None:
    ends = ["a\rb", "\r", "a\nb", "a\r\nb\r\n", "a\tb,c", 'a"b']
    source, out = tmp_path / "in.jsonl", tmp_path / name
    source.write_text("".join(json.dumps({"text": "good", "of\rit": end}) + "\n" for end in ends))
    assert main(["predict", str(bundle_folder), str(source), "--out", str(out), "--keep", "all"]) == 0
    assert [row["of\rit"] for row in unpacked(out)] == ends
    assert out.read_bytes().count(b"\r\n") == 2


def test_what_json_cannot_spell_does_not_end_the_run(
    bundle_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text(
        '{"text": "good", "a": NaN, "b": "\\ud800", "c": {"d": [Infinity]}, "labels": 1}\n'
    )
    assert main(["predict", str(bundle_folder), str(tmp_path / "in.jsonl"), "--keep", "all"]) == 0
    row = json.loads(capfd.readouterr().out)
    assert (row["a"], row["b"], row["c"], row["input_labels"]) == (None, "\ud800", {"d": [None]}, 1)
    for out in ("out.csv", "out.parquet"):
        command = ["predict", str(bundle_folder), str(tmp_path / "in.jsonl"), "--keep", "all", "--out"]
        assert main([*command, str(tmp_path / out)]) == 0
        [row] = unpacked(tmp_path / out)
        assert (row["a"] or None, row["b"], row["c"]) == (None, "?", '{"d":[null]}')


def test_a_bad_row_stops_the_run_or_has_an_error_in_its_place(
    bundle_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b'{"text": "good", "id": 1}\n{"text": 5, "id": 2}\n{\n\xff\n{"text": "bad", "id": 3}\n')
    command = ["predict", str(bundle_folder), str(source), "--out", str(out), "--keep", "id"]
    assert main(command) == 2
    assert f"{source}:2: text is missing or not a string: int (--bad-rows skip" in capsys.readouterr().err
    assert not out.exists()
    assert main([*command, "--bad-rows", "skip", "--json"]) == 0
    said = capsys.readouterr()
    assert "3 without a text" in said.err
    figures = json.loads(said.out)
    assert (figures["rows"], figures["bad_rows"], figures["failed"]) == (5, 3, 0)
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer.get("id") for answer in answers] == [1, 2, None, None, 3]
    assert [answer.get("error", {}).get("code") for answer in answers] == [None, *["bad_row"] * 3, None]
    assert answers[1]["error"]["message"] == "line 2: text is missing or not a string: int"
    assert str(tmp_path) not in out.read_text()


def test_a_row_with_a_field_that_the_table_has_no_column_for_is_bad(
    bundle_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "good", "id": 1}\n{"text": "bad", "new": 2}\n')
    command = ["predict", str(bundle_folder), str(tmp_path / "in.jsonl"), "--keep", "all", "--out"]
    assert main([*command, str(tmp_path / "out.csv")]) == 2
    assert "in.jsonl:2: the first row has no such field" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "out.jsonl")]) == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_cluster_gives_the_same_file(bundle_folder: Path, write_jsonl: Callable[..., Path], tmp_path: Path) -> None:
    source = write_jsonl([*({"id": i} | row for i, row in enumerate(rows(9000))), {"id": 9000}])
    command = ["predict", str(bundle_folder), str(source), "--precision", "bf16", "--keep", "id", "--bad-rows", "skip"]
    for name, more in (("here.jsonl", []), ("there.jsonl", ["--ray", "local"])):
        program = [sys.executable, "-m", "service", *command, "--out", str(tmp_path / name), *more]
        subprocess.run(program, cwd=ROOT, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (tmp_path / "here.jsonl").read_bytes() == (tmp_path / "there.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_auto_means_on_a_cluster_is_kept_for_a_run_that_goes_on(
    bundle_folder: Path, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = write_jsonl([*rows(2100), {}]), tmp_path / "out.jsonl"
    command = ["predict", str(bundle_folder), str(source), "--out", str(out), "--ray", "local", "--device", "cpu"]
    program = [sys.executable, "-m", "service", *command]
    said = subprocess.run(program, cwd=ROOT, stderr=subprocess.PIPE, text=True).stderr
    assert "2,048 rows are kept" in said
    settings = json.loads((tmp_path / "out.jsonl.partial.json").read_text())["settings"]
    assert (settings["device"], settings["precision"] in {"fp32", "bf16"}) == ("ray cpu", True)


def test_no_cluster_is_one_line(bundle_folder: Path, write_jsonl: Callable[..., Path], capsys: Capture) -> None:
    data = str(write_jsonl(rows(2)))
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        assert main(["predict", str(bundle_folder), data, "--ray", address]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_huge_texts_are_few_in_a_chunk(write_jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_rows, "CHUNK_CHARS", 1000)
    source = write_jsonl([{"text": "x" * 300, "more": "y" * 300} for _ in range(10)])
    for kept, most in ((Kept({}), 4), (Kept({"more": "more"}), 2)):
        chunks = list(Reading(file=str(source), text_column="text", kept=kept, only=None).chunks())
        assert max(len(chunk.texts) for chunk in chunks) == most
        assert sum(len(chunk.texts) for chunk in chunks) == 10
        assert 0 < chunks[0].share <= chunks[-1].share == 1  # type: ignore[operator]


def test_whatever_is_kept_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_rows, "CHUNK_CHARS", 1000)
    for large in ("y" * 300, b"y" * 300, ["y" * 150] * 2, [{"of": ["y" * 300]}], [1.0] * 40):
        pq.write_table(pa.table({"text": ["good"] * 9, "more": [large] * 9}), tmp_path / "in.parquet")
        kept = Kept({"more": "more"})
        reading = Reading(file=str(tmp_path / "in.parquet"), text_column="text", kept=kept, only=None)
        assert [len(chunk.texts) for chunk in reading.chunks()] == [4, 4, 1]


def test_large_rows_of_parquet_are_few_in_memory(tmp_path: Path) -> None:
    for row_bytes, rows_decoded in ((1, PARQUET_ROWS), (2**20, 15)):
        pq.write_table(pa.table({"of": [os.urandom(row_bytes) for _ in range(20)]}), tmp_path / "in.parquet")
        assert rows_at_once(pq.read_metadata(tmp_path / "in.parquet")) == rows_decoded
    pq.write_table(pa.table({"of": []}), tmp_path / "in.parquet")
    assert rows_at_once(pq.read_metadata(tmp_path / "in.parquet")) == PARQUET_ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv.gz", "a.parquet"])
def test_a_file_says_how_much_of_it_was_read(name: str, tmp_path: Path) -> None:
    content = [str(i) * 100 for i in range(5000)]
    if name == "a.jsonl":
        (tmp_path / name).write_text("".join(f'{{"text": "{text}"}}\n' for text in content))
    elif name == "a.csv.gz":
        (tmp_path / name).write_bytes(gzip.compress("\n".join(["text", *content]).encode()))
    else:
        pq.write_table(pa.table({"text": content, "other": content}), tmp_path / name)
    with open_source(tmp_path / name, {"text"}) as source:
        shares = [source.share() for _ in source.records]
    assert shares == sorted(shares)  # type: ignore[type-var]
    assert 0 < shares[0] < 0.9 < shares[-1] == 1  # type: ignore[operator]


def test_a_log_hears_how_far_it_is(
    bundle_folder: Path,
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
    capsys: Capture,
    small_chunks: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(predict_progress, "LOG_EVERY_S", 0.0)
    assert main(["predict", str(bundle_folder), str(write_jsonl(rows(100))), "--out", str(tmp_path / "o.jsonl")]) == 0
    first, second, summary = capsys.readouterr().err.splitlines()
    assert first.startswith("heed predict: ")
    assert "rows/s" in first
    assert "100% 100/100" in second
    assert summary.startswith("heed predict: 100 rows in ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jsonl"], "none.jsonl: No such file"),
        (["in.xml"], "suffix is not one of"),
        (["in.csv"], "in.csv: no column named text, there are: a, b"),
        (["in.csv", "--text-column", "a", "--keep", "c"], "in.csv: no column named c, there are: a, b"),
        (
            ["twice.csv", "--keep", "all", "--out", "out.csv"],
            "label would be input_label in the output, which is there already",
        ),
        (["broken.parquet"], "broken.parquet: Parquet magic bytes"),
        (["cut.jsonl.gz"], "cut.jsonl.gz: Compressed file ended"),
        (["cut.jsonl.gz", "--out", "out.jsonl"], "cut.jsonl.gz: Compressed file ended"),
        (["in.jsonl", "--out", "none/out.jsonl"], "none/out.jsonl: No such file or directory"),
        (["in.jsonl", "--out", "folder.jsonl"], "folder.jsonl: is a folder"),
        (["in.jsonl", "--out", "out.xml"], "out.xml: suffix is not one of"),
        (["in.jsonl", "--out", "out.csv", "--top-k", "2"], "a table has a column for the best label"),
        (["in.jsonl", "--top-k", "0"], "--top-k is not at least 1: 0"),
        (["in.jsonl", "--resume"], "--resume goes on with the file of --out"),
        (["in.jsonl", "--json"], "--json"),
        (["-", "--out", "out.jsonl", "--resume"], "stdin cannot be read again"),
        (["-", "--out", "out.csv", "--keep", "all"], "name them in --keep"),
    ],
)
def test_what_cannot_be_read_or_written_is_one_line(
    arguments: Sequence[str],
    message: str,
    bundle_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.jsonl").mkdir()
    files = {
        "in.jsonl": b'{"text": "good"}\n',
        "in.xml": b"",
        "in.csv": b"a,b\n1,2\n",
        "twice.csv": b"text,label,input_label\na,b,c\n",
        "broken.parquet": b"no" * 10,
        "cut.jsonl.gz": gzip.compress(b'{"text": "good"}\n')[:-4],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert main(["predict", str(bundle_folder), *arguments]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert message in said.err
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*files, "folder.jsonl"])


@pytest.mark.parametrize("name", ["in.parquet", "in.jsonl.zst"])
def test_what_needs_a_package_names_it(
    name: str, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["predict", str(bundle_folder), str(tmp_path / name)]) == 2
    assert "pip install 'heed[parquet]'" in capsys.readouterr().err


def test_stdin_flows_through(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b'{"text": "a lovely film"}\n{"text": "an awful film"}\n'))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["predict", str(bundle_folder), "--top-k", "1"]) == 0
    labels = [json.loads(line)["labels"][0]["label"] for line in capfd.readouterr().out.splitlines()]
    assert labels == ["positive", "negative"]
