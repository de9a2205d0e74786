"""After the loop: the weights as they will be stored, what is fitted on dev, the figures, the bundle."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from model.bundle import WEIGHT_TYPES, save_bundle
from model.drift import distance_statistics, distances, number_statistics
from model.forward import Forward, forward_rows
from model.manifest import Manifest, now
from model.scores import SINGLE, judge
from training.answers import Answers
from training.calibrate import calibrate, cross_judge
from training.card import card
from training.comparison import compare, facts, reasons
from training.data import targets
from training.evaluate import score_answers
from training.linear import answers_of
from training.report import headline
from training.report_page import make_report, report_files, trained, training_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from model.scores import Array
    from training.data import Dataset
    from training.evaluate import Evaluation
    from training.linear import LinearLine
    from training.run import Run


EMBEDDED = 2000  # rows of dev, about, whose embeddings are looked at


def finish(
    run: Run,
    line: LinearLine,
    held_out: dict[str, Dataset],
    out: Path,
    history: list[dict[str, Any]],
    made_by: dict[str, Any],
    reports: dict[str, str],
) -> tuple[Manifest, dict[str, Evaluation]]:
    """Round the weights as they will be stored, calibrate on dev, measure on held-out data, write the bundle.

    reports are files to put beside the report of the figures, by their path in the bundle.
    """
    run.classifier.to("cpu", WEIGHT_TYPES[run.config.weights]).float().eval()
    answers, reference = answer_held_out(run, held_out)
    said = answers_of(line, held_out, run.labels)
    linear = {name: compare(of_name.said, said[name], of_name.truth) for name, of_name in answers.items()}
    evaluations = {name: replace(score_answers(answers[name]), linear=linear[name]) for name in held_out}
    why = reasons(facts(run, history, answers, linear))
    manifest = Manifest(
        name=out.name,
        version="",  # save_bundle knows it
        created=now(),
        labels=run.labels,
        problem_type=run.problem_type,
        max_tokens=run.max_tokens,
        calibration=answers["dev"].calibration,
        made_by=made_by | {"linear": line.made_by() | {"why": why}},
        metrics={name: headline(e) for name, e in evaluations.items()},
        reference=reference,
        out_of_scope_label=run.config.out_of_scope_label,
    )
    shown = list(held_out)[-1]
    report = make_report(
        out.name, trained(manifest), evaluations, answers[shown], training=training_of(manifest, history)
    )
    metrics = {"history": history, "cost": made_by["cost"], **{k: e.to_dict() for k, e in evaluations.items()}}
    files = reports | {
        "README.md": card(manifest, evaluations, history),
        "report/metrics.json": json.dumps(metrics, indent=2, ensure_ascii=False) + "\n",
        **{f"report/{name}": text for name, text in report_files(report).items()},
    }
    manifest = save_bundle(out, run.classifier, run.tokenizer, manifest, weights=run.config.weights, files=files)
    return manifest, evaluations


def answer_held_out(run: Run, held_out: dict[str, Dataset]) -> tuple[dict[str, Answers], dict[str, Any]]:
    """What the classifier, calibrated on dev, says of each held-out data set; and the reference statistics of dev.

    Dev is judged by fits that did not see it, the reference statistics by the calibration that will answer.
    """
    rows = {name: run.rows(dataset) for name, dataset in held_out.items()}
    logits = {name: forward_rows(run.classifier, rows[name]) for name in held_out}
    truth = {name: targets(dataset, run.labels) for name, dataset in held_out.items()}
    promised = run.config.coverage, run.config.false_alarms
    calibration = calibrate(logits["dev"], truth["dev"], *promised)
    judged = {name: judge(logits[name], run.problem_type, calibration) for name in held_out}
    unknown = run.tokenizer.unknown_id
    has_unknown = [unknown in row.ids for row in rows["dev"]]
    some = rows["dev"][:: max(1, len(rows["dev"]) // EMBEDDED)]
    embeddings = Forward(run.classifier.eval()).embed(some)
    lengths = [row.tokens for row in rows["dev"]]
    reference = reference_statistics(run.labels, judged["dev"].scores, lengths, has_unknown, embeddings)
    for name in held_out:
        warn_of_one_answer(name, judged[name].scores, run)
    crossed = cross_judge(logits["dev"], truth["dev"], *promised)
    judged |= {"dev": crossed} if crossed else {}
    answers = {
        name: Answers(
            dataset=dataset,
            labels=run.labels,
            logits=logits[name],
            judged=judged[name],
            truth=truth[name],
            tokens=[row.tokens + row.truncated for row in rows[name]],
            calibration=calibration,
            outside=forward_rows(run.classifier, run.outside_rows(dataset)),
            cross_fitted=judged[name] is crossed,
        )
        for name, dataset in held_out.items()
    }
    return answers, reference


def warn_of_one_answer(name: str, scores: Array, run: Run) -> None:
    """Say on stderr that a model gives one label to every text: its accuracy alone may look fine."""
    predicted = {run.labels[i] for i in scores.argmax(axis=1)}
    if len(predicted) == 1 and run.problem_type == SINGLE:
        hint = "it learned nothing, try more rows, more epochs or --init"
        print(f"{hint}: on {name} it says only {predicted.pop()}", file=sys.stderr)


def reference_statistics(
    labels: Sequence[str], scores: Array, lengths: Sequence[int], has_unknown: Sequence[bool], embeddings: Array
) -> dict[str, Any]:
    """What answers look like on data like the training data; drift is measured against it (model/drift.py).

    scores (N, C), lengths (N,) in tokens, has_unknown (N,) where a token is not in the vocabulary, embeddings (M, D)
    of some of the texts.
    """
    center = [float(f"{value:.4g}") for value in embeddings.mean(axis=0)]
    share = np.bincount(scores.argmax(1), minlength=len(labels)) / len(scores)
    return {
        "n": len(scores),
        "label_share": dict(zip(labels, share.tolist(), strict=True)),
        "confidence": number_statistics(scores.max(1).tolist()),
        "tokens": number_statistics(lengths),
        "unknown_share": float(np.mean(has_unknown)),
        "embedding_center": center,
        "distance": distance_statistics(distances(embeddings, center)),
    }
