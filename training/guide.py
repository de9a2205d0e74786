"""What the linear line and a teacher say of texts made of the training texts: more to learn from than the rows.

A small encoder learns a few thousand rows by heart and then knows less than the line does. The line has an opinion of
any text, so it can be asked about as many as are wanted: a network that gives the same answers to many texts that were
made by chance has learned the function (Beyer et al. 2022, https://arxiv.org/abs/2106.05237), and learns from the rows
themselves beside it. Another network is asked too (Tang et al. 2019, https://arxiv.org/abs/1903.12136, section 3.3):
it is wrong about other texts than the line, and both together are right about more than either (training/pool.py).

Letters: N training rows, M made texts, C labels. Called by training/train.py.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from model.scores import MULTI, probabilities
from training.data import targets
from training.linear import UNSPACED, crossed_margins, sides
from training.pool import fit_weights, pool
from training.teacher import teacher_logits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from model.bundle import Bundle
    from model.scores import Array
    from model.tokens import Text
    from training.data import Dataset
    from training.linear import LinearLine
    from training.run import Run

OWN_LABEL = 0.9  # of what a training row is to say; the guide has the rest
REPLACED = (0.1, 0.2, 0.4)  # of a text's words, one of these shares
LONGER = 2  # times its own length that a text may become by the end of another
ALONE = UNSPACED.pattern[1:-1]  # each character is taken for a word
WORD = re.compile(rf"\s*(?:[{ALONE}]|[^\s{ALONE}]+)")  # with the space before it


@dataclass(frozen=True)
class Guide:
    """Texts (M,) to read beside the training rows, and how likely each label is of every row and text, (N + M, C)."""

    texts: list[Text]
    truth: Array


def taught(run: Run, line: LinearLine, teacher: Bundle | None) -> Run:
    """The run with what the line, and a teacher where there is one, say of its rows and of texts made of them.

    How far each is to be believed is seen on dev, so that of the rows, which the line has learned from, it says what
    it does without them.
    """
    copies, texts = run.recipe.made_texts, run.train.texts
    if teacher is None and not copies:
        return run
    made = vary(texts, copies, run.config.seed) if copies else []
    by_line = [crossed_margins(line, run.train, run.labels), *([line.margins(made)] if made else [])]
    said: list[Array] = [np.concatenate(by_line).astype(np.float32)]
    of_dev: list[Array] = [line.margins(run.dev.texts).astype(np.float32)]
    if teacher is not None:
        for part, some in ((said, [*texts, *made]), (of_dev, run.dev.texts)):
            part.append(teacher_logits(teacher, some, run.labels, run.device, run.config.precision))
    weights = weigh(of_dev, run)
    scores = pool(said, weights)
    guide = make_guide(made, probabilities(scores, run.problem_type), run.train, run.labels) if copies else None
    heard = dict(zip(("line", "teacher"), weights[:-1].tolist(), strict=False))
    return replace(run, teacher=None if teacher is None else scores, guide=guide, heard=heard)


def weigh(of_dev: Sequence[Array], run: Run) -> NDArray[np.float64]:
    """How far dev shows that scorers are to be believed, by their logits (N, C) of it: fit_weights().

    Its rows of a label that no training row has tell nothing of a scorer that was fitted to those.
    """
    truth, known = indicator(run.dev, run.labels), np.isin(run.labels, run.train.label_names)
    rows = np.full(len(truth), True) if run.problem_type == MULTI else truth[:, known].any(axis=1)
    return fit_weights([z[np.ix_(rows, known)] for z in of_dev], truth[np.ix_(rows, known)], run.problem_type)


def make_guide(texts: list[Text], said: Array, train: Dataset, labels: Sequence[str]) -> Guide:
    """Of texts and what was said of the rows and of them, probabilities (N + M, C)."""
    n = len(train.examples)
    own = OWN_LABEL * indicator(train, labels) + (1 - OWN_LABEL) * said[:n]
    return Guide(texts, np.concatenate([own, said[n:]]))


def indicator(dataset: Dataset, labels: Sequence[str]) -> Array:
    """One where a row has a label, (N, C)."""
    truth = targets(dataset, labels)
    return truth if dataset.problem_type == MULTI else np.eye(len(labels), dtype=np.float32)[truth]


def vary(texts: Sequence[Text], copies: int, seed: int) -> list[Text]:
    """So many of each text, the same for a seed: with the end of another one, with words left out or of others instead.

    Of a pair both texts are varied, in the same way.
    """
    rng = np.random.default_rng(seed)
    words = [[list(map(sys.intern, WORD.findall(_spaced(side)))) for side in sides(text)] for text in texts]
    vocabulary = [word for both in words for side in both for word in side]  # as often as it occurs

    def varied(i: int) -> Text:
        edit, other, share = rng.integers(3), words[rng.integers(len(words))], rng.choice(REPLACED)
        made = []
        for own, of_other in zip(words[i], other, strict=True):
            if not own:
                made.append("")
                continue
            is_chosen = rng.random(len(own)) < share
            if edit == 0:
                start = rng.integers(len(of_other) + 1)
                new = [*own[: rng.integers(1, len(own) + 1)], *of_other[start:]][: LONGER * len(own)]
            elif edit == 1:
                new = [word for word, left_out in zip(own, is_chosen, strict=True) if not left_out] or own[:1]
            else:
                drawn = rng.integers(len(vocabulary), size=len(own))
                new = [vocabulary[j] if chosen else word for word, j, chosen in zip(own, drawn, is_chosen, strict=True)]
            made.append("".join(new).strip())
        return made[0] if isinstance(texts[i], str) else (made[0], made[1])

    return [varied(i) for _ in range(copies) for i in range(len(texts))]


def _spaced(text: str) -> str:
    """The text with a space in front where its first word wants one, and none behind: so words can change places."""
    text = text.strip()
    return text if not text or UNSPACED.match(text) else f" {text}"
