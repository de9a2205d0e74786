"""A batch is read twice: as it is, and with each row's tokens moved to where its loss rises fastest.

What a label hangs on by a hair is unlearned, so that an encoder that knows its language learns its rows by heart later.
Miyato et al. 2017, https://arxiv.org/abs/1605.07725, section 3; the loop in training/train.py calls backward().

Letters: T tokens of all rows, B rows, D width.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from model.batch import Batch


def backward(loss_of: Callable[[], Tensor], batch: Batch, embeddings: nn.Module, reach: float) -> Tensor:
    """Adds to the gradients those of a batch's loss, or with a `reach` half those of either reading; returns the loss.

    loss_of() is a pass through the network and its loss, `embeddings` the module whose tokens are moved, by `reach`
    times the length of one.
    """
    if not reach:
        loss = loss_of()
        loss.backward()
        return loss
    embedded: list[Tensor] = []
    with _hooked(embeddings, embedded.append):
        loss = loss_of()
    embedded[0].retain_grad()
    (loss / 2).backward()
    step = reach * uphill(embedded[0], batch)
    with _hooked(embeddings, lambda tokens: tokens + step):
        (loss_of() / 2).backward()
    return loss


def uphill(embedded: Tensor, batch: Batch) -> Tensor:
    """The gradient of tokens (T, D), that of each row made as long as its tokens are on average; 0 where it is 0."""
    assert embedded.grad is not None
    tokens, gradient = embedded.detach().float(), embedded.grad.float()
    of_rows = tokens.new_zeros(2, len(batch.starts) + 1)  # the last is that of padding
    of_rows.index_add_(1, batch.rows, torch.stack([tokens.norm(dim=1), gradient.square().sum(dim=1)]))
    sums, squares = of_rows[:, :-1]
    scale = F.pad(sums / batch.lengths / squares.sqrt().clamp(min=1e-12), (0, 1))
    return (gradient * scale[batch.rows, None]).to(embedded.dtype)


@contextmanager
def _hooked(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Meanwhile a module gives what `change` makes of its output, or where that is None its output."""
    handle = module.register_forward_hook(lambda module, args, output: change(output))
    try:
        yield
    finally:
        handle.remove()
