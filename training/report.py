"""What people read: the line of an epoch, tables of an evaluation, the model card."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from training.comparison import HEADER, card_section, comparison_rows, conclusion, line_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.manifest import Manifest
    from training.checkpoint import Progress
    from training.evaluate import Evaluation, Interval
    from training.train import Run

EPOCH_HEADER = "epoch     loss  dev loss  dev score  tokens/s  seconds"
MAX_CONFUSION = 20  # labels; a wider matrix is no table to read


def run_line(run: Run) -> str:
    """What is about to be trained, on what."""
    parameters = sum(p.numel() for p in run.classifier.parameters()) / 1e6
    return (
        f"{len(run.train.examples):,} rows to train on, {len(run.dev.examples):,} held out, {len(run.labels)} labels; "
        f"{parameters:.1f} M parameters, {run.device} in {'bf16' if run.in_bf16 else 'fp32'}"
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
    return {
        "n": evaluation.n,
        "accuracy": evaluation.accuracy.value,
        "macro_f1": evaluation.macro_f1.value,
        "ece": evaluation.ece,
    } | ({"linear": asdict(evaluation.linear)} if evaluation.linear else {})


def evaluation_text(evaluation: Evaluation) -> str:
    """All figures of an evaluation, for a terminal."""
    parts = [
        f"rows      {evaluation.n}",
        f"accuracy  {_interval(evaluation.accuracy)}",
        f"macro-F1  {_interval(evaluation.macro_f1)}",
        f"ECE       {evaluation.ece:.4f}",
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


def card(manifest: Manifest, evaluations: dict[str, Evaluation], history: Sequence[dict[str, float]]) -> str:
    """The model card (README.md of the bundle), in the Hugging Face card format."""
    config, data = manifest.made_by["config"], manifest.made_by["data"]
    figures = [
        f"| {name} | {e.n} | {_interval(e.accuracy)} | {_interval(e.macro_f1)} | {e.ece:.3f} |"
        for name, e in evaluations.items()
    ]
    sources = [f"| {name} | {d['file']} | {d['rows']} | `{d['sha256'][:16]}` |" for name, d in data.items()]
    epochs = [f"| {r['epoch']:.0f} | {r['loss']:.4f} | {r['dev_loss']:.4f} | {r['dev_score']:.4f} |" for r in history]
    settings = ", ".join(f"{k}={v}" for k, v in config.items() if v is not None)
    return "\n".join(
        [
            "---",
            "library_name: heed",
            "pipeline_tag: text-classification",
            "---",
            f"# {manifest.name}",
            "",
            f"A text classifier made by Heed {manifest.made_by['heed']} on {manifest.created}.",
            f"Labels: {', '.join(manifest.labels)}. It reads {manifest.max_tokens} tokens; a longer text is cut.",
            "",
            "## Figures",
            "Measured on the weights as they are stored, in fp32, with 95% confidence intervals. The calibration was",
            "fitted on dev and the best epoch chosen by it: for the calibration error (ECE), too, trust test.",
            "",
            "| data | rows | accuracy | macro-F1 | ECE |",
            "| --- | --- | --- | --- | --- |",
            *figures,
            "",
            f"Temperature {manifest.calibration.temperature:.3f}." + _coverage(manifest),
            "",
            *card_section(evaluations, manifest.made_by),
            "",
            "## Data",
            "| part | file | rows | SHA-256 |",
            "| --- | --- | --- | --- |",
            *sources,
            "",
            "## Training",
            f"`{manifest.made_by['command']}` ({manifest.made_by['seconds']} s)",
            "",
            "| epoch | loss | dev loss | dev score |",
            "| --- | --- | --- | --- |",
            *epochs,
            "",
            f"Settings: {settings}.",
            "",
        ]
    )


def linear_text(evaluations: dict[str, Evaluation], manifest: Manifest) -> str:
    """The encoder beside the linear line, for a terminal."""
    said = conclusion(evaluations, manifest.made_by["linear"]["why"])
    return f"{table(HEADER, comparison_rows(evaluations))}\nlinear line: {line_text(manifest.made_by)}\n{said}"


def _coverage(manifest: Manifest) -> str:
    if manifest.calibration.coverage is None:
        return ""
    return f" Label sets hold the true label of {manifest.calibration.coverage:.0%} of texts like those of dev."


def _interval(value: Interval) -> str:
    return f"{value.value:.4f} ({value.low:.4f} to {value.high:.4f})"
