"""A replica's routes behind a real socket, without Ray."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any

import uvicorn

from service.models import Models
from service.routes import Service
from service.settings import Settings, Spec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def served(folders: dict[str, Path], **settings: Any) -> Iterator[str]:
    """The URL of a service of these models."""
    parsed = Settings(**settings)
    service = Service(Models([Spec(name, folder) for name, folder in folders.items()], parsed), parsed)
    config = uvicorn.Config(service.asgi(), ws="none", log_level="warning")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
