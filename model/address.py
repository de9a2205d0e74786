"""Whether somebody listens at an address, found out before a library waits for many minutes."""

from __future__ import annotations

import socket

CONNECT_S = 5.0


def check_reachable(address: str) -> None:
    """Raise ValueError where nothing listens at HOST:PORT; a name without a port is not looked at."""
    host, colon, port = address.rpartition(":")
    if colon:
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        except (OSError, ValueError) as error:
            raise ValueError(f"--ray {address}: {error}") from None
