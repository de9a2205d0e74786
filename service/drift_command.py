"""`heed drift`: how far the texts of a file are from those that a model was measured on; exit 3 where one is far."""

from __future__ import annotations

import json
import sys
from itertools import islice
from typing import TYPE_CHECKING

from model.bundle import load_bundle
from model.device import choose_device
from model.drift import LARGE, Reference, Window, values_of
from model.location import local_folder, parse_location
from model.records import read_texts
from service.answers import seen
from service.predict import answer_all
from service.predictor import Predictor

if TYPE_CHECKING:
    import argparse

DRIFTED = 3
CHUNK_TEXTS, EMBEDDED = 4096, 512  # texts of a chunk, and those of them whose embeddings are looked at


def add_drift_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `heed drift`."""
    parser.add_argument("bundle", metavar="BUNDLE", help="folder of a bundle, or REGISTRY/NAME@ALIAS")
    parser.add_argument("file", metavar="FILE", help="texts of now, labelled or not; - is stdin, as JSONL")
    parser.add_argument("--text-column", default="text", metavar="NAME", help="field that holds the text")
    parser.add_argument(
        "--threshold", type=float, default=LARGE, metavar="PSI", help=f"exit with 3 above it; default: {LARGE}"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def drift_command(args: argparse.Namespace) -> int:
    """Read the texts, and compare what the model says of them with what it said when it was made."""
    bundle = load_bundle(local_folder(parse_location(args.bundle)))
    reference = Reference(bundle.reference, bundle.labels)
    if not reference.shares:
        raise ValueError(f"the bundle has no statistics to compare with, it was not made by heed train: {args.bundle}")
    predictor, window = Predictor(bundle, choose_device(args.device), "auto"), Window(reference)
    texts = read_texts(args.file, args.text_column)
    while chunk := list(islice(texts, CHUNK_TEXTS)):
        answers = answer_all(predictor, chunk, "truncate")
        window.add(values_of([one for answer in answers if (one := seen(bundle, answer))]))
        if reference.center:
            window.add({"distance": predictor.distances([a.rows[0] for a in answers[:EMBEDDED] if a.rows])})
    if not window.n:
        raise ValueError(f"no texts: {args.file}")
    found = window.psi()
    moved = {signal: psi for signal, psi in found.items() if psi > args.threshold}
    if args.json:
        print(json.dumps({"n": window.n, "version": bundle.version, "psi": found, "drifted": sorted(moved)}))
    else:
        for signal, psi in found.items():
            print(f"{signal:<10} {psi:6.3f}{'  over ' + format(args.threshold, 'g') if signal in moved else ''}")
        print(f"heed drift: {window.n:,} texts against {reference.n:,} held-out ones", file=sys.stderr)
    return DRIFTED if moved else 0
