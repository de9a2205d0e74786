"""Packed rows against padded ones on a CPU: texts/s of the forward pass, by how many texts wait.

    python benchmarks/layout.py BUNDLE TEXTS.jsonl [--json]

What model/batch.py decides rests on this. The ways take turns inside one run, so that a machine whose
speed drifts is as fast for each; the figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from model.batch import Layout, make_batch, plan_passes
from model.bundle import load_bundle
from model.device import DTYPES, choose_precision
from model.records import read_records

if TYPE_CHECKING:
    from model.encoder import Classifier
    from model.tokens import Row

WAITING = (1, 8, 32, 64)
ROUNDS = 7
TEXTS = 256


def texts_per_s(classifier: Classifier, queues: list[list[Row]], layout: Layout, *, sort: bool) -> float:
    """Rate over the queues; sort: in sub-batches of similar length, an eighth of the queue each."""
    start = time.perf_counter()
    for rows in queues:
        lengths = [row.tokens for row in rows]
        passes = plan_passes(lengths, 1 << 30, max(1, len(rows) // 8)) if sort else [list(range(len(rows)))]
        for indices in passes:
            classifier(make_batch([rows[i] for i in indices], layout))
    return sum(map(len, queues)) / (time.perf_counter() - start)


@torch.inference_mode()
def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    bundle = load_bundle(args.bundle)
    device = torch.device("cpu")
    classifier = bundle.classifier.to(DTYPES[choose_precision("auto", device)])
    texts = [str(fields["text"]) for _, fields in read_records(args.texts) if isinstance(fields, dict)][:TEXTS]
    rows = bundle.tokenizer.encode(texts, bundle.max_tokens)
    ways: dict[str, tuple[Layout, bool]] = {
        "padded": ("padded", False),
        "sorted": ("padded", True),
        "packed": ("packed", False),
    }
    table = []
    for waiting in WAITING:
        queues = [rows[i : i + waiting] for i in range(0, len(rows), waiting)]
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(ROUNDS + 1):
            for name, (layout, sort) in ways.items():
                rate = texts_per_s(classifier, queues, layout, sort=sort)
                if turn:  # the first warms up
                    rates[name].append(rate)
        median = {name: statistics.median(values) for name, values in rates.items()}
        table.append({"waiting": waiting, **median, "packed/padded": median["packed"] / median["padded"]})
    if args.json:
        print(json.dumps({"precision": str(next(classifier.parameters()).dtype), "rows": table}))
        return
    print("waiting    padded    sorted    packed  packed/padded")
    for row in table:
        print("{waiting:7.0f}  {padded:8.0f}  {sorted:8.0f}  {packed:8.0f}  {packed/padded:13.2f}".format(**row))


if __name__ == "__main__":
    main()
