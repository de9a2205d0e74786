"""A replica without Ray, behind a real HTTP server in a thread: what real clients are held against."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import uvicorn

from service.models import Models
from service.routes import Service
from service.settings import Settings, Spec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START_S = 30


class Replica:
    """Models by name on a port of 127.0.0.1; the first is the default. For `with`."""

    def __init__(self, models: dict[str, Path], at: int = 0, **settings: object) -> None:
        limits = Settings.model_validate(settings)
        specs = [Spec(name, folder) for name, folder in models.items()]
        self.service = Service(Models(specs, limits), limits)
        self._socket = socket.create_server(("127.0.0.1", at))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(self.service.asgi(), ws="none", log_level="error"))
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        asyncio.run(self._server.serve([self._socket]))

    def __enter__(self) -> Replica:
        self._thread.start()
        end = time.monotonic() + START_S
        while not self._server.started and time.monotonic() < end:
            time.sleep(0.01)
        assert self._server.started
        return self

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = True
        self._thread.join(START_S)
        self._socket.close()


@contextlib.contextmanager
def served(models: dict[str, Path], at: int = 0, **settings: object) -> Iterator[str]:
    """The URL of such a replica."""
    with Replica(models, at, **settings) as replica:
        yield replica.url
