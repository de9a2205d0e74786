"""The versions of a model's data: what is written once stays, the hold-out is never learned from."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from samples import rows

from training.archive import Archive
from training.data import DEV_SHARE, Columns, DataError, place, read_dataset
from training.duplicates import near, normal
from training.intake import take_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from training.data import Dataset

LABELS = ["negative", "positive"]


def unlike(kind: str, i: int) -> str:
    """A text that is not nearly any other."""
    return f"{kind} {hashlib.sha256(f'{kind} {i}'.encode()).hexdigest()}"


@pytest.fixture
def base(write_jsonl: Callable[..., Path]) -> Dataset:
    return read_dataset(write_jsonl([{"text": unlike("known", i), "label": LABELS[i % 2]} for i in range(400)]))


@pytest.fixture
def archive(base: Dataset, tmp_path: Path) -> Archive:
    made = Archive(tmp_path / "data")
    made.begin(base, None, LABELS)
    return made


def add(archive: Archive, new: Dataset) -> None:
    """As a retraining does."""
    history = archive.history()
    parts = archive.parts(history)
    archive.add(
        take_in([new], archive.known(history), parts.train, parts.hold_out, LABELS, allow_new_labels=False), [new]
    )


def texts(*datasets: Dataset | None) -> set[str]:
    return {normal(text) for dataset in datasets if dataset for text in dataset.texts}


def new_rows(write_jsonl: Callable[..., Path], kind: str = "new") -> Dataset:
    return read_dataset(write_jsonl([{"text": unlike(kind, i), "label": "positive"} for i in range(300)]))


def test_every_row_is_for_one_thing(archive: Archive, base: Dataset) -> None:
    parts = archive.parts(archive.history())
    assert texts(parts.train, parts.dev, parts.hold_out) == texts(base)
    assert len(parts.train.texts) + len(parts.dev.texts) + len(parts.hold_out.texts) == len(base.texts)
    assert 15 < len(parts.hold_out.texts) < 50
    assert 5 < len(parts.dev.texts) < 30
    unseen = parts.hold_out.texts + parts.dev.texts
    assert all(place(text) < DEV_SHARE for text in unseen)  # as heed train holds out
    assert parts.newest is None


def test_the_hold_out_stays_whatever_comes(archive: Archive, write_jsonl: Callable[..., Path]) -> None:
    before = archive.parts(archive.history()).hold_out.examples
    for kind in ("first", "second"):
        add(archive, new_rows(write_jsonl, kind=kind))
    after = archive.parts(archive.history())
    assert after.hold_out.examples == before
    assert not texts(after.hold_out) & texts(after.train, after.dev, after.newest)


def test_the_newest_labels_are_measured_on_first_and_learned_from_later(
    archive: Archive, write_jsonl: Callable[..., Path]
) -> None:
    add(archive, new_rows(write_jsonl))
    history = archive.history()
    parts = archive.parts(history)
    assert parts.newest is not None
    assert 30 < len(parts.newest.texts) < 90
    assert not texts(parts.newest) & texts(parts.train, parts.dev)
    archive.decide(history.newest, candidate="0" * 16, promoted=True, refused=False, why="better")
    later = archive.parts(archive.history())
    assert later.newest is None
    assert texts(parts.newest) <= texts(later.train)
    assert all(place(text) < 2 * DEV_SHARE for text in later.dev.texts)


def test_a_refused_batch_is_never_learned_from(archive: Archive, write_jsonl: Callable[..., Path]) -> None:
    before = archive.parts(archive.history())
    relabelled = [{"text": e.text, "label": "negative"} for e in before.train.examples[:20]]
    add(archive, read_dataset(write_jsonl(relabelled)))
    assert archive.parts(archive.history()).train.examples != before.train.examples
    archive.decide(archive.history().newest, candidate="0" * 16, promoted=False, refused=True, why="worse")
    after = archive.parts(archive.history())
    assert after.train.examples == before.train.examples


def test_of_a_text_that_is_labelled_again_the_last_label_counts(
    archive: Archive, write_jsonl: Callable[..., Path]
) -> None:
    some = archive.parts(archive.history()).train.examples[0]
    other = next(label for label in LABELS if (label,) != some.labels)
    add(archive, read_dataset(write_jsonl([{"text": str(some.text).upper(), "label": other}])))
    parts = archive.parts(archive.history())
    labels = [
        e.labels
        for part in (parts.train, parts.dev, parts.newest)
        if part
        for e in part.examples
        if normal(e.text) == normal(some.text)
    ]
    assert labels == [(other,)]


def test_a_version_names_all_rows_and_a_change_of_them_is_found(
    archive: Archive, write_jsonl: Callable[..., Path]
) -> None:
    first = archive.history().version
    add(archive, new_rows(write_jsonl))
    assert archive.history().version != first
    rows_file = archive.folder / "rows" / f"{archive.history().batches[0].name}.jsonl"
    rows_file.write_text(rows_file.read_text().replace("known", "changed", 1))
    with pytest.raises(DataError, match="the rows are not what was written"):
        archive.parts(archive.history())
    log = archive.folder / "log.jsonl"
    log.write_text(log.read_text().replace('"positive"', '"negative"', 1))
    with pytest.raises(DataError, match=r"log.jsonl:1: the line is not what was written"):
        archive.history()


def test_what_a_killed_process_left_of_a_line_is_no_line(archive: Archive, write_jsonl: Callable[..., Path]) -> None:
    before = archive.history()
    log = archive.folder / "log.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"at": "2026-11-2')
    assert archive.history() == before
    add(archive, new_rows(write_jsonl))
    assert log.read_bytes().startswith(whole + b'{"at"')
    assert len(archive.history().batches) == 2


def test_rows_of_several_labels_slices_and_pairs_come_back_as_they_were(
    write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    given = [
        {
            "text": f"a {i}",
            "text_pair": f"b {i}",
            "labels": ["x"] * (i % 2) + ["y"] * (i % 3 > 0),
            "source": f"s{i % 2}",
        }
        for i in range(200)
    ]
    whole = read_dataset(write_jsonl(given), Columns(slices=("source",)))
    archive = Archive(tmp_path / "data")
    archive.begin(whole, None, ["x", "y"])
    parts = archive.parts(archive.history())
    found = [*parts.train.examples, *parts.dev.examples, *parts.hold_out.examples]
    assert sorted((e.text, e.labels, e.slices) for e in found) == sorted(
        (e.text, e.labels, e.slices) for e in whole.examples
    )
    assert parts.train.slices == ("source",)


def test_too_few_rows_to_hold_some_out_are_refused(write_jsonl: Callable[..., Path], tmp_path: Path) -> None:
    one = read_dataset(write_jsonl(rows(1)))
    with pytest.raises(DataError, match="too few rows to hold some out: 1"):
        Archive(tmp_path / "data").begin(one, None, LABELS)


def test_texts_that_are_nearly_held_out_are_not_learned_from(write_jsonl: Callable[..., Path], tmp_path: Path) -> None:
    pairs = [{"text": f"{unlike('some', i)} {ending}", "label": "positive"} for i in range(200) for ending in "ab"]
    archive = Archive(tmp_path / "data")
    archive.begin(read_dataset(write_jsonl(pairs)), None, LABELS)
    add(archive, read_dataset(write_jsonl([row | {"text": f"{row['text']}c"} for row in pairs])))
    parts = archive.parts(archive.history())
    learned = [*parts.train.texts, *parts.dev.texts]
    assert parts.newest is None or not near(learned, parts.newest.texts)
    assert not near(learned, parts.hold_out.texts)


def test_a_batch_without_the_slices_of_the_first_rows_is_taken_in(
    write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    first = [{"text": unlike("known", i), "label": "positive", "source": "web"} for i in range(300)]
    archive = Archive(tmp_path / "data")
    archive.begin(read_dataset(write_jsonl(first), Columns(slices=("source",))), None, LABELS)
    add(archive, new_rows(write_jsonl))
    found = archive.parts(archive.history()).newest
    assert found is not None
    assert {example.slices for example in found.examples} == {("(none)",)}


def test_rows_that_were_refused_are_known_as_such(archive: Archive, write_jsonl: Callable[..., Path]) -> None:
    add(archive, new_rows(write_jsonl))
    archive.decide(archive.history().newest, candidate="", promoted=False, refused=True, why="worse")
    history = archive.history()
    assert (unlike("new", 7), ("positive",)) in archive.refused(history)
    add(archive, new_rows(write_jsonl))
    assert archive.history().newest, "the same rows again are another batch"
