"""What limits our forward pass: the bare matrix products under it, and the length of a row.

Called by benchmarks/encoder.py; nothing here needs a peer.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timing import ratio, seconds, take_turns
from torch.profiler import ProfilerActivity, profile

from model.batch import make_batch
from model.bundle import load_bundle
from model.device import DTYPES, choose_precision, keep_freed_memory
from model.encoder import Classifier, EncoderConfig
from model.families import modernbert_defaults
from model.tokens import Row
from service.predictor import Predictor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from model.batch import Segment

CPU = torch.device("cpu")
PASS_TOKENS = (256, 512, 1024, 2048, 4096)
LENGTHS = (512, 1024, 2048, 4096, 8192)
FIRST = LENGTHS[0]
LONG_ROUNDS = 3  # one global layer at 8,192 tokens takes seconds


def floor(folder: Path, rows: Sequence[Row], rounds: int) -> list[dict[str, Any]]:
    """Passes of a predictor against nothing but the products of its blocks, by tokens a pass and precision.

    Three floors, all with fused q, k and v: `products` are the four linear layers of each block; `laid out` are the
    same with weights that oneDNN put into its own layout beforehand; `with attention` adds attention's two products
    to `products`. A share is the time of a floor over ours.
    """
    table: list[dict[str, Any]] = []
    for precision in ("fp32", "bf16"):
        bundle = load_bundle(folder)
        config = bundle.classifier.config
        predictor = Predictor(bundle, CPU, precision)
        for tokens in PASS_TOKENS:
            chosen = rows_of(rows, tokens)
            segments = make_batch(chosen, "packed").segments
            products = Products(config, tokens, segments, DTYPES[precision])
            ways: dict[str, Callable[[], object]] = {
                "ours": partial(predictor, chosen),
                "products": products.linear,
                "laid out": products.laid_out,
                "with attention": products.with_attention,
            }
            times = take_turns({name: seconds(way, 4) for name, way in ways.items()}, rounds)
            shares = {f"share of {name}": ratio(times[name], times["ours"]) for name in list(ways)[1:]}
            ms = statistics.median(times["ours"]) * 1e3
            table.append({"precision": precision, "tokens": tokens, "rows": len(chosen), "ours ms": ms, **shares})
    return table


def rows_of(rows: Sequence[Row], tokens: int) -> list[Row]:
    """Rows in order, from the first again when they run out, until they hold exactly so many tokens."""
    chosen: list[Row] = []
    while tokens:
        row = rows[len(chosen) % len(rows)]
        chosen.append(Row(row.ids[:tokens]))
        tokens -= chosen[-1].tokens
    return chosen


class Products:
    """Random weights and inputs of the shapes of a pass: T tokens, D width, H heads, K = D // H."""

    @torch.inference_mode()
    def __init__(self, config: EncoderConfig, tokens: int, segments: Sequence[Segment], dtype: torch.dtype) -> None:
        D, inner = config.width, config.feed_forward
        up = inner * (2 if config.gated else 1)
        shapes = [(D, 3 * D), (D, D), (D, up), (inner, D)] * config.layers  # qkv, out, up, down
        self.inputs = {width: torch.randn(tokens, width, dtype=dtype) for width in {D, inner}}
        self.weights = [torch.randn(b, a, dtype=dtype) for a, b in shapes]
        self.biases = [torch.randn(b, dtype=dtype) if config.bias else None for _, b in shapes]
        self.packed = [torch.ops.mkldnn._reorder_linear_weight(weight, tokens) for weight in self.weights]
        self.layers, H, K = config.layers, config.heads, config.head_width
        self.queries = [torch.randn(s.rows, H, s.length, K, dtype=dtype) for s in segments]
        self.scores = [torch.randn(s.rows, H, s.length, s.length, dtype=dtype) for s in segments]

    @torch.inference_mode()
    def linear(self) -> None:
        """Every linear layer of the blocks."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            F.linear(self.inputs[weight.shape[1]], weight, bias)

    @torch.inference_mode()
    def laid_out(self) -> None:
        """The same from weights in oneDNN's layout."""
        for weight, packed, bias in zip(self.weights, self.packed, self.biases, strict=True):
            torch.ops.mkldnn._linear_pointwise(self.inputs[weight.shape[1]], packed, bias, "none", [], "")

    @torch.inference_mode()
    def with_attention(self) -> None:
        """The linear layers, queries times keys, and weights times values."""
        self.linear()
        for _ in range(self.layers):
            for q, scores in zip(self.queries, self.scores, strict=True):
                torch.matmul(q, q.transpose(2, 3))
                torch.matmul(scores, q)


def length() -> list[dict[str, Any]]:
    """Time and memory of one row, by its length, in an encoder like ModernBERT with random weights.

    Memory is the highest sum of what torch's CPU allocator held during the pass beyond what it held before, from
    torch.profiler: the same in every run, and blind only to buffers that a library takes behind torch's back.
    """
    keep_freed_memory()  # as a replica does
    dtype = DTYPES[choose_precision("auto", CPU)]
    table: list[dict[str, Any]] = []
    for name, local in {"all local": range(6), "one global in three": (1, 2, 4, 5)}.items():
        classifier = modernbert(tuple(local)).to(dtype)
        passes = {n: one_row(classifier, n) for n in LENGTHS}
        times = take_turns({n: seconds(way, max(1, 2048 // n)) for n, way in passes.items()}, LONG_ROUNDS)
        memory = {n: peak_bytes(way) for n, way in passes.items()}
        table += [
            {
                "layers": name,
                "precision": str(dtype).removeprefix("torch."),
                "tokens": n,
                "ms": statistics.median(times[n]) * 1e3,
                f"time a token / at {FIRST}": ratio(times[n], times[FIRST]) * FIRST / n,
                "MiB": memory[n] / 2**20,
                f"memory a token / at {FIRST}": memory[n] / memory[FIRST] * FIRST / n,
            }
            for n in LENGTHS
        ]
    return table


def modernbert(local_layers: tuple[int, ...]) -> Classifier:
    """MiniLM's size in ModernBERT's form."""
    layers = 6
    sizes = {"vocab_size": 1000, "layers": layers, "feed_forward": 576}  # 1.5 × width: gated, as in ModernBERT-base
    config = EncoderConfig(**(modernbert_defaults(layers) | sizes | {"local_layers": local_layers}))
    return Classifier(config, num_labels=2).eval()


def one_row(classifier: Classifier, tokens: int) -> Callable[[], Tensor]:
    """A pass of one row."""
    generator = torch.Generator().manual_seed(0)
    ids: list[int] = torch.randint(5, classifier.config.vocab_size, (tokens,), generator=generator).tolist()
    batch = make_batch([Row(ids)], "packed")

    @torch.inference_mode()
    def run() -> Tensor:
        logits: Tensor = classifier(batch)
        return logits

    return run


def peak_bytes(function: Callable[[], object]) -> int:
    """The most that torch's allocator held at once during a call, over what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    assert recorded.profiler is not None
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
