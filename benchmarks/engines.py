"""The engines that the benchmarks hold against each other: ours as a replica runs it, transformers, ONNX Runtime.

An engine turns rows of token ids into logits; all read the same rows and the same weights, the bundle's.
One whose package or compiler is missing is left out with the reason. Called by benchmarks/encoder.py.
"""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.bundle import load_bundle
from model.device import DTYPES, choose_precision
from service.planning import plan_pass
from service.predictor import Predictor
from service.scored import Scored
from service.settings import available_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model.scores import Array
    from model.tokens import Row

Ids = NDArray[np.int64]
CPU = torch.device("cpu")
WAYS = {"int8": False, "int8 per channel": True}  # to quantize: whether each output has its own scale
PROBE_ROUNDS = 5  # of choosing between two ways to quantize


class Missing(Exception):
    """Why an engine is left out."""


@dataclass(frozen=True)
class Engine:
    """run(rows) gives logits (N, C) in the order of the rows: ours plans passes, the others pad all into one."""

    name: str
    precision: str
    run: Callable[[Sequence[Row]], Array]

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"{self.name} {self.precision}"


def need(*packages: str) -> None:
    """Raise Missing for the first package that is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise Missing(f'package {package} is missing: pip install -c constraints.txt -e ".[bench]"')


def served_precisions() -> list[str]:
    """What a bundle can be served in on this CPU."""

    def is_served(name: str) -> bool:
        try:
            choose_precision(name, CPU)
        except ValueError:
            return False
        return True

    return [name for name in DTYPES if is_served(name)]


def ours(folder: Path, precision: str) -> Engine:
    """The predictor of a replica, over passes as its batcher plans them from the rows that wait."""
    predictor = Predictor(load_bundle(folder), CPU, precision)
    budget = predictor.full_pass(predictor.warm_up())

    def run(rows: Sequence[Row]) -> Array:
        logits: dict[int, list[float]] = {}
        waiting = list(range(len(rows)))
        while waiting:
            planned = plan_pass([rows[i].tokens for i in waiting], budget, is_padded=predictor.is_padded)
            chosen = [waiting[i] for i in planned]
            for i, scored in zip(chosen, predictor([rows[i] for i in chosen]), strict=True):
                assert isinstance(scored, Scored), scored
                logits[i] = scored.logits
            waiting = [i for i in waiting if i not in logits]
        return np.array([logits[i] for i in range(len(rows))], dtype=np.float32)

    return Engine("Heed", precision, run)


def pad(rows: Sequence[Row], pad_id: int) -> tuple[Ids, Ids]:
    """Ids and attention mask, each (B, L) of int64."""
    ids = np.full((len(rows), max(row.tokens for row in rows)), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : row.tokens] = row.ids
        mask[i, : row.tokens] = 1
    return ids, mask


def transformers_model(folder: Path, dtype: torch.dtype, attention: str) -> Any:
    """The same weights in the reference implementation. Raises Missing."""
    need("transformers")
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()


def transformers(folder: Path, precision: str, *, compiled: bool = False) -> Engine:
    """Eager PyTorch, or torch.compile with dynamic shapes, which compiles in its first passes."""
    if compiled and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise Missing("torch.compile needs a C++ compiler, and none is on the PATH")
    model = transformers_model(folder, DTYPES[precision], "sdpa")
    forward = torch.compile(model, dynamic=True) if compiled else model

    @torch.inference_mode()
    def run(rows: Sequence[Row]) -> Array:
        ids, mask = (torch.from_numpy(x) for x in pad(rows, model.config.pad_token_id))
        logits: Array = forward(input_ids=ids, attention_mask=mask).logits.float().numpy()
        return logits

    return Engine("transformers compiled" if compiled else "transformers", precision, run)


def onnx_runtime(folder: Path, threads: int, rows: Sequence[Row]) -> list[Engine]:
    """ONNX Runtime in fp32, and in int8 quantized the faster way of two on these rows. Raises Missing.

    Exported with plain attention, which was the fastest: scaled dot-product attention and the fusions of
    onnxruntime.transformers gave 5 to 20% less (MiniLM, SST-2, int8).
    """
    need("onnx", "onnxscript", "onnxruntime", "transformers")
    with tempfile.TemporaryDirectory() as temporary:
        files = onnx_files(folder, Path(temporary))
        pad_id = load_bundle(folder).classifier.config.pad_id
        engines = {name: session(file, name, threads, pad_id) for name, file in files.items()}
        return [engines["fp32"], fastest([engines[name] for name in WAYS], rows)]


def quantized(folder: Path, rows: Sequence[Row], file: Path) -> None:
    """Write the int8 model of onnx_runtime to a file. Raises Missing."""
    need("onnx", "onnxscript", "onnxruntime", "transformers")
    with tempfile.TemporaryDirectory() as temporary:
        files = onnx_files(folder, Path(temporary))
        pad_id = load_bundle(folder).classifier.config.pad_id
        sessions = [session(files[name], name, available_cores(), pad_id) for name in WAYS]
        shutil.copy(files[fastest(sessions, rows).precision], file)


def onnx_files(folder: Path, into: Path) -> dict[str, Path]:
    """The model as ONNX: in fp32, and quantized in each of WAYS."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    files = {name: into / f"{name}.onnx" for name in ("fp32", *WAYS)}
    export(folder, files["fp32"])
    graph = onnx.load(files["fp32"])
    del graph.graph.value_info[:]  # shapes the exporter wrote down, which the quantizer trips over
    for name, per_channel in WAYS.items():
        quantize_dynamic(graph, files[name], per_channel=per_channel, weight_type=QuantType.QInt8)
    return files


def export(folder: Path, file: Path) -> None:
    """Write the model as ONNX with free batch and length."""
    model = transformers_model(folder, torch.float32, "eager")
    free = torch.export.Dim.DYNAMIC
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    example = (torch.full_like(mask, 5), mask)  # two tensors: the exporter makes one input of one tensor given twice
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own making
        torch.onnx.export(
            Logits(model),
            example,
            file,
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes=({0: free, 1: free}, {0: free, 1: free}),
            external_data=False,
            verbose=False,
        )


class Logits(torch.nn.Module):
    """A transformers model that returns logits alone, as the exporter wants it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, L) ids and mask -> (B, C)."""
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def session(file: Path, precision: str, threads: int, pad_id: int) -> Engine:
    """An ONNX file as an engine."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    runtime = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(rows: Sequence[Row]) -> Array:
        ids, mask = pad(rows, pad_id)
        [logits] = runtime.run(None, {"input_ids": ids, "attention_mask": mask})
        return np.asarray(logits, dtype=np.float32)

    return Engine("ONNX Runtime", precision, run)


def fastest(engines: Sequence[Engine], rows: Sequence[Row]) -> Engine:
    """The engine with the shortest median over interleaved passes of the rows."""
    times: dict[str, list[float]] = {engine.label: [] for engine in engines}
    for _ in range(PROBE_ROUNDS):
        for engine in engines:
            start = time.perf_counter()
            engine.run(rows)
            times[engine.label].append(time.perf_counter() - start)
    return min(engines, key=lambda engine: statistics.median(times[engine.label]))
