"""What a training works on: data that fits together, settings, a network and its tokenizer, on a device.

Made by training/train.py, read by all that it calls.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from model.device import training_precision
from model.manifest import content_hash
from model.scores import MULTI
from training.build import build, recipe_of
from training.data import DataError, set_aside, split, targets
from training.evaluate import check_problem
from training.rows import EncodedRows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from model.encoder import Classifier
    from model.scores import Array, ProblemType
    from model.tokens import Tokenizer
    from training.build import TrainConfig
    from training.data import Dataset
    from training.guide import Guide
    from training.recipe import Recipe


@dataclass(frozen=True)
class Run:
    """What the loop works on; `start` and `taught_by` are the hashes of the bundles of --init and --teacher.

    `heard` is what the logits of the linear line, and of the teacher, are multiplied by where they are heard.
    With a guide its texts (M) are read like training rows, and its truth is that of both; `teacher` are a teacher's
    logits of both, (N + M, C).
    """

    config: TrainConfig
    recipe: Recipe
    classifier: Classifier
    tokenizer: Tokenizer
    labels: list[str]
    train: Dataset
    dev: Dataset
    device: torch.device
    max_tokens: int
    start: str | None = None
    taught_by: str | None = None
    teacher: Array | None = None
    guide: Guide | None = None
    heard: Mapping[str, float] = field(default_factory=dict)
    budget_s: float = math.inf

    @property
    def settings(self) -> dict[str, Any]:
        """What was set, with what the recipe chose where nothing was."""
        return dataclasses.asdict(self.config) | dataclasses.asdict(self.recipe) | {"max_tokens": self.max_tokens}

    @property
    def problem_type(self) -> ProblemType:
        """One label a text, or any number."""
        return self.train.problem_type

    @property
    def precision(self) -> str:
        """What matrix products are in."""
        return training_precision(self.config.precision, self.device)

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def rows(self, dataset: Dataset) -> EncodedRows:
        """The texts as token ids."""
        return EncodedRows(self.tokenizer, dataset.texts, self.max_tokens)

    def training_rows(self) -> EncodedRows:
        """The texts to train on, with those of the guide behind them."""
        texts = self.train.texts + (self.guide.texts if self.guide else [])
        return EncodedRows(self.tokenizer, texts, self.max_tokens)

    def outside_rows(self, dataset: Dataset) -> EncodedRows:
        """Those that are of no class."""
        return EncodedRows(self.tokenizer, dataset.outside, self.max_tokens)


def parts_of(
    train_set: Dataset,
    dev_set: Dataset | None,
    test_set: Dataset | None,
    outside_label: str | None,
    labels: Sequence[str] | None = None,
) -> dict[str, Dataset]:
    """train, dev and, where given, test; without a dev set, a tenth of the training texts is held out by hash.

    Rows with outside_label are of no class, and set aside in their part.
    Raises DataError where they do not fit one another, or leave nothing to learn.
    """
    if dev_set is None:
        train_set, dev_set = split(train_set)
    train_set, dev_set = (set_aside(dataset, outside_label) for dataset in (train_set, dev_set))
    test_set = test_set and set_aside(test_set, outside_label)
    found = train_set.label_names
    labels = labels or found
    if not found:
        raise DataError(f"{train_set.name}: no row has a label, which leaves nothing to learn")
    if len(found) < 2 and train_set.problem_type != MULTI:
        raise DataError(f"{train_set.name}: all rows have one label, which leaves nothing to learn: {found[0]}")
    held_out = {"dev": dev_set} | ({"test": test_set} if test_set else {})
    for dataset in held_out.values():
        check_problem(dataset, train_set.problem_type)
        targets(dataset, labels)  # refuses a label that is not in the training data
    if outside_label and not any(dataset.outside for dataset in (train_set, *held_out.values())):
        raise DataError(f"{train_set.name}: no row has the out_of_scope_label: {outside_label}")
    return {"train": train_set} | held_out


def set_up(
    config: TrainConfig, parts: dict[str, Dataset], init: Path | None, device: torch.device, labels: Sequence[str]
) -> Run:
    """The run that settings describe, from scratch or from the encoder in `init`, its weights the same for a seed."""
    train_set = parts["train"]
    torch.manual_seed(config.seed)
    classifier, tokenizer, max_tokens = build(config, train_set, labels, init)
    if config.token_dropout and tokenizer.mask_id is None:
        raise ValueError(f"the tokenizer of --init has no mask, leave out token_dropout={config.token_dropout}")
    return Run(
        config,
        recipe_of(config, classifier.config, tokenizer, train_set, max_tokens),
        classifier.to(device),
        tokenizer,
        list(labels),
        train_set,
        parts["dev"],
        device,
        max_tokens,
        start=content_hash(init) if init else None,
    )


def origin(
    run: Run, parts: dict[str, Dataset], init: Path | None, teacher: Path | None, command: str
) -> dict[str, Any]:
    """What a bundle keeps of where it comes from: enough to make it again."""
    return {
        "heed": importlib.metadata.version("heed"),
        "command": command,
        "init": {"folder": init.resolve().name, "version": run.start} if init else None,
        "teacher": {"folder": teacher.resolve().name, "version": run.taught_by} if teacher else None,
        "heard": dict(run.heard),
        "config": run.settings,
        "data": {
            name: {"file": dataset.name, "sha256": dataset.sha256, "rows": len(dataset.examples) + len(dataset.outside)}
            for name, dataset in parts.items()
        },
    }
