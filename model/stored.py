"""A model of a registry in an object store: what is read is copied to a local folder first, which never is the truth.

  URL/NAME/VERSION/…, URL/NAME/aliases.json      as in a folder (model/registry.py); a version is there once its
                                                  config.json is, which is written last and removed first
  URL/NAME/.lock                                  whose turn it is to write
  HEED_CACHE/HASH_OF_URL/NAME/…                   the copies; versions never change, so each is copied once

Aliases are read from the store each time. Bundles, rows and decisions are written to the copy first, then to the store.
No torch. Opened by registered() in model/registry.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.disk import sync, write
from model.manifest import content_hash
from model.registry import (
    ABANDONED_AFTER_S,
    VERSION,
    RegisteredModel,
    RegistryError,
    is_old,
    is_version,
    listed,
    unnamed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from model.object_store import Object, ObjectStore

log = logging.getLogger("heed")

LAST = "config.json"  # of the files of a version: it is there when this is
RECORDS = ("data/rows", "data/quarantine", "decisions")  # of the retrainings, files that are told apart by their size
MOST_BYTES = 40_000_000_000  # of a version
LOG = "data/log.jsonl"


def cache_folder() -> Path:
    """Where copies lie: HEED_CACHE, or .cache/heed of the user."""
    return Path(
        os.environ.get("HEED_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "heed")
    ).expanduser()


def stored_model(store: ObjectStore, name: str) -> StoredModel:
    """The model of a name in an object store, there or not."""
    return StoredModel(cache_folder() / hashlib.sha256(store.url.encode()).hexdigest()[:16], name, store)


@dataclass(frozen=True)
class StoredModel(RegisteredModel):
    """All versions of one model in an object store; `registry` is the local folder of its copies."""

    store: ObjectStore

    def __str__(self) -> str:
        return f"{self.store.url}/{self.name}"

    def _in_store(self, path: str) -> str:
        return f"{self.name}/{path}"

    def versions(self) -> list[str]:
        """Its versions, oldest first. Raises RegistryError where there is no such model."""
        files = self.store.files(self.name)
        if not files:
            raise RegistryError(f"no model {self.name} in {self.store.url}, it has: {listed(self.store.names())}")
        return complete(files)

    def _read_aliases(self) -> str | None:
        text = self.store.read(self._in_store("aliases.json"))
        if text is None:
            self.versions()  # raises where there is no such model at all
        return None if text is None else text.decode()

    def _there(self, wanted: str) -> str:
        version = wanted if VERSION.fullmatch(wanted) else self.version(wanted)
        if not self.store.has(self._in_store(f"{version}/{LAST}")):
            raise RegistryError(f"{self}@{wanted} is a version whose files are missing")
        return version

    def bundle(self, wanted: str) -> Path:
        """The local copy of an alias or a version, made where there is none. Raises RegistryError."""
        version = self.version(wanted)
        folder = self.folder / version
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._writing():  # one process of this machine copies it, the others find it
            if not folder.is_dir():
                self._remove_the_abandoned()
                self._fetch(version, folder)
        return folder

    def _fetch(self, version: str, folder: Path) -> None:
        """Copy a version; copies of versions that are gone from the store go."""
        all_files = self.store.files(self.name)
        files = files_of(version, all_files)
        if LAST not in files:
            raise RegistryError(f"{self}@{version} is a version whose files are missing")
        if sum(one.bytes for one in files.values()) > MOST_BYTES:
            raise RegistryError(f"the files of {self}@{version} are too large to copy, over {MOST_BYTES:,} bytes")
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=self.folder))
        try:
            for file in files:
                self.store.get(self._in_store(f"{version}/{file}"), partial / file)
            if content_hash(partial) != version:
                raise RegistryError(f"the files of {self}@{version} are not those that were added")
            for path in [*partial.rglob("*"), partial]:
                sync(path)
            partial.rename(folder)
            sync(self.folder)
        except FileNotFoundError as error:
            raise RegistryError(f"{self}@{version} is a version whose files are missing ({error})") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        there = {name.partition("/")[0] for name in all_files}  # also what is being added
        gone = [copy.name for copy in self.folder.iterdir() if VERSION.fullmatch(copy.name) and copy.name not in there]
        self._remove_copies([name for name in gone if is_old(self.folder / name)])

    def _remove_copies(self, versions: list[str]) -> None:
        super()._remove([version for version in versions if (self.folder / version).is_dir()])

    def add(self, bundle: Path) -> str:
        """Copy a bundle in and return its version; as RegisteredModel.add()."""
        version = super().add(bundle)
        folder = self.folder / version
        if self.store.has(self._in_store(f"{version}/{LAST}")):
            return version
        if content_hash(folder) != version:
            raise RegistryError(f"the copy of {self}@{version} was changed, remove it: {folder}")
        sizes = {
            path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()
        }
        for file in sorted(sizes.keys() - {LAST}):
            self.store.put(folder / file, self._in_store(f"{version}/{file}"))
        with self._turn() as still_mine:
            there = {file: one.bytes for file, one in self.store.files(self._in_store(version)).items()}
            if there | {LAST: sizes[LAST]} != sizes:
                raise RegistryError(f"the files of {self}@{version} went while they were added, add it again")
            still_mine()
            self.store.put(folder / LAST, self._in_store(f"{version}/{LAST}"))
        return version

    def _write_aliases(self, text: str) -> None:
        self.store.write(self._in_store("aliases.json"), text.encode())

    @contextlib.contextmanager
    def _turn(self) -> Iterator[Callable[[], None]]:
        with self.store.turn(self._in_store(".lock")) as still_mine:
            yield still_mine

    def collect(self, keep: int) -> list[str]:
        """Remove versions that no alias names, but the last `keep`; which, oldest first. Raises RegistryError.

        With them goes what was begun a day ago or earlier and never finished.
        """
        with self._turn() as still_mine:
            named, files = set(self.aliases().values()), self.store.files(self.name)
            gone = unnamed(complete(files), named, keep)
            for version in [*gone, *abandoned(files)]:
                still_mine()
                self.store.remove(self._in_store(f"{version}/{LAST}"))  # a reader sees all of it or nothing
                self.store.remove(self._in_store(version))
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._writing():
            self._remove_copies(gone)
        return gone

    def pull(self) -> None:
        """Copy what retrainings wrote, here or elsewhere. Where both went on from the same, the store is right."""
        theirs, ours = self.store.read(self._in_store(LOG)) or b"", self._own_log()
        if not ours.startswith(theirs):
            if not theirs.startswith(ours):
                log.warning(
                    "a retraining elsewhere was faster, what an interrupted one noted here is dropped: %s", self
                )
            write(self.folder / LOG, theirs.decode())
        for folder in RECORDS:
            for file, one in self.store.files(self._in_store(folder)).items():
                own = self.folder / folder / file
                if not (own.exists() and own.stat().st_size == one.bytes):
                    partial = own.with_suffix(".partial")
                    self.store.get(self._in_store(f"{folder}/{file}"), partial)
                    partial.replace(own)

    def push(self) -> None:
        """Copy what this retraining wrote to the store, the log last.

        Raises RegistryError where another retraining wrote to it meanwhile.
        """
        for folder in RECORDS:
            there = self.store.files(self._in_store(folder))
            for own in sorted((self.folder / folder).rglob("*")):
                file = own.relative_to(self.folder / folder).as_posix()
                size = there[file].bytes if file in there else None
                if own.is_file() and own.suffix != ".partial" and size != own.stat().st_size:
                    self.store.put(own, self._in_store(f"{folder}/{file}"))
        with self.store.turn(self._in_store(".lock")) as still_mine:
            theirs, ours = self.store.read(self._in_store(LOG)) or b"", self._own_log()
            if not ours.startswith(theirs):
                raise RegistryError(
                    f"another retraining of this model has begun or ended meanwhile, run this one again: {self}"
                )
            still_mine()
            if ours != theirs:
                self.store.write(self._in_store(LOG), ours)

    def _own_log(self) -> bytes:
        """The whole lines of the copy."""
        file = self.folder / LOG
        return file.read_bytes().rpartition(b"\n")[0] + b"\n" if file.exists() and file.stat().st_size else b""


def files_of(entry: str, files: Mapping[str, Object]) -> dict[str, Object]:
    """Those under an entry of a model, by their paths from there."""
    return {name.removeprefix(f"{entry}/"): one for name, one in files.items() if name.startswith(f"{entry}/")}


def complete(files: Mapping[str, Object]) -> list[str]:
    """The versions that are there among the files of a model, oldest first."""
    written = {name.partition("/")[0]: one.written for name, one in files.items() if name.partition("/")[2] == LAST}
    return sorted((entry for entry in written if VERSION.fullmatch(entry)), key=written.__getitem__)


def abandoned(files: Mapping[str, Object]) -> list[str]:
    """Versions that somebody began to add or to remove, and was killed: nothing of them was written for a day."""
    begun = {name.partition("/")[0] for name in files} - set(complete(files))
    latest = {
        entry: max(one.written for one in files_of(entry, files).values()) for entry in begun if is_version(entry)
    }
    return [entry for entry, written in latest.items() if time.time() - written > ABANDONED_AFTER_S]
