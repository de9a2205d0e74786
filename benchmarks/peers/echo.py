"""Answers without a model on the ingress that Heed uses: what Ray Serve, HAProxy and HTTP cost by themselves.

`echo` reads the body and does not parse it; `echo-fastapi` has a route with a pydantic body and response.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from peers import Peer, Start, fastapi

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ray.serve import Application

    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]


def command(kind: str, start: Start) -> list[str]:
    """The program below."""
    return start.program("echo", kind)


PEERS = [Peer("echo", partial(command, "raw")), Peer("echo-fastapi", partial(command, "fastapi"))]
ANSWER = json.dumps({"labels": ["positive"], "timing_ms": {"queue": 0.0, "forward": 0.0, "total": 0.0}}).encode()


class Raw:
    """An ASGI application that takes the body and says the same to everybody. (Ray takes a function for its maker.)"""

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": ANSWER})


def application(kind: str) -> Application:
    """One replica."""
    from ray import serve

    @serve.deployment(max_ongoing_requests=10_000, logging_config={"enable_access_log": False})
    @serve.ingress(Raw() if kind == "raw" else fastapi.application(lambda texts: ["positive"] * len(texts)))
    class Echo:
        pass

    return Echo.bind()  # type: ignore[attr-defined]


if __name__ == "__main__":
    from peers.ingress import serve_application

    serve_application(lambda: application(sys.argv[4]), int(sys.argv[2]))
