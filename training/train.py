"""Labelled text -> bundle: train() checks and sets up, fit() is the loop.

Before it: build.py (settings, network, tokenizer). After it: finish.py (calibration, figures, the bundle).
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import math
import shutil
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils import clip_grad_norm_

from model.batch import make_batch
from model.device import keep_freed_memory, training_precision
from model.forward import forward_rows
from model.manifest import content_hash
from model.scores import MULTI, SINGLE, probabilities
from training.augment import edit_rows, mask_tokens
from training.backoff import best_of, without_and_with
from training.build import build, recipe_of
from training.calibrate import calibrate
from training.checkpoint import DevFigures, Progress, load_checkpoint, save_checkpoint
from training.cost import training_cost
from training.data import DataError, epoch_batches, set_aside, split, targets
from training.evaluate import check_problem, score
from training.exposure import draw, exposure_loss
from training.finish import finish
from training.group import ALONE
from training.guide import indicator, taught
from training.health import check
from training.linear import fit_line
from training.loss import Aim, loss_of
from training.optimizer import lr_scale, make_optimizer, set_lr
from training.pool import fit_weights
from training.report import run_line
from training.rows import EncodedRows, digest
from training.teacher import load_teacher
from training.tracking import Log
from training.watch import Both, Meter, Screen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from model.encoder import Classifier
    from model.manifest import Manifest
    from model.scores import Array, ProblemType
    from model.tokens import Row, Tokenizer
    from training.build import TrainConfig
    from training.candidates import Tried
    from training.data import Dataset
    from training.evaluate import Evaluation
    from training.group import Alone
    from training.guide import Guide
    from training.recipe import Recipe
    from training.watch import Watch

    Outcome = tuple[list[dict[str, Any]], dict[str, Any]]
    Loop = Callable[..., Outcome]

CHECKPOINT_EVERY_S = 60.0


@dataclass(frozen=True)
class Run:
    """What the loop works on; `start` is the hash of the encoder of --init.

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
    teacher: Array | None = None
    guide: Guide | None = None
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


def train(
    config: TrainConfig,
    train_set: Dataset,
    dev_set: Dataset | None,
    test_set: Dataset | None,
    out: Path,
    *,
    init: Path | None = None,
    teacher: Path | None = None,
    budget_s: float = math.inf,
    device: torch.device,
    resume: bool = False,
    strict: bool = False,
    command: str = "",
    log: Log | None = None,
    on_step: Callable[[int], object] = lambda step: None,
    loop: Loop | None = None,
    search: Callable[[Run], tuple[TrainConfig, list[Tried]]] | None = None,
    labels: Sequence[str] | None = None,
) -> tuple[Manifest, dict[str, Evaluation]]:
    """Train on labelled text and write the bundle to `out`; returns its manifest and the held-out figures.

    Without a dev set, a tenth of the training texts is held out by hash. `teacher` is a bundle with the same labels,
    whose scores are learned beside the labels. The loop ends after budget_s seconds at the latest. `resume` continues
    from `out`.checkpoint and gives what the uninterrupted run would have given, where there is no budget. With
    `strict`, data with a serious finding is refused (training/health.py). `log` hears the figures
    (training/tracking.py), on_step each step done. `search` chooses the settings (training/search.py). `loop` is fit(),
    or runs it somewhere else (training/distributed.py). `labels` are all that the model is to have, each at its id;
    without, those of the training rows, sorted.
    Raises ValueError (DataError, BundleError) naming what is wrong before anything is trained.
    """
    if out.exists():
        raise ValueError(f"a bundle is never overwritten, remove it or choose another --out: {out}")
    parts = parts_of(train_set, dev_set, test_set, config.out_of_scope_label, labels)
    labels = labels or parts["train"].label_names
    health = check(parts, config.longest)
    print(health.table(), file=sys.stderr)
    if strict:
        health.refuse()
    keep_freed_memory()
    knows_more = load_teacher(teacher, parts["train"], labels) if teacher else None
    run = replace(set_up(config, parts, init, device, labels), budget_s=budget_s)
    line = fit_line(parts["train"], parts["dev"], labels)
    run = taught(run, line, knows_more)
    del knows_more  # its weights, which a device would keep until the end
    tried: list[Tried] = []
    if search is not None:
        best, tried = search(run)
        found = set_up(best, parts, init, device, labels)
        run = replace(found, teacher=run.teacher, guide=run.guide, budget_s=budget_s)
    print(run_line(run), file=sys.stderr)
    checkpoints = [out.with_name(f"{out.name}{kind}.checkpoint") for kind in ("", ".augmented")]
    log = log or Log()
    log.open(run.settings)
    started = time.monotonic()
    watch = Both(Screen(on_step), log)
    run, (history, cost) = best_of(without_and_with(run), loop or fit, checkpoints, resume=resume, watch=watch)
    seconds = round(time.monotonic() - started)
    made_by = origin(run, parts, init, teacher, command) | {
        "search": [dataclasses.asdict(each) for each in tried],
        "seconds": seconds,
        "cost": cost,
    }
    held_out = {name: part for name, part in parts.items() if name != "train"}
    result = finish(run, line, held_out, out, history, made_by, {"report/data.json": health.to_json()})
    log.end(result[0])
    for checkpoint in checkpoints:
        shutil.rmtree(checkpoint, ignore_errors=True)
    return result


def origin(
    run: Run, parts: dict[str, Dataset], init: Path | None, teacher: Path | None, command: str
) -> dict[str, Any]:
    """What a bundle keeps of where it comes from: enough to make it again."""
    return {
        "heed": importlib.metadata.version("heed"),
        "command": command,
        "init": {"folder": init.resolve().name, "version": run.start} if init else None,
        "teacher": {"folder": teacher.resolve().name, "version": content_hash(teacher)} if teacher else None,
        "config": run.settings,
        "data": {
            name: {"file": dataset.name, "sha256": dataset.sha256, "rows": len(dataset.examples) + len(dataset.outside)}
            for name, dataset in parts.items()
        },
    }


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
    labels = labels or train_set.label_names
    if len(labels) < 2 and train_set.problem_type != MULTI:
        raise DataError(f"{train_set.name}: all rows have one label, which leaves nothing to learn: {labels[0]}")
    held_out = {"dev": dev_set} | ({"test": test_set} if test_set else {})
    for dataset in held_out.values():
        check_problem(dataset, train_set.problem_type)
        targets(dataset, labels)  # refuses a label that is not in the training data
    if outside_label and not any(dataset.outside for dataset in (train_set, *held_out.values())):
        raise DataError(f"{train_set.name}: no row has the out_of_scope_label: {outside_label}")
    return {"train": train_set} | held_out


def fit(run: Run, checkpoint: Path | None, *, resume: bool, watch: Watch, group: Alone = ALONE) -> Outcome:
    """The loop: leaves the best weights in the classifier, returns a row of figures per epoch, and what it cost.

    In a group, all of which run this, the first evaluates and writes the checkpoint, where there is to be one.
    """
    config, recipe, model = run.config, run.recipe, run.classifier
    network = group.network(model)
    rows, dev_rows = run.training_rows(), run.rows(run.dev)
    outside = run.outside_rows(run.train) if config.outlier_exposure else []
    aim = Aim(run)
    lengths = rows.lengths
    plans = [
        epoch_batches(
            lengths, batch_rows=recipe.batch_rows, batch_tokens=config.batch_tokens, seed=config.seed, epoch=e
        )
        for e in range(recipe.epochs)
    ]
    total_steps = sum(map(len, plans))
    optimizer = make_optimizer(model, config.weight_decay, layer_decay=config.layer_decay)
    at, best = Progress(), None
    identity = identity_of(run, rows, dev_rows, outside)
    if resume and checkpoint:
        at, best = load_checkpoint(checkpoint, model, optimizer, identity)
    watch.begin(at)
    group.vary(config.seed, at.step)

    started = time.monotonic() - at.seconds
    saved_at = epoch_start = time.monotonic()
    share = share_of(run, at, total_steps)
    while at.epoch < recipe.epochs and at.epoch - at.best_epoch <= config.patience and share < 1:
        plan = plans[at.epoch]
        meter = Meter(run.device, at, len(plan), recipe.epochs)
        model.train()
        for indices in plan[at.batch :]:
            read = indices * (2 if config.r_drop else 1)
            seed = config.seed, at.step
            shown = edit_rows([rows[i] for i in read], config.edits, run.tokenizer.special_ids, seed)
            shown += draw(outside, recipe.batch_rows, seed)
            batch = make_batch(group.share(shown), "padded", model.config.pad_id, model.config.first_position)
            mask_tokens(batch, recipe.token_dropout, run.tokenizer)
            meter.start()
            with run.autocast():
                logits = group.whole(network(batch.to(run.device)), len(shown))
            loss = aim.loss(logits[: len(read)], read)
            loss = loss + config.outlier_exposure * exposure_loss(logits[len(read) :])
            loss_value = loss.item()
            if not math.isfinite(loss_value):
                raise ValueError(f"the loss is no number at step {at.step + 1}, try --set lr= lower than: {recipe.lr}")
            loss.backward()
            clip_grad_norm_(model.parameters(), config.max_grad_norm)
            lr = recipe.lr * lr_scale(share, config.warmup, config.decay)
            set_lr(optimizer, lr)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            meter.stop()
            at.after_step(loss_value, sum(lengths[i] for i in indices))
            watch.step(meter.pace(at, loss_value, lr))
            [at.seconds] = group.agree(time.monotonic() - started)
            share = share_of(run, at, total_steps)
            if share >= 1:
                break
            if group.is_first and checkpoint and time.monotonic() - saved_at > CHECKPOINT_EVERY_S:
                save_checkpoint(checkpoint, model, best, optimizer, at, identity)
                saved_at = time.monotonic()

        dev = DevFigures(*group.agree(*(dev_figures(run, dev_rows) if group.is_first else (0.0, 0.0, 0.0))))
        if at.after_epoch(dev, time.monotonic() - epoch_start):
            best = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        epoch_start = time.monotonic()
        watch.epoch(at)
        if group.is_first and checkpoint:
            save_checkpoint(checkpoint, model, best, optimizer, at, identity)

    if best is not None:
        model.load_state_dict(best)
    return at.history, training_cost(run, at.history)


def share_of(run: Run, at: Progress, total_steps: int) -> float:
    """Share of the run that is over in the middle of the next step, by its steps or its budget."""
    return max((at.step + 0.5) / total_steps, at.seconds / run.budget_s)


def identity_of(run: Run, rows: Sequence[Row], dev_rows: Sequence[Row], outside: Sequence[Row]) -> dict[str, Any]:
    """What must be equal for a run to be the continuation of another: settings, rows as encoded, labels, start."""

    def both(part: Sequence[Row], dataset: Dataset) -> list[str]:
        return [digest(part), hashlib.sha256(targets(dataset, run.labels).tobytes()).hexdigest()]

    return {
        "config": run.settings | {"precision": run.precision},
        "teacher": None if run.teacher is None else hashlib.sha256(run.teacher.tobytes()).hexdigest(),
        "guide": None if run.guide is None else hashlib.sha256(run.guide.truth.tobytes()).hexdigest(),
        "progress": [field.name for field in dataclasses.fields(Progress)],
        "labels": run.labels,
        "tokenizer": hashlib.sha256(run.tokenizer.to_json().encode()).hexdigest(),
        "training data": both(rows, run.train),
        "dev data": both(dev_rows, run.dev),
        "rows out of scope": digest(outside),
        "encoder": dataclasses.asdict(run.classifier.config) | {"start": run.start},
    }


def dev_figures(run: Run, rows: Sequence[Row]) -> DevFigures:
    """Accuracy and loss on dev, of which the loss chooses the best epoch; macro-F1 does where multi-label.

    Of two epochs the more accurate one is often so by chance; the loss tells better which will be right more often on
    other texts (benchmarks/RESULTS.md, "How good it gets"). It is that at the best temperature over 1: what has learned
    its rows by heart is too sure, which calibration mends. Under 1, an epoch that is right about a small dev set would
    have no loss, whatever it knows.
    """
    with run.autocast():
        logits = forward_rows(run.classifier, rows)
    truth = targets(run.dev, run.labels)
    if run.problem_type == MULTI:
        fitted = calibrate(logits, truth, run.config.coverage, run.config.false_alarms)
        figures = score(probabilities(logits, MULTI, fitted), truth, run.labels, fitted)
        loss = loss_of(torch.from_numpy(logits), torch.from_numpy(truth), is_multi=True).item()
        return DevFigures(figures.macro_f1.value, loss, merit=figures.macro_f1.value)
    weight, _ = fit_weights([logits], indicator(run.dev, run.labels), SINGLE)
    loss = loss_of(torch.from_numpy(logits) * min(1.0, weight), torch.from_numpy(truth), is_multi=False).item()
    return DevFigures(float((logits.argmax(axis=1) == truth).mean()), loss, merit=-loss)
