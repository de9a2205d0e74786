"""What production and a candidate say of the same rows, and what a text takes. Called by training/retrain.py."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from model.forward import forward_rows
from model.scores import Judged, abstentions, judge
from training.answers import Answers
from training.data import set_aside, targets
from training.evaluate import read
from training.gate import Cost
from training.reliability import ECE_BINS, bin_numbers, expected_calibration_error, predictions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from model.bundle import Bundle
    from model.tokens import Text
    from training.data import Dataset
    from training.gate import Mask

TIMED_TEXTS, TIMED_ROUNDS = 32, 7  # to measure what a text takes
DRAWN = 200  # times
PAD_LOGIT = -30.0  # of a label that a model does not have: its score is 0


def pair_of(bundles: tuple[Bundle, Bundle], dataset: Dataset, labels: Sequence[str]) -> tuple[Answers, Answers]:
    """What both say, in the same order of labels."""
    return answers_of(bundles[0], dataset, labels), answers_of(bundles[1], dataset, labels)


def has_classes(dataset: Dataset, bundles: tuple[Bundle, Bundle]) -> bool:
    """Whether a row is of a class, and not all of none."""
    return any(example.labels != (outside_label(bundles[0]),) for example in dataset.examples)


def answers_of(bundle: Bundle, dataset: Dataset, labels: Sequence[str]) -> Answers:
    """What a bundle says of rows with any of these labels; one that it does not have it never gives."""
    dataset = set_aside(dataset, outside_label(bundle))
    logits, tokens = read(bundle, dataset.texts, None)
    judged = judge(logits, bundle.problem_type, bundle.calibration)
    order = [bundle.labels.index(label) if label in bundle.labels else -1 for label in labels]
    is_known = np.array(order) >= 0

    def in_order(values: Any, missing: Any) -> Any:
        return np.where(is_known, values[:, order], missing)

    sets = None if judged.sets is None else in_order(judged.sets, missing=False)
    return Answers(
        dataset=dataset,
        labels=labels,
        logits=in_order(logits, PAD_LOGIT),
        judged=Judged(in_order(judged.scores, 0.0), sets, judged.abstained),
        truth=targets(dataset, labels),
        tokens=tokens,
        calibration=bundle.calibration,
        outside=logits[:0],
    )


def abstained_of(bundles: tuple[Bundle, Bundle], texts: Sequence[Text]) -> tuple[Mask, Mask] | None:
    """Where each abstains on texts that are of no class (M,); None without such texts."""
    if not texts:
        return None
    found = [abstentions(read(bundle, texts, None)[0], bundle.calibration) for bundle in bundles]
    before, after = (np.zeros(len(texts), bool) if one is None else one for one in found)
    return before, after


def calibration_of(pair: tuple[Answers, Answers]) -> tuple[float, float, float]:
    """Calibration error of both, and the standard error of the difference: what it is on rows that are drawn anew."""
    errors, drawn = [], []
    n, rng = len(pair[0].truth), np.random.default_rng(0)
    often = np.array([rng.multinomial(n, np.full(n, 1 / n)) for _ in range(DRAWN)], dtype=np.float32)  # of both alike
    for answers in pair:
        confidence, right = predictions(answers.scores, answers.truth)
        errors.append(expected_calibration_error(confidence, right))
        gaps = np.zeros((n, ECE_BINS), dtype=np.float32)  # by row and bin
        row_of = np.arange(len(confidence)) * n // len(confidence)
        np.add.at(gaps, (row_of, bin_numbers(confidence)), confidence - right)
        drawn.append(np.abs(often @ gaps).sum(axis=1) / len(confidence))
    return errors[0], errors[1], float((drawn[1] - drawn[0]).std())


def costs(bundles: tuple[Bundle, Bundle], folders: tuple[Path, Path], texts: Sequence[Text]) -> tuple[Cost, Cost]:
    """Bytes of the weights, and the median time of a text alone; of each text the best of several, taken in turns."""
    rows = [bundle.tokenizer.encode(texts[:TIMED_TEXTS], bundle.max_tokens) for bundle in bundles]
    best = np.full((2, len(rows[0])), np.inf)
    for _ in range(TIMED_ROUNDS):  # the machine may be busy
        for which, bundle in enumerate(bundles):
            for i, row in enumerate(rows[which]):
                begun = time.perf_counter()
                forward_rows(bundle.classifier, [row])
                best[which, i] = min(best[which, i], time.perf_counter() - begun)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in folders]
    of_each = [Cost(bytes=n, text_ms=1000 * float(np.median(some))) for n, some in zip(sizes, best, strict=True)]
    return of_each[0], of_each[1]


def outside_label(bundle: Bundle) -> str | None:
    """The label of rows that are no class of it."""
    return bundle.manifest.out_of_scope_label if bundle.manifest else None
