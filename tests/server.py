"""`heed serve` in a process of its own, for tests."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from service.guard import processes_of
from service.launch import free_port

if TYPE_CHECKING:
    from collections.abc import Sequence

STOP_S = 60


class Server:
    """`heed serve` in a process of its own. For `with`, which ends it whatever happens; the fixture serve does that."""

    def __init__(self, *arguments: str, program: Sequence[str] = ("-m", "service"), grpc: bool = False) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.grpc_port = free_port() if grpc else 0
        ports = ["--port", str(self.port), "--grpc-port", str(self.grpc_port)]
        command = [sys.executable, *program, "serve", *arguments, *ports]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self.folder = Path("none")

    def __enter__(self) -> Server:
        try:
            self.wait_for("ready after")
            self.folder = self._folder()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()  # what it started, its guard ends
                self.process.wait()
        self._close()

    def _folder(self) -> Path:
        """The run folder, which its guard was told."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        commands = [Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0") for child in children]
        guarded = [words[-2].decode() for words in commands if any(word.endswith(b"guard.py") for word in words)]
        return Path(guarded[0] if guarded else "none")  # none: it has ended

    def wait_for(self, words: str) -> None:
        """Read what it says until it says this, or ends."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if words in line:
                break

    def replicas(self) -> list[int]:
        """Ids of the replicas' processes."""
        pids = processes_of(str(self.folder))
        return [pid for pid in pids if b"ServeReplica" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_S)

    def _close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stderr is not None
        self.process.stdin.close()
        self.process.stderr.close()

    def is_gone(self, within_s: float) -> bool:
        """Whether no process and no folder of it is left."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            if not processes_of(str(self.folder)) and not self.folder.exists():
                return True
            time.sleep(0.1)
        return False

    def classify(self, texts: list[str], **fields: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/classify", json={"texts": texts, **fields}, timeout=60)
