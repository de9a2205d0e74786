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
AT_ONCE = 8  # rows that are read one after the other, each in a step
BACKLOG_S = 0.02  # of work that waits: with more, these rows are left out


class Distances:
    """The texts of one version of a model, heard of in a replica."""

    def __init__(self, loaded: Loaded, compute: Compute, on_found: Callable[[list[float]], None]) -> None:
        self._loaded, self._compute, self._on_found = loaded, compute, on_found
        self._is_known = bool(loaded.bundle.reference.get("embedding_center"))
        self._round = 0  # of reading; what was begun before stop() is not said
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

    def stop(self) -> None:
        """What is being read is neither waited for nor said."""
        self._round += 1

    async def _read(self, rows: Sequence[Row]) -> None:
        begun = self._round
        try:
            found = [distance for row in rows for distance in await self._compute.distances(self._loaded, [row])]
            if begun == self._round:
                self._on_found(found)
        except Exception as error:
            if begun == self._round:
                log.warning("texts could not be read for their distance: %s", where(error))
        finally:
            self._reading = None
