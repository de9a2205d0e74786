"""A replica's device: its worker process, the passes and steps that are asked of it, and what is loaded there.

On a CPU one pass a core runs at once, each with one thread of its own, which is faster than one pass over all cores:
no core waits for another (benchmarks/RESULTS.md). A GPU has one, and the next is given to it before that one ends.
No torch here: it is in service/worker.py. Called by service/models.py and explaining.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from model.manifest import BundleError, Described
from model.scores import Calibration
from model.tokens import Row, Tokenizer
from service.channel import Channel, Refused, ask
from service.planning import Cost
from service.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from model.scores import Array

MAX_WORKERS = 4  # passes at once: more would wait for the worker's interpreter lock; the cores beyond are their threads
STEP_SHARE = 0.1  # of a pass's place, at most, for explanations while classification waits
STOP_S = 5.0
WORKER = ("-m", "service.worker")  # what Python runs


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model in the worker, by what the replica knows of it."""

    id: int
    bundle: Described
    known_row: Row  # one that any model answers
    device: str
    precision: str
    is_padded: bool  # a pass computes rows * longest tokens, rather than those that the rows have
    most_tokens: int  # of a pass: more would only make others wait


def start_worker(device: str, cores: int, channels: Sequence[socket.socket]) -> subprocess.Popen[bytes] | None:
    """The worker process, with its ends of the channels."""
    handles = [channel.fileno() for channel in channels]
    command = [sys.executable, *WORKER, device, str(cores), *map(str, handles)]
    path = os.pathsep.join(filter(None, sys.path))  # this code, wherever it was found
    process = subprocess.Popen(  # noqa: S603
        command, pass_fds=handles, stdin=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": path}
    )
    for channel in channels:
        channel.close()
    return process


class Compute:
    """Asks the worker of one device; turns says when.

    Raises ValueError where there is no such device.
    """

    def __init__(self, device: str, cores: int) -> None:
        pairs = [socket.socketpair() for _ in range(1 + MAX_WORKERS)]
        self._control, *self._sockets = (ours for ours, _ in pairs)
        self._process = start_worker(device, cores, [theirs for _, theirs in pairs])
        self._asking = threading.Lock()  # the control channel
        self.is_lost = self._is_closing = False
        self._channels: list[Channel] = []
        try:
            self.device_type, at_once, self.threads = self._ask_and_wait(None)
        except Refused:
            self.close()
            raise
        self.turns = Turns(at_once, prepared=int(self.device_type != "cpu"))
        while len(self._sockets) > at_once + self.turns.prepared:
            self._sockets.pop().close()
        self._ids = itertools.count()
        self._free: asyncio.Queue[Channel] = asyncio.Queue()
        self._connecting = asyncio.Lock()
        self._told: set[asyncio.Task[Any]] = set()
        self._passes = 0  # running or waiting
        self._no_pass = asyncio.Event()
        self._turn = asyncio.Lock()  # of the steps, among the models
        self._step_s, self._step_ended = 0.0, 0.0

    def _ask_and_wait(self, message: Any) -> Any:
        """The worker's answer, in a thread that may wait; without a message, what it says first."""
        with self._asking:
            return ask(self._control, message)

    def load(self, folder: Path, precision: str, version: str | None = None) -> Loaded:
        """A bundle, loaded and not yet warm, in a thread that may wait.

        Raises BundleError where it is refused, or is another version.
        """
        name = next(self._ids)
        try:
            said = self._ask_and_wait(["load", name, str(folder), precision, version])
        except Refused as error:
            raise BundleError(str(error)) from None
        calibration = said["calibration"]
        thresholds = calibration["thresholds"]
        bundle = Described(
            name=said["name"],
            version=said["version"],
            labels=said["labels"],
            problem_type=said["problem_type"],
            max_tokens=said["max_tokens"],
            calibration=Calibration(**calibration | {"thresholds": thresholds and tuple(thresholds)}),
            tokenizer=Tokenizer.from_folder(folder, has_types=said["has_types"]),
        )
        return Loaded(
            id=name,
            bundle=bundle,
            known_row=Row(*said["known_row"]),
            device=said["device"],
            precision=said["precision"],
            is_padded=said["is_padded"],
            most_tokens=said["most_tokens"],
        )

    def warm_up(self, model: Loaded) -> Cost:
        """What passes cost, measured while nothing else runs, in a thread that may wait."""
        while (cost := self._ask_and_wait(["warm_up", model.id])) is None:
            pass
        return Cost(*cost)

    async def warm_up_between(self, model: Loaded, known: Cost | None) -> Cost:
        """The same in steps between the passes of others; where its cost is known, it is not measured."""
        measured = [known.pass_s, known.row_s, known.token_s] if known else None
        while (cost := await self.step(["warm_up", model.id, measured])) is None:
            pass
        return Cost(*cost)

    async def costs_like(self, model: Loaded, other: Loaded) -> bool:
        """Whether passes of both cost the same: only the weights may differ."""
        return bool(await self._ask(["costs_like", model.id, other.id]))

    async def run(self, model: Loaded, rows: Sequence[Row]) -> tuple[Array, int]:
        """Logits (B, C) of one pass, and how many tokens it computed, padding included.

        Raises WorkerError where the pass failed, or the worker has gone.
        """
        self._passes += 1
        self._no_pass.clear()
        try:
            ids, types = [row.ids for row in rows], [row.types for row in rows]
            logits, tokens = await self._ask(["compute", model.id, ids, types])
            return np.array(logits, dtype=np.float32), tokens
        finally:
            self._passes -= 1
            if not self._passes:
                self._no_pass.set()

    async def step(self, message: Sequence[Any]) -> Any:
        """The answer to a step, asked once no pass runs or waits; if passes never end, with STEP_SHARE of the time."""
        async with self._turn:
            latest = self._step_ended + self._step_s * (1 / STEP_SHARE - 1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(latest - time.perf_counter()):
                    while self._passes:  # the next pass may have come before this task was woken
                        await self._no_pass.wait()
            start = time.perf_counter()
            try:
                return await self._ask(message)
            finally:
                self._step_ended = time.perf_counter()
                self._step_s = self._step_ended - start

    def tell(self, message: Sequence[Any]) -> None:
        """Ask something of which nobody waits for the answer."""
        if not self._is_closing:
            task = asyncio.create_task(self._tell(message))
            self._told.add(task)
            task.add_done_callback(self._told.discard)

    async def _tell(self, message: Sequence[Any]) -> None:
        with contextlib.suppress(Exception):  # the worker has gone, and all that it held
            await self._ask(message)

    async def _ask(self, message: Sequence[Any]) -> Any:
        """The answer over a channel that is free. A caller that is cancelled leaves the channel to its answer."""
        if not self._channels:
            await self._connect()
        channel = await self._free.get()
        answer = channel.ask(message)
        answer.add_done_callback(lambda _: self._free.put_nowait(channel))
        return await asyncio.shield(answer)

    async def _connect(self) -> None:
        """Take the sockets onto the event loop that runs now."""
        async with self._connecting:
            while self._sockets:
                loop, ours = asyncio.get_running_loop(), self._sockets.pop()
                _, channel = await loop.create_unix_connection(lambda: Channel(self._lose), sock=ours)
                self._channels.append(channel)
                self._free.put_nowait(channel)

    def _lose(self) -> None:
        self.is_lost = not self._is_closing

    def close(self) -> None:
        """End the worker."""
        if self._is_closing:
            return
        self._is_closing = True
        for channel in self._channels:
            channel.close()
        for ours in (self._control, *self._sockets):
            ours.close()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
