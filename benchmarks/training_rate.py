"""Tokens a second of `heed train` and of the Hugging Face Trainer, on the same rows from the same encoder, in turns.

    python benchmarks/training_rate.py --train train.jsonl.gz --init minilm --rows 4000 --batch 32 --rounds 3

Each way is a process of its own that trains one epoch of the same rows, in bf16 on all cores or on the GPU, with the
same rows a batch, each read once, and says how many tokens of text (no padding) it read in the seconds of its loop, its
setting up left out. The Trainer is used as its documentation shows, with a batch padded to its longest row; and a
second time with rows of like lengths together, which is an option of it and what Heed does. It runs in an environment
of its own below --environments (benchmarks/environments.py).
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

from environments import default_folder, python_with
from timing import markdown, ratio, take_turns

PINS = ("transformers==5.23.0", "accelerate==1.12.0")
MAX_TOKENS = 128  # of a row; a longer one is cut
HEED, TRAINER, GROUPED = "heed train", "Trainer", "Trainer, by length"


def heed_rate(train: Path, init: str, batch: int, folder: Path) -> float:
    """`heed train` from start to bundle; the rate is what its manifest says, with the look at dev."""
    out = folder / "bundle"
    command = [sys.executable, "-m", "service", "train", "--train", str(train), "--init", init, "--out", str(out)]
    for setting in ("epochs=1", "adversarial=0", "precision=bf16", f"batch_rows={batch}", f"max_tokens={MAX_TOKENS}"):
        command += ["--set", setting]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parent.parent)
    made_by = json.loads((out / "heed.json").read_text(encoding="utf-8"))["made_by"]
    shutil.rmtree(out)
    return float(made_by["cost"]["tokens_per_s"])


def trainer_rate(python: str, rows: Path, encoder: Path, batch: int, *, grouped: bool) -> float:
    """The same with transformers, in its environment."""
    program = Path(__file__).with_name("trainer.py")
    command = [python, str(program), str(rows), str(encoder), str(batch), str(MAX_TOKENS), str(int(grouped))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def some_rows(train: Path, rows: int, folder: Path) -> Path:
    """The first rows of a file, as plain JSONL."""
    with gzip.open(train, "rt", encoding="utf-8") as lines:
        text = "".join(islice(lines, rows))
    path = folder / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def main() -> None:
    """Rounds, and the median of their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, metavar="FILE", help="JSONL, as .gz, with text and label")
    parser.add_argument("--init", default="minilm", help="as heed train")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=32, help="rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--environments", type=Path, default=default_folder(), metavar="FOLDER")
    args = parser.parse_args()
    from training.commands import starting_point

    python = python_with(PINS, args.environments)
    encoder = starting_point(args.init)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = some_rows(args.train, args.rows, folder)
        rates = take_turns(
            {
                HEED: lambda: heed_rate(rows, args.init, args.batch, folder),
                TRAINER: lambda: trainer_rate(python, rows, encoder, args.batch, grouped=False),
                GROUPED: lambda: trainer_rate(python, rows, encoder, args.batch, grouped=True),
            },
            args.rounds,
        )
    table = [
        {
            "way": way,
            "tokens/s": ", ".join(f"{rate:,.0f}" for rate in of_way),
            "heed over it": ratio(rates[HEED], of_way),
        }
        for way, of_way in rates.items()
    ]
    print(markdown(table))
    print(
        f"\n{args.rows:,} rows, {args.batch} a batch, {args.rounds} rounds in turns; the ratio is the median of theirs"
    )


if __name__ == "__main__":
    main()
