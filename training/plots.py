"""Figures -> SVG that stands in a page: its text is text, and its colours are those of the page, light or dark.

matplotlib draws, and is imported only here and only when something is drawn. A colour is a name in disguise
(`#000001` is var(--ink)), replaced in the finished SVG. Labels are data: nothing of theirs is markup or mathematics.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from training.intervals import wilson

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from training.figures import Curve, Histogram, LengthBin
    from training.intervals import Interval
    from training.reliability import Bin

WIDTH, HEIGHT = 420, 280  # CSS pixels, which is what a point of matplotlib becomes
INK, QUIET, LINE, ACCENT, BAD, PAPER = (f"#00000{i}" for i in range(1, 7))
NAMES = {INK: "ink", QUIET: "quiet", LINE: "line", ACCENT: "accent", BAD: "bad", PAPER: "paper"}
RIGHT_RGB, WRONG_RGB = (42, 157, 143), (224, 87, 74)  # of a heatmap, which is pixels: seen on light and on dark
RARE = 40  # right answers to a wrong one, from where on a histogram is drawn in powers of ten
MAX_NAME = 28  # characters of a label beside a plot
HEATMAP_WIDTH = 760  # without the names beside it; more only where a cell would be too small to be seen
NAMES_MARGIN = 165
MAX_CURVES = 6  # labels; more curves in one plot are a tangle
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
STANDALONE = (
    "<style>svg{--ink:#1d2126;--quiet:#5b626b;--line:#d9d7d0;--accent:#0b6b63;--bad:#a3261b;--paper:#fbfaf7;"
    "--sans:system-ui,sans-serif;background:var(--paper)}image{image-rendering:pixelated}"
    "@media(prefers-color-scheme:dark){svg{--ink:#e8e6e1;--quiet:#a2a8af;--line:#30353b;--accent:#5cc9bc;"
    "--bad:#ff9a8d;--paper:#14171a}}</style>"
)


@dataclass
class Drawing:
    """Axes of matplotlib, and what became of them."""

    axes: Any
    svg: str = ""


def loss_curves(history: Sequence[Mapping[str, Any]]) -> str:
    """Loss of training, within epochs where that was kept, and of dev."""
    with _plot("Loss on training and dev data by epoch") as drawing:
        axes = drawing.axes
        axes.plot(*_training_loss(history), color=QUIET, linewidth=1)
        axes.plot([row["epoch"] for row in history], [row["dev_loss"] for row in history], "o-", color=ACCENT)
        axes.set(xlabel="epoch", ylabel="loss", xlim=(0, history[-1]["epoch"] + 0.1), ylim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
        _key(axes, {"training": QUIET, "dev": ACCENT})
    return drawing.svg


def score_curve(history: Sequence[Mapping[str, Any]]) -> str:
    """The score on dev; that of the best epoch is circled."""
    best = [row for row in history if row["best_so_far"]][-1]
    with _plot("Score on dev by epoch") as drawing:
        axes = drawing.axes
        axes.plot([row["epoch"] for row in history], [row["dev_score"] for row in history], "o-", color=ACCENT)
        axes.plot(best["epoch"], best["dev_score"], "o", markersize=9, fillstyle="none", color=INK)
        axes.set(xlabel="epoch", ylabel="dev score", xlim=(0, history[-1]["epoch"] + 0.1))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(y=0.2)
        _key(axes, {f"best {best['dev_score']:.4f}, after epoch {best['epoch']}": INK})
    return drawing.svg


def reliability_diagram(before: Sequence[Bin], after: Sequence[Bin], lowest: float) -> str:
    """Share of right answers over what the scores promised; `before` is empty where nothing was calibrated."""
    with _plot("Share of right answers over confidence") as drawing:
        axes = drawing.axes
        axes.plot([lowest, 1], [lowest, 1], color=INK, linewidth=0.8, alpha=0.5)
        if before:
            axes.plot([b.confidence for b in before], [b.accuracy for b in before], "o--", color=QUIET, linewidth=1)
        shares = [wilson(round(b.accuracy * b.count), b.count) for b in after]
        _with_intervals(axes, [b.confidence for b in after], shares, ACCENT)
        _key(axes, ({"before calibration": QUIET} if before else {}) | {"after" if before else "scores": ACCENT})
        axes.set(xlabel="confidence", ylabel="share right", xlim=(lowest - 0.01, 1.01), ylim=(-0.02, 1.03))
    return drawing.svg


def score_histogram(figure: Histogram) -> str:
    """How many decisions have which confidence, the wrong ones below the line."""
    middles = (np.array(figure.edges[1:]) + figure.edges[:-1]) / 2
    width = (figure.edges[1] - figure.edges[0]) * 0.86
    with _plot("Right and wrong answers by confidence") as drawing:
        axes = drawing.axes
        axes.bar(middles, figure.right, width, color=ACCENT)
        axes.bar(middles, [-n for n in figure.wrong], width, color=BAD)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set(xlabel="confidence", ylabel="answers", xlim=(figure.edges[0] - 0.01, 1.01))
        if max(figure.right) > RARE * max(*figure.wrong, 1):  # else nobody saw the wrong ones
            axes.set_yscale("symlog", linthresh=10)
            axes.set_ylabel("answers, in powers of ten")
        axes.yaxis.set_major_formatter(lambda n, _: f"{abs(n):,.0f}" if abs(n) < 1000 else f"{abs(n) / 1000:,.0f}k")
        _key(axes, {"right": ACCENT, "wrong": BAD})
    return drawing.svg


def length_against_error(bins: Sequence[LengthBin]) -> str:
    """Share of wrong texts by length, each part of about as many texts."""
    names = [str(b.low) if b.low == b.high else f"{b.low}–{b.high}" for b in bins]
    with _plot("Share of wrong texts by length") as drawing:
        axes = drawing.axes
        _with_intervals(axes, range(len(bins)), [b.wrong for b in bins], BAD)
        axes.set_xticks(range(len(bins)), names, rotation=40, ha="right", rotation_mode="anchor")
        axes.set(xlabel="tokens of the text", ylabel="share wrong")
        axes.set_ylim(bottom=0)
        axes.figure.subplots_adjust(bottom=0.27)
    return drawing.svg


def precision_recall_curves(curves: Sequence[Curve]) -> str:
    """Precision over recall of each label; for at most MAX_CURVES of them."""
    with _plot("Precision over recall of each label") as drawing:
        axes = drawing.axes
        for i, (curve, dash) in enumerate(zip(curves, DASHES, strict=False)):
            color = (ACCENT, BAD, INK)[i % 3]
            name = f" {_clipped(curve.label)}"  # a key leaves out what starts with _
            axes.plot(curve.recall, curve.precision, linestyle=dash, color=color, label=name)
        axes.set(xlabel="recall", ylabel="precision", xlim=(-0.01, 1.01), ylim=(0, 1.03))
        axes.legend(loc="lower left", frameon=False)
    return drawing.svg


def confusion_heatmap(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Rows are true labels, columns predicted ones: shares of a row, the right in one hue and the wrong in another."""
    counts = np.array(confusion, dtype=np.float64)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    pixels = np.zeros((*share.shape, 4), dtype=np.uint8)
    pixels[..., :3] = np.where(np.eye(len(labels), dtype=bool)[..., None], RIGHT_RGB, WRONG_RGB)
    pixels[..., 3] = 255 * np.sqrt(share)  # a few mistakes are to be seen beside many right answers
    cell = max(8, min(16, HEATMAP_WIDTH // len(labels)))
    side, edge = cell * len(labels), 10
    whole = side + NAMES_MARGIN + edge
    with _plot("Confusion matrix", width=whole, height=whole) as drawing:
        axes = drawing.axes
        near, far = NAMES_MARGIN / whole, 1 - edge / whole
        axes.figure.subplots_adjust(left=near, right=far, bottom=near, top=far)
        axes.imshow(pixels, interpolation="none", aspect="auto")
        names = [_clipped(label) for label in labels]
        axes.set_xticks(range(len(labels)), names, rotation=90, fontsize=min(cell - 1.5, 10))
        axes.set_yticks(range(len(labels)), names, fontsize=min(cell - 1.5, 10))
        axes.grid(visible=False)
        axes.set(xlabel="predicted", ylabel="true")
    return drawing.svg


def standalone(svg: str) -> str:
    """The same as a file of its own, which brings the colours that a page would have."""
    start = svg.index(">") + 1
    return svg[:start] + STANDALONE + svg[start:] + "\n"


def _training_loss(history: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Epochs done, and the mean loss of the stretch that ended there."""
    x: list[float] = []
    y: list[float] = []
    for row in history:
        parts = row.get("losses") or [row["loss"]]
        x += [row["epoch"] - 1 + (i + 1) / len(parts) for i in range(len(parts))]
        y += parts
    return x, y


def _with_intervals(axes: Any, x: Sequence[float], shares: Sequence[Interval], color: str) -> None:
    below, above = [s.value - s.low for s in shares], [s.high - s.value for s in shares]
    errors = np.maximum([below, above], 0)  # rounding can put an end of 0 or 1 beyond the other
    axes.errorbar(x, [s.value for s in shares], errors, fmt="o-", color=color, ecolor=color, elinewidth=1)


def _key(axes: Any, entries: dict[str, str]) -> None:
    """What the colours mean, in words of that colour above the plot."""
    x = 0.0
    for name, color in entries.items():
        axes.annotate(name, (x, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", color=color)
        x += 0.05 + 0.0185 * len(name)


def _clipped(label: str) -> str:
    """A label beside a plot, on one line."""
    label = " ".join(label.split())
    return label if len(label) <= MAX_NAME else label[: MAX_NAME - 1] + "…"


@contextlib.contextmanager
def _plot(about: str, *, width: int = WIDTH, height: int = HEIGHT) -> Iterator[Drawing]:
    """Axes to draw on, and their SVG when that is done."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": about,
        "text.parse_math": False,
        "text.color": QUIET,
        "font.size": 12,
        "axes.edgecolor": LINE,
        "axes.labelcolor": QUIET,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": LINE,
        "grid.linewidth": 0.6,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": QUIET,
        "ytick.labelcolor": QUIET,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "lines.markersize": 4,
        "lines.linewidth": 1.6,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
    }
    with warnings.catch_warnings(), rc_context(style):
        warnings.filterwarnings("ignore", message="Glyph")  # of a label in Chinese: the reader's font draws it
        figure = Figure((width / 72, height / 72))
        figure.subplots_adjust(left=0.13, right=0.985, bottom=42 / height, top=1 - 26 / height)
        drawing = Drawing(figure.subplots())
        yield drawing
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawing.svg = _for_a_page(buffer.getvalue(), about, width, height)


def _for_a_page(svg: str, about: str, width: int, height: int) -> str:
    """The SVG of matplotlib without what a page does not need, in the page's font and colours."""
    body = svg[svg.index("<defs>") : svg.rindex("</svg>")]
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"<style type=[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", body)
    body = re.sub(r"font: ([^'\"]*) '[^;\"]*", r"font: \1 var(--sans)", body)
    body = re.sub(r": (#00000\d)\b", lambda found: f": var(--{NAMES[found[1]]})", body)
    body = re.sub(r"\s*\n\s*", " ", body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'aria-label="{escape(about)}" viewBox="0 0 {width} {height}" width="{width}">{body}</svg>'
    )
