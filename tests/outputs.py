"""What `heed predict` has written, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model.records import read_records

if TYPE_CHECKING:
    from pathlib import Path


def unpacked(file: Path) -> list[dict[str, Any]]:
    """The rows of any file."""
    return [fields for _, fields in read_records(file) if isinstance(fields, dict)]
