"""The HTTP server's connections: an answer's head and body leave in one system call.

uvicorn writes them apart, and each write wakes the ingress: a tenth of what a small request costs the host
(benchmarks/RESULTS.md). Called by service/app.py.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LINGERS_S = 2.0  # a connection that is closed under what is being sent takes the answer along


class Corked:
    """A transport that writes at once, at the end of a turn of the event loop, what is written in it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._parts: list[bytes] = []
        self._call_soon = asyncio.get_running_loop().call_soon

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write with the rest."""
        if not self._parts:
            self._call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        """Write what there is, then close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            self._transport.write(b"".join(self._parts))
            self._parts.clear()


class Connection(HttpToolsProtocol):
    """uvicorn's protocol over a corked transport, which does not read for ever."""

    _closing: asyncio.TimerHandle | None = None  # answered, and the body goes on

    def on_response_complete(self) -> None:
        """A caller who is answered before all of the body came may end it, to read the answer; then nobody reads on."""
        is_unread = self.cycle is not None and self.cycle.response_complete and self.cycle.more_body
        super().on_response_complete()
        if is_unread and self._closing is None:
            self._closing = self.loop.call_later(LINGERS_S, self.transport.close)

    def on_message_complete(self) -> None:
        """All of a body has come."""
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        super().on_message_complete()
