"""`heed serve` as a whole: a real Ray, real sockets, real signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx
import numpy as np
import pytest
from breaking import listening
from prometheus_client.mmap_dict import MmapedDict
from samples import FILLER, GOOD, sentence
from server import STOP_S, Server

from model.bundle import load_bundle
from model.device import choose_device
from service.cli import main
from service.guard import processes_of
from service.launch import free_port, haproxies
from service.predictor import Predictor
from service.scored import Scored

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Serve
    from hub import Hub

    from service.errors import ServiceError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}  # as /proc has them


@pytest.fixture(scope="module")
def server(bundle_folder: Path) -> Iterator[Server]:
    with Server(f"mood={bundle_folder}") as running:
        yield running


def test_it_answers_and_listens_on_the_loopback_interface_only(server: Server) -> None:
    response = server.classify(["a lovely film"])
    assert response.json()["results"][0]["labels"][0]["label"] == "positive"
    assert response.headers.get_list("x-request-id") == [response.json()["request_id"]]
    found = listening(processes_of(str(server.folder)))
    assert server.port in {port for _, port in found}
    assert {address for address, _ in found} <= LOOPBACK


def test_asked_to_be_public_it_opens_the_port_asked_for_and_no_other(serve: Serve, bundle_folder: Path) -> None:
    server = serve(f"mood={bundle_folder}", "--host", "0.0.0.0")
    found = listening(processes_of(str(server.folder)))
    assert {port for address, port in found if address not in LOOPBACK} == {server.port}


def only(answers: list[Scored | ServiceError]) -> list[float]:
    [scored] = answers
    assert isinstance(scored, Scored)
    return scored.logits


def test_two_thousand_concurrent_requests_each_get_the_answer_of_their_text_alone(
    bundle_folder: Path, server: Server
) -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(FILLER + GOOD, k=rng.choice([1, 3, 8, 20, 60]))) for _ in range(2000)]
    bundle = load_bundle(bundle_folder)
    predictor = Predictor(bundle, choose_device("cpu"))
    alone = [only(predictor(bundle.tokenizer.encode([text], bundle.max_tokens))) for text in texts]
    tolerance = {"bf16": 0.05, "fp32": 1e-5}[predictor.precision]  # as the README states it

    async def ask(session: aiohttp.ClientSession, text: str) -> Any:
        async with session.post(f"{server.url}/v1/classify", json={"texts": [text], "raw_scores": True}) as response:
            assert response.status == 200
            return await response.json()

    async def ask_all() -> list[Any]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            return await asyncio.gather(*(ask(session, text) for text in texts))

    for answer, expected in zip(asyncio.run(ask_all()), alone, strict=True):
        by_label = {scored["label"]: scored["score"] for scored in answer["results"][0]["labels"]}
        np.testing.assert_allclose([by_label[label] for label in bundle.labels], expected, atol=tolerance)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"rubbish", 400),
        (b'{"texts": []}', 422),
        (b'{"texts": ["' + b"a" * 100_000 + b'"]}', 422),
        (b" " * 10_000_000, 413),
        (b'{"texts": ["a"], "model": "nobody"}', 404),
        (b'{"texts": ["a"], "timeout_ms": 600001}', 422),
    ],
)
def test_bad_bodies_get_their_documented_status_and_the_next_request_is_answered(
    server: Server, body: bytes, status: int
) -> None:
    response = httpx.post(f"{server.url}/v1/classify", content=body)
    assert response.status_code == status
    assert response.json()["error"]["message"]
    assert server.classify(["a lovely film"]).status_code == 200


def test_a_client_that_is_killed_mid_request_harms_nobody(server: Server) -> None:
    body = b'{"texts": [' + b", ".join([b'"a long film about a dog"'] * 1000) + b"]}"
    head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for cut in (len(head) // 2, len(head), len(head) + len(body) // 2, len(head) + len(body)):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall((head + body)[:cut])
    neighbours = [server.classify(["a lovely film"]) for _ in range(5)]
    assert [n.json()["results"][0]["labels"][0]["label"] for n in neighbours] == ["positive"] * 5
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_killed_ingress_and_a_killed_replica_come_back(server: Server) -> None:
    [replica] = [
        p for p in processes_of(str(server.folder)) if b"ServeReplica" in Path(f"/proc/{p}/cmdline").read_bytes()
    ]
    for pid in (haproxies(server.folder)[0], replica):
        os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + 60
        answered = 0
        while answered < 5 and time.monotonic() < end:
            with contextlib.suppress(httpx.TransportError):
                answered = answered + 1 if server.classify(["a lovely film"]).status_code == 200 else 0
            time.sleep(0.2)
        assert answered == 5


def test_a_deadline_that_cannot_be_met_is_a_504(server: Server) -> None:
    response = server.classify(["a film"] * 1000, timeout_ms=1)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_no_text_of_a_user_is_in_a_log_or_a_metric(server: Server) -> None:
    secret = "xyzzysecret"
    assert server.classify([secret], explain=True).status_code == 200
    httpx.post(f"{server.url}/v1/classify", content=f'{{"texts": "{secret}"}}'.encode())
    httpx.post(f"{server.url}/v1/feedback", json={"request_id": secret, "index": 0, "label": secret})
    httpx.post(f"{server.url}/v2/models/mood/infer", json={"inputs": [{"name": secret, "data": [secret]}]})
    httpx.get(f"{server.url}/{secret}")
    time.sleep(1)  # of writing
    kept = [file for file in server.folder.rglob("*") if file.is_file() and b"heed-metrics" not in bytes(file)]
    said = {str(file): file.read_bytes() for file in kept} | {"stderr": "".join(server.log).encode()}
    said["/metrics"] = httpx.get(f"{server.url}/metrics").content
    assert any(b"heed INFO: " in text for text in said.values()), "the log of a replica is not among what was read"
    assert b"heed_requests_total" in said["/metrics"]
    assert [name for name, text in said.items() if secret.encode() in text] == []


def test_sigterm_answers_what_was_accepted_and_leaves_nothing_behind(server: Server) -> None:
    answered: list[httpx.Response] = []
    rng = random.Random(0)
    bodies = [{"texts": [sentence(rng, GOOD, 60) for _ in range(1000)]} for _ in range(3)]

    async def ask_then_stop() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            waiting = [asyncio.create_task(client.post(f"{server.url}/v1/classify", json=body)) for body in bodies]
            while not counted((await client.get(f"{server.url}/metrics")).text, "heed_queue_texts"):
                pass
            server.process.send_signal(signal.SIGTERM)
            answered.extend(await asyncio.gather(*waiting))

    asyncio.run(ask_then_stop())
    assert [response.status_code for response in answered] == [200] * 3
    assert all(len(response.json()["results"]) == 1000 for response in answered)
    assert server.process.wait(STOP_S) == 0
    assert server.is_gone(within_s=5)


@pytest.mark.parametrize("line", ["starting Ray", "loading models"])
def test_a_start_that_is_ended_has_the_exit_code_of_the_signal(line: str, bundle_folder: Path) -> None:
    command = [sys.executable, "-m", "service", "serve", f"mood={bundle_folder}", "--port", str(free_port())]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        next(said for said in process.stderr if line in said)
        time.sleep(1)  # Ray starts, or waits for the replica
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_S) == 128 + signal.SIGTERM


def counted(text: str, name: str) -> float:
    """Sum of a metric's samples in an exposition."""
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def test_two_replicas_share_the_work_and_add_up_and_nothing_survives_a_kill(serve: Serve, bundle_folder: Path) -> None:
    port = free_port()
    server = serve(f"mood={bundle_folder}", "--replicas", "2", "--metrics-port", str(port))

    async def ask_all() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            body = {"texts": ["a lovely film", "a dull one"]}
            responses = await asyncio.gather(*(client.post("/v1/classify", json=body) for _ in range(100)))
            assert {response.status_code for response in responses} == {200}

    rounds, shares = 0, [0.0, 0.0]
    while min(shares) < 20:  # whichever has less to do is asked next, once the ingress has heard of both
        asyncio.run(ask_all())
        rounds += 1
        shares = [counted_by(server.folder / "metrics" / f"counter_{pid}.db") for pid in server.replicas()]
        assert rounds < 50
    assert sum(shares) == 200 * rounds
    for url in (f"{server.url}/metrics", f"http://127.0.0.1:{port}/metrics"):
        for _ in range(4):  # whichever replica answers
            text = httpx.get(url).text
            assert counted(text, "heed_texts_total") == 200 * rounds
            assert counted(text, 'heed_requests_total{code="200",route="/v1/classify"') == 100 * rounds
    server.stop(signal.SIGKILL)
    assert server.is_gone(within_s=10)


def counted_by(file: Path) -> float:
    """Texts that one process has answered."""
    values = MmapedDict.read_all_values_from_file(file)  # type: ignore[no-untyped-call]
    return sum(float(value) for key, value, _, _ in values if "heed_texts_total" in key)


def test_a_model_of_the_hub_is_downloaded_once_for_all_replicas(serve: Serve, hub: Hub) -> None:
    server = serve("hf:somebody/mood", "--replicas", "2")
    assert server.classify(["a lovely film"], model="mood").json()["results"][0]["labels"][0]["label"] == "positive"
    assert len(hub.asked) == len(set(hub.asked))
    assert hub.downloaded.count("model.safetensors") == 1
    assert server.stop() == 0


def test_a_bundle_that_cannot_be_trusted_is_one_line_and_exit_2(
    serve: Serve, bundle_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "gpt2"}')
    server = serve(str(broken))
    assert server.process.wait(STOP_S) == 2
    errors = [line for line in server.log if "could not start" in line]
    assert len(errors) == 1
    assert "model_type is not one of bert, " in errors[0]
    assert "modernbert: gpt2" in errors[0]


def test_a_promotion_and_a_rollback_under_load_reach_every_replica_and_lose_no_request(
    serve: Serve, bundle_folder: Path, opposite_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = str(tmp_path / "registry")

    def heed(*arguments: str) -> str:
        assert main(["registry", *arguments]) == 0
        return capsys.readouterr().out.strip().removeprefix("mood@")

    first = heed("add", registry, "mood", str(bundle_folder), "--promote")
    second = heed("add", registry, "mood", str(opposite_folder))
    server = serve(f"{registry}/mood@production", "--registry-poll-s", "0.2", "--replicas", "2")
    best = {first: "positive", second: "negative"}

    async def ask_until(client: httpx.AsyncClient, wanted: str) -> set[str]:
        """Ask until the last twenty answers are of one version; all the versions seen."""
        latest: list[str] = []
        end = time.monotonic() + 60
        while latest[-20:] != [wanted] * 20:
            assert time.monotonic() < end
            response = await client.post("/v1/classify", json={"texts": ["a lovely film"]})
            assert response.status_code == 200
            answer = response.json()
            assert answer["results"][0]["labels"][0]["label"] == best[answer["version"]]
            latest.append(answer["version"])
        return set(latest)

    async def ask_everybody_until(wanted: str) -> set[str]:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            return set().union(*await asyncio.gather(*(ask_until(client, wanted) for _ in range(8))))

    async def test() -> None:
        assert await ask_everybody_until(first) == {first}
        for wanted, change in (
            (second, ("promote", registry, "mood", second)),
            (first, ("rollback", registry, "mood")),
        ):
            asking = asyncio.create_task(ask_everybody_until(wanted))
            await asyncio.to_thread(heed, *change)
            assert await asking == {first, second}

    asyncio.run(test())
    [info] = httpx.get(f"{server.url}/v1/models").json()["models"]
    assert (info["versions"], info["following"], info["last_error"]) == ([first, second], "mood@production", None)
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    assert f'heed_model_info{{model="mood",version="{first}"}} 1.0' in lines
    assert [line for line in lines if line.startswith("heed_model_info{") and second in line] == []
    assert 'heed_model_loads_total{model="mood",outcome="loaded"} 4.0' in lines
    assert server.stop() == 0


def test_a_stop_does_not_wait_for_a_store_of_ray_that_hangs(serve: Serve, bundle_folder: Path) -> None:
    server = serve(f"mood={bundle_folder}")
    programs = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes_of(str(server.folder))}
    [store] = [pid for pid, program in programs.items() if program.split(b"\0")[0].endswith(b"gcs_server")]
    os.kill(store, signal.SIGSTOP)
    assert server.stop() == 0  # within STOP_S
    assert server.is_gone(within_s=5)
