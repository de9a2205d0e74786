"""Passes on CUDA: pinned input on a stream of its own, graphs for small passes, one wait at the end.

A pass of a few texts is shorter than the launch of its kernels; captured once per size as a CUDA graph, it is
launched as a whole. The shape of a graph is fixed, so a batch is filled up to it. Called by model/forward.py.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from model.batch import Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from model.encoder import Classifier
    from model.scores import Array

log = logging.getLogger("heed")

BUCKETS = (16, 32, 64, 128, 256, 512)  # tokens of a graph; a larger pass keeps the device busy while it is launched
TOKENS_PER_ROW = 4  # of a graph that is full of rows; a batch of shorter rows takes a larger graph
CAPTURE_WARM_UPS = 3  # passes before a capture, in which libraries choose kernels and allocate


def bucket_rows(tokens: int) -> int:
    """Rows that a graph of so many tokens holds; one of them is what fills it up."""
    return tokens // TOKENS_PER_ROW + 1


def choose_bucket(tokens: int, rows: int) -> int | None:
    """The smallest graph that holds a batch, None where none does."""
    return next((b for b in BUCKETS if tokens <= b and rows < bucket_rows(b)), None)


def fill(batch: Batch, bucket: int) -> tuple[Tensor, Tensor]:
    """Tokens (3, bucket) and cu_seqlens (bucket_rows + 1,) of a graph that computes this batch.

    The tokens that are left over are one more row, and the rows that are left over have no token.
    """
    assert batch.cu_seqlens is not None
    tokens = torch.zeros(3, bucket, dtype=batch.tokens.dtype)
    tokens[:, : batch.tokens.shape[1]] = batch.tokens
    cu_seqlens = torch.full((bucket_rows(bucket) + 1,), bucket, dtype=batch.cu_seqlens.dtype)
    cu_seqlens[: len(batch.cu_seqlens)] = batch.cu_seqlens
    return tokens, cu_seqlens


def varlen_batch(tokens: Tensor, cu_seqlens: Tensor, longest: int) -> Batch:
    """The batch of tokens (3, T) whose rows have the borders cu_seqlens."""
    at = torch.arange(tokens.shape[1], device=tokens.device, dtype=cu_seqlens.dtype)
    rows = torch.searchsorted(cu_seqlens[1:].contiguous(), at, right=True)
    starts = cu_seqlens[:-1].clamp(max=len(at) - 1).long()  # a row without tokens begins somewhere
    return Batch(tokens, rows, starts, cu_seqlens.diff(), longest, cu_seqlens=cu_seqlens)


@dataclass(frozen=True)
class Graph:
    """A captured pass: write its inputs, replay it, read its logits (bucket_rows, C)."""

    graph: torch.cuda.CUDAGraph
    tokens: Tensor
    cu_seqlens: Tensor
    logits: Tensor


class CudaPasses:
    """Launches batches of the varlen layout, one after the other: the caller sees to that."""

    def __init__(self, classifier: Classifier, device: torch.device) -> None:
        self._classifier, self._device = classifier, device
        self._copies = torch.cuda.Stream(device)
        self._graphs: dict[int, Graph] = {}

    @torch.inference_mode()
    def launch(self, batch: Batch) -> Callable[[], Array]:
        """Start a pass; what is returned waits for its logits (B, C), fp32."""
        rows = len(batch.starts)
        bucket = choose_bucket(batch.tokens.shape[1], rows)
        with torch.cuda.device(self._device):
            if bucket in self._graphs:
                logits = self._replay(self._graphs[bucket], *fill(batch, bucket))
            else:
                logits = self._classifier(self._upload(batch))
            return self._download(logits[:rows])

    def graph_for(self, tokens: int) -> torch.cuda.CUDAGraph:
        """The graph that a row of so many tokens takes, to measure it. Raises KeyError where there is none."""
        return self._graphs[choose_bucket(tokens, 1) or 0].graph

    def _upload(self, batch: Batch) -> Batch:
        """The batch on the device, copied while the device still computes what was launched before."""
        assert batch.cu_seqlens is not None
        compute = torch.cuda.current_stream()
        with torch.cuda.stream(self._copies):
            tokens, cu_seqlens = (
                x.pin_memory().to(self._device, non_blocking=True) for x in (batch.tokens, batch.cu_seqlens)
            )
        compute.wait_stream(self._copies)
        for x in (tokens, cu_seqlens):
            x.record_stream(compute)
        return varlen_batch(tokens, cu_seqlens, batch.longest)

    def _replay(self, graph: Graph, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Logits of the graph's rows. Its inputs are still read by the pass before: copied in turn, not beside it."""
        graph.tokens.copy_(tokens.pin_memory(), non_blocking=True)
        graph.cu_seqlens.copy_(cu_seqlens.pin_memory(), non_blocking=True)
        graph.graph.replay()
        return graph.logits

    def _download(self, logits: Tensor) -> Callable[[], Array]:
        """Copy to the host behind the pass; what is returned waits for that copy, and so for nothing twice."""
        host = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
        host.copy_(logits, non_blocking=True)
        done = torch.cuda.Event()
        done.record()

        def wait() -> Array:
            done.synchronize()
            return host.numpy()

        return wait

    def capture(self) -> Iterator[None]:
        """Capture a graph for each bucket up to the longest row, one a step; where that fails, passes go without."""
        try:
            for bucket in BUCKETS:
                if bucket <= self._classifier.config.max_tokens:
                    with torch.cuda.device(self._device):
                        self._graphs[bucket] = self._capture(bucket)
                    yield
        except RuntimeError as error:  # a driver or a kernel that cannot be captured
            log.warning("small passes run without CUDA graphs: %s", str(error).partition("\n")[0])
            self._graphs.clear()

    @torch.inference_mode()
    def _capture(self, bucket: int) -> Graph:
        tokens = torch.zeros(3, bucket, dtype=torch.long, device=self._device)
        cu_seqlens = torch.full((bucket_rows(bucket) + 1,), bucket, dtype=torch.int32, device=self._device)
        cu_seqlens[0] = 0
        batch = varlen_batch(tokens, cu_seqlens, longest=bucket)
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(CAPTURE_WARM_UPS):
                self._classifier(batch)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            logits = self._classifier(varlen_batch(tokens, cu_seqlens, longest=bucket))
        return Graph(graph, tokens, cu_seqlens, logits)
