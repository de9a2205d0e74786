"""Versions and aliases of models, in a folder: which bundle is in production, which one was before.

  REGISTRY/NAME/VERSION/        a bundle; its version is the hash of its content, and it never changes
  REGISTRY/NAME/aliases.json    {"production": VERSION, "candidate": VERSION, "previous": VERSION}

Readers take no lock: aliases.json is replaced by a rename, and a bundle gets its name when it is complete. Writers
take turns by flock on REGISTRY/NAME/.lock, which the kernel releases when one dies; on NFS the server keeps it. What
is another way in an object store is in stored.py.
No torch until a bundle is added. Written by `heed registry` and `heed retrain`, followed by service/following.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from model.disk import sync, write
from model.manifest import content_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from model.object_store import ObjectStore

    Aliases: TypeAlias = dict[str, str]  # alias -> version
    Registry: TypeAlias = Path | ObjectStore

ALIASES = ("production", "candidate", "previous")
VERSION = re.compile(r"[0-9a-f]{16}")
BEGINNING = re.compile(r"[0-9a-f]{8,16}")  # of a version: enough to tell those of one model apart
NAME = re.compile(r"\w[\w.-]*", re.ASCII)
URL = re.compile(r"[a-z][a-z0-9+.-]*://")
ABANDONED_AFTER_S = 86_400  # nobody copies a bundle for a day: who began it was killed


class RegistryError(ValueError):
    """A registry that cannot be read, or has not what is asked of it; the message says what to change."""


@dataclass(frozen=True)
class RegisteredModel:
    """All versions of one model."""

    registry: Path
    name: str

    @property
    def folder(self) -> Path:
        """Where its versions, and the records of its retrainings, lie; of an object store their copies."""
        return self.registry / self.name

    def __str__(self) -> str:
        return str(self.folder)

    def versions(self) -> list[str]:
        """Its versions, oldest first. Raises RegistryError where there is no such model."""
        with self._readable():
            folders = [folder for folder in self.folder.iterdir() if VERSION.fullmatch(folder.name)]
            return [folder.name for folder in sorted(folders, key=lambda folder: folder.stat().st_ctime)]

    def aliases(self) -> Aliases:
        """Which version each alias names, now. Raises RegistryError where that cannot be read."""
        file = f"{self}/aliases.json"
        try:
            text = self._read_aliases()
            aliases = {} if text is None else json.loads(text)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RegistryError(f"not JSON ({error}): {file}") from None
        if not isinstance(aliases, dict) or not all(is_version(version) for version in aliases.values()):
            raise RegistryError(f"does not map aliases to versions: {file}")
        return aliases

    def _read_aliases(self) -> str | None:
        file = self.folder / "aliases.json"
        with self._readable():
            return file.read_text(encoding="utf-8") if file.exists() else None

    def version(self, wanted: str) -> str:
        """The version of an alias, of a version or of its beginning. Raises RegistryError."""
        if wanted in ALIASES:
            aliases = self.aliases()
            if wanted not in aliases:
                raise RegistryError(f"{self} has no {wanted}, it has: {listed(aliases)}")
            return aliases[wanted]
        versions = self.versions()
        if not BEGINNING.fullmatch(wanted):
            raise RegistryError(
                f"not one of {', '.join(ALIASES)}, nor a version or at least 8 digits of one: {self}@{wanted}"
            )
        found = [version for version in versions if version.startswith(wanted)]
        if len(found) != 1:
            raise RegistryError(f"{self} has {len(found)} versions {wanted}, it has: {listed(versions)}")
        return found[0]

    def bundle(self, wanted: str) -> Path:
        """The folder of an alias or a version. Raises RegistryError."""
        folder = self.folder / self.version(wanted)
        if not folder.is_dir():
            raise RegistryError(f"{self}@{wanted} is a version whose folder is missing: {folder}")
        return folder

    def add(self, bundle: Path) -> str:
        """Copy a bundle in and return its version; one that is there already is left as it is.

        Raises BundleError where the bundle cannot be served, RegistryError where it cannot be copied or changes
        meanwhile.
        """
        from model.bundle import load_bundle

        version = load_bundle(bundle).version
        folder = self.folder / version
        if folder.exists():
            return version
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_the_abandoned()
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=self.folder))
        try:
            shutil.copytree(bundle, partial, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
            if content_hash(partial) != version:
                raise RegistryError(f"the bundle changed while it was copied, add it again: {bundle}")
            for path in [*partial.rglob("*"), partial]:
                sync(path)
            with self._writing():
                if not folder.exists():  # added by another writer
                    partial.rename(folder)
                    sync(self.folder)
        except shutil.Error as error:
            source, _, why = error.args[0][0]  # of the first file; the others fail alike
            raise RegistryError(f"a file of the bundle cannot be copied ({why}): {source}") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return version

    def _remove_the_abandoned(self) -> None:
        for partial in self.folder.glob(".partial-*"):
            with contextlib.suppress(FileNotFoundError):  # it has become a version, or another writer removes it
                if is_old(partial):
                    shutil.rmtree(partial, ignore_errors=True)

    def _there(self, wanted: str) -> str:
        """The version that is meant; it has its files. Raises RegistryError."""
        return self.bundle(wanted).name

    def propose(self, wanted: str) -> Aliases:
        """Make a version the candidate, unless it is in production; the aliases then. Raises RegistryError."""
        return self._change(lambda aliases: proposed(aliases, self._there(wanted)))

    def promote(self, wanted: str, instead_of: str | None = None) -> Aliases:
        """Put a version into production; the aliases then.

        Raises RegistryError, also where production is not `instead_of` any more, if that is given.
        """

        def change(aliases: Aliases) -> Aliases:
            now = aliases.get("production")
            if instead_of not in (None, now):
                raise RegistryError(f"{self} has another version in production meanwhile, not {instead_of}: {now}")
            return promoted(aliases, self._there(wanted))

        return self._change(change)

    def rollback(self) -> Aliases:
        """Put back what was in production before; the aliases then. Raises RegistryError."""
        if "previous" not in self.aliases():
            raise RegistryError(f"nothing was in production before, promote a version: {self}")
        return self._change(lambda aliases: promoted(aliases, self._there("previous")))

    def collect(self, keep: int) -> list[str]:
        """Remove versions that no alias names, but the last `keep`; which, oldest first. Raises RegistryError."""
        with self._turn():
            gone = unnamed(self.versions(), set(self.aliases().values()), keep)
            self._remove(gone)
        return gone

    def _remove(self, versions: list[str]) -> None:
        removed = Path(tempfile.mkdtemp(prefix=".partial-", dir=self.folder))
        for version in versions:
            (self.folder / version).rename(removed / version)  # a reader sees all of it or nothing
        sync(self.folder)
        shutil.rmtree(removed)

    def pull(self) -> None:
        """Have the records of its retrainings in `folder`; of a folder they are."""

    def push(self) -> None:
        """Make what was written of them last. Raises RegistryError where another retraining was faster."""

    def _change(self, change: Callable[[Aliases], Aliases]) -> Aliases:
        """Replace the aliases by what change makes of them, one writer at a time."""
        with self._turn() as still_mine:
            before = self.aliases()
            after = change(before)
            if after != before:
                still_mine()
                self._write_aliases(json.dumps(after, indent=2) + "\n")
        return after

    def _write_aliases(self, text: str) -> None:
        partial = self.folder / ".aliases.json.partial"
        write(partial, text)
        partial.replace(self.folder / "aliases.json")
        sync(self.folder)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[Callable[[], None]]:
        """Held by one who changes aliases or removes versions; what it gives raises RegistryError if it was lost."""
        with self._readable(), self._writing():
            yield lambda: None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Held by one writer to the folder, of any process, at a time."""
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield  # closing the file lets the next one in

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Raise RegistryError where there is no such model, or its folder cannot be read."""
        try:
            if not self.folder.is_dir():
                raise RegistryError(f"no model {self.name} in {self.registry}, it has: {listed(names(self.registry))}")
            yield
        except OSError as error:
            raise RegistryError(f"cannot be read ({error.strerror}): {self}") from None


def is_old(copy: Path) -> bool:
    """Whether nobody can be making it any more; its mtime is that of the bundle."""
    return time.time() - copy.stat().st_ctime > ABANDONED_AFTER_S


def unnamed(versions: list[str], named: set[str], keep: int) -> list[str]:
    """The versions that are named by no alias, but the last `keep` of these."""
    free = [version for version in versions if version not in named]
    return free[: len(free) - keep] if keep < len(free) else []


def is_version(value: object) -> bool:
    """Whether it is written as a version is: a folder of that name cannot lie elsewhere."""
    return isinstance(value, str) and VERSION.fullmatch(value) is not None


def proposed(aliases: Aliases, version: str) -> Aliases:
    """The aliases with a candidate; what is in production is none."""
    return aliases if aliases.get("production") == version else aliases | {"candidate": version}


def promoted(aliases: Aliases, version: str) -> Aliases:
    """The aliases with a version in production, and what was there as previous; it is no candidate any more."""
    before = aliases.get("production")
    if before == version:
        return aliases
    left = {alias: v for alias, v in aliases.items() if (alias, v) != ("candidate", version)}
    return left | {"production": version} | ({"previous": before} if before else {})


def open_registry(text: str) -> Registry:
    """A registry that is there. Raises RegistryError where there is none."""
    registry = registry_of(text)
    if isinstance(registry, Path) and not registry.is_dir():
        raise RegistryError(f"no registry, `heed registry add` makes one: {registry}")
    return registry


def registry_of(text: str) -> Registry:
    """A folder or the URL of an object store; nothing may be there yet."""
    if not URL.match(text):
        return Path(text)
    from model.object_store import ObjectStore

    return ObjectStore(text.rstrip("/"))


def registered(registry: Registry, name: str) -> RegisteredModel:
    """The model of a name, there or not. Raises RegistryError for what is no name."""
    if not NAME.fullmatch(name):
        raise RegistryError(f"a model's name has letters, digits, dots, dashes and underscores only: {name}")
    if isinstance(registry, Path):
        return RegisteredModel(registry, name)
    from model.stored import stored_model

    return stored_model(registry, name)


def names(registry: Registry) -> list[str]:
    """The models of a registry, in order of the alphabet. Raises RegistryError where it cannot be read."""
    if not isinstance(registry, Path):
        return [name for name in registry.names() if NAME.fullmatch(name)]
    try:
        return sorted(entry.name for entry in registry.iterdir() if entry.is_dir() and NAME.fullmatch(entry.name))
    except OSError as error:
        raise RegistryError(f"the registry cannot be read ({error.strerror}): {registry}") from None


def listed(names: list[str] | Aliases) -> str:
    return ", ".join(names) or "none"
