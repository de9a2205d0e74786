"""All labelled rows that a model has learned from, in batches, each written once: the versions of its data.

  REGISTRY/NAME/data/log.jsonl         what happened, a line each, only ever appended to
  REGISTRY/NAME/data/rows/HASH.jsonl   rows of the hold-out or of a batch; HASH is of the file

Each line of the log has the version of the data after it, the hash of the line and of the version before: it names all
rows up to there, and a line that was changed is found. The hold-out is chosen once, and no later line changes it. Its
rows are of those that `heed train` held out by hash (place() in training/data.py, below DEV_SHARE), so production was
not trained on them. Three tenths of those, or a few more, are dev instead: a candidate that starts from production
remembers what that was trained on, and calibrated there it would be far too sure. Of a later batch places below
DEV_SHARE and from twice to three times that are the newest labels, which are measured on first and trained on once the
batch is decided on, and those between are dev. Used by training/retrain.py, one process at a time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from model.disk import sync, write
from model.manifest import now
from model.scores import MULTI, SINGLE
from training.data import DEV_SHARE, Columns, DataError, Dataset, Example, place, read_dataset
from training.duplicates import near, normal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from model.scores import ProblemType
    from training.intake import Intake

NEWEST_UP_TO = 3 * DEV_SHARE  # places that are newest labels, but those of dev: a fifth of a batch
MOST_HELD_OUT = 5000  # rows of the hold-out, and of dev: more cost time and show little more
DEV_OF_UNSEEN, LEAST_DEV = 0.3, 200  # of the rows that production was not trained on: that share, or so many, are dev
NO_VALUE = "(none)"  # of a slice that a row does not have
DEV = -1  # in place of a batch's number: rows that are dev for good
DIGITS = 16  # of a hash that names rows or a version


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Labelled rows that came together."""

    number: int  # counted from 0
    name: str  # of its rows
    rows: int
    labels: list[str]  # all that the model has after it; the position is the label id
    sources: list[dict[str, Any]]  # the files, each with its hash
    not_taken_in: dict[str, int] = field(default_factory=dict)  # rows of those files by the reason
    doubted: float | None = None  # share of its labels that a linear model contradicts
    moved: float | None = None  # population stability index of its label shares, where it is large


@dataclass(frozen=True, kw_only=True)
class History:
    """What the log says: the batches in order, which of them are decided on, and which of those are learned from."""

    version: str = ""
    hold_out: str = ""  # name of its rows
    dev: str = ""  # of rows that production was not trained on either
    problem_type: ProblemType = SINGLE
    slices: tuple[str, ...] = ()
    batches: list[Batch] = field(default_factory=list)
    decided: frozenset[int] = frozenset()  # their numbers
    refused: frozenset[int] = frozenset()  # batches that made a model worse: never learned from

    @property
    def newest(self) -> list[Batch]:
        """Those that no decision was made on."""
        return [batch for batch in self.batches if batch.number not in self.decided]

    @property
    def labels(self) -> list[str]:
        """Of all batches that are not refused; the position is the label id."""
        kept = [batch for batch in self.batches if batch.number not in self.refused]
        return kept[-1].labels if kept else []


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What rows are for in the next training."""

    train: Dataset
    dev: Dataset
    hold_out: Dataset
    newest: Dataset | None


class Archive:
    """The rows of one model."""

    def __init__(self, folder: Path, committed: Callable[[], None] = lambda: None) -> None:
        """`committed` is called when a line has been written: the place to copy it elsewhere."""
        self.folder, self._committed = folder, committed
        self._log = folder / "log.jsonl"

    def history(self) -> History:
        """What happened so far. Raises DataError where a line of the log is not what was written."""
        found = History()
        for number, line in enumerate(self._lines(), 1):
            entry = json.loads(line)
            if entry.pop("version") != _version(found.version, entry):
                raise DataError(f"{self._log}:{number}: the line is not what was written, its version is another")
            found = _after(found, entry, version=_version(found.version, entry))
        return found

    def begin(self, base: Dataset, hold_out: Dataset | None, labels: Sequence[str]) -> None:
        """Take in the rows that the model in production learned from; the hold-out is chosen, if it is not given.

        Raises DataError where nothing would be left to train or to measure on.
        """
        unseen = hold_out.examples if hold_out else [e for e in base.examples if place(e.text) < DEV_SHARE]
        held, dev = chosen(unseen)
        dev = without_copies(dev, held)
        rest = without_copies(base.examples, [*held, *dev])
        if not (held and dev and rest):
            raise DataError(f"{base.name}: too few rows to hold some out: {len(base.examples)}")
        self._append(
            kind="begin",
            hold_out=self._store(held, hold_out or base, base.slices),
            dev=self._store(dev, hold_out or base, base.slices),
            problem_type=base.problem_type,
            slices=list(base.slices),
            **_batch_fields(self._store(rest, base, base.slices), rest, labels, [base]),
        )

    def add(self, taken: Intake, sources: Sequence[Dataset]) -> None:
        """Take in a batch."""
        rows = taken.accepted
        name = self._store(rows, sources[0], self.history().slices)
        self._append(
            kind="batch",
            **_batch_fields(name, rows, taken.labels, sources),
            not_taken_in=taken.reasons(),
            doubted=taken.doubted,
            moved=taken.moved,
        )

    def decide(self, batches: Sequence[Batch], *, candidate: str, promoted: bool, refused: bool, why: str) -> None:
        """Write down what became of the newest batches; refused ones are never learned from."""
        numbers = [batch.number for batch in batches]
        self._append(kind="decision", batches=numbers, candidate=candidate, promoted=promoted, refused=refused, why=why)

    def parts(self, history: History) -> Parts:
        """The rows of the next training. Of a text that was labelled again, the last label counts.

        A newest row that is nearly one of the others shows nothing: it is trained on like those.
        """
        newest = {batch.number for batch in history.newest}
        dev_texts = {normal(e.text): e for e in self._rows(history.dev, history)}
        last = {text: (DEV, example) for text, example in dev_texts.items()}
        for batch in history.batches:
            if batch.number not in history.refused:
                rows = {normal(e.text): e for e in self._rows(batch.name, history)}
                last |= {text: (DEV if text in dev_texts else batch.number, e) for text, e in rows.items()}
        train: list[Example] = []
        dev: list[Example] = []
        new: list[Example] = []
        for number, example in last.values():
            at = place(example.text)
            is_dev = number == DEV or (number > 0 and DEV_SHARE <= at < 2 * DEV_SHARE)
            (dev if is_dev else new if number in newest and at < NEWEST_UP_TO else train).append(example)
        nearly = {row for row, _, _ in near([e.text for e in [*train, *dev]], [e.text for e in new])}
        train += [example for i, example in enumerate(new) if i in nearly]
        new = [example for i, example in enumerate(new) if i not in nearly]

        def dataset(kind: str, examples: list[Example]) -> Dataset:
            return Dataset(
                f"{self.folder}@{history.version} ({kind})",
                examples,
                history.problem_type,
                [],
                history.version,
                slices=history.slices,
            )

        return Parts(
            train=dataset("train", train),
            dev=dataset("dev", dev),
            hold_out=dataset("hold-out", self._rows(history.hold_out, history)),
            newest=dataset("newest", new) if new else None,
        )

    def known(self, history: History) -> dict[str, tuple[str, ...]]:
        """The labels of every text that is learned from, by normal(text)."""
        kept = [history.dev, *(batch.name for batch in history.batches if batch.number not in history.refused)]
        return {normal(e.text): e.labels for name in kept for e in self._rows(name, history)}

    def refused(self, history: History) -> set[tuple[str, tuple[str, ...]]]:
        """Texts, as normal(text), with labels that made a model worse."""
        names = [batch.name for batch in history.batches if batch.number in history.refused]
        return {(normal(e.text), e.labels) for name in names for e in self._rows(name, history)}

    def _rows(self, name: str, history: History) -> list[Example]:
        """Raises DataError where the file is not what was written."""
        file = self.folder / "rows" / f"{name}.jsonl"
        dataset = read_dataset(file, Columns(slices=history.slices))
        if dataset.sha256[:DIGITS] != name:
            raise DataError(f"the rows are not what was written, their hash is another: {file}")
        return dataset.examples

    def _store(self, rows: Sequence[Example], like: Dataset, slices: Sequence[str]) -> str:
        """Write rows once, under the hash of what is written; `like` says what their labels and slices are."""
        text = "".join(json.dumps(_fields(row, like, slices), ensure_ascii=False) + "\n" for row in rows)
        name = hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
        file = self.folder / "rows" / f"{name}.jsonl"
        if not file.exists():
            partial = file.with_suffix(".partial")
            write(partial, text)
            partial.replace(file)
            sync(file.parent)
        return name

    def _append(self, **entry: Any) -> None:
        """A line more, on disk on return; what a killed process left of a line is cut off first."""
        before = self.history().version
        whole = "".join(f"{line}\n" for line in self._lines()).encode()
        line = {"at": now(), **entry}
        line["version"] = _version(before, line)
        with self._log.open("ab") as file:
            file.truncate(len(whole))
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
        sync(self._log)
        self._committed()

    def _lines(self) -> list[str]:
        """Those that were written whole."""
        if not self._log.exists():
            return []
        return self._log.read_bytes().decode(errors="replace").split("\n")[:-1]


def _after(before: History, entry: dict[str, Any], version: str) -> History:
    """The history with one more line."""
    fields = dict(vars(before)) | {"version": version}
    if entry["kind"] == "decision":
        numbers = frozenset(entry["batches"])
        fields["decided"] = before.decided | numbers
        fields["refused"] = before.refused | (numbers if entry["refused"] else frozenset())
        return History(**fields)
    given = {f.name: entry[f.name] for f in dataclasses.fields(Batch) if f.name in entry}
    batch = Batch(number=len(before.batches), **given)
    fields["batches"] = [*before.batches, batch]
    if entry["kind"] == "begin":
        fields |= {name: entry[name] for name in ("hold_out", "dev", "problem_type")}
        fields |= {"slices": tuple(entry["slices"]), "decided": frozenset({batch.number})}
    return History(**fields)


def _batch_fields(
    name: str, rows: Sequence[Example], labels: Sequence[str], sources: Sequence[Dataset]
) -> dict[str, Any]:
    files = [{"file": source.name, "sha256": source.sha256, "rows": len(source.examples)} for source in sources]
    return {"name": name, "rows": len(rows), "labels": list(labels), "sources": files}


def chosen(unseen: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """The hold-out and dev, of rows that production was not trained on, by their hashes.

    Of few rows up to half are dev: a model that cannot be calibrated has no label sets, and never abstains.
    """
    in_order = sorted(unseen, key=lambda e: place(e.text))
    num_dev = min(max(round(DEV_OF_UNSEEN * len(in_order)), LEAST_DEV), len(in_order) // 2)
    held, dev = in_order[: len(in_order) - num_dev], in_order[len(in_order) - num_dev :]
    return held[:MOST_HELD_OUT], dev[:MOST_HELD_OUT]


def without_copies(examples: Sequence[Example], others: Sequence[Example]) -> list[Example]:
    """Those that are no copy of the others, and nearly none."""
    exact = {normal(example.text) for example in others}
    nearly = {row for row, _, _ in near([example.text for example in others], [e.text for e in examples])}
    return [e for i, e in enumerate(examples) if i not in nearly and normal(e.text) not in exact]


def _fields(row: Example, like: Dataset, slices: Sequence[str]) -> dict[str, Any]:
    """A row as read_dataset() reads it, with a value for each of the slices."""
    text = {"text": row.text} if isinstance(row.text, str) else {"text": row.text[0], "text_pair": row.text[1]}
    given = {"labels": list(row.labels)} if like.problem_type == MULTI else {"label": row.labels[0]}
    values = dict(zip(like.slices, row.slices, strict=True))
    return text | given | {name: values.get(name) or NO_VALUE for name in slices}


def _version(before: str, entry: dict[str, Any]) -> str:
    """Of the data after an entry."""
    return hashlib.sha256((before + json.dumps(entry, ensure_ascii=False)).encode()).hexdigest()[:DIGITS]
