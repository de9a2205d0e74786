"""What explanations cost the others: latency of classification with and without explanations beside it.

    python benchmarks/explain_load.py BUNDLE TEXTS.jsonl [--json]

Inside a replica, without HTTP: callers classify one text after another, each with a pause or without; in every
other round EXPLAINERS callers want one explanation after another. Rounds alternate, so that a machine whose speed
drifts is as fast for each; figures are over all requests of a kind of round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.records import read_records
from service.answers import answer_texts, read_texts, rows_of
from service.models import Models
from service.settings import Settings, Spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.models import ServedModel

LOADS = {"8 callers, 50 ms between texts": (8, 0.05), "32 callers, no pause": (32, 0.0)}
EXPLAINERS = 4
ROUNDS, ROUND_S = 6, 5.0


async def classify(model: ServedModel, texts: Iterator[str], pause_s: float, until: float) -> list[float]:
    """Latencies of one caller's texts, in seconds."""
    latencies = []
    while time.perf_counter() < until:
        await asyncio.sleep(pause_s)
        readings = read_texts(model.bundle, [next(texts)], "truncate")
        start = time.perf_counter()
        await model.batcher.submit(rows_of(readings))
        latencies.append(time.perf_counter() - start)
    return latencies


async def explain(model: ServedModel, texts: Iterator[str], count: list[int]) -> None:
    """One explanation after another; count[0] goes up with each."""
    while True:
        text = next(texts)
        readings, spans = (
            read_texts(model.bundle, [text], "truncate"),
            [model.bundle.tokenizer.spans(text, model.bundle.max_tokens)],
        )
        passed = await model.batcher.submit(rows_of(readings))
        answers = answer_texts(model.bundle, readings, [row.result for row in passed])
        await model.explainer.explain(answers, spans, None)
        count[0] += 1


async def one_round(
    model: ServedModel, texts: Iterator[str], callers: int, pause_s: float, explainers: int
) -> tuple[list[float], int]:
    """Latencies of all classifying callers, and how many explanations were given meanwhile."""
    count = [0]
    others = [asyncio.create_task(explain(model, texts, count)) for _ in range(explainers)]
    until = time.perf_counter() + ROUND_S
    latencies = await asyncio.gather(*(classify(model, texts, pause_s, until) for _ in range(callers)))
    for task in others:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    return list(itertools.chain(*latencies)), count[0]


async def measure(models: Models, texts: Iterator[str]) -> list[dict[str, Any]]:
    """A row of figures per load, without and with explanations."""
    model, table = models.find(None), list[dict[str, Any]]()
    for load, (callers, pause_s) in LOADS.items():
        latencies: dict[int, list[float]] = {0: [], EXPLAINERS: []}
        explained = 0
        for turn in range(2 * ROUNDS):
            explainers = EXPLAINERS * (turn % 2)
            some, count = await one_round(model, texts, callers, pause_s, explainers)
            latencies[explainers] += some
            explained += count
        for explainers, values in latencies.items():
            p50, p99 = np.quantile(values, (0.5, 0.99)) * 1000
            each_s = ROUNDS * ROUND_S
            rate = explained / each_s if explainers else 0.0
            table.append(
                {"load": load, "explaining": explainers, "p50_ms": p50, "p99_ms": p99,
                 "texts_per_s": len(values) / each_s, "explanations_per_s": rate}
            )  # fmt: skip
    await models.drain()
    return table


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    texts = [str(fields["text"]) for _, fields in read_records(args.texts) if isinstance(fields, dict)]
    models = Models([Spec("model", args.bundle)], Settings())
    table = asyncio.run(measure(models, itertools.cycle(texts)))
    if args.json:
        print(json.dumps(table))
        return
    print("| load | explaining | p50, ms | p99, ms | texts/s | explanations/s |\n| --- | --- | --- | --- | --- | --- |")
    for row in table:
        print(
            "| {load} | {explaining} callers | {p50_ms:.1f} | {p99_ms:.1f} | {texts_per_s:.0f} "
            "| {explanations_per_s:.1f} |".format(**row)
        )


if __name__ == "__main__":
    main()
