"""Load on a running server: requests rendered beforehand, sent in a closed or an open loop, every outcome noted.

Closed loop: N connections, each sends its next request when the last is answered. Open loop: requests start at
given times whatever the server does, and their latency counts from that intended start, so that a server that
stalls is charged for everybody it kept waiting (no coordinated omission).

The generator shares the cores with the server that it measures, so there is no HTTP client in between: an
asyncio.Protocol and httptools, some 20 us of CPU a request. No torch, no Ray. Called by service/bench.py and
benchmarks/.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import re
import resource
import time
from array import array
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit

import httptools
import numpy as np
import uvloop
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence

Result = TypeVar("Result")
Floats = NDArray[np.float64]

JSON = {"Content-Type": "application/json"}
LOST, UNANSWERED = 0, -1  # in place of a status: the connection broke; no answer within PATIENCE_S of the end
FIELDS = 5  # of a request's row: intended start, sent, answered, status, the server's own ms (nan: not told)
SLACK_S = 0.0005  # sent so much early rather than late: the event loop's timers count in ms
PATIENCE_S = 30.0  # for what is under way when a round ends
RETRY_S = 0.1  # pause of a caller whose connection broke, else a server that is down is flooded
MAX_CONNECTIONS = 1000
TAIL = 200  # last bytes of a body, where timing_ms stands
TOTAL_MS = re.compile(rb'\btotal(?:;dur=|":\s*)([\d.]+)')  # in Server-Timing, or in timing_ms


@dataclass(frozen=True)
class Target:
    """Where requests go. `requests` are whole, head and body, and are sent in turn."""

    host: str
    port: int
    requests: Sequence[bytes]
    is_tls: bool = False


@dataclass(frozen=True)
class Samples:
    """A round: rows (N, FIELDS) of all its requests, and the window of it that counts, in seconds."""

    rows: Floats
    start: float
    end: float
    busy: float  # share of the round that this process spent on its core


def render(url: str, body: bytes, headers: Mapping[str, str] = JSON) -> bytes:
    """A POST as it goes over the wire."""
    parts = urlsplit(url)
    head = f"POST {parts.path or '/'}{'?' if parts.query else ''}{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{head}{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


def target(url: str, bodies: Sequence[bytes], headers: Mapping[str, str] = JSON) -> Target:
    """A target of these bodies. Raises ValueError where the URL is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"not a URL such as http://127.0.0.1:8000: {url}")
    is_tls = parts.scheme == "https"
    requests = [render(url, body, headers) for body in bodies]
    return Target(parts.hostname, parts.port or (443 if is_tls else 80), requests, is_tls)


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """The result of a round, on an event loop that costs little."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


async def closed_loop(target: Target, connections: int, seconds: float, warm_s: float = 0.5) -> Samples:
    """N connections that always wait for an answer; what falls into the first warm_s does not count."""
    load = Load(target, connections)
    busy, start = time.process_time(), time.perf_counter() + warm_s
    end = start + seconds

    def again() -> None:
        if (now := time.perf_counter()) < end:
            load.submit(now)

    load.on_done = again
    for _ in range(connections):
        again()
    await asyncio.sleep(end - time.perf_counter())
    busy = (time.process_time() - busy) / (warm_s + seconds)
    return Samples(await load.finish(), start, end, busy)


async def open_loop(
    target: Target,
    rate: float,
    seconds: float,
    warm_s: float = 0.5,
    *,
    poisson: bool = False,
    max_connections: int = MAX_CONNECTIONS,
) -> Samples:
    """`rate` requests start per second, over as many connections as are needed.

    Where max_connections are waiting for answers, or this process gets no core, requests are sent late: their
    latency counts that wait, and the figures say it (late_ms).
    """
    load = Load(target, min(max_connections, open_files() - 100))
    busy, begin = time.process_time(), time.perf_counter()
    start, end = begin + warm_s, begin + warm_s + seconds
    for offset in arrivals(rate, warm_s + seconds, poisson=poisson):
        due = begin + offset
        if (ahead := due - time.perf_counter()) > SLACK_S:
            await asyncio.sleep(ahead)
        elif ahead < -SLACK_S:
            await asyncio.sleep(0)  # late already: answers are still read
        load.submit(min(due, time.perf_counter()))
    busy = (time.process_time() - busy) / (warm_s + seconds)
    return Samples(await load.finish(), start, end, busy)


def arrivals(rate: float, seconds: float, *, poisson: bool, seed: int = 0) -> Iterator[float]:
    """Times at which requests start, at even distances or as a Poisson process, in seconds from the begin."""
    rng = random.Random(seed)
    at = 0.0
    while at < seconds:
        yield at
        at += rng.expovariate(rate) if poisson else 1 / rate


def open_files() -> int:
    """How many files this process may have open; asks for as many as it can get."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard > 0 else 1 << 20


class Load:
    """Requests on a bounded number of connections; on_done is called after each answer or lost connection."""

    def __init__(self, target: Target, max_connections: int) -> None:
        self._target, self._max_connections = target, max_connections
        self._requests = itertools.cycle(target.requests)
        self._rows = array("d")
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._waiting: deque[float] = deque()  # intended starts without a connection
        self._opening: set[asyncio.Task[None]] = set()
        self._all_done = asyncio.Event()
        self.on_done: Callable[[], object] = lambda: None

    def submit(self, since: float) -> None:
        """Send the next request; it counts from `since`."""
        if self._idle:
            self._send(self._idle.pop(), since)
        else:
            self._waiting.append(since)
            self._open()

    def _send(self, connection: Connection, since: float) -> None:
        connection.since, connection.sent = since, time.perf_counter()
        self._busy.add(connection)
        connection.transport.write(next(self._requests))

    def _open(self) -> None:
        """Open a connection for who waits, where there may be one more."""
        if self._waiting and len(self._busy) + len(self._opening) < self._max_connections:
            task = asyncio.create_task(self._connect())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _connect(self) -> None:
        loop, to = asyncio.get_running_loop(), self._target
        try:
            await loop.create_connection(lambda: Connection(self), to.host, to.port, ssl=to.is_tls or None)
        except OSError:
            now = time.perf_counter()
            self._note(self._waiting.popleft() if self._waiting else now, now, now, LOST)
            loop.call_later(RETRY_S, lambda: self.on_done())

    def ready(self, connection: Connection) -> None:
        """A connection that can take a request."""
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)

    def answered(self, connection: Connection, status: int, server_ms: float) -> None:
        """Note an answer, and use its connection again where the server keeps it."""
        self._note(connection.since, connection.sent, time.perf_counter(), status, server_ms)
        self._busy.discard(connection)
        if connection.is_kept:
            self.ready(connection)
        else:
            connection.transport.close()
            self._open()
        self.on_done()

    def lost(self, connection: Connection) -> None:
        """A connection that the server closed."""
        if connection in self._busy:
            self._busy.discard(connection)
            self._note(connection.since, connection.sent, time.perf_counter(), LOST)
            asyncio.get_running_loop().call_later(RETRY_S, lambda: self.on_done())
            self._open()
        elif connection in self._idle:
            self._idle.remove(connection)

    def _note(self, since: float, sent: float, until: float, status: int, server_ms: float = math.nan) -> None:
        self._rows.extend((since, sent, until, status, server_ms))

    async def finish(self) -> Floats:
        """Wait for what is under way, and close. Rows (N, FIELDS) of all requests."""
        self.on_done = lambda: self._all_done.set() if not self._busy and not self._waiting else None
        self.on_done()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await self._all_done.wait()
        for task in self._opening:
            task.cancel()
        for since in self._waiting:
            self._note(since, math.inf, math.inf, UNANSWERED)
        for connection in self._busy:
            self._note(connection.since, connection.sent, math.inf, UNANSWERED)
        rows = np.array(self._rows).reshape(-1, FIELDS)
        for connection in [*self._busy, *self._idle]:
            connection.transport.abort()
        await asyncio.sleep(0)
        return rows


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way. httptools calls the on_ methods."""

    transport: asyncio.Transport

    def __init__(self, load: Load) -> None:
        self._load = load
        self._parser = httptools.HttpResponseParser(self)
        self._header = self._tail = b""
        self.since = self.sent = 0.0
        self.is_kept = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It can send."""
        self.transport = cast("asyncio.Transport", transport)
        self._load.ready(self)

    def data_received(self, data: bytes) -> None:
        """Part of an answer; one that is no HTTP breaks the connection."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """The server has gone."""
        self._load.lost(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Only one is of interest."""
        if len(name) == 13 and name.lower() == b"server-timing":
            self._header = value

    def on_body(self, body: bytes) -> None:
        """The server's time, where no header tells it, stands at the end."""
        self._tail = body[-TAIL:]

    def on_message_complete(self) -> None:
        """An answer is whole."""
        total = TOTAL_MS.search(self._header or self._tail)
        self._header = self._tail = b""
        self.is_kept = self._parser.should_keep_alive()
        self._load.answered(self, self._parser.get_status_code(), float(total[1]) if total else math.nan)
