"""A candidate beside production, before it is promoted: it answers some texts unseen (shadow), some requests (canary).

The alias `candidate` of every followed model is loaded beside it. In the shadow it reads a share of the texts that
production has answered, later and only while nothing waits; as canary it answers a share of the requests, always those
of the same ids, and production reads their texts in the shadow. Where the two disagree too often, or the candidate
fails, it answers nothing any more until another takes its place. Started by service/routes.py, told by following.py.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.scores import MULTI
from service import metrics
from service.answering import answer
from service.errors import Failed, ServiceError, where
from service.models import let_go
from service.schemas import CandidateInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.manifest import Described
    from model.tokens import Text
    from service.answers import TextAnswer
    from service.models import Models, ServedModel
    from service.schemas import OnLong
    from service.scored import Scored
    from service.settings import Settings

log = logging.getLogger("heed")

ENOUGH = 100  # texts, before a candidate is judged
AT_ONCE, MOST_TEXTS = 1, 32  # requests that are read in the shadow, and the texts of each; more are dropped
BACKLOG_S = 0.02  # of work that waits: with more, nothing is read in the shadow
DEADLINE_S = 10.0


@dataclass
class Trial:
    """A candidate, and how it does."""

    model: ServedModel
    answered: int = 0  # texts, as canary or in the shadow
    failed: int = 0
    compared: int = 0
    agreed: int = 0
    shift: float = 0.0  # of the score of production's label, added up over what was compared
    read: int = 0  # requests that it has read in the shadow
    read_s: float = 0.0  # what their passes took
    ended: str | None = None  # why it answers nothing any more

    @property
    def version(self) -> str:
        """Its version."""
        return self.model.bundle.version

    @property
    def agreement(self) -> float | None:
        """Share of the texts on which it says what production says."""
        return self.agreed / self.compared if self.compared else None


def why_to_end(trial: Trial, least_agreement: float, most_failed: float) -> str | None:
    """What a candidate has broken, with the figure; None for nothing, or before ENOUGH texts."""
    if trial.answered >= ENOUGH and trial.failed > most_failed * trial.answered:
        return f"it failed on more of the texts than {most_failed:g}: {trial.failed / trial.answered:.3f}"
    if trial.compared >= ENOUGH and trial.agreed < least_agreement * trial.compared:
        return f"it agrees with production on less than {least_agreement:g}: {trial.agreed / trial.compared:.3f}"
    return None


def share_of(request_id: str) -> float:
    """Where a request stands in [0, 1), on every replica the same."""
    return zlib.crc32(request_id.encode()) / 2**32


class Trials:
    """The candidates of a replica, by the name of the model."""

    def __init__(self, models: Models, settings: Settings) -> None:
        self._models, self._settings = models, settings
        self._trials: dict[str, Trial] = {}
        self._withdrawn: dict[str, str] = {}  # versions that broke their bounds, and how
        self._tasks: set[asyncio.Task[None]] = set()
        self._random = random.Random()

    @property
    def is_wanted(self) -> bool:
        """Whether candidates are tried at all."""
        return bool(self._settings.shadow_share or self._settings.canary_share)

    def of(self, name: str) -> Trial | None:
        """The candidate of a model."""
        return self._trials.get(name)

    def info(self, name: str) -> CandidateInfo | None:
        """What /v1/models says of it."""
        if (trial := self.of(name)) is None:
            return None
        return CandidateInfo(
            version=trial.version,
            answered=trial.answered,
            failed=trial.failed,
            agreement=trial.agreement,
            score_shift=trial.shift / trial.compared if trial.compared else None,
            added_ms=1000 * trial.read_s / trial.read if trial.read else None,
            ended=trial.ended,
        )

    def choose(self, wanted: str | None, request_id: str) -> ServedModel | None:
        """The candidate, where it is to answer a request."""
        if not self._settings.canary_share or (wanted is not None and "@" in wanted):
            return None
        trial = self._trials.get(wanted or self._models.specs[0].name)
        is_chosen = trial is not None and trial.ended is None and share_of(request_id) < self._settings.canary_share
        return trial.model if trial and is_chosen else None

    def begin(self, model: ServedModel) -> None:
        """Try a candidate that is loaded and warm, in place of the one before."""
        self.end(model.name)
        trial = Trial(model, ended=self._withdrawn.get(model.bundle.version))
        self._trials[model.name] = trial
        metrics.CANDIDATE_ON_TRIAL.labels(model.name, trial.version).set(trial.ended is None)
        log.info("%s version %s is on trial", model.name, model.bundle.version)

    def end(self, name: str) -> None:
        """Let a candidate go, if there is one."""
        if model := self.take(name):
            self._keep(asyncio.create_task(let_go(model)))

    def take(self, name: str, version: str | None = None) -> ServedModel | None:
        """The candidate of a model, of a version if one is given, which is on trial no more: promoted, or let go."""
        trial = self._trials.get(name)
        if trial is None or version not in (None, trial.version):
            return None
        del self._trials[name]
        metrics.CANDIDATE_ON_TRIAL.labels(name, trial.version).set(0)
        return trial.model

    def failed(self, model: ServedModel, texts: int) -> None:
        """A canary that did not answer: production does so instead."""
        trial = self._trials.get(model.name)
        if trial is not None and trial.model is model:
            trial.answered += texts
            trial.failed += texts
            metrics.CANDIDATE_TEXTS.labels(model.name, "failed").inc(texts)
            self._judge(trial)

    def hear(self, model: ServedModel, texts: Sequence[Text], on_long: OnLong, answers: Sequence[TextAnswer]) -> None:
        """An answered request: where its texts are to be read by the other of the two, do so when there is time."""
        trial = self._trials.get(model.name)
        if trial is None or trial.ended is not None:
            return
        is_canary = model is trial.model
        production = self._models.versions(model.name)[0]
        if is_canary:
            trial.answered += len(texts)
        elif model is not production or self._random.random() >= self._settings.shadow_share:
            return
        is_busy = len(self._tasks) >= AT_ONCE or len(texts) > MOST_TEXTS
        if is_busy or (not is_canary and self._models.wait_s() > BACKLOG_S):
            metrics.CANDIDATE_TEXTS.labels(model.name, "dropped").inc(len(texts))
            return
        self._keep(asyncio.create_task(self._compare(trial, production, texts, on_long, answers, is_canary=is_canary)))

    async def _compare(
        self,
        trial: Trial,
        production: ServedModel,
        texts: Sequence[Text],
        on_long: OnLong,
        answers: Sequence[TextAnswer],
        *,
        is_canary: bool,
    ) -> None:
        """Let the one that has not answered read the texts, too, and hold both answers against each other."""
        other = production if is_canary else trial.model
        try:
            with other:
                deadline = time.perf_counter() + DEADLINE_S
                read = await answer(other, self._models.tokenizing, texts, on_long, deadline=deadline, priority="bulk")
        except ServiceError:
            metrics.CANDIDATE_TEXTS.labels(other.name, "dropped").inc(len(texts))
            return
        except Exception as error:
            log.error("the trial of %s failed: %s", other.name, where(error))
            return
        metrics.CANDIDATE_SECONDS.labels(other.name).observe(read.forward_s)
        before, after = (read.answers, answers) if is_canary else (answers, read.answers)
        if not is_canary:
            trial.read, trial.read_s = trial.read + 1, trial.read_s + read.forward_s
            self._count(trial, after)
        for one, two in zip(before, after, strict=True):
            if not isinstance(one.result, ServiceError) and not isinstance(two.result, ServiceError):
                self._hold(trial, production.bundle, one.result, two.result)
        self._judge(trial)

    def _hold(self, trial: Trial, production: Described, before: Scored, after: Scored) -> None:
        """Count one text that both have answered."""
        candidate = trial.model.bundle
        is_same = said(production, before) == said(candidate, after)
        trial.compared += 1
        trial.agreed += is_same
        metrics.CANDIDATE_TEXTS.labels(trial.model.name, "agreed" if is_same else "disagreed").inc()
        best = max(before.scores)
        label = production.labels[before.scores.index(best)]
        score = after.scores[candidate.labels.index(label)] if label in candidate.labels else 0.0
        trial.shift += abs(score - best)
        metrics.CANDIDATE_SHIFT.labels(trial.model.name).observe(abs(score - best))

    def _count(self, trial: Trial, answers: Sequence[TextAnswer]) -> None:
        """Count what the candidate read in the shadow."""
        failed = sum(isinstance(one.result, Failed) for one in answers)
        trial.answered += len(answers)
        trial.failed += failed
        if failed:
            metrics.CANDIDATE_TEXTS.labels(trial.model.name, "failed").inc(failed)
            self._judge(trial)

    def _judge(self, trial: Trial) -> None:
        why = why_to_end(trial, self._settings.canary_least_agreement, self._settings.canary_most_failed)
        if why and trial.ended is None:
            trial.ended = self._withdrawn[trial.version] = why
            metrics.CANDIDATE_ON_TRIAL.labels(trial.model.name, trial.version).set(0)
            log.warning("%s version %s answers nothing any more: %s", trial.model.name, trial.version, why)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Finish what is read in the shadow, and let the candidates go."""
        for name in list(self._trials):
            self.end(name)
        await asyncio.gather(*self._tasks)


def said(bundle: Described, result: Scored) -> list[str]:
    """The labels of an answer: the best one, or where they do not exclude one another those that are given."""
    if bundle.problem_type == MULTI and result.in_set is not None:
        return [label for label, is_in in zip(bundle.labels, result.in_set, strict=True) if is_in]
    return [bundle.labels[result.scores.index(max(result.scores))]]
