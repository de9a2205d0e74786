"""The encoder on a CPU against its peers and against the floor: one command, tables out, JSON beside them.

    python benchmarks/encoder.py BUNDLE --texts sst2=FILE --texts imdb=FILE [--section NAME] [--json FILE]

FILE is what `heed train` reads, with text and label; accuracy counts where the labels are the bundle's.
All ways of a table have the same weights, texts, tokenizer and threads and take turns (timing.py).

  queue   texts/s while 64 texts wait, ours and its peers, in order of arrival and sorted by length
  one     one short text alone
  floor   our pass against the bare matrix products of the same shapes (limits.py)
  length  time and memory of one row from 512 to 8,192 tokens, with local attention (limits.py)

The first file gives `one` and `floor` their texts.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from engines import Engine, Missing, onnx_runtime, ours, served_precisions, transformers
from limits import floor, length
from timing import markdown, ratio, take_turns

from model.bundle import load_bundle
from model.records import read_records
from service.settings import available_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model.bundle import Bundle
    from model.scores import Array
    from model.tokens import Row

SECTIONS = ("queue", "one", "floor", "length")
ARRIVAL, SORTED = "arrival", "sorted"
WAITING = 64  # texts: what ours sees at a time, and a batch of the others where texts are sorted
PADDED = 32  # rows of a batch in order of arrival: more would only be more padding
SAMPLE_TOKENS, SAMPLE_TEXTS = 16_384, 96  # a round: as many texts as hold the first, at least the second
ACCURACY_TOKENS = 65_536  # texts that are scored once for accuracy: SST-2's test set as a whole
ALONE = 32  # texts of section `one`
SEED = 0
Table = list[dict[str, Any]]


@dataclass(frozen=True)
class Texts:
    """A seeded sample of a file: texts, and the ids of their labels where the bundle knows all of them."""

    name: str
    texts: list[str]
    labels: Array | None

    def rows(self, bundle: Bundle) -> list[Row]:
        """Token ids of all of them."""
        return bundle.tokenizer.encode(self.texts, bundle.max_tokens)


def read_texts(name: str, path: Path, bundle: Bundle) -> Texts:
    """All records with a text, shuffled: files that are sorted by label or length are no order of arrival."""
    records = [fields for _, fields in read_records(path) if isinstance(fields, dict) and fields.get("text")]
    random.Random(SEED).shuffle(records)
    labels = None
    if {record.get("label") for record in records} <= set(bundle.labels):
        labels = np.array([bundle.labels.index(record["label"]) for record in records])
    return Texts(name, [str(record["text"]) for record in records], labels)


def within(rows: Sequence[Row], budget: int, at_least: int = 0) -> int:
    """How many of the first rows hold so many tokens."""
    ends = np.cumsum([row.tokens for row in rows])
    return min(len(rows), max(at_least, int((ends <= budget).sum())))


def engines(folder: Path, threads: int, probe: Sequence[Row]) -> list[Engine]:
    """All that can be built here; who is left out is said on stderr."""
    makers: list[Callable[[], list[Engine]]] = [
        lambda: [ours(folder, precision) for precision in served_precisions()],
        lambda: [transformers(folder, "fp32")],
        lambda: [transformers(folder, "bf16")],
        lambda: [transformers(folder, "bf16", compiled=True)],
        lambda: onnx_runtime(folder, threads, probe),
    ]
    built = []
    for make in makers:
        try:
            built += make()
        except Missing as reason:
            print(f"left out: {reason}", file=sys.stderr)
    return built


@dataclass(frozen=True)
class Turn:
    """Seconds that one way took for all texts of a round."""

    tokenize_s: float
    forward_s: float


def turn(engine: Engine, order: str, texts: Sequence[str], bundle: Bundle) -> Turn:
    """Tokenize and run the texts as they come, or all of them sorted by length first."""
    step = WAITING if order == SORTED or engine.name == "Heed" else PADDED
    start = time.perf_counter()
    rows = bundle.tokenizer.encode(texts, bundle.max_tokens)
    if order == SORTED:
        rows.sort(key=lambda row: row.tokens)
    tokenized = time.perf_counter()
    for i in range(0, len(rows), step):
        engine.run(rows[i : i + step])
    return Turn(tokenized - start, time.perf_counter() - tokenized)


def queue(built: Sequence[Engine], texts: Texts, bundle: Bundle, rounds: int) -> Table:
    """Texts/s without tokenization (out) and with it (in), against transformers eager fp32 in order of arrival.

    accuracy and off, the largest difference of a logit from transformers fp32, are of a larger sample.
    """
    rows = texts.rows(bundle)
    sample = texts.texts[: within(rows, SAMPLE_TOKENS, SAMPLE_TEXTS)]
    ways = {(engine.label, order): (engine, order) for engine in built for order in (ARRIVAL, SORTED)}
    turns = take_turns({key: partial(turn, *way, sample, bundle) for key, way in ways.items()}, rounds)
    out_s = {key: [t.forward_s for t in values] for key, values in turns.items()}
    in_s = {key: [t.forward_s + t.tokenize_s for t in values] for key, values in turns.items()}
    reference, int8 = ("transformers fp32", ARRIVAL), next((k for k in ways if is_int8_peer(k)), None)
    quality = qualities(built, texts, rows)
    return [
        {
            "texts": texts.name,
            "engine": key[0],
            "order": key[1],
            "out": len(sample) / statistics.median(out_s[key]),
            "in": len(sample) / statistics.median(in_s[key]),
            "/ transformers fp32": ratio(out_s[reference], out_s[key]) if reference in ways else None,
            "/ ONNX int8 sorted": ratio(out_s[int8], out_s[key]) if int8 else None,
            **quality[key[0]],
        }
        for key in ways
    ]


def is_int8_peer(key: tuple[str, str]) -> bool:
    """Whether a way is ONNX Runtime int8 over sorted texts, the line to beat on a CPU."""
    return key[0].startswith("ONNX Runtime int8") and key[1] == SORTED


def qualities(built: Sequence[Engine], texts: Texts, rows: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    """Accuracy and the largest difference from the reference's logits, by engine, over sorted batches."""
    count = within(rows, ACCURACY_TOKENS)
    order = sorted(range(count), key=lambda i: rows[i].tokens)
    logits = {}
    for engine in built:
        parts = [order[i : i + WAITING] for i in range(0, count, WAITING)]
        logits[engine.label] = np.concatenate([engine.run([rows[i] for i in part]) for part in parts])
    reference = logits.get("transformers fp32")
    return {
        label: {
            "accuracy": None if texts.labels is None else float((x.argmax(1) == texts.labels[order]).mean()),
            "off": None if reference is None else float(np.abs(x - reference).max()),
        }
        for label, x in logits.items()
    }


def one(built: Sequence[Engine], rows: Sequence[Row], rounds: int) -> Table:
    """Milliseconds of a text alone, and how many times longer than ours transformers takes in the same precision."""

    def alone(engine: Engine) -> list[float]:
        times = []
        for row in rows[:ALONE]:
            start = time.perf_counter()
            engine.run([row])
            times.append(time.perf_counter() - start)
        return times

    turns = take_turns({engine.label: partial(alone, engine) for engine in built}, rounds)
    medians = {label: [statistics.median(times) for times in values] for label, values in turns.items()}
    return [
        {
            "engine": engine.label,
            "ms": statistics.median(medians[engine.label]) * 1e3,
            **{
                f"/ Heed {precision}": ratio(medians[engine.label], medians[f"Heed {precision}"])
                for precision in served_precisions()
            },
        }
        for engine in built
    ]


def machine(threads: int) -> dict[str, Any]:
    """What the figures depend on, besides the code."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": model[0].partition(": ")[2] if model else "unknown",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": available_cores(),
        "threads": threads,
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
    }


def main() -> None:
    """Measure, print tables, and JSON last."""
    args = parse_args()
    logging.disable(logging.WARNING)  # the exporter's and the quantizer's hints
    torch.set_num_threads(args.threads)
    bundle = load_bundle(args.bundle)
    samples = [read_texts(name, path, bundle) for name, path in args.texts]
    rows = samples[0].rows(bundle) if samples else []
    sections = args.section or list(SECTIONS)
    if not samples and set(sections) != {"length"}:
        sys.exit("no texts to measure with: give --texts NAME=FILE")
    built = engines(args.bundle, args.threads, rows[:WAITING]) if {"queue", "one"} & set(sections) else []
    run: dict[str, Callable[[], Table]] = {
        "queue": lambda: [line for texts in samples for line in queue(built, texts, bundle, args.rounds)],
        "one": lambda: one(built, rows, args.rounds),
        "floor": lambda: floor(args.bundle, rows, args.rounds),
        "length": length,
    }
    report: dict[str, Any] = {"machine": machine(args.threads)}
    for name in sections:
        report[name] = run[name]()
        print(f"\n{name}\n\n{markdown(report[name])}", flush=True)
    print(f"\n{json.dumps(report)}")
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--texts", type=named_file, action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--section", choices=SECTIONS, action="append", help="default: all")
    parser.add_argument("--threads", type=int, default=available_cores(), help="default: the cores at hand")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def named_file(value: str) -> tuple[str, Path]:
    """NAME=FILE."""
    name, equals, file = value.partition("=")
    if not (name and equals and Path(file).is_file()):
        raise argparse.ArgumentTypeError(f"not NAME=FILE with a file that is there: {value}")
    return name, Path(file)


if __name__ == "__main__":
    main()
