"""What words mean by the company they keep: token vectors from text alone, in seconds, for a network to start from.

Counts of tokens near each other, as positive pointwise mutual information, factorized (Levy, Goldberg and Dagan
2015, https://aclanthology.org/Q15-1016). Where embeddings start at random, some thousand labelled texts teach a network
little more than the words that it saw with a label; here tokens of like use are near each other from the first step.
Read by training/build.py and pretrain.py.

Letters: N tokens, V tokens of the vocabulary, E embedding width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray
    from torch import nn

    Ints = NDArray[np.int64]

WINDOW = 5  # tokens to each side; one at a distance d counts 1/d
SMOOTHING = 0.75  # of the counts of contexts: rare ones are held back (Levy, Goldberg and Dagan 2015, section 3.2)
MAX_TOKENS = 20_000_000  # that are worth counting: more take minutes
CHUNK = 4_000_000  # pairs at a time
ITERATIONS = 3  # of the randomized factorization
DEVIATION = 0.05  # of a vector's numbers


def start_from_text(embedding: nn.Embedding, tokens: Ints, row_of: Ints) -> None:
    """Add to the embeddings of the tokens that occur in text what company they keep.

    What was there stays, at random: tokens of the same use are then near each other, but not the same.
    tokens (N,) in order, without special ones; row_of (N,) is the text of each.
    """
    if not len(tokens):
        return
    vocab_size, width = embedding.weight.shape
    counts = near(tokens, row_of, vocab_size)
    vectors = factorize(associate(counts), width)
    placed = np.unique(tokens)
    vectors = vectors[placed] - vectors[placed].mean(axis=0)  # what all share tells none from another
    vectors *= DEVIATION * math.sqrt(vectors.shape[1]) / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-6)
    with torch.no_grad():
        embedding.weight[torch.from_numpy(placed), : vectors.shape[1]] += torch.from_numpy(vectors)


def near(tokens: Ints, row_of: Ints, vocab_size: int) -> Any:
    """How often each token is near each other one in a text, the nearer the more: symmetric, sparse (V, V)."""
    counts = sparse.csr_matrix((vocab_size, vocab_size), dtype=np.float32)
    for distance in range(1, WINDOW + 1):
        same = np.flatnonzero(row_of[:-distance] == row_of[distance:])
        for start in range(0, len(same), CHUNK):
            first = same[start : start + CHUNK]
            weights = np.full(len(first), 1 / distance, np.float32)
            pairs = tokens[first], tokens[first + distance]
            counts = counts + sparse.coo_matrix((weights, pairs), counts.shape).tocsr()
    return counts + counts.T


def associate(counts: Any) -> Any:
    """Counts (V, V) -> positive pointwise mutual information (V, V), both sparse."""
    of_token = np.asarray(counts.sum(axis=1)).ravel()
    of_context = of_token**SMOOTHING
    of_context /= max(of_context.sum(), 1e-9)
    counts = counts.tocoo()
    information = np.log(counts.data / (of_token[counts.row] * of_context[counts.col]))
    kept = information > 0
    values = information[kept].astype(np.float32)
    return sparse.csr_matrix((values, (counts.row[kept], counts.col[kept])), counts.shape)


def factorize(information: Any, width: int) -> NDArray[np.float32]:
    """The first dimensions of each token, at most `width`, by the square root of what they explain."""
    left, strength, _ = randomized_svd(
        information, min(width, information.shape[0] - 1), n_iter=ITERATIONS, random_state=0
    )
    vectors: NDArray[np.float32] = (left * np.sqrt(strength)).astype(np.float32)
    return vectors
