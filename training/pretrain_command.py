"""`heed pretrain`: parse, call one function, print the result, return an exit code."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from model.device import choose_device
from training.commands import add_run_arguments, read_config, seconds_of, starting_point
from training.corpus import TextFiles
from training.pretrain import pretrain
from training.pretrain_build import PretrainConfig
from training.pretrain_report import result_text

if TYPE_CHECKING:
    import argparse


def add_pretrain_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `heed pretrain`."""
    parser.add_argument(
        "--text",
        type=Path,
        nargs="+",
        action="extend",
        required=True,
        metavar="FILE",
        help="texts: .jsonl, .csv, .tsv or .parquet with a field text, or .txt with a text a line, "
        "a paragraph where empty lines part them; any but Parquet with .gz or .zst",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="ENCODER", help="folder to write; must not exist")
    parser.add_argument(
        "--init",
        metavar="LOCATION",
        help="encoder to go on from, with its tokenizer: a folder or hf:OWNER/REPO[@REVISION]; default: from scratch",
    )
    parser.add_argument("--budget", metavar="TIME", help="stop in time, 90s, 10m or 1h30m; default: by --set epochs")
    add_run_arguments(parser, PretrainConfig)
    parser.add_argument("--text-column", default="text", metavar="NAME", help="field that holds the text")
    parser.add_argument("--bad-rows", choices=["error", "skip"], default="error", help="what to do with a bad row")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--json", action="store_true", help="figures as JSON")


def pretrain_command(args: argparse.Namespace) -> int:
    """Pretrain an encoder and write its folder."""
    texts = TextFiles(args.text, args.text_column, skip_bad=args.bad_rows == "skip")
    result = pretrain(
        read_config(args.config, args.set, PretrainConfig),
        texts,
        args.out,
        init=starting_point(args.init) if args.init else None,
        device=choose_device(args.device),
        budget_s=seconds_of(args.budget) if args.budget else None,
        resume=args.resume,
        command=shlex.join(["heed", *sys.argv[1:]]),
    )
    if texts.skipped:
        print(f"skipped {len(texts.skipped)} bad rows, the first: {texts.skipped[0]}", file=sys.stderr)
    if args.json:
        print(json.dumps({"encoder": str(args.out), **result}))
        return 0
    print(result_text(result))
    print(f"encoder {args.out}, version {result['version']}")
    return 0
