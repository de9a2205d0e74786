"""Everything that strangers' bytes reach first, each as a function of bytes that raises only where there is a defect.

What a service answers with its own errors, or a reader refuses with its own, is as it should be. Used by
benchmarks/fuzz.py (a million inputs, guided by coverage) and tests/test_fuzz.py (a few hundred).
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import re
import shutil
import tempfile
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import torch
from starlette.routing import Route

from model.bundle import load_bundle
from model.manifest import BundleError
from service.dialects.v2_grpc import V2Grpc, called
from service.grpc_messages import message
from service.models import Models
from service.predictor import Predictor
from service.routes import Service
from service.settings import Settings, Spec
from training.build import TrainConfig
from training.data import read_dataset
from training.train import train

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.applications import Starlette

    from model.bundle import Bundle

NAME = "mood"
SMALL = {"max_body_bytes": 100_000, "max_texts_per_request": 20}  # so that few bytes reach every limit
BINARY = "inference-header-content-length"
ANSWERS = {200, 202, 400, 401, 404, 405, 408, 411, 413, 415, 422, 429, 503, 504}
TEXTS = ["a gorgeous, witty movie", "paper thin", "日本語 🎬 é", "\u202eright to left"]
TINY = TrainConfig(vocab_size=400, layers=1, width=16, heads=2, feed_forward=32, max_tokens=32, epochs=1, batch_rows=32)


@dataclass(frozen=True)
class Edge:
    """A function of a stranger's bytes, and bytes that it takes."""

    one: Callable[[bytes], None]
    seeds: list[bytes]

    def __call__(self, data: bytes) -> None:
        """Raises only where there is a defect."""
        self.one(data)


def tiny_bundle(folder: Path) -> Path:
    """A model of next to nothing."""
    rows = [{"text": f"{text} {i}", "label": "good" if i % 2 else "bad"} for i in range(60) for text in TEXTS]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings(action="ignore"):
        train(TINY, read_dataset(data), None, None, folder / NAME, device=torch.device("cpu"))
    return folder / NAME


@contextlib.contextmanager
def service_of(folder: Path, **limits: Any) -> Iterator[tuple[Service, asyncio.Runner]]:
    """A replica without a network, and its event loop."""
    settings = Settings(device="cpu", compute_threads=1, **limits)
    with asyncio.Runner() as runner:
        service = Service(Models([Spec(NAME, tiny_bundle(folder))], settings), settings)
        lifespan = service.lifespan(service.asgi())
        runner.run(lifespan.__aenter__())
        yield service, runner
        runner.run(lifespan.__aexit__(None, None, None))


async def post(app: Starlette, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> tuple[int, bytes]:
    """Status and body of what the application answers, without a network."""
    said: list[Any] = []
    waiting = [{"type": "http.request", "body": part, "more_body": more} for part, more in halves(body)]

    async def receive() -> Any:
        return waiting.pop(0) if waiting else await asyncio.Event().wait()

    async def send(event: Any) -> None:
        said.append(event)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    await app(scope, receive, send)
    return said[0]["status"], b"".join(event.get("body", b"") for event in said[1:])


@contextlib.contextmanager
def http() -> Iterator[Edge]:
    """A body at every route that takes one: JSON in all dialects, V2's binary tensors, compressed ones.

    The first byte says where, the second how it is sent.
    """
    with tempfile.TemporaryDirectory() as folder, service_of(Path(folder), **SMALL) as (service, runner):
        app = service.asgi()
        taking = [route.path for route in app.routes if isinstance(route, Route) and "POST" in (route.methods or ())]
        paths = sorted({re.sub(r"{[^}]*model[^}]*}", NAME, path) for path in taking})

        def one(data: bytes) -> None:
            where, how, body = data[:1] or b"\0", data[1:2] or b"\0", data[2:]
            path = paths[where[0] % len(paths)]
            headers = [(b"content-type", b"application/json")]
            if how[0] % 4 == 1:
                headers.append((b"content-encoding", [b"gzip", b"deflate"][how[0] // 4 % 2]))
            if how[0] % 4 >= 2:
                headers.append((BINARY.encode(), str(how[0] // 4 * 8).encode()))
            status, answer = runner.run(post(app, path, headers, body))
            assert status in ANSWERS, f"{status} of {path}"
            if status not in (200, 202):
                json.loads(answer)

        seeds = [bytes([i, 0]) + json.dumps(body).encode() for i in range(len(paths)) for body in BODIES]
        packed = json.dumps(IN_V2).encode()
        for i in range(len(paths)):
            seeds += [bytes([i, 1]) + gzip.compress(packed), bytes([i, 5]) + zlib.compress(packed)]
            seeds.append(bytes([i]) + with_tensors())
        yield Edge(one, seeds)


IN_V2 = {
    "id": "4",
    "inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": TEXTS[:2]}],
    "outputs": [{"name": "label"}],
}
BODIES: list[Any] = [
    {"texts": TEXTS, "model": NAME, "top_k": 2, "on_long": "window", "timeout_ms": 500},
    {"pairs": [["a", "b"]], "raw_scores": True, "explain": False, "priority": "bulk"},
    {"texts": TEXTS[:2], "explain": "good"},
    {"inputs": [["a", "b"], "c"], "truncate": True, "raw_scores": False, "parameters": {"top_k": 1}},
    {"model": NAME, "input": TEXTS[:2], "truncate_prompt_tokens": 5},
    IN_V2,
    {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}}]},
    {"instances": TEXTS[:2]},
    {"request_id": "a", "index": 0, "label": "good"},
]


def with_tensors() -> bytes:
    """V2's binary form: how it is sent, the JSON, padded to the multiple of 8 that this says, and the tensor."""
    tensor = b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in TEXTS)
    told = {"shape": [len(TEXTS)], "datatype": "BYTES", "parameters": {"binary_data_size": len(tensor)}}
    head = json.dumps({"inputs": [{"name": "text", **told}]}).encode()
    eights = -(-len(head) // 8)
    return bytes([2 + 4 * eights]) + head.ljust(8 * eights) + tensor


def halves(body: bytes) -> list[tuple[bytes, bool]]:
    """As it comes over a network."""
    return [(body[: len(body) // 2], True), (body[len(body) // 2 :], False)]


class Context:
    """Of a gRPC call."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return []

    def set_trailing_metadata(self, metadata: object) -> None: ...

    def time_remaining(self) -> float:
        return 5.0

    async def abort(self, code: grpc.StatusCode, *told: object) -> None:
        self.code = code
        raise asyncio.CancelledError


@contextlib.contextmanager
def rpc() -> Iterator[Edge]:
    """A message of gRPC, as bytes."""
    with tempfile.TemporaryDirectory() as folder, service_of(Path(folder), **SMALL) as (service, runner):
        call = called(service, "ModelInfer", V2Grpc(service).ModelInfer)

        async def ask(data: bytes, context: Context) -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await call(data, context)

        def one(data: bytes) -> None:
            context = Context()
            runner.run(ask(data, context))
            assert context.code is not grpc.StatusCode.INTERNAL

        request = message("ModelInferRequest")
        tensor = {"name": "text", "shape": [2], "datatype": "BYTES"}
        texts = [text.encode() for text in TEXTS[:2]]
        raw = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
        seeds = [
            request(model_name=NAME, inputs=[tensor | {"contents": {"bytes_contents": texts}}]).SerializeToString(),
            request(model_name=NAME, id="7", inputs=[tensor], raw_input_contents=[raw]).SerializeToString(),
        ]
        yield Edge(one, seeds)


@contextlib.contextmanager
def bundle() -> Iterator[Edge]:
    """A file of a bundle from a stranger; the first byte says which, and whether there is a manifest with a hash of it.

    What is loaded without one is warmed up, and reads a few texts: it may fail, as an error that names it.
    """
    files = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "heed.json"]
    with tempfile.TemporaryDirectory(dir=shared_memory()) as name:
        whole = tiny_bundle(Path(name))
        kept = {file: (whole / file).read_bytes() for file in files}

        def one(data: bytes) -> None:
            which = (data[0] if data else 0) % (2 * len(files) - 1)
            file = files[which % len(files)]
            (whole / file).write_bytes(data[1:])
            if which >= len(files):
                (whole / "heed.json").unlink()
            with contextlib.suppress(BundleError):
                loaded = load_bundle(whole)
                if which >= len(files):
                    use(loaded)
            for each in (file, "heed.json"):
                (whole / each).write_bytes(kept[each])

        seeds = [bytes([i]) + kept[files[i % len(files)]] for i in range(2 * len(files) - 1)]
        yield Edge(one, seeds)


def use(loaded: Bundle) -> None:
    """As the engine does, which says of any error that the model cannot be served."""
    with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):
        predictor = Predictor(loaded, torch.device("cpu"), "fp32")
        predictor.warm_up()
        predictor(loaded.tokenizer.encode(TEXTS, loaded.max_tokens))


@contextlib.contextmanager
def rows() -> Iterator[Edge]:
    """A file of rows; the first byte says in which form."""
    import pyarrow as pa

    endings = ["jsonl", "csv", "tsv", "jsonl.gz", "csv.zst"]
    with tempfile.TemporaryDirectory(dir=shared_memory()) as name:
        files = [Path(name) / f"rows.{ending}" for ending in endings]

        def one(data: bytes) -> None:
            file = files[(data[0] if data else 0) % len(files)]
            file.write_bytes(data[1:])
            with contextlib.suppress(ValueError):
                read_dataset(file, bad_rows="skip")

        lines = "".join(
            json.dumps({"text": text, "label": "good"}, ensure_ascii=False) + "\n" for text in TEXTS
        ).encode()
        table = b'text,label\n"a, ""quoted""\nfilm",good\nplain,bad\n'
        zst = b"\4" + pa.compress(table, codec="zstd", asbytes=True)
        seeds = [
            b"\0" + lines,
            b"\1" + table,
            b"\2" + table.replace(b",", b"\t"),
            b"\3" + gzip.compress(lines),
            zst,
        ]
        yield Edge(one, seeds)


@contextlib.contextmanager
def parquet() -> Iterator[Edge]:
    """A file of Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory(dir=shared_memory()) as name:
        file = Path(name) / "rows.parquet"
        pq.write_table(pa.table({"text": TEXTS, "label": ["good"] * len(TEXTS)}), file)

        def one(data: bytes) -> None:
            file.write_bytes(data)
            with contextlib.suppress(ValueError):
                read_dataset(file, bad_rows="skip")

        seeds = [file.read_bytes()]
        yield Edge(one, seeds)


def shared_memory() -> str | None:
    """Where files are written at once, where there is such a place."""
    return "/dev/shm" if shutil.disk_usage("/dev/shm").free > 2**26 else None


EDGES = {edge.__name__: edge for edge in (http, rpc, bundle, rows, parquet)}
