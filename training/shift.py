"""How far two parts of the data lie apart in the lengths, labels and scripts of their rows.

Pure functions. Called by training/health.py.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import chi2

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray

    from model.tokens import Text

LARGE = 0.2  # population stability index from which a shift is commonly called large
CHANCE = 0.999  # and which two parts of one population stay below with this probability
LETTERS = 200  # of a text that decide its script
NO_SCRIPT = "no letters"


def shift(reference: Sequence[Hashable], other: Sequence[Hashable]) -> float | None:
    """Population stability index of two samples of categories, where it is large and not by chance.

    Between samples of one population it is near chi-squared times (1/n + 1/m) (Yurdakul 2018).
    """
    a, b = Counter(reference), Counter(other)
    categories = list(a | b)
    p, q = (np.array([counts[c] + 0.5 for c in categories]) for counts in (a, b))
    p, q = p / p.sum(), q / q.sum()
    index = float(((q - p) * np.log(q / p)).sum())
    by_chance = chi2.ppf(CHANCE, max(1, len(categories) - 1)) * (1 / len(reference) + 1 / len(other))
    return index if index >= max(LARGE, by_chance) else None


def length_bins(reference: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[int]:
    """The decile of `reference` that each length falls into."""
    edges = np.unique(np.quantile(reference, np.linspace(0.1, 0.9, 9)))
    return np.searchsorted(edges, lengths).tolist()  # type: ignore[no-any-return]


def script(text: Text) -> str:
    """The script of most of its first letters, as Unicode names it: LATIN, CYRILLIC, CJK, ..."""
    whole = text if isinstance(text, str) else text[0]
    scripts = Counter(map(_script_of, whole[:LETTERS]))
    del scripts[NO_SCRIPT]
    return scripts.most_common(1)[0][0] if scripts else NO_SCRIPT


@lru_cache(maxsize=1 << 16)
def _script_of(character: str) -> str:
    if not character.isalpha():
        return NO_SCRIPT
    return unicodedata.name(character, NO_SCRIPT).split(" ")[0]
