"""The service that benchmarks break and soak: two replicas that follow a registry, and what they say of known texts.

Its devices break on demand (tests/breakable.py). Used by benchmarks/faults.py and soak.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx
import torch

from model.bundle import load_bundle, save_bundle
from model.manifest import Manifest
from service.guard import processes_of
from service.launch import free_port, haproxies
from service.settings import SENTIMENT

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parent.parent
NAME = "mood"
OFF = 1e-4  # of a score, at most, in fp32
PATIENCE_S = 40.0  # of a client, more than the deadline that a request has by itself
WORDS = [
    "a",
    "the",
    "film",
    "gorgeous",
    "witty",
    "dull",
    "tedious",
    "lovely",
    "mess",
    "of",
    "and",
    "cast",
    "plot",
    "never",
]
HEED = [sys.executable, "-m", "service"]


class Service:
    """`heed serve` with two replicas of a model that is followed, each under a raylet of its own, and its registry.

    The file `clock` says by how many seconds the time of day is off for its processes (tests/jumping).
    """

    def __init__(self, folder: Path, *more: str) -> None:
        rng = random.Random(0)
        self.texts = [" ".join(rng.choices(WORDS, k=rng.choice([2, 8, 8, 20, 60]))) for _ in range(500)]
        self.another = say_the_opposite(folder / "another")
        self.expected = dict(self._offline(bundle, folder) for bundle in (SENTIMENT, self.another))
        self.registry = folder / "registry"
        self.broken = folder / "broken"
        self.broken.write_text("")
        self.clock = folder / "clock"
        self.clock.write_text("0")
        self.heed("registry", "add", str(self.registry), NAME, str(SENTIMENT), "--promote")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        flags = ["--port", str(self.port), "--grpc-port", "0", "--replicas", "2", "--registry-poll-s", "0.5"]
        flags += ["--precision", "fp32"]  # an answer does not hang on its neighbours, as in bf16 by some thousandths
        program = [
            sys.executable,
            "-m",
            "tests.breakable",
            "serve",
            f"{self.registry}/{NAME}@production",
            *flags,
            *more,
        ]
        jumping = os.pathsep.join(filter(None, [str(ROOT / "tests" / "jumping"), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {
            "BROKEN": str(self.broken),
            "CLOCK": str(self.clock),
            "PYTHONPATH": jumping,
            "NODES": "2",
        }
        self.process = subprocess.Popen(
            program,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.folder = self._until_ready()

    def _until_ready(self) -> Path:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if "ready after" in line:
                break
        self._reading = threading.Thread(target=self.process.stderr.read, daemon=True)  # else a full pipe stops it
        self._reading.start()
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        commands = [Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0") for child in children]
        [folder] = [words[-2].decode() for words in commands if any(word.endswith(b"guard.py") for word in words)]
        return Path(folder)

    def heed(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*HEED, *arguments], cwd=ROOT, check=True, capture_output=True, text=True)

    def _offline(self, bundle: Path, folder: Path) -> tuple[str, dict[str, float]]:
        """A version, and what `heed predict` says with it of each text."""
        asked, found = folder / "texts.jsonl", folder / "found.jsonl"
        asked.write_text("".join(json.dumps({"text": text}) + "\n" for text in self.texts))
        self.heed("predict", str(bundle), str(asked), "--out", str(found), "--precision", "fp32")
        lines = [json.loads(line) for line in found.read_text().splitlines()]
        found.unlink()
        version = Manifest.from_json((bundle / "heed.json").read_bytes()).version
        return version, {text: positive(line) for text, line in zip(self.texts, lines, strict=True)}

    def processes(self, named: bytes) -> list[int]:
        """Ids of the processes of the service whose command line has this."""
        found = []
        for pid in processes_of(str(self.folder)):
            with contextlib.suppress(OSError):
                if named in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def is_whole(self) -> bool:
        """Whether both replicas answer, under an ingress and a controller."""
        parts = [
            self.processes(b"ray::ServeReplica"),
            self.processes(b"service.engine") or self.processes(b"breakable_engine"),
        ]
        parts_are_there = all(len(part) >= 2 for part in parts) and self.processes(b"ray::ServeController")
        if not parts_are_there or not haproxies(self.folder):
            return False
        return is_ready(self.port) and sum(map(self.is_asked, self.processes(b"ray::ServeReplica"))) >= 2

    def is_asked(self, replica: int) -> bool:
        """Whether a replica answers, and HAProxy knows where."""
        known = "".join(file.read_text() for file in self.folder.rglob("haproxy.cfg"))
        ports = [port for _, port in listening([replica]) if f"127.0.0.1:{port} " in known]
        return any(map(is_ready, ports))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self._reading.join()
        for pipe in (self.process.stdin, self.process.stderr):
            assert pipe is not None
            pipe.close()


def is_ready(port: int) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=2).status_code == 200
    return False


def listening(pids: Sequence[int]) -> set[tuple[str, int]]:
    """Addresses, in the kernel's hexadecimal, and ports that the processes listen on."""
    sockets = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            for handle in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    sockets |= set(re.findall(r"socket:\[(\d+)\]", str(handle.readlink())))
    rows = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    addresses = [row[1].split(":") for row in rows if row[3] == "0A" and row[9] in sockets]
    return {(address, int(port, 16)) for address, port in addresses}


async def ask(session: aiohttp.ClientSession, url: str, texts: Sequence[str], **more: bool) -> tuple[int, Any]:
    """The status, and the answer."""
    patience = aiohttp.ClientTimeout(PATIENCE_S)
    async with session.post(f"{url}/v1/classify", json={"texts": texts, **more}, timeout=patience) as got:
        return got.status, await got.json(content_type=None)


def wrong(service: Service, texts: Sequence[str], answer: dict[str, Any]) -> int:
    """Results that are not what the version that gave them says of their text offline; failed texts are not."""
    known = service.expected[answer["version"]]
    given = [(text, result) for text, result in zip(texts, answer["results"], strict=True) if not result.get("error")]
    return sum(abs(positive(result) - known[text]) > OFF for text, result in given)


def positive(result: dict[str, Any]) -> float:
    """The score of `positive`."""
    return next(float(label["score"]) for label in result["labels"] if label["label"] == "positive")


def say_the_opposite(folder: Path) -> Path:
    """The model that comes with Heed, made to: no answer of one can be taken for the other's."""
    theirs = load_bundle(SENTIMENT)
    assert theirs.manifest is not None
    with torch.no_grad():
        for weight in theirs.classifier.head.out.parameters():
            weight.neg_()
    save_bundle(folder, theirs.classifier, theirs.tokenizer, theirs.manifest, weights="fp16")
    return folder
