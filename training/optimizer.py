"""How fast each parameter learns: AdamW's groups, and the rate over a run.

Called by the loops in training/train.py and pretrain.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from torch import nn

    from model.encoder import Classifier
    from model.masked import MaskedLM


def make_optimizer(
    model: Classifier | MaskedLM,
    weight_decay: float,
    *,
    layer_decay: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.AdamW:
    """AdamW with decay on matrices only (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101).

    Each group's `scale` is what layer_decay makes of the rate (Howard and Ruder 2018, https://arxiv.org/abs/1801.06146).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        decay = weight_decay if p.dim() > 1 else 0.0
        groups.setdefault((decay, layer_decay ** layers_above(name, len(model.encoder.blocks))), []).append(p)
    return torch.optim.AdamW(
        [{"params": params, "weight_decay": decay, "scale": scale} for (decay, scale), params in groups.items()],
        lr=0.0,
        betas=betas,
        fused=True,
    )


def layers_above(name: str, blocks: int) -> int:
    """Layers of the network above a parameter: none above the head, the blocks and one more above the embeddings."""
    if name.startswith("encoder.blocks."):
        return blocks - int(name.split(".")[2])
    return blocks + 1 if name.startswith("encoder.embeddings.") else 0


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The rate of each group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


def lr_scale(share: float, warmup: float, decay: Literal["linear", "cosine"] = "linear") -> float:
    """Share of the peak rate when a share of the run is over: a line up, then a line or a half cosine down to 0."""
    if share < warmup:
        return share / warmup
    left = (1 - share) / (1 - warmup)
    return left if decay == "linear" else (1 - math.cos(math.pi * left)) / 2
