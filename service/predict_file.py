"""The file that a run writes: OUT.partial, and OUT.partial.json, which says how much of it is whole and of which run.

OUT appears when it is complete. What was killed goes on at the last checkpoint: what is behind that is cut off.
Called by service/predict_command.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from dataclasses import asdict
from typing import IO, TYPE_CHECKING, Any, Protocol

from model.records import FileError
from service.predict_rows import Totals

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from service.predict_output import Format
    from service.predict_rows import Written

CHECKPOINT_S = 1.0  # the most that a kill costs, beside the chunks that were under way
EDGE_BYTES = 2**16  # of both ends of the input, which are hashed


class Unwritten(Exception):
    """The output takes no more; the message says why."""


class Sink(Protocol):
    """What chunks are written to; totals are those of all that it holds."""

    totals: Totals

    def write(self, written: Written) -> None:
        """The next chunk."""


class Stream:
    """An open stream, such as stdout."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.totals = stream, Totals()

    def write(self, written: Written) -> None:
        """The next chunk, for whoever reads along."""
        try:
            self._stream.write(written.data)
            self._stream.flush()
        except OSError as error:
            raise Unwritten(f"stdout: {error.strerror}") from None
        self.totals.add(written.totals)


class PartialFile:
    """OUT.partial, open at the end of its last checkpoint; without settings there are none."""

    def __init__(self, file: IO[bytes], state: Path, settings: dict[str, Any] | None, totals: Totals) -> None:
        self._file, self._state, self._settings, self.totals = file, state, settings, totals
        self._bytes, self._saved_at = file.tell(), time.monotonic()

    def write(self, written: Written) -> None:
        """The next chunk."""
        try:
            self._file.write(written.data)
            self._bytes += len(written.data)
            self.totals.add(written.totals)
            if time.monotonic() - self._saved_at > CHECKPOINT_S:
                self.checkpoint()
        except OSError as error:
            raise Unwritten(f"{self._file.name}: {error.strerror}") from None

    def checkpoint(self) -> None:
        """What is written is on the disk, and is counted from now on."""
        if self._settings is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        state = {"bytes": self._bytes, "totals": asdict(self.totals), "settings": self._settings}
        new = self._state.with_name(f"{self._state.name}.new")
        new.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        new.replace(self._state)
        self._saved_at = time.monotonic()


def partial_path(out: Path) -> Path:
    """Where what goes to `out` grows."""
    return out.with_name(f"{out.name}.partial")


def state_path(out: Path) -> Path:
    """What says how much of it is whole."""
    return out.with_name(f"{out.name}.partial.json")


def read_state(out: Path, *, resume: bool) -> dict[str, Any] | None:
    """What an interrupted run left. Raises FileError where something is there and nobody said what to do with it."""
    partial, file = partial_path(out), state_path(out)
    if not (file.exists() and partial.exists()):
        return None
    if not resume:
        raise FileError(f"{partial}: an interrupted run left it: --resume goes on, or remove {file.name} to begin anew")
    try:
        state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        Totals(**state["totals"])
        whole = partial.stat().st_size >= state["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise FileError(f"{partial}: does not hold what {file.name} says, remove both to begin anew")
    return state


def check_same(out: Path, state: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise FileError where the run that left the state was another."""
    for name, value in settings.items():
        before = state["settings"].get(name)
        if before != value:
            raise FileError(
                f"{partial_path(out)}: --resume cannot go on with another {name}, remove {state_path(out).name} to "
                f"begin anew: {json.dumps(before)} became {json.dumps(value)}"
            )


def check_left(file: IO[bytes], out: Path, state: dict[str, Any] | None) -> None:
    """Raise FileError where the file, now locked, is not what was left when the state was read: a model loads long."""
    stat = os.fstat(file.fileno())
    try:
        is_partial = os.path.samestat(stat, partial_path(out).stat())
    except FileNotFoundError:
        is_partial = False  # its name is OUT by now
    is_new = state is None and stat.st_size == 0
    if not (is_partial and (is_new or read_state(out, resume=state is not None) == state)):
        raise completed(out)


def completed(out: Path) -> FileError:
    """What to say where a run at the same time was faster."""
    return FileError(f"{partial_path(out)}: another run has gone on with it or completed it, look at {out.name} first")


@contextlib.contextmanager
def partial_file(
    output: Format, state: dict[str, Any] | None, settings: dict[str, Any] | None
) -> Iterator[PartialFile]:
    """The file to write; complete it takes its name. Interrupted it stays, if another run can go on with it.

    settings are what that run must have in common with this one; None: what is read cannot be read again.
    """
    out = output.path
    partial = partial_path(out)
    try:
        file = partial.open("r+b" if state or partial.exists() else "xb")
    except OSError as error:
        raise (completed(out) if state else FileError(f"{out}: {error.strerror}")) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileError(f"{partial}: another run is writing it") from None
        check_left(file, out, state)
        file.truncate(state["bytes"] if state else 0)
        file.seek(0, os.SEEK_END)
        if not state:
            state_path(out).unlink(missing_ok=True)
            file.write(output.header())
        sink = PartialFile(file, state_path(out), settings, Totals(**state["totals"]) if state else Totals())
        try:
            yield sink
            try:
                sink.checkpoint()
                file.flush()
                output.finish(partial)
                state_path(out).unlink(missing_ok=True)
            except OSError as error:
                raise Unwritten(f"{out}: {error.strerror}") from None
        except BaseException:
            if sink.totals.rows == 0 or settings is None:
                partial.unlink(missing_ok=True)
            else:
                with contextlib.suppress(OSError):  # a disk that is full: the last checkpoint stands
                    sink.checkpoint()
            raise


def identity(file: Path) -> dict[str, Any]:
    """What tells a file from another, or from itself after a change, without reading all of it."""
    stat = file.stat()
    with file.open("rb") as opened:
        digest = hashlib.sha256(opened.read(EDGE_BYTES))
        opened.seek(max(0, stat.st_size - EDGE_BYTES))
        digest.update(opened.read())
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256_of_ends": digest.hexdigest()[:16]}
