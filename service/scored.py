"""Logits -> what the model says of each text: calibrated, and Failed where a logit is not a number. No torch.

Called by service/models.py, answers.py and predictor.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from model.scores import label_sets, probabilities
from service.errors import Failed

if TYPE_CHECKING:
    from model.manifest import Described
    from model.scores import Array
    from service.errors import ServiceError


@dataclass(frozen=True, slots=True)
class Scored:
    """What the model says of one text, in the order of its label ids; in_set is None without calibration."""

    logits: list[float]
    scores: list[float]
    in_set: list[bool] | None


def score(bundle: Described, logits: Array) -> list[Scored | ServiceError]:
    """Calibrated answers of logits (N, C)."""
    scores = probabilities(logits, bundle.problem_type, bundle.calibration.temperature)
    sets = label_sets(scores, bundle.problem_type, bundle.calibration)
    in_sets = [None] * len(logits) if sets is None else sets.tolist()
    parts = zip(np.all(np.isfinite(logits), axis=1), logits.tolist(), scores.tolist(), in_sets, strict=True)
    return [Scored(*scored) if is_finite else Failed() for is_finite, *scored in parts]
