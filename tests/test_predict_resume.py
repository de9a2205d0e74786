"""heed predict --resume: what an interrupted run left is gone on with, and nothing else is."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from outputs import unpacked
from samples import ROOT, rows

from service import predict_command
from service.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv.gz", "out.tsv.zst", "out.parquet"])
def test_a_run_that_stopped_goes_on_and_gives_the_same_file(
    name: str,
    bundle_folder: Path,
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
    capsys: Capture,
    small_chunks: None,
) -> None:
    content: list[dict[str, object]] = [{"id": i} | row for i, row in enumerate(rows(700))]
    del content[450]["text"]
    source, out = write_jsonl(content), tmp_path / name
    command = ["predict", str(bundle_folder), str(source), "--keep", "id", "--precision", "bf16", "--out"]
    assert main([*command, str(out)]) == 2
    assert "448 rows are kept, and --resume goes on" in capsys.readouterr().err
    assert not out.exists()
    with (tmp_path / f"{name}.partial").open("ab") as file:
        file.write(b"written after the last checkpoint")
    assert main([*command, str(out), "--bad-rows", "skip"]) == 2
    assert "an interrupted run left it: --resume goes on" in capsys.readouterr().err
    assert main([*command, str(out), "--bad-rows", "skip", "--resume"]) == 0
    assert "700 rows (448 of them before)" in capsys.readouterr().err
    whole = tmp_path / f"whole-{name}"
    assert main([*command, str(whole), "--bad-rows", "skip", "--resume"]) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert len(unpacked(out)) == 700
    assert not list(tmp_path.glob("*partial*"))


def test_another_run_does_not_go_on(
    bundle_folder: Path,
    opposite_folder: Path,
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
    capsys: Capture,
    small_chunks: None,
) -> None:
    source, out = write_jsonl([*rows(200), {}]), tmp_path / "out.jsonl"

    def resumed(folder: Path, *more: str) -> str:
        assert main(["predict", str(folder), str(source), "--out", str(out), "--resume", *more]) == 2
        return capsys.readouterr().err

    assert "192 rows are kept" in resumed(bundle_folder)
    assert "another top_k, remove out.jsonl.partial.json to begin anew: null became 1" in resumed(
        bundle_folder, "--top-k", "1"
    )
    assert "another model" in resumed(opposite_folder)
    assert "another precision" in resumed(bundle_folder, "--precision", "int8")
    with (tmp_path / "out.jsonl.partial").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another run is writing it" in resumed(bundle_folder)
    source.write_text(source.read_text() + '{"text": "more"}\n')
    assert "another input" in resumed(bundle_folder)
    (tmp_path / "out.jsonl.partial").write_text("")
    assert "does not hold what out.jsonl.partial.json says" in resumed(bundle_folder)


@pytest.mark.parametrize("when", ["before it is opened", "before it is locked"])
@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_a_run_that_another_overtakes_leaves_its_file_alone(
    name: str,
    when: str,
    bundle_folder: Path,
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
    capsys: Capture,
    small_chunks: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, out = write_jsonl([*rows(100), {}]), tmp_path / name
    command = ["predict", str(bundle_folder), str(source), "--out", str(out)]
    assert main(command) == 2
    assert "64 rows are kept" in capsys.readouterr().err
    place, overtaken = (predict_command, "check_same") if when == "before it is opened" else (fcntl, "flock")
    really = getattr(place, overtaken)

    def late(*arguments: Any) -> None:
        monkeypatch.setattr(place, overtaken, really)
        assert main([*command, "--bad-rows", "skip", "--resume"]) == 0
        really(*arguments)

    monkeypatch.setattr(place, overtaken, late)
    assert main([*command, "--bad-rows", "skip", "--resume"]) == 2
    assert f"another run has gone on with it or completed it, look at {name} first" in capsys.readouterr().err
    assert len(unpacked(out)) == 101
    assert not list(tmp_path.glob("*partial*"))


@pytest.mark.slow
@pytest.mark.parametrize(("sign", "name"), [(signal.SIGKILL, "out.jsonl.gz"), (signal.SIGINT, "out.parquet")])
def test_a_killed_process_costs_no_row(sign: signal.Signals, name: str, bundle_folder: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / name
    line = "".join(json.dumps(row) + "\n" for row in rows(2000))
    source.write_text(line * 100)
    command = ["predict", str(bundle_folder), str(source), "--keep", "label", "--out"]
    program = [sys.executable, "-m", "service", *command, str(out)]

    def heed_interruptions() -> None:  # which a shell's background jobs, and what they start, do not
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    running = subprocess.Popen(program, cwd=ROOT, stderr=subprocess.PIPE, preexec_fn=heed_interruptions)
    state = tmp_path / f"{name}.partial.json"
    while not state.exists():
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(sign)
    _, said = running.communicate(timeout=60)
    assert running.returncode == (1 if sign == signal.SIGINT else -sign)
    assert (b"interrupted, " in said and b"--resume goes on\n" in said) == (sign == signal.SIGINT)
    assert 0 < json.loads(state.read_text())["totals"]["rows"] < 200_000
    assert main([*command, str(out), "--resume"]) == 0
    assert main([*command, str(tmp_path / f"whole-{name}")]) == 0
    assert out.read_bytes() == (tmp_path / f"whole-{name}").read_bytes()
