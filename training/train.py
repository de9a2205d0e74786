"""Labelled text -> bundle: train() checks and sets up, fit() is the loop.

Before it: run.py, build.py (data, settings, network, tokenizer). After it: finish.py (calibration, figures, bundle).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import shutil
import sys
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils import clip_grad_norm_

from model.batch import make_batch
from model.device import keep_freed_memory
from model.forward import forward_rows
from model.manifest import content_hash
from model.scores import MULTI, judge
from training.adversarial import backward
from training.augment import edit_rows, mask_tokens
from training.backoff import best_of, without_and_with
from training.calibrate import best_temperature, calibrate, cross_judge
from training.checkpoint import DevFigures, Progress, load_checkpoint, save_checkpoint
from training.cost import training_cost
from training.data import epoch_batches, targets
from training.exposure import draw
from training.finish import finish
from training.group import ALONE
from training.guide import taught
from training.health import check
from training.linear import agreement, fit_line
from training.loss import Aim, loss_of
from training.ngrams import add_ngrams
from training.optimizer import lr_scale, make_optimizer, set_lr
from training.report import run_line
from training.rows import digest
from training.run import origin, parts_of, set_up
from training.teacher import load_teacher
from training.tracking import Log
from training.watch import Both, Meter, Screen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from model.batch import Batch
    from model.manifest import Manifest
    from model.tokens import Row
    from training.build import TrainConfig
    from training.candidates import Tried
    from training.data import Dataset
    from training.evaluate import Evaluation
    from training.group import Alone
    from training.linear import LinearLine
    from training.run import Run
    from training.watch import Watch

    Outcome = tuple[list[dict[str, Any]], dict[str, Any]]
    Loop = Callable[..., Outcome]

CHECKPOINT_EVERY_S = 60.0
KEPT = ("taught_by", "teacher", "guide", "heard", "budget_s")  # of a run whose settings a search has changed


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
    run, line = prepared(config, parts, init, teacher, device, labels)
    run = replace(run, budget_s=budget_s)
    tried: list[Tried] = []
    if search is not None:
        best, tried = search(run)
        run = replace(set_up(best, parts, init, device, labels), **{name: getattr(run, name) for name in KEPT})
    print(run_line(run), file=sys.stderr)
    checkpoints = [out.with_name(f"{out.name}{kind}.checkpoint") for kind in ("", ".augmented")]
    log = log or Log()
    log.open(run.settings)
    started = time.monotonic()
    watch = Both(Screen(on_step), log)
    run, (history, cost) = best_of(without_and_with(run), loop or fit, checkpoints, resume=resume, watch=watch)
    ngrams = add_ngrams(run) if run.config.ngrams else None
    seconds = round(time.monotonic() - started)
    made_by = origin(run, parts, init, teacher, command) | {
        "search": [dataclasses.asdict(each) for each in tried],
        "ngrams": ngrams,
        "seconds": seconds,
        "cost": cost,
    }
    held_out = {name: part for name, part in parts.items() if name != "train"}
    result = finish(run, line, held_out, out, history, made_by, {"report/data.json": health.to_json()})
    log.end(result[0])
    for checkpoint in checkpoints:
        shutil.rmtree(checkpoint, ignore_errors=True)
    return result


def prepared(
    config: TrainConfig,
    parts: dict[str, Dataset],
    init: Path | None,
    teacher: Path | None,
    device: torch.device,
    labels: Sequence[str],
) -> tuple[Run, LinearLine]:
    """The run with what it is taught, and the linear line. A teacher's weights are gone when it begins."""
    knows_more = load_teacher(teacher, parts["train"], labels) if teacher else None
    run = set_up(config, parts, init, device, labels)
    line = fit_line(parts["train"], parts["dev"], labels)
    taught_by = content_hash(teacher) if teacher else None
    return replace(taught(run, line, knows_more), taught_by=taught_by), line


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
            lengths, batch_rows=recipe.batch_rows, batch_tokens=recipe.batch_tokens, seed=config.seed, epoch=e
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

    def read_batch(batch: Batch, indices: Sequence[int], rows: int) -> Tensor:
        with run.autocast():
            logits = group.whole(network(batch), rows)
        return aim.loss(logits, indices)

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
            batch = batch.to(run.device)
            reading = partial(read_batch, batch, read, len(shown))
            loss_value = backward(reading, batch, model.encoder.embeddings, recipe.adversarial).item()
            if not math.isfinite(loss_value):
                raise ValueError(f"the loss is no number at step {at.step + 1}, try --set lr= lower than: {recipe.lr}")
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

    if best is None:
        raise ValueError(f"no epoch came to its end, give more --budget than the seconds: {run.budget_s:g}")
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
        "teacher": run.taught_by,
        "progress": [field.name for field in dataclasses.fields(Progress)],
        "labels": run.labels,
        "tokenizer": hashlib.sha256(run.tokenizer.to_json().encode()).hexdigest(),
        "training data": both(rows, run.train),
        "dev data": both(dev_rows, run.dev),
        "rows out of scope": digest(outside),
        "encoder": dataclasses.asdict(run.classifier.config) | {"start": run.start},
    }


def dev_figures(run: Run, rows: Sequence[Row]) -> DevFigures:
    """Accuracy and loss on dev, or macro-F1 where multi-label, and the merit that chooses the best epoch.

    Of two epochs the more accurate one is often so by chance; the loss tells better which will be right more often on
    other texts (benchmarks/RESULTS.md, "How good it gets"). It is that at the best temperature over 1: what has learned
    its rows by heart is too sure, which calibration mends. Under 1, an epoch that is right about a small dev set would
    have no loss, whatever it knows. Macro-F1 is that of thresholds fitted on other rows of dev.
    """
    with run.autocast():
        logits = forward_rows(run.classifier, rows)
    truth = targets(run.dev, run.labels)
    z, y = torch.from_numpy(logits), torch.from_numpy(truth)
    loss = loss_of(z, y, is_multi=run.problem_type == MULTI).item()
    if run.problem_type == MULTI:
        promised = run.config.coverage, run.config.false_alarms
        judged = cross_judge(logits, truth, *promised) or judge(logits, MULTI, calibrate(logits, truth, *promised))
        assert judged.sets is not None  # which it may be of one label a text
        f1 = agreement(judged.sets, truth > 0)
        return DevFigures(f1, loss, merit=f1 - 1)
    softened = loss_of(z / max(1.0, best_temperature(logits, truth)), y, is_multi=False).item()
    return DevFigures(float((logits.argmax(axis=1) == truth).mean()), loss, merit=-softened)
