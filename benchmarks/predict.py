"""A whole `heed predict` against what the encoder does offline (offline.py), and whether its memory stays flat.

    python benchmarks/predict.py BUNDLE TEXTS --rows 1000000 --out out.jsonl --rounds 3

Each round writes so many rows, the texts of the file over and over (equal ones are far apart: none is saved), measures
the encoder on that file, runs the command on it, and measures the encoder again. The command's rate is of its wall
time, from start to exit; "at work" leaves out the start of Python and the loading of the model. Resident memory is
sampled while rows are written: medians of the first and the last quarter of the run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from offline import offline_rate

from model.records import read_texts
from service.settings import available_cores

EVERY_S = 0.5


@dataclass(frozen=True)
class Run:
    """One `heed predict`: rates in rows/s, memory in MB."""

    rate: float
    rate_at_work: float
    first_mb: float
    last_mb: float


def write_rows(texts: Path, rows: int, folder: Path) -> Path:
    """A file of so many rows with the texts of another."""
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i, text in enumerate(itertools.islice(itertools.cycle(list(read_texts(str(texts), "text"))), rows)):
            fields = {"text": text} if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}
            file.write(json.dumps({"id": i} | fields) + "\n")
    return path


def predict(bundle: Path, rows: Path, out: Path, precision: str) -> Run:
    """Run the command and watch its memory."""
    command = [sys.executable, "-m", "service", "predict", str(bundle), str(rows), "--keep", "id", "--json"]
    start, memory = time.perf_counter(), []
    running = subprocess.Popen(
        [*command, "--out", str(out), "--precision", precision],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    partial = out.with_name(f"{out.name}.partial.json")  # there is one from the first checkpoint on
    while running.poll() is None:
        if partial.exists():
            memory.append(resident_mb(running.pid))
        time.sleep(EVERY_S)
    seconds = time.perf_counter() - start
    if running.returncode or len(memory) < 4:
        raise SystemExit(f"heed predict ended with {running.returncode}, or before its memory could be seen: more rows")
    assert running.stdout is not None
    figures = json.loads(running.stdout.read())
    quarter = len(memory) // 4
    first, last = statistics.median(memory[:quarter]), statistics.median(memory[-quarter:])
    return Run(figures["rows"] / seconds, figures["rows_per_s"], first, last)


def resident_mb(pid: int) -> float:
    """Resident memory of a process; 0 of one that has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def main() -> None:
    """Rounds, and their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seconds", type=float, default=20.0, help="of the encoder alone, before and after each run")
    parser.add_argument("--out", help="what is written; its suffix says in which format", default="out.jsonl")
    args = parser.parse_args()
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        bundle, out = args.bundle.absolute(), Path(folder) / args.out
        rows = write_rows(args.texts, args.rows, Path(folder))

        def ceiling() -> float:
            rates = offline_rate(bundle, rows, args.precision, available_cores(), args.seconds)
            return max(rates.values())

        print("| encoder before | after | heed predict | at work | of the encoder | MB, first quarter | last |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for _ in range(args.rounds):
            before, run, after = ceiling(), predict(bundle, rows, out, args.precision), ceiling()
            shares.append(run.rate / statistics.mean((before, after)))
            rates = (f"{rate:,.0f}" for rate in (before, after, run.rate, run.rate_at_work))
            print("|", " | ".join([*rates, f"{shares[-1]:.2f}", f"{run.first_mb:,.0f}", f"{run.last_mb:,.0f}"]), "|")
    print(f"\n{args.rows:,} rows, {args.rounds} rounds: median {statistics.median(shares):.2f} of the encoder")


if __name__ == "__main__":
    main()
