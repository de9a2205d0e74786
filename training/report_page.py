"""Figures and plots -> the report of a training or an evaluation: one HTML file, and the same in Markdown.

The HTML needs nothing beside it, no network and no script. The words are in templates/; every value among them is
escaped. A bundle travels further than its data, so the report inside it names mistakes by their line in the file;
only the one that `heed evaluate` writes for its caller quotes them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.manifest import now
from training import plots
from training.cost import chosen_on_dev, cost_in_words
from training.figures import (
    confused_pairs,
    error_by_length,
    histogram,
    precision_recall,
    slices,
    worst_mistakes,
)
from training.reliability import predictions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jinja2 import Environment, Template

    from model.bundle import Bundle
    from model.manifest import Manifest
    from training.answers import Answers
    from training.comparison import Comparison
    from training.evaluate import Evaluation
    from training.figures import Mistake, Pair, Slice
    from training.intervals import Interval
    from training.reliability import Reliability

TEMPLATES = Path(__file__).parent / "templates"
MAX_TABLE = 20  # labels; a wider confusion matrix is a heatmap
MAX_TEXT = 600  # characters of a text that are quoted
MAX_NAME = 60  # of a label or of a column's value


class Verbatim(str):
    """What Markdown shows as it is, between backticks."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the model came about: its data, a row of figures per epoch, and what it cost."""

    command: str
    data: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    cost: Mapping[str, Any]
    settings: Mapping[str, Any]
    chosen: str  # what dev decided


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a report says; what it shows in detail is of the last of the evaluations."""

    name: str
    made: str  # when, and with what
    evaluations: Mapping[str, Evaluation]
    training: Training | None
    answers: Answers
    reliability: Reliability
    pairs: list[Pair]
    average_precision: dict[str, float]
    slices: dict[str, list[Slice]]
    mistakes: list[Mistake]
    plots: dict[str, str]  # name -> SVG
    with_texts: bool

    @property
    def shown(self) -> str:
        """Name of the set that is shown in detail."""
        return list(self.evaluations)[-1]

    @property
    def evaluation(self) -> Evaluation:
        """Its figures."""
        return self.evaluations[self.shown]

    @property
    def is_calibrated(self) -> bool:
        """Whether its scores are others than the network's own."""
        return self.reliability.before != self.reliability.after

    @property
    def linear(self) -> dict[str, Comparison]:
        """Each set's comparison with the linear line, where there is one."""
        return {name: e.linear for name, e in self.evaluations.items() if e.linear}


def make_report(
    name: str,
    made: str,
    evaluations: Mapping[str, Evaluation],
    answers: Answers,
    *,
    training: Training | None = None,
    with_texts: bool = False,
) -> Report:
    """Everything that is shown of the last of the evaluations, whose answers are given; plots included."""
    curves, average = precision_recall(answers)
    lowest = answers.lowest_confidence
    shown = list(evaluations.values())[-1]
    confusion, found = shown.confusion, shown.reliability
    assert found is not None, "score_answers() gives it"
    before = found.before if found.before != found.after else []
    drawn = {
        "reliability": plots.reliability_diagram(before, found.after, lowest),
        "scores": plots.score_histogram(histogram(*predictions(answers.scores, answers.truth), lowest)),
        "length": plots.length_against_error(error_by_length(answers)),
    }
    if training is not None:
        drawn["loss"] = plots.loss_curves(training.history)
        drawn["dev-score"] = plots.score_curve(training.history)
    if 0 < len(curves) <= plots.MAX_CURVES:
        drawn["precision-recall"] = plots.precision_recall_curves(curves)
    if confusion is not None and len(answers.labels) > MAX_TABLE:
        drawn["confusion"] = plots.confusion_heatmap(confusion, answers.labels)
    return Report(
        name=name,
        made=made,
        evaluations=evaluations,
        training=training,
        answers=answers,
        reliability=found,
        pairs=confused_pairs(answers),
        average_precision=average,
        slices=slices(answers),
        mistakes=worst_mistakes(answers, with_texts=with_texts),
        plots=drawn,
        with_texts=with_texts,
    )


def evaluated(bundle: Bundle) -> str:
    """The line below the title of an evaluation."""
    return f"An evaluation with Heed {version('heed')} on {now()[:10]}, version {bundle.version}"


def trained(manifest: Manifest) -> str:
    """The line below the title of a training."""
    return f"Trained with Heed {manifest.made_by['heed']} on {manifest.created[:10]}"


def training_of(manifest: Manifest, history: Sequence[Mapping[str, Any]]) -> Training:
    """How a model came about, of what its manifest says."""
    made_by = manifest.made_by
    return Training(
        command=made_by["command"],
        data=made_by["data"],
        history=history,
        cost=cost_in_words(made_by),
        settings=made_by["config"],
        chosen=chosen_on_dev(made_by),
    )


def report_files(report: Report) -> dict[str, str]:
    """File name -> text: the page, the same in Markdown, and the plots that the Markdown refers to."""
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return {
        "report.html": html_template("report.html").render(report=report, style=style, **_helpers(report)),
        "report.md": markdown_template("report.md").render(report=report, **_helpers(report)),
        **{f"{name}.svg": plots.standalone(svg) for name, svg in report.plots.items()},
    }


def markdown_escaped(value: object) -> str:
    """A value inside a paragraph, or a cell of a table: none of its characters is markup."""
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", text)


def percent(share: float, digits: int = 1) -> str:
    """0.873 -> 87.3%."""
    return f"{100 * share:.{digits}f}%"


def interval(figure: Interval) -> str:
    """85.7% to 88.8%."""
    return f"{percent(figure.low)} to {percent(figure.high)}"


def decimals(figure: Interval) -> str:
    """0.8731 (0.8571 to 0.8877)."""
    return f"{figure.value:.4f} ({figure.low:.4f} to {figure.high:.4f})"


def points(difference: Interval) -> str:
    """+3.3 points (+1.2 to +5.4)."""
    return f"{100 * difference.value:+.1f} points ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"


def code(text: str) -> Verbatim:
    """Inside backticks, where nothing else is markup."""
    return Verbatim(" ".join(text.split()).replace("`", "'"))


def clipped(text: str, limit: int) -> str:
    """At most so many characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def tint(n: int, counts: Sequence[int]) -> str:
    """How strongly a cell of a row is painted, 0 to 1: a few mistakes are to be seen beside many right answers."""
    return f"{(n / max(sum(counts), 1)) ** 0.5:.3f}"


def place(share: float, floor: float) -> str:
    """Where a share stands on an axis from `floor` to 1."""
    return f"{100 * (share - floor) / (1 - floor):.1f}%"


def _helpers(report: Report) -> dict[str, Any]:
    labels = sorted(report.evaluation.labels.items(), key=lambda item: item[1].f1)
    lowest = min((s.right.low for part in report.slices.values() for s in part), default=0.0)
    return {
        "zip": zip,
        "labels": labels,
        "max_table": MAX_TABLE,
        "floor": int(lowest * 10) / 10,  # where the axis of the slices starts
        "text_length": MAX_TEXT,
        "name_length": MAX_NAME,
    }


def html_template(name: str) -> Template:
    """A template whose values are escaped as HTML."""
    return _environment(autoescape=True).get_template(name)


def markdown_template(name: str) -> Template:
    """A template whose values are escaped as Markdown."""
    return _environment(finalize=lambda value: markdown_escaped(value) if type(value) is str else value).get_template(
        name
    )


def _environment(**options: Any) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES)
    made = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **options)  # noqa: S701
    filters = (percent, interval, decimals, points, clipped, code, tint, place)
    made.filters |= {"number": "{:,}".format} | {function.__name__: function for function in filters}
    return made
