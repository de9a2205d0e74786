"""Which texts are there more than once: inside a part of the data, and in two parts that should share none.

Pure functions over texts and labels, which give row indices. Called by training/health.py.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import rensa

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from model.tokens import Text

NEAR = 0.8  # Jaccard similarity of shingles, as usual where training data is cleaned: a word of twenty exchanged
SHINGLE = 5  # bytes of UTF-8: five letters of English, between one and two characters of Chinese
READ_BYTES = 4000  # of a text, when it is looked at for near copies
PERMUTATIONS, BANDS = 120, 20  # looks at 99.8% of what is at NEAR, and at 1% of what is at 0.3
CHUNK_ROWS = 2048
MAX_CANDIDATES = 50  # looked at for a row: more only where thousands of rows are nearly alike


def normal(text: Text) -> str:
    """The text of which copies are equal: no matter the case and the white space."""
    whole = text if isinstance(text, str) else "\x1f".join(text)
    return " ".join(whole.casefold().split())


def keys_of(texts: Sequence[Text]) -> NDArray[np.int64]:
    """A number (N,) for each text that its copies share, and by chance one pair among a billion billion."""
    return np.fromiter((hash(normal(text)) for text in texts), np.int64, len(texts))


def copies(keys: NDArray[np.int64]) -> list[list[int]]:
    """Rows of one text, where there are several: groups in order of their first row."""
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    groups = [group.tolist() for group in np.split(order, edges) if len(group) > 1]
    return sorted(groups)


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
    Memory grows with `texts`, not with `seen`.
    """
    shingles = [_shingles(text) for text in texts]
    index = rensa.RMinHashLSH(NEAR, PERMUTATIONS, BANDS)
    rows = [row for row, own in enumerate(shingles) if own]
    index.insert_pairs(list(zip(rows, _sketches([shingles[row] for row in rows]), strict=True)))
    found: dict[int, tuple[int, float]] = {}
    for row, other, candidates in _candidates(index, seen):
        for candidate in itertools.islice((c for c in candidates if c not in found), MAX_CANDIDATES):
            similarity = _jaccard(shingles[candidate], other)
            if similarity >= NEAR:
                found[candidate] = row, similarity
    return [(row, *found[row]) for row in sorted(found)]


def _candidates(index: rensa.RMinHashLSH, seen: Sequence[Text]) -> Iterator[tuple[int, set[bytes], list[int]]]:
    """(row of `seen`, its shingles, keys of the index that it may be near)."""
    for start in range(0, len(seen), CHUNK_ROWS):
        shingles = [_shingles(text) for text in seen[start : start + CHUNK_ROWS]]
        for row, (own, candidates) in enumerate(zip(shingles, index.query_all(_sketches(shingles)), strict=True)):
            if own and candidates:
                yield start + row, own, candidates


def _sketches(shingles: list[set[bytes]]) -> list[rensa.RMinHash]:
    sketches: list[rensa.RMinHash] = rensa.RMinHash.from_token_sets(shingles, PERMUTATIONS, 0)
    return sketches


def _shingles(text: Text) -> set[bytes]:
    """Every run of SHINGLE bytes; none of a text that is shorter."""
    content = normal(text).encode()[:READ_BYTES]
    return {content[i : i + SHINGLE] for i in range(len(content) - SHINGLE + 1)}


def _jaccard(a: set[bytes], b: set[bytes]) -> float:
    both = len(a & b)
    return both / (len(a) + len(b) - both)
