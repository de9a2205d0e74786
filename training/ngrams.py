"""The n-grams of model/ngrams.py: a linear line over a model's own tokens, fitted when its encoder is trained.

Not in the encoder's loss: it would leave to the table what it could have learned itself. Both are scorers of the same
texts, each weighed by how much dev shows that it is to be believed (training/pool.py); the weights go into the table
and the last layer. Two or three numbers that dev chooses, beside the epoch and the strength of the line.
Letters: N texts, F n-grams, C labels. Called by training/train.py.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, identity

from model.forward import forward_rows
from model.ngrams import NONE, NGrams, ngram_keys
from training.guide import weigh
from training.linear import choose_grams, fit_line, most_characters
from training.rows import EncodedRows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from model.tokens import Text
    from training.run import Run

MAX_NUMBERS = 10_000_000  # of the table; where it would hold more, it has those n-grams that the most texts have


class NoNGrams(ValueError):
    """There is nothing to put into a table."""


class TokenGrams:
    """TF-IDF as the network will compute it of a row."""

    def __init__(self, run: Run) -> None:
        self.run, self.grams, self.vocab_size = run, ["tokens"], run.classifier.config.vocab_size
        self.limit = most_characters(choose_grams(run.train.texts))
        self.keys: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # (F,)
        self.idf: NDArray[np.float64] = np.empty(0)  # (F,)

    def fit_transform(self, texts: Sequence[Text]) -> Any:
        """Learn the n-grams, none with a special token, and how rare they are; sparse (N, F).

        Raises NoNGrams where there is none.
        """
        keys, rows = self._read(texts)
        before, last = np.divmod(keys, self.vocab_size)  # before: of a single token 0, else id + 1
        special = np.array(self.run.tokenizer.special_ids)
        is_taken = ~np.isin(last, special) & ~np.isin(before - 1, special)
        if not is_taken.any():
            raise NoNGrams("no n-grams: the training texts have no token but special ones")
        keys, rows = keys[is_taken], rows[is_taken]
        known, at = np.unique(keys, return_inverse=True)
        seen = csr_matrix((np.ones(len(at)), (rows, at)), shape=(len(texts), len(known)))  # once a text
        texts_with = np.bincount(seen.indices, minlength=len(known))
        most = MAX_NUMBERS // (len(self.run.labels) + 1)
        chosen = np.sort(np.argsort(-texts_with, kind="stable")[:most])
        self.keys = known[chosen]
        self.idf = np.log((1 + len(texts)) / (1 + texts_with[chosen])) + 1
        return self._weighed(keys, rows, len(texts))

    def transform(self, texts: Sequence[Text]) -> Any:
        """Sparse (N, F)."""
        return self._weighed(*self._read(texts), len(texts))

    def _weighed(self, keys: NDArray[np.int64], rows: NDArray[np.int64], n: int) -> Any:
        """The n-grams of n texts by how rare they are, sparse (n, F); none that was not learned."""
        at = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        is_known = self.keys[at] == keys
        at, rows = at[is_known], rows[is_known]
        idf = self.idf[at]
        square = np.bincount(rows, weights=idf**2, minlength=n)
        return csr_matrix((idf / np.sqrt(square[rows]), (rows, at)), shape=(n, len(self.keys)))

    def _read(self, texts: Sequence[Text]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The keys of all n-grams of the texts, and the text of each."""
        encoded = EncodedRows(self.run.tokenizer, texts, self.run.max_tokens)
        ids, rows = encoded.ids.astype(np.int64), np.repeat(np.arange(len(texts)), encoded.lengths)
        keys = ngram_keys(torch.from_numpy(ids), torch.from_numpy(rows), self.vocab_size).numpy()
        is_there = keys != NONE
        return keys[is_there], np.stack((rows, rows))[is_there]


def add_ngrams(run: Run) -> dict[str, Any] | None:
    """Fit n-grams to the training rows and put them into the classifier; returns what the manifest keeps of them.

    None where there are none: its tokenizer may know no word of the texts. Of a label that no training row has they say
    nothing.
    """
    features = TokenGrams(run)
    try:
        line = fit_line(run.train, run.dev, run.labels, features)
    except NoNGrams as error:
        print(error, file=sys.stderr)
        return None
    of_encoder = forward_rows(run.classifier, run.rows(run.dev))
    *heard, offset = weigh([line.margins(run.dev.texts).astype(np.float32), of_encoder], run)
    by_line, by_encoder = map(float, heard)

    has_rows = np.isin(run.labels, run.train.label_names)
    of_none = line.of(csr_matrix((1, len(features.keys))))[0]  # (C,)
    of_each = line.of(identity(len(features.keys), format="csr")) - of_none  # (F, C)
    added = features.idf[:, None] * by_line * of_each * has_rows
    table = np.column_stack((added, features.idf**2)).astype(np.float32, order="C")
    bias = ((by_line * of_none + offset) * has_rows).astype(np.float32)
    with torch.no_grad():
        for parameter in run.classifier.head.out.parameters():
            parameter.mul_(by_encoder)
    keys, numbers, offsets = map(torch.from_numpy, (features.keys, table, bias))
    run.classifier.ngrams = NGrams(keys, numbers, offsets, features.vocab_size).to(run.device)
    n = len(features.keys)
    print(f"{n:,} n-grams beside the encoder: weight {by_line:.2f}, the encoder {by_encoder:.2f}", file=sys.stderr)
    return {**line.made_by(), "n": n, "heard": by_line, "encoder_heard": by_encoder, "offset": float(offset)}
