"""Several scorers heard as one: their logits added up, each weighed by how much dev shows that it is to be believed.

The logarithmic opinion pool (Genest and Zidek 1986, https://doi.org/10.1214/ss/1177013825, section 3). Of one scorer it
is temperature scaling. Letters: S scorers, N texts, C labels. Called by training/guide.py and train.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, softmax

from model.scores import MULTI

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from model.scores import Array, ProblemType

    Floats = NDArray[np.float64]

LARGEST = 20.0  # weight, where so few rows of dev are all right that any would do


def pool(logits: Sequence[Array], of_dev: Sequence[Array], truth: Array, problem: ProblemType) -> Array:
    """Logits (N, C) of all scorers together, from those of each, and each one's of dev with its truth, 0 or 1 (N, C).

    A scorer that dev contradicts gets no weight. Independent labels share one offset.
    """
    *weights, offset = fit_weights(of_dev, truth, problem)
    both = sum(weight * z for weight, z in zip(weights, logits, strict=True)) + offset
    return np.asarray(both, dtype=np.float32)


def fit_weights(logits: Sequence[Array], truth: Array, problem: ProblemType) -> Floats:
    """Weights of S logits, none negative, and an offset, (S + 1,), with which their sum makes the truth likeliest."""
    parts = np.stack([*logits, np.ones_like(logits[0])]).astype(np.float64)

    def loss(weights: Floats) -> tuple[float, Floats]:
        z = np.tensordot(weights, parts, 1)
        if problem == MULTI:
            value, p = np.logaddexp(0, z).sum(), expit(z)
        else:
            value, p = logsumexp(z, axis=1).sum(), softmax(z, axis=1)
        return float(value - (truth * z).sum()) / len(z), np.tensordot(parts, p - truth, 2) / len(z)

    start = [*(1.0 for _ in logits), 0.0]
    bounds = [*((0.0, LARGEST) for _ in logits), (-LARGEST, LARGEST)]
    found: Floats = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return found
