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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.disk import write
from model.manifest import content_hash
from model.registry import VERSION, RegisteredModel, RegistryError, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from model.object_store import ObjectStore

log = logging.getLogger("heed")

LAST = "config.json"  # of the files of a version: it is there when this is
RECORDS = ("data/rows", "data/quarantine", "decisions")  # of the retrainings, each file written once
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
        entries = [entry for entry in self.store.names(self.name) if VERSION.fullmatch(entry)]
        written = {entry: self.store.modified(self._in_store(f"{entry}/{LAST}")) for entry in entries}
        if not entries:
            raise RegistryError(f"no model {self.name} in {self.store.url}, it has: {listed(self.store.names())}")
        complete = {entry: at for entry, at in written.items() if at is not None}
        return sorted(complete, key=complete.__getitem__)

    def _read_aliases(self) -> str | None:
        text = self.store.read(self._in_store("aliases.json"))
        if text is None:
            self.versions()  # raises where there is no such model at all
        return None if text is None else text.decode()

    def _there(self, wanted: str) -> str:
        version = self.version(wanted)
        if self.store.modified(self._in_store(f"{version}/{LAST}")) is None:
            raise RegistryError(f"{self}@{wanted} is a version whose files are missing")
        return version

    def bundle(self, wanted: str) -> Path:
        """The local copy of an alias or a version, made where there is none. Raises RegistryError."""
        version = self.version(wanted)
        folder = self.folder / version
        if not folder.is_dir():
            self._fetch(version, folder)
        return folder

    def _fetch(self, version: str, folder: Path) -> None:
        """Copy a version; copies of versions that are gone from the store go."""
        files = self.store.files(self._in_store(version))
        if LAST not in files:
            raise RegistryError(f"{self}@{version} is a version whose files are missing")
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=self.folder))
        try:
            for file in files:
                if ".." in Path(file).parts:
                    raise RegistryError(f"{self}@{version} has a file that would lie elsewhere: {file}")
                self.store.get(self._in_store(f"{version}/{file}"), partial / file)
            if content_hash(partial) != version:
                raise RegistryError(f"the files of {self}@{version} are not those that were added")
            with contextlib.suppress(OSError):  # another process was faster
                partial.rename(folder)
        except FileNotFoundError as error:
            raise RegistryError(f"{self}@{version} is a version whose files are missing ({error})") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        there = set(self.versions())
        for copy in self.folder.iterdir():
            if VERSION.fullmatch(copy.name) and copy.name not in there:
                shutil.rmtree(copy, ignore_errors=True)

    def add(self, bundle: Path) -> str:
        """Copy a bundle in and return its version; as RegisteredModel.add()."""
        version = super().add(bundle)
        folder, there = self.folder / version, self.store.files(self._in_store(version))
        if LAST not in there:
            files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
            for file in [*(name for name in files if name != LAST), LAST]:
                self.store.put(folder / file, self._in_store(f"{version}/{file}"))
        return version

    def _write_aliases(self, text: str) -> None:
        self.store.write(self._in_store("aliases.json"), text.encode())

    @contextlib.contextmanager
    def _turn(self) -> Iterator[Callable[[], None]]:
        with self.store.turn(self._in_store(".lock")) as still_mine:
            yield still_mine

    def _remove(self, versions: list[str]) -> None:
        for version in versions:
            self.store.remove(self._in_store(f"{version}/{LAST}"))  # a reader sees all of it or nothing
            self.store.remove(self._in_store(version))
            shutil.rmtree(self.folder / version, ignore_errors=True)

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
            for file, size in self.store.files(self._in_store(folder)).items():
                own = self.folder / folder / file
                if ".." not in own.parts and not (own.exists() and own.stat().st_size == size):
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
                if own.is_file() and own.suffix != ".partial" and there.get(file) != own.stat().st_size:
                    self.store.put(own, self._in_store(f"{folder}/{file}"))
        with self.store.turn(self._in_store(".lock")) as still_mine:
            theirs, ours = self.store.read(self._in_store(LOG)) or b"", self._own_log()
            if not ours.startswith(theirs):
                raise RegistryError(
                    f"another retraining of this model has finished meanwhile, run this one again: {self}"
                )
            still_mine()
            if ours != theirs:
                self.store.write(self._in_store(LOG), ours)

    def _own_log(self) -> bytes:
        """The whole lines of the copy."""
        file = self.folder / LOG
        return file.read_bytes().rpartition(b"\n")[0] + b"\n" if file.exists() and file.stat().st_size else b""
