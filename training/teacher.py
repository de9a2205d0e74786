"""A larger bundle's logits of texts, which a smaller network learns beside the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from model.bundle import load_bundle
from model.device import training_precision
from training.evaluate import check_problem, read

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from model.bundle import Bundle
    from model.scores import Array
    from model.tokens import Text
    from training.data import Dataset


def load_teacher(folder: Path, dataset: Dataset, labels: Sequence[str]) -> Bundle:
    """The bundle of --teacher.

    Raises BundleError where it cannot be read, DataError where it has another kind of labels, ValueError where it
    has other ones.
    """
    teacher = load_bundle(folder)
    check_problem(dataset, teacher.problem_type)
    if missing := sorted(set(labels) - set(teacher.labels)):
        raise ValueError(f"the teacher does not know a label of the training data: {missing[0]}")
    return teacher


def teacher_logits(
    teacher: Bundle, texts: Sequence[Text], labels: Sequence[str], device: torch.device, precision: str
) -> Array:
    """What it says of texts, (N, C), its columns in the order of `labels`; precision is that of the training."""
    teacher.classifier.to(device)
    with (
        tqdm(total=len(texts), desc="teacher", unit="row", leave=False, disable=None) as bar,
        torch.autocast(device.type, torch.bfloat16, enabled=training_precision(precision, device) == "bf16"),
    ):
        logits, _ = read(teacher, texts, bar.update)
    return logits[:, [teacher.labels.index(label) for label in labels]]
