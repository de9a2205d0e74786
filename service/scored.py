"""Logits -> what the model says of each text: calibrated, and Failed where a logit is not a number. No torch.

Called by service/models.py, answers.py and predictor.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from model.scores import judge
from service.errors import Failed

if TYPE_CHECKING:
    from model.manifest import Described
    from model.scores import Array
    from service.errors import ServiceError


@dataclass(frozen=True, slots=True)
class Scored:
    """What the model says of one text, in the order of its label ids; None where nothing was fitted for it."""

    logits: list[float]
    scores: list[float]
    in_set: list[bool] | None
    abstained: bool | None = None  # the text is unlike those that the model was trained on


def score(bundle: Described, logits: Array) -> list[Scored | ServiceError]:
    """Calibrated answers of logits (N, C)."""
    judged = judge(logits, bundle.problem_type, bundle.calibration)
    fitted = [[None] * len(logits) if part is None else part.tolist() for part in (judged.sets, judged.abstained)]
    parts = zip(np.all(np.isfinite(logits), axis=1), logits.tolist(), judged.scores.tolist(), *fitted, strict=True)
    return [Scored(*scored) if is_finite else Failed() for is_finite, *scored in parts]
