"""The few things that a registry asks of an object store, opened by fsspec: s3://, memory://, others untested.

An object is written whole or not at all, and no two can create the same one (on S3 by If-None-Match): that is all that
writers rely on to take turns. Credentials and endpoints are the library's own: for S3 AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL and so on. No torch. Used by model/stored.py.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from model.registry import RegistryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

LEASE_S = 30.0  # a writer's turn; it was killed if it has not ended by then
RETRY_S = 0.2  # between looks at whose turn it is
EXTRAS = {"s3": "s3"}  # protocol -> the extra of Heed that brings its library
TAKEN = (409, 412)  # of HTTP: another is creating the object, or has
WRITTEN = ("LastModified", "created", "updated", "last_modified", "mtime")  # what file systems call the time of writing


@dataclass(frozen=True)
class Object:
    """What a listing tells of one."""

    bytes: int
    written: float  # seconds since 1970


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
        """Make an object; False where there is one already, or another makes it now."""
        with self._asked(path) as (fs, full):
            try:
                fs.pipe_file(full, data, mode="create")
            except Exception as error:
                if isinstance(error, FileExistsError) or status_of(error) in TAKEN:
                    return False
                raise
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

    def files(self, path: str) -> dict[str, Object]:
        """Every object under a path, by its path from there, which leads nowhere else."""
        with self._asked(path) as (fs, full):
            found = fs.find(full, detail=True)
        root = full.lstrip("/")
        objects = {
            name.lstrip("/").removeprefix(f"{root}/"): Object(int(info["size"]), written_at(info))
            for name, info in found.items()
        }
        for name in objects:
            if {"", ".", ".."} & set(name.split("/")):  # as a path it may be any file of this machine
                raise RegistryError(f"the store has an object whose name is no path: {self.url}/{path}/{name}")
        return objects

    def has(self, path: str) -> bool:
        """Whether there is an object."""
        with self._asked(path) as (fs, full):
            return bool(fs.isfile(full))

    @contextlib.contextmanager
    def turn(self, path: str) -> Iterator[Callable[[], None]]:
        """Held by one writer of any machine at a time; what it gives raises RegistryError once it has taken too long.

        Whose turn it is, is whose token lies at the path. A token that has lain there for LEASE_S is that of a writer
        who was killed: it is removed, by one of those who wait, who take turns for that likewise.
        """
        token = uuid.uuid4().hex.encode()
        seen: bytes | None = None
        since = 0.0
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
        if self.create(path, token):
            raise RegistryError(
                f"the store makes an object that is there already, writers cannot take turns: {self.url}"
            )

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


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status that an error of S3's library comes from, None for another."""
    while error is not None:
        answer = getattr(error, "response", None)
        if isinstance(answer, dict):
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status if isinstance(status, int) else None
        error = error.__cause__
    return None


def written_at(info: Mapping[str, Any]) -> float:
    """When an object was written, by what a file system says of it; 0 where that says nothing."""
    found = next((info[name] for name in WRITTEN if info.get(name) is not None), 0.0)
    if isinstance(found, str):
        found = datetime.fromisoformat(found)
    return found.timestamp() if isinstance(found, datetime) else float(found)
