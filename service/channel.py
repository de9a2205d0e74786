"""Messages between a replica and its engine: JSON behind four bytes of length, over a pair of sockets.

A channel carries one question after the other. The engine reads and answers them in a thread that may wait; the
replica asks on its event loop, or in a thread where it may wait too. No torch, no pickle.
Used by service/remote.py and engine.py.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, cast

from pydantic_core import from_json, to_json

from service.errors import EngineError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

HEAD = 4  # bytes of a message's length, the highest first
REFUSED, FAILED = "refused", "failed"  # instead of an answer: the user's mistake, or where the engine failed


class Refused(ValueError):
    """The engine refused what it was asked, for a reason that the message tells the user."""


def pack(message: Any) -> bytes:
    """A message as it is sent."""
    body = to_json(message, inf_nan_mode="constants")
    return len(body).to_bytes(HEAD) + body


def answer_of(body: bytes) -> Any:
    """What the engine answered. Raises Refused, and EngineError where it failed."""
    kind, value = from_json(body)
    if kind == REFUSED:
        raise Refused(value)
    if kind == FAILED:
        raise EngineError(*value)
    return value


def read(stream: socket.socket) -> bytes | None:
    """The next message, waiting for it; None where the other side has gone."""
    head = _exactly(stream, HEAD)
    return None if head is None else _exactly(stream, int.from_bytes(head))


def _exactly(stream: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        try:
            part = stream.recv(size - len(data))
        except OSError:
            part = b""
        if not part:
            return None
        data += part
    return bytes(data)


def ask(stream: socket.socket, message: Any) -> Any:
    """The answer to a message, waiting for it; to None, what the engine says first. Raises what answer_of() raises."""
    if message is not None:
        stream.sendall(pack(message))
    body = read(stream)
    if body is None:
        raise EngineError("EngineLost", "the engine has ended")
    return answer_of(body)


class Channel(asyncio.Protocol):
    """The replica's end on its event loop. Answers come in the order of the questions."""

    def __init__(self, on_lost: Callable[[], object]) -> None:
        self._on_lost = on_lost
        self._asked: deque[asyncio.Future[Any]] = deque()
        self._data = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It can be used."""
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, message: Any) -> asyncio.Future[Any]:
        """The answer to come; it raises what answer_of() raises."""
        body = pack(message)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._transport is None:
            answer.set_exception(EngineError("EngineLost", "the engine has ended"))
        else:
            self._asked.append(answer)
            self._transport.write(body)
        return answer

    def data_received(self, data: bytes) -> None:
        """Part of an answer, or several."""
        self._data += data
        while len(self._data) >= HEAD and len(self._data) >= (end := HEAD + int.from_bytes(self._data[:HEAD])):
            body = bytes(self._data[HEAD:end])
            del self._data[:end]
            self._answered(body)

    def _answered(self, body: bytes) -> None:
        answer = self._asked.popleft()
        if answer.done():  # nobody waits any more
            return
        try:
            answer.set_result(answer_of(body))
        except Exception as error:  # whatever it is: somebody waits
            answer.set_exception(error)

    def connection_lost(self, error: Exception | None) -> None:
        """The engine has gone, or close() was called."""
        self._transport = None
        for answer in self._asked:
            if not answer.done():
                answer.set_exception(EngineError("EngineLost", "the engine has ended"))
        self._asked.clear()
        self._on_lost()

    def close(self) -> None:
        """Nothing is asked any more."""
        if self._transport is not None:
            self._transport.close()
