"""What people read in a terminal: the line of an epoch, tables of an evaluation."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from training.comparison import HEADER, comparison_rows, conclusion, line_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.manifest import Manifest
    from model.scores import Calibration
    from training.checkpoint import Progress
    from training.evaluate import Evaluation
    from training.intervals import Interval
    from training.run import Run

EPOCH_HEADER = "epoch     loss  dev loss  dev score  tokens/s  seconds"
MAX_CONFUSION = 20  # labels; a wider matrix is no table to read


def run_line(run: Run) -> str:
    """What is about to be trained, on what."""
    parameters = sum(p.numel() for p in run.classifier.parameters()) / 1e6
    made = f" and {len(run.guide.texts):,} texts made of them" if run.guide else ""
    heard = "".join(f", the {name} heard by {weight:.2f}" for name, weight in run.heard.items())
    return (
        f"{len(run.train.examples):,} rows{made} to train on, {len(run.dev.examples):,} held out, "
        f"{len(run.labels)} labels; "
        f"{parameters:.1f} M parameters, {run.device} in {run.precision}{heard}"
    )


def epoch_line(at: Progress) -> str:
    """The row of the epoch that was just closed, under its header if it is the first; * marks the best."""
    row = at.history[-1]
    rate = row["tokens"] / row["seconds"]
    best = "*" if at.best_epoch == at.epoch - 1 else ""
    line = (
        f"{row['epoch']:5.0f}  {row['loss']:7.4f}  {row['dev_loss']:8.4f}  {row['dev_score']:9.4f}"
        f"  {rate:8,.0f}  {row['seconds']:7.0f} {best}"
    ).rstrip()
    return f"{EPOCH_HEADER}\n{line}" if len(at.history) == 1 else line


def headline(evaluation: Evaluation) -> dict[str, Any]:
    """The figures that the manifest keeps."""
    figures: dict[str, Any] = {
        "n": evaluation.n,
        "accuracy": evaluation.accuracy.value,
        "macro_f1": evaluation.macro_f1.value,
        "ece": evaluation.ece,
    }
    if evaluation.linear:
        figures["linear"] = asdict(evaluation.linear)
    found = evaluation.reliability
    if found is None:
        return figures
    figures |= {"ece_before": found.ece_before, "cross_fitted": found.cross_fitted}
    if found.sets:
        figures |= {"coverage": found.sets.coverage.value, "mean_set_size": found.sets.mean_size}
    if found.scope:
        figures |= {"kept": found.scope.kept.value, "accuracy_kept": found.scope.accuracy_kept}
        figures |= {"out_of_scope_recall": found.scope.recall.value} if found.scope.recall else {}
    return figures


def promises(evaluation: Evaluation) -> list[str]:
    """What the model promised beside what was found, a line each."""
    found = evaluation.reliability
    if found is None:
        return [f"ECE       {evaluation.ece:.4f}"]
    lines = [f"ECE       {evaluation.ece:.4f} ({found.ece_before:.4f} before calibration)"]
    if sets := found.sets:
        lines.append(
            f"coverage  {_interval(sets.coverage)} of label sets, promised {sets.promised:.4f}; "
            f"{sets.mean_size:.2f} labels on average, {sets.empty:.1%} empty"
        )
    if scope := found.scope:
        lines.append(
            f"kept      {_interval(scope.kept)} of texts in scope, promised {scope.promised:.4f}; "
            f"their accuracy {scope.accuracy_kept:.4f}"
        )
    if found.scope and found.scope.recall:
        lines.append(f"abstained {_interval(found.scope.recall)} of {found.scope.out_of_scope} texts out of scope")
    return lines


def evaluation_text(evaluation: Evaluation) -> str:
    """All figures of an evaluation, for a terminal."""
    parts = [
        f"rows      {evaluation.n}",
        f"accuracy  {_interval(evaluation.accuracy)}",
        f"macro-F1  {_interval(evaluation.macro_f1)}",
        *promises(evaluation),
        "",
        table(
            ["label", "precision", "recall", "F1", "rows"],
            [
                [label, f"{s.precision:.4f}", f"{s.recall:.4f}", f"{s.f1:.4f}", str(s.support)]
                for label, s in evaluation.labels.items()
            ],
        ),
    ]
    labels = list(evaluation.labels)
    if evaluation.confusion is not None and len(labels) <= MAX_CONFUSION:
        rows = [[label, *map(str, counts)] for label, counts in zip(labels, evaluation.confusion, strict=True)]
        parts += ["", table(["true \\ predicted", *labels], rows)]
    return "\n".join(parts)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need; the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    )


def linear_text(evaluations: dict[str, Evaluation], manifest: Manifest) -> str:
    """The encoder beside the linear line, for a terminal."""
    said = conclusion(evaluations, manifest.made_by["linear"]["why"])
    return f"{table(HEADER, comparison_rows(evaluations))}\nlinear line: {line_text(manifest.made_by)}\n{said}"


def calibration_lines(calibration: Calibration) -> list[str]:
    """What was fitted on dev, and what it promises of texts like those of dev, a sentence a line."""
    lines = [f"Temperature {calibration.temperature:.3f}."]
    if calibration.slopes is not None:
        lines = ["Each label has a slope and an offset of its logit, and a threshold, in heed.json."]
    if calibration.coverage is not None:
        lines.append(f"Label sets hold the true label of {calibration.coverage:.0%} of texts.")
    if calibration.false_alarms is not None:
        lines.append(
            f"It abstains where the highest logit is under {calibration.scope_threshold:.3f}, which happens to "
            f"{calibration.false_alarms:.0%} of texts all the same."
        )
    return lines


def _interval(value: Interval) -> str:
    return f"{value.value:.4f} ({value.low:.4f} to {value.high:.4f})"
