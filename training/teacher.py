"""A larger bundle's logits of the training rows, which a smaller network learns beside the labels."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tqdm import tqdm

from model.bundle import load_bundle
from model.forward import forward_rows
from training.evaluate import check_problem

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from model.scores import Array
    from training.data import Dataset


def teacher_logits(folder: Path, dataset: Dataset, labels: list[str], device: torch.device) -> Array:
    """Logits (N, C) of a bundle, its columns in the order of `labels`.

    Raises BundleError where it cannot be read, DataError where it has another kind of labels, ValueError where it
    has other ones.
    """
    teacher = load_bundle(folder)
    check_problem(dataset, teacher.problem_type)
    if missing := sorted(set(labels) - set(teacher.labels)):
        raise ValueError(f"the teacher does not know a label of the training data: {missing[0]}")
    rows = teacher.tokenizer.encode(dataset.texts, teacher.max_tokens)
    with tqdm(total=len(rows), desc="teacher", unit="row", leave=False, disable=None, file=sys.stderr) as bar:
        logits = forward_rows(teacher.classifier.to(device), rows, on_pass=bar.update)
    return logits[:, [teacher.labels.index(label) for label in labels]]
