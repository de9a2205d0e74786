"""After the loop: the weights as they will be stored, what is fitted on dev, the figures, the bundle."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from model.bundle import WEIGHT_TYPES, save_bundle
from model.forward import forward_rows
from model.manifest import Manifest, now
from model.scores import MIN_CALIBRATION_ROWS, SINGLE, Calibration, fit_quantile, fit_temperature, probabilities
from training.comparison import answers, compare, facts, reasons
from training.data import targets
from training.evaluate import score
from training.linear import run_line
from training.report import card, headline

if TYPE_CHECKING:
    from collections.abc import Sequence
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
    reports: dict[str, str],
) -> tuple[Manifest, dict[str, Evaluation]]:
    """Round the weights as they will be stored, calibrate on dev, measure on held-out data, write the bundle.

    reports are files to put beside the report of the figures, by their path in the bundle.
    """
    stored = WEIGHT_TYPES[run.config.weights]
    run.classifier.to("cpu", stored).float().eval()
    rows = {name: run.rows(dataset) for name, dataset in held_out.items()}
    logits = {name: forward_rows(run.classifier, rows[name]) for name in held_out}
    calibration = calibrate(logits["dev"], run)
    scores = {name: probabilities(logits[name], run.problem_type, calibration.temperature) for name in held_out}
    truth = {name: targets(dataset, run.labels) for name, dataset in held_out.items()}
    line, said = run_line(run.train, held_out, run.labels)
    linear = {
        name: compare(answers(scores[name], calibration, run.problem_type), said[name], truth[name])
        for name in held_out
    }
    evaluations = {
        name: replace(score(scores[name], truth[name], run.labels, calibration), linear=linear[name])
        for name in held_out
    }
    made_by = made_by | {"linear": line.made_by() | {"why": reasons(facts(run, history, rows, linear))}}
    for name in held_out:
        warn_of_one_answer(name, scores[name], run)
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
        reference=reference_statistics(run.labels, scores["dev"], [row.tokens for row in rows["dev"]]),
    )
    files = reports | {
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


def warn_of_one_answer(name: str, scores: Array, run: Run) -> None:
    """Say on stderr that a model gives one label to every text: its accuracy alone may look fine."""
    predicted = {run.labels[i] for i in scores.argmax(axis=1)}
    if len(predicted) == 1 and run.problem_type == SINGLE:
        hint = "it learned nothing, try more rows, more epochs or --init"
        print(f"{hint}: on {name} it says only {predicted.pop()}", file=sys.stderr)


def reference_statistics(labels: Sequence[str], scores: Array, lengths: Sequence[int]) -> dict[str, Any]:
    """What answers look like on data like the training data; drift is measured against it.

    scores (N, C), lengths (N,) in tokens.
    """
    deciles = np.linspace(0, 1, 11)
    share = np.bincount(scores.argmax(1), minlength=len(labels)) / len(scores)
    return {
        "n": len(scores),
        "label_share": dict(zip(labels, share.tolist(), strict=True)),
        "confidence_deciles": np.quantile(scores.max(1), deciles).tolist(),
        "tokens_deciles": np.quantile(lengths, deciles).tolist(),
    }
