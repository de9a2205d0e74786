"""What a stranger's bytes cost: seconds at each edge, and whether twice as many take more than twice as long.

    python benchmarks/growth.py

Shapes that are bad for parsers, at half of the largest body that a service takes by default and at all of it; files at
the same sizes. Exit 1 where an edge takes over MOST times as long for twice the bytes, if that is over SHORTEST_S,
or over LONGEST_S.
"""

from __future__ import annotations

import contextlib
import json
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edges import BINARY, NAME, post, service_of, tiny_bundle
from timing import markdown

from model.bundle import load_bundle
from model.manifest import BundleError
from model.records import read_records
from service.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    Shape = Callable[[int], bytes]  # so many bytes, about

BYTES = Settings.model_fields["max_body_bytes"].default
TIMES, MOST = 3, 3.0
SHORTEST_S, LONGEST_S = 0.05, 5.0


def texts(*of: str) -> Shape:
    """A request of texts, each over and over up to its limit."""

    def make(size: int) -> bytes:
        chars = Settings.model_fields["max_text_chars"].default
        whole = [(text * chars)[:chars] for text in of]
        count = max(1, size // sum(len(json.dumps(text)) for text in whole))
        return json.dumps({"texts": whole * count}).encode()

    return make


def tensor(size: int) -> bytes:
    """V2's binary form, of many texts of a letter."""
    count = size // 5
    told = {"name": "text", "shape": [count], "datatype": "BYTES", "parameters": {"binary_data_size": 5 * count}}
    return json.dumps({"inputs": [told]}).encode() + struct.pack("<Ic", 1, b"a") * count


def header(size: int) -> bytes:
    """A file of weights that is all header: many tensors of nothing."""
    one = '"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    entries = ",".join(one % i for i in range(size // len(one)))
    return struct.pack("<Q", len(entries) + 2) + b"{" + entries.encode() + b"}"


BODIES: dict[str, Shape] = {
    "JSON, nothing but [": lambda size: b'{"texts": ' + b"[" * size,
    "JSON, half of it escapes": texts("\u0001a"),
    "as many texts as it holds": lambda size: json.dumps({"texts": ["a"] * (size // 5)}).encode(),
    "keys that nobody asked for": lambda size: json.dumps({f"k{i}": i for i in range(size // 18)}).encode(),
    "digits": lambda size: b'{"texts": ["a"], "top_k": ' + b"1" * size + b"}",
    "texts of one word": texts("a"),
    "texts of combining marks": texts("e" + "\u0301" * 50),
    "texts of what normalization makes long": texts("\ufdfa"),
}
FILES: dict[str, tuple[str, Shape]] = {
    "CSV, nothing but quotes": ("rows.csv", lambda size: b"text,label\n" + b'"' * size),
    "CSV, nothing but commas": ("rows.csv", lambda size: b"text,label\n" + b"," * size),
    "JSONL, lines of [": ("rows.jsonl", lambda size: (b"[" * 1000 + b"\n") * (size // 1001)),
    "JSONL, one line": ("rows.jsonl", lambda size: json.dumps({"text": "a" * size, "label": "b"}).encode()),
}
PARTS: dict[str, tuple[str, Shape]] = {
    "config.json, nothing but [": ("config.json", lambda size: b"[" * size),
    "config.json, many labels": (
        "config.json",
        lambda size: json.dumps({"id2label": {str(i): f"label {i}" for i in range(size // 28)}}).encode(),
    ),
    "tokenizer.json, nothing but {": ("tokenizer.json", lambda size: b'{"a":' * (size // 5)),
    "weights, nothing but a header": ("model.safetensors", header),
}


def seconds(function: Callable[[], object]) -> float:
    """The least of a few calls."""
    taken = []
    for _ in range(TIMES):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return min(taken)


def is_bad(row: dict[str, object]) -> bool:
    """Whether an edge takes more than its share for its bytes."""
    taken, share = float(str(row["s"])), float(str(row["over half of them"]))
    return taken > LONGEST_S or (taken > SHORTEST_S and share > MOST)


def row(name: str, shape: Shape, use: Callable[[bytes], object]) -> dict[str, object]:
    """Of the table."""
    half, whole = shape(BYTES // 2), shape(BYTES)
    less, more = (seconds(lambda data=data: use(data)) for data in (half, whole))  # type: ignore[misc]
    return {"bytes": name, "MB": len(whole) / 1e6, "s": more, "over half of them": more / less}


def bodies() -> list[dict[str, object]]:
    """Requests, from their first byte to the answer."""
    with tempfile.TemporaryDirectory() as folder, service_of(Path(folder)) as (service, runner):
        app = service.asgi()

        def ask(path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
            status, _ = runner.run(post(app, path, headers, body))
            assert status < 500, f"{status} of {path}"

        table = [row(name, shape, lambda body: ask("/v1/classify", [], body)) for name, shape in BODIES.items()]
        length = BINARY.encode()

        def infer(body: bytes) -> None:
            ask(f"/v2/models/{NAME}/infer", [(length, str(body.index(b"]}") + 2).encode())], body)

        return [*table, row("a tensor of texts of a letter", tensor, infer)]


def files() -> list[dict[str, object]]:
    """Files of rows, and parts of a bundle."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, table = tiny_bundle(folder), []

        def read(file: Path, data: bytes) -> None:
            file.write_bytes(data)
            with contextlib.suppress(ValueError):
                for _ in read_records(file):
                    pass

        def load(file: Path, data: bytes) -> None:
            kept = file.read_bytes()
            file.write_bytes(data)
            with contextlib.suppress(BundleError):
                load_bundle(whole)
            file.write_bytes(kept)

        for what, (file, shape) in FILES.items():
            table.append(row(what, shape, lambda data, file=file: read(folder / file, data)))  # type: ignore[misc]
        for what, (file, shape) in PARTS.items():
            table.append(row(what, shape, lambda data, file=file: load(whole / file, data)))  # type: ignore[misc]
        return table


def main() -> int:
    """Print the table."""
    table = bodies() + files()
    print(markdown(table))
    return int(any(map(is_bad, table)))


if __name__ == "__main__":
    sys.exit(main())
