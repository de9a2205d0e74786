"""infinity: bf16 in torch, and int8 in ONNX Runtime through optimum, with its own batching by count."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peers import MAX_BATCH, Peer, Start

if TYPE_CHECKING:
    from collections.abc import Sequence

PINS = ("infinity-emb[server,torch,optimum]==0.0.78", "transformers==4.57.6", "onnxruntime==1.31.1")


def command(engine: str, start: Start) -> list[str]:
    """infinity_emb v2."""
    options = {
        "model-id": "." if start.onnx else str(start.bundle),
        "served-model-name": "model",
        "engine": engine,
        "dtype": "float32" if start.onnx else "bfloat16",
        "device": "cpu",
        "batch-size": str(MAX_BATCH),
        "host": "127.0.0.1",
        "port": str(start.port),
        "log-level": "warning",
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    inside = ["env", "-C", str(with_onnx(start)), f"HF_HOME={start.folder}"] if start.onnx else []
    return [
        *inside,
        str(Path(start.python).parent / "infinity_emb"),
        "v2",
        *flags,
        "--no-bettertransformer",
        *NO_WARM_UP,
    ]


NO_WARM_UP = ["--no-model-warmup"]  # optimum's pipeline does not cut its texts, which are longer than the model reads


def with_onnx(start: Start) -> Path:
    """A copy of the bundle that holds the int8 model where optimum looks for it: in the working folder, by its name.

    HF_HOME is beside it, because infinity keeps what it made of a model there by that name.
    """
    assert start.onnx is not None
    folder = start.folder / "model"
    if not folder.exists():
        shutil.copytree(start.bundle, folder)
        shutil.copy(start.onnx, folder / "model_quantized.onnx")
    return folder


def body(texts: Sequence[str]) -> bytes:
    """POST /classify."""
    return json.dumps({"model": "model", "input": list(texts)}).encode()


def labels(answer: Any) -> list[str]:
    """The label with the highest score of each text."""
    return [max(result, key=lambda label: label["score"])["label"] for result in answer["data"]]


OFF = {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
PEERS = [
    Peer("infinity", partial(command, "torch"), PINS, body=body, labels=labels, variables=OFF),
    Peer("infinity-int8", partial(command, "optimum"), PINS, body=body, labels=labels, variables=OFF, wants_onnx=True),
]
