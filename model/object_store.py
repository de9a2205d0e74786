"""The few things that a registry asks of an object store, of any kind that fsspec knows (s3://, gs://, abfs://, …).

An object is written whole or not at all, and no two can create the same one: that is all that writers rely on to take
turns. Credentials and endpoints are the library's own: for S3 AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and so on.
No torch. Used by model/stored.py.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model.registry import RegistryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path

LEASE_S = 30.0  # a writer's turn; it was killed if it has not ended by then
RETRY_S = 0.2  # between looks at whose turn it is
EXTRAS = {"s3": "s3"}  # protocol -> the extra of Heed that brings its library


@dataclass(frozen=True)
class ObjectStore:
    """Objects under a URL, by their paths from there. Every method raises RegistryError where it cannot be asked."""

    url: str

    def _opened(self) -> tuple[Any, str]:
        """The file system, which the library keeps, and where the URL lies in it."""
        import fsspec

        protocol = self.url.partition("://")[0]
        try:
            fs, root = fsspec.url_to_fs(self.url, use_listings_cache=False)
        except ImportError:
            extra = f"pip install heed[{EXTRAS[protocol]}]" if protocol in EXTRAS else "install what fsspec says"
            raise RegistryError(f"the library for {protocol}:// is missing, {extra}: {self.url}") from None
        except ValueError as error:
            raise RegistryError(f"no store can be opened there ({error}): {self.url}") from None
        return fs, root.rstrip("/")

    @contextlib.contextmanager
    def _asked(self, path: str) -> Iterator[tuple[Any, str]]:
        """The file system and a path in it. What the libraries raise has no class in common."""
        fs, root = self._opened()
        try:
            yield fs, f"{root}/{path}".rstrip("/")
        except (RegistryError, FileNotFoundError, FileExistsError):
            raise
        except Exception as error:
            said = next(iter(str(error).splitlines()), "").rstrip(".") or type(error).__name__
            raise RegistryError(f"the store cannot be asked ({said}): {self.url}/{path}") from None

    def read(self, path: str) -> bytes | None:
        """An object, None where there is none."""
        with contextlib.suppress(FileNotFoundError), self._asked(path) as (fs, full):
            return bytes(fs.cat_file(full))
        return None

    def write(self, path: str, data: bytes) -> None:
        """Replace an object, or make it."""
        with self._asked(path) as (fs, full):
            fs.pipe_file(full, data)

    def create(self, path: str, data: bytes) -> bool:
        """Make an object; False where there is one already."""
        try:
            with self._asked(path) as (fs, full):
                fs.pipe_file(full, data, mode="create")
        except FileExistsError:
            return False
        return True

    def put(self, file: Path, path: str) -> None:
        """Copy a file there."""
        with self._asked(path) as (fs, full):
            fs.put_file(str(file), full)

    def get(self, path: str, file: Path) -> None:
        """Copy an object to a file. Raises FileNotFoundError."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._asked(path) as (fs, full):
            fs.get_file(full, str(file))

    def remove(self, path: str) -> None:
        """Remove an object, or all under a path; what is not there is no error."""
        with contextlib.suppress(FileNotFoundError), self._asked(path) as (fs, full):
            fs.rm(full, recursive=True)

    def names(self, path: str = "") -> list[str]:
        """What stands right under a path, in order of the alphabet; empty where nothing does."""
        with contextlib.suppress(FileNotFoundError), self._asked(path) as (fs, full):
            found = fs.ls(full, detail=False)
            return sorted({entry.rstrip("/").rpartition("/")[2] for entry in found} - {""})
        return []

    def files(self, path: str) -> dict[str, int]:
        """Every object under a path, by its path from there, and its bytes."""
        with self._asked(path) as (fs, full):
            found = fs.find(full, detail=True)
            root = full.lstrip("/")
            return {name.lstrip("/").removeprefix(f"{root}/"): int(info["size"]) for name, info in found.items()}

    def modified(self, path: str) -> datetime | None:
        """When an object was written, None where there is none."""
        with contextlib.suppress(FileNotFoundError), self._asked(path) as (fs, full):
            written: datetime = fs.modified(full)
            return written
        return None

    @contextlib.contextmanager
    def turn(self, path: str) -> Iterator[Callable[[], None]]:
        """Held by one writer of any machine at a time; what it gives raises RegistryError once it has taken too long.

        Whose turn it is, is whose token lies at the path. A token that has lain there for LEASE_S is that of a writer
        who was killed: it is removed, by one of those who wait, who take turns for that likewise.
        """
        token = uuid.uuid4().hex.encode()
        seen, since = None, 0.0
        while not self.create(path, token):
            held = self.read(path)
            if held is None or held != seen:
                seen, since = held, time.monotonic()
            elif time.monotonic() - since > LEASE_S:
                with self.turn(f"{path}.{held.decode(errors='replace')[:32]}"):
                    if self.read(path) == held:
                        self.remove(path)
            time.sleep(RETRY_S)
        begun = time.monotonic()

        def still_mine() -> None:
            if time.monotonic() - begun > LEASE_S / 2:
                raise RegistryError(
                    f"the store is too slow, try again, the turn took over {LEASE_S / 2:g} s: {self.url}"
                )

        try:
            yield still_mine
        finally:
            if self.read(path) == token:
                self.remove(path)
