"""Bytes of strangers at every edge: a thousand each time (benchmarks/fuzz.py does a million, guided by coverage)."""

from __future__ import annotations

from typing import Literal

import pytest
from edges import EDGES
from hypothesis import given, settings
from hypothesis import strategies as st

from service.routes import Service

INPUTS = 1000
PIECES = [b'"', b"{", b"[" * 64, b"\\ud800", b"1e999", b"-1", b"null"]

Change = tuple[Literal["put", "cut", "double", "flip"], int, int, bytes]  # what, where, of how many bytes, put what
CHANGE: st.SearchStrategy[Change] = st.tuples(
    st.sampled_from(("put", "cut", "double", "flip")),
    st.integers(0, 2**16),
    st.sampled_from((1, 1, 4, 64)),
    st.sampled_from(PIECES) | st.binary(min_size=1, max_size=64),
)


def changed(seed: bytes, changes: list[Change]) -> bytes:
    """The first byte, which says what it is, mostly stays."""
    data = bytearray(seed)
    for what, where, length, piece in changes:
        at = min(1, len(data)) + where % len(data) if data else 0
        if what == "put":
            data[at:at] = piece
        elif what == "cut":
            del data[at : at + length]
        elif what == "double":
            data[at:at] = data[at : at + length]
        elif at < len(data):
            data[at] ^= 1 << piece[0] % 8
    return bytes(data)


@pytest.mark.parametrize("edge", EDGES)
def test_no_input_is_a_crash_at(edge: str) -> None:
    with EDGES[edge]() as one:
        for seed in one.seeds:
            one(seed)

        @settings(max_examples=INPUTS, deadline=None, derandomize=True)
        @given(st.sampled_from(one.seeds), st.lists(CHANGE, max_size=8))
        def holds(seed: bytes, changes: list[Change]) -> None:
            one(changed(seed, changes))

        holds()


def test_a_defect_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*args: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Service, "answer", broken)
    with EDGES["http"]() as one:
        [seed, *_] = [seed for seed in one.seeds if b"instances" in seed]
        kinds = [bytes([route]) + seed[1:] for route in range(20)]
        with pytest.raises(AssertionError, match="500 of /"):
            list(map(one, kinds))
