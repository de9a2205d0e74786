"""What a training cost besides its time: rate, size, device, peak memory, and how often dev was asked."""

from __future__ import annotations

import resource
import sys
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from training.run import Run


def training_cost(run: Run, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Plain data for a report; tokens are those of the rows trained on, and their rate that of whole epochs."""
    tokens = sum(row["tokens"] for row in history)
    return {
        "tokens": tokens,
        "tokens_per_s": round(tokens / sum(row["seconds"] for row in history)),
        "parameters": sum(p.numel() for p in run.classifier.parameters()),
        "device": _device(run.device),
        "precision": run.precision,
        "peak_memory_bytes": _peak(run.device),
    }


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


def _peak(device: torch.device) -> int:
    """Of the GPU; without one, of this process from its start on."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cost_in_words(made_by: Mapping[str, Any]) -> dict[str, str]:
    """The same for a reader, with the time; of what a manifest says of how the model was made."""
    cost, minutes = made_by["cost"], made_by["seconds"] / 60
    return {
        "Time": f"{made_by['seconds']} s" if minutes < 2 else f"{minutes:.0f} min",
        "Tokens": f"{cost['tokens']:,} read, {cost['tokens_per_s']:,} a second",
        "Parameters": f"{cost['parameters'] / 1e6:.1f} million",
        "Device": f"{cost['device']}, {cost['precision']}",
        "Peak memory": f"{cost['peak_memory_bytes'] / 1e9:.1f} GB",
    }


def chosen_on_dev(made_by: Mapping[str, Any]) -> str:
    """What dev decided, whose figures it flatters: the more was tried, the more."""
    tried = len(made_by["search"]) or (2 if made_by["config"]["augment"] else 1)
    epoch = "The best epoch" if tried == 1 else f"The best epoch of {tried} trials"
    return f"{epoch}, with how far its n-grams are heard," if made_by.get("ngrams") else epoch
