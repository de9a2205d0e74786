"""Data files -> records, one at a time: JSONL, CSV and TSV, plain or .gz, told by their suffix.

Read by training (labelled rows), `heed predict` and `heed bench`. Whoever asks decides what a bad record means.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from model.tokens import Text

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".jsonl", *DELIMITERS)
csv.field_size_limit(1 << 24)  # the default of 131,072 characters is less than a long document

Record = tuple[int, dict[str, Any] | str]  # line number, and fields or why there are none


class FileError(ValueError):
    """A file that cannot be read on; says file, line where there is one, and reason."""


def suffix_of(path: Path) -> str:
    """.jsonl, .csv or .tsv. Raises FileError for another suffix."""
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix not in SUFFIXES:
        raise FileError(f"{path}: suffix is not one of {', '.join(SUFFIXES)}, or one of them with .gz")
    return suffix


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file, in order. Raises FileError where the file itself cannot be read."""
    suffix = suffix_of(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from records(file, suffix, str(path))
    except (OSError, EOFError, zlib.error) as error:
        raise FileError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def records(file: Iterable[bytes], suffix: str, name: str) -> Iterator[Record]:
    """The records of an open file; `name` is what errors call it."""
    lines = _decode(file, name)
    return _jsonl(lines) if suffix == ".jsonl" else _table(lines, DELIMITERS[suffix], name)


def read_texts(file: str, text_column: str) -> Iterator[Text]:
    """The texts and pairs of a data file, or of JSONL on stdin for -. Raises FileError at a bad row."""
    rows = records(sys.stdin.buffer, ".jsonl", "stdin") if file == "-" else read_records(Path(file))
    for line, fields in rows:
        where = f"{'stdin' if file == '-' else file}:{line}"
        if isinstance(fields, str):
            raise FileError(f"{where}: {fields}")
        text, pair = fields.get(text_column), fields.get("text_pair")
        if not isinstance(text, str) or not isinstance(pair, str | None):
            raise FileError(f"{where}: {text_column} is missing or not a string, or text_pair is not a string")
        try:
            check_unicode(text_column, text)
            check_unicode("text_pair", pair or "")
        except ValueError as error:
            raise FileError(f"{where}: {error}") from None
        yield text if pair is None else (text, pair)


def check_unicode(name: str, value: str) -> None:
    """Raise ValueError for a string that JSON can spell and UTF-8 cannot: half a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds half a surrogate pair, which is no Unicode text") from None


def _decode(file: Iterable[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise FileError(f"{name}:{number}: not UTF-8") from None


def _jsonl(lines: Iterable[str]) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"not JSON: {error}"
            continue
        yield number, fields if isinstance(fields, dict) else "not a JSON object"


def _table(lines: Iterator[str], delimiter: str, name: str) -> Iterator[Record]:
    reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
    try:
        for fields in reader:
            ragged = None in fields or None in fields.values()
            yield reader.line_num, "number of columns differs from the header's" if ragged else dict(fields)
    except csv.Error as error:
        raise FileError(f"{name}:{reader.reader.line_num}: {error}") from None
