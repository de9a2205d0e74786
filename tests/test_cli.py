"""The command as its user types it: results, one-line errors, exit codes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from samples import rows

from service.cli import COMMANDS, main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Capture = pytest.CaptureFixture[str]


def test_evaluate_prints_figures_or_json(
    bundle_folder: Path, write_jsonl: Callable[..., Path], capsys: Capture
) -> None:
    data = str(write_jsonl(rows(200, seed=3)))
    assert main(["evaluate", str(bundle_folder), "--data", data]) == 0
    assert "macro-F1" in capsys.readouterr().out
    assert main(["evaluate", str(bundle_folder), "--data", data, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["n"] == 200
    assert figures["accuracy"]["low"] <= figures["accuracy"]["value"] <= figures["accuracy"]["high"]


def test_predict_answers_in_order_what_the_service_would(
    bundle_folder: Path, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    content = rows(3000, seed=4)
    out = tmp_path / "out.jsonl"
    assert main(["predict", str(bundle_folder), str(write_jsonl(content)), "--out", str(out), "--top-k", "1"]) == 0
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(answers) == 3000
    right = sum(a["labels"][0]["label"] == row["label"] for a, row in zip(answers, content, strict=True))
    assert right > 2850


def test_the_end_of_a_long_text_counts_with_windows(
    bundle_folder: Path, write_jsonl: Callable[..., Path], capsys: Capture
) -> None:
    ends = {"positive": "lovely", "negative": "awful"}
    data = str(
        write_jsonl([{"text": "the film " * 40 + f"{word} " * 40, "label": label} for label, word in ends.items()])
    )
    found = {}
    for on_long in ("truncate", "window"):
        assert main(["evaluate", str(bundle_folder), "--data", data, "--on-long", on_long, "--json"]) == 0
        found[on_long] = json.loads(capsys.readouterr().out)["accuracy"]["value"]
        assert main(["predict", str(bundle_folder), data, "--on-long", on_long]) == 0
        answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [len(a.get("windows", [])) > 1 for a in answers] == [on_long == "window"] * 2
    assert found == {"truncate": 0.5, "window": 1.0}


def test_predict_never_touches_its_input_and_leaves_no_half_written_file(
    bundle_folder: Path, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    same = write_jsonl(rows(20))
    assert main(["predict", str(bundle_folder), str(same), "--out", str(same)]) == 0
    assert len(same.read_text().splitlines()) == 20
    bad = write_jsonl([*rows(20), {"text": 1}], "bad")
    assert main(["predict", str(bundle_folder), str(bad), "--out", str(tmp_path / "out.jsonl")]) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.jsonl", "data.jsonl"]


def test_predict_reads_tables_and_pairs(bundle_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.csv").write_text("text,text_pair\na lovely film,and warm\n")
    assert main(["predict", str(bundle_folder), str(tmp_path / "a.csv")]) == 0
    assert json.loads(capsys.readouterr().out)["labels"][0]["label"] == "positive"


def test_train_reads_yaml_and_set_and_writes_a_bundle(
    write_jsonl: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("layers: 1\nwidth: 16\nheads: 1\nvocab_size: 100\nepochs: 9\n")
    arguments = ["--train", str(write_jsonl(rows(200))), "--out", str(tmp_path / "b"), "--config", str(config)]
    assert main(["train", *arguments, "--set", "epochs=1", "--set", "lr=1e-3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dev"]["n"] > 5
    manifest = json.loads((tmp_path / "b" / "heed.json").read_text())
    assert (manifest["made_by"]["config"]["epochs"], manifest["made_by"]["config"]["lr"]) == (1, 1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "nowhere", "--data", "x.jsonl"], "no config.json in the folder: nowhere"),
        (["predict", "nowhere", "x.jsonl"], "no config.json in the folder: nowhere"),
        (["serve", "nowhere"], "no bundle folder: nowhere"),
        (["serve", "--port", "http"], "port: "),
        (["train", "--train", "nowhere.jsonl", "--out", "b"], "nowhere.jsonl: No such file"),
        (["train", "--train", "x.jsonl", "--out", "b", "--set", "colour=1"], "no setting is named colour, there are: "),
        (["train", "--train", "x.jsonl", "--out", "b", "--set", "epochs=many"], "epochs: "),
        (["train", "--train", "x.jsonl", "--out", "b", "--set", "epochs=0"], "epochs is not at least 1: 0"),
        (["train", "--train", "x.jsonl", "--out", "b", "--device", "tpu"], "device"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").write_text('{"text": "a", "label": "x"}\n')
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"heed {arguments[0]}: ")
    assert message in error


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert f"heed {command} " in capsys.readouterr().out.split("example:")[1]
