"""What a pass costs on this device, and which of the waiting texts run next: pure functions, no torch, no asyncio.

Called by service/batching.py; service/predictor.py measures what fit_cost reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

EFFICIENT = 0.97  # of the device's rate in endless passes: a larger pass gains little and keeps the next waiting
MIN_PASS = 256  # tokens
USUAL_ROW = 32  # tokens of a text


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a pass = pass_s + rows * row_s + tokens * token_s, where nothing else runs."""

    pass_s: float
    row_s: float
    token_s: float

    def seconds(self, rows: int, tokens: int) -> float:
        """A pass of so many rows with so many tokens in all."""
        return self.pass_s + rows * self.row_s + tokens * self.token_s

    @property
    def usual_token_s(self) -> float:
        """Of a token in a usual row."""
        return self.token_s + self.row_s / USUAL_ROW


def fit_cost(measured: Sequence[tuple[int, int, float]]) -> Cost:
    """The cost that explains passes measured as (rows, tokens, seconds) best, in relative terms.

    Least squares without negative terms: the most negative one is left out, and the rest is fitted again.
    """
    rows, tokens, seconds = (np.array(column, dtype=float) for column in zip(*measured, strict=True))
    terms = np.stack([np.ones_like(rows), rows, tokens], axis=1) / seconds[:, None]  # (N, 3)
    kept = [0, 1, 2]
    while True:
        found, *_ = np.linalg.lstsq(terms[:, kept], np.ones(len(rows)), rcond=None)
        if found.min() >= 0 or len(kept) == 1:
            break
        kept.pop(int(found.argmin()))
    by_term = dict(zip(kept, np.abs(found).tolist(), strict=True))
    return Cost(by_term.get(0, 0.0), by_term.get(1, 0.0), by_term.get(2, 0.0))


def full_pass(cost: Cost, most: int) -> int:
    """Tokens of the smallest pass, of rows of USUAL_ROW, that runs at EFFICIENT of the device's rate, or `most`."""
    if cost.usual_token_s == 0:
        return most
    tokens = EFFICIENT / (1 - EFFICIENT) * cost.pass_s / cost.usual_token_s
    return min(most, max(MIN_PASS, round(tokens)))


def even_share(waiting: int, running: int, at_once: int, cost: Cost) -> int:
    """Tokens of the next of the passes that run beside each other: an even share of all that waits or runs.

    Else one pass takes all that waits and the others, meanwhile, every text as it comes: large and small passes take
    turns, and the small ones cost more a token. A share costs at least as much as a pass in itself.
    """
    if at_once == 1 or cost.usual_token_s == 0:
        return waiting
    least = min(waiting, math.ceil(cost.pass_s / cost.usual_token_s))
    return max(least, math.ceil((waiting + running) / at_once))


def plan_pass(tokens: Sequence[int], budget: int, *, is_padded: bool, aged: int = 0) -> list[int]:
    """Which of the waiting rows run next, as indices; tokens are in the order of arrival.

    The oldest always runs, even alone over the budget, so nobody waits for ever. Unpadded rows follow by age; one
    that no longer fits is the first of the next pass. Padded ones cost rows * longest: those nearest to the
    oldest in length follow, but the first `aged` go before all others.
    """
    if not tokens:
        return []
    if is_padded:
        return _plan_padded(tokens, budget, aged)
    chosen, total = [0], tokens[0]
    for i in range(1, len(tokens)):
        if total >= budget:
            break
        if total + tokens[i] <= budget:
            chosen.append(i)
            total += tokens[i]
    return chosen


def _plan_padded(tokens: Sequence[int], budget: int, aged: int) -> list[int]:
    if len(tokens) * max(tokens) <= budget:
        return list(range(len(tokens)))
    first = tokens[0]
    by_likeness = sorted(range(max(1, aged), len(tokens)), key=lambda i: abs(tokens[i] - first))
    chosen, longest = [0], first
    for i in [*range(1, aged), *by_likeness]:
        wider = max(longest, tokens[i])
        if (len(chosen) + 1) * wider <= budget:
            chosen.append(i)
            longest = wider
        elif wider == longest:  # full: a shorter row would not fit either
            break
    return chosen
