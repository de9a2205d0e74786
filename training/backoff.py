"""Augmentation that is kept only where it helps: the loop without it and with it, and what is better on dev is taken.

Called by training/train.py. Which edits: training/augment.py.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from training.checkpoint import has_checkpoint
from training.report import table
from training.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from training.checkpoint import Progress
    from training.run import Run
    from training.train import Loop, Outcome
    from training.watch import Pace

SHARE = 0.1  # of the words are edited, and as many hidden: what Wei and Zou 2019 (augment.py) found best


def without_and_with(run: Run) -> list[Run]:
    """The run alone, or where augmentation is asked for, the run without it and with it, in half of the time each.

    With it the shares that are set count, and SHARE where none is; without it nothing is edited, and only hidden what
    the recipe hides.
    """
    config, recipe = run.config, run.recipe
    if not config.augment:
        return [run]
    is_set, has_mask = config.token_dropout is not None, run.tokenizer.mask_id is not None
    few = 0.0 if is_set else recipe.token_dropout
    many = recipe.token_dropout if is_set or not has_mask else max(recipe.token_dropout, SHARE)
    return [
        replace(
            run,
            config=replace(config, edits=edits),
            recipe=replace(recipe, token_dropout=hidden),
            budget_s=run.budget_s / 2,
        )
        for edits, hidden in ((0.0, few), (config.edits or SHARE, many))
    ]


def best_of(
    runs: Sequence[Run], loop: Loop, checkpoints: Sequence[Path], *, resume: bool, watch: Watch
) -> tuple[Run, Outcome]:
    """The run that is best on dev, of equals the first, and what its loop has returned; its weights are in place.

    The runs share one classifier, and each has a checkpoint of its own. A run that is resumed goes on in whichever it
    was stopped in.
    """
    if len(runs) == 1:
        return runs[0], loop(runs[0], checkpoints[0], resume=resume, watch=watch)
    first = weights_of(runs[0])
    done: list[tuple[Run, Outcome, Mapping[str, torch.Tensor]]] = []
    counted = Counted(watch)
    for run, checkpoint in zip(runs, checkpoints, strict=False):
        if done:
            run.classifier.load_state_dict(first)
            torch.manual_seed(run.config.seed)
        goes_on = resume and (not done or has_checkpoint(checkpoint))
        outcome = loop(run, checkpoint, resume=goes_on, watch=counted)
        done.append((run, outcome, weights_of(run)))
        counted.next_run()
    best, outcome, weights = max(done, key=lambda each: merit(each[1]))
    best.classifier.load_state_dict(weights)
    print(comparison([(run, outcome) for run, outcome, _ in done], best), file=sys.stderr)
    return best, outcome


def merit(outcome: Outcome) -> float:
    """That of the best epoch on dev."""
    return float(best_epoch(outcome)["merit"])


def best_epoch(outcome: Outcome) -> dict[str, Any]:
    """Its row of figures."""
    history, _ = outcome
    return [row for row in history if row["best_so_far"]][-1]


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    """A copy, beside the device."""
    return {name: value.detach().cpu().clone() for name, value in run.classifier.state_dict().items()}


def comparison(done: Sequence[tuple[Run, Outcome]], best: Run) -> str:
    """A table for a terminal."""
    rows = [
        [
            f"{run.config.edits:g}",
            f"{run.recipe.token_dropout:g}",
            *(f"{best_epoch(outcome)[name]:.4f}" for name in ("dev_loss", "dev_score")),
            "kept" if run is best else "",
        ]
        for run, outcome in done
    ]
    return table(["edits", "token_dropout", "dev loss", "dev score", ""], rows)


class Counted(Watch):
    """Passes on what it hears of several runs, the steps of a later one counted on."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._before = self._step = 0

    def next_run(self) -> None:
        """One is over."""
        self._before, self._step = self._before + self._step, 0

    def begin(self, at: Progress) -> None:
        """A run begins, or goes on."""
        self._step = at.step
        self._watch.begin(at)

    def step(self, pace: Pace) -> None:
        """A step is done."""
        self._step = pace.step
        self._watch.step(replace(pace, step=self._before + pace.step))

    def epoch(self, at: Progress) -> None:
        """An epoch was closed."""
        self._watch.epoch(at)
