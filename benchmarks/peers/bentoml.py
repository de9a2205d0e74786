"""BentoML: its adaptive batching, one worker, bf16 and int8."""

from __future__ import annotations

from pathlib import Path

from peers import Peer, Start

PINS = ("bentoml==1.4.39", "transformers==5.23.0", "onnxruntime==1.31.0")


def command(start: Start) -> list[str]:
    """Command `bentoml serve`; bundle and model reach its workers through the environment."""
    home = start.folder / "bentoml"
    home.mkdir(exist_ok=True)
    variables = {
        "BENTOML_DO_NOT_TRACK": "1",
        "BENTOML_HOME": str(home),
        "PEER_BUNDLE": str(start.bundle),
        "PEER_ONNX": str(start.onnx or ""),
    }
    settings = [f"{name}={value}" for name, value in variables.items()]
    serve = ["serve", "peers.bentoml_service:Classify", "--host", "127.0.0.1", "--port", str(start.port)]
    return ["env", *settings, str(Path(start.python).parent / "bentoml"), *serve, "--working-dir", str(home), "-q"]


PEERS = [
    Peer("bentoml", command, PINS, labels=list),
    Peer("bentoml-int8", command, PINS, labels=list, wants_onnx=True),
]
