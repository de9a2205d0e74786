"""What a caller of the client can catch: one exception, with the code that the service gave."""

from __future__ import annotations

from typing import Any


class HeedError(Exception):
    """A call that has no answer.

    code is the service's (`overloaded`, `invalid_request`, ...), `http_502` and the like where something before it
    answered, `unreachable` or `deadline_exceeded` where nothing did. status is the HTTP status, None without one.
    """

    def __init__(
        self, code: str, status: int | None, message: str, details: list[dict[str, Any]] | None = None
    ) -> None:
        super().__init__(code, status, message, details or [])
        self.code, self.status, self.message, self.details = code, status, message, details or []

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"
