"""`heed predict`: a file of texts -> a file of answers. Parse, open both ends, run, say what was done.

Reads: predict() -> the input and what it keeps -> the model -> the output, or what is left of it -> chunks,
here (predict.py) or on a cluster (predict_ray.py) -> the output takes its name.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from model.location import local_folder, parse_location
from model.records import FileError, open_source
from service.predict_columns import ALL, check_column, choose_kept
from service.predict_file import Stream, Unwritten, check_same, identity, partial_file, read_state
from service.predict_output import choose_format, is_table, own_fields
from service.predict_progress import Progress
from service.predict_rows import Reading

if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator

    from model.manifest import Described
    from model.records import Source
    from service.predict_columns import Kept
    from service.predict_file import Sink
    from service.predict_output import Format
    from service.predict_rows import Written
    from service.schemas import OnLong

STDOUT = Path("stdout.jsonl")


class Runner(Protocol):
    """Where the chunks are answered; settings are what the last bits of a score depend on."""

    settings: dict[str, Any]

    @property
    def bundle(self) -> Described:
        """The model."""

    def run(self, reading: Reading, output: Format, on_long: OnLong) -> Generator[Written]:
        """Each chunk as it is written, in order."""


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `heed predict`."""
    parser.add_argument(
        "bundle", metavar="BUNDLE", help="folder of a bundle or a Hugging Face checkpoint, or hf:OWNER/REPO[@REVISION]"
    )
    parser.add_argument(
        "file",
        nargs="?",
        default="-",
        metavar="FILE",
        help="rows with text (and text_pair): .jsonl, .csv, .tsv, also with .gz or .zst, or .parquet; "
        "- is stdin, as JSONL",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="what to write, by the same suffixes; default: stdout")
    parser.add_argument(
        "--keep", metavar="COLUMNS", help=f"fields of the input to write too: NAME,NAME or {ALL}; default: none"
    )
    parser.add_argument("--top-k", type=int, metavar="N", help="labels per text; default: all")
    parser.add_argument("--text-column", default="text", metavar="NAME", help="field that holds the text")
    parser.add_argument(
        "--on-long",
        default="truncate",
        choices=["truncate", "error", "window"],
        help="what to do with a text that is longer than the model reads; default: truncate",
    )
    parser.add_argument(
        "--bad-rows",
        default="error",
        choices=["error", "skip"],
        help="a row without a text: stop there, or give it an error in its place; default: error",
    )
    parser.add_argument("--resume", action="store_true", help="go on with what an interrupted run left beside --out")
    parser.add_argument("--json", action="store_true", help="with --out: what was done, as JSON on stdout")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16", "int8"])
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="run on a Ray cluster: HOST:PORT, auto (the one of this machine) or local"
    )


def predict_command(args: argparse.Namespace) -> int:
    """Label the texts of a file, in order."""
    check_usage(args)
    progress = Progress()
    try:
        predict(args, progress)
    except KeyboardInterrupt:
        print(f"heed predict: interrupted, {progress.kept()}", file=sys.stderr)
        return 1
    except Unwritten as error:
        print(f"heed predict: {error}; {progress.kept()}", file=sys.stderr)
        return 1
    print(progress.summary(), file=sys.stderr)
    if args.json:
        print(json.dumps(progress.figures()))
    return 0


def predict(args: argparse.Namespace, progress: Progress) -> None:
    """Open both ends, load the model and run; the output takes its name where all of it was written."""
    before = read_state(args.out, resume=args.resume) if args.out else None
    wanted = None if args.keep == ALL else frozenset({args.text_column, "text_pair", *(args.keep or "").split(",")})
    with open_source(args.file, wanted) as source:
        check_column(args.text_column, source)
        runner = choose_runner(args, before)
        output, kept = choose_output(args, source, runner.bundle)
    settings = None if args.file == "-" else settings_of(args, runner)
    if before and settings:
        check_same(args.out, before, settings)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(partial_file(output, before, settings)) if args.out else None
        sink = file or Stream(sys.stdout.buffer)
        skip_rows = sink.totals.rows
        reading = Reading(file=args.file, text_column=args.text_column, kept=kept, only=wanted, skip_rows=skip_rows)
        with progress.of(sink, keeps=file is not None and settings is not None):
            stop_at = source.name if args.bad_rows == "error" else None
            write_all(runner.run(reading, output, args.on_long), sink, progress, stop_at)


def check_usage(args: argparse.Namespace) -> None:
    """Raise ValueError for flags that cannot be, before anything is loaded."""
    if args.top_k is not None and args.top_k < 1:
        raise ValueError(f"--top-k is not at least 1: {args.top_k}")
    if args.out and is_table(args.out) and args.top_k not in (None, 1):
        raise ValueError(
            f"a table has a column for the best label, and without --top-k one for the score of each: {args.top_k}"
        )
    if args.out and args.out.is_dir():
        raise ValueError(f"{args.out}: is a folder, name a file in it")
    if args.resume and not args.out:
        raise ValueError("--resume goes on with the file of --out, which is missing")
    if args.json and not args.out:
        raise ValueError("with --json what was done goes to stdout, so give the answers a file: --out")
    if args.file == "-" and (args.resume or args.ray):
        raise ValueError(f"stdin cannot be read {'again by --resume' if args.resume else 'on a cluster'}: give a file")


def choose_runner(args: argparse.Namespace, before: dict[str, Any] | None) -> Runner:
    """What answers, with the model loaded; a run that goes on has the precision that it had."""
    folder = local_folder(parse_location(args.bundle))
    precision = before["settings"].get("precision", "auto") if before and args.precision == "auto" else args.precision
    if args.ray:
        from service.predict_ray import OnRay

        return OnRay(args.ray, folder, args.device, precision)
    from model.bundle import load_bundle
    from model.device import choose_device
    from service.predict import Here
    from service.predictor import Predictor

    predictor = Predictor(load_bundle(folder), choose_device(args.device), precision)
    gc.freeze()  # else collections look through all of torch again and again: 20 µs a text, twice what writing it costs
    return Here(predictor)


def choose_output(args: argparse.Namespace, source: Source, bundle: Described) -> tuple[Format, Kept]:
    """How the answers are written, and what of the input beside them."""
    path = args.out or STDOUT
    kept = choose_kept(args.keep, source, own_fields(path, bundle, args.top_k), is_table=is_table(path))
    return choose_format(path, bundle, args.top_k, kept.columns or {}, source.schema), kept


def settings_of(args: argparse.Namespace, runner: Runner) -> dict[str, Any]:
    """What a run must have in common with the one that it goes on with, to give the same file."""
    return {
        "heed": importlib.metadata.version("heed"),
        "input": identity(Path(args.file)),
        "model": runner.bundle.version,
        **runner.settings,
        "text_column": args.text_column,
        "keep": args.keep,
        "top_k": args.top_k,
        "on_long": args.on_long,
    }


def write_all(written: Generator[Written], sink: Sink, progress: Progress, stop_at: str | None) -> None:
    """Write chunk after chunk. Raises FileError at a bad row of the file that stop_at names; None: they are skipped."""
    with contextlib.closing(written):  # also its threads
        for chunk in written:
            if chunk.first_bad and stop_at:
                line, reason = chunk.first_bad.args
                raise FileError(
                    f"{stop_at}:{line}: {reason} (--bad-rows skip gives it an error in its place; {progress.kept()})"
                )
            sink.write(chunk)
            progress.add(chunk)
