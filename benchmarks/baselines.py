"""What classified text before attention, at the size of an encoder: the same embeddings, and what came after them.

Each is a Classifier of no layers whose head does the rest, so that the loop of training/train.py trains it like ours:
a Batch of any layout in, logits (B, C) out. What an architecture reads does not depend on what shares its batch.

Letters: T tokens of all rows, B rows, L tokens of a row, E embedding width, H width of an architecture, C labels.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from model.encoder import Classifier

if TYPE_CHECKING:
    from model.batch import Batch
    from model.encoder import EncoderConfig

TOLERANCE = 0.02  # of the encoder's parameters, by which another's may differ
STEPS = (16, 4, 1)  # multiples that a width is tried in: kernels like round ones
MAX_STEPS = 4096  # of a width
KERNELS = (3, 4, 5)  # tokens that a convolution spans (Kim 2014, section 3.1)


def by_row(x_TE: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Tokens (T, E) -> rows (B, L, E), 0 where there is none, and keep (B, L), True on tokens."""
    place = torch.arange(int(batch.lengths.max()), device=x_TE.device)
    keep = place < batch.lengths[:, None]  # (B, L)
    at = (batch.starts[:, None] + place).clamp(max=len(x_TE) - 1)
    return x_TE[at] * keep[..., None], keep


class BagOfWords(nn.Module):
    """The mean of the embeddings and an MLP of two layers: a deep averaging network.

    Iyyer et al. 2015, https://aclanthology.org/P15-1162.
    """

    def __init__(self, width: int, hidden: int, dropout: float, num_labels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, num_labels)

    def forward(self, x_TE: Tensor, batch: Batch) -> Tensor:
        """(T, E) -> (B, C)."""
        x_BLE, _ = by_row(x_TE, batch)
        mean = x_BLE.sum(1) / batch.lengths[:, None]  # (B, E)
        logits: Tensor = self.out(self.dropout(self.layers(mean)))
        return logits.float()


class Convolutions(nn.Module):
    """Convolutions over 3, 4 and 5 tokens, and the largest answer of each filter.

    Kim 2014, https://aclanthology.org/D14-1181, "CNN-rand".
    """

    def __init__(self, width: int, filters: int, dropout: float, num_labels: int) -> None:
        super().__init__()
        self.filters = nn.ModuleList(nn.Linear(k * width, filters) for k in KERNELS)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(len(KERNELS) * filters, num_labels)

    def forward(self, x_TE: Tensor, batch: Batch) -> Tensor:
        """(T, E) -> (B, C)."""
        x_BLE, _ = by_row(x_TE, batch)
        largest = [self._largest(x_BLE, k, filters, batch) for k, filters in zip(KERNELS, self.filters, strict=True)]
        logits: Tensor = self.out(self.dropout(torch.cat(largest, dim=1)))
        return logits.float()

    @staticmethod
    def _largest(x_BLE: Tensor, kernel: int, filters: nn.Module, batch: Batch) -> Tensor:
        """(B, L, E) -> (B, H), over the windows of `kernel` tokens that hold one of the row; all answers are from 0 on.

        One product with all windows: Conv1d takes up to twice as long to train on a CPU.
        """
        around, E = kernel - 1, x_BLE.shape[2]
        windows = (
            F.pad(x_BLE, (0, 0, around, around)).flatten(1).unfold(1, kernel * E, E)
        )  # (B, L + around, kernel * E)
        inside = torch.arange(windows.shape[1], device=x_BLE.device) < batch.lengths[:, None] + around
        answers: Tensor = filters(windows).relu()  # (B, L + around, H)
        return (answers * inside[..., None]).amax(1)


class RecurrentAttention(nn.Module):
    """A bidirectional LSTM whose states are weighed by one learned query.

    Zhou et al. 2016, https://aclanthology.org/P16-2034; its two directions are joined, not added.
    """

    def __init__(self, width: int, hidden: int, dropout: float, num_labels: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
        self.query = nn.Linear(2 * hidden, 1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(2 * hidden, num_labels)

    def forward(self, x_TE: Tensor, batch: Batch) -> Tensor:
        """(T, E) -> (B, C)."""
        x_BLE, keep = by_row(x_TE, batch)
        packed = pack_padded_sequence(x_BLE, batch.lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)  # (B, L, 2H)
        weights = self.query(states.tanh()).squeeze(2).float().masked_fill(~keep, -torch.inf).softmax(1)  # (B, L)
        read = (weights[:, None].to(states.dtype) @ states).squeeze(1).tanh()  # (B, 2H)
        logits: Tensor = self.out(self.dropout(read))
        return logits.float()


class Baseline(Classifier):
    """Embeddings, and a head that does all the rest."""

    def __init__(self, config: EncoderConfig, num_labels: int, head: nn.Module) -> None:
        super().__init__(config, num_labels)
        self.add_module("head", head)

    def logits(self, embedded: Tensor, batch: Batch) -> Tensor:
        """Embedded tokens (T, E) -> (B, C)."""
        logits: Tensor = self.head(embedded, batch)
        return logits


Head = Callable[[int, int, float, int], nn.Module]  # of embedding width, its own width, dropout and labels
BASELINES: dict[str, Head] = {
    "bag of words + MLP": BagOfWords,
    "CNN": Convolutions,
    "BiLSTM + attention": RecurrentAttention,
}
ENCODER = "encoder (ours)"
NAMES = (*BASELINES, ENCODER)
# Peak rates over the recipe's, the best on dev of 1, 2 and 4 (1,000 rows of TREC, 6 epochs): of the LSTM 0.717,
# 0.727 and 0.746; the others were best at 1.
RATES = {"BiLSTM + attention": 4.0}


def parameters(model: nn.Module) -> int:
    """Of all of it, embeddings included."""
    return sum(p.numel() for p in model.parameters())


def equal_to(encoder: EncoderConfig, num_labels: int, head: Head) -> Baseline:
    """A head as wide as makes it with its embeddings as large as the encoder, whose embeddings have the same width.

    Raises ValueError where no width comes within TOLERANCE.
    """
    config = dataclasses.replace(encoder, layers=0, blocks=None, positions="none", token_types=0, local_layers=())
    with torch.device("meta"):
        target = parameters(Classifier(encoder, num_labels))
        bare = parameters(Baseline(config, num_labels, nn.Identity()))

    def make(width: int) -> nn.Module:
        return head(config.width, width, config.dropout, num_labels)

    return Baseline(config, num_labels, make(equal_width(make, target - bare, round(TOLERANCE * target))))


def equal_width(make: Callable[[int], nn.Module], target: int, tolerance: int) -> int:
    """The width at which a module has about so many parameters, round where that is near enough."""

    def size(width: int) -> int:
        with torch.device("meta"):
            return parameters(make(width))

    for step in STEPS:
        widths = range(step, step * MAX_STEPS, step)
        at = bisect_left(widths, target, key=size)
        nearest = min(widths[max(at - 1, 0) : at + 1], key=lambda width: abs(size(width) - target), default=step)
        if abs(size(nearest) - target) <= tolerance:
            return nearest
    raise ValueError(f"no width has as many parameters, to within {tolerance}, as: {target}")


def network(name: str, encoder: EncoderConfig, num_labels: int, seed: int) -> Classifier:
    """An architecture of the encoder's size, from scratch."""
    torch.manual_seed(seed)
    head = BASELINES.get(name)
    return equal_to(encoder, num_labels, head) if head else Classifier(encoder, num_labels)
