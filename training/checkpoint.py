"""Resume state: all that a run needs to go on as if it had never stopped. Tensors and JSON, no pickle.

A checkpoint is a folder beside the bundle, `OUT.checkpoint/`, replaced whole: weights, the best weights so
far, AdamW's moments, the random state, and where in which epoch the run stood.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

CURVE_POINTS = 40  # of an epoch's loss, for a plot


class DevFigures(NamedTuple):
    """How good an epoch was on dev; of two epochs the one of more merit is better, of equals that of less loss."""

    score: float  # accuracy, or macro-F1 where multi-label
    loss: float
    merit: float  # 0 where nothing is wrong, else under it


@dataclass
class Progress:
    """Where a run stands; plain data."""

    epoch: int = 0  # counted from 0
    batch: int = 0  # batches of this epoch that are done
    step: int = 0  # optimizer steps of the whole run
    loss_sum: float = 0.0  # over this epoch's batches
    tokens: int = 0  # of this epoch
    seconds: float = 0.0  # of the whole run, interruptions left out
    best: DevFigures | None = None
    best_epoch: int = -1
    losses: list[float] = field(default_factory=list)  # of this epoch's batches
    history: list[dict[str, Any]] = field(default_factory=list)  # a row per epoch

    def after_step(self, loss: float, tokens: int) -> None:
        """Count one batch."""
        self.batch += 1
        self.step += 1
        self.loss_sum += loss
        self.losses.append(loss)
        self.tokens += tokens

    def after_epoch(self, dev: DevFigures, seconds: float) -> bool:
        """Close an epoch: its row of figures, and the next one's start. True if it is the best so far."""
        is_best = self.best is None or (dev.merit, -dev.loss) > (self.best.merit, -self.best.loss)
        if is_best:
            self.best, self.best_epoch = dev, self.epoch
        self.history.append(
            {
                "epoch": self.epoch + 1,
                "loss": self.loss_sum / self.batch,
                "dev_loss": dev.loss,
                "dev_score": dev.score,
                "merit": dev.merit,
                "best_so_far": is_best,
                "tokens": self.tokens,
                "seconds": seconds,
                "losses": means(self.losses, CURVE_POINTS),
            }
        )
        self.epoch, self.batch, self.loss_sum, self.tokens, self.losses = self.epoch + 1, 0, 0.0, 0, []
        return is_best


def means(values: list[float], parts: int) -> list[float]:
    """Of at most so many stretches of about equal length."""
    return [float(part.mean()) for part in np.array_split(values, min(parts, len(values)))]


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    best: dict[str, Tensor] | None,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    identity: dict[str, Any],
) -> None:
    """Replace the checkpoint in `folder`. `identity` says which run this is: settings and data hashes."""
    partial, old = folder.with_name(folder.name + ".partial"), folder.with_name(folder.name + ".old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(dict(model.state_dict()), partial / "model.safetensors")
    if best is not None:
        save_file(best, partial / "best.safetensors")
    save_file(_optimizer_tensors(optimizer) | _random_tensors(), partial / "state.safetensors")
    (partial / "progress.json").write_text(json.dumps({"identity": identity, "progress": asdict(progress)}))
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)  # not before: a run that was stopped between the renames has no other
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: dict[str, Any]
) -> tuple[Progress, dict[str, Tensor] | None]:
    """Put model, optimizer and random state back; return the progress and the best weights.

    Raises ValueError where there is no checkpoint, or it belongs to other settings or data.
    """
    if not has_checkpoint(folder):
        raise ValueError(f"there is no checkpoint to resume: {folder.with_suffix('')}")
    folder = _whole(folder)
    state = json.loads((folder / "progress.json").read_text())
    if differs := _differing(json.loads(json.dumps(identity)), state["identity"]):
        raise ValueError(f"the checkpoint in {folder} was made with another value of: {', '.join(differs)}")
    model.load_state_dict(load_file(folder / "model.safetensors"))
    best = load_file(folder / "best.safetensors") if (folder / "best.safetensors").exists() else None
    tensors = load_file(folder / "state.safetensors")
    _restore_optimizer(optimizer, tensors)
    torch.set_rng_state(tensors["rng.cpu"])
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"rng.cuda.{i}" in tensors:
            torch.cuda.set_rng_state(tensors[f"rng.cuda.{i}"], i)
    progress = Progress(**state["progress"])
    if progress.best is not None:
        progress.best = DevFigures(*progress.best)
    return progress, best


def _differing(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """What two identities do not share; of settings each by its name."""
    names = []
    for key, own in ours.items():
        other = theirs.get(key)
        if own != other and isinstance(own, dict) and isinstance(other, dict):
            names += [f"{key} {name}" for name in own if own[name] != other.get(name)] or [key]
        elif own != other:
            names.append(key)
    return names


def has_checkpoint(folder: Path) -> bool:
    """Whether there is one to go on from."""
    return _whole(folder).exists()


def remove_checkpoint(folder: Path) -> None:
    """Leave none."""
    for each in (folder, _whole(folder)):
        shutil.rmtree(each, ignore_errors=True)


def load_outcome(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """What a run has left that is over: its row of figures per epoch, and the best weights."""
    history: list[dict[str, Any]] = json.loads((folder / "progress.json").read_text())["progress"]["history"]
    return history, load_file(folder / "best.safetensors")


def _whole(folder: Path) -> Path:
    """The checkpoint, or where a run was stopped between two renames the one before."""
    return folder if folder.exists() else folder.with_name(folder.name + ".old")


def _random_tensors() -> dict[str, Tensor]:
    tensors = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"rng.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's step and moments, named by the parameter's place."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value for i, moments in state.items() for name, value in moments.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        place, _, name = key.partition(".")
        if place.isdigit():
            state.setdefault(int(place), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
