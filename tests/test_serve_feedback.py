"""Labels for answered texts through a real `heed serve` with two replicas, which share a store."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
from postgres import PASSWORD
from server import Server

from service.feedback_store import Store
from service.grpc_messages import SERVICE, message

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@contextlib.contextmanager
def serving(bundle_folder: Path, store: str, **options: Any) -> Iterator[Server]:
    with Server(f"mood={bundle_folder}", "--replicas", "2", "--feedback-store", store, **options) as server:
        yield server
        assert server.stop() == 0


def give(server: Server, request_id: str, label: str = "negative") -> int:
    sent = {"request_id": request_id, "index": 0, "label": label, "text": "a film"}
    return httpx.post(f"{server.url}/v1/feedback", json=sent, timeout=30).status_code


def kept(store: str) -> set[str]:
    with contextlib.closing(Store(store, wait_s=5)) as opened:
        return {label.request_id for label in opened.labels()}


def test_a_label_that_was_acknowledged_outlives_kill_9_at_any_moment(bundle_folder: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "labels.db")

    def ask_and_label(server: Server) -> list[str]:
        """Ids of the requests whose labels were acknowledged, until the replicas are gone."""
        given: list[str] = []
        with contextlib.suppress(httpx.HTTPError):
            while (answer := server.classify(["a lovely film"])).status_code == 200:
                request_id = answer.json()["request_id"]
                if give(server, request_id) == 202:
                    given.append(request_id)
        return given

    with serving(bundle_folder, store) as server, ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            asking = [threads.submit(ask_and_label, server) for _ in range(8)]
            time.sleep(1.5)
            for pid in server.replicas():
                os.kill(pid, signal.SIGKILL)
            given = {request_id for found in asking for request_id in found.result()}
            assert len(given) >= 8
            assert given <= kept(store)
            while server.classify(["a lovely film"]).status_code != 200:
                time.sleep(0.1)


def test_what_was_answered_over_grpc_can_be_labelled_over_http(bundle_folder: Path, tmp_path: Path) -> None:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "contents": {"bytes_contents": [b"a lovely film"]}}
    request = message("ModelInferRequest")(model_name="mood", inputs=[tensor])
    with serving(bundle_folder, str(tmp_path / "labels.db"), grpc=True) as server:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            _, call = infer.with_call(request.SerializeToString(), timeout=30)
        request_id = dict(call.trailing_metadata())["x-request-id"]
        assert give(server, request_id) == 202


def test_replicas_share_a_postgresql_whose_password_is_nowhere(bundle_folder: Path, postgres: Any) -> None:
    store = postgres.database()
    with serving(bundle_folder, store) as server:
        ids = [server.classify(["a lovely film"]).json()["request_id"] for _ in range(20)]
        assert [give(server, request_id) for request_id in ids] == [202] * 20
        logs = [path for path in server.folder.rglob("*") if path.is_file() and path.stat().st_size < 10**7]
        assert any(path.suffix == ".log" for path in logs)
        assert not [path for path in logs if PASSWORD.encode() in path.read_bytes()]
        assert PASSWORD not in "".join(server.log)
    assert kept(f"postgresql+psycopg://{store.partition('://')[2]}") == set(ids)
