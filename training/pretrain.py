"""Unlabelled text -> encoder, by masked language modelling: pretrain() sets up, fit() is the loop.

Words are hidden and guessed from what is around them; there is no next-sentence task. Before it: pretrain_build.py
(settings, network, tokenizer), corpus.py (rows on disk) and masking.py (batches). After it: a folder that `heed train
--init` starts from and transformers opens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import shutil
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from model.batch import choose_layout
from model.bundle import save_encoder
from model.device import DTYPES, keep_freed_memory, training_precision
from model.manifest import content_hash
from training.checkpoint import Progress, load_checkpoint, save_checkpoint
from training.cooccurrence import MAX_TOKENS, start_from_text
from training.corpus import encode_corpus, tokens_of
from training.data import file_hash
from training.masking import epoch_plan, mask_rows
from training.optimizer import make_optimizer, set_lr
from training.pretrain_build import build
from training.pretrain_report import card, evaluation_line, run_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from model.batch import Layout
    from model.masked import MaskedLM
    from model.tokens import Tokenizer
    from training.corpus import Corpus, Rows, TextFiles
    from training.masking import Masked
    from training.pretrain_build import PretrainConfig

CHECKPOINT_EVERY_S = 60.0
HELD_OUT_TOKENS = 32_768  # an evaluation reads: some 10,000 hidden ones, so accuracy is known to half a point
READ_TOKENS, MOST_EPOCHS = 20_000_000, 40  # what a run reads where neither epochs nor a budget is given
READING_SHARE = 0.1  # of a budget, to encode texts in; what is unread then stays so
FINISH_S = 1.0  # of a budget, for writing the encoder
BETAS = (0.9, 0.98)  # RoBERTa, https://arxiv.org/abs/1907.11692, section 3.1


@dataclass(frozen=True)
class Run:
    """What the loop works on; `peak` is the highest learning rate, `start` the hash of the encoder of --init."""

    config: PretrainConfig
    model: MaskedLM
    tokenizer: Tokenizer
    corpus: Corpus
    device: torch.device
    peak: float
    start: str | None

    @property
    def precision(self) -> str:
        """What matrix products are in."""
        return training_precision(self.config.precision, self.device)

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @property
    def layout(self) -> Layout:
        """Without padding: where no kernel takes rows end to end, short ones share blocks."""
        if self.model.config.convolution:
            return "padded"
        chosen = choose_layout(self.device, DTYPES[self.precision], self.model.config)
        return chosen if chosen == "varlen" else "packed"

    @property
    def epochs(self) -> int:
        """How often every row is read, where no budget ends the run."""
        if self.config.epochs is not None:
            return self.config.epochs
        return min(max(1, round(READ_TOKENS / len(self.corpus.train.tokens))), MOST_EPOCHS)

    def batch(self, rows: Rows, indices: Any, seed: tuple[int, ...]) -> Masked:
        """Some rows with words hidden, on the device."""
        mask_id = self.tokenizer.mask_id
        assert mask_id is not None, "build() refuses a tokenizer without"
        config = self.model.config
        return mask_rows(rows.take(indices), self.layout, config, mask_id, self.config.mask_share, seed).to(self.device)


@dataclass
class Clock:
    """How much of a run is done: of the tokens to read, or of the seconds that it may take.

    begun is the time.monotonic() at which it would have begun, had it not been interrupted. evaluation_s is what
    the last evaluation took, and evaluated when it was over.
    """

    begun: float
    tokens: int
    seconds: float | None
    evaluation_s: float = 0.0
    evaluated: float = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds, interruptions left out."""
        return time.monotonic() - self.begun

    def done(self, tokens: int) -> float:
        """0 to 1, and beyond. Of the seconds some are kept for the last evaluation, and for writing."""
        if self.seconds is None:
            return tokens / self.tokens if self.tokens else 1.0
        return self.elapsed / max(self.seconds - 2 * self.evaluation_s - FINISH_S, 1e-3)

    @property
    def may_evaluate(self) -> bool:
        """Whether there is time for it: of a budget, evaluations take no more than a tenth."""
        return self.seconds is None or self.elapsed - self.evaluated >= 9 * self.evaluation_s


def pretrain(
    config: PretrainConfig,
    texts: TextFiles,
    out: Path,
    *,
    init: Path | None = None,
    device: torch.device,
    budget_s: float | None = None,
    resume: bool = False,
    command: str = "",
    on_step: Callable[[int], object] = lambda step: None,
) -> dict[str, Any]:
    """Pretrain an encoder on unlabelled texts and write it to `out`; returns its version and the last figures.

    A fiftieth of the texts is held out by hash. budget_s is for everything, from this call on. `resume` continues
    from `out`.checkpoint; without a budget it gives what the uninterrupted run would have given. on_step hears each
    step done. Raises ValueError (DataError, BundleError) naming what is wrong before anything is trained.
    """
    started = time.monotonic()
    if out.exists():
        raise ValueError(f"an encoder is never overwritten, remove it or choose another --out: {out}")
    out.parent.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    torch.manual_seed(config.seed)
    model, tokenizer = build(config, texts, init)
    until = math.inf if budget_s is None else time.monotonic() + READING_SHARE * budget_s
    max_tokens = min(config.max_tokens, model.config.max_tokens)
    corpus = encode_corpus(texts, tokenizer, max_tokens, out.parent, until)
    if init is None:
        start_from_text(model.encoder.embeddings.tokens, *tokens_of(corpus.train, MAX_TOKENS))
    peak = config.lr or (2e-4 if init else 1e-3)
    run = Run(config, model.to(device), tokenizer, corpus, device, peak, content_hash(init) if init else None)
    print(run_line(run), file=sys.stderr)

    checkpoint = out.with_name(out.name + ".checkpoint")
    left = None if budget_s is None else budget_s - (time.monotonic() - started)
    history = fit(run, checkpoint, seconds=left, resume=resume, on_step=on_step)
    made_by = {
        "heed": importlib.metadata.version("heed"),
        "command": command,
        "init": {"folder": init.resolve().name, "version": run.start} if init else None,
        "config": dataclasses.asdict(config) | {"lr": peak, "epochs": None if budget_s else run.epochs},
        "seconds": round(time.monotonic() - started),
        "data": [{"file": file.name, "sha256": file_hash(file)} for file in texts.files],
        "texts": corpus.texts,
        "skipped": len(texts.skipped),
    }
    files = {
        "README.md": card(out.name, run, history, made_by),
        "report/metrics.json": json.dumps({"made_by": made_by, "history": history}, indent=2) + "\n",
    }
    version = save_encoder(out, run.model, tokenizer, weights=config.weights, files=files)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return {"version": version, **history[-1]}


def fit(
    run: Run, checkpoint: Path, *, seconds: float | None, resume: bool, on_step: Callable[[int], object]
) -> list[dict[str, float]]:
    """The loop: until every row has been read so often, or the seconds are over; a row of figures per evaluation."""
    config, model, rows = run.config, run.model, run.corpus.train
    lengths = rows.lengths
    optimizer = make_optimizer(model, config.weight_decay, betas=BETAS)
    at, identity = Progress(), identity_of(run)
    if resume:
        at, _ = load_checkpoint(checkpoint, model, optimizer, identity)
    plan = epoch_plan(lengths, config.batch_tokens, config.seed, at.epoch)
    clock = Clock(time.monotonic() - at.seconds, run.epochs * len(rows.tokens), seconds)
    saved_at = time.monotonic()
    done = clock.done(tokens_read(at))
    with _bar() as bar:
        while done < 1:
            if at.batch >= len(plan):
                at.epoch, at.batch = at.epoch + 1, 0
                plan = epoch_plan(lengths, config.batch_tokens, config.seed, at.epoch)
            masked = run.batch(rows, plan[at.batch], (config.seed, at.epoch, at.batch))
            model.train()
            with run.autocast():
                logits = model(masked.batch, masked.places)  # (M, V)
            loss = F.cross_entropy(logits, masked.truth)
            loss_value = loss.item()
            if not math.isfinite(loss_value):
                raise ValueError(f"the loss is no number at step {at.step + 1}, try --set lr= lower than: {run.peak}")
            loss.backward()
            clip_grad_norm_(model.parameters(), config.max_grad_norm)
            set_lr(optimizer, run.peak * rate(done, config.warmup))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            at.after_step(loss_value, masked.tokens)
            on_step(at.step)

            at.seconds, done = clock.elapsed, clock.done(tokens_read(at))
            bar.update(min(done, 1) - bar.n)
            is_due = done >= 1 or (int(done * config.evaluations) > len(at.history) and clock.may_evaluate)
            if is_due:
                evaluate(run, at, clock)
                bar.write(evaluation_line(at.history), file=sys.stderr)
            if is_due or time.monotonic() - saved_at > CHECKPOINT_EVERY_S:
                save_checkpoint(checkpoint, model, None, optimizer, at, identity)
                saved_at = time.monotonic()
    if run.epochs == 0:
        evaluate(run, at, clock)
    if not at.history:
        raise ValueError(f"the budget left no time for the first step, give more than the seconds left: {seconds:.0f}")
    return at.history


def identity_of(run: Run) -> dict[str, Any]:
    """What must be equal for a run to be the continuation of another: settings, rows as encoded, start.

    Of texts that a budget cut short, as many are read as there is time for, which may be others.
    """
    corpus = run.corpus
    return {
        "config": dataclasses.asdict(run.config) | {"precision": run.precision},
        "tokenizer": hashlib.sha256(run.tokenizer.to_json().encode()).hexdigest(),
        "text": [corpus.train.sha256, corpus.held_out.sha256] if corpus.is_whole else None,
        "encoder": dataclasses.asdict(run.model.config) | {"start": run.start},
    }


def rate(done: float, warmup: float) -> float:
    """Share of the peak rate where a share of the run is done: a line up, then a line down to 0."""
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return max(0.0, (1 - done) / (1 - warmup))


def tokens_read(at: Progress) -> int:
    """Tokens of all batches so far."""
    return at.tokens + (int(at.history[-1]["tokens"]) if at.history else 0)


def evaluate(run: Run, at: Progress, clock: Clock) -> None:
    """Add a row of figures: the loss of the batches since the row before, and what held-out texts say."""
    before = at.history[-1] if at.history else {"step": 0, "tokens": 0, "seconds": 0.0}
    trained_s = clock.elapsed
    loss, accuracy = held_out_figures(run)
    at.history.append(
        {
            "step": at.step,
            "tokens": tokens_read(at),
            "loss": at.loss_sum / max(at.step - before["step"], 1),
            "dev_loss": loss,
            "dev_perplexity": math.exp(loss),
            "dev_accuracy": accuracy,
            "tokens_per_s": at.tokens / (trained_s - before["seconds"]),
            "seconds": clock.elapsed,
        }
    )
    clock.evaluated, clock.evaluation_s = clock.elapsed, clock.elapsed - trained_s
    at.seconds, at.loss_sum, at.tokens, at.losses = clock.elapsed, 0.0, 0, []


@torch.inference_mode()
def held_out_figures(run: Run) -> tuple[float, float]:
    """Mean loss over hidden tokens of held-out texts, the same ones hidden each time, and the share guessed right."""
    rows, batch_tokens = run.corpus.held_out, run.config.batch_tokens
    loss, right, count = 0.0, 0, 0
    run.model.eval()
    for i, indices in enumerate(epoch_plan(rows.lengths, batch_tokens, 0, 0)[: -(-HELD_OUT_TOKENS // batch_tokens)]):
        masked = run.batch(rows, indices, (0, i))
        with run.autocast():
            logits = run.model(masked.batch, masked.places)  # (M, V)
        loss += F.cross_entropy(logits, masked.truth, reduction="sum").item()
        right += int((logits.argmax(1) == masked.truth).sum())
        count += len(masked.truth)
    return loss / count, right / count


def _bar() -> Any:
    """How much is done, where stderr is a terminal."""
    shown = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
    return tqdm(total=1.0, desc="pretrain", leave=False, disable=None, bar_format=shown)
