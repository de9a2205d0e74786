"""The engine of a replica: it holds the weights, and computes what the replica asks over a few sockets.

A process of its own, because a pass is hundreds of calls that each want Python's interpreter lock, and the replica
holds it whenever it reads, tokenizes and answers: together they got a tenth less done (benchmarks/RESULTS.md). A thread
for each channel; each channel carries one question at a time. Started by service/remote.py, ends with its replica.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
from dataclasses import asdict, astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic_core import from_json

from model.bundle import load_bundle
from model.device import choose_device
from model.manifest import BundleError
from model.tokens import Row
from service.channel import FAILED, REFUSED, pack, read
from service.errors import where
from service.planning import Cost
from service.predictor import Predictor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from model.attribution import Attribution


WITH_TEXTS = {"compute", "distances", "explain"}  # questions whose errors may hold what a user wrote


class Engine:
    """The models of a replica on its device. Each public method is a question, its name the first of the message."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._models: dict[int, Predictor] = {}
        self._warming: dict[int, Iterator[Cost | None]] = {}
        self._explaining: dict[int, Iterator[Attribution | None]] = {}
        # A GPU takes passes one after the other, and is told of the next while it computes; CPU cores each take one.
        self._launching = threading.Lock() if device.type != "cpu" else contextlib.nullcontext()

    def load(self, model: int, folder: str, precision: str, version: str | None) -> dict[str, Any]:
        """Load a bundle under an id, where it is this version; what the replica must know of it."""
        bundle = load_bundle(Path(folder))
        if version not in (None, bundle.version):
            raise BundleError(f"files of the bundle were changed after it was added to the registry: {folder}")
        try:
            self._models[model] = predictor = Predictor(bundle, self._device, precision)
        except ValueError as error:  # a precision that this model or device has not
            raise BundleError(str(error)) from None
        row = predictor.known_row
        return {
            "name": bundle.name,
            "version": bundle.version,
            "labels": bundle.labels,
            "reference": bundle.reference,
            "problem_type": bundle.problem_type,
            "max_tokens": bundle.max_tokens,
            "calibration": asdict(bundle.calibration),
            "has_types": bundle.tokenizer.has_types,
            "device": str(predictor.device),
            "precision": predictor.precision,
            "is_padded": predictor.is_padded,
            "most_tokens": predictor.most_tokens,
            "known_row": [row.ids, row.types],
        }

    def costs_like(self, model: int, other: int) -> bool:
        """Whether passes of two models cost the same."""
        return self._models[model].costs_like(self._models[other])

    def warm_up(self, model: int, cost: Sequence[float] | None = None) -> tuple[float, ...] | None:
        """The next step of the warm-up; the last gives the cost of passes, or the one that is known."""
        if model not in self._warming:
            self._warming[model] = self._models[model].warm_up_steps(Cost(*cost) if cost else None)
        with self._launching:  # a graph is captured while nothing else is launched
            found = next(self._warming[model])
        if found is None:
            return None
        del self._warming[model]
        return astuple(found)

    def compute(self, model: int, ids: Sequence[list[int]], types: Sequence[list[int] | None]) -> list[Any]:
        """One pass of rows: their logits, and how many tokens were computed, padding included."""
        rows = [Row(*row) for row in zip(ids, types, strict=True)]
        with self._launching:
            launched = self._models[model].launch(rows)
        return [launched().tolist(), launched.computed_tokens]

    def distances(self, model: int, ids: Sequence[list[int]], types: Sequence[list[int] | None]) -> list[float]:
        """How far the embeddings of rows are from the middle of those that the model was measured on."""
        rows = [Row(*row) for row in zip(ids, types, strict=True)]
        with self._launching:
            return self._models[model].distances(rows)

    def explain(self, job: int, model: int, row: list[Any], baseline: list[Any], label: int) -> list[Any] | None:
        """The next step of an explanation; the last gives the scores of the tokens and their gap."""
        if job not in self._explaining:
            self._explaining[job] = self._models[model].explain(Row(*row), Row(*baseline), label)
        try:
            with self._launching:
                found = next(self._explaining[job])
        except Exception:
            self.stop_explaining(job)
            raise
        if found is None:
            return None
        self.stop_explaining(job)
        return [found.scores, found.gap]

    def stop_explaining(self, job: int) -> None:
        """Nobody wants it any more."""
        self._explaining.pop(job, None)

    def let_go(self, model: int) -> None:
        """Free a model."""
        self._models.pop(model, None)
        self._warming.pop(model, None)

    def answer(self, body: bytes) -> bytes:
        """The packed answer to a packed question."""
        question, *arguments = from_json(body)
        try:
            return pack(["answer", getattr(self, question)(*arguments)])
        except BundleError as error:
            return pack([REFUSED, str(error)])
        except Exception as error:  # the replica decides what it means
            told = where(error) if question in WITH_TEXTS else f"{type(error).__name__}: {error}"
            return pack([FAILED, [type(error).__name__, told]])


def answer_all(engine: Engine, channel: socket.socket, threads: int) -> None:
    """Answer what comes over a channel, until the replica has gone."""
    torch.get_num_threads()  # a thread's first operation takes the number that any thread has set last: this is it
    torch.set_num_threads(threads)
    with channel, contextlib.suppress(OSError):
        while (body := read(channel)) is not None:
            channel.sendall(engine.answer(body))


def serve(device_name: str, channels: Sequence[socket.socket], cores: int, max_passes: int) -> list[threading.Thread]:
    """Say on the first channel what there is, then answer on all, each in a thread that is returned.

    The second channel is for passes that are alone: its thread has all the cores.
    """
    control = channels[0]
    try:
        device = choose_device(device_name)
    except ValueError as error:
        control.sendall(pack([REFUSED, str(error)]))
        for channel in channels:
            channel.close()
        return []
    passes, threads = share_cores(cores, device.type, max_passes)
    control.sendall(pack(["answer", [device.type, passes, threads]]))
    engine = Engine(device)
    share = [threads, passes * threads, *[threads] * max_passes]
    parts = [
        threading.Thread(target=answer_all, args=(engine, channel, n), daemon=True)
        for channel, n in zip(channels, share, strict=True)
    ]
    for part in parts:
        part.start()
    return parts


def share_cores(cores: int, device_type: str, max_passes: int) -> tuple[int, int]:
    """Passes at once, and threads of each, for so many cores of the host."""
    passes = min(cores, max_passes) if device_type == "cpu" else 1
    return passes, max(1, cores // passes)


def main() -> None:
    """Serve on sockets that were inherited. The process ends when the replica closes the first, or has gone."""
    device, cores, *handles = sys.argv[1:]
    channels = [socket.socket(fileno=int(handle)) for handle in handles]
    torch.set_num_threads(1)  # a team of OpenMP threads for each channel, and none besides
    for number in (signal.SIGINT, signal.SIGTERM):  # of the group: the replica drains, and ends it
        signal.signal(number, signal.SIG_IGN)
    gone = select.poll()
    gone.register(channels[0], 0)
    if serve(device, channels, int(cores), len(channels) - 2):
        gone.poll()
    os._exit(0)  # whatever its threads do


if __name__ == "__main__":
    main()
