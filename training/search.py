"""heed train --search: several settings are tried at once on a core or a GPU each, and the poor ones stopped early.

Ray Tune runs the trials; ASHA (Li et al. 2020, https://arxiv.org/abs/1810.05934) stops those that are not among the
better half at a quarter, then at a half of their own epochs: at an equal share of it, as a rate that has fallen
further looks better. Which settings: training/candidates.py. Called by training/commands.py.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import ray
import ray.tune
import torch
from ray.tune.schedulers import ASHAScheduler
from tqdm import tqdm

from model.device import keep_freed_memory
from model.encoder import Classifier
from training.candidates import Tried, candidates, ranked, search_table, searched
from training.checkpoint import DevFigures
from training.cluster import cause, connect, nodes, share_cluster
from training.recipe import Recipe
from training.train import fit
from training.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from training.build import TrainConfig
    from training.checkpoint import Progress
    from training.run import Run

WHOLE, FIRST_LOOK, KEPT = 100, 25, 2  # percent of a trial's epochs; one in so many goes on


@dataclass(frozen=True)
class Search:
    """Tries so many settings in budget_s seconds at most, on a Ray cluster."""

    trials: int
    address: str
    device: str
    budget_s: float

    def __call__(self, run: Run) -> tuple[TrainConfig, list[Tried]]:
        """The best settings on dev, and all that were tried, the best first.

        The same for the same seed, but for which trials are stopped: that depends on which come first.
        Raises ValueError where none ended an epoch.
        """
        drawn = candidates(run.config, run.recipe, self.trials, has_mask=run.tokenizer.mask_id is not None)
        run = replace(run, classifier=run.classifier.to("cpu"), device=torch.device("cpu"))
        connect(self.address)
        try:
            needs = share_cluster(nodes(), 1, self.device)
            results = self._tune(run, drawn, dict.fromkeys(needs, 1))
        finally:
            ray.shutdown()
        begun = zip(drawn, results, strict=False)  # a budget may leave some that never were
        tried = ranked([outcome(config, result) for config, result in begun])
        if not tried or tried[0].dev_score is None:
            why = next((str(found) for result in results if (found := cause(result.error))), "give more --budget")
            raise ValueError(f"no trial came to the end of an epoch: {why}")
        print(search_table(tried), file=sys.stderr)
        return replace(run.config, **tried[0].settings), tried

    def _tune(self, run: Run, drawn: list[TrainConfig], needs: dict[str, int]) -> ray.tune.ResultGrid:
        quiet = ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "TUNE_DISABLE_SIGINT_HANDLER")  # Ctrl-C ends the command
        os.environ |= dict.fromkeys(quiet, "1") | {"RAY_AIR_NEW_OUTPUT": "0"}
        with (
            tempfile.TemporaryDirectory() as folder,
            tqdm(total=len(drawn), desc="search", unit="trial", leave=False, disable=None) as bar,
        ):
            tuner = ray.tune.Tuner(
                ray.tune.with_resources(ray.tune.with_parameters(trial, run=run, drawn=drawn), needs),
                param_space={"trial": ray.tune.grid_search(list(range(len(drawn))))},
                tune_config=ray.tune.TuneConfig(
                    metric="merit",
                    mode="max",
                    scheduler=ASHAScheduler("share", max_t=WHOLE, grace_period=FIRST_LOOK, reduction_factor=KEPT),
                    time_budget_s=None if math.isinf(self.budget_s) else self.budget_s,
                ),
                run_config=ray.tune.RunConfig(
                    name="search", storage_path=folder, verbose=0, callbacks=[Ended(bar.update)]
                ),
            )
            return tuner.fit()


class Ended(ray.tune.Callback):  # type: ignore[misc]
    """Hears of each trial that is over."""

    def __init__(self, hear: Callable[[], object]) -> None:
        self._hear = hear

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        """Whole or stopped."""
        self._hear()

    def on_trial_error(self, *_: Any, **__: Any) -> None:
        """Failed."""
        self._hear()


def trial(drawn_one: dict[str, int], run: Run, drawn: list[TrainConfig]) -> None:
    """The loop with one candidate's settings, on one thread, or on a GPU."""
    torch.set_num_threads(1)
    keep_freed_memory()
    config = drawn[drawn_one["trial"]]
    gpus = ray.get_gpu_ids()
    run = with_settings(run, config, torch.device("cuda" if gpus else "cpu"))
    torch.manual_seed(config.seed)
    fit(run, None, resume=False, watch=Reported(run))


def with_settings(run: Run, config: TrainConfig, device: torch.device) -> Run:
    """The same data and first weights, other settings."""
    recipe = Recipe(**{field.name: getattr(config, field.name) for field in fields(Recipe)})  # a candidate says all
    classifier = Classifier(replace(run.classifier.config, dropout=recipe.dropout), len(run.labels))
    classifier.load_state_dict(run.classifier.state_dict())
    return replace(run, config=config, recipe=recipe, classifier=classifier.to(device), device=device)


class Reported(Watch):
    """Tells Ray Tune how an epoch ended; there a trial may be stopped."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def epoch(self, at: Progress) -> None:
        """An epoch was closed."""
        epochs, best = self._run.recipe.epochs, at.best
        assert best is not None
        ray.tune.report(
            {
                "share": WHOLE * at.epoch // epochs,
                **best._asdict(),
                "epochs": at.epoch,
                "trial_s": at.seconds,
                "is_whole": at.epoch == epochs or at.epoch - at.best_epoch > self._run.config.patience,
            }
        )


def outcome(config: TrainConfig, result: ray.tune.Result) -> Tried:
    """What became of a trial."""
    metrics = result.metrics or {}
    end = "failed" if result.error else "whole" if metrics.get("is_whole") else "stopped"
    score, loss, merit = (metrics.get(name) for name in DevFigures._fields)
    return Tried(searched(config), score, loss, merit, metrics.get("epochs", 0), metrics.get("trial_s", 0.0), end)
