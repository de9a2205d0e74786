"""How far the texts of a model are from those that it was measured on: some are read once more when nothing waits.

Only logits come out of a pass, so a SHARE of the texts is read again for its embedding, in a step between the
passes (service/compute.py) that no answer waits for; while work waits, none is. Called by service/models.py.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from service.errors import where

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model.tokens import Row
    from service.answers import TextAnswer
    from service.compute import Compute, Loaded

log = logging.getLogger("heed")

SHARE = 0.02  # of the texts, which are read again
AT_ONCE = 8  # rows of a step
BACKLOG_S = 0.02  # of work that waits: with more, these rows are left out


class Distances:
    """The texts of one version of a model, heard of in a replica."""

    def __init__(self, loaded: Loaded, compute: Compute, on_found: Callable[[list[float]], None]) -> None:
        self._loaded, self._compute, self._on_found = loaded, compute, on_found
        self._is_known = "embedding_center" in loaded.bundle.reference
        self._random = random.Random()
        self._rows: list[Row] = []
        self._reading: asyncio.Task[None] | None = None

    def hear(self, answers: Sequence[TextAnswer]) -> None:
        """Hear of answered texts."""
        if not self._is_known:
            return
        some = [answer.rows[0] for answer in answers if self._random.random() < SHARE and answer.rows]
        self._rows = (self._rows + some)[:AT_ONCE]
        if len(self._rows) == AT_ONCE and self._reading is None:
            rows, self._rows = self._rows, []
            if self._compute.turns.backlog_s() <= BACKLOG_S:
                self._reading = asyncio.create_task(self._read(rows))

    def close(self) -> None:
        """Its model is freed: what is being read is not waited for."""
        self._is_known = False

    async def _read(self, rows: Sequence[Row]) -> None:
        try:
            self._on_found(await self._compute.distances(self._loaded, rows))
        except Exception as error:
            if self._is_known:
                log.warning("texts could not be read for their distance: %s", where(error))
        finally:
            self._reading = None
