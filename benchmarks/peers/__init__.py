"""The servers that benchmarks/serving.py compares: one file each, which says how the server is started and asked.

A file holds the description, read by the benchmark, and where the server is a framework around a model of one's
own, the program: it runs as `python -m peers.NAME` in an environment of its own, with `benchmarks/` on its path.
So these files import nothing of Heed at their top, and their framework only in main(). Weights are the bundle's,
which is a Hugging Face checkpoint; settings are the best that were found for each on two CPU cores.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

MAX_BATCH, WAIT_S = 32, 0.002  # of those that batch by count and timer


@dataclass(frozen=True)
class Start:
    """What a server is started with. `onnx` is the model in int8, where the peer wants it."""

    python: str
    bundle: Path
    onnx: Path | None
    port: int
    folder: Path  # for files of its own
    cores: int

    def program(self, name: str, *more: str) -> list[str]:
        """The command of peers/NAME.py."""
        return [self.python, "-m", f"peers.{name}", str(self.bundle), str(self.port), str(self.onnx or ""), *more]


def body_of_texts(texts: Sequence[str]) -> bytes:
    """{"texts": [...]}."""
    return json.dumps({"texts": list(texts)}).encode()


def labels_of_results(answer: Any) -> list[str]:
    """{"labels": [...]}, the answer of our own programs."""
    return list(answer["labels"])


@dataclass(frozen=True)
class Peer:
    """One server in one configuration."""

    name: str
    command: Callable[[Start], list[str]]
    requirements: Sequence[str] = ()  # pinned, of its own environment beside torch; none: it runs in the benchmark's
    path: str = "/classify"
    wants_onnx: bool = False
    body: Callable[[Sequence[str]], bytes] = body_of_texts
    labels: Callable[[Any], list[str]] = labels_of_results
    variables: Mapping[str, str] = field(default_factory=dict)
