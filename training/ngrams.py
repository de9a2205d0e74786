"""The n-grams of model/ngrams.py: a linear line over a model's own tokens, fitted when its encoder is trained.

Not in the encoder's loss: it would leave to the table what it could have learned itself. Both are scorers of the same
texts, each weighed by how much dev shows that it is to be believed (training/pool.py); the weights go into the table
and the last layer. Two or three numbers that dev chooses, beside the epoch and the strength of the line.
Letters: N texts, F n-grams, C labels, T tokens of all texts. Called by training/train.py.
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
from training.linear import MAX_CHARACTERS, Features, fit_line
from training.rows import EncodedRows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from model.tokens import Text
    from training.run import Run

MAX_NUMBERS = 10_000_000  # of the table; where it would hold more, the n-grams of most texts are in it


class TokenGrams(Features):
    """TF-IDF as the network will compute it of a row."""

    def __init__(self, run: Run) -> None:
        self.run, self.grams, self.vocab_size = run, ["tokens"], run.classifier.config.vocab_size
        self.limit = MAX_CHARACTERS["words"]
        self.keys: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # (F,)
        self.idf: NDArray[np.float64] = np.empty(0)  # (F,)

    def fit(self, texts: Sequence[Text]) -> TokenGrams:
        """Learn the n-grams, none with a special token, and how rare they are."""
        keys, rows = self._read(texts)
        before, last = np.divmod(keys, self.vocab_size)  # before: of a single token 0, else id + 1
        special = np.array(self.run.tokenizer.special_ids)
        is_taken = ~np.isin(last, special) & ~np.isin(before - 1, special)
        keys, rows = keys[is_taken], rows[is_taken]
        known, at = np.unique(keys, return_inverse=True)
        seen = csr_matrix((np.ones(len(at)), (rows, at)), shape=(len(texts), len(known)))
        seen.sum_duplicates()
        texts_with = np.bincount(seen.indices, minlength=len(known))
        most = MAX_NUMBERS // (len(self.run.labels) + 1)
        chosen = np.sort(np.argsort(-texts_with, kind="stable")[:most])
        self.keys = known[chosen]
        self.idf = np.log((1 + len(texts)) / (1 + texts_with[chosen])) + 1
        return self

    def transform(self, texts: Sequence[Text]) -> Any:
        """Sparse (N, F)."""
        keys, rows = self._read(texts)
        at = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        is_known = self.keys[at] == keys
        at, rows = at[is_known], rows[is_known]
        idf = self.idf[at]
        square = np.bincount(rows, weights=idf**2, minlength=len(texts))
        return csr_matrix((idf / np.sqrt(square[rows]), (rows, at)), shape=(len(texts), len(self.keys)))

    def _read(self, texts: Sequence[Text]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The keys of all n-grams of the texts, and the text of each."""
        encoded = EncodedRows(self.run.tokenizer, texts, self.run.max_tokens)
        ids, rows = encoded.ids.astype(np.int64), np.repeat(np.arange(len(texts)), encoded.lengths)
        keys = ngram_keys(torch.from_numpy(ids), torch.from_numpy(rows), self.vocab_size).numpy()
        is_there = keys != NONE
        return keys[is_there], np.stack((rows, rows))[is_there]


def add_ngrams(run: Run) -> dict[str, Any]:
    """Fit n-grams to the training rows and put them into the classifier; returns what the manifest keeps of them."""
    features = TokenGrams(run)
    line = fit_line(run.train, run.dev, run.labels, features)
    of_encoder = forward_rows(run.classifier, run.rows(run.dev))
    *heard, offset = weigh([line.margins(run.dev.texts).astype(np.float32), of_encoder], run)
    by_line, by_encoder = map(float, heard)

    empty = csr_matrix((1, len(features.keys)), dtype=np.float32)
    bias = line.of(empty)  # (1, C)
    weights = line.of(identity(len(features.keys), dtype=np.float32, format="csr")) - bias
    table = np.column_stack((by_line * features.idf[:, None] * weights, features.idf**2))
    out = run.classifier.head.out
    with torch.no_grad():
        out.weight.mul_(by_encoder)
        out.bias.mul_(by_encoder).add_(torch.from_numpy(by_line * bias[0] + offset).to(out.bias))
    keys, numbers = torch.from_numpy(features.keys), torch.from_numpy(table.astype(np.float32))
    run.classifier.ngrams = NGrams(keys, numbers, features.vocab_size).to(run.device)
    print(
        f"{len(keys):,} n-grams beside the encoder, heard by {by_line:.2f}, the encoder by {by_encoder:.2f}",
        file=sys.stderr,
    )
    return {**line.made_by(), "n": len(keys), "heard": by_line, "encoder_heard": by_encoder}
