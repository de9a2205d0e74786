"""How a step of training is shared among processes that hold the same network: alone, or in a group of several.

The rows of a batch are dealt out, the logits gathered, and the loss is taken of the whole batch by everybody. So N
processes give, up to rounding, what one would have given, whatever the loss weighs and however the shares fall.
Used by the loop in training/train.py; training/distributed.py starts the processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")


class Alone:
    """One process, which does everything."""

    is_first = True

    def network(self, model: nn.Module) -> nn.Module:
        """What a forward pass goes through."""
        return model

    def share(self, rows: list[T]) -> list[T]:
        """The rows of a batch that this process computes."""
        return rows

    def whole(self, logits: Tensor, rows: int) -> Tensor:
        """Logits of one's share -> those of the batch (rows, C), in its order."""
        return logits

    def agree(self, *values: float) -> tuple[float, ...]:
        """The same numbers for all: those of the first process."""
        return values

    def vary(self, seed: int, step: int) -> None:
        """Let processes drop and hide different things from a step on."""


ALONE = Alone()


class Group(Alone):
    """One of W processes of torch.distributed."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._rank, self._world = device, dist.get_rank(), dist.get_world_size()
        self.is_first = self._rank == 0

    def network(self, model: nn.Module) -> nn.Module:
        """Averages the gradients of all processes."""
        return DistributedDataParallel(model)

    def share(self, rows: list[T]) -> list[T]:
        """Every Wth row, as rows of a batch are sorted by length; the last is repeated until all shares are equal."""
        return (rows + rows[-1:] * (-len(rows) % self._world))[self._rank :: self._world]

    def whole(self, logits: Tensor, rows: int) -> Tensor:
        """Everybody's logits, through which gradients reach one's own alone, W-fold: they will be averaged."""
        parts = [torch.empty_like(logits) for _ in range(self._world)]
        dist.all_gather(parts, logits.detach())
        if logits.requires_grad:
            logits.register_hook(lambda gradient: gradient * self._world)
        parts[self._rank] = logits
        return torch.stack(parts, dim=1).flatten(0, 1)[:rows]

    def agree(self, *values: float) -> tuple[float, ...]:
        """As the first process has them."""
        shared = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.broadcast(shared, src=0)
        return tuple(shared.tolist())

    def vary(self, seed: int, step: int) -> None:
        """The first keeps its random state."""
        if not self.is_first:
            torch.manual_seed(int(np.random.SeedSequence((seed, self._rank, step)).generate_state(1)[0]))
