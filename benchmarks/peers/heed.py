"""Heed itself, as it is served by default, and in int8."""

from __future__ import annotations

from functools import partial
from typing import Any

from peers import Peer, Start


def command(precision: str, start: Start) -> list[str]:
    """`heed serve`."""
    arguments = ["serve", f"model={start.bundle}", "--port", str(start.port), "--precision", precision]
    return [start.python, "-m", "service", *arguments]


def labels(answer: Any) -> list[str]:
    """The best label of each result."""
    return [result["labels"][0]["label"] for result in answer["results"]]


PEERS = [
    Peer("heed", partial(command, "auto"), path="/v1/classify", labels=labels),
    Peer("heed-int8", partial(command, "int8"), path="/v1/classify", labels=labels),
]
