"""Bytes of strangers at every edge: a few hundred each time (benchmarks/fuzz.py does a million, guided by coverage)."""

from __future__ import annotations

import random

import pytest
from edges import EDGES

from service.routes import Service

INPUTS = 1000


def mutated(seed: bytes, rng: random.Random) -> bytes:
    """With bytes changed, cut out, doubled or put in; the first, which says what it is, mostly stays."""
    data = bytearray(seed)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(min(1, len(data)), len(data) + 1)
        length = rng.choice([1, 1, 4, 64])
        change = rng.choice(["put", "cut", "double", "flip"])
        if change == "put":
            data[at:at] = rng.choice(
                [rng.randbytes(length), b'"', b"{", b"[" * length, b"\\ud800", b"1e999", b"-1", b"null"]
            )
        elif change == "cut":
            del data[at : at + length]
        elif change == "double":
            data[at:at] = data[at : at + length]
        elif at < len(data):
            data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


@pytest.mark.parametrize("edge", EDGES)
def test_no_input_is_a_crash_at(edge: str) -> None:
    rng = random.Random(edge)
    with EDGES[edge]() as one:
        seeds: list[bytes] = one.seeds  # type: ignore[attr-defined]
        for seed in seeds:
            one(seed)
        for _ in range(INPUTS):
            one(mutated(rng.choice(seeds), rng))


def test_a_defect_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*args: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Service, "answer", broken)
    with EDGES["http"]() as one:
        [seed, *_] = [seed for seed in one.seeds if b"instances" in seed]  # type: ignore[attr-defined]
        kinds = [bytes([route]) + seed[1:] for route in range(20)]
        with pytest.raises(AssertionError, match="500 of /"):
            list(map(one, kinds))
