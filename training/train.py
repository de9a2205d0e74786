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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from model.batch import make_batch
from model.bundle import content_hash
from model.device import has_native_bf16
from model.forward import forward_rows
from model.scores import MULTI, Calibration, probabilities
from training.build import build
from training.calibrate import calibrate
from training.checkpoint import Progress, load_checkpoint, save_checkpoint
from training.data import DataError, epoch_batches, set_aside, split, targets
from training.evaluate import check_problem, score
from training.exposure import draw, exposure_loss
from training.finish import finish
from training.report import epoch_line, run_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor

    from model.encoder import Classifier
    from model.manifest import Manifest
    from model.scores import Array, ProblemType
    from model.tokens import Row, Tokenizer
    from training.build import TrainConfig
    from training.data import Dataset
    from training.evaluate import Evaluation

CHECKPOINT_EVERY_S = 60.0


@dataclass(frozen=True)
class Run:
    """What the loop works on; `peak` is the highest learning rate, `start` the hash of the encoder of --init."""

    config: TrainConfig
    classifier: Classifier
    tokenizer: Tokenizer
    labels: list[str]
    train: Dataset
    dev: Dataset
    device: torch.device
    peak: float
    start: str | None

    @property
    def problem_type(self) -> ProblemType:
        """One label a text, or any number."""
        return self.train.problem_type

    @property
    def in_bf16(self) -> bool:
        """Whether matrix products are in bf16: as the settings say, else where the device has it natively."""
        if self.config.precision == "auto":
            return has_native_bf16(self.device)
        return self.config.precision == "bf16"

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.in_bf16)

    def rows(self, dataset: Dataset) -> list[Row]:
        """The texts as token ids."""
        return self.tokenizer.encode(dataset.texts, self.max_tokens)

    def outside_rows(self, dataset: Dataset) -> list[Row]:
        """Those that are of no class."""
        return self.tokenizer.encode(dataset.outside, self.max_tokens)

    @property
    def max_tokens(self) -> int:
        """Longest row, as the settings and the encoder allow."""
        return min(self.config.max_tokens, self.classifier.config.max_tokens)


def train(
    config: TrainConfig,
    train_set: Dataset,
    dev_set: Dataset | None,
    test_set: Dataset | None,
    out: Path,
    *,
    init: Path | None = None,
    device: torch.device,
    resume: bool = False,
    command: str = "",
    on_step: Callable[[int], object] = lambda step: None,
) -> tuple[Manifest, dict[str, Evaluation]]:
    """Train on labelled text and write the bundle to `out`; returns its manifest and the held-out figures.

    Without a dev set, a tenth of the training texts is held out by hash. `resume` continues from
    `out`.checkpoint and gives what the uninterrupted run would have given. on_step hears each step done.
    Raises ValueError (DataError, BundleError) naming what is wrong before anything is trained.
    """
    if out.exists():
        raise ValueError(f"a bundle is never overwritten, remove it or choose another --out: {out}")
    if dev_set is None:
        train_set, dev_set = split(train_set)
    train_set, dev_set = (set_aside(dataset, config.out_of_scope_label) for dataset in (train_set, dev_set))
    test_set = test_set and set_aside(test_set, config.out_of_scope_label)
    labels = train_set.label_names
    if len(labels) < 2 and train_set.problem_type != MULTI:
        raise DataError(f"{train_set.name}: all rows have one label, which leaves nothing to learn: {labels[0]}")
    held_out = {"dev": dev_set} | ({"test": test_set} if test_set else {})
    for dataset in held_out.values():
        check_problem(dataset, train_set.problem_type)
        targets(dataset, labels)  # refuses a label that is not in the training data
    if config.out_of_scope_label and not any(dataset.outside for dataset in (train_set, *held_out.values())):
        raise DataError(f"{train_set.name}: no row has the out_of_scope_label: {config.out_of_scope_label}")

    torch.manual_seed(config.seed)
    classifier, tokenizer = build(config, train_set, len(labels), init)
    peak = config.lr or (1e-4 if init else 5e-4)
    start = content_hash(init) if init else None
    run = Run(config, classifier.to(device), tokenizer, labels, train_set, dev_set, device, peak, start)
    print(run_line(run), file=sys.stderr)
    checkpoint = out.with_name(out.name + ".checkpoint")
    started = time.monotonic()
    history = fit(run, checkpoint, resume=resume, on_step=on_step)

    made_by = {
        "heed": importlib.metadata.version("heed"),
        "command": command,
        "init": {"folder": init.resolve().name, "version": start} if init else None,
        "config": dataclasses.asdict(config),
        "seconds": round(time.monotonic() - started),
        "data": {
            name: {"file": dataset.name, "sha256": dataset.sha256, "rows": len(dataset.examples) + len(dataset.outside)}
            for name, dataset in ({"train": train_set} | held_out).items()
        },
    }
    result = finish(run, held_out, out, history, made_by)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return result


def fit(run: Run, checkpoint: Path, *, resume: bool, on_step: Callable[[int], object]) -> list[dict[str, float]]:
    """The loop: leaves the best weights in the classifier, returns a row of figures per epoch."""
    config, model = run.config, run.classifier
    rows, dev_rows = run.rows(run.train), run.rows(run.dev)
    outside = run.outside_rows(run.train)
    truth = torch.from_numpy(targets(run.train, run.labels)).to(run.device)
    lengths = [len(row.ids) for row in rows]
    plans = [
        epoch_batches(
            lengths, batch_rows=config.batch_rows, batch_tokens=config.batch_tokens, seed=config.seed, epoch=e
        )
        for e in range(config.epochs)
    ]
    total_steps = sum(map(len, plans))
    optimizer = make_optimizer(model, config)
    at, best = Progress(), None
    identity = identity_of(run, rows, dev_rows, outside)
    if resume:
        at, best = load_checkpoint(checkpoint, model, optimizer, identity)

    saved_at = epoch_start = time.monotonic()
    while at.epoch < config.epochs and at.epoch - at.best_epoch <= config.patience:
        plan = plans[at.epoch]
        model.train()
        for indices in _bar(plan, at, config.epochs):
            shown = [rows[i] for i in indices] + draw(outside, at.step, config)
            batch = make_batch(shown, "padded", model.config.pad_id, model.config.first_position)
            with run.autocast():
                logits = model(batch.to(run.device))
            loss = loss_of(logits[: len(indices)], truth[indices], config.label_smoothing)
            loss = loss + config.outlier_exposure * exposure_loss(logits[len(indices) :])
            loss_value = loss.item()
            if not math.isfinite(loss_value):
                raise ValueError(f"the loss is no number at step {at.step + 1}, try --set lr= lower than: {run.peak}")
            loss.backward()
            clip_grad_norm_(model.parameters(), config.max_grad_norm)
            set_lr(optimizer, run.peak * lr_scale(at.step, total_steps, config.warmup))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            at.after_step(loss_value, sum(lengths[i] for i in indices))
            on_step(at.step)
            if time.monotonic() - saved_at > CHECKPOINT_EVERY_S:
                save_checkpoint(checkpoint, model, best, optimizer, at, identity)
                saved_at = time.monotonic()

        with run.autocast():
            logits_dev = forward_rows(model, dev_rows)
        dev_score, dev_loss = dev_figures(run, logits_dev)
        if dev_score > at.best_score:
            best = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        at.after_epoch(len(plan), dev_score, dev_loss, time.monotonic() - epoch_start)
        epoch_start = time.monotonic()
        print(epoch_line(at), file=sys.stderr)
        save_checkpoint(checkpoint, model, best, optimizer, at, identity)

    if best is not None:
        model.load_state_dict(best)
    return at.history


def identity_of(run: Run, rows: list[Row], dev_rows: list[Row], outside: list[Row]) -> dict[str, Any]:
    """What must be equal for a run to be the continuation of another: settings, rows as encoded, labels, start."""

    def digest(part: list[Row], dataset: Dataset) -> str:
        content = repr([row.ids for row in part]).encode() + targets(dataset, run.labels).tobytes()
        return hashlib.sha256(content).hexdigest()

    return {
        "config": dataclasses.asdict(run.config),
        "labels": run.labels,
        "tokenizer": hashlib.sha256(run.tokenizer.to_json().encode()).hexdigest(),
        "training data": digest(rows, run.train),
        "dev data": digest(dev_rows, run.dev),
        "rows out of scope": hashlib.sha256(repr([row.ids for row in outside]).encode()).hexdigest(),
        "encoder": dataclasses.asdict(run.classifier.config) | {"bf16": run.in_bf16, "start": run.start},
    }


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with decay on matrices only (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101)."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The same rate for all groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def lr_scale(step: int, total: int, warmup: float) -> float:
    """Share of the peak rate at a step counted from 0: a line up, then a line down to 0."""
    rising = warmup * total
    if step < rising:
        return (step + 1) / (rising + 1)
    return (total - step) / max(total - rising, 1)


def loss_of(logits: Tensor, truth: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy over class ids (B,), or a binary one per label over an indicator (B, C)."""
    if truth.dim() == 2:
        return F.binary_cross_entropy_with_logits(logits, truth)
    return F.cross_entropy(logits, truth, label_smoothing=smoothing)


def dev_figures(run: Run, logits: Array) -> tuple[float, float]:
    """What chooses the best epoch (accuracy; macro-F1 at fitted thresholds where multi-label), and the loss, on dev."""
    truth = targets(run.dev, run.labels)
    is_multi = run.problem_type == MULTI
    fitted = calibrate(logits, truth, run.config.coverage, run.config.false_alarms) if is_multi else Calibration()
    figures = score(probabilities(logits, run.problem_type, fitted), truth, run.labels, fitted)
    chosen = figures.macro_f1 if is_multi else figures.accuracy
    return chosen.value, loss_of(torch.from_numpy(logits), torch.from_numpy(truth), 0.0).item()


def _bar(plan: list[list[int]], at: Progress, epochs: int) -> Iterable[list[int]]:
    """The batches of an epoch that are left, under a progress bar where stderr is a terminal."""
    name = f"epoch {at.epoch + 1}/{epochs}"
    return tqdm(plan[at.batch :], name, len(plan), initial=at.batch, unit="batch", leave=False, disable=None)
