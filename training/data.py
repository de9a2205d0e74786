"""Files of labelled text -> examples, with line-numbered errors; the fixed split; length-bucketed batches.

Fields of a row: text, text_pair for pairs, and label (one) or labels (a list: multi-label; in a table
separated by |). Files are read by model/records.py.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from model.batch import plan_passes
from model.records import check_unicode, read_records
from model.scores import MULTI, SINGLE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from model.scores import ProblemType
    from model.tokens import Text

DEV_SHARE = 0.1
BY_HASH = "by hash)"  # how the names of both parts of a split end
BUCKET_BATCHES = 50  # rows are sorted by length inside a shuffled stretch of so many batches


class DataError(ValueError):
    """Rows that cannot be trained on; says file, line where there is one, and reason."""


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled text, and the line (of Parquet, row) of its file."""

    text: Text
    labels: tuple[str, ...]
    line: int = field(default=0, compare=False)  # of the file; of Parquet, the row
    slices: tuple[str, ...] = ()  # values of the columns that a report tells apart


@dataclass(frozen=True)
class Columns:
    """What the fields are called."""

    text: str = "text"
    label: str = "label"
    slices: tuple[str, ...] = ()  # further columns to keep, for a report by their values


@dataclass(frozen=True)
class Dataset:
    """The examples of one file, what was left out, and the file's SHA-256; `outside` are texts of no class."""

    name: str
    examples: list[Example]
    problem_type: ProblemType
    skipped: list[str]
    sha256: str
    outside: list[Text] = field(default_factory=list)
    slices: tuple[str, ...] = ()  # the columns whose values the examples keep

    @property
    def texts(self) -> list[Text]:
        """The texts, in order."""
        return [example.text for example in self.examples]

    @property
    def label_names(self) -> list[str]:
        """All labels, sorted."""
        return sorted({label for example in self.examples for label in example.labels})

    def subset(self, name: str, keep: Sequence[Example]) -> Dataset:
        """The same file, only some of its examples."""
        return replace(self, name=name, examples=list(keep))


def read_dataset(path: Path, columns: Columns = Columns(), bad_rows: Literal["error", "skip"] = "error") -> Dataset:
    """Read a file of labelled text.

    Raises DataError with file and line of the first bad row and the number of others; with
    bad_rows="skip" they are left out and listed in `skipped`.
    """
    examples: list[Example] = []
    bad: list[str] = []
    multi: bool | None = None  # as the first good row has it
    for line, fields in read_records(path):
        try:
            if isinstance(fields, str):
                raise ValueError(fields)
            example, is_multi = _example(fields, columns, line)
            if multi is not None and is_multi != multi:
                raise ValueError(
                    "one label here and a list of labels above" if multi else "a list of labels here and one above"
                )
            multi = is_multi
            examples.append(example)
        except ValueError as error:
            bad.append(f"{path}:{line}: {error}")
    if bad and bad_rows == "error":
        more = f" (and {len(bad) - 1} more bad rows; --bad-rows skip leaves them out)" if len(bad) > 1 else ""
        raise DataError(bad[0] + more)
    if not examples:
        raise DataError(f"{path}: no labelled rows")
    for i, name in enumerate(columns.slices):
        if not any(example.slices[i] for example in examples):
            raise DataError(f"{path}: no row has a field to slice by that is named {name}")
    return Dataset(str(path), examples, MULTI if multi else SINGLE, bad, file_hash(path), slices=columns.slices)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def place(text: Text) -> float:
    """Where a text stands in [0, 1): by its hash, so the same for ever, whatever is added."""
    joined = text if isinstance(text, str) else "\x1f".join(text)
    digest = hashlib.sha256(joined.strip().lower().encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def is_dev(text: Text, share: float = DEV_SHARE) -> bool:
    """Whether a text belongs to the dev split."""
    return place(text) < share


def split(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Train and dev by the hash of each text; equal texts land on one side."""
    dev = [example for example in dataset.examples if is_dev(example.text)]
    train = [example for example in dataset.examples if not is_dev(example.text)]
    if not dev or not train:
        raise DataError(f"{dataset.name}: too few rows to split off a dev set, give --dev: {len(dataset.examples)}")
    return dataset.subset(f"{dataset.name} (90% {BY_HASH}", train), dataset.subset(
        f"{dataset.name} (10% {BY_HASH}", dev
    )


def set_aside(dataset: Dataset, label: str | None) -> Dataset:
    """The data with the texts that have this label outside: it says that they are of no class. None: there are none.

    Raises DataError where rows have several labels, or no other.
    """
    if label is None:
        return dataset
    if dataset.problem_type == MULTI:
        raise DataError(f"{dataset.name}: out_of_scope_label is for rows of one label, give such rows none: {label}")
    inside = [example for example in dataset.examples if example.labels != (label,)]
    if not inside:
        raise DataError(f"{dataset.name}: all rows have the label of what is out of scope: {label}")
    outside = [example.text for example in dataset.examples if example.labels == (label,)]
    return replace(dataset, examples=inside, outside=outside)


def targets(dataset: Dataset, labels: Sequence[str]) -> NDArray[Any]:
    """Class ids (N,) of int64, or an indicator (N, C) of float32 where multi-label.

    Raises DataError for a label that the model does not have.
    """
    ids = {label: i for i, label in enumerate(labels)}
    unknown = set(dataset.label_names) - set(ids)
    if unknown:
        raise DataError(
            f"{dataset.name}: the model has no label named {sorted(unknown)[0]}, it has: {', '.join(labels)}"
        )
    if dataset.problem_type == SINGLE:
        return np.array([ids[example.labels[0]] for example in dataset.examples], dtype=np.int64)
    indicator = np.zeros((len(dataset.examples), len(labels)), dtype=np.float32)
    for row, example in enumerate(dataset.examples):
        indicator[row, [ids[label] for label in example.labels]] = 1
    return indicator


def epoch_batches(
    lengths: Sequence[int], *, batch_rows: int, batch_tokens: int, seed: int, epoch: int
) -> list[list[int]]:
    """Row indices of each batch of an epoch: shuffled, yet of similar lengths inside a batch.

    The same for the same arguments, which is what makes a resumed run exact.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    stretch = BUCKET_BATCHES * batch_rows
    batches: list[list[int]] = []
    for start in range(0, len(order), stretch):
        part = order[start : start + stretch]
        plan = plan_passes([lengths[i] for i in part], batch_tokens, batch_rows)
        batches += [[int(part[j]) for j in rows] for rows in plan]
    return [batches[i] for i in rng.permutation(len(batches))]


def _example(fields: dict[str, Any], columns: Columns, line: int) -> tuple[Example, bool]:
    """One row -> example and whether it is multi-label. Raises ValueError with the reason."""
    text = _string(fields, columns.text)
    pair = fields.get("text_pair")
    if pair is not None and not isinstance(pair, str):
        raise ValueError(f"text_pair is not a string: {type(pair).__name__}")
    check_unicode("text_pair", pair or "")
    whole: Text = text if pair is None else (text, pair)
    slices = tuple(_value(name, fields.get(name)) for name in columns.slices)
    if fields.get("labels") is not None and columns.label not in fields:
        labels = fields["labels"]
        labels = [part for part in labels.split("|") if part] if isinstance(labels, str) else labels
        if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
            raise ValueError("labels is not a list of strings")
        for label in labels:
            check_unicode("labels", label)
        return Example(whole, tuple(dict.fromkeys(labels)), line, slices), True
    return Example(whole, (_string(fields, columns.label),), line, slices), False


def _value(name: str, value: object) -> str:
    text = "" if value is None else str(value)
    check_unicode(name, text)
    return text


def _string(fields: dict[str, Any], name: str) -> str:
    if fields.get(name) is None:
        raise ValueError(f"no field named {name}, there are: {', '.join(k for k in fields if k)}")
    value = fields[name]
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # label: 1
    if not isinstance(value, str):
        raise ValueError(f"{name} is not a string: {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{name} is empty")
    check_unicode(name, value)
    return value
