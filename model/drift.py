"""How far the texts of now are from those that a model was measured on: counts against its reference statistics.

Five signals of a text: its best label, the score of that (confidence), its tokens, whether one of them is unknown to
the tokenizer, and how far its embedding is from the middle of all (distance), which is looked at of some texts only. Of
each the population stability index, less what chance alone gives with so few texts (Yurdakul 2018,
https://scholarworks.wmich.edu/dissertations/3208): about 0 where nothing changed, 0.1 worth a look, over 0.25 another
population. No torch. Filled by service/metrics.py and service/drift_command.py, from statistics of training/finish.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from model.scores import Array

    Floats = NDArray[np.float64]

LARGE = 0.25
SIGNALS = ("label", "confidence", "tokens", "unknown", "distance")
DIGITS = 2  # of a confidence, or of a distance by their median, that count: precisions differ in the third
MOST_TEXTS = 10**12  # of a reference that is one
FEW = 0.5  # added to each count, so that an empty one has a logarithm


@dataclass(frozen=True, slots=True)
class Seen:
    """The signals of a text."""

    label: int  # id of the best one
    confidence: float
    tokens: int
    is_unknown: bool  # one of its tokens is


def values_of(seen: Sequence[Seen]) -> dict[str, list[float]]:
    """The signals of texts, in their order."""
    return {
        "label": [one.label for one in seen],
        "confidence": [one.confidence for one in seen],
        "tokens": [one.tokens for one in seen],
        "unknown": [one.is_unknown for one in seen],
    }


def distances(embeddings: Array, center: Sequence[float]) -> list[float]:
    """Of embeddings (N, D) from the middle of those that a model was measured on."""
    found: list[float] = np.linalg.norm(embeddings - np.array(center, dtype=np.float32), axis=1).tolist()
    return found


def number_statistics(values: Sequence[float], unit: float = 1.0) -> dict[str, Any]:
    """Where a signal lies: edges of bins (B - 1,) in a unit, a value at an edge below it; the share of each bin (B,).

    The edges are the values' deciles; a value that a tenth of the texts have, as a confidence of 1, has its own bin.
    Shares are counted, not a tenth each: of some values there may be none.
    """
    rounded = np.round(np.array(values) / unit, DIGITS)
    distinct, times = np.unique(rounded, return_counts=True)
    below = distinct[times >= len(rounded) / 10] - 10.0**-DIGITS
    deciles = np.quantile(rounded, np.linspace(0.1, 0.9, 9), method="higher")
    edges = np.unique(np.round(np.concatenate([deciles, below]), DIGITS))
    counts = np.bincount(np.searchsorted(edges, rounded), minlength=len(edges) + 1)
    return {"unit": unit, "edges": edges.tolist(), "shares": (counts / len(rounded)).tolist()}


def distance_statistics(found: Sequence[float]) -> dict[str, Any]:
    """The same of distances, in units of their median."""
    return number_statistics(found, float(np.median(found)) or 1.0)


class Reference:
    """The shares that each signal had, and the edges that cut numbers into bins."""

    def __init__(self, statistics: Mapping[str, Any], labels: Sequence[str]) -> None:
        """Of a manifest; of one that lacks a signal, as older ones do, that is left out.

        Raises an ArithmeticError, AttributeError, LookupError, TypeError or ValueError for what Heed does not write.
        """
        self.n = int(statistics.get("n", 0))
        self.shares: dict[str, Floats] = {}
        self.edges: dict[str, Floats] = {}
        self.units: dict[str, float] = {}
        if "label_share" in statistics:
            self.shares["label"] = shares_of([statistics["label_share"].get(label, 0.0) for label in labels])
        self.center = [float(value) for value in statistics.get("embedding_center", [])]  # (D,)
        if not np.isfinite(self.center).all():
            raise ValueError("embedding_center is not of finite numbers")
        for signal in ("confidence", "tokens", *(["distance"] if self.center else [])):
            if signal in statistics:
                self._read_number(signal, **statistics[signal])
        if "unknown_share" in statistics:
            share = float(statistics["unknown_share"])
            self.shares["unknown"] = shares_of([1 - share, share])
        if not 0 <= self.n <= MOST_TEXTS:
            raise ValueError(f"n is not a number of texts: {self.n}")

    def _read_number(self, signal: str, unit: float, edges: Sequence[float], shares: Sequence[float]) -> None:
        self.units[signal], self.shares[signal] = float(unit), shares_of(shares)
        self.edges[signal] = found = np.array(edges, dtype=np.float64)
        rises = len(found) and np.isfinite(found).all() and (np.diff(found) > 0).all()
        if not (rises and len(shares) == len(edges) + 1 and 0 < self.units[signal] < np.inf):
            raise ValueError(f"{signal} has not edges that rise, one share more, and a positive unit")

    def places(self, signal: str, values: Sequence[float]) -> NDArray[np.int64]:
        """The bins of values (N,)."""
        if signal not in self.edges:
            return np.array(values, np.int64)
        return np.searchsorted(self.edges[signal], np.round(np.array(values) / self.units[signal], DIGITS))


def shares_of(values: Sequence[float]) -> Floats:
    """Shares of categories. Raises ValueError for what is none."""
    shares = np.array(values, dtype=np.float64)
    if not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError("a share is not in [0, 1]")
    return shares


class Window:
    """Counts of the signals of some texts."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._counts = {signal: np.zeros(len(shares)) for signal, shares in reference.shares.items()}

    @property
    def n(self) -> int:
        """Values of the signal that has most."""
        return int(max((counts.sum() for counts in self._counts.values()), default=0))

    def add(self, values: Mapping[str, Sequence[float]]) -> None:
        """Count values of signals; those that the reference has not are left out."""
        for signal in self._counts.keys() & values.keys():
            places = self._reference.places(signal, values[signal])
            self._counts[signal] += np.bincount(places, minlength=len(self._counts[signal]))

    def __add__(self, other: Window) -> Window:
        both = Window(self._reference)
        both._counts = {signal: counts + other._counts[signal] for signal, counts in self._counts.items()}
        return both

    def psi(self) -> dict[str, float]:
        """How far each signal of which there are values is from the reference."""
        if not self._reference.n:
            return {}
        return {
            signal: stability_index(shares * self._reference.n, self._counts[signal])
            for signal, shares in self._reference.shares.items()
            if self._counts[signal].any()
        }


def stability_index(before: Floats, now: Floats) -> float:
    """Population stability index of counts (B,), less its mean where both are of one population; at least 0."""
    p, q = ((counts + FEW) / (counts + FEW).sum() for counts in (before, now))
    by_chance = (len(before) - 1) * (1 / before.sum() + 1 / now.sum())
    index = float(((q - p) * np.log(q / p)).sum())
    return max(0.0, index - float(by_chance))
