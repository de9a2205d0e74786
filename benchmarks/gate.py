"""How often the gate errs: simulated retrainings whose candidate is as good as production, or better by a known amount.

    python benchmarks/gate.py --trials 1000

Of each trial, production is right on a share of the rows. An equal candidate differs from it on `--differing` of them,
wins as many as it loses, and differs on the newest labels as it does on the hold-out; a better one wins more. The
answers are drawn anew each time, and training/gate.py decides as it does for `heed retrain`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import numpy as np
from timing import markdown

from model.scores import SINGLE, Calibration, Judged
from training.answers import Answers
from training.data import Dataset, Example
from training.gate import Bounds, Cost, decide
from training.intervals import wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray

LABELS = ["negative", "neutral", "positive"]
RIGHT = 0.88  # of production
SAME = (Cost(bytes=1, text_ms=1.0), Cost(bytes=1, text_ms=1.0))


def pair(
    rng: np.random.Generator, rows: int, differing: float, better: float, accuracy: float = RIGHT
) -> tuple[Answers, Answers]:
    """Production, right on `accuracy`, and a candidate that is right on `better` more of the rows, but for chance."""
    lost, won = (differing - better) / 2, (differing + better) / 2
    kinds = rng.choice(4, size=rows, p=[accuracy - lost, lost, won, 1 - accuracy - won])  # both right, lost, won, none
    truth = rng.integers(len(LABELS), size=rows)
    wrong = (truth + rng.integers(1, len(LABELS), size=rows)) % len(LABELS)
    return (
        answers(truth, np.where(np.isin(kinds, [0, 1]), truth, wrong)),
        answers(truth, np.where(np.isin(kinds, [0, 2]), truth, wrong)),
    )


def answers(truth: NDArray[np.int64], said: NDArray[np.int64]) -> Answers:
    """Answers that are sure of these labels."""
    examples = [Example(f"text {i}", (LABELS[label],)) for i, label in enumerate(truth)]
    scores = np.eye(len(LABELS), dtype=np.float32)[said]
    return Answers(
        dataset=Dataset("simulated", examples, SINGLE, [], ""),
        labels=LABELS,
        logits=scores,
        judged=Judged(scores, None, None),
        truth=truth,
        tokens=[1] * len(truth),
        calibration=Calibration(),
        outside=scores[:0],
    )


def promoted(trials: int, rows: int, newest: int, differing: float, better: float) -> int:
    """How many of the trials the gate lets through."""
    rng = np.random.default_rng(0)
    count = 0
    for _ in range(trials):
        new = pair(rng, newest, differing, better) if newest else None
        count += decide(pair(rng, rows, differing, better), new, (0.02, 0.02, 0.0), SAME, Bounds()).promoted
    return count


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=2000, help="of the hold-out")
    parser.add_argument("--newest", type=int, default=400, help="labels of the newest that are held out")
    parser.add_argument("--differing", default="0.04,0.08,0.12", help="shares of rows that only one of both has right")
    args = parser.parse_args()
    table = []
    for differing in map(float, args.differing.split(",")):
        for better in (0.0, 0.02):
            for newest in (0, args.newest):
                n = promoted(args.trials, args.rows, newest, differing, better)
                share = wilson(n, args.trials)
                table.append(
                    {
                        "rows that differ": f"{differing:g}",
                        "candidate": f"{better:+.2f}",
                        "hold-out": f"{args.rows:,}",
                        "newest labels": f"{newest:,}",
                        "promoted": f"{share.value:.3f} ({share.low:.3f} to {share.high:.3f})",
                    }
                )
    print(markdown(table))


if __name__ == "__main__":
    main()
