"""Who may ask, and how many texts a second: API keys, and an allowance for each.

A header is compared with hashes, all of them, in constant time. The file of keys is read again when it changes, so that
keys come and go without a restart. Called by service/http.py, routes.py and dialects/v2_grpc.py.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from typing import TYPE_CHECKING

from service.errors import RateLimited, Unauthorized
from service.keys import Key, digest, parse_line, read_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.settings import Settings

log = logging.getLogger("heed")

LOOK_EVERY_S = 1.0
NOTHING = 1e-6  # texts; what is left of sums of floats


class Bucket:
    """Texts that may be sent at once, up to `burst`; they come back at a steady `rate`, texts/s."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._level, self._at = burst, now

    def take(self, texts: int, now: float) -> float:
        """Take so many and return 0, or none, and return the seconds until there are as many."""
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        missing = texts - self._level
        if missing > NOTHING:
            return missing / self._rate
        self._level -= texts
        return 0.0


class Access:
    """The keys of a replica, and what each of them may still send. Raises ValueError where a file has none."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._given = [key for key in map(parse_line, settings.api_keys) if key]  # Settings has hashed them
        self._file, self._clock = settings.api_keys_file, clock
        self.is_open = not self._given and self._file is None
        self._rate = (settings.texts_per_second_per_key or 0.0) / settings.most_replicas
        self._burst = settings.texts_burst / settings.most_replicas
        self._buckets: dict[str, Bucket] = {}
        self._seen = self._signature()
        self._keys = self._read()
        if not (self._keys or self.is_open):
            raise ValueError(f"the file has no key, heed key NAME makes a line of it: {self._file}")

    def caller(self, authorization: str) -> str:
        """The name of the key in an Authorization header. Raises Unauthorized.

        Every key is compared, whichever it is, so that the time that it takes tells nothing of any.
        """
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized("there is no API key")
        given, name = digest(key.strip()), None
        for known in self._keys:
            if hmac.compare_digest(known.digest, given):
                name = known.name
        if name is None:
            raise Unauthorized("the API key is not one of those that are taken")
        return name

    def charge(self, name: str | None, texts: int) -> None:
        """Count the texts of a request against the allowance of a key. Raises RateLimited, and counts none then."""
        if not self._rate or name is None:
            return
        now = self._clock()
        if name not in self._buckets:
            self._buckets[name] = Bucket(self._rate, self._burst, now)
        wait_s = self._buckets[name].take(texts, now)
        if wait_s:
            raise RateLimited(math.ceil(wait_s))

    @property
    def names(self) -> list[str]:
        """Those of the keys."""
        return sorted({key.name for key in self._keys})

    async def main_loop(self) -> None:
        """Look at the file of keys again and again."""
        while self._file is not None:
            await asyncio.sleep(LOOK_EVERY_S)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Read the file where it has changed; a broken one changes nothing, one without a key lets nobody in."""
        seen = self._signature()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._keys = self._read()
        except ValueError as error:
            log.error("the keys stay as they are: %s", error)
        else:
            log.info("callers with a key now: %s", ", ".join(self.names) or "none")

    def _signature(self) -> tuple[int, ...] | None:
        """What changes when the file does, also where a link to it changes (as Kubernetes does with a Secret)."""
        if self._file is None:
            return None
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev, found.st_size

    def _read(self) -> list[Key]:
        return [*self._given, *(read_keys(self._file) if self._file else [])]
