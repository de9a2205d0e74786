"""Which settings a search tries, and what it says of them. Pure functions; training/search.py runs them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from training.build import TrainConfig
from training.recipe import SMALLEST_BATCH
from training.report import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.recipe import Recipe

SEARCHED = ("lr", "epochs", "batch_rows", "dropout", "token_dropout", "edits", "label_smoothing", "r_drop")
DEFAULTS = {f.name: f.default for f in fields(TrainConfig)}


@dataclass(frozen=True)
class Tried:
    """A candidate's settings, and how far it came: the figures of its best epoch, None where it ended in none."""

    settings: dict[str, Any]
    dev_score: float | None
    dev_loss: float | None
    merit: float | None  # of two candidates the one of more is better (train.py, dev_figures)
    epochs: int  # that were run
    seconds: float
    end: str  # whole, stopped or failed


def candidates(config: TrainConfig, recipe: Recipe, count: int, *, has_mask: bool) -> list[TrainConfig]:
    """So many settings to try around what the recipe chooses, which is the first; the same for the same seed.

    Epochs: half to twice the recipe's, log-uniform. Batch: half of it, the same or twice, at least SMALLEST_BATCH.
    Rate: a third to three times the recipe's, log-uniform, times the square root of what the batch has grown by.
    dropout: the recipe's, half or one and a half of it; token_dropout: 0, 0.1, 0.2 or 0.3, where the tokenizer has a
    mask; edits and label_smoothing: 0, 0.05 or 0.1; r_drop, which takes twice the time: in half of them 0, or 0.5 or 1.
    A setting that the user gave another value than its default stays as it is.
    """
    rng = np.random.default_rng(config.seed)
    asked = {name: value for name in SEARCHED if (value := getattr(config, name)) != DEFAULTS[name]}
    if not has_mask:
        asked["token_dropout"] = 0.0
    first = replace(config, **asdict(recipe))
    drawn = [replace(first, **(_draw(recipe, rng) | asked)) for _ in range(count - 1)]
    return [first, *drawn]


def _draw(recipe: Recipe, rng: np.random.Generator) -> dict[str, Any]:
    batch_rows = max(SMALLEST_BATCH, round(recipe.batch_rows * 2.0 ** rng.integers(-1, 2)))
    return {
        "lr": float(f"{recipe.lr * 3 ** rng.uniform(-1, 1) * (batch_rows / recipe.batch_rows) ** 0.5:.2g}"),
        "epochs": max(1, round(recipe.epochs * 2 ** rng.uniform(-1, 1))),
        "batch_rows": batch_rows,
        "dropout": round(recipe.dropout * float(rng.choice([0.5, 1.0, 1.5])), 3),
        "token_dropout": float(rng.choice([0.0, 0.1, 0.2, 0.3])),
        "edits": float(rng.choice([0.0, 0.05, 0.1])),
        "label_smoothing": float(rng.choice([0.0, 0.05, 0.1])),
        "r_drop": float(rng.choice([0.0, 0.0, 0.5, 1.0])),
    }


def searched(config: TrainConfig) -> dict[str, Any]:
    """The settings that candidates differ in."""
    return {name: value for name, value in asdict(config).items() if name in SEARCHED}


def ranked(tried: Sequence[Tried]) -> list[Tried]:
    """The best first, of equals that of less loss; last what came to the end of no epoch."""

    def rank(one: Tried) -> tuple[float, float]:
        return (math.inf, 0.0) if one.merit is None or one.dev_loss is None else (-one.merit, one.dev_loss)

    return sorted(tried, key=rank)


def search_table(tried: Sequence[Tried]) -> str:
    """All of them for a terminal, the best first, and what its figure is worth."""
    rows = [
        [
            *(f"{t.settings[name]:.3g}" for name in SEARCHED),
            *("" if figure is None else f"{figure:.4f}" for figure in (t.merit, t.dev_score)),
            str(t.epochs),
            f"{t.seconds:.0f}",
            t.end,
        ]
        for t in ranked(tried)
    ]
    best = " ".join(f"--set {name}={ranked(tried)[0].settings[name]:g}" for name in SEARCHED)
    return (
        f"{table([*SEARCHED, 'merit', 'dev score', 'epochs run', 'seconds', 'end'], rows)}\n"
        "Merit is 0 where dev is all right: minus the loss of calibrated scores, or macro-F1 less 1.\n"
        f"The best dev score of {len(tried)} flatters; --test has a figure that does not. The best: {best}"
    )
