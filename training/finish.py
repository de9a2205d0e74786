"""After the loop: the weights as they will be stored, what is fitted on dev, the figures, the bundle."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from model.bundle import WEIGHT_TYPES, now, save_bundle
from model.forward import forward_rows
from model.manifest import Manifest
from model.scores import MIN_CALIBRATION_ROWS, SINGLE, Calibration, fit_quantile, fit_temperature, probabilities
from training.data import targets
from training.evaluate import score
from training.report import card, headline

if TYPE_CHECKING:
    from pathlib import Path

    from model.scores import Array
    from training.data import Dataset
    from training.evaluate import Evaluation
    from training.train import Run

COVERAGE = 0.9  # promised by the conformal label sets


def finish(
    run: Run,
    held_out: dict[str, Dataset],
    out: Path,
    history: list[dict[str, float]],
    made_by: dict[str, Any],
) -> tuple[Manifest, dict[str, Evaluation]]:
    """Round the weights as they will be stored, calibrate on dev, measure on held-out data, write the bundle."""
    stored = WEIGHT_TYPES[run.config.weights]
    run.classifier.to("cpu", stored).float().eval()
    dev_logits = forward_rows(run.classifier, run.rows(run.dev))
    calibration = calibrate(dev_logits, run)
    evaluations = {}
    for name, dataset in held_out.items():
        logits = dev_logits if name == "dev" else forward_rows(run.classifier, run.rows(dataset))
        scores = probabilities(logits, run.problem_type, calibration.temperature)
        evaluations[name] = score(scores, targets(dataset, run.labels), run.labels, calibration)
        predicted = {run.labels[i] for i in scores.argmax(axis=1)}
        if len(predicted) == 1 and run.problem_type == SINGLE:
            only = predicted.pop()
            print(
                f"it learned nothing, try more rows, more epochs or --init: on {name} it says only {only}",
                file=sys.stderr,
            )
    manifest = Manifest(
        name=out.name,
        version="",  # save_bundle knows it
        created=now(),
        labels=run.labels,
        problem_type=run.problem_type,
        max_tokens=run.max_tokens,
        calibration=calibration,
        made_by=made_by,
        metrics={name: headline(e) for name, e in evaluations.items()},
        reference=reference_statistics(run, dev_logits, calibration),
    )
    files = {
        "README.md": card(manifest, evaluations, history),
        "report/metrics.json": json.dumps(
            {"history": history, **{k: e.to_dict() for k, e in evaluations.items()}},
            indent=2,
            ensure_ascii=False,
        )
        + "\n",
    }
    manifest = save_bundle(out, run.classifier, run.tokenizer, manifest, weights=run.config.weights, files=files)
    return manifest, evaluations


def calibrate(dev_logits: Array, run: Run) -> Calibration:
    """Temperature and conformal quantile on dev; nothing where there are too few rows, or several labels."""
    truth = targets(run.dev, run.labels)
    if truth.ndim == 2 or len(truth) < MIN_CALIBRATION_ROWS:
        return Calibration()
    temperature = fit_temperature(dev_logits, truth)
    scores = probabilities(dev_logits, run.problem_type, temperature)
    return Calibration(temperature=temperature, coverage=COVERAGE, quantile=fit_quantile(scores, truth, COVERAGE))


def reference_statistics(run: Run, dev_logits: Array, calibration: Calibration) -> dict[str, Any]:
    """What answers look like on data like the training data; drift is measured against it."""
    scores = probabilities(dev_logits, run.problem_type, calibration.temperature)
    lengths = [len(row.ids) for row in run.rows(run.dev)]
    deciles = np.linspace(0, 1, 11)
    return {
        "n": len(scores),
        "label_share": dict(
            zip(
                run.labels,
                (np.bincount(scores.argmax(1), minlength=scores.shape[1]) / len(scores)).tolist(),
                strict=True,
            )
        ),
        "confidence_deciles": np.quantile(scores.max(1), deciles).tolist(),
        "tokens_deciles": np.quantile(lengths, deciles).tolist(),
    }
