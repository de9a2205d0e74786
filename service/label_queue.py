"""Which texts to label next: those that a model is least sure of, no two of them alike. Pure functions, no torch.

Called by service/feedback_commands.py.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from service.feedback_store import Unlabelled

CONSIDERED = 20  # for each that is wanted, the least certain so many
WIDTH = 1024  # numbers of a text's vector of words


def choose(texts: Iterable[Unlabelled], count: int) -> list[Unlabelled]:
    """So many to label, the most useful first: the least certain, then by doubt times distance from those chosen.

    Equal texts are one. Sener and Savarese 2018 (https://arxiv.org/abs/1708.00489) cover the data by such distances.
    """
    distinct = {str(text.text): text for text in texts}
    unsure = sorted(distinct.values(), key=lambda text: text.score)[: CONSIDERED * count]
    if not unsure:
        return []
    vectors = words_of([str(text.text) for text in unsure])
    doubt = 1 - np.array([text.score for text in unsure])
    distance = np.ones(len(unsure))
    chosen: list[int] = []
    while len(chosen) < min(count, len(unsure)):
        worth = doubt * distance
        worth[chosen] = -1
        chosen.append(int(worth.argmax()))
        distance = np.minimum(distance, 1 - vectors @ vectors[chosen[-1]])
    return [unsure[i] for i in chosen]


def words_of(texts: Sequence[str]) -> NDArray[np.float32]:
    """A vector (N, WIDTH) of length 1 for each text: which words it has, by hash."""
    vectors = np.zeros((len(texts), WIDTH), np.float32)
    for i, text in enumerate(texts):
        for word in set(text.casefold().split()):
            vectors[i, zlib.crc32(word.encode()) % WIDTH] = 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-6)
    return vectors
