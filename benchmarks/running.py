"""A server in a process of its own: started with a bundle, asked until it answers rightly, measured, ended.

Whatever it starts carries the path of its folder in the environment, by which the guard of `heed serve` finds and
ends it, HAProxy and Ray's helpers too, also where the benchmark itself is killed. Called by benchmarks/serving.py and
benchmarks/host.py.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines import Missing
from environments import onnx_int8, python_with
from peers import Start

from service.launch import free_port, run_folder
from service.load import target
from service.settings import available_cores

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from peers import Peer

    from service.load import Target

READY_S, STOP_S, ANSWER_S = 90.0, 30.0, 60.0
AGREE = 0.97  # of the labels: bf16 and int8 move a few texts across the line, a wrong adapter many
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Texts:
    """What is sent: the file, its texts, and the label that the reference gives each of the first."""

    file: Path
    texts: list[str]
    expected: list[str]


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    peer: Peer
    url: str
    ready_s: float  # from the command to the first answer

    def target(self, texts: Sequence[str], per_request: int) -> Target:
        """Its requests of so many texts each."""
        parts = [texts[i : i + per_request] for i in range(0, len(texts) - per_request + 1, per_request)]
        return target(self.url, [self.peer.body(part) for part in parts])


@contextlib.contextmanager
def running(peer: Peer, bundle: Path, texts: Texts, environments: Path) -> Iterator[Server]:
    """The peer, once it has answered rightly. Raises Missing where it cannot be installed or started, or errs."""
    python = python_with(peer.requirements, environments)
    onnx = onnx_int8(bundle, environments, texts.texts[:64]) if peer.wants_onnx else None
    with run_folder() as folder:
        start = Start(python, bundle.resolve(), onnx, free_port(), folder, available_cores())
        url = f"http://127.0.0.1:{start.port}{peer.path}"
        log = folder / "log"
        begin = time.perf_counter()
        with log.open("wb") as output:
            process = subprocess.Popen(
                peer.command(start),
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=environment(folder, start.cores) | dict(peer.variables),
                start_new_session=True,
            )
        try:
            wait_until_ready(peer, url, texts.texts[0], process, log)
            ready_s = time.perf_counter() - begin
            try:
                check(peer, url, texts)
            except (OSError, http.client.HTTPException) as error:
                raise Missing(f"{peer.name} failed: {error}") from None
            yield Server(peer, url, ready_s)
        finally:
            end(process)


def environment(folder: Path, cores: int) -> dict[str, str]:
    """Variables of every server: where to find the programs, as many threads as cores, nothing downloaded."""
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "BENCHMARK_FOLDER": str(folder),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": str(cores),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }


def ask(peer: Peer, url: str, texts: Sequence[str]) -> list[str]:
    """The labels of one request.

    Raises OSError where nothing listens or the answer is an error, Missing where it has another shape.
    """
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=ANSWER_S)
    with contextlib.closing(connection):
        connection.request("POST", f"/{path}", peer.body(texts), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
    if answer.status != 200:
        raise ConnectionError(f"it answers {answer.status}: {content[:200].decode(errors='replace')}")
    try:
        return peer.labels(json.loads(content))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Missing(f"{peer.name} has another shape of answer ({type(error).__name__}): {content[:200]!r}") from None


def wait_until_ready(peer: Peer, url: str, text: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when a text is answered. Raises Missing where the process ends, or READY_S are over."""
    until, why = time.monotonic() + READY_S, "nothing listens"
    while time.monotonic() < until:
        try:
            ask(peer, url, [text])
        except (OSError, http.client.HTTPException) as error:
            why = str(error)
        else:
            return
        if process.poll() is not None:
            raise Missing(f"{peer.name} ended with {process.returncode}: {last_line(log)}")
        time.sleep(0.1)
    raise Missing(f"{peer.name} was not ready within {READY_S:.0f} s ({why}): {last_line(log)}")


def last_line(log: Path) -> str:
    """Of what it printed."""
    lines = log.read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "no output")[-300:]


def check(peer: Peer, url: str, texts: Texts) -> None:
    """Raise Missing where the labels, of texts alone and together, are not those of the reference."""
    some = texts.texts[: len(texts.expected)]
    half = len(some) // 2
    answers = [label for text in some[:half] for label in ask(peer, url, [text])]
    for i in range(half, len(some), 8):
        answers += ask(peer, url, some[i : i + 8])
    same = sum(a == b for a, b in zip(answers, texts.expected, strict=False))
    if len(answers) != len(some) or same < AGREE * len(some):
        raise Missing(f"{peer.name} answers wrongly: {same} of {len(some)} labels are the reference's")


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to stop, and wait for it; what it leaves behind is the guard's."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
