"""LitServe: batches of up to 32 after at most 2 ms, in one worker process."""

from __future__ import annotations

from peers import Peer, Start

PINS = ("litserve==0.2.19", "transformers==5.23.0", "onnxruntime==1.31.0")


def command(start: Start) -> list[str]:
    """The program beside this file."""
    return start.program("litserve_service")


PEERS = [
    Peer("litserve", command, PINS, path="/predict"),
    Peer("litserve-int8", command, PINS, path="/predict", wants_onnx=True),
]
