"""Which fields of the input stand in the output, before ours, and what they are called there.

One that has the name of a field of ours is called input_NAME: whether it is there may depend on the row, and a run
of hours shall not end on it. Called by service/predict.py; chosen by predict_command.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model.records import FileError, open_source

if TYPE_CHECKING:
    from collections.abc import Iterable

    from model.records import Source

ALL = "all"
PREFIX = "input_"


@dataclass(frozen=True)
class Kept:
    """columns: name in the input -> name in the output; None: all that a row has. ours: names that are taken.

    is_closed: a row may have no field that is not among the columns, because the output has a header.
    """

    columns: dict[str, str] | None
    ours: frozenset[str] = frozenset()
    is_closed: bool = False

    def of(self, row: dict[str, Any] | str) -> dict[str, Any]:
        """What a row keeps. Raises ValueError where its fields have no place in the output."""
        if isinstance(row, str) or self.columns == {}:
            return {}
        if self.columns is None:
            return {new: row[old] for old, new in renamed(row, self.ours).items()}
        if self.is_closed and not row.keys() <= self.columns.keys():
            unknown = next(name for name in row if name not in self.columns)
            raise ValueError(f"the first row has no such field, and so the output no column for it: {unknown}")
        return {new: row.get(old) for old, new in self.columns.items()}

    def of_bad(self, row: dict[str, Any] | str) -> dict[str, Any]:
        """What a row keeps that is not answered: as much as there is."""
        try:
            return self.of(row)
        except ValueError:
            return {}


def renamed(names: Iterable[str], ours: frozenset[str]) -> dict[str, str]:
    """Names of the input -> in the output. Raises ValueError where two would be one."""
    found = {name: PREFIX + name if name in ours else name for name in names}
    if len(set(found.values())) < len(found):
        both = next(new for old, new in found.items() if old != new and new in found)
        raise ValueError(f"{both.removeprefix(PREFIX)} would be {both} in the output, which is there already")
    return found


def choose_kept(keep: str | None, source: Source, ours: frozenset[str], *, is_table: bool) -> Kept:
    """What --keep asks for. Raises FileError for a column that is not there."""
    try:
        if keep is None:
            return Kept({})
        if keep != ALL:
            return Kept(renamed(dict.fromkeys(_known(keep.split(","), source)), ours))
        if source.columns is not None:
            return Kept(renamed(source.columns, ours))
        if not is_table:
            return Kept(None, ours)
        return Kept(renamed(_first_fields(source), ours), is_closed=True)
    except ValueError as error:
        raise FileError(f"{source.name}: {error}") from None


def _known(names: list[str], source: Source) -> list[str]:
    for name in names if source.columns is not None else ():
        check_column(name, source)
    return names


def check_column(name: str, source: Source) -> None:
    """Raise FileError where a table has no such column."""
    if source.columns is not None and name not in source.columns:
        raise FileError(f"{source.name}: no column named {name}, there are: {', '.join(source.columns)}")


def _first_fields(source: Source) -> list[str]:
    """The fields of the first row of JSONL, which is opened once more for it."""
    if source.name == "stdin":
        raise ValueError("a table needs its columns before the first row is read, name them in --keep")
    with open_source(source.name) as again:
        return next((list(row) for _, row in again.records if isinstance(row, dict)), [])
