"""How good `heed train` gets: on real data, from each start, beside the linear line on the same rows. One table.

    python benchmarks/accuracy.py --data DATA --sets trec6,banking77 --init scratch,minilm --out FOLDER -- --budget 20m

DATA holds a folder for each set of SETS, with train.jsonl.gz, dev.jsonl.gz and, where there is one, test.jsonl.gz.
Each run is `heed train` as a user would start it, with what SETS says beyond its defaults and what stands after `--`;
its bundle lands in FOLDER/SET-START. A bundle that is there is not trained again, an interrupted run goes on, so the
command can be given again until the table is whole.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timing import markdown

from service.settings import available_cores

SCRATCH, MINILM = "scratch", "minilm"


@dataclass(frozen=True)
class Set:
    """A folder of the data, the part that counts, what to reach from each start, what is set beyond the defaults."""

    folder: str
    part: str
    aims: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    is_english: bool = True


SETS = [
    Set("sst2_glue", "dev", {SCRATCH: "0.845", MINILM: "0.915"}),
    Set("ag_news_partial", "test", {SCRATCH: "0.910", MINILM: "0.925"}),
    Set("trec6", "test", {SCRATCH: "0.92", MINILM: "0.965"}),
    Set("banking77", "dev", {SCRATCH: "0.90", MINILM: "0.925"}),
    Set(
        "clinc150",
        "test",
        {SCRATCH: "0.92, found 0.50", MINILM: "0.955, found 0.65"},
        ("--set", "out_of_scope_label=oos", "--set", "false_alarms=0.04"),  # of 4,500 texts in scope 95% are to be kept
    ),
    Set("goemotions", "dev", {SCRATCH: "0.44", MINILM: "0.48"}),
    Set("imdb", "dev", {SCRATCH: "0.912", MINILM: "0.925"}, ("--set", "max_tokens=512")),
    Set("zh_waimai_10k", "dev", {SCRATCH: "0.91"}, is_english=False),
    Set("zh_tnews", "dev", {SCRATCH: "0.56"}, ("--set", "tokenizer=bpe"), is_english=False),  # words, not characters
    Set("sst5", "dev"),
    Set("sms_spam", "dev"),
]


def train(data: Path, one: Set, start: str, out: Path, rows: int | None, more: list[str]) -> None:
    """One `heed train`, unless its bundle is there. Raises CalledProcessError where it fails."""
    bundle = bundle_of(out, one, start)
    if bundle.exists():
        return
    train_file = data / one.folder / "train.jsonl.gz"
    command = [sys.executable, "-m", "service", "train", "--out", str(bundle), "--json"]
    command += ["--train", str(train_file if rows is None else drawn(train_file, rows, out))]
    for name in ("dev", "test"):
        if (file := data / one.folder / f"{name}.jsonl.gz").exists():
            command += [f"--{name}", str(file)]
    if start != SCRATCH:
        command += ["--init", start]
    if bundle.with_name(f"{bundle.name}.checkpoint").exists():
        command.append("--resume")
    subprocess.run([*command, *one.arguments, *more], check=True, stdout=subprocess.DEVNULL)


def bundle_of(out: Path, one: Set, start: str) -> Path:
    """Where a run's bundle lies."""
    return out.resolve() / f"{one.folder}-{re.sub('[^A-Za-z0-9]+', '-', start).strip('-')}"


def drawn(file: Path, rows: int, out: Path) -> Path:
    """So many rows of a file, the same each time, to try the command on."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        every = list(lines)
    path = out / f"{file.parent.name}-{rows}.jsonl"
    path.write_text("".join(random.Random(0).sample(every, min(rows, len(every)))), encoding="utf-8")
    return path


def row(bundle: Path, one: Set, start: str) -> dict[str, Any]:
    """A line of the table from what the bundle keeps."""
    manifest = json.loads((bundle / "heed.json").read_text(encoding="utf-8"))
    figures = json.loads((bundle / "report" / "metrics.json").read_text(encoding="utf-8"))
    of_part = figures[one.part]
    compared = of_part["linear"]
    return {
        "data": f"{one.folder} {one.part}",
        "start": start,
        "trained on": f"{manifest['made_by']['data']['train']['rows']:,}",
        "figure": compared["figure"].replace("_f1", "-F1"),
        "aim": one.aims.get(start),
        "encoder": points(compared["encoder"]),
        "linear line": points(compared["linear"]),
        "difference (95%)": difference(compared["difference"]),
        "the encoder is": compared["verdict"],
        "ECE": points(of_part["ece"]),
        **promises(of_part.get("reliability") or {}),
        "seconds": f"{manifest['made_by']['seconds']:,}",
    }


def command_of(bundle: Path) -> str:
    """What it was made by."""
    return str(json.loads((bundle / "heed.json").read_text(encoding="utf-8"))["made_by"]["command"])


def promises(reliability: dict[str, Any]) -> dict[str, str | None]:
    """Columns of what a bundle promises; a dash where it promises nothing, or there are no texts out of scope."""
    sets, scope = reliability.get("sets"), reliability.get("scope")
    return {
        "coverage / promised": sets and f"{sets['coverage']['value']:.3f} / {sets['promised']:g}",
        "out of scope found / in scope kept": f"{scope['recall']['value']:.3f} / {scope['kept']['value']:.3f}"
        if scope and scope["recall"]
        else None,
    }


def points(value: float) -> str:
    """A share."""
    return f"{value:.4f}"


def difference(interval: dict[str, float]) -> str:
    """With its interval."""
    return "{value:+.4f} ({low:+.4f} to {high:+.4f})".format(**interval)


def chosen(names: str) -> list[Set]:
    """The sets of a list with commas. Raises ArgumentTypeError for one that there is not."""
    known = {one.folder: one for one in SETS}
    for name in names.split(","):
        if name not in known:
            raise argparse.ArgumentTypeError(f"no set is named so, there are {', '.join(known)}: {name}")
    return [known[name] for name in names.split(",")]


def main() -> None:
    """Train what is missing, and print the table of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--sets", type=chosen, default=SETS, metavar="SET,...", help="default: all")
    parser.add_argument(
        "--init", default=f"{SCRATCH},{MINILM}", metavar="START,...", help=f"{SCRATCH}, or as heed train"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the bundles")
    parser.add_argument("--rows", type=int, metavar="N", help="train on so many rows only, to try the command")
    parser.add_argument("more", nargs="*", metavar="-- ARGUMENT", help="of every heed train")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    runs = [(one, start) for one in args.sets for start in args.init.split(",") if one.is_english or start != MINILM]
    for one, start in runs:
        try:
            train(args.data, one, start, args.out, args.rows, args.more)
        except subprocess.CalledProcessError as error:  # it has said why; the others are worth having
            print(f"{one.folder} from {start} ended with {error.returncode}", file=sys.stderr)
    there = [(bundle_of(args.out, *run), *run) for run in runs]
    print(markdown([row(*run) for run in there if run[0].exists()]))
    print(f"\n{available_cores()} cores. The commands:")
    print("\n".join(f"- `{command_of(bundle)}`" for bundle, *_ in there if bundle.exists()))


if __name__ == "__main__":
    main()
