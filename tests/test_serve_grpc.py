"""gRPC of `heed serve`: Ray's ingress, HAProxy, replicas, and the clients' own calls."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
from breaking import listening
from clients import KSERVE, TRITON, calls
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from samples import GOOD, sentence
from server import Server
from test_serve import LOOPBACK, counted, counted_by

from service.grpc_messages import SERVICE, message
from service.guard import processes_of
from service.launch import CannotServe, check_address

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Serve

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the first run makes the clients' environments
INFER = f"/{SERVICE}/ModelInfer"


@pytest.fixture(scope="module")
def server(bundle_folder: Path) -> Iterator[Server]:
    with Server(f"mood={bundle_folder}", grpc=True) as running:
        yield running


def address(server: Server) -> str:
    return f"127.0.0.1:{server.grpc_port}"


def infer(*texts: str) -> bytes:
    contents = {"bytes_contents": [text.encode() for text in texts]}
    tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "contents": contents}
    body: bytes = message("ModelInferRequest")(model_name="mood", inputs=[tensor]).SerializeToString()
    return body


def labels(answer: bytes) -> list[bytes]:
    return list(message("ModelInferResponse").FromString(answer).outputs[0].contents.bytes_contents)


def test_it_listens_on_the_loopback_interface_only(server: Server) -> None:
    found = listening(processes_of(str(server.folder)))
    assert {server.port, server.grpc_port} <= {port for _, port in found}
    assert {address for address, _ in found} <= LOOPBACK
    with pytest.raises(CannotServe, match="choose another --grpc-port"):
        check_address("127.0.0.1", server.grpc_port, "--grpc-port")


def test_tritons_client_over_grpc(server: Server) -> None:
    found = calls("client_triton", TRITON, "grpc", address(server))
    for call in ("is_server_live", "is_server_ready", "is_model_ready", "is_model_ready of a version"):
        assert found[call] is True, call
    assert found["get_server_metadata"]["name"] == "heed"
    assert found["get_model_metadata"]["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": ["-1"]}]
    assert [one["state"] for one in found["get_model_repository_index"]["models"]] == ["READY"]
    for call in ("infer", "infer of a version", "infer, compressed", "infer, priority and timeout"):
        assert found[call]["label"] == ["positive", "negative"], call
    assert found["infer"]["id"] == "42"
    assert found["infer"]["shapes"]["probabilities"] == [2, 2]
    assert [one.split(":")[1:] for one in found["infer, classification"]["probabilities"]] == [
        ["1", "positive"],
        ["0", "negative"],
    ]
    assert found["infer, parameters"]["label"] == ["positive", "negative", "negative", "positive"]
    assert len(found["infer, a pair"]["label"]) == 1
    assert found["infer, late"][0] in ("StatusCode.DEADLINE_EXCEEDED", "StatusCode.RESOURCE_EXHAUSTED")
    assert found["infer, client_timeout"][0] in ("StatusCode.DEADLINE_EXCEEDED", "StatusCode.RESOURCE_EXHAUSTED")
    for call in ("infer, unknown parameter", "infer, sequence", "infer, too many texts"):
        assert found[call][0] == "StatusCode.INVALID_ARGUMENT", call
    assert found["infer, no such model"][0] == "StatusCode.NOT_FOUND"


def test_kserves_client_over_grpc_and_a_time_to_come_back(server: Server) -> None:
    found = calls("client_kserve", KSERVE, "-", address(server))
    for call in ("grpc is_server_live", "grpc is_server_ready", "grpc is_model_ready"):
        assert found[call] is True, call
    assert found["grpc is_model_ready, no such model"][0] == "NOT_FOUND"
    assert found["grpc infer"]["id"] == "42"
    for call in ("grpc infer", "grpc infer, raw"):
        assert found[call]["label"] == ["positive", "negative"], call
    assert found["grpc infer, deadline"][0] in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
    refused = [trailing for code, trailing in found["grpc infer, overload"] if code == "RESOURCE_EXHAUSTED"]
    assert refused
    assert int(refused[0]["grpc-retry-pushback-ms"]) == 1000 * int(refused[0]["retry-after"]) >= 1000


def test_a_message_over_the_limit_is_refused_before_it_is_held_also_when_it_is_compressed(server: Server) -> None:
    with grpc.insecure_channel(address(server)) as channel:
        call = channel.unary_unary(INFER)
        for body, compression in ((b"\0" * 5_000_000, None), (b"\0" * 100_000_000, grpc.Compression.Gzip)):
            with pytest.raises(grpc.RpcError) as caught:
                call(body, compression=compression, timeout=60)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert labels(call(infer("a lovely film"), timeout=60)) == [b"positive"]


def test_the_service_describes_itself(server: Server) -> None:
    with grpc.insecure_channel(address(server)) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert SERVICE in database.get_services()
        assert "ModelInferRequest" in {m.name for m in database.FindFileContainingSymbol(SERVICE).message_type}


def test_calls_that_are_cancelled_take_their_texts_along(server: Server) -> None:
    with grpc.insecure_channel(address(server)) as channel, httpx.Client(base_url=server.url, timeout=30) as client:

        def value(name: str) -> float:
            return counted(client.get("/metrics").text, name)

        call, rounds = channel.unary_unary(INFER), 0
        while value(f'heed_requests_total{{code="499",route="{INFER}"') < 10:
            rounds += 1
            assert rounds < 100
            bodies = [infer(*(f"a film {n} of {i} in {rounds} " * 8 for n in range(1000))) for i in range(4)]
            waiting = [call.future(body, timeout=60) for body in bodies]
            value("heed_queue_texts")  # some milliseconds: the calls have arrived
            for one in waiting:
                one.cancel()
        end = time.monotonic() + 20
        while value("heed_queue_texts") and time.monotonic() < end:
            time.sleep(0.1)
        assert value("heed_queue_texts") == 0
        assert labels(call(infer("a lovely film"), timeout=60)) == [b"positive"]


def test_no_text_of_a_user_is_in_a_log(server: Server) -> None:
    secret = "xyzzysecret"
    with grpc.insecure_channel(address(server)) as channel:
        channel.unary_unary(INFER)(infer(secret), timeout=60)
        for body in (secret.encode(), infer("a").replace(b"mood", b"mo\xffd"), infer(secret, secret)[:-9]):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(INFER)(body, timeout=60)
            assert secret not in str(caught.value)
    logs = [file for file in (server.folder / "ray").rglob("*.*") if file.is_file()]
    assert [file for file in logs if secret.encode() in file.read_bytes()] == []


def test_sigterm_answers_the_calls_that_were_accepted(server: Server) -> None:
    async def ask_then_stop() -> list[bytes]:
        async with grpc.aio.insecure_channel(address(server)) as channel, httpx.AsyncClient() as client:
            rng = random.Random(0)
            bodies = [infer(*(sentence(rng, GOOD, 60) for _ in range(1000))) for _ in range(3)]
            waiting = [asyncio.create_task(_ask(channel, body)) for body in bodies]
            while not counted((await client.get(f"{server.url}/metrics")).text, "heed_queue_texts"):
                assert not all(task.done() for task in waiting)
            server.process.send_signal(signal.SIGTERM)
            return await asyncio.gather(*waiting)

    answers = asyncio.run(ask_then_stop())
    assert [len(labels(answer)) for answer in answers] == [1000] * 3
    assert server.stop() == 0
    assert server.is_gone(within_s=5)


async def _ask(channel: grpc.aio.Channel, body: bytes) -> bytes:
    return bytes(await channel.unary_unary(INFER)(body, timeout=60))


def test_two_replicas_share_the_calls_of_one_connection_and_one_that_is_killed_comes_back(
    serve: Serve, bundle_folder: Path
) -> None:
    server = serve(f"mood={bundle_folder}", "--replicas", "2", grpc=True)

    async def ask_all(channel: grpc.aio.Channel) -> None:
        answers = await asyncio.gather(*(_ask(channel, infer("a lovely film", "a dull one")) for _ in range(100)))
        assert {tuple(labels(answer)) for answer in answers} == {(b"positive", b"negative")}

    async def ask_until(channel: grpc.aio.Channel, done: Any) -> None:
        end = time.monotonic() + 60
        while not done():
            assert time.monotonic() < end
            await ask_all(channel)

    async def test() -> None:
        async with grpc.aio.insecure_channel(address(server)) as channel:
            await ask_until(channel, lambda: min(shares()) >= 20)
            killed = server.replicas()[0]
            os.kill(killed, signal.SIGKILL)
            answered, end = 0, time.monotonic() + 60
            while answered < 20 and time.monotonic() < end:
                try:
                    await _ask(channel, infer("a lovely film"))
                    answered += 1
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.UNAVAILABLE, error  # noqa: PT017
                    answered = 0
                    await asyncio.sleep(0.1)
            assert answered == 20

    def shares() -> list[float]:
        return [counted_by(server.folder / "metrics" / f"counter_{pid}.db") for pid in server.replicas()]

    asyncio.run(test())
    assert server.stop() == 0
