"""The encoder on a GPU: throughput by size of pass, share of the matrix ceiling, graphs, packed rows against padded.

    python benchmarks/gpu.py [--json FILE]

Random weights of the sizes of MiniLM-L6 and BERT-base, bf16, through model/forward.py as a replica runs it. The
ceiling is the fastest of a few large bf16 matrix products on the same device, measured in the same run. Figures
are medians of rounds in which the ways take turns.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timing import markdown, seconds, take_turns

from model.batch import Layout, make_batch
from model.cuda import CudaPasses
from model.encoder import Classifier, EncoderConfig
from model.forward import Forward
from model.tokens import Row

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = {
    "MiniLM-L6": EncoderConfig(vocab_size=30_522, width=384, layers=6, heads=12, feed_forward=1536),
    "BERT-base": EncoderConfig(vocab_size=30_522, width=768, layers=12, heads=12, feed_forward=3072),
}
PASS_TOKENS = (1_024, 4_096, 16_384, 65_536)
LENGTH = 128  # tokens of a row in the tables of throughput
SHORT = 24  # tokens of a short text: SST-2's average
IMDB_MEDIAN, IMDB_SPREAD, IMDB_LIMIT = 220, 0.65, 512  # log-normal lengths like those of IMDB's reviews, cut
ROUNDS = 7
REPEATS = 10


def on_device(run: Callable[[], object]) -> None:
    """A few runs that follow each other, waited for once."""
    for _ in range(REPEATS):
        run()
    torch.cuda.synchronize()


def medians(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of one run of each way."""
    turns = take_turns({name: seconds(partial(on_device, run)) for name, run in ways.items()}, ROUNDS)
    return {name: statistics.median(times) / REPEATS for name, times in turns.items()}


def ceiling() -> float:
    """FLOP/s of the fastest large bf16 matrix product."""
    best = 0.0
    for n in (4_096, 8_192, 16_384):
        a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        best = max(best, 2 * n**3 / medians({"product": partial(torch.matmul, a, b)})["product"])
    return best


def flops(config: EncoderConfig, lengths: list[int]) -> float:
    """Multiplications and additions of the layers: matrix products, and attention's two."""
    per_token = 2 * (4 * config.width**2 + 2 * config.width * config.feed_forward)
    return config.layers * sum(n * per_token + 4 * n * n * config.width for n in lengths)


def random_rows(lengths: list[int], vocab_size: int) -> list[Row]:
    """Rows of random ids."""
    rng = random.Random(0)
    return [Row([rng.randrange(1, vocab_size) for _ in range(n)]) for n in lengths]


def build(config: EncoderConfig) -> Classifier:
    """Random weights on the device."""
    torch.manual_seed(0)
    return Classifier(config, num_labels=2).eval().to("cuda", torch.bfloat16)


def throughput(name: str, classifier: Classifier, peak: float) -> list[dict[str, Any]]:
    """Rows of LENGTH tokens, by the tokens of a pass."""
    forward, table = Forward(classifier), []
    for tokens in PASS_TOKENS:
        lengths = [LENGTH] * (tokens // LENGTH)
        rows = random_rows(lengths, classifier.config.vocab_size)
        batch = make_batch(rows, "varlen").to(torch.device("cuda"))
        taken = medians({"device": partial(classifier, batch), "with host": partial(forward, rows)})
        table.append(
            {
                "model": name,
                "pass_tokens": tokens,
                "tokens_per_s": tokens / taken["with host"],
                "texts_per_s": len(rows) / taken["with host"],
                "device_tokens_per_s": tokens / taken["device"],
                "share_of_ceiling": flops(classifier.config, lengths) / taken["device"] / peak,
            }
        )
    return table


def one_text(name: str, classifier: Classifier) -> dict[str, Any]:
    """A short text alone, from its row to its logits on the host."""
    [row] = random_rows([SHORT], classifier.config.vocab_size)
    plain, graphs = Forward(classifier), Forward(classifier)
    graphs.warm_up(row)
    taken = medians({"without": partial(plain, [row]), "with": partial(graphs, [row])})
    replayed = CudaPasses(classifier, torch.device("cuda"))
    for _ in replayed.capture():
        pass
    device = medians({"graph": replayed.graph_for(SHORT).replay})
    return {
        "model": name,
        "ms_without_graphs": 1e3 * taken["without"],
        "ms_with_graphs": 1e3 * taken["with"],
        "device_ms_of_the_graph": 1e3 * device["graph"],
    }


def packed_and_padded(name: str, classifier: Classifier) -> dict[str, Any]:
    """Texts of IMDB's lengths, 64 a pass in arrival order."""
    rng = random.Random(1)
    lengths = [min(IMDB_LIMIT, max(8, int(rng.lognormvariate(0, IMDB_SPREAD) * IMDB_MEDIAN))) for _ in range(64)]
    rows = random_rows(lengths, classifier.config.vocab_size)
    layouts: tuple[Layout, ...] = ("varlen", "padded")
    batches = {layout: make_batch(rows, layout).to(torch.device("cuda")) for layout in layouts}
    taken: dict[str, float] = medians({layout: partial(classifier, batch) for layout, batch in batches.items()})
    return {
        "model": name,
        "tokens": sum(lengths),
        "padded_tokens": len(rows) * max(lengths),
        "packed_texts_per_s": len(rows) / taken["varlen"],
        "padded_texts_per_s": len(rows) / taken["padded"],
        "packed/padded": taken["padded"] / taken["varlen"],
    }


@torch.inference_mode()
def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py measures a GPU, and this PyTorch finds no CUDA device")
    peak = ceiling()
    classifiers = {name: build(config) for name, config in SIZES.items()}
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "ceiling_tflops": peak / 1e12,
        "sizes": {name: asdict(config) for name, config in SIZES.items()},
        "throughput": [row for name, c in classifiers.items() for row in throughput(name, c, peak)],
        "one_text": [one_text(name, c) for name, c in classifiers.items()],
        "imdb_lengths": [packed_and_padded(name, c) for name, c in classifiers.items()],
    }
    print(f"{result['device']}, torch {torch.__version__}, bf16 ceiling {peak / 1e12:,.0f} TFLOP/s")
    print(f"\nRows of {LENGTH} tokens\n\n{markdown(result['throughput'])}")
    print(f"\nOne text of {SHORT} tokens\n\n{markdown(result['one_text'])}")
    print(f"\n64 texts of IMDB's lengths\n\n{markdown(result['imdb_lengths'])}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
