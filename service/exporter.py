"""One answer to a scrape for every replica process of a node, on /metrics and on a port of its own.

Replicas keep their figures in memory-mapped files of one folder (prometheus-client's multiprocess mode), so that
any of them answers for all. What the dead counted stays, in one file of each kind; their gauges go.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from service.metrics import MODEL_INFO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
THE_DEAD = "dead"  # in the place of a process id, in the name of a file


def exposition() -> bytes:
    """Prometheus text of all replica processes of this node, or of this process where nothing is shared."""
    shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not shared:
        return generate_latest(Exposed(REGISTRY))
    with alone_in(Path(shared)):
        absorb_the_dead(Path(shared))
        return generate_latest(Exposed(MultiProcessCollector(CollectorRegistry(), shared)))  # type: ignore[no-untyped-call]


class Exposed:
    """What a collector says, without the versions that are gone: multiprocess mode has no way to remove a gauge."""

    def __init__(self, source: CollectorRegistry | MultiProcessCollector) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """Every metric, as the exposition asks for them."""
        for metric in self._source.collect():
            if metric.name == MODEL_INFO._name:
                metric.samples = [sample for sample in metric.samples if sample.value]
            yield metric


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """No other process or thread is in here meanwhile: between two steps of absorbing, sums would be wrong."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the file, so with the process too
        yield


def absorb_the_dead(folder: Path) -> None:
    """Add the counts of processes that have ended to those of the dead before them, and forget their gauges."""
    for kind in ("counter", "histogram"):
        total = folder / f"{kind}_{THE_DEAD}.db"
        _finish(total)  # what a process began that was killed
        dead = [file for file in folder.glob(f"{kind}_*.db") if not is_alive(file)]
        if dead:
            _absorb(total, dead)
    for file in folder.glob("gauge_live*.db"):
        if not is_alive(file):
            file.unlink()


def is_alive(file: Path) -> bool:
    """Whether the process that a file is named for runs; the file of the dead has nobody to wait for.

    /proc answers for the ids of threads, too, which in a container that was started again are those of its dead.
    """
    owner = file.stem.rpartition("_")[2]
    if owner == THE_DEAD:
        return True
    try:
        status = Path("/proc", owner, "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return f"\nTgid:\t{owner}\n" in status


def _absorb(total: Path, dead: list[Path]) -> None:
    """Add files to a file that is replaced whole; a process that ends before its first count leaves nothing.

    Killed before the list is there, nothing has happened; after that, whoever is next finishes it.
    """
    partial, listed = total.with_suffix(".partial"), total.with_suffix(".list")
    partial.unlink(missing_ok=True)
    if total.exists():
        shutil.copy(total, partial)
    sums = MmapedDict(str(partial))  # type: ignore[no-untyped-call]
    for file in dead:
        if file.stat().st_size:
            for key, value, _, _ in MmapedDict.read_all_values_from_file(file):  # type: ignore[no-untyped-call]
                sums.write_value(key, sums.read_value(key)[0] + value, 0.0)  # type: ignore[no-untyped-call]
    sums.close()  # type: ignore[no-untyped-call]
    listed.write_text("".join(f"{file.name}\n" for file in dead))
    listed.replace(total.with_suffix(".absorbed"))
    _finish(total)


def _finish(total: Path) -> None:
    """Put the sums into place, once, and remove the files that are in them."""
    partial, absorbed = total.with_suffix(".partial"), total.with_suffix(".absorbed")
    if not absorbed.exists():
        return
    if partial.exists():
        partial.replace(total)
    for name in absorbed.read_text().splitlines():
        (total.parent / name).unlink(missing_ok=True)
    absorbed.unlink()


class Exporter(ThreadingTCPServer):
    """GET /metrics, in threads of its own. All replicas of a node listen on its port; whichever is there answers."""

    allow_reuse_address = allow_reuse_port = True
    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Scrape)
        threading.Thread(target=self.serve_forever, name="exporter", daemon=True).start()


class _Scrape(BaseHTTPRequestHandler):
    """One scrape."""

    timeout = 10.0  # seconds, for a client that sends nothing

    def do_GET(self) -> None:
        """Answer, or 404."""
        is_metrics = self.path.partition("?")[0] == "/metrics"
        body = exposition() if is_metrics else b"try /metrics\n"
        self.send_response(HTTPStatus.OK if is_metrics else HTTPStatus.NOT_FOUND)
        self.send_header("Content-Type", MEDIA_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """No line for each scrape."""
