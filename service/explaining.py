"""Explanations in a replica: jobs that wait in a queue of their own and run in steps between the passes.

A job costs many forward and backward passes. It is queued, refused and drained by the batcher as a text is, one
job at a time; service/compute.py, Compute.step, decides when a step may run. Called by service/routes.py.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.attribution import POINTS, Attribution, masked
from service import metrics
from service.batching import Batcher
from service.errors import Failed, InvalidRequest, ServiceError
from service.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.tokens import Row, Span
    from service.answers import TextAnswer
    from service.compute import Compute, Loaded

SHOWN_LABELS = 10  # in an error
ONE_JOB = 1  # less than any costs, so that none shares a pass
JOBS = itertools.count()  # by which the engine knows them


@dataclass(frozen=True)
class Explained:
    """Why a text has a label: where its tokens lie, and what each adds."""

    label: int
    spans: Sequence[Span | None]  # None for special tokens
    attribution: Attribution


@dataclass(eq=False)
class Job:
    """A row to explain, and whether its caller is still there."""

    row: Row
    baseline: Row
    label: int
    is_wanted: bool = True

    @property
    def tokens(self) -> int:
        """What it costs at least: each point on the path reads the row."""
        return self.row.tokens * POINTS

    @property
    def key(self) -> Job:
        """Each job is computed for its own caller."""
        return self


def asked_label(asked: bool | str, labels: Sequence[str]) -> int | None:
    """Id of the label asked for, None for whichever wins. Raises InvalidRequest, without the caller's text."""
    return None if isinstance(asked, bool) else label_id("explain", asked, labels)


def label_id(field: str, label: str, labels: Sequence[str]) -> int:
    """Id of a label that a field names. Raises InvalidRequest, without the caller's text."""
    if label not in labels:
        more = f" and {len(labels) - SHOWN_LABELS} more" if len(labels) > SHOWN_LABELS else ""
        known = ", ".join(labels[:SHOWN_LABELS]) + more
        raise InvalidRequest([{"field": field, "message": f"the model has no such label, it has: {known}"}])
    return labels.index(label)


class Explainer:
    """One model's queue of explanations."""

    def __init__(self, model: Loaded, compute: Compute, max_queue_tokens: int) -> None:
        self._model, self._compute = model, compute
        self.batcher: Batcher[Job, Attribution] = Batcher(
            self._run,
            turns=Turns(),
            max_batch_tokens=ONE_JOB,
            max_queue_tokens=max_queue_tokens,
            on_pass=metrics.observe_explanation,
        )

    async def explain(
        self,
        answers: Sequence[TextAnswer],
        spans: Sequence[Sequence[Span | None]],
        label: int | None,
        within_s: float = math.inf,
    ) -> list[Explained | ServiceError | None]:
        """Why each text, read in one row, has the label or the one that won; None where the answer is an error."""
        jobs: dict[int, Job] = {}
        for i, (answer, row_spans) in enumerate(zip(answers, spans, strict=True)):
            if not isinstance(answer.result, ServiceError):
                [row] = answer.rows
                winner = max(range(len(answer.result.logits)), key=answer.result.logits.__getitem__)
                baseline = masked(row, row_spans, self._model.bundle.tokenizer)
                jobs[i] = Job(row, baseline, winner if label is None else label)
        explained: list[Explained | ServiceError | None] = [None] * len(answers)
        for (i, job), result in zip(jobs.items(), await self._submit(list(jobs.values()), within_s), strict=True):
            explained[i] = result if isinstance(result, ServiceError) else Explained(job.label, spans[i], result)
        return explained

    async def _submit(self, jobs: Sequence[Job], within_s: float) -> list[Attribution | ServiceError]:
        """Wait for every job, in order. A caller that is cancelled costs no further step."""
        try:
            return [answer.result for answer in await self.batcher.submit(jobs, within_s=within_s)]
        finally:
            for job in jobs:
                job.is_wanted = False

    async def _run(self, jobs: Sequence[Job]) -> list[Attribution | ServiceError]:
        """One job, step by step; each step waits for its turn."""
        [job] = jobs
        number, rows = next(JOBS), [[row.ids, row.types] for row in (job.row, job.baseline)]
        while job.is_wanted:
            found = await self._compute.step(["explain", number, self._model.id, *rows, job.label])
            if found is not None:
                return [Attribution(*found) if math.isfinite(found[1]) else Failed()]
        self._compute.engine.tell(["stop_explaining", number])
        return [Failed()]  # nobody reads it
