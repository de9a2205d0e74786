"""Many rows -> logits, in passes of bounded size: what evaluation, calibration and probes need.

Serving has its own way there (service/predictor.py), through the same batch and network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from model.batch import choose_layout, make_batch, plan_passes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model.encoder import Classifier
    from model.scores import Array
    from model.tokens import Row

PASS_TOKENS = 4096  # offline: nobody waits for the end of a pass


@torch.inference_mode()
def forward_rows(
    classifier: Classifier,
    rows: Sequence[Row],
    *,
    pass_tokens: int = PASS_TOKENS,
    on_pass: Callable[[int], object] | None = None,
) -> Array:
    """Logits (N, C) of the rows, in their order, on the classifier's device and in its precision.

    on_pass hears how many rows each pass answered. Sets the classifier to evaluation mode.
    """
    classifier.eval()
    config, weight = classifier.config, classifier.encoder.embeddings.tokens.weight
    layout = choose_layout(weight.device, weight.dtype, config)
    logits = np.empty((len(rows), classifier.head.out.out_features), dtype=np.float32)
    for indices in plan_passes([len(row.ids) for row in rows], pass_tokens):
        batch = make_batch([rows[i] for i in indices], layout, config.pad_id, config.first_position)
        logits[indices] = classifier(batch.to(weight.device)).cpu().numpy()
        if on_pass is not None:
            on_pass(len(indices))
    return logits
