"""API keys: made, hashed, read from a file. Only hashes are kept; a key itself is nowhere after it was hashed.

A key is random and long, so that nobody finds it by guessing, and a plain SHA-256 hides it: the slow, salted hashes are
for passwords, which can be guessed. What looks guessed is refused. A line of a key is its name and its hash:
NAME sha256:HASH. Called by service/settings.py, access.py and key_commands.py; no waiting here.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LINE = re.compile(r"([A-Za-z0-9][\w.-]{0,63})\s+sha256:([0-9a-fA-F]{64})", re.ASCII)
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
PREFIX = "heed_"  # by which a scanner of repositories knows that it has found a key
MIN_CHARS, MIN_DISTINCT = 22, 8  # 16 random bytes have as many characters in base64, and in hexadecimal more of both


@dataclass(frozen=True)
class Key:
    """A key by its name and the SHA-256 of it. Two keys of one name are one caller: that is how a key is changed."""

    name: str
    digest: bytes

    def __str__(self) -> str:
        return f"{self.name} sha256:{self.digest.hex()}"


def digest(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).digest()


def new_key(name: str) -> tuple[str, Key]:
    """A random key, and what is kept of it. Raises ValueError where it cannot have that name."""
    if not NAME.fullmatch(name):
        raise ValueError(f"a key's name is up to 64 letters, digits and . _ -, and starts with none of these: {name}")
    key = PREFIX + secrets.token_urlsafe(32)
    return key, Key(name, digest(key))


def parse_line(line: str) -> Key | None:
    """NAME sha256:HASH; None where it is something else."""
    found = LINE.fullmatch(line.strip())
    return Key(found[1], bytes.fromhex(found[2])) if found else None


def hashed(entry: str) -> Key:
    """A line of a key, or a key itself, whose name is made of its hash. Raises ValueError, which does not repeat it."""
    if known := parse_line(entry):
        return known
    if not (entry.isascii() and entry.isprintable()) or " " in entry:
        raise ValueError("it is neither a key, in ASCII and without spaces, nor NAME sha256:HASH")
    if len(entry) < MIN_CHARS or len(set(entry)) < MIN_DISTINCT:
        raise ValueError(
            f"it could be guessed, a key has {MIN_CHARS} characters or more and {MIN_DISTINCT} different ones: "
            "take one that heed key NAME makes"
        )
    return Key(f"key-{digest(entry).hex()[:8]}", digest(entry))


def read_keys(file: Path) -> list[Key]:
    """Those of a file, a line each; empty lines and those that begin with # are left out. There may be none.

    Raises ValueError naming the file and the line, never what stands there: it may be a key.
    """
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ValueError(f"the file of keys cannot be read ({error.strerror}): {file}") from None
    keys = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key = parse_line(line)
        if key is None:
            raise ValueError(f"{file}:{number}: the line is not NAME sha256:HASH, heed key NAME makes one")
        keys.append(key)
    return keys
