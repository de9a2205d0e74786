"""Rows -> logits on a device: one pass, or many rows in passes of bounded size.

A pass is launched and then waited for, so that on CUDA the next one can be prepared meanwhile (model/cuda.py).
Called by service/predictor.py, and by evaluation, calibration and probes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from model.batch import choose_layout, fill_passes, make_batch, plan_passes
from model.cuda import CudaPasses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from model.batch import Batch
    from model.encoder import Classifier
    from model.scores import Array
    from model.tokens import Row

# Tokens that fill the device. More take no less time each: on a CPU they leave its caches, and keep more memory.
FULL_PASS_CPU, FULL_PASS_GPU = 2048, 16_384
WARM_UP_ROWS = (1, 2, 8, 32)


@dataclass(frozen=True, slots=True)
class Launched:
    """A pass under way: called, it waits for the logits (B, C)."""

    wait: Callable[[], Array]
    computed_tokens: int  # padding included

    def __call__(self) -> Array:
        """The logits (B, C)."""
        return self.wait()


class Forward:
    """Passes through a classifier, on the device and in the precision that it is in."""

    def __init__(self, classifier: Classifier) -> None:
        weight = classifier.encoder.embeddings.tokens.weight
        self.layout = choose_layout(weight.device, weight.dtype, classifier.config)
        self._classifier, self._device = classifier, weight.device
        self.full_pass = FULL_PASS_CPU if weight.device.type == "cpu" else FULL_PASS_GPU  # tokens
        self._cuda = CudaPasses(classifier, weight.device) if self.layout == "varlen" else None

    def warm_up(self, row: Row) -> None:
        """Run the shapes of first requests once; on CUDA, capture the graphs."""
        for _ in self.warm_up_steps(row):
            pass

    def warm_up_steps(self, row: Row) -> Iterator[None]:
        """The same in steps, none of which takes much longer than a pass."""
        for n in WARM_UP_ROWS:
            self([row] * n)
            yield
        if self._cuda is not None:
            yield from self._cuda.capture()

    def plan(self, rows: Sequence[Row]) -> list[list[int]]:
        """Row indices of each pass when nobody waits, so that there is little padding in all."""
        split = plan_passes if self.layout == "padded" else fill_passes
        return split([len(row.ids) for row in rows], self.full_pass)

    @torch.inference_mode()
    def launch(self, rows: Sequence[Row]) -> Launched:
        """Start a pass."""
        batch = self._batch(rows)
        tokens = batch.tokens.shape[1]
        if self._cuda is not None:
            return Launched(self._cuda.launch(batch), tokens)
        logits = self._classifier(batch.to(self._device))
        return Launched(lambda: logits.cpu().numpy(), tokens)

    def __call__(self, rows: Sequence[Row]) -> Array:
        """The logits (B, C) of one pass."""
        return self.launch(rows)()

    @torch.inference_mode()
    def embed(self, rows: Sequence[Row]) -> Array:
        """The embeddings (N, D) of the rows, in their order."""
        found = np.empty((len(rows), self._classifier.config.width), dtype=np.float32)
        for indices in self.plan(rows):
            batch = self._batch([rows[i] for i in indices]).to(self._device)
            found[indices] = self._classifier.embed(batch).float().cpu().numpy()
        return found

    def _batch(self, rows: Sequence[Row]) -> Batch:
        config = self._classifier.config
        return make_batch(rows, self.layout, config.pad_id, config.first_position)


def forward_rows(
    classifier: Classifier,
    rows: Sequence[Row],
    *,
    on_pass: Callable[[int], object] | None = None,
) -> Array:
    """Logits (N, C) of the rows, in their order, on the classifier's device and in its precision.

    on_pass hears how many rows each pass answered. Sets the classifier to evaluation mode.
    """
    forward = Forward(classifier.eval())
    logits = np.empty((len(rows), classifier.head.out.out_features), dtype=np.float32)

    def collect(indices: list[int], wait: Callable[[], Array]) -> None:
        logits[indices] = wait()
        if on_pass is not None:
            on_pass(len(indices))

    before = None
    for indices in forward.plan(rows):
        launched = indices, forward.launch([rows[i] for i in indices])
        if before is not None:
            collect(*before)  # while the next one computes
        before = launched
    if before is not None:
        collect(*before)
    return logits
