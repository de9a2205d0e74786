"""What a client sees while parts of the service are killed, stopped, filled or spoiled.

    python benchmarks/faults.py [--rate 40] [--seconds 20] [--only NAME]...

Two replicas of a small model follow a registry. Requests are sent at a constant rate, without retries, each of one text
whose answer is known; a few seconds in, the fault happens. Prints a table: what was answered, refused or lost, the
longest time in which nothing was answered, and after how long the service was whole again. Exit 1 where an answer was
wrong, or the service did not come back. tests/test_faults.py runs the same.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import httpx
from breaking import HEED, NAME, ROOT, WORDS, Service, ask, wrong
from timing import markdown

from model.registry import registered
from service.launch import haproxies

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

AFTER_S = 3.0  # the fault happens so long after the first request
BACK_S = 120.0  # within which the service is whole again


Fault = Callable[
    ["Service"], Callable[[], bool] | None
]  # what it returns tells whether it is over, where that takes a while


@dataclass
class Seen:
    """What clients got: a row for each request, (sent, answered, what)."""

    rows: list[tuple[float, float, str]] = field(default_factory=list)
    struck: float = 0.0  # when the fault happened
    whole_s: float | None = None  # from there until the service was whole

    def counts(self) -> Counter[str]:
        return Counter(what for _, _, what in self.rows)

    def silence_s(self) -> float:
        """The longest time in which no request was answered, of those after the fault."""
        answered = sorted(at for _, at, what in self.rows if what == "200" and at >= self.struck)
        times = [self.struck, *answered]
        return max((b - a for a, b in pairwise(times)), default=float("inf"))


async def watch(service: Service, fault: Fault, rate: float, seconds: float) -> Seen:
    """Send requests at a rate, let the fault happen, and note what comes; goes on until the service is whole."""
    seen = Seen()
    start = time.monotonic()

    async def one(session: aiohttp.ClientSession) -> None:
        texts = [random.choice(service.texts)]
        sent = time.monotonic()
        try:
            status, body = await ask(session, service.url, texts)
            what = str(status)
            if status == 200:
                failed = body["results"][0].get("error")
                what = "failed text" if failed else "wrong" if wrong(service, texts, body) else what
        except (aiohttp.ClientError, TimeoutError) as error:
            what = "no answer in time" if isinstance(error, TimeoutError) else "connection lost"
        except ValueError:
            what = "no JSON"
        seen.rows.append((sent, time.monotonic(), what))

    async def strike() -> None:
        await asyncio.sleep(AFTER_S)
        seen.struck = time.monotonic()
        is_over = await asyncio.to_thread(fault, service) or (lambda: True)
        while not (is_over() and await asyncio.to_thread(service.is_whole)):
            if time.monotonic() > seen.struck + BACK_S:
                return
            await asyncio.sleep(0.1)
        seen.whole_s = time.monotonic() - seen.struck

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        striking = asyncio.create_task(strike())
        asked = []
        while time.monotonic() < start + seconds or not striking.done():
            asked.append(asyncio.create_task(one(session)))
            await asyncio.sleep(max(0.0, start + len(asked) / rate - time.monotonic()))
        await asyncio.gather(*asked, striking)
    return seen


def kill(named: bytes) -> Fault:
    """One process whose command line has this."""

    def strike(service: Service) -> None:
        os.kill(service.processes(named)[0], signal.SIGKILL)

    return strike


def kill_a_node(service: Service) -> Callable[[], bool]:
    """The raylet of the one that is not the head; Ray takes a replica from there to be lost when it misses the node."""
    [head] = service.processes(b"--head")
    [raylet] = [pid for pid in service.processes(b"/raylet/raylet") if pid != head]
    while len(there := children(service, raylet)) == 2:  # none would be left to answer
        os.kill(there[0], signal.SIGKILL)
        time.sleep(0.5)
        until(service.is_whole, "not whole again")
    os.kill(raylet, signal.SIGKILL)
    return lambda: len(children(service, head)) == 2


def children(service: Service, raylet: int) -> list[int]:
    """Replicas of a node."""
    return [pid for pid in service.processes(b"ray::ServeReplica") if parent(pid) == raylet]


def parent(pid: int) -> int:
    """Of a process, 0 where it is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def kill_haproxy(service: Service) -> None:
    os.kill(haproxies(service.folder)[0], signal.SIGKILL)


def hang(service: Service) -> Callable[[], bool]:
    """The device of one replica computes no more, and says nothing."""
    pid = service.processes(b"ray::ServeReplica")[0]
    service.broken.write_text(f"hang {pid}")
    return lambda: not Path(f"/proc/{pid}").exists()


def out_of_memory(service: Service) -> None:
    """Every pass of two rows or more is too large for a while."""
    service.broken.write_text("memory")
    time.sleep(5)
    service.broken.write_text("")


def one_text_is_too_long(service: Service) -> None:
    """Whatever a text is computed with, it runs out of memory: it alone fails, in every request that has it."""
    texts = [service.texts[0], " ".join(WORDS * 20), service.texts[1]]
    service.broken.write_text("memory 200")
    try:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            answer = httpx.post(f"{service.url}/v1/classify", json={"texts": texts}).json()
            errors = [result.get("error", {}).get("code") for result in answer["results"]]
            assert errors == [None, "failed", None], errors
    finally:
        service.broken.write_text("")


def clock_set(seconds: int) -> Fault:
    """The time of day jumps, and stays there: the faults that follow come after it."""

    def strike(service: Service) -> None:
        service.clock.write_text(str(seconds))

    return strike


def registry_gone(service: Service) -> None:
    """As a volume that is not there; comes back after a while."""
    away = service.registry.with_name("away")
    service.registry.rename(away)
    time.sleep(5)
    away.rename(service.registry)


def registry_hangs(service: Service) -> None:
    """As a network's volume whose server is gone: whoever opens the file waits."""
    aliases = service.registry / NAME / "aliases.json"
    kept = aliases.read_bytes()
    with taken_away(aliases):
        os.mkfifo(aliases)
        time.sleep(5)
        with contextlib.suppress(OSError):  # whoever waits reads it, and nobody else will
            handle = os.open(aliases, os.O_WRONLY | os.O_NONBLOCK)
            os.write(handle, kept)
            os.close(handle)


def registry_slow(service: Service) -> None:
    """A version is promoted, and back, on a disk that gives 2 MB/s."""
    disk, mounted = service.registry.with_name("disk"), service.registry
    another = registered(service.registry, NAME).add(service.another)
    mounted.rename(disk)
    mounted.mkdir()
    subprocess.run(["bindfs", "--read-rate=2M", str(disk), str(mounted)], check=True)
    try:
        model = registered(mounted, NAME)
        for version in (another, model.aliases()["production"]):
            model.promote(version)
            until_served(service, version)
    finally:
        subprocess.run(["fusermount", "-uz", str(mounted)], check=True)
        mounted.rmdir()
        disk.rename(mounted)


def until_served(service: Service, version: str) -> None:
    """By all replicas, as far as several answers tell."""

    def is_served() -> bool:
        said = (httpx.get(f"{service.url}/v1/models").json()["models"][0]["version"] for _ in range(8))
        return all(one == version for one in said)

    until(is_served, f"not loaded: {version}")


def until(is_so: Callable[[], bool], else_say: str) -> None:
    """Wait."""
    end = time.monotonic() + BACK_S
    while not is_so():
        assert time.monotonic() < end, else_say
        time.sleep(0.2)


@contextlib.contextmanager
def taken_away(file: Path) -> Iterator[None]:
    kept = file.with_name("kept")
    file.rename(kept)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        kept.rename(file)


def registry_full(service: Service) -> None:
    """A version is added and promoted where no byte can be written."""
    add = [*HEED, "registry", "add", str(service.registry), NAME, str(service.another), "--promote"]
    ran = subprocess.run(
        ["bash", "-c", 'ulimit -f 0; exec "$@"', "bash", *add], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode != 0, ran.stderr
    assert "File too large" in ran.stderr, ran.stderr
    assert "Traceback" not in ran.stderr, ran.stderr


SPOILED: Mapping[str, Callable[[Path], object]] = {
    "weights cut off": lambda version: os.truncate(version / "model.safetensors", 1_000_000),
    "a bit of the weights flipped": lambda version: flip(version / "model.safetensors"),
    "a config that is no JSON": lambda version: (version / "config.json").write_text("{"),
    "no tokenizer": lambda version: (version / "tokenizer.json").unlink(),
    "probes that it does not reproduce": lambda version: change_probes(version / "heed.json"),
}


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 64
    file.write_bytes(content)


def change_probes(file: Path) -> None:
    manifest = json.loads(file.read_text())
    manifest["probes"][0]["logits"] = [9.0 for _ in manifest["probes"][0]["logits"]]
    file.write_text(json.dumps(manifest))


def spoil(how: str) -> Fault:
    """A version is promoted whose files are not whole: it has to be refused, and said."""

    def strike(service: Service) -> None:
        good = registered(service.registry, NAME).aliases()["production"]
        version = service.registry / NAME / f"{len(list((service.registry / NAME).iterdir())):016x}"
        shutil.copytree(service.registry / NAME / good, version)
        SPOILED[how](version)
        aliases = service.registry / NAME / "aliases.json"
        kept = aliases.read_text()
        written = aliases.with_name("next")
        written.write_text(json.dumps(json.loads(kept) | {"production": version.name}))
        written.replace(aliases)
        until(lambda: refused(service) == version.name, f"not refused: {how}")
        written.write_text(kept)
        written.replace(aliases)

    return strike


def refused(service: Service) -> str | None:
    """The version that a replica could not load, and says so."""
    last_error = httpx.get(f"{service.url}/v1/models").json()["models"][0]["last_error"]
    return str(last_error["version"]) if last_error else None


FAULTS: Mapping[str, Fault] = {
    "the clock is set an hour ahead": clock_set(3600),
    "the clock is set two hours back": clock_set(-3600),
    "a replica is killed": kill(b"ray::ServeReplica"),
    "a replica's engine is killed": kill(b"breakable_engine"),
    "HAProxy is killed": kill_haproxy,
    "Serve's controller is killed": kill(b"ray::ServeController"),
    "a replica's passes hang": hang,
    "passes run out of memory, 5 s": out_of_memory,
    "one text runs out of memory, 5 s": one_text_is_too_long,
    "the registry is gone, 5 s": registry_gone,
    "the registry hangs, 5 s": registry_hangs,
    "the registry reads 2 MB/s": registry_slow,
    "a promotion on a full disk": registry_full,
    **{f"promoted: {how}": spoil(how) for how in SPOILED},
    "the raylet of a second node is killed": kill_a_node,
}


def row(name: str, seen: Seen) -> dict[str, str]:
    """Of the table."""
    counts = seen.counts()
    answered = counts.pop("200", 0)
    return {
        "fault": name,
        "answered": f"{answered:,} of {len(seen.rows):,}",
        "not answered": ", ".join(f"{n} {what}" for what, n in counts.most_common()) or "none",
        "silence": f"{seen.silence_s():.2f} s",
        "whole again": "not" if seen.whole_s is None else f"{seen.whole_s:.1f} s",
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="What a client sees of faults.")
    parser.add_argument("--rate", type=float, default=40, metavar="N", help="requests a second")
    parser.add_argument("--seconds", type=float, default=20, metavar="S", help="of each fault, at least")
    parser.add_argument("--only", action="append", choices=[*FAULTS], metavar="NAME")
    args = parser.parse_args(argv)
    table, good = [], True
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder))
        try:
            for name in args.only or FAULTS:
                seen = asyncio.run(watch(service, FAULTS[name], args.rate, args.seconds))
                good = good and seen.whole_s is not None and not seen.counts()["wrong"]
                table.append(row(name, seen))
                print(table[-1], file=sys.stderr, flush=True)
        finally:
            service.stop()
    print(markdown(table))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
