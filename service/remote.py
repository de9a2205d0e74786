"""A replica's end of its engine: the process, the channels to it, and what becomes of both.

Called by service/compute.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from service.channel import Channel, ask

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_PASSES = 4  # at once: more would wait for the engine's interpreter lock; the cores beyond are their threads
STOP_S = 5.0
PROGRAM: tuple[str, ...] = ("-P", "-m", "service.engine")  # what Python runs


def start_engine(device: str, cores: int, channels: Sequence[socket.socket]) -> subprocess.Popen[bytes] | None:
    """The process, with its ends of the channels."""
    handles = [channel.fileno() for channel in channels]
    command = [sys.executable, *PROGRAM, device, str(cores), *map(str, handles)]
    path = os.pathsep.join(filter(None, sys.path))  # this code, wherever it was found
    process = subprocess.Popen(  # noqa: S603
        command, pass_fds=handles, stdin=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": path}
    )
    for channel in channels:
        channel.close()
    return process


class Remote:
    """An engine on a device. Raises ValueError where there is no such device.

    A question goes over the control channel, from a thread that may wait; or, on the event loop, over one of the
    channels that each have a thread of the engine to themselves; or over the one whose thread has all cores.
    """

    def __init__(self, device: str, cores: int) -> None:
        pairs = [socket.socketpair() for _ in range(2 + MAX_PASSES)]
        self._control, *self._sockets = (ours for ours, _ in pairs)
        self._process = start_engine(device, cores, [theirs for _, theirs in pairs])
        self._waiting = threading.Lock()
        self._channels: list[Channel] = []  # the first is the one with all cores
        self._free: asyncio.Queue[Channel] = asyncio.Queue()
        self._connecting = asyncio.Lock()
        self._told: set[asyncio.Task[Any]] = set()
        self.is_lost = self._is_closing = False
        self.device_type: str
        self.passes: int  # at once
        self.threads: int  # of each
        try:
            self.device_type, self.passes, self.threads = self.ask_and_wait(None)
        except BaseException:
            self.close()
            raise
        self.prepared = int(self.device_type != "cpu")  # passes that are given to it while others run
        while len(self._sockets) > 1 + self.passes + self.prepared:
            self._sockets.pop().close()

    @property
    def process_id(self) -> int:
        """Of the engine."""
        return self._process.pid if self._process is not None else os.getpid()

    def ask_and_wait(self, message: Sequence[Any] | None) -> Any:
        """The answer, in a thread that may wait; without a message, what the engine says first."""
        with self._waiting:
            return ask(self._control, message)

    async def ask(self, message: Sequence[Any], *, alone: bool = False) -> Any:
        """The answer over a channel that is free, or the one with all cores.

        A caller that is cancelled leaves the channel to its answer.
        """
        answer, _ = await self.timed(message, alone=alone)
        return answer

    async def timed(self, message: Sequence[Any], *, alone: bool = False) -> tuple[Any, float]:
        """The same, and the seconds since the channel was free."""
        if self._sockets:
            await self.connect()
        channel = self._channels[0] if alone else await self._free.get()
        start = time.perf_counter()
        answer = channel.ask(message)
        if not alone:
            answer.add_done_callback(lambda _: self._free.put_nowait(channel))
        return await asyncio.shield(answer), time.perf_counter() - start

    def tell(self, message: Sequence[Any]) -> None:
        """Ask something of which nobody waits for the answer."""
        if not self._is_closing:
            task = asyncio.create_task(self._tell(message))
            self._told.add(task)
            task.add_done_callback(self._told.discard)

    async def _tell(self, message: Sequence[Any]) -> None:
        with contextlib.suppress(Exception):  # the engine has gone, and all that it held
            await self.ask(message)

    async def connect(self) -> None:
        """Take the sockets onto the event loop that runs now; from then on is_lost tells when the engine ends."""
        async with self._connecting:
            while self._sockets:
                loop, ours = asyncio.get_running_loop(), self._sockets.pop(0)
                _, channel = await loop.create_unix_connection(lambda: Channel(self._lose), sock=ours)
                if self._channels:
                    self._free.put_nowait(channel)
                self._channels.append(channel)

    def _lose(self) -> None:
        self.is_lost = not self._is_closing

    def close(self) -> None:
        """End the engine."""
        if self._is_closing:
            return
        self._is_closing = True
        for channel in self._channels:
            channel.close()
        for ours in (self._control, *self._sockets):
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for an answer, and the engine
            ours.close()
        if self._process is not None:
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
