"""The gate lets a better candidate through, and none that is no better, or worse in anything that counts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from gate import LABELS, SAME, answers, pair, promoted

from model.scores import MULTI, Judged
from training.data import Example
from training.gate import Bounds, Cost, Decision, decide
from training.side_by_side import calibration_of

if TYPE_CHECKING:
    from training.answers import Answers

CALIBRATED = (0.02, 0.02, 0.0)


def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def decided(hold_out: tuple[Answers, Answers], newest: tuple[Answers, Answers] | None = None) -> Decision:
    """With all else equal."""
    return decide(hold_out, newest, CALIBRATED, SAME, Bounds())


def test_a_candidate_that_is_no_better_is_seldom_promoted() -> None:
    assert promoted(300, 1000, 200, differing=0.08, better=0.0) <= 0.05 * 300


def test_a_candidate_two_points_better_is_mostly_promoted() -> None:
    assert promoted(100, 2000, 400, differing=0.08, better=0.02) >= 80


def test_a_model_is_not_better_than_itself() -> None:
    same, _ = pair(rng(), 500, 0.1, 0.0)
    decision = decided((same, same), (same, same))
    assert not decision.promoted
    assert decision.hold_out.chance == 1
    assert decision.why == "not better on the hold-out or the newest labels beyond chance: +0.0000"


def test_the_newest_labels_promote_a_candidate_that_keeps_what_was_known() -> None:
    keeps, gains = pair(rng(), 4000, 0.02, 0.0), pair(rng(), 400, 0.1, 0.08)
    assert decided(keeps, gains).promoted
    loses = pair(rng(), 4000, 0.06, -0.03)
    decision = decided(loses, gains)
    assert not decision.promoted
    assert "rows of the hold-out it may lose over 0.03" in decision.why


def test_labels_that_cannot_be_learned_are_told_from_those_that_bring_nothing_new() -> None:
    known = pair(rng(), 2000, 0.02, 0.0)
    flipped = pair(rng(), 400, 0.1, 0.0, accuracy=0.57)
    decision = decided(known, flipped)
    assert (decision.promoted, decision.harmed) == (False, True)
    assert "trained on such labels is no more often right on them: 5" in decision.why
    assert not decided(known, pair(rng(), 400, 0.02, 0.0)).harmed
    hard_but_learned = pair(rng(), 400, 0.3, 0.15, accuracy=0.4)
    assert decided(known, hard_but_learned).promoted


def test_the_error_of_a_calibration_error_is_what_other_rows_would_give() -> None:
    def drawn(seed: int) -> tuple[float, float, float]:
        random = np.random.default_rng(seed)
        sure = random.uniform(0.5, 1, size=(2, 600, 3)).astype(np.float32)
        right = random.random((600, 3)) < sure[0]
        both = [replace(pair(random, 600, 0.1, 0)[0], judged=Judged(one, None, None), truth=right) for one in sure]
        return calibration_of((both[0], both[1]))

    found = [drawn(seed) for seed in range(60)]
    spread = float(np.std([after - before for before, after, _ in found]))
    assert 0.5 * spread < float(np.mean([error for *_, error in found])) < 2 * spread


def test_a_label_that_is_lost_keeps_a_better_candidate_out() -> None:
    truth = np.arange(3000) % 2 * 2
    truth[:300] = neutral = LABELS.index("neutral")
    other = (truth + 1) % len(LABELS)
    production = answers(truth, np.where(rng().random(3000) < 0.2, other, truth))
    candidate = answers(truth, np.where(truth == neutral, other, truth))
    decision = decided((production, candidate))
    assert not decision.promoted
    assert decision.hold_out.difference > 0.05
    assert "F1 of neutral is worse than its bound" in decision.why


def test_a_slice_that_gets_worse_keeps_a_candidate_out() -> None:
    truth = np.arange(3000) % len(LABELS)
    wrong = (truth + 1) % len(LABELS)
    is_phone = np.arange(3000) < 300
    production = answers(truth, np.where(~is_phone & (np.arange(3000) % 5 == 0), wrong, truth))
    candidate = answers(truth, np.where(is_phone & (np.arange(3000) % 2 == 0), wrong, truth))
    examples = [Example("a text", (LABELS[i],), 0, ("phone" if p else "web",)) for i, p in zip(truth, is_phone)]  # noqa: B905
    dataset = replace(production.dataset, examples=examples, slices=("source",))
    decision = decided((replace(production, dataset=dataset), replace(candidate, dataset=dataset)))
    assert not decision.promoted
    assert "accuracy of source=phone is worse than its bound" in decision.why


@pytest.mark.parametrize(
    ("ece", "cost", "reason"),
    [
        ((0.01, 0.05, 0.0), SAME, "calibration error is worse than its bound, at most 0.03: 0.01 to 0.05"),
        (CALIBRATED, (Cost(bytes=100, text_ms=1), Cost(bytes=200, text_ms=1)), "bytes is worse than its bound"),
        (CALIBRATED, (Cost(bytes=1, text_ms=4), Cost(bytes=1, text_ms=9)), "ms of a text is worse than its bound"),
    ],
)
def test_what_a_candidate_costs_keeps_it_out(
    ece: tuple[float, float, float], cost: tuple[Cost, Cost], reason: str
) -> None:
    decision = decide(pair(rng(), 2000, 0.1, 0.06), None, ece, cost, Bounds())
    assert not decision.promoted
    assert reason in decision.why


def test_independent_labels_are_compared_by_macro_f1() -> None:
    truth = rng().random((1500, 3)) < 0.3
    production = several(truth, truth ^ (rng().random((1500, 3)) < 0.15))
    candidate = several(truth, truth ^ (np.random.default_rng(2).random((1500, 3)) < 0.05))
    assert decided((production, candidate)).promoted
    assert not decided((candidate, production)).promoted
    assert not decided((production, production)).promoted


def several(truth: np.ndarray, given: np.ndarray) -> Answers:
    """Answers to texts of any number of labels."""
    one = answers(np.zeros(len(truth), np.int64), np.zeros(len(truth), np.int64))
    judged = replace(one.judged, scores=given.astype(np.float32), sets=given)
    dataset = replace(one.dataset, problem_type=MULTI)
    return replace(one, dataset=dataset, truth=truth.astype(np.float32), judged=judged)


def test_bounds_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"level is not in \(0, 1\): 1.5"):
        Bounds(level=1.5)
