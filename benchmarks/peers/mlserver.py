"""MLServer with its Hugging Face runtime, batching by count and timer; Open Inference Protocol.

In fp32: the transformers that the runtime can be imported with does not turn bf16 logits into numbers.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from peers import MAX_BATCH, WAIT_S, Peer, Start

if TYPE_CHECKING:
    from collections.abc import Sequence

PINS = ("mlserver==1.7.1", "mlserver-huggingface==1.7.1", "transformers==4.41.2")


def command(start: Start) -> list[str]:
    """The program beside this file: `mlserver start FOLDER`, with its two files of settings written there."""
    from service.launch import free_port

    model = {
        "name": "model",
        "implementation": "mlserver_huggingface.HuggingFaceRuntime",
        "max_batch_size": MAX_BATCH,
        "max_batch_time": WAIT_S,
        "parameters": {
            "extra": {
                "task": "text-classification",
                "pretrained_model": str(start.bundle),
                "pretrained_tokenizer": str(start.bundle),
                "framework": "pt",
                "device": "cpu",
            }
        },
    }
    ports = {"http_port": start.port, "grpc_port": free_port(), "metrics_port": free_port()}
    server = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False, **ports}
    (start.folder / "model-settings.json").write_text(json.dumps(model))
    (start.folder / "settings.json").write_text(json.dumps(server))
    return [start.python, "-m", "peers.mlserver_service", "start", str(start.folder)]


def body(texts: Sequence[str]) -> bytes:
    """POST /v2/models/model/infer."""
    tensor = {"name": "args", "shape": [len(texts), 1], "datatype": "BYTES", "data": list(texts)}
    return json.dumps({"inputs": [tensor | {"parameters": {"content_type": "str"}}]}).encode()


def labels(answer: Any) -> list[str]:
    """Each element of the output is a JSON text."""
    return [json.loads(result)["label"] for result in answer["outputs"][0]["data"]]


PEERS = [Peer("mlserver", command, PINS, path="/v2/models/model/infer", body=body, labels=labels)]
