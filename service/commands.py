"""`heed serve` and `heed predict`: parse, call one function, print the result, return an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, get_args

from tqdm import tqdm

from model.location import RegistryEntry, local_folder, parse_location
from model.records import read_texts
from service.settings import Settings, load_settings, parse_specs, wants_spans

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

    from model.location import Location


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `heed serve`: one for each setting."""
    parser.add_argument(
        "models",
        nargs="*",
        metavar="[NAME=]LOCATION",
        help="a bundle's folder, REGISTRY/NAME@ALIAS_OR_VERSION (an alias is followed) or hf:OWNER/REPO[@REVISION]; "
        "default: the model that comes with Heed",
    )
    parser.add_argument("--config", type=Path, metavar="YAML", help="settings by name")
    for name, field in Settings.model_fields.items():
        if name != "models":
            default = "" if field.default in (None, []) else f" (default: {field.default})"
            flag = f"--{name.replace('_', '-')}"
            parser.add_argument(flag, metavar=_metavar(field), help=f"{field.description}{default}")


def serve_command(args: argparse.Namespace) -> int:
    """Serve until it is stopped."""
    flags = {name: getattr(args, name) for name in Settings.model_fields if getattr(args, name) not in (None, [])}
    settings = load_settings(flags, args.config)
    os.environ.pop("HEED_API_KEYS", None)  # hashed by now, and no process that is started here needs it
    check_access(settings)
    specs = parse_specs(settings.models)
    for spec in specs:
        print(f"heed serve: {spec.name} from {spec.location}", file=sys.stderr)
    found = [f"{spec.name}={found_once(spec.location)}" for spec in specs]
    from service.launch import serve_forever

    serve_forever(settings.model_copy(update={"models": found}))
    return 0


def check_access(settings: Settings) -> None:
    """Say who may ask. Raises ValueError where a replica would: a file without keys, spans that cannot be sent."""
    from service.access import Access

    if wants_spans(os.environ):
        from service.tracing import Tracing

        Tracing.from_environment().close()
    access = Access(settings)
    if not access.is_open:
        print(f"heed serve: for callers with a key: {', '.join(access.names)}", file=sys.stderr)


def found_once(location: Location) -> Location:
    """Where replicas find the model, without a download in each; an alias stays one, for they follow it.

    Raises LocationError where there is none.
    """
    folder = local_folder(location)
    return location if isinstance(location, RegistryEntry) and location.is_alias else folder


def _metavar(field: FieldInfo) -> str:
    choices = get_args(field.annotation)
    return "{" + ",".join(choices) + "}" if choices and isinstance(choices[0], str) else "VALUE"


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
        help="rows with text (and text_pair): .jsonl, .csv, .tsv, or with .gz; - is stdin, as JSONL",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSONL to write; default: stdout")
    parser.add_argument("--top-k", type=int, metavar="N", help="labels per text; default: all")
    parser.add_argument("--text-column", default="text", metavar="NAME", help="field that holds the text")
    parser.add_argument(
        "--on-long",
        default="truncate",
        choices=["truncate", "error", "window"],
        help="what to do with a text that is longer than the model reads; default: truncate",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16", "int8"])


def predict_command(args: argparse.Namespace) -> int:
    """Label the texts of a file, in order."""
    from model.bundle import load_bundle
    from model.device import choose_device
    from service.predict import predict_texts
    from service.predictor import Predictor

    if args.top_k is not None and args.top_k < 1:
        raise ValueError(f"--top-k is not at least 1: {args.top_k}")
    predictor = Predictor(
        load_bundle(local_folder(parse_location(args.bundle))), choose_device(args.device), args.precision
    )
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(written_whole(args.out)) if args.out else sys.stdout
        bar = stack.enter_context(tqdm(desc="predict", unit="text", leave=False, disable=None))
        texts = read_texts(args.file, args.text_column)
        for answer in predict_texts(predictor, texts, args.top_k, args.on_long):
            print(answer.model_dump_json(exclude_none=True), file=sink)
            bar.update()
    return 0


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[TextIO]:
    """A file to write that takes its name when it is complete, and goes where it is not."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
