"""`heed`: the one command. Finds the module that does the work by its name, so that `heed --help` is quick
and the packages stay apart (service imports model only; training is reached from here by name).

Exit codes: 0 done; 2 the input or the usage is wrong (one line on stderr); 3 a candidate was not promoted;
1 anything else.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Command:
    """`module` has add_NAME_arguments(parser) and NAME_command(args) -> exit code, a dash of NAME as an underscore."""

    module: str
    summary: str
    example: str


COMMANDS = {
    "train": Command(
        "training.commands",
        "train a classifier from labelled text",
        "heed train --train reviews.csv --out bundles/reviews --set epochs=2",
    ),
    "pretrain": Command(
        "training.pretrain_command",
        "learn an encoder from unlabelled text",
        "heed pretrain --text wiki.jsonl.gz reviews.csv --out encoders/en --budget 30m  (an --init of train)",
    ),
    "evaluate": Command(
        "training.commands",
        "measure a bundle on labelled text",
        "heed evaluate bundles/reviews --data test.jsonl --json",
    ),
    "retrain": Command(
        "training.retrain_command",
        "learn from new labels, and put the result into production if it is better",
        "heed retrain --registry models --name mood --new labels.jsonl",
    ),
    "predict": Command(
        "service.predict_command",
        "label the texts of a file, offline",
        "heed predict bundles/reviews new.jsonl --out labelled.jsonl",
    ),
    "registry": Command(
        "service.registry_commands",
        "versions of models, and which is in production",
        "heed registry add models mood bundles/mood --promote",
    ),
    "key": Command(
        "service.key_commands",
        "make an API key",
        "heed key mobile-app >> keys  (and then: heed serve --api-keys-file keys)",
    ),
    "serve": Command(
        "service.commands",
        "answer HTTP requests",
        "heed serve reviews=bundles/reviews --port 8000",
    ),
    "feedback": Command(
        "service.feedback_commands",
        "labels that users gave to answered texts",
        "heed feedback export labels.db --out labelled.jsonl",
    ),
    "drift": Command(
        "service.drift_command",
        "how far texts are from those that a model was measured on",
        "heed drift models/mood@production recent.jsonl",
    ),
    "label-queue": Command(
        "service.feedback_commands",
        "which answered texts to label next",
        "heed label-queue labels.db --count 50",
    ),
    "bench": Command(
        "service.bench",
        "load a running server, find its knee",
        "heed bench http://127.0.0.1:8000 --data reviews.csv",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser("heed", description="Train a text classifier and serve it.")
    parser.add_argument("--version", action="version", version=importlib.metadata.version("heed"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name, help=command.summary, description=command.summary, epilog=f"example: {command.example}"
        )
        if name in argv[:1]:  # only the chosen command's module is imported
            module = importlib.import_module(command.module)
            getattr(module, f"add_{name.replace('-', '_')}_arguments")(sub)
    args = parser.parse_args(argv)
    try:
        code: int = getattr(module, f"{args.command.replace('-', '_')}_command")(args)
    except (ValueError, OSError) as error:
        print(f"heed {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"heed {args.command}: interrupted", file=sys.stderr)
        return 1
    return code
