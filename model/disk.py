"""Written before it is seen: what a rename makes visible is on disk already. Weighed before it is read. No torch."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


MOST_DESCRIBED = 100_000_000  # bytes of a file that describes a model; the largest tokenizers have some 35 MB


def small(file: Path) -> Path:
    """The same, to be read whole. Raises FileNotFoundError, ValueError where it is larger than any such file is."""
    size = file.stat().st_size
    if size > MOST_DESCRIBED:
        raise ValueError(f"larger than the {MOST_DESCRIBED:,} bytes that such a file may have: {file} has {size:,}")
    return file


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to under a name beside `folder`, then renamed: a reader sees all of it or nothing.

    Raises FileExistsError if `folder` exists.
    """
    if folder.exists():
        raise FileExistsError(f"never overwritten, remove it or choose another --out: {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        partial.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write(file: Path, text: str) -> None:
    """Write a file, with the folders above it, to disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    sync(file)


def sync(path: Path) -> None:
    """A file or a folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
