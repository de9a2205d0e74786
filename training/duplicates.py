"""Which texts are there more than once: inside a part of the data, and in two parts that should share none.

Pure functions over texts, which give row indices. Called by training/health.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import rensa

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from model.tokens import Text

NEAR = 0.8  # Jaccard similarity of shingles, as usual where training data is cleaned: a word of twenty exchanged
SHINGLE = 5  # bytes of UTF-8: five letters of English, between one and two characters of Chinese
READ_BYTES = 4000  # of a text, when it is looked at for near copies
BANDS, BAND = 20, 6  # numbers of a sketch: looks at 99.8% of the pairs at NEAR, and at 1% of those at 0.3
MIX = np.random.default_rng(0).integers(1 << 63, size=BAND, dtype=np.uint64) | np.uint64(1)
CHUNK_ROWS = 1024
MAX_CANDIDATES = 50  # looked at for a row and a band: more only where many texts are nearly alike


def normal(text: Text) -> str:
    """The text of which copies are equal: no matter the case and the white space."""
    sides = [text] if isinstance(text, str) else text
    return "\x1f".join(" ".join(side.casefold().split()) for side in sides)


def keys_of(texts: Sequence[Text]) -> NDArray[np.int64]:
    """A number (N,) that the copies of a text share; other texts have another, but for chance in 64 bits."""
    return np.fromiter((hash(normal(text)) for text in texts), np.int64, len(texts))


def copies(keys: NDArray[np.int64]) -> list[list[int]]:
    """Rows of one text, where there are several: groups in order of their first row."""
    order = np.argsort(keys, kind="stable")
    _, first, count = np.unique(keys[order], return_index=True, return_counts=True)
    return sorted(order[first[i] : first[i] + count[i]].tolist() for i in np.flatnonzero(count > 1))


def shared(seen: NDArray[np.int64], keys: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(row of `keys`, first row of `seen`) of each text of `keys` that was seen."""
    known, first = np.unique(seen, return_index=True)
    at = np.searchsorted(known, keys).clip(max=len(known) - 1)
    rows = np.flatnonzero(known[at] == keys)
    return list(zip(rows.tolist(), first[at[rows]].tolist(), strict=True))


def near(seen: Sequence[Text], texts: Sequence[Text]) -> list[tuple[int, int, float]]:
    """(row of `texts`, a row of `seen`, similarity) of each text that is nearly one that was seen.

    Candidates by MinHash and locality-sensitive hashing (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of
    Massive Datasets, chapter 3), each verified: similarity is the exact Jaccard index of their shingles.
    Memory grows with `texts`, by some 500 bytes each, and not with `seen`.
    """
    keys = np.concatenate([_bands(chunk).ravel() for _, chunk in _chunks(texts)] or [np.zeros(0, np.uint64)])
    order = np.argsort(keys)
    keys, owners = keys[order], order // BANDS
    found: dict[int, tuple[int, float]] = {}
    is_open = np.ones(len(texts), bool)
    for start, chunk in _chunks(seen):
        hashes = _bands(chunk).ravel()
        first, end = (np.searchsorted(keys, hashes, side) for side in ("left", "right"))
        for i in np.flatnonzero(end > first).tolist():
            candidates = owners[first[i] : end[i]]
            for row in candidates[is_open[candidates]][:MAX_CANDIDATES].tolist():
                similarity = _jaccard(_shingles(chunk[i // BANDS]), _shingles(texts[row]))
                if similarity >= NEAR:
                    found[row], is_open[row] = (start + i // BANDS, similarity), False
    return [(row, *found[row]) for row in sorted(found)]


def _chunks(texts: Sequence[Text]) -> Iterator[tuple[int, Sequence[Text]]]:
    return ((start, texts[start : start + CHUNK_ROWS]) for start in range(0, len(texts), CHUNK_ROWS))


def _bands(texts: Sequence[Text]) -> NDArray[np.uint64]:
    """A key (N, BANDS) for each band of the sketch of a text: texts are candidates where they share one."""
    sketches = np.array(_sketches(texts).to_rows(), np.uint64).reshape(len(texts), BANDS, BAND)
    keys: NDArray[np.uint64] = (sketches * MIX).sum(2) + np.arange(BANDS, dtype=np.uint64)  # modulo 2 ** 64
    return keys


def _sketches(texts: Sequence[Text]) -> Any:
    """The MinHash of each text; a shingle is hashed as the number that its bytes are."""
    contents = [_content(text) for text in texts]
    joined = np.frombuffer(b"".join(contents), np.uint8).astype(np.uint64)
    starts = len(joined) - SHINGLE + 1
    shingles = joined[:starts].copy()
    for i in range(1, SHINGLE):
        shingles |= joined[i : starts + i] << np.uint64(8 * i)
    ends = np.cumsum([len(content) for content in contents])
    inside = np.ones(starts, bool)
    for i in range(1, SHINGLE):
        inside[ends[:-1] - i] = False  # begins in one text and ends in the next
    offsets = np.concatenate([[0], ends - np.arange(1, len(ends) + 1) * (SHINGLE - 1)])
    return rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        shingles[inside], offsets.astype(np.uint64), BANDS * BAND, 0
    )


def _shingles(text: Text) -> set[bytes]:
    """Every run of SHINGLE bytes."""
    content = _content(text)
    return {content[i : i + SHINGLE] for i in range(len(content) - SHINGLE + 1)}


def _content(text: Text) -> bytes:
    return normal(text).encode()[:READ_BYTES].ljust(SHINGLE)


def _jaccard(a: set[bytes], b: set[bytes]) -> float:
    both = len(a & b)
    return both / (len(a) + len(b) - both)
