"""Ways that take turns inside one run, their ratios, and tables in Markdown.

The machine's speed drifts; whatever slows a round slows all its ways. So a figure is the median of the rounds,
and a ratio the median of the ratios within each round.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

Key = TypeVar("Key")
Result = TypeVar("Result")


def take_turns(ways: Mapping[Key, Callable[[], Result]], rounds: int) -> dict[Key, list[Result]]:
    """What each way returns, once a round. A round before them warms up; the first place goes round."""
    results: dict[Key, list[Result]] = {key: [] for key in ways}
    order = list(ways)
    for turn in range(rounds + 1):
        for key in order:
            result = ways[key]()
            if turn:
                results[key].append(result)
        order = order[1:] + order[:1]
    return results


def seconds(function: Callable[[], object], times: int = 1) -> Callable[[], float]:
    """A way for take_turns: the mean seconds of a call, over so many in a row."""

    def timed() -> float:
        start = time.perf_counter()
        for _ in range(times):
            function()
        return (time.perf_counter() - start) / times

    return timed


def ratio(over: Iterable[float], under: Iterable[float]) -> float:
    """Median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of rows that have the same keys; None is a dash, numbers get three digits or none after the point."""
    if not rows:
        return "(nothing was measured)"
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"
    return str(value)
