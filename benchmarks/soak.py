"""An hour of everything at once: does memory stay flat, do answers stay right, is the end as fast as the start?

    python benchmarks/soak.py [--minutes 60] [--rate 40] [--plot soak.svg]

Two replicas follow a registry in which two versions take turns every minute; callers ask for one text, for many, and
for explanations, at a constant rate; labels are sent for some answers, and metrics are scraped. Every answer is checked
against what its version says of the text offline. Prints a table of minutes; exit 1 where an answer was wrong or did
not come, or memory, open files or threads grew, or the end was slower than the start.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import numpy as np
from breaking import NAME, Service, ask, wrong
from timing import markdown

from model.registry import RegisteredModel
from service.guard import processes_of

if TYPE_CHECKING:
    from collections.abc import Sequence

SETTLED = 5  # minutes after which nothing should grow any more
MORE = 1.1  # of what there was at the start, at most
SLOWER = 1.5  # p99 of the last minutes against the first: of a few thousand requests each, on a shared machine


@dataclass
class Minute:
    """What happened in one; the last three at its end, of all processes of the service."""

    seconds: list[float] = field(default_factory=list)  # of each request that was answered
    wrong: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # why
    megabytes: float = 0.0
    files: int = 0
    threads: int = 0

    @property
    def p99_ms(self) -> float:
        return float(np.quantile(self.seconds or [0.0], 0.99)) * 1000

    def row(self, number: int) -> dict[str, Any]:
        """Of the table."""
        return {
            "minute": number,
            "answered": f"{len(self.seconds):,}",
            "failed": ", ".join(f"{n} {why}" for why, n in self.failed.items()) or 0,
            "wrong": self.wrong,
            "p50, ms": f"{float(np.median(self.seconds or [0.0])) * 1000:.1f}",
            "p99, ms": f"{self.p99_ms:.1f}",
            "MB": f"{self.megabytes:,.0f}",
            "files": self.files,
            "threads": self.threads,
        }


class Soak:
    """The service, the versions that take turns in it, and the minutes."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.model = RegisteredModel(self.service.registry, NAME)
        self.model.add(self.service.another)
        self.minutes = [Minute()]

    async def run(self, minutes: float, rate: float) -> None:
        """Ask, swap, scrape and look, until the time is over."""
        end = time.monotonic() + 60 * minutes
        async with aiohttp.ClientSession(self.service.url, connector=aiohttp.TCPConnector(limit=0)) as session:
            beside = [asyncio.create_task(each) for each in (self.swap(), self.scrape(session), self.look())]
            waiting: set[asyncio.Task[None]] = set()
            start = time.monotonic()
            for sent in itertools.count():
                task = asyncio.create_task(self.ask(session, sent))
                waiting.add(task)
                task.add_done_callback(waiting.discard)
                await asyncio.sleep(max(0.0, start + sent / rate - time.monotonic()))
                if time.monotonic() > end:
                    break
            await asyncio.gather(*waiting)
            for each in beside:
                if each.done():  # by itself only where it failed
                    self.minutes[-1].failed[f"beside: {each.exception()}"] += 1
                each.cancel()

    async def ask(self, session: aiohttp.ClientSession, number: int) -> None:
        """One request: most of one text, some of fifty, some explained, some labelled."""
        texts = random.choices(self.service.texts, k=50 if number % 20 == 0 else 1)
        minute, started = self.minutes[-1], time.perf_counter()
        try:
            status, answer = await ask(session, "", texts, explain=number % 50 == 7)
            if status != 200:
                minute.failed[f"asked: {status}"] += 1
                return
            took_s = time.perf_counter() - started
            minute.failed += Counter(result["error"]["code"] for result in answer["results"] if result.get("error"))
            minute.wrong += wrong(self.service, texts, answer)
            minute.seconds.append(took_s)
            if number % 30 == 11:
                label = {"request_id": answer["request_id"], "index": 0, "label": "positive", "text": texts[0]}
                async with session.post("/v1/feedback", json=label) as response:
                    if response.status != 202:
                        minute.failed[f"labelled: {(await response.json())['error']['code']}"] += 1
        except Exception as error:  # no answer, or one that is none of Heed's
            minute.failed[type(error).__name__] += 1

    async def swap(self) -> None:
        """The other version, every minute."""
        for version in itertools.cycle(reversed(self.service.expected)):
            await asyncio.sleep(60)
            await asyncio.to_thread(self.model.promote, version)

    async def scrape(self, session: aiohttp.ClientSession) -> None:
        """As Prometheus does."""
        while True:
            await asyncio.sleep(5)
            async with session.get("/metrics") as response:
                assert b"heed_requests_total" in await response.read()

    async def look(self) -> None:
        """End each minute with what the service holds."""
        while True:
            await asyncio.sleep(60)
            held = await asyncio.to_thread(holding, processes_of(str(self.service.folder)))
            minute = self.minutes[-1]
            minute.megabytes, minute.files, minute.threads = held
            print(minute.row(len(self.minutes)), file=sys.stderr, flush=True)
            self.minutes.append(Minute())

    def faults(self) -> list[str]:
        """What is not as it should be, over the whole minutes."""
        whole = [minute for minute in self.minutes if minute.threads]
        counts = {
            "failed": sum(each.failed.total() for each in self.minutes),
            "wrong": sum(each.wrong for each in self.minutes),
        }
        found = [f"{what}: {n}" for what, n in counts.items() if n]
        first, last = whole[SETTLED : 2 * SETTLED], whole[-SETTLED:]
        if not first:
            return [*found, f"too short to see what grows, take more than {SETTLED} minutes: {len(whole)}"]
        for name, most in (("megabytes", MORE), ("files", MORE), ("threads", MORE), ("p99_ms", SLOWER)):
            before, after = (float(np.median([getattr(each, name) for each in part])) for part in (first, last))
            if after > most * before:
                found.append(f"{name}: {before:.0f} at the start, {after:.0f} at the end")
        return found


def holding(pids: list[int]) -> tuple[float, int, int]:
    """Memory of its own (MB), open files and threads of processes."""
    megabytes, files, threads = 0.0, 0, 0
    for pid in pids:
        with contextlib.suppress(OSError):
            process = Path(f"/proc/{pid}")
            lines = (process / "smaps_rollup").read_text().splitlines()
            megabytes += sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1000
            files += len(list((process / "fd").iterdir()))
            threads += len(list((process / "task").iterdir()))
    return megabytes, files, threads


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="An hour of everything at once.")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=40, metavar="N", help="requests a second")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder), "--feedback-store", str(Path(folder) / "labels.db"))
        try:
            soak = Soak(service)
            asyncio.run(soak.run(args.minutes, args.rate))
        finally:
            service.stop()
    print(markdown([minute.row(i) for i, minute in enumerate(soak.minutes, start=1) if minute.threads]))
    if args.plot:
        plot([minute for minute in soak.minutes if minute.threads], args.plot)
    for fault in soak.faults():
        print(fault)
    return 1 if soak.faults() else 0


def plot(minutes: Sequence[Minute], file: Path) -> None:
    """Each quantity over the minutes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8), layout="constrained")
    for axis, name in zip(figure.subplots(4, sharex=True), ("p99_ms", "megabytes", "files", "threads"), strict=True):
        heights = [getattr(each, name) for each in minutes]
        axis.plot(range(1, len(minutes) + 1), heights)
        axis.set(ylabel=name, ylim=(0, 1.2 * max(heights)))
    figure.savefig(file)


if __name__ == "__main__":
    sys.exit(main())
