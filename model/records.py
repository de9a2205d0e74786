"""Data files -> records, one at a time: JSONL, CSV, TSV (plain, .gz or .zst) and Parquet, told by their suffix.

Read by training (labelled rows), `heed predict` and `heed bench`. Whoever asks decides what a bad record means.
A file is never in memory as a whole.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator

    from model.tokens import Text

DELIMITERS = {".csv": ",", ".tsv": "\t"}
COMPRESSIONS = (".gz", ".zst")
PARQUET = ".parquet"
SUFFIXES = (".jsonl", *DELIMITERS, PARQUET)
PARQUET_ROWS, PARQUET_BYTES = 1024, 2**24  # decoded at a time
csv.field_size_limit(1 << 24)  # the default of 131,072 characters is less than a long document

Record = tuple[int, dict[str, Any] | str]  # line (of Parquet, row) number, and fields or why there are none


class FileError(ValueError):
    """A file that cannot be read on; says file, line where there is one, and reason."""


@dataclass(frozen=True)
class Source:
    """An open data file: its records, in order, and how much of it has been read, 0 to 1 (None: nobody knows).

    columns is the header of a table; None of JSONL, where each row has its own. schema is Parquet's, as Arrow has it.
    """

    name: str
    records: Iterator[Record]
    columns: list[str] | None
    share: Callable[[], float | None]
    schema: Any = None


def suffixes_of(path: Path) -> tuple[str, str]:
    """(.jsonl, .gz), and "" where a file is not compressed. Raises FileError for another suffix."""
    packed = path.suffix if path.suffix in COMPRESSIONS else ""
    suffix = Path(path.stem).suffix if packed else path.suffix
    if suffix not in SUFFIXES or (packed and suffix == PARQUET):
        packed_too = f"{' or '.join(COMPRESSIONS)} after one of the first three"
        raise FileError(f"{path}: suffix is not one of {', '.join(SUFFIXES)}, or {packed_too}")
    return suffix, packed


@contextlib.contextmanager
def open_source(file: str | Path, only: Container[str] | None = None) -> Iterator[Source]:
    """A data file to read, or JSONL on stdin for -; of Parquet no other columns than `only` are decoded.

    Raises FileError where the file itself cannot be read, here or while its records are.
    """
    if str(file) == "-":
        yield Source("stdin", _jsonl(sys.stdin.buffer), None, lambda: None)
        return
    path = Path(file)
    suffix, packed = suffixes_of(path)
    with contextlib.ExitStack() as stack:
        with _named(path):
            raw = stack.enter_context(path.open("rb"))
            if suffix == PARQUET:
                source = _parquet(path, raw, only)
            else:
                lines, share = stack.enter_context(_unpacked(path, raw, packed)), _share_read(path, raw)
                is_jsonl = suffix == ".jsonl"
                columns, records = (None, _jsonl(lines)) if is_jsonl else _table(lines, DELIMITERS[suffix], str(path))
                source = Source(str(path), records, columns, share)
        yield Source(source.name, _errors_named(path, source.records), source.columns, source.share, source.schema)


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file, in order. Raises FileError where the file itself cannot be read."""
    with open_source(path) as source:
        yield from source.records


def read_texts(file: str, text_column: str) -> Iterator[Text]:
    """The texts and pairs of a data file, or of JSONL on stdin for -. Raises FileError at a bad row."""
    with open_source(file, only={text_column, "text_pair"}) as source:
        for line, fields in source.records:
            try:
                yield text_of(fields, text_column)
            except ValueError as error:
                raise FileError(f"{source.name}:{line}: {error}") from None


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a plain text, which may be compressed. Raises FileError where it cannot be read."""
    packed = path.suffix if path.suffix in COMPRESSIONS else ""
    with _named(path), path.open("rb") as raw, _unpacked(path, raw, packed) as lines:
        yield from _decode(lines, str(path))


def text_of(fields: dict[str, Any] | str, text_column: str) -> Text:
    """The text, or the pair, of a record. Raises ValueError with the reason where there is none."""
    if isinstance(fields, str):
        raise ValueError(fields)
    text, pair = fields.get(text_column), fields.get("text_pair")
    if not isinstance(text, str):
        raise ValueError(f"{text_column} is missing or not a string: {type(text).__name__}")
    if not isinstance(pair, str | None):
        raise ValueError(f"text_pair is not a string: {type(pair).__name__}")
    check_unicode(text_column, text)
    if pair is None:
        return text
    check_unicode("text_pair", pair)
    return text, pair


def check_unicode(name: str, value: str) -> None:
    """Raise ValueError for a string that JSON can spell and UTF-8 cannot: half a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds half a surrogate pair, which is no Unicode text") from None


def pyarrow(path: Path) -> Any:
    """The package, which reads and writes Parquet and Zstandard. Raises FileError where it is not installed."""
    try:
        import pyarrow as package
        import pyarrow.parquet
    except ImportError:
        raise FileError(f"{path}: this suffix needs a package more: pip install 'heed[parquet]'") from None
    return package


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """What goes wrong inside is the file's fault."""
    try:
        yield
    except FileError:
        raise
    except (OSError, EOFError, zlib.error, ValueError) as error:  # pyarrow's are OSError and ValueError
        reason = str(getattr(error, "strerror", None) or error).partition("\n")[0]
        raise FileError(f"{path}: {reason}") from None


def _errors_named(path: Path, records: Iterator[Record]) -> Iterator[Record]:
    with _named(path):
        yield from records


def _unpacked(path: Path, raw: IO[bytes], packed: str) -> IO[bytes]:
    if packed == ".gz":
        return gzip.open(raw)  # type: ignore[return-value]
    if packed == ".zst":
        return io.BufferedReader(pyarrow(path).CompressedInputStream(raw, "zstd"))
    return raw


def _share_read(path: Path, raw: IO[bytes]) -> Callable[[], float | None]:
    size = path.stat().st_size  # 0 of a pipe
    return lambda: raw.tell() / size if size else None


def _parquet(path: Path, raw: IO[bytes], only: Container[str] | None) -> Source:
    file = pyarrow(path).parquet.ParquetFile(raw)
    columns = file.schema_arrow.names
    wanted = [name for name in columns if only is None or name in only]
    done = 0

    def records() -> Iterator[Record]:
        nonlocal done
        for batch in file.iter_batches(rows_at_once(file.metadata), columns=wanted):
            for row in batch.to_pylist():
                done += 1
                yield done, row

    return Source(str(path), records(), columns, lambda: done / max(1, file.metadata.num_rows), file.schema_arrow)


def rows_at_once(metadata: Any) -> int:
    """Rows of a Parquet file to decode at a time: fewer where they are large, by the mean of the worst row group."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    row_bytes = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=0)
    return max(1, min(PARQUET_ROWS, int(PARQUET_BYTES / max(1, row_bytes))))


def _jsonl(lines: Iterable[bytes]) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError:
            yield number, "not UTF-8"
            continue
        except (ValueError, RecursionError) as error:
            yield number, f"not JSON: {error}"
            continue
        yield number, fields if isinstance(fields, dict) else "not a JSON object"


def _table(file: Iterable[bytes], delimiter: str, name: str) -> tuple[list[str], Iterator[Record]]:
    """Columns and rows. Raises FileError where they cannot be told apart."""
    reader = csv.DictReader(_decode(file, name), delimiter=delimiter, strict=True)

    def records() -> Iterator[Record]:
        try:
            for fields in reader:
                ragged = None in fields or None in fields.values()
                yield reader.line_num, "number of columns differs from the header's" if ragged else fields
        except csv.Error as error:
            raise FileError(f"{name}:{reader.reader.line_num}: {error}") from None

    try:
        columns = list(reader.fieldnames or [])
    except csv.Error as error:
        raise FileError(f"{name}:1: {error}") from None
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        raise FileError(f"{name}:1: two columns have one name: {twice}")
    return columns, records()


def _decode(file: Iterable[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise FileError(f"{name}:{number}: not UTF-8") from None
