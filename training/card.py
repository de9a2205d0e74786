"""The model card: README.md of a bundle, in the Hugging Face card format, from the numbers of its manifest.

Its metadata holds the figures as the hub reads them (`model-index`). No licence and no language: Heed knows neither.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.comparison import HEADER, comparison_rows, conclusion, line_text
from training.cost import chosen_on_dev, cost_in_words
from training.report import calibration_lines, promises
from training.report_page import markdown_template

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from model.manifest import Manifest
    from training.evaluate import Evaluation

TASK = "text-classification"


def card(manifest: Manifest, evaluations: Mapping[str, Evaluation], history: Sequence[Mapping[str, Any]]) -> str:
    """The card's text."""
    config = manifest.made_by["config"]
    settings = ", ".join(f"{name}={value}" for name, value in config.items() if value is not None)
    body = markdown_template("card.md").render(
        manifest=manifest,
        evaluations=evaluations,
        history=history,
        cost=cost_in_words(manifest.made_by),
        chosen=chosen_on_dev(manifest.made_by),
        settings=settings,
        calibration=calibration_lines(manifest.calibration),
        promises={_title(name, e): promises(e) for name, e in evaluations.items()},
        header=HEADER,
        compared=comparison_rows(evaluations),
        line=line_text(manifest.made_by),
        conclusion=conclusion(evaluations, manifest.made_by["linear"]["why"]).splitlines(),
    )
    return f"---\n{metadata(manifest, evaluations)}---\n{body}"


def _title(name: str, evaluation: Evaluation) -> str:
    crossed = evaluation.reliability is not None and evaluation.reliability.cross_fitted
    return f"{name}: each fifth by a calibration fitted on the others" if crossed else name


def metadata(manifest: Manifest, evaluations: Mapping[str, Evaluation]) -> str:
    """The YAML between the lines of dashes."""
    from huggingface_hub import ModelCardData  # not there to be imported by whoever only evaluates

    results = [result for name, evaluation in evaluations.items() for result in _results(name, evaluation, manifest)]
    data = ModelCardData(
        library_name="heed", pipeline_tag=TASK, tags=["heed", TASK], model_name=manifest.name, eval_results=results
    )
    return f"{data.to_yaml()}\n"


def _results(name: str, evaluation: Evaluation, manifest: Manifest) -> list[Any]:
    """The figures of one data set, which the hub would have by its id: here by its file, the hash as its revision."""
    from huggingface_hub import EvalResult

    data = manifest.made_by["data"][name]
    figures = [
        ("accuracy", "Accuracy", evaluation.accuracy.value, None),
        ("f1", "Macro-F1", evaluation.macro_f1.value, {"average": "macro"}),
        ("expected_calibration_error", "Expected calibration error", evaluation.ece, None),
    ]
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=Path(data["file"]).name,
            dataset_name=Path(data["file"]).name,
            dataset_split=name,
            dataset_revision=data["sha256"][:16],
            metric_type=kind,
            metric_name=title,
            metric_value=round(value, 4),
            metric_args=args,
        )
        for kind, title, value, args in figures
    ]
