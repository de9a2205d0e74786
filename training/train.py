"""Labelled text -> bundle: the settings, the loop, and what is fitted and measured after it.

Reads: TrainConfig -> train() -> build -> fit (the loop) -> finish (calibration, metrics, bundle).
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import shutil
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from model.batch import make_batch
from model.bundle import WEIGHT_TYPES, Manifest, load_encoder, now, save_bundle
from model.device import has_native_bf16
from model.encoder import Classifier, EncoderConfig
from model.families import load_weights, modernbert_defaults
from model.forward import forward_rows
from model.scores import (
    MIN_CALIBRATION_ROWS,
    MULTI,
    Calibration,
    fit_quantile,
    fit_temperature,
    probabilities,
)
from training.checkpoint import Progress, load_checkpoint, save_checkpoint
from training.data import DataError, epoch_batches, split, targets
from training.evaluate import check_problem, score
from training.report import card, epoch_line, headline
from training.tokenizer import PAD_ID, learn_tokenizer, shrink_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor

    from model.scores import Array, ProblemType
    from model.tokens import Row, Tokenizer
    from training.data import Dataset
    from training.evaluate import Evaluation

COVERAGE = 0.9  # promised by the conformal label sets
CHECKPOINT_EVERY_S = 60.0


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that a run is made of besides its data. None: the encoder of --init decides."""

    family: Literal["bert", "modernbert"] = "bert"  # from scratch
    tokenizer: Literal["wordpiece", "bpe"] = "wordpiece"  # from scratch
    vocab_size: int | None = None  # from scratch 16,000; with --init, shrink its WordPieces to this many
    layers: int | None = None  # from scratch 4; with --init, keep the first so many
    width: int = 256  # from scratch, as the next two
    heads: int = 4
    feed_forward: int = 1024
    max_tokens: int = 256  # a longer text is cut
    epochs: int = 3
    batch_rows: int = 32
    batch_tokens: int = 4096  # padded tokens of a batch, at most
    lr: float | None = None  # peak; from scratch 5e-4, with --init 1e-4
    warmup: float = 0.1  # share of the steps over which the rate rises; then it falls to 0 in a line
    weight_decay: float = 0.01  # not on biases and norms
    dropout: float = 0.1
    label_smoothing: float = 0.0
    max_grad_norm: float = 1.0
    patience: int = 2  # epochs without a better dev score before stopping
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # autocast
    weights: Literal["fp32", "fp16", "bf16"] = "fp32"  # as stored in the bundle
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "epochs", "batch_rows", "batch_tokens", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is not at least 1: {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is not in [0, 1): {self.warmup}")
        if self.batch_tokens < self.max_tokens:
            raise ValueError(
                f"batch_tokens does not hold one text of max_tokens={self.max_tokens}: {self.batch_tokens}"
            )


@dataclass(frozen=True)
class Run:
    """What the loop works on; `peak` is the highest learning rate."""

    config: TrainConfig
    classifier: Classifier
    tokenizer: Tokenizer
    labels: list[str]
    train: Dataset
    dev: Dataset
    device: torch.device
    peak: float

    @property
    def problem_type(self) -> ProblemType:
        """One label a text, or any number."""
        return self.train.problem_type

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 for the matrix products where the settings and the device have it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=use_bf16(self.config, self.device))

    def rows(self, dataset: Dataset) -> list[Row]:
        """The texts as token ids."""
        return self.tokenizer.encode(dataset.texts, self.max_tokens)

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
    labels = train_set.label_names
    if len(labels) < 2 and train_set.problem_type != MULTI:
        raise DataError(f"{train_set.name}: all rows have one label, which leaves nothing to learn: {labels[0]}")
    held_out = {"dev": dev_set} | ({"test": test_set} if test_set else {})
    for dataset in held_out.values():
        check_problem(dataset, train_set.problem_type)
        targets(dataset, labels)  # refuses a label that is not in the training data

    torch.manual_seed(config.seed)
    classifier, tokenizer = build(config, train_set, len(labels), init)
    peak = config.lr or (1e-4 if init else 5e-4)
    run = Run(config, classifier.to(device), tokenizer, labels, train_set, dev_set, device, peak)
    checkpoint = out.with_name(out.name + ".checkpoint")
    started = time.monotonic()
    history = fit(run, checkpoint, resume=resume, on_step=on_step)

    made_by = {
        "heed": importlib.metadata.version("heed"),
        "command": command,
        "config": dataclasses.asdict(config),
        "seconds": round(time.monotonic() - started),
        "data": {
            name: {"file": dataset.name, "sha256": dataset.sha256, "rows": len(dataset.examples)}
            for name, dataset in ({"train": train_set} | held_out).items()
        },
    }
    result = finish(run, held_out, out, history, made_by)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return result


def build(config: TrainConfig, train_set: Dataset, num_labels: int, init: Path | None) -> tuple[Classifier, Tokenizer]:
    """The network and its tokenizer, from scratch or from the encoder in `init`."""
    if init is None:
        tokenizer = learn_tokenizer(train_set.texts, config.tokenizer, config.vocab_size or 16_000)
        return Classifier(_from_scratch(config, tokenizer.vocab_size), num_labels), tokenizer
    encoder, weights, tokenizer = load_encoder(init, layers=config.layers)
    classifier = Classifier(dataclasses.replace(encoder, dropout=config.dropout), num_labels)
    load_weights(classifier, weights, bare=True)
    if config.vocab_size and config.vocab_size < tokenizer.vocab_size:
        tokenizer, kept = shrink_tokenizer(tokenizer, train_set.texts, config.vocab_size)
        classifier = _with_vocabulary(classifier, kept, num_labels)
    return classifier, tokenizer


def _from_scratch(config: TrainConfig, vocab_size: int) -> EncoderConfig:
    layers = config.layers or 4
    family: dict[str, Any] = modernbert_defaults(layers) if config.family == "modernbert" else {}
    sizes = {
        "vocab_size": vocab_size,
        "width": config.width,
        "layers": layers,
        "heads": config.heads,
        "feed_forward": config.feed_forward,
        "max_tokens": config.max_tokens,
        "dropout": config.dropout,
        "pad_id": PAD_ID,
    }
    return EncoderConfig(**(family | sizes))


def _with_vocabulary(classifier: Classifier, kept: Tensor, num_labels: int) -> Classifier:
    """The same network with only the `kept` rows of its token embedding."""
    smaller = Classifier(dataclasses.replace(classifier.config, vocab_size=len(kept)), num_labels)
    state = classifier.state_dict()
    name = "encoder.embeddings.tokens.weight"
    smaller.load_state_dict(state | {name: state[name][kept]})
    return smaller


def fit(run: Run, checkpoint: Path, *, resume: bool, on_step: Callable[[int], object]) -> list[dict[str, float]]:
    """The loop: leaves the best weights in the classifier, returns a row of figures per epoch."""
    config, model = run.config, run.classifier
    rows, dev_rows = run.rows(run.train), run.rows(run.dev)
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
    identity = {"config": dataclasses.asdict(config), "data": run.train.sha256, "rows": len(rows)}
    if resume:
        at, best = load_checkpoint(checkpoint, model, optimizer, identity)

    saved_at = epoch_start = time.monotonic()
    while at.epoch < config.epochs and at.epoch - at.best_epoch <= config.patience:
        plan = plans[at.epoch]
        model.train()
        for indices in _bar(plan, at, config.epochs):
            batch = make_batch([rows[i] for i in indices], "padded", model.config.pad_id)
            with run.autocast():
                logits = model(batch.to(run.device))
            loss = loss_of(logits, truth[indices], config.label_smoothing)
            loss.backward()
            clip_grad_norm_(model.parameters(), config.max_grad_norm)
            set_lr(optimizer, run.peak * lr_scale(at.step, total_steps, config.warmup))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            at.after_step(loss.item(), sum(lengths[i] for i in indices))
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


def use_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Whether to autocast: as the settings say, else where the device multiplies bf16 natively."""
    if config.precision == "auto":
        return has_native_bf16(device)
    return config.precision == "bf16"


def dev_figures(run: Run, logits: Array) -> tuple[float, float]:
    """What chooses the best epoch (accuracy; macro-F1 where multi-label), and the loss, on dev."""
    truth = targets(run.dev, run.labels)
    scores = probabilities(logits, run.problem_type)
    figures = score(scores, truth, run.labels, Calibration())
    chosen = figures.macro_f1 if run.problem_type == MULTI else figures.accuracy
    return chosen.value, loss_of(torch.from_numpy(logits), torch.from_numpy(truth), 0.0).item()


def _bar(plan: list[list[int]], at: Progress, epochs: int) -> Iterable[list[int]]:
    """The batches of an epoch that are left, under a progress bar on stderr."""
    name = f"epoch {at.epoch + 1}/{epochs}"
    return tqdm(plan[at.batch :], name, len(plan), initial=at.batch, unit="batch", mininterval=0.5, leave=False)


def finish(
    run: Run,
    held_out: dict[str, Dataset],
    out: Path,
    history: list[dict[str, float]],
    made_by: dict[str, Any],
) -> tuple[Manifest, dict[str, Evaluation]]:
    """Round the weights as they will be stored, calibrate on dev, measure on held-out data, write the bundle."""
    stored = WEIGHT_TYPES[run.config.weights]
    run.classifier.to("cpu", stored).float().eval()
    dev_logits = forward_rows(run.classifier, run.rows(run.dev))
    calibration = calibrate(dev_logits, run)
    evaluations = {}
    for name, dataset in held_out.items():
        logits = dev_logits if name == "dev" else forward_rows(run.classifier, run.rows(dataset))
        scores = probabilities(logits, run.problem_type, calibration.temperature)
        evaluations[name] = score(scores, targets(dataset, run.labels), run.labels, calibration)
    manifest = Manifest(
        name=out.name,
        version="",  # save_bundle knows it
        created=now(),
        labels=run.labels,
        problem_type=run.problem_type,
        max_tokens=run.max_tokens,
        calibration=calibration,
        made_by=made_by,
        metrics={name: headline(e) for name, e in evaluations.items()},
        reference=reference_statistics(run, dev_logits, calibration),
    )
    files = {
        "README.md": card(manifest, evaluations, history),
        "report/metrics.json": json.dumps(
            {"history": history, **{k: e.to_dict() for k, e in evaluations.items()}},
            indent=2,
            ensure_ascii=False,
        )
        + "\n",
    }
    manifest = save_bundle(out, run.classifier, run.tokenizer, manifest, weights=run.config.weights, files=files)
    return manifest, evaluations


def calibrate(dev_logits: Array, run: Run) -> Calibration:
    """Temperature and conformal quantile on dev; nothing where there are too few rows, or several labels."""
    truth = targets(run.dev, run.labels)
    if truth.ndim == 2 or len(truth) < MIN_CALIBRATION_ROWS:
        return Calibration()
    temperature = fit_temperature(dev_logits, truth)
    scores = probabilities(dev_logits, run.problem_type, temperature)
    return Calibration(temperature=temperature, coverage=COVERAGE, quantile=fit_quantile(scores, truth, COVERAGE))


def reference_statistics(run: Run, dev_logits: Array, calibration: Calibration) -> dict[str, Any]:
    """What answers look like on data like the training data; drift is measured against it."""
    scores = probabilities(dev_logits, run.problem_type, calibration.temperature)
    lengths = [len(row.ids) for row in run.rows(run.dev)]
    deciles = np.linspace(0, 1, 11)
    return {
        "n": len(scores),
        "label_share": dict(
            zip(
                run.labels,
                (np.bincount(scores.argmax(1), minlength=scores.shape[1]) / len(scores)).tolist(),
                strict=True,
            )
        ),
        "confidence_deciles": np.quantile(scores.max(1), deciles).tolist(),
        "tokens_deciles": np.quantile(lengths, deciles).tolist(),
    }
