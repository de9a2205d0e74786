"""The encoder against the linear line on the same held-out rows: the difference, how sure it is, what to try.

Pure functions over answers, called by training/finish.py. N examples, C labels, R resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from training.evaluate import CONFIDENCE, RESAMPLES, f1_scores
from training.intervals import Interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from training.answers import Answers
    from training.evaluate import Evaluation
    from training.run import Run

Verdict = Literal["above", "below", "neither"]
FEW_OF_LABEL = 100  # training rows of a label; an encoder from scratch learns little from fewer
FEW_HELD_OUT = 1000  # rows; with fewer, a difference of one or two points is not seen
MUCH_CUT = 0.1  # of the texts longer than the encoder reads
MUCH_LEARNED = 0.02  # of what is wrong on dev; as the rate falls, the last epoch is nearly always a little better


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Both figures on one data set, and encoder - linear with its 95% interval."""

    figure: Literal["accuracy", "macro_f1"]
    encoder: float
    linear: float
    difference: Interval
    verdict: Verdict  # where the encoder is; significantly so, or neither


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a run that may explain its verdicts."""

    rows: int
    labels: int
    from_scratch: bool
    lacks_ngrams: bool  # it may have them beside it, and has none
    epochs: int
    best_epoch: int  # counted from 1
    is_learning: bool  # dev got clearly better to the end
    max_tokens: int
    cut: float  # share of held-out texts longer than max_tokens
    verdicts: Sequence[tuple[Verdict, int]]  # with the rows of the data set


def compare(encoder: NDArray[Any], linear: NDArray[Any], truth: NDArray[Any]) -> Comparison:
    """Answers of both against the truth: class ids (N,) by accuracy, given labels (N, C) by macro-F1.

    A paired bootstrap: both are measured on the same resampled rows, so what makes a row hard for both cancels out.
    Berg-Kirkpatrick et al. 2012, https://aclanthology.org/D12-1091.
    """
    if truth.ndim == 2:
        of_encoder, of_linear, resampled = _by_macro_f1(encoder, linear, truth.astype(bool))
    else:
        of_encoder, of_linear, resampled = _by_accuracy(encoder, linear, truth)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail]).tolist()
    return Comparison(
        figure="macro_f1" if truth.ndim == 2 else "accuracy",
        encoder=of_encoder,
        linear=of_linear,
        difference=Interval(of_encoder - of_linear, low, high),
        verdict="above" if low > 0 else "below" if high < 0 else "neither",
    )


def _by_accuracy(
    encoder: NDArray[np.int64], linear: NDArray[np.int64], truth: NDArray[np.int64]
) -> tuple[float, float, NDArray[np.float64]]:
    """A resample only needs how many rows each side alone has right."""
    right, right_linear = encoder == truth, linear == truth
    n = len(truth)
    alone = [int((right & ~right_linear).sum()), int((~right & right_linear).sum())]
    shares = np.array([*alone, n - sum(alone)]) / n
    resampled = np.random.default_rng(0).multinomial(n, shares, size=RESAMPLES)
    return float(right.mean()), float(right_linear.mean()), (resampled[:, 0] - resampled[:, 1]) / n


def _by_macro_f1(
    encoder: NDArray[np.bool_], linear: NDArray[np.bool_], truth: NDArray[np.bool_]
) -> tuple[float, float, NDArray[np.float64]]:
    n, C = truth.shape
    parts = [part for given in (encoder, linear) for part in (given & truth, given & ~truth, ~given & truth)]
    outcomes = np.concatenate(parts, axis=1).astype(np.float32)  # (N, 2 * 3 * C)

    def both(weights: NDArray[np.float32]) -> NDArray[np.float64]:
        counts = (weights @ outcomes).reshape(2, 3, C).astype(np.int64)
        means: NDArray[np.float64] = f1_scores(*counts.swapaxes(0, 1)).mean(axis=1)
        return means

    rng = np.random.default_rng(0)
    drawn = (np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float32) for _ in range(RESAMPLES))
    resampled = np.array([both(weights) for weights in drawn])  # (R, 2)
    of_encoder, of_linear = both(np.ones(n, dtype=np.float32)).tolist()
    return of_encoder, of_linear, resampled[:, 0] - resampled[:, 1]


def facts(
    run: Run,
    history: Sequence[Mapping[str, float]],
    answers: Mapping[str, Answers],
    compared: Mapping[str, Comparison],
) -> Facts:
    """Those of a run that is over; `answers` are what its encoder says of held-out data."""
    return Facts(
        rows=len(run.train.examples),
        labels=len(run.labels),
        from_scratch=run.start is None,
        lacks_ngrams=not run.config.ngrams and all(isinstance(text, str) for text in run.train.texts),
        epochs=len(history),
        best_epoch=max(i for i, epoch in enumerate(history, 1) if epoch["best_so_far"]),
        is_learning=is_learning(history),
        max_tokens=run.max_tokens,
        cut=float(np.mean(np.array(answers["dev"].tokens) > run.max_tokens)),
        verdicts=[(c.verdict, len(answers[name].tokens)) for name, c in compared.items()],
    )


def is_learning(history: Sequence[Mapping[str, float]]) -> bool:
    """Whether the last epoch is the best and gave much: so may the next one."""
    before = [epoch["merit"] for epoch in history[:-1]] or [-math.inf]
    return history[-1]["merit"] > (1 - MUCH_LEARNED) * max(before)  # merit is negative


def reasons(facts: Facts) -> list[str]:
    """Why an encoder may not beat the linear line, each with what to try; the likeliest first, none if it does."""
    if all(verdict == "above" for verdict, _ in facts.verdicts):
        return []
    found = []
    if facts.from_scratch:
        found.append(
            "it starts from scratch and knows no language: start from an encoder, --init minilm (English), or from "
            "heed pretrain on texts like these"
        )
    if facts.lacks_ngrams:
        found.append(
            "words and pairs of them may say more than it keeps: a table of them beside it, --set ngrams=true "
            "(transformers then reads the encoder alone)"
        )
    if facts.rows < FEW_OF_LABEL * facts.labels:
        found.append(f"{facts.rows:,} rows are few for {facts.labels} labels: label more, most for the weakest labels")
    if facts.is_learning:
        found.append(f"it was still learning when it ended: --set epochs={2 * facts.epochs}, or a longer --budget")
    elif facts.best_epoch < facts.epochs:
        found.append(
            f"it was best after epoch {facts.best_epoch} of {facts.epochs} and then learned its rows by heart: "
            "a lower --set lr=, a higher --set dropout=, or more rows"
        )
    if facts.cut > MUCH_CUT:
        found.append(
            f"it reads {facts.max_tokens} tokens, {facts.cut:.0%} of the texts are longer and the linear line reads "
            f"them whole: --set max_tokens={2 * facts.max_tokens}"
        )
    few = [rows for verdict, rows in facts.verdicts if verdict == "neither" and rows < FEW_HELD_OUT]
    if few:
        found.append(f"{min(few):,} held-out rows do not show a small difference: hold out more, --dev and --test")
    return found or [
        "words alone tell these labels apart: serve what is cheaper, or start from a larger encoder, --init"
    ]


HEADER = ("data", "figure", "encoder", "linear line", "difference (95%)", "the encoder is")
SAID = {"above": "significantly above", "below": "significantly below", "neither": "not clearly above or below"}


def comparison_rows(evaluations: Mapping[str, Evaluation]) -> list[list[str]]:
    """A row of HEADER for each data set that the line was measured on."""
    return [
        [
            name,
            c.figure.replace("_f1", "-F1"),
            f"{c.encoder:.4f}",
            f"{c.linear:.4f}",
            f"{c.difference.value:+.4f} ({c.difference.low:+.4f} to {c.difference.high:+.4f})",
            SAID[c.verdict],
        ]
        for name, e in evaluations.items()
        if (c := e.linear)
    ]


def conclusion(evaluations: Mapping[str, Evaluation], why: Sequence[str]) -> str:
    """Whether the encoder wins, in words; where it does not, why that might be."""
    lost = [name for name, e in evaluations.items() if e.linear and e.linear.verdict != "above"]
    if not lost:
        return "The encoder beats the linear line."
    listed = "\n".join(f"- {reason}" for reason in why)
    return f"The encoder does not beat the linear line on {' and '.join(lost)}. It might be that\n{listed}"


def line_text(made_by: Mapping[str, Any]) -> str:
    """What the linear line reads, and of how much it learned."""
    line, rows = made_by["linear"], made_by["data"]["train"]["rows"]
    return f"n-grams of {' and '.join(line['grams'])}, {line['rows']:,} of {rows:,} rows, C={line['strength']:g}"
