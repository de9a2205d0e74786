"""`heed feedback`: what an operator does with the labels that a service has kept."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from service.feedback_store import Store
from service.label_queue import choose
from service.settings import parse_store

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from service.feedback_store import Label, Unlabelled

WAIT_S = 60  # for a lock; a replica holds none for so long
UNITS_S = {"m": 60, "h": 3600, "d": 86_400}


def add_feedback_arguments(parser: argparse.ArgumentParser) -> None:
    """What `heed feedback` does, and to what."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")

    def action(name: str, function: Callable[[Store, argparse.Namespace], int]) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=function.__doc__, description=function.__doc__)
        sub.set_defaults(function=function)
        sub.add_argument("store", metavar="STORE", help="the feedback_store of the service: a file, or postgresql://…")
        return sub

    count = action("count", count_command)
    count.add_argument("--json", action="store_true", help="print the result as JSON")
    export = action("export", export_command)
    export.add_argument("--model", metavar="NAME", help="labels of this model only")
    export.add_argument(
        "--since", type=moment, metavar="DATE", help="given since then: 2026-01-31, or with a time (UTC)"
    )
    export.add_argument("--out", type=Path, metavar="FILE", help="JSONL to write; default: stdout")
    which = action("delete", delete_command).add_mutually_exclusive_group(required=True)
    which.add_argument("--request-id", metavar="ID", help="what is stored of this request")
    which.add_argument("--older-than", type=age, metavar="AGE", help="what is older: 30d, 12h, 90m")


def feedback_command(args: argparse.Namespace) -> int:
    """Do what was asked, to a store that is there. Raises ValueError."""
    function: Callable[[Store, argparse.Namespace], int] = args.function
    with opened(args.store) as store:
        return function(store, args)


@contextlib.contextmanager
def opened(name: str) -> Iterator[Store]:
    """A store that is there. Raises ValueError where there is none."""
    location = parse_store(name)
    if "://" not in location and not Path(location).is_file():
        raise ValueError(f"no such store: {location}")
    store = Store(location, WAIT_S)
    try:
        yield store
    finally:
        store.close()


def count_command(store: Store, args: argparse.Namespace) -> int:
    """How many labels there are of each model."""
    counts = store.counts()
    if args.json:
        print(json.dumps({name: asdict(count) for name, count in counts.items()}, indent=2))
        return 0
    for name, count in counts.items():
        print(
            f"{name}: {count.labels:,} labels, {count.with_text:,} of them with their text, to train on; "
            f"{count.agreeing:,} agree with the model; {count.remembered:,} requests can be labelled"
        )
    return 0


def export_command(store: Store, args: argparse.Namespace) -> int:
    """Write the labels that have a text, as `heed train` reads them."""
    written = without_text = 0
    with written_whole(args.out) if args.out else contextlib.nullcontext(sys.stdout) as sink:
        for label in store.labels(args.model, args.since):
            if label.text is None:
                without_text += 1
            else:
                print(json.dumps(row(label), ensure_ascii=False), file=sink)
                written += 1
    print(f"heed feedback: {written:,} labels; {without_text:,} more have no text", file=sys.stderr)
    return 0


def add_label_queue_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `heed label-queue`."""
    parser.add_argument("store", metavar="STORE", help="the feedback_store of the service: a file, or postgresql://…")
    parser.add_argument("--model", metavar="NAME", help="texts that this model answered only")
    parser.add_argument("--count", type=int, default=50, metavar="N", help="how many; default: 50")


def label_queue_command(args: argparse.Namespace) -> int:
    """Print the texts to label next, as JSONL: those that the model is least sure of, no two of them alike."""
    if args.count < 1:
        raise ValueError(f"--count is not at least 1: {args.count}")
    with opened(args.store) as store:
        chosen = choose(store.unlabelled(args.model), args.count)
    for one in chosen:
        texts = [one.text] if isinstance(one.text, str) else one.text
        print(json.dumps(dict(zip(("text", "text_pair"), texts, strict=False)) | without_text(one), ensure_ascii=False))
    if not chosen:
        print("heed label-queue: no text that is kept and not labelled: heed serve --keep-text true", file=sys.stderr)
    return 0


def without_text(one: Unlabelled) -> dict[str, Any]:
    """What `POST /v1/feedback` needs beside a label, and what the model said."""
    return {
        "request_id": one.request_id,
        "index": one.index,
        "model": one.model,
        "predicted": one.predicted,
        "score": one.score,
    }


def row(label: Label) -> dict[str, Any]:
    """A label with its text as a row of a data file."""
    texts = [label.text] if isinstance(label.text, str) else label.text or ()
    name = "label" if isinstance(label.label, str) else "labels"
    return {
        **dict(zip(("text", "text_pair"), texts, strict=False)),
        name: label.label,
        "request_id": label.request_id,
        "index": label.index,
        "model": label.model,
        "version": label.version,
        "predicted": label.predicted,
        "score": label.score,
        "at": datetime.fromtimestamp(label.at, UTC).isoformat(),
        "key": label.key or None,
    }


def delete_command(store: Store, args: argparse.Namespace) -> int:
    """Delete answers, and the labels given to them."""
    deleted = (
        store.delete_request(args.request_id)
        if args.request_id is not None
        else store.delete_before(time.time() - args.older_than)
    )
    print(f"{deleted:,} answers and labels deleted")
    return 0


def age(text: str) -> float:
    """90m, 12h or 30d in seconds. Raises ValueError."""
    found = re.fullmatch(r"(\d{1,6})([mhd])", text)
    if not found:
        raise ValueError(text)
    return float(found[1]) * UNITS_S[found[2]]


def moment(text: str) -> float:
    """A date or time of ISO 8601, of UTC where it names no zone, in seconds since 1970. Raises ValueError."""
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


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
