"""New labelled rows, looked at before anything learns from them: which are taken in, which are not and why.

Pure functions; called by training/retrain.py. Reasons name labels and lines, never a text.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from model.scores import SINGLE
from training.data import DataError, Example
from training.duplicates import near, normal
from training.health import NO_LABEL
from training.label_noise import suspects
from training.shift import shift

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from training.data import Dataset

MOST_KNOWN = 20_000  # rows that the new ones are read among, when labels are doubted


@dataclass(frozen=True)
class Quarantined:
    """A row that is not taken in."""

    example: Example
    file: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Intake:
    """What became of new rows; `labels` are all that the model has after them, the position is the id."""

    accepted: list[Example]
    quarantined: list[Quarantined]
    unread: list[str]  # rows that are none: file, line, reason
    labels: list[str]
    doubted: float | None  # share of the accepted whose label a linear model contradicts; None: too few to say
    moved: float | None  # population stability index of the label shares against the known rows, where it is large

    def reasons(self) -> dict[str, int]:
        """How many rows were not taken in for which reason, the most frequent first."""
        kinds = Counter(row.reason.partition(":")[0] for row in self.quarantined)
        kinds.update({"no row": len(self.unread)} if self.unread else {})
        return dict(kinds.most_common())


def take_in(
    new: Sequence[Dataset],
    known: Mapping[str, tuple[str, ...]],
    learned: Dataset,
    hold_out: Dataset,
    labels: Sequence[str],
    *,
    refused: Collection[tuple[str, tuple[str, ...]]] = (),
    outside_label: str | None = None,
    allow_new_labels: bool,
) -> Intake:
    """Look at new files against what the model was trained on (`learned`, and `known` by normal(text)).

    outside_label is that of rows which are of no class, refused are texts with labels that made a model worse.

    Not taken in: a label that the model does not have, unless it is allowed; a text of the hold-out or nearly one of
    it; a text with two different labels among the new rows; what is known already. Raises DataError where rows have
    one label and the model's any number, or the reverse.
    """
    accepted: list[Example] = []
    quarantined: list[Quarantined] = []
    names = list(labels)
    rows = [(example, dataset.name) for dataset in new for example in dataset.examples]
    for dataset in new:
        if dataset.problem_type != hold_out.problem_type:
            raise DataError(f"{dataset.name}: rows have labels of another kind than the model: {dataset.problem_type}")
    leaked = leaks([example for example, _ in rows], hold_out)
    given = labels_given(rows)
    seen: set[str] = set()
    for i, (example, file) in enumerate(rows):
        key = normal(example.text)
        strange = [label for label in example.labels if label not in (*names, outside_label)]
        if strange and not allow_new_labels:
            reason = f"unknown label, --allow-new-labels takes it in: {strange[0]}"
        elif i in leaked:
            reason = f"held out, or nearly a text that is: line {leaked[i]} of the hold-out"
        elif len(given[key]) > 1:
            reason = f"several labels for one text: {', '.join(sorted(map('|'.join, given[key])))}"
        elif (key, example.labels) in refused:
            reason = "refused before, --again takes it in"
        elif key in seen or known.get(key) == example.labels:
            reason = "known already"
        else:
            names += strange
            seen.add(key)
            accepted.append(example)
            continue
        quarantined.append(Quarantined(example, file, reason))
    return Intake(
        accepted=accepted,
        quarantined=quarantined,
        unread=[each for dataset in new for each in dataset.skipped],
        labels=names,
        doubted=doubted(accepted, learned),
        moved=shift(_all_labels(learned.examples), _all_labels(accepted)) if accepted else None,
    )


def leaks(examples: Sequence[Example], hold_out: Dataset) -> dict[int, int]:
    """The row of each example that is one of the hold-out, or nearly, and the line of that."""
    held = {normal(example.text): example.line for example in hold_out.examples}
    exact = {i: held[key] for i, e in enumerate(examples) if (key := normal(e.text)) in held}
    nearly = near(hold_out.texts, [example.text for example in examples])
    return {row: hold_out.examples[at].line for row, at, _ in nearly} | exact


def labels_given(rows: Sequence[tuple[Example, str]]) -> dict[str, set[tuple[str, ...]]]:
    """All labels that a text has among these rows, by normal(text)."""
    given: dict[str, set[tuple[str, ...]]] = {}
    for example, _ in rows:
        given.setdefault(normal(example.text), set()).add(tuple(sorted(example.labels)))
    return given


def doubted(new: Sequence[Example], learned: Dataset) -> float | None:
    """The share of new labels that a linear model contradicts, which has seen the known rows and the other new ones.

    None where there are too few, or a text may have several labels.
    """
    if learned.problem_type != SINGLE or not new:
        return None
    again = {normal(example.text) for example in new}  # what was corrected speaks against no correction
    others = [example for example in learned.examples if normal(example.text) not in again]
    some = np.random.default_rng(0).permutation(len(others))[:MOST_KNOWN]
    rows = [*new, *(others[i] for i in some)]
    found = suspects([e.text for e in rows], [e.labels[0] for e in rows], np.arange(len(rows)))
    if found is None:
        return None
    return sum(row < len(new) for row, _, _ in found.rows) / len(new)


def _all_labels(examples: Sequence[Example]) -> list[str]:
    return [label for example in examples for label in example.labels or (NO_LABEL,)]
