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

LARGEST = 20.0  # offset, and logarithm of a weight
PRIOR = 1.0  # strength of a gamma prior of each weight, likeliest at 1: what ten rows show of it is chance


def pool(logits: Sequence[Array], weights: Floats) -> Array:
    """Logits (N, C) of all scorers together, from those of each and the weights that fit_weights found, (S + 1,)."""
    *of_each, offset = weights
    both = sum(weight * z for weight, z in zip(of_each, logits, strict=True)) + offset
    return np.asarray(both, dtype=np.float32)


def fit_weights(logits: Sequence[Array], truth: Array, problem: ProblemType) -> Floats:
    """Weights of S logits (N, C) and an offset, (S + 1,), with which their sum makes the truth, 0 or 1, likeliest.

    Each weight is drawn to 1, so that a few rows neither silence a scorer nor make it sure; one that many rows
    contradict gets next to none. Only independent labels have an offset, which they share.
    """
    parts = np.stack([*logits, np.ones_like(logits[0])]).astype(np.float64)

    def loss(at: Floats) -> tuple[float, Floats]:
        logs, offset = at[:-1], at[-1]
        weights = np.append(np.exp(logs), offset)
        z = np.tensordot(weights, parts, 1)
        if problem == MULTI:
            value, p = np.logaddexp(0, z).sum(), expit(z)
        else:
            value, p = logsumexp(z, axis=1).sum(), softmax(z, axis=1)
        slopes = np.tensordot(parts, p - truth, 2)
        slopes[:-1] = slopes[:-1] * weights[:-1] + PRIOR * (weights[:-1] - 1)
        return float(value - (truth * z).sum() + PRIOR * (weights[:-1] - logs).sum()), slopes

    bounds = [(-LARGEST, LARGEST)] * len(parts)
    found: Floats = minimize(loss, np.zeros(len(parts)), jac=True, method="L-BFGS-B", bounds=bounds).x
    return np.append(np.exp(found[:-1]), found[-1])
