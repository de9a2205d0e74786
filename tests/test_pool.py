"""Several scorers are heard as one, each as far as dev shows that it is right (training/pool.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from model.scores import MULTI, SINGLE
from training.calibrate import best_temperature
from training.pool import fit_weights, pool

if TYPE_CHECKING:
    from model.scores import Array, ProblemType

RNG = np.random.default_rng(0)


def opinions(n: int, problem: ProblemType) -> tuple[list[Array], Array]:
    """Two scorers that are each wrong about texts of its own, one that guesses, and the truth (n, 3)."""
    labels = RNG.integers(3, size=n)
    truth = np.eye(3, dtype=np.float32)[labels]
    if problem == MULTI:
        truth = (RNG.random((n, 3)) < 0.3).astype(np.float32)
    return [*(2 * truth + RNG.normal(size=(2, n, 3)).astype(np.float32)), RNG.normal(size=(n, 3))], truth


@pytest.mark.parametrize("problem", [SINGLE, MULTI])
def test_two_that_are_wrong_about_different_texts_know_more_together_and_one_that_guesses_counts_nothing(
    problem: ProblemType,
) -> None:
    (of_dev, dev), (of_texts, truth) = opinions(2000, problem), opinions(2000, problem)
    first, second, guess, offset = fit_weights(of_dev, dev, problem)
    assert first == pytest.approx(second, rel=0.15)
    assert abs(guess) < 0.1 * first

    def right(z: Array, beyond: float) -> float:
        said = z > beyond if problem == MULTI else z == z.max(axis=1, keepdims=True)
        return float((said == (truth > 0)).mean())

    together = pool(of_texts, fit_weights(of_dev, dev, problem))
    assert right(together, 0) > max(right(z, 1) for z in of_texts) + 0.03
    assert offset < 0 if problem == MULTI else abs(offset) < 1e-6


def test_of_one_scorer_it_is_temperature_scaling() -> None:
    [z, *_], truth = opinions(500, SINGLE)
    weight, offset = fit_weights([z], truth, SINGLE)
    assert weight == pytest.approx(1 / best_temperature(z, truth.argmax(axis=1)), rel=0.01)
    assert pool([z], np.array([weight, offset])) == pytest.approx(weight * z)


def test_on_rows_that_all_scorers_are_right_about_the_sum_stays_a_number() -> None:
    truth = np.eye(2, dtype=np.float32)[[0, 1, 0]]
    z = 5 * truth - 2
    assert np.isfinite(pool([z, z], fit_weights([z, z], truth, SINGLE))).all()


@pytest.mark.parametrize("is_right", [True, False])
def test_a_few_rows_neither_silence_a_scorer_nor_make_it_sure(is_right: bool) -> None:
    truth = np.eye(2, dtype=np.float32)[[0, 1, 0, 0, 1]]
    z = truth if is_right else 1 - truth
    weight, _ = fit_weights([z], truth, SINGLE)
    assert 0.2 < weight < 5
    weight, _ = fit_weights([np.tile(z, (400, 1))], np.tile(truth, (400, 1)), SINGLE)
    assert weight > 5 if is_right else weight < 0.01
