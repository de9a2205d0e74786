"""How far `heed predict` is: a bar on a terminal, a line now and then in a log, a summary at the end; all on stderr.

How many rows a file has is known only at its end: until then it is guessed from how much of it has been read.
Called by service/predict_command.py.
"""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from service.predict_rows import Totals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.predict_file import Sink
    from service.predict_rows import Written

LOG_EVERY_S = 30.0  # where nobody sees a bar
METER: dict[str, Any] = {"desc": "predict", "unit": " rows", "unit_scale": True}
LINE: dict[str, Any] = {"prefix": "heed predict", "unit": " rows", "unit_scale": True}


class Progress:
    """Of one run; what an interrupted one did before is counted, and has no part in the rate."""

    def __init__(self) -> None:
        self._totals, self._before = Totals(), Totals()
        self._seconds, self._keeps = 0.0, False

    @contextlib.contextmanager
    def of(self, sink: Sink, *, keeps: bool) -> Iterator[None]:
        """While this is filled; keeps: what is in it stays after an interruption."""
        self._totals, self._before, self._keeps = sink.totals, replace(sink.totals), keeps
        self._start = self._logged_at = time.monotonic()
        with tqdm(initial=sink.totals.rows, leave=False, disable=None, **METER) as self._bar:
            try:
                yield
            finally:
                self._seconds = time.monotonic() - self._start

    def add(self, written: Written) -> None:
        """A chunk is done."""
        rows, now = self._totals.rows, time.monotonic()
        total = max(rows, round(rows / written.share)) if written.share else None
        self._bar.total = total
        self._bar.update(written.totals.rows)
        if self._bar.disable and now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            line = tqdm.format_meter(rows, total or 0, now - self._start, ncols=0, initial=self._before.rows, **LINE)
            print(line, file=sys.stderr, flush=True)

    def kept(self) -> str:
        """What an interruption costs, and how to go on."""
        if not self._keeps or not self._totals.rows:
            return "nothing is kept"
        return f"{self._totals.rows:,} rows are kept, and --resume goes on"

    def figures(self) -> dict[str, Any]:
        """What was done; rates are those of this run."""
        seconds = max(self._seconds, 1e-9)
        rates = {
            "seconds": round(seconds, 3),
            "rows_per_s": round((self._totals.rows - self._before.rows) / seconds, 1),
            "tokens_per_s": round((self._totals.tokens - self._before.tokens) / seconds, 1),
        }
        return asdict(self._totals) | {"resumed_at": self._before.rows} | rates

    def summary(self) -> str:
        """The same as a line."""
        found = self.figures()
        counts = {"truncated": "truncated", "failed": "failed", "bad_rows": "without a text"}
        more = "".join(f", {found[name]:,} {words}" for name, words in counts.items() if found[name])
        before = f" ({found['resumed_at']:,} of them before)" if found["resumed_at"] else ""
        return (
            f"heed predict: {found['rows']:,} rows{before} in {found['seconds']:,.1f} s{more}; "
            f"{found['rows_per_s']:,.0f} rows/s, {found['tokens_per_s']:,.0f} tokens/s"
        )
