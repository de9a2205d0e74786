"""Answers -> bytes of a file: JSON Lines as the service answers, or a table (CSV, TSV, Parquet), told by its suffix.

Whatever the format, a file begins with its header and grows by the bytes of chunk after chunk, so that an interrupted
one is whole up to a chunk's end: a compressed file is one member after the other, and Parquet, whose footer comes last,
grows as an Arrow stream and is made of it when that is complete. Called by service/predict.py and predict_file.py.
"""

from __future__ import annotations

import base64
import csv
import gzip
import json
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model.records import DELIMITERS, PARQUET, pyarrow, suffixes_of
from model.scores import MULTI
from service.errors import ServiceError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from model.manifest import Described
    from service.answers import TextAnswer
    from service.scored import Scored

    Keeps = Sequence[dict[str, Any]]
    Answers = Sequence[TextAnswer]

JSON_FIELDS = frozenset({"labels", "label_set", "abstained", "tokens", "truncated_tokens", "windows", "error"})
GROUP_ROWS, GROUP_BYTES = 65_536, 64 * 2**20  # of Parquet's row groups


def _plain(value: Any) -> str:
    """What Parquet holds and JSON does not: dates in ISO 8601, bytes in Base64, decimals as they are written."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)


_compact = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode
_escaped = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=_plain).encode


@dataclass(frozen=True, kw_only=True)
class Format:
    """How answers become bytes. packed is "", .gz or .zst."""

    labels: Sequence[str]
    top_k: int | None
    path: Path
    packed: str = ""

    @property
    def fields(self) -> frozenset[str]:
        """Names of ours, which no kept column has."""
        return JSON_FIELDS

    def header(self) -> bytes:
        """What the file begins with."""
        return b""

    def encode(self, kept: Keeps, answers: Answers) -> bytes:
        """The bytes of a chunk; its rows keep what is in `kept`."""
        lines = [to_json(row | result_fields(self.labels, a, self.top_k)) for row, a in zip(kept, answers, strict=True)]
        return self.pack("".join(f"{line}\n" for line in lines).encode())

    def pack(self, data: bytes) -> bytes:
        """Compressed by itself, if the file is: members one after the other are read as one file."""
        if not data or not self.packed:
            return data
        if self.packed == ".gz":
            return gzip.compress(data, mtime=0)
        packed: bytes = pyarrow(self.path).Codec("zstd").compress(data, asbytes=True)
        return packed

    def finish(self, partial: Path) -> None:
        """Give the complete file its name."""
        partial.replace(self.path)


class Lines(list[str]):
    """What csv writes, with line feeds: it quotes what holds a character of its line end, and a lone \\r must be."""

    end = "\r\n"

    def write(self, line: str) -> None:
        """The next row."""
        self.append(line.removesuffix(self.end) + "\n")


@dataclass(frozen=True, kw_only=True)
class Table(Format):
    """A flat table: the kept columns, then those of ours."""

    kept: dict[str, str]
    has_sets: bool
    abstains: bool
    delimiter: str = ","

    @property
    def columns(self) -> list[str]:
        """Ours. A score of each label, but with top_k=1 only that of the best."""
        scores = [f"score_{label}" for label in self.labels] if self.top_k is None else []
        sets = ["label_set"] if self.has_sets else []
        abstained = ["abstained"] if self.abstains else []
        return ["label", "score", *scores, *sets, *abstained, "tokens", "truncated_tokens", "error"]

    @property
    def fields(self) -> frozenset[str]:
        """Names of ours."""
        return frozenset(self.columns)

    def header(self) -> bytes:
        """Names of the columns."""
        return self._lines([[*self.kept.values(), *self.columns]])

    def encode(self, kept: Keeps, answers: Answers) -> bytes:
        """A line for each row."""
        names = list(self.kept.values())
        return self._lines(
            [
                [*(cell(row.get(name)) for name in names), *map(_joined, self.row(answer))]
                for row, answer in zip(kept, answers, strict=True)
            ]
        )

    def row(self, answer: TextAnswer) -> list[Any]:
        """The values of our columns; None where there is none."""
        whole = answer.result
        if isinstance(whole, ServiceError):
            return [None] * (len(self.columns) - 1) + [whole.code]
        best = max(range(len(self.labels)), key=whole.scores.__getitem__)
        scores = whole.scores if self.top_k is None else []
        sets = [label_set(self.labels, whole)] if self.has_sets else []
        abstained = [whole.abstained] if self.abstains else []
        found = [self.labels[best], whole.scores[best], *scores, *sets, *abstained]
        return [*found, answer.tokens, answer.rows[0].truncated, None]

    def _lines(self, rows: list[list[Any]]) -> bytes:
        lines = Lines()
        csv.writer(lines, delimiter=self.delimiter, lineterminator=lines.end).writerows(rows)
        return self.pack("".join(lines).encode())


@dataclass(frozen=True, kw_only=True)
class Parquet(Table):
    """The same table, with types; kept columns have theirs where the input is Parquet too, else they are strings."""

    schema: Any = None  # of the input, where that is Parquet

    def arrow_schema(self) -> Any:
        """Fields of the file."""
        pa = pyarrow(self.path)
        kept = [
            pa.field(new, pa.string() if self.schema is None else _spelt_out(pa, self.schema.field(old).type))
            for old, new in self.kept.items()
        ]
        words = {"label": pa.string(), "label_set": pa.list_(pa.string()), "error": pa.string()}
        types = words | {"abstained": pa.bool_()}
        counts = dict.fromkeys(("tokens", "truncated_tokens"), pa.int32())
        return pa.schema([*kept, *(pa.field(name, (types | counts).get(name, pa.float32())) for name in self.columns)])

    def header(self) -> bytes:
        """The schema, as an Arrow stream begins."""
        data: bytes = self.arrow_schema().serialize().to_pybytes()
        return data

    def encode(self, kept: Keeps, answers: Answers) -> bytes:
        """A record batch of an Arrow stream."""
        pa, schema = pyarrow(self.path), self.arrow_schema()
        text = cell if self.schema is None else _as_it_is
        columns = [[text(row.get(name)) for row in kept] for name in self.kept.values()]
        columns += map(list, zip(*map(self.row, answers), strict=True))
        arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
        data: bytes = pa.record_batch(arrays, schema=schema).serialize().to_pybytes()
        return data

    def finish(self, partial: Path) -> None:
        """Make Parquet of the complete Arrow stream."""
        pa = pyarrow(self.path)
        made = partial.with_name(f"{partial.name}.joining")
        with (
            partial.open("rb") as stream,
            made.open("wb") as file,
            pa.parquet.ParquetWriter(file, self.arrow_schema(), compression="zstd") as writer,
        ):
            group: list[Any] = []
            for batch in pa.ipc.open_stream(stream):
                group.append(batch)
                if sum(b.num_rows for b in group) >= GROUP_ROWS or sum(b.nbytes for b in group) >= GROUP_BYTES:
                    writer.write_table(pa.Table.from_batches(group))
                    group = []
            if group:
                writer.write_table(pa.Table.from_batches(group))
            writer.close()
            file.flush()
            os.fsync(file.fileno())
        made.replace(self.path)
        partial.unlink()


def is_table(path: Path) -> bool:
    """Whether a file has a header. Raises FileError for a suffix that is not known, or needs what is not installed."""
    suffix, packed = suffixes_of(path)
    if suffix == PARQUET or packed == ".zst":
        pyarrow(path)
    return suffix != ".jsonl"


def own_fields(path: Path, bundle: Described, top_k: int | None) -> frozenset[str]:
    """Names of ours in a file."""
    return choose_format(path, bundle, top_k, {}, None).fields


def choose_format(path: Path, bundle: Described, top_k: int | None, kept: dict[str, str], schema: Any) -> Format:
    """How a file of this suffix is written."""
    suffix, packed = suffixes_of(path)
    if suffix == ".jsonl":
        return Format(labels=bundle.labels, top_k=top_k, path=path, packed=packed)
    has_sets = bundle.problem_type == MULTI or bundle.calibration.quantile is not None
    shared: dict[str, Any] = {
        "labels": bundle.labels,
        "top_k": top_k,
        "path": path,
        "kept": kept,
        "has_sets": has_sets,
        "abstains": bundle.calibration.scope_threshold is not None,
    }
    if suffix == PARQUET:
        return Parquet(**shared, schema=schema)
    return Table(**shared, packed=packed, delimiter=DELIMITERS[suffix])


def result_fields(labels: Sequence[str], answer: TextAnswer, top_k: int | None) -> dict[str, Any]:
    """The fields of schemas.text_result without its objects, which take four times as long to make and to write."""
    whole = answer.result
    if isinstance(whole, ServiceError):
        return {"error": {"code": whole.code, "message": str(whole)}}
    found: dict[str, Any] = {"labels": _best(labels, whole, top_k)}
    if whole.in_set is not None:
        found["label_set"] = label_set(labels, whole)
    if whole.abstained is not None:
        found["abstained"] = whole.abstained
    found["tokens"], found["truncated_tokens"] = answer.tokens, answer.rows[0].truncated
    if answer.windows:
        found["windows"] = [
            {"start": window.start, "end": window.end}
            | ({} if window.side is None else {"side": window.side})
            | {"labels": _best(labels, scored, top_k)}
            for window, scored in answer.windows
        ]
    return found


def label_set(labels: Sequence[str], scored: Scored) -> list[str]:
    """The labels that are in the set."""
    return [label for label, inside in zip(labels, scored.in_set or (), strict=True) if inside]


def to_json(fields: dict[str, Any]) -> str:
    """One line of JSON. What JSON has no number for is null; half a surrogate pair stays the escape that it was."""
    try:
        line = _compact(fields)
    except ValueError:
        line = _compact(_finite(fields))
    return line if line.isascii() or _is_unicode(line) else _escaped(_finite(fields))


def cell(value: Any) -> str | None:
    """A kept value in a table: a string as it is, anything else as JSON."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    text = value if isinstance(value, str) else to_json(value).strip('"')
    return text if _is_unicode(text) else text.encode(errors="replace").decode()


def _best(labels: Sequence[str], scored: Scored, top_k: int | None) -> list[dict[str, Any]]:
    values = scored.scores
    order = sorted(range(len(labels)), key=lambda i: -values[i])[:top_k]
    return [{"label": labels[i], "score": values[i]} for i in order]


def _as_it_is(value: Any) -> Any:
    return value


def _spelt_out(pa: Any, kind: Any) -> Any:
    """An Arrow type without dictionaries, which are messages of their own in a stream, and would be for each chunk."""
    types = pa.types
    if types.is_dictionary(kind):
        return _spelt_out(pa, kind.value_type)
    if types.is_struct(kind):
        return pa.struct([field.with_type(_spelt_out(pa, field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(_spelt_out(pa, kind.key_type), _spelt_out(pa, kind.item_type))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        item = kind.value_field.with_type(_spelt_out(pa, kind.value_type))
        if types.is_fixed_size_list(kind):
            return pa.list_(item, kind.list_size)
        return pa.list_(item) if types.is_list(kind) else pa.large_list(item)
    return kind


def _joined(value: Any) -> Any:
    """A value of ours in a table that has no types."""
    if isinstance(value, bool):
        return str(value).lower()
    return "|".join(value) if isinstance(value, list) else value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
